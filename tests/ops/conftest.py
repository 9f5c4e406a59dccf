"""The Triton kernels of a test: compiled on a GPU, else run by Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hipnn_pyg.ops

SOURCE = Path(hipnn_pyg.ops.__file__).with_name("triton.py")


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
    return load_kernels(SOURCE)
