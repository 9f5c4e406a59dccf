"""The Triton kernels of a test: compiled on a GPU, else run by Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hipnn_pyg.ops

OPS = Path(hipnn_pyg.ops.__file__).parent


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the Triton kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def load_kernels(device: torch.device) -> Callable[[Path], ModuleType]:
    """Import a kernel file under another name: for the GPU, or for the interpreter.

    Triton decides for the interpreter when a kernel is defined. TRITON_INTERPRET is therefore set
    only while the copy is imported, and nothing else in the process is interpreted. That suffices
    because the kernels use Triton's builtins alone, none of its library functions, which are
    kernels themselves (``tl.sum``, ``tl.zeros``).
    """

    def load(file: Path, interpret: bool = device.type == "cpu") -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"kernels_{len(seen)}", file)
        assert spec is not None and spec.loader is not None
        seen.append(importlib.util.module_from_spec(spec))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", str(int(interpret)))
            spec.loader.exec_module(seen[-1])
        return seen[-1]

    seen: list[ModuleType] = []
    return load


@pytest.fixture(scope="session")
def triton_kernels(load_kernels: Callable[[Path], ModuleType]) -> ModuleType:
    """``hipnn_pyg.ops.triton`` as it runs here."""
    return load_kernels(OPS / "triton.py")


@pytest.fixture(scope="session")
def load_layers(
    load_kernels: Callable[..., ModuleType], triton_kernels: ModuleType
) -> Callable[..., ModuleType]:
    """Import a copy of ``triton_layers.py``, whose kernel of ``triton.py`` runs as it does here."""

    def load(file: Path = OPS / "triton_layers.py", **options: bool) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            if options.get("interpret", True):
                patch.setitem(sys.modules, "hipnn_pyg.ops.triton", triton_kernels)
            return load_kernels(file, **options)

    return load


@pytest.fixture(scope="session")
def layer_kernels(load_layers: Callable[..., ModuleType]) -> ModuleType:
    """``hipnn_pyg.ops.triton_layers`` as it runs here."""
    return load_layers()


@pytest.fixture(scope="session")
def step_kernels(load_kernels: Callable[..., ModuleType]) -> ModuleType:
    """``hipnn_pyg.ops.triton_step`` as it runs here."""
    return load_kernels(OPS / "triton_step.py")
