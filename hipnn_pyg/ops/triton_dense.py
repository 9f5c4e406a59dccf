"""The dense layers of a block, one after the other, and their first derivatives as Triton kernels.

The layers of 16 atoms run in one program. A row of features is two blocks of columns, whose sizes
are powers of two: 64 + 32 waste less than 128. Nothing is added atomically: same input, same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import softplus
from triton.language.standard import _sum_combine as _add

from hipnn_pyg.ops.operands import Weights
from hipnn_pyg.ops.triton_tiles import (
    ROWS,
    by_model,
    column_blocks,
    dot,
    kernel,
    products,
    stack_of,
)

WIDEST = 128
"""Features of a layer that the kernels take; wider ones are PyTorch's products."""
ATOMS_AT_ONCE = 64
ATOMS_OF_A_PART = 1024
"""Gradients in weights are added over so many atoms at a time, then over the parts."""
OPTIONS: dict[str, Any] = dict(num_warps=4)
MANY = 264
"""Programs from which on it pays that several run on a processor at a time."""


@triton.jit
def _softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)), accurate where it is small; x where x > 20, as PyTorch's.

    log(1 + u) = 2 artanh(u / (2 + u)), whose series is one in powers of 1/9 at most.
    """
    terms: tl.constexpr = 17 if x.dtype == tl.float64 else 8
    u = tl.exp(-tl.abs(x))
    ratio = u / (2.0 + u)
    series = ratio * 0.0
    for n in tl.static_range(terms):
        series = series * (ratio * ratio) + 2.0 / (2 * (terms - n) - 1)
    return tl.where(x > 20.0, x, tl.maximum(x, 0.0) + ratio * series)


@triton.jit
def _slope(activation):  # type: ignore[no-untyped-def]
    """Derivative of softplus from its value a, 1 - exp(-a): by its series where a is small."""
    terms: tl.constexpr = 14 if activation.dtype == tl.float64 else 8
    series = activation * 0.0 + 1.0
    for n in tl.static_range(terms - 1):
        series = 1.0 - series * activation * (1.0 / (terms - n))
    far = tl.where(activation > 20.0, 1.0, 1.0 - tl.exp(-activation))
    return tl.where(activation < 0.5, activation * series, far)


@triton.jit
def _load(X, row, live, WIDTH: tl.constexpr, A: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """Some rows of ``[rows, WIDTH]``: their first A columns, and the B that follow."""
    a, b = tl.arange(0, A)[None, :], A + tl.arange(0, B)[None, :]
    at = X + row[:, None] * WIDTH
    first = tl.load(at + a, mask=live[:, None] & (a < WIDTH), other=0)
    return first, tl.load(at + b, mask=live[:, None] & (b < WIDTH), other=0)


@triton.jit
def _store(X, first, second, row, live, WIDTH: tl.constexpr, A: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """Both blocks of columns to some rows of ``[rows, WIDTH]``."""
    a, b = tl.arange(0, A)[None, :], A + tl.arange(0, B)[None, :]
    at = X + row[:, None] * WIDTH
    tl.store(at + a, first, mask=live[:, None] & (a < WIDTH))
    tl.store(at + b, second, mask=live[:, None] & (b < WIDTH))


@triton.jit
def _bias(X, WIDTH: tl.constexpr, A: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """A row for all atoms."""
    a, b = tl.arange(0, A)[None, :], A + tl.arange(0, B)[None, :]
    return tl.load(X + a, mask=a < WIDTH, other=0), tl.load(X + b, mask=b < WIDTH, other=0)


@triton.jit
def _matrix(  # type: ignore[no-untyped-def]
    W,
    from_row: tl.constexpr,
    from_column: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of w ``[WIDTH, COLUMNS]``, w[k, f] at ``W + k DOWN + f ACROSS``."""
    k = from_row + tl.arange(0, HIGH)[:, None]
    f = from_column + tl.arange(0, BLOCK)[None, :]
    return tl.load(W + k * DOWN + f * ACROSS, mask=(k < WIDTH) & (f < COLUMNS), other=0)


@triton.jit
def _rows_times(  # type: ignore[no-untyped-def]
    first,
    second,
    W,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Rows times w, both blocks of C + D columns."""
    A: tl.constexpr = first.shape[1]
    B: tl.constexpr = second.shape[1]
    w = _matrix(W, 0, 0, WIDTH, COLUMNS, DOWN, ACROSS, A, C)
    none = tl.full((first.shape[0], C), 0, first.dtype)
    x = dot(first, w, none, PRODUCTS)
    w = _matrix(W, A, 0, WIDTH, COLUMNS, DOWN, ACROSS, B, C)
    x += dot(second, w, none, PRODUCTS)  # two sums that do not wait for each other
    none = tl.full((first.shape[0], D), 0, first.dtype)
    w = _matrix(W, 0, C, WIDTH, COLUMNS, DOWN, ACROSS, A, D)
    y = dot(first, w, none, PRODUCTS)
    w = _matrix(W, A, C, WIDTH, COLUMNS, DOWN, ACROSS, B, D)
    return x, y + dot(second, w, none, PRODUCTS)


@kernel
def _dense(
    Z: tl.tensor,
    RECEIVED: tl.tensor,
    WEIGHTS: tl.tensor,
    ACTIVATIONS: tl.tensor,
    OUTPUTS: tl.tensor,
    atoms: tl.tensor,
    each: tl.tensor,
    stride: tl.tensor,
    parts: tl.tensor,
    IN: tl.constexpr,
    F: tl.constexpr,
    LAYERS: tl.constexpr,
    KEEP: tl.constexpr,
    IN_A: tl.constexpr,
    IN_B: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    PRODUCTS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """z' = W~ softplus(W z + B + g) + M~ z + B~, layer after layer; g in the first layer only.

    Without KEEP the last layer's output alone is stored.
    """
    start = tl.program_id(0).to(tl.int64) * ROWS
    WEIGHTS += start // each * stride
    row = start + tl.arange(0, ROWS)
    live = row < atoms
    first: tl.constexpr = F * IN + F * F + 2 * F + (0 if IN == F else F * IN)
    apart = tl.cast(atoms, tl.int64) * F  # of two layers: more than 32 bits hold
    residual = WEIGHTS + F * IN + F
    v, w = _load(Z, row, live, IN, IN_A, IN_B)
    a, b = _load(RECEIVED, row, live, F, A, B)
    for part in range(1, parts):
        c, d = _load(RECEIVED + part * apart, row, live, F, A, B)
        a, b = a + c, b + d
    c, d = _bias(WEIGHTS + F * IN, F, A, B)
    x, y = _rows_times(v, w, WEIGHTS, IN, F, 1, IN, A, B, PRODUCTS)
    x, y = _softplus(x + a + c), _softplus(y + b + d)
    if KEEP:
        _store(ACTIVATIONS, x, y, row, live, F, A, B)
    x, y = _rows_times(x, y, residual, F, F, 1, F, A, B, PRODUCTS)
    if IN == F:
        a, b = v, w
    else:
        a, b = _rows_times(v, w, residual + F * F + F, IN, F, 1, IN, A, B, PRODUCTS)
    c, d = _bias(residual + F * F, F, A, B)
    x, y = x + a + c, y + b + d
    if KEEP:
        _store(OUTPUTS, x, y, row, live, F, A, B)
    a, b = x, y
    for layer in range(1, LAYERS):
        matrix = WEIGHTS + first + (layer - 1) * (2 * F * F + 2 * F)
        c, d = _bias(matrix + F * F, F, A, B)
        x, y = _rows_times(a, b, matrix, F, F, 1, F, A, B, PRODUCTS)
        x, y = _softplus(x + c), _softplus(y + d)
        if KEEP:
            _store(ACTIVATIONS + layer * apart, x, y, row, live, F, A, B)
        matrix += F * F + F
        c, d = _bias(matrix + F * F, F, A, B)
        x, y = _rows_times(x, y, matrix, F, F, 1, F, A, B, PRODUCTS)
        a, b = a + x + c, b + y + d
        if KEEP:
            _store(OUTPUTS + layer * apart, a, b, row, live, F, A, B)
    if not KEEP:
        _store(OUTPUTS, a, b, row, live, F, A, B)


@kernel
def _dense_slopes(
    WEIGHTS: tl.tensor,
    ACTIVATIONS: tl.tensor,
    GRADIENT: tl.tensor,
    OUTER: tl.tensor,
    INNER: tl.tensor,
    DZ: tl.tensor,
    atoms: tl.tensor,
    each: tl.tensor,
    stride: tl.tensor,
    WANTED: tl.constexpr,
    IN: tl.constexpr,
    F: tl.constexpr,
    LAYERS: tl.constexpr,
    IN_A: tl.constexpr,
    IN_B: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    PRODUCTS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Gradients in what each layer gives (outer) and in what its softplus takes (inner)."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    WEIGHTS += start // each * stride
    row = start + tl.arange(0, ROWS)
    live = row < atoms
    first: tl.constexpr = F * IN + F * F + 2 * F + (0 if IN == F else F * IN)
    apart = tl.cast(atoms, tl.int64) * F  # of two layers: more than 32 bits hold
    residual = WEIGHTS + F * IN + F
    a, b = _load(GRADIENT, row, live, F, A, B)
    _store(OUTER + (LAYERS - 1) * apart, a, b, row, live, F, A, B)
    for back in range(1, LAYERS):
        layer = LAYERS - back
        matrix = WEIGHTS + first + (layer - 1) * (2 * F * F + 2 * F)
        c, d = _load(ACTIVATIONS + layer * apart, row, live, F, A, B)
        x, y = _rows_times(a, b, matrix + F * F + F, F, F, F, 1, A, B, PRODUCTS)
        x, y = x * _slope(c), y * _slope(d)
        _store(INNER + layer * apart, x, y, row, live, F, A, B)
        x, y = _rows_times(x, y, matrix, F, F, F, 1, A, B, PRODUCTS)
        a, b = a + x, b + y
        _store(OUTER + (layer - 1) * apart, a, b, row, live, F, A, B)
    x, y = _rows_times(a, b, residual, F, F, F, 1, A, B, PRODUCTS)
    c, d = _load(ACTIVATIONS, row, live, F, A, B)
    x, y = x * _slope(c), y * _slope(d)
    _store(INNER, x, y, row, live, F, A, B)
    if WANTED:
        x, y = _rows_times(x, y, WEIGHTS, F, IN, IN, 1, IN_A, IN_B, PRODUCTS)
        if IN != F:
            a, b = _rows_times(a, b, residual + F * F + F, F, IN, IN, 1, IN_A, IN_B, PRODUCTS)
        _store(DZ, x + a, y + b, row, live, IN, IN_A, IN_B)


@triton.jit
def _weight_block(  # type: ignore[no-untyped-def]
    LEFT,
    RIGHT,
    TO,
    begin,
    end,
    BIASED: tl.constexpr,
    WIDTH: tl.constexpr,
    F: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """One block of the sum over some atoms of left right^T, and of the sum of left."""
    blocks: tl.constexpr = (WIDTH + ACROSS - 1) // ACROSS
    if (tl.program_id(0) // blocks) * DOWN >= F:
        return
    a = (tl.program_id(0) // blocks) * DOWN + tl.arange(0, DOWN)
    b = (tl.program_id(0) % blocks) * ACROSS + tl.arange(0, ACROSS)
    n = tl.arange(0, ROWS)
    slope = tl.full((DOWN, ACROSS), 0, TO.dtype.element_ty)
    biases = tl.full((DOWN, ROWS), 0, TO.dtype.element_ty)
    count = (end - begin).to(tl.int32)
    g_at = LEFT + begin * F + n[None, :] * F + a[:, None]
    z_at = RIGHT + begin * WIDTH + n[:, None] * WIDTH + b[None, :]
    for k in range(0, count, ROWS):
        live = k + n < count
        g = tl.load(g_at + k * F, mask=live[None, :] & (a < F)[:, None], other=0)
        z = tl.load(z_at + k * WIDTH, mask=live[:, None] & (b < WIDTH)[None, :], other=0)
        slope = dot(g, z, slope, PRODUCTS)
        biases += g
    at = TO + a[:, None] * WIDTH + b[None, :]
    tl.store(at, slope, mask=(a < F)[:, None] & (b < WIDTH)[None, :])
    if BIASED:
        if tl.program_id(0) % blocks == 0:
            tl.store(TO + F * WIDTH + a, tl.reduce(biases, 1, _add), mask=a < F)


@kernel
def _weight_slopes(
    Z: tl.tensor,
    ACTIVATIONS: tl.tensor,
    BETWEEN: tl.tensor,
    OUTER: tl.tensor,
    INNER: tl.tensor,
    DW: tl.tensor,
    atoms: tl.tensor,
    each: tl.tensor,
    size: tl.tensor,
    stride: tl.tensor,
    rows_of_a_part: tl.tensor,
    IN: tl.constexpr,
    F: tl.constexpr,
    LAYERS: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> None:
    """One block of one weight matrix's gradient, and its bias's: sums over a part of the atoms.

    Matrices W, W~ of each layer, then M~ of the first; in memory W, B, W~, B~, M~ layer by layer.
    """
    matrix = tl.program_id(1)
    layer = (matrix // 2).to(tl.int64)
    first: tl.constexpr = F * IN + F * F + 2 * F + (0 if IN == F else F * IN)
    across: tl.constexpr = 16 if IN <= 16 else ACROSS  # of matrices that IN columns have
    parts = (each + rows_of_a_part - 1) // rows_of_a_part
    model = (tl.program_id(2) // parts).to(tl.int64)
    part = (tl.program_id(2) % parts).to(tl.int64)
    begin = model * each + part * rows_of_a_part
    end = tl.minimum(begin + rows_of_a_part, (model + 1) * each)
    to = DW + model * stride + part * size
    if matrix == 2 * LAYERS:  # M~
        to += F * IN + F * F + 2 * F
        _weight_block(OUTER, Z, to, begin, end, False, IN, F, DOWN, across, ROWS, PRODUCTS)
    elif matrix == 0:
        _weight_block(INNER, Z, to, begin, end, True, IN, F, DOWN, across, ROWS, PRODUCTS)
    else:
        own = first + (layer - 1) * (2 * F * F + 2 * F)  # of a layer after the first
        left = INNER + layer * atoms * F
        right = BETWEEN + (layer - 1) * atoms * F
        if matrix % 2 == 1:  # W~
            left = OUTER + layer * atoms * F
            right = ACTIVATIONS + layer * atoms * F
            own = tl.where(layer > 0, own + F * F + F, F * IN + F)
        to += own
        _weight_block(left, right, to, begin, end, True, F, F, DOWN, ACROSS, ROWS, PRODUCTS)


def dense(
    z: Tensor, received: Tensor, weights: Weights, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See :func:`hipnn_pyg.ops.cpu.dense`.

    What is received may come in parts, ``[parts, N, out]``.
    """
    z, received, layers = z.contiguous(), received.contiguous(), len(weights) // 5
    atoms, out_channels = received.shape[-2:]
    parts = received.size(0) if received.dim() == 3 else 1
    activations, outputs = None, z.new_empty(1, atoms, out_channels)
    if keep:
        activations, outputs = z.new_empty(2, layers, atoms, out_channels)
    if max(z.size(1), out_channels) > WIDEST:
        received = received if received.dim() == 2 else received.sum(0)
        _wide(z, received, weights, activations, outputs)
    elif atoms:
        joined, models, stride = _joined(weights)
        with torch.cuda.device_of(z):
            _dense[(triton.cdiv(atoms, ROWS),)](
                *(z, received, joined, outputs if activations is None else activations, outputs),
                *(atoms, atoms // models, stride, parts, z.size(1), out_channels, layers, keep),
                *(*column_blocks(z.size(1)), *column_blocks(out_channels), products(z), ROWS),
                **_options(z, out_channels),
            )
    return outputs[-1], activations, outputs[:-1] if keep else None


def dense_backward(
    z: Tensor,
    weights: Weights,
    activations: Tensor,
    between: Tensor,
    gradient: Tensor,
    dz: Tensor | None,
    dweights: Tensor | None,
) -> Tensor:
    """See :func:`hipnn_pyg.ops.cpu.dense_backward`."""
    z, gradient = z.contiguous(), gradient.contiguous()
    layers, atoms, out_channels = activations.shape
    in_channels = z.size(1)
    outer, inner = z.new_empty(2, *activations.shape)
    sizes = (in_channels, out_channels, layers)
    if not atoms:
        if dweights is not None:
            dweights.zero_()
        return inner[0]
    joined, models, stride = _joined(weights)
    each = atoms // models
    with torch.cuda.device_of(z):
        if max(in_channels, out_channels) > WIDEST:
            _wide_slopes(weights, activations, gradient, outer, inner, dz)
        else:
            _dense_slopes[(triton.cdiv(atoms, ROWS),)](
                *(joined, activations, gradient, outer, inner, z if dz is None else dz),
                *(atoms, each, stride, dz is not None, *sizes),
                *(*column_blocks(in_channels), *column_blocks(out_channels), products(z), ROWS),
                **_options(z, out_channels),
            )
        if dweights is not None:
            down, across = 16, 32
            tiles = triton.cdiv(out_channels, down) * triton.cdiv(
                max(in_channels, out_channels), across
            )
            num_parts, size = triton.cdiv(each, ATOMS_OF_A_PART), dweights.size(-1)
            parts, apart = dweights, stack_of(dweights, 1)[1]
            if num_parts > 1:
                parts = dweights.new_empty(*dweights.shape[:-1], num_parts, size)
                apart = num_parts * size
            matrices = 2 * layers + (in_channels != out_channels)
            few = tiles * matrices * models * num_parts < 2 * MANY
            _weight_slopes[(tiles, matrices, models * num_parts)](
                *(z, activations, between, outer, inner, parts, atoms, each, size, apart),
                *(ATOMS_OF_A_PART, *sizes, down, across, ATOMS_AT_ONCE, products(z)),
                num_warps=2 if few else 1,
                num_stages=3 if few else 2,
            )
            if num_parts > 1:
                torch.sum(parts, -2, out=dweights)
    return inner[0]


def _options(z: Tensor, width: int) -> dict[str, Any]:
    """Few programs have matrices under way; many have few registers: three run at a time."""
    if z.size(0) < MANY * ROWS:
        return dict(num_stages=_stages(z.device, z.dtype, width), **OPTIONS)
    few_registers = {} if torch.version.hip else dict(maxnreg=168)
    return dict(num_stages=1, **few_registers, **OPTIONS)


@functools.cache
def _stages(device: torch.device, dtype: torch.dtype, width: int) -> int:
    """Layers whose two matrices are under way, as far as the shared memory of a program goes."""
    if device.type != "cuda":
        return 3  # the interpreter
    properties: Any = torch.cuda.get_device_properties(device)
    memory = properties.shared_memory_per_block_optin - 2**14
    return max(1, min(3, 1 + memory // (2 * sum(column_blocks(width)) ** 2 * dtype.itemsize)))


def _wide(
    z: Tensor, received: Tensor, weights: Weights, activations: Tensor | None, outputs: Tensor
) -> None:
    """All layers by PyTorch's products."""
    for layer in range(len(weights) // 5):
        W, B, W_residual, B_residual, M = weights[5 * layer : 5 * layer + 5]
        before = _linear(z, W, B) + (0 if layer else received)
        activation = softplus(before)
        kept = z if M is None else _linear(z, M)
        z = outputs[layer % len(outputs)].copy_(_linear(activation, W_residual, B_residual) + kept)
        if activations is not None:
            activations[layer] = activation


def _wide_slopes(
    weights: Weights,
    activations: Tensor,
    gradient: Tensor,
    outer: Tensor,
    inner: Tensor,
    dz: Tensor | None,
) -> None:
    """What :func:`_dense_slopes` gives, by PyTorch's products."""
    for layer in range(len(activations) - 1, -1, -1):
        W, _, W_residual, _, M = weights[5 * layer : 5 * layer + 5]
        outer[layer].copy_(gradient)
        activation = activations[layer]
        slope = torch.where(activation > 20, 1.0, -torch.expm1(-activation))
        assert W is not None and W_residual is not None
        inner[layer].copy_(_linear(gradient, W_residual.mT) * slope)
        if layer or dz is not None:
            kept = gradient if M is None else _linear(gradient, M.mT)
            gradient = _linear(inner[layer], W.mT) + kept
    if dz is not None:
        dz.copy_(gradient)


def _linear(x: Tensor, w: Tensor | None, b: Tensor | None = None) -> Tensor:
    """x w^T + b: each model's atoms with its own."""
    assert w is not None
    y = by_model(x, w, 2) @ w.mT
    return (y if b is None else y + b.unsqueeze(-2)).flatten(0, -2)


def _joined(weights: Weights) -> tuple[Tensor, int, int]:
    """The weights one after the other: where they lie, if they lie so, else a copy.

    Returns:
        These, the number of models they are of, and how far apart those of two models lie.
    """
    present = [w.detach() for w in weights if w is not None]
    models, stride = stack_of(present[0], 2)
    if not _adjoining(present if stride == 0 else [w[0] for w in present]):
        present = [torch.cat([w.flatten(present[0].dim() - 2) for w in present], -1)]
        stride = stack_of(present[0], 1)[1]
    return present[0], models, stride


def _adjoining(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors lie one behind the other in memory."""
    end = tensors[0].data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or not tensor.is_contiguous():
            return False
        end += tensor.nbytes
    return True
