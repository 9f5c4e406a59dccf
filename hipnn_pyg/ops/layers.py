"""HIP-NN's layers as compiled kernels, first derivatives included.

Autograd's second derivatives go through the readable layers: a backward pass that is to be
differentiated computes the layer again with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hipnn_pyg.ops.devices import layer_kernels
from hipnn_pyg.ops.operands import Kept, Weights, Where
from hipnn_pyg.ops.pattern import Pattern

Layers = Callable[..., Tensor]
Operands = list[tuple[str, Tensor | None, tuple[int, ...]]]
"""Names, operands and the shapes that they must have."""


def differentiated(ctx: Any, inputs: Sequence[Tensor | None], gradient: Tensor) -> list[Any]:
    """Gradients of the readable layers in ``inputs``, themselves differentiable."""
    needed = ctx.needs_input_grad[-len(inputs) :]
    with torch.enable_grad():
        # One input may depend on another: views of them keep the derivatives partial.
        views = [None if x is None else x.view_as(x) for x in inputs]
        result = ctx.readable(*views)
    wanted = [x for x, need in zip(views, needed, strict=True) if need and x is not None]
    slopes = iter(
        torch.autograd.grad(result, wanted, gradient, create_graph=True, allow_unused=True)
    )
    return [next(slopes) if need else None for need in needed]


def _refuse_batched(gradient: Tensor) -> None:
    try:
        gradient.data_ptr()
    except RuntimeError as error:
        raise RuntimeError(
            'kernel="fused" has no batched gradients (is_grads_batched, vectorize=True): use '
            'kernel="padded"'
        ) from error


def _room_for(x: Tensor) -> Tensor:
    """For a gradient in x, as kernels write it, however x lies."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class _Interact(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, keep: bool, pattern: Pattern, cutoff: float, readable: Layers, *inputs: Tensor
    ) -> Tensor:
        ctx.pattern, ctx.cutoff, ctx.readable = pattern, cutoff, readable
        r, mu, sigma, z, V = inputs
        received, kept = layer_kernels(z.device).interact(
            Where(pattern, cutoff, r, mu, sigma), z, V, keep
        )
        ctx.save_for_backward(*inputs, *(kept or (None, None)))
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        _refuse_batched(gradients[0])
        *inputs, environments, sensitivities = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, None, None, *differentiated(ctx, inputs, gradients[0])
        needed = zip(inputs, ctx.needs_input_grad[4:], strict=True)
        slopes = [_room_for(x) if need else None for x, need in needed]
        r, mu, sigma, z, V = inputs
        kept = None if environments is None else Kept(environments, sensitivities)
        where = Where(ctx.pattern, ctx.cutoff, r, mu, sigma)
        layer_kernels(z.device).interact_backward(where, z, V, kept, gradients[0], slopes)
        return None, None, None, None, *slopes


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        keep: bool,
        readable: Layers,
        z: Tensor,
        received: Tensor,
        *weights: Tensor | None,
    ) -> Tensor:
        result, activations, between = layer_kernels(z.device).dense(
            z, received, Weights(weights), keep
        )
        ctx.readable = readable
        ctx.save_for_backward(z, received, activations, between, *weights)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        _refuse_batched(gradients[0])
        z, received, activations, between, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, *differentiated(ctx, (z, received, *weights), gradients[0])
        dz = _room_for(z) if ctx.needs_input_grad[2] else None
        slopes: list[Tensor | None] = [None] * len(weights)
        dweights = None
        if any(ctx.needs_input_grad[4:]):
            sizes = [0 if w is None else w.numel() for w in weights]
            dweights = z.new_empty(sum(sizes))
            parts = zip(weights, dweights.split(sizes), strict=True)
            slopes = [None if w is None else part.view_as(w) for w, part in parts]
        given = (z, Weights(weights), activations, between, gradients[0])
        dreceived = layer_kernels(z.device).dense_backward(*given, dz, dweights)
        return None, None, dz, dreceived, *slopes


def _check(layer: str, dtype: torch.dtype, operands: Operands) -> None:
    """Kernels read memory by address: operands must be what they take them for."""
    for name, x, shape in operands:
        found = None if x is None else x.dtype
        if x is None or found != dtype:
            raise TypeError(f"{layer}: {name} is {found} and z {dtype}; both must be the same")
        if x.shape != shape:
            raise ValueError(f"{layer}: {name} has shape {list(x.shape)}, not {list(shape)}")


def interact(
    r: Tensor,
    mu: Tensor,
    sigma: Tensor,
    z: Tensor,
    V: Tensor,
    pattern: Pattern,
    cutoff: float,
    readable: Layers,
) -> Tensor:
    r"""What the neighbours send: :math:`\sum_{j,\nu,b} s_\nu(r_{ij}) z_{j,b} V_{\nu,ba}`.

    Sensitivities ``[E, nu]`` and environments ``[N, nu in]`` are kept where V needs a gradient.

    Args:
        r: distances of the edges in Å, ``[E]``.
        mu: centres of the sensitivities in Å, ``[nu]``.
        sigma: their sigma in Å, ``[nu]``.
        z: features, ``[N, in]``.
        V: interaction weights, ``[nu, in, out]``.
        pattern: the edges.
        cutoff: R_cut in Å.
        readable: the same as a function of ``(r, mu, sigma, z, V)``, for second derivatives.

    Returns:
        ``[N, out]``.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit.
    """
    nu, width, out = V.size(0), z.size(-1), V.size(-1)
    expected: Operands = [
        ("z", z, (pattern.num_receivers, width)),
        ("r", r, pattern.j.shape),
        ("mu", mu, (nu,)),
        ("sigma", sigma, (nu,)),
        ("V", V, (nu, width, out)),
    ]
    _check("interact", z.dtype, expected)
    keep = torch.is_grad_enabled() and V.requires_grad  # within a Function neither can be told
    return _Interact.apply(keep, pattern, cutoff, readable, r, mu, sigma, z, V)


def dense(
    z: Tensor, received: Tensor, weights: Sequence[Tensor | None], readable: Layers
) -> Tensor:
    r"""Layers :math:`z' = \tilde W f(W z + B + g) + \tilde M z + \tilde B`, one after the other.

    Args:
        z: features, ``[N, in]``.
        received: g of the first layer, ``[N, out]``; the others have none.
        weights: W, B, W~, B~, M~ of each layer; M~ is None for the identity.
        readable: the same as a function of ``(z, received, *weights)``, for second derivatives.

    Returns:
        ``[N, out]``.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit.
    """
    atoms, width, out = z.size(0), z.size(-1), received.size(-1)
    expected: Operands = [("z", z, (atoms, width)), ("received", received, (atoms, out))]
    for n in range(0, len(weights), 5):
        *own, M = weights[n : n + 5]
        shapes = ((out, width), (out,), (out, out), (out,))
        expected += zip(("W", "B", "W~", "B~"), own, shapes, strict=True)
        if M is not None or width != out:
            expected.append(("M~", M, (out, width)))
        width = out
    _check("dense", z.dtype, expected)
    inputs = (z, received, *weights)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return _Dense.apply(keep, readable, *inputs)
