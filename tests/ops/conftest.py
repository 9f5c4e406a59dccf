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
LAYER_PARTS = (
    "triton_tiles",
    "triton_product",
    "triton_interaction",
    "triton_dense",
    "triton_readout",
)
"""The files that ``triton_layers.py`` joins; each needs only those before it."""


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
    load_kernels: Callable[..., ModuleType], triton_kernels: ModuleType, device: torch.device
) -> Callable[..., ModuleType]:
    """Import copies of the files behind ``triton_layers.py``, and of itself.

    ``load(name=file)`` takes that file for the part of that name.
    """

    def load(interpret: bool = device.type == "cpu", **instead: Path) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            if interpret:
                patch.setitem(sys.modules, "hipnn_pyg.ops.triton", triton_kernels)
            for name in LAYER_PARTS:
                part = load_kernels(instead.get(name, OPS / f"{name}.py"), interpret)
                patch.setitem(sys.modules, f"hipnn_pyg.ops.{name}", part)
            return load_kernels(OPS / "triton_layers.py", interpret)

    return load


@pytest.fixture(scope="session")
def layer_kernels(load_layers: Callable[..., ModuleType]) -> ModuleType:
    """``hipnn_pyg.ops.triton_layers`` as it runs here."""
    return load_layers()


@pytest.fixture(scope="session")
def molecule_kernels(load_kernels: Callable[..., ModuleType]) -> ModuleType:
    """``hipnn_pyg.ops.triton_molecules`` as it runs here."""
    return load_kernels(OPS / "triton_molecules.py")


@pytest.fixture(scope="session")
def step_kernels(
    load_kernels: Callable[..., ModuleType], molecule_kernels: ModuleType
) -> ModuleType:
    """``hipnn_pyg.ops.triton_step`` as it runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hipnn_pyg.ops.triton_molecules", molecule_kernels)
        return load_kernels(OPS / "triton_step.py")
