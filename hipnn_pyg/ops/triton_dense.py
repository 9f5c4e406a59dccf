"""The dense layers of a block, one after the other, and their first derivatives as Triton kernels.

The layers of 16 atoms run in one program. Nothing is added atomically: same input, same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.standard import _sum_combine as _add

from hipnn_pyg.ops.operands import Weights
from hipnn_pyg.ops.triton_tiles import ROWS, column_block, products, stack_of

LARGEST_WHOLE = 128
"""Rows of the largest weight matrix that a program holds as a whole."""
ATOMS_AT_ONCE = 64
ATOMS_OF_A_PART = 4096
"""Gradients in weights are added over so many atoms at a time, then over the parts."""
OPTIONS: dict[str, Any] = dict(num_warps=8)


@triton.jit
def _softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)), accurate where it is small (Kahan's log1p); x where x > 20, as PyTorch's."""
    u = tl.exp(-tl.abs(x))
    w = 1.0 + u
    exact = w == 1.0
    log1p = tl.where(exact, u, tl.log(w) * (u / tl.where(exact, 1.0, w - 1.0)))
    return tl.where(x > 20.0, x, tl.maximum(x, 0.0) + log1p)


@triton.jit
def _slope(activation):  # type: ignore[no-untyped-def]
    """Derivative of softplus from its value."""
    return tl.where(activation > 20.0, 1.0, 1.0 - tl.exp(-activation))


@triton.jit
def _matrix(  # type: ignore[no-untyped-def]
    W,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    start: tl.constexpr = 0,
):
    """STEP rows of w, w[k, f] at ``W + k DOWN + f ACROSS``."""
    f = tl.arange(0, BLOCK)[None, :]
    k = start + tl.arange(0, STEP)[:, None]
    return tl.load(W + k * DOWN + f * ACROSS, mask=(k < WIDTH) & (f < COLUMNS), other=0)


@triton.jit
def _add_product(  # type: ignore[no-untyped-def]
    total,
    a,
    A,
    w,
    W,
    row,
    live,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """total + a w: at once if w is here as a whole, else STEP columns of a in memory at a time."""
    if WIDTH <= STEP:
        return tl.dot(a, w, total, input_precision=PRODUCTS, out_dtype=total.dtype)
    k = tl.arange(0, STEP)
    for start in range(0, WIDTH, STEP):
        there = live[:, None] & (start + k < WIDTH)[None, :]
        some = tl.load(A + row[:, None] * WIDTH + (start + k)[None, :], mask=there, other=0)
        w = _matrix(W, WIDTH, COLUMNS, DOWN, ACROSS, STEP, BLOCK, start)
        total = tl.dot(some, w, total, input_precision=PRODUCTS, out_dtype=total.dtype)
    return total


@triton.jit
def _layer(  # type: ignore[no-untyped-def]
    z,
    source,
    received,
    weights,
    activations,
    result,
    row,
    live,
    FIRST: tl.constexpr,
    IN: tl.constexpr,
    F: tl.constexpr,
    IN_STEP: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """z' = W~ softplus(W z + B + g) + M~ z + B~ of some atoms; g in the first layer only."""
    f = tl.arange(0, BLOCK)
    column = f < F
    here = live[:, None] & column[None, :]
    at = row[:, None] * F + f[None, :]
    residual = weights + F * IN + F
    w = _matrix(weights, IN, F, 1, IN, IN_STEP, BLOCK)
    w_residual = _matrix(residual, F, F, 1, F, STEP, BLOCK)
    bias = tl.load(weights + F * IN + f, mask=column, other=0)
    before = tl.full((row.shape[0], BLOCK), 0, bias.dtype) + bias[None, :]
    if FIRST:
        before += tl.load(received + at, mask=here, other=0)
    before = _add_product(
        before, z, source, w, weights, row, live, IN, F, 1, IN, IN_STEP, BLOCK, PRODUCTS
    )
    activation = _softplus(before)
    tl.store(activations + at, activation, mask=here)
    if F > STEP:
        tl.debug_barrier()  # what the threads of the program wrote, all of them read
    bias = tl.load(residual + F * F + f, mask=column, other=0)
    kept = tl.full((row.shape[0], BLOCK), 0, bias.dtype) + bias[None, :]
    if IN == F:
        kept += tl.load(source + at, mask=here, other=0)
    else:
        mixing = residual + F * F + F
        m = _matrix(mixing, IN, F, 1, IN, IN_STEP, BLOCK)
        kept = _add_product(
            kept, z, source, m, mixing, row, live, IN, F, 1, IN, IN_STEP, BLOCK, PRODUCTS
        )
    z = _add_product(
        *(kept, activation, activations, w_residual, residual, row, live),
        *(F, F, 1, F, STEP, BLOCK, PRODUCTS),
    )
    z = tl.where(column[None, :], z, 0.0)
    tl.store(result + at, z, mask=here)
    if F > STEP:
        tl.debug_barrier()
    return z


@triton.jit
def _dense(
    Z: tl.tensor,
    RECEIVED: tl.tensor,
    WEIGHTS: tl.tensor,
    ACTIVATIONS: tl.tensor,
    OUTPUTS: tl.tensor,
    atoms: tl.tensor,
    each: tl.tensor,
    stride: tl.tensor,
    IN: tl.constexpr,
    F: tl.constexpr,
    LAYERS: tl.constexpr,
    IN_STEP: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCTS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """All layers, one after the other, for the atoms of this program."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    WEIGHTS += start // each * stride
    row = start + tl.arange(0, ROWS)
    live = row < atoms
    first: tl.constexpr = F * IN + F * F + 2 * F + (0 if IN == F else F * IN)
    b = tl.arange(0, IN_STEP)
    z = tl.load(Z + row[:, None] * IN + b[None, :], mask=live[:, None] & (b < IN)[None, :], other=0)
    z = _layer(
        *(z, Z, RECEIVED, WEIGHTS, ACTIVATIONS, OUTPUTS, row, live, True),
        *(IN, F, IN_STEP, STEP, BLOCK, PRODUCTS),
    )
    if F <= STEP:  # one product after the other, so that the next matrix is already under way
        f = tl.arange(0, BLOCK)
        here = live[:, None] & (f < F)[None, :]
        x = z
        for n in range(0, 2 * (LAYERS - 1)):
            matrix = WEIGHTS + first + n * (F * F + F)
            w = _matrix(matrix, F, F, 1, F, STEP, BLOCK)
            bias = tl.load(matrix + F * F + f, mask=f < F, other=0)
            total = tl.dot(x, w, input_precision=PRODUCTS, out_dtype=z.dtype) + bias[None, :]
            last = n % 2 == 1
            x = tl.where(last, total + z, _softplus(total))
            x = tl.where((f < F)[None, :], x, 0.0)
            z = tl.where(last, x, z)
            layer = n // 2 + 1 + (n % 2) * LAYERS  # outputs lie behind activations
            to = ACTIVATIONS + layer * atoms * F + row[:, None] * F + f[None, :]
            tl.store(to, x, mask=here)
    else:
        for layer in tl.static_range(1, LAYERS):
            source = OUTPUTS + (layer - 1) * atoms * F
            weights = WEIGHTS + first + (layer - 1) * (2 * F * F + 2 * F)
            own, to = ACTIVATIONS + layer * atoms * F, OUTPUTS + layer * atoms * F
            z = _layer(
                *(z, source, source, weights, own, to, row, live, False),
                *(F, F, STEP, STEP, BLOCK, PRODUCTS),
            )


@triton.jit
def _layer_slopes(  # type: ignore[no-untyped-def]
    weights,
    activations,
    gradient,
    outer,
    inner,
    row,
    live,
    IN: tl.constexpr,
    F: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """The gradient in what softplus takes, also to ``inner``."""
    f = tl.arange(0, BLOCK)
    here = live[:, None] & (f < F)[None, :]
    at = row[:, None] * F + f[None, :]
    residual = weights + F * IN + F
    w = _matrix(residual, F, F, F, 1, STEP, BLOCK)
    tl.store(outer + at, gradient, mask=here)
    if F > STEP:
        tl.debug_barrier()
    slope = tl.full(gradient.shape, 0, gradient.dtype)
    slope = _add_product(
        slope, gradient, outer, w, residual, row, live, F, F, F, 1, STEP, BLOCK, PRODUCTS
    )
    slope *= _slope(tl.load(activations + at, mask=here, other=0))
    tl.store(inner + at, slope, mask=here)
    if F > STEP:
        tl.debug_barrier()
    return slope


@triton.jit
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
    IN_BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCTS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Gradients in what each layer gives (outer) and in what its softplus takes (inner)."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    WEIGHTS += start // each * stride
    row = start + tl.arange(0, ROWS)
    live = row < atoms
    f = tl.arange(0, BLOCK)
    here = live[:, None] & (f < F)[None, :]
    at = row[:, None] * F + f[None, :]
    first: tl.constexpr = F * IN + F * F + 2 * F + (0 if IN == F else F * IN)
    gradient = tl.load(GRADIENT + at, mask=here, other=0)
    if F <= STEP:
        tl.store(OUTER + (LAYERS - 1) * atoms * F + at, gradient, mask=here)
        x = gradient
        for back in range(0, 2 * (LAYERS - 1)):
            n = 2 * (LAYERS - 1) - 1 - back
            w = _matrix(WEIGHTS + first + n * (F * F + F), F, F, F, 1, STEP, BLOCK)
            layer = n // 2 + 1
            own = tl.load(ACTIVATIONS + layer * atoms * F + at, mask=here, other=0)
            total = tl.dot(x, w, input_precision=PRODUCTS, out_dtype=gradient.dtype)
            last = n % 2 == 0
            x = tl.where(last, total + gradient, total * _slope(own))
            gradient = tl.where(last, x, gradient)
            # inner lies behind outer
            to = OUTER + tl.where(last, layer - 1, LAYERS + layer) * atoms * F + at
            tl.store(to, x, mask=here)
    else:
        for back in tl.static_range(1, LAYERS):
            layer = (LAYERS - back) * atoms * F
            weights = WEIGHTS + first + (LAYERS - back - 1) * (2 * F * F + 2 * F)
            own, outer, inner = ACTIVATIONS + layer, OUTER + layer, INNER + layer
            w = _matrix(weights, F, F, F, 1, STEP, BLOCK)
            slope = _layer_slopes(
                *(weights, own, gradient, outer, inner, row, live, F, F, STEP, BLOCK, PRODUCTS)
            )
            gradient = _add_product(
                *(gradient, slope, inner, w, weights, row, live),
                *(F, F, F, 1, STEP, BLOCK, PRODUCTS),
            )
    slope = _layer_slopes(
        *(WEIGHTS, ACTIVATIONS, gradient, OUTER, INNER, row, live),
        *(IN, F, STEP, BLOCK, PRODUCTS),
    )
    if WANTED:
        b = tl.arange(0, IN_BLOCK)
        w = _matrix(WEIGHTS, F, IN, IN, 1, STEP, IN_BLOCK)
        if IN == F:
            dz = gradient
        else:
            mixing = WEIGHTS + F * IN + F * F + 2 * F
            m = _matrix(mixing, F, IN, IN, 1, STEP, IN_BLOCK)
            dz = tl.full((ROWS, IN_BLOCK), 0, gradient.dtype)
            dz = _add_product(
                *(dz, gradient, OUTER, m, mixing, row, live),
                *(F, IN, IN, 1, STEP, IN_BLOCK, PRODUCTS),
            )
        dz = _add_product(
            *(dz, slope, INNER, w, WEIGHTS, row, live, F, IN, IN, 1, STEP, IN_BLOCK, PRODUCTS)
        )
        dz_at = DZ + row[:, None] * IN + b[None, :]
        tl.store(dz_at, dz, mask=live[:, None] & (b < IN)[None, :])


@triton.jit
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
    blocks: tl.constexpr = ((IN if IN > F else F) + ACROSS - 1) // ACROSS
    matrix = tl.program_id(1)
    layer = matrix // 2
    first: tl.constexpr = F * IN + F * F + 2 * F + (0 if IN == F else F * IN)
    parts = (each + rows_of_a_part - 1) // rows_of_a_part
    model = (tl.program_id(2) // parts).to(tl.int64)
    part = (tl.program_id(2) % parts).to(tl.int64)
    begin = model * each + part * rows_of_a_part
    end = tl.minimum(begin + rows_of_a_part, (model + 1) * each)
    DW += model * stride + part * size
    to = DW
    if layer > 0:
        to += first + (layer - 1) * (2 * F * F + 2 * F)
    left = INNER + layer.to(tl.int64) * atoms * F
    right = ACTIVATIONS + layer.to(tl.int64) * atoms * F
    width = F
    if matrix == 2 * LAYERS:  # M~
        left = OUTER
        right = Z
        width = IN
        to = DW + F * IN + F * F + 2 * F
    elif matrix % 2 == 1:  # W~
        left = OUTER + layer.to(tl.int64) * atoms * F
        if layer == 0:
            to += F * IN + F
        else:
            to += F * F + F
    elif layer == 0:
        right = Z
        width = IN
    else:
        right = BETWEEN + (layer - 1).to(tl.int64) * atoms * F
    a = (tl.program_id(0) // blocks) * DOWN + tl.arange(0, DOWN)
    b = (tl.program_id(0) % blocks) * ACROSS + tl.arange(0, ACROSS)
    n = tl.arange(0, ROWS)
    slope = tl.full((DOWN, ACROSS), 0, Z.dtype.element_ty)
    biases = tl.full((DOWN, ROWS), 0, Z.dtype.element_ty)
    for k in range(0, (end - begin).to(tl.int32), ROWS):
        row = begin + k + n
        live = row < end
        g_at = left + row[None, :] * F + a[:, None]
        g = tl.load(g_at, mask=live[None, :] & (a < F)[:, None], other=0)
        z_at = right + row[:, None] * width + b[None, :]
        z = tl.load(z_at, mask=live[:, None] & (b < width)[None, :], other=0)
        slope = tl.dot(g, z, slope, input_precision=PRODUCTS, out_dtype=slope.dtype)
        biases += g
    at = to + a[:, None] * width + b[None, :]
    tl.store(at, slope, mask=(a < F)[:, None] & (b < width)[None, :])
    if (tl.program_id(0) % blocks == 0) & (matrix < 2 * LAYERS):
        tl.store(to + F * width + a, tl.reduce(biases, 1, _add), mask=a < F)


def dense(
    z: Tensor, received: Tensor, weights: Weights, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`hipnn_pyg.ops.cpu.dense`; what the backward pass needs is always given."""
    z, received, layers = z.contiguous(), received.contiguous(), len(weights) // 5
    atoms, out_channels = received.shape
    activations, outputs = z.new_empty(2, layers, atoms, out_channels)
    if atoms:
        joined, models, stride = _joined(weights)
        with torch.cuda.device_of(z):
            _dense[(triton.cdiv(atoms, ROWS),)](
                *(z, received, joined, activations, outputs, atoms, atoms // models, stride),
                *(z.size(1), out_channels, layers),
                *(_step(z, z.size(1)), _step(z, out_channels), column_block(out_channels)),
                *(products(z), ROWS),
                num_stages=_stages(z.device),
                **OPTIONS,
            )
    return outputs[-1], activations, outputs[:-1]


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
        _dense_slopes[(triton.cdiv(atoms, ROWS),)](
            *(joined, activations, gradient, outer, inner, z if dz is None else dz),
            *(atoms, each, stride, dz is not None, *sizes),
            *(column_block(in_channels), _step(z, out_channels), column_block(out_channels)),
            *(products(z), ROWS),
            num_stages=_stages(z.device),
            **OPTIONS,
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
            _weight_slopes[(tiles, matrices, models * num_parts)](
                *(z, activations, between, outer, inner, parts, atoms, each, size, apart),
                *(ATOMS_OF_A_PART, *sizes, down, across, ATOMS_AT_ONCE, products(z)),
                num_warps=4,
                num_stages=3,
            )
            if num_parts > 1:
                torch.sum(parts, -2, out=dweights)
    return inner[0]


@functools.cache
def _stages(device: torch.device) -> int:
    """Matrices that are under way at a time, as far as the shared memory of a program goes: 1 + 2
    of 64 KiB, 1 + 1, or none as a whole."""
    if device.type != "cuda":
        return 3  # the interpreter
    properties: Any = torch.cuda.get_device_properties(device)
    memory = properties.shared_memory_per_block_optin
    return 3 if memory >= 150_000 else 2 if memory >= 84_000 else 1


def _step(x: Tensor, width: int) -> int:
    """Rows of a matrix that a program holds at a time: all, where they fit."""
    whole = column_block(width)
    fits = whole <= LARGEST_WHOLE and x.dtype == torch.float32 and _stages(x.device) > 1
    return whole if fits else 16


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
    first, end = tensors[0], tensors[0].storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and tensor.storage_offset() == end and tensor.is_contiguous()):
            return False
        end += tensor.numel()
    return True
