r"""The three sums as PyTorch operators that differentiate into each other, to any order.

With g the cotangent of a result,

==========================  ======================  ======================
result                      cotangent of the first  cotangent of the second
==========================  ======================  ======================
``envsum(s, z)``            ``sensesum(g, z)``      ``featsum(g, s)``
``sensesum(h, z)``          ``envsum(g, z)``        ``featsum(h, g)``
``featsum(h, s)``           ``envsum(s, g)``        ``sensesum(h, g)``
==========================  ======================  ======================

On a CPU they run the compiled kernels (:mod:`hipnn_pyg.ops.cpu`), on a GPU Triton's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hipnn_pyg.ops.devices import sum_kernels
from hipnn_pyg.ops.pattern import Pattern


@torch.library.custom_op("hipnn::envsum", mutates_args=())
def _envsum(
    s: Tensor, z: Tensor, j: Tensor, i: Tensor, row: Tensor, order: Tensor, column: Tensor
) -> Tensor:
    return sum_kernels(z).envsum(s, z, Pattern(j, i, row, order, column))


@torch.library.custom_op("hipnn::sensesum", mutates_args=())
def _sensesum(
    g: Tensor, z: Tensor, j: Tensor, i: Tensor, row: Tensor, order: Tensor, column: Tensor
) -> Tensor:
    return sum_kernels(z).sensesum(g, z, Pattern(j, i, row, order, column))


@torch.library.custom_op("hipnn::featsum", mutates_args=())
def _featsum(
    g: Tensor, s: Tensor, j: Tensor, i: Tensor, row: Tensor, order: Tensor, column: Tensor
) -> Tensor:
    return sum_kernels(g).featsum(g, s, Pattern(j, i, row, order, column))


@_envsum.register_fake
def _(s: Tensor, z: Tensor, j: Tensor, i: Tensor, row: Tensor, *rest: Tensor) -> Tensor:
    return z.new_empty(row.size(0) - 1, s.size(1), z.size(1))


@_sensesum.register_fake
def _(g: Tensor, z: Tensor, j: Tensor, *rest: Tensor) -> Tensor:
    return z.new_empty(j.size(0), g.size(1))


@_featsum.register_fake
def _(
    g: Tensor, s: Tensor, j: Tensor, i: Tensor, row: Tensor, order: Tensor, column: Tensor
) -> Tensor:
    return g.new_empty(column.size(0) - 1, g.size(2))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_NONE = (None,) * len(Pattern._fields)


def _envsum_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    s, z, *pattern = ctx.saved_tensors
    ds = _sensesum(g, z, *pattern) if ctx.needs_input_grad[0] else None
    dz = _featsum(g, s, *pattern) if ctx.needs_input_grad[1] else None
    return ds, dz, *_NONE


def _sensesum_backward(ctx: Any, t: Tensor) -> tuple[Tensor | None, ...]:
    g, z, *pattern = ctx.saved_tensors
    dg = _envsum(t, z, *pattern) if ctx.needs_input_grad[0] else None
    dz = _featsum(g, t, *pattern) if ctx.needs_input_grad[1] else None
    return dg, dz, *_NONE


def _featsum_backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    g, s, *pattern = ctx.saved_tensors
    dg = _envsum(s, u, *pattern) if ctx.needs_input_grad[0] else None
    ds = _sensesum(g, u, *pattern) if ctx.needs_input_grad[1] else None
    return dg, ds, *_NONE


_envsum.register_autograd(_envsum_backward, setup_context=_save)
_sensesum.register_autograd(_sensesum_backward, setup_context=_save)
_featsum.register_autograd(_featsum_backward, setup_context=_save)


def envsum(s: Tensor, z: Tensor, pattern: Pattern) -> Tensor:
    """:func:`hipnn_pyg.ops.reference.envsum` by the device's kernel, differentiable."""
    return _envsum(s, z, *pattern)


def sensesum(g: Tensor, z: Tensor, pattern: Pattern) -> Tensor:
    """:func:`hipnn_pyg.ops.reference.sensesum` by the device's kernel, differentiable."""
    return _sensesum(g, z, *pattern)


def featsum(g: Tensor, s: Tensor, pattern: Pattern) -> Tensor:
    """:func:`hipnn_pyg.ops.reference.featsum` by the device's kernel, differentiable."""
    return _featsum(g, s, *pattern)
