"""Which kernels run where: C++ on a CPU, Triton's on a GPU."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hipnn_pyg.ops import cpu, reference
from hipnn_pyg.ops.operands import DTYPES


def sum_kernels(x: Tensor) -> ModuleType:
    """``envsum``, ``sensesum``, ``featsum`` of such tensors; of half precision the reference's.

    Raises:
        ImportError: on a GPU without Triton.
    """
    if x.dtype not in DTYPES:
        return reference
    return cpu if x.device.type == "cpu" else of_triton("triton")


def layer_kernels(device: torch.device) -> ModuleType:
    """``interact``, ``dense``, ``readout`` and their derivatives.

    Raises:
        ImportError: on a GPU without Triton.
    """
    return cpu if device.type == "cpu" else of_triton("triton_layers")


def molecule_kernels(x: Tensor) -> ModuleType | None:
    """``sizes``, ``molecule_edges``, ``molecule_sums`` and ``products`` of a GPU; None if they do
    not take ``x``."""
    return of_triton("triton_molecules") if x.is_cuda and takes(x) else None


def of_triton(name: str) -> ModuleType:
    """A module of Triton kernels.

    Raises:
        ImportError: there is no Triton.
    """
    try:
        return import_module(f"hipnn_pyg.ops.{name}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ImportError(
            "the GPU kernels need Triton, which PyTorch's CUDA builds for Linux bring along: "
            "install such a build (https://pytorch.org/get-started), or pip install triton"
        ) from error


@functools.cache
def available(device_type: str) -> str:
    """Empty if the device has kernels (they are compiled now if need be), else why it has none.

    Args:
        device_type: "cpu", "cuda" ...
    """
    try:
        if device_type == "cpu":
            cpu.library()
        elif device_type == "cuda":
            layer_kernels(torch.device("cuda"))
        else:
            return f"there are no kernels for {device_type!r}"
    except (cpu.KernelUnavailableError, ImportError) as error:
        return str(error)
    return ""


def transformed() -> bool:
    """Whether PyTorch records or transforms what is called now, which no kernel can follow:
    ``torch.jit.trace``, ``torch.func``, forward-mode derivatives."""
    return (
        torch.jit.is_tracing()
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
    )


def takes(x: Tensor) -> bool:
    """Whether the layers' kernels take such a tensor: real numbers, not being traced.

    Under autocast (:mod:`hipnn_pyg.nn.precision`) matrix products are PyTorch's own.
    """
    if x.device.type not in ("cpu", "cuda") or x.dtype not in DTYPES:
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or transformed():
        return False
    return x.device.type == "cpu" or not available("cuda")
