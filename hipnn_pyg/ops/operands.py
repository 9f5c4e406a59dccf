"""What the kernels take: they read memory by address, so the operands are checked first."""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.ops.pattern import Pattern

DTYPES = (torch.float32, torch.float64)
AXES = {"s": ("E", "nu"), "z": ("num_senders", "F"), "g": ("num_receivers", "nu", "F")}


class Where(NamedTuple):
    """The pairs of an interaction layer and its sensitivity functions.

    Attributes:
        pattern: the pairs.
        cutoff: R_cut in Å.
        r: distances in Å, ``[E]``.
        mu: centres in Å, ``[nu]``.
        sigma: in Å, ``[nu]``.
    """

    pattern: Pattern
    cutoff: float
    r: Tensor
    mu: Tensor
    sigma: Tensor

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """As kernels take them."""
        return self.r.contiguous(), self.pattern.row, self.pattern.j, self.mu, self.sigma


class Kept(NamedTuple):
    """What gradients in the weights need of an interaction's forward pass.

    Attributes:
        environments: the sums over neighbours: ``[N, nu in]``.
        sensitivities: ``[E, nu]``, filled up to whole registers; None on a GPU.
    """

    environments: Tensor
    sensitivities: Tensor | None


class Weights(tuple[Tensor | None, ...]):
    """W, B, W~, B~, M~ (None: identity) of each layer."""

    @functools.cached_property
    def _array(self) -> ctypes.Array[ctypes.c_void_p]:
        assert all(w is None or w.is_contiguous() for w in self)
        return (ctypes.c_void_p * len(self))()

    @property
    def addresses(self) -> ctypes.Array[ctypes.c_void_p]:
        """An address each, null for None, as they lie now: ``share_memory`` moves them."""
        array = self._array
        array[:] = [None if w is None else w.data_ptr() for w in self]
        return array


def checked(pattern: Pattern, **operands: Tensor) -> tuple[Pattern, Tensor, Tensor]:
    """The pattern and the operands, contiguous, or an error; values of indices are not read.

    Args:
        pattern: the edges.
        **operands: the two that the sum takes, of ``s`` ``[E, nu]``, ``z`` ``[num_senders, F]``
            and ``g`` ``[num_receivers, nu, F]``.

    Raises:
        TypeError: a dtype that the kernels do not have, or two that differ.
        ValueError: shapes or devices that do not match.
    """
    first = next(iter(operands))
    dtype, device = operands[first].dtype, operands[first].device
    if dtype not in DTYPES:
        raise TypeError(f"{first} is {dtype}, the kernels take float32 or float64: cast it first")
    edges = pattern.j.numel()
    sizes = {"E": edges, "num_senders": pattern.num_senders, "num_receivers": pattern.num_receivers}
    for name, operand in operands.items():
        if operand.dtype != dtype:
            raise TypeError(f"{first} is {dtype} but {name} {operand.dtype}: cast one to the other")
        _check_place(name, operand, device)
        shape = [sizes.setdefault(a, n) for a, n in zip(AXES[name], operand.shape, strict=False)]
        if list(operand.shape) != shape or operand.dim() != len(AXES[name]):
            raise ValueError(
                f"{name} has shape {list(operand.shape)}, not [{', '.join(AXES[name])}], here with "
                + ", ".join(f"{axis} = {size}" for axis, size in sizes.items())
            )
    for name, index in zip(Pattern._fields, pattern, strict=True):
        if index.dtype != torch.int64:
            raise TypeError(f"pattern.{name} is {index.dtype}, not int64: convert it with .long()")
        _check_place(f"pattern.{name}", index, device)
    if pattern.i.shape != pattern.j.shape or pattern.j.dim() != 1:
        raise ValueError(
            f"pattern.j has shape {list(pattern.j.shape)} and pattern.i {list(pattern.i.shape)}: "
            "both are [E]"
        )
    one, other = (operand.contiguous() for operand in operands.values())
    return Pattern(*(index.contiguous() for index in pattern)), one, other


def _check_place(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}, another operand on {device}: move all to one device"
        )
