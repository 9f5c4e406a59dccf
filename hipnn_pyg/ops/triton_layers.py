r"""HIP-NN's layers and their first derivatives as Triton kernels: :mod:`.cpu` for a GPU.

Sensitivities are computed where they are used, from distances; nothing of size ``[E, nu]`` is kept.
Products with V, which join everything, are PyTorch's; the dense layers of 16 atoms run in one
program, one layer after the other. Nothing is added atomically: same input, same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.standard import _sum_combine as _add

from hipnn_pyg.ops.operands import Kept, Weights, Where
from hipnn_pyg.ops.triton import EDGES, OPTIONS, WORKSPACE, _block, _by_sender

ROWS = 16
"""Atoms that a program takes through the dense layers."""
LARGEST_WHOLE = 128
"""Rows of the largest weight matrix that a program holds as a whole."""
TURNS = 2
"""Programs that share the edges of an atom where there are few atoms."""
FEW = 4096
"""Atoms that leave much of a GPU idle."""
ATOMS_AT_ONCE = 64
ATOMS_OF_A_PART = 4096
"""Gradients in weights are added over so many atoms at a time, then over the parts."""
DENSE: dict[str, Any] = dict(num_warps=8)
HALF_PI = tl.constexpr(math.pi / 2)


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
def _gaussians(r, mu, sigma):  # type: ignore[no-untyped-def]
    """The Gaussians of Eq. 10 and their argument (1/r - 1/mu) sigma."""
    deviation = (1.0 / r - 1.0 / mu) * sigma
    return tl.exp(-0.5 * deviation * deviation), deviation


@triton.jit
def _cutoff(r, CUTOFF: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether r is within the cutoff, r brought to it if not, and the root of Eq. 11."""
    inside = r < CUTOFF
    r = tl.where(inside, r, CUTOFF)
    return inside, r, tl.cos((r / CUTOFF) * HALF_PI)


# -- interaction -----------------------------------------------------------------------------------


@triton.jit
def _environments(
    R: tl.tensor,
    MU: tl.tensor,
    SIGMA: tl.tensor,
    Z: tl.tensor,
    ROW: tl.tensor,
    J: tl.tensor,
    E: tl.tensor,
    CUTOFF: tl.constexpr,
    NU: tl.constexpr,
    F: tl.constexpr,
    NU_BLOCK: tl.constexpr,
    F_BLOCK: tl.constexpr,
    EDGES: tl.constexpr,
) -> None:
    """e[i] = sum over the edges of i of s(r) z[j], a block of columns."""
    blocks: tl.constexpr = (F + F_BLOCK - 1) // F_BLOCK
    i = (tl.program_id(0) // blocks).to(tl.int64)
    b = (tl.program_id(0) % blocks) * F_BLOCK + tl.arange(0, F_BLOCK)
    nu = tl.arange(0, NU_BLOCK)
    x = tl.arange(0, EDGES)
    first = tl.load(ROW + i)
    degree = (tl.load(ROW + i + 1) - first).to(tl.int32)
    mu = tl.load(MU + nu, mask=nu < NU, other=1)
    sigma = tl.load(SIGMA + nu, mask=nu < NU, other=1)
    e = tl.full((NU_BLOCK, F_BLOCK), 0, E.dtype.element_ty)
    for k in range(0, degree, EDGES):
        live = k + x < degree
        j = tl.load(J + first + k + x, mask=live, other=0)
        r = tl.load(R + first + k + x, mask=live, other=CUTOFF)
        inside, r, cosine = _cutoff(r, CUTOFF)
        gaussians, _ = _gaussians(r[None, :], mu[:, None], sigma[:, None])
        s = tl.where(inside[None, :], gaussians * (cosine * cosine)[None, :], 0.0)
        z_at = Z + j[:, None] * F + b[None, :]
        z = tl.load(z_at, mask=live[:, None] & (b < F)[None, :], other=0)
        e = tl.dot(s, z, e, input_precision="ieee", out_dtype=E.dtype.element_ty)
    e_at = E + i * (NU * F) + nu[:, None] * F + b[None, :]
    tl.store(e_at, e, mask=(nu < NU)[:, None] & (b < F)[None, :])


@triton.jit
def _edge_slopes(
    G: tl.tensor,
    R: tl.tensor,
    MU: tl.tensor,
    SIGMA: tl.tensor,
    Z: tl.tensor,
    ROW: tl.tensor,
    J: tl.tensor,
    W: tl.tensor,
    PARTS: tl.tensor,
    DR: tl.tensor,
    start: tl.tensor,
    FEATURES: tl.constexpr,
    LEARNED: tl.constexpr,
    DISTANCES: tl.constexpr,
    CUTOFF: tl.constexpr,
    NU: tl.constexpr,
    F: tl.constexpr,
    NU_BLOCK: tl.constexpr,
    F_BLOCK: tl.constexpr,
    EDGES: tl.constexpr,
    TURNS: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> None:
    """What the gradient g[i] in e[i] makes of the edges of i: those in s, and what follows.

    w[x] = s(r_x) g[i], FEATURES columns from ``start`` on, goes back to the sender; the gradients
    in mu and sigma are i's part, in r those of the edges. The TURNS programs of i take turns.
    """
    i = (tl.program_id(0) // TURNS).to(tl.int64)
    turn = tl.program_id(0) % TURNS
    b = tl.arange(0, F_BLOCK)
    nu = tl.arange(0, NU_BLOCK)
    x = tl.arange(0, EDGES)
    first = tl.load(ROW + i)
    degree = (tl.load(ROW + i + 1) - first).to(tl.int32)
    mu = tl.load(MU + nu, mask=nu < NU, other=1)[None, :]
    sigma = tl.load(SIGMA + nu, mask=nu < NU, other=1)[None, :]
    g_at = G + i * (NU * F) + nu[:, None] * F + b[None, :]
    dmu = tl.full((EDGES, NU_BLOCK), 0, G.dtype.element_ty)
    dsigma = tl.full((EDGES, NU_BLOCK), 0, G.dtype.element_ty)
    for k in range(turn * EDGES, degree, TURNS * EDGES):
        live = k + x < degree
        j = tl.load(J + first + k + x, mask=live, other=0)
        r = tl.load(R + first + k + x, mask=live, other=CUTOFF)
        inside, r, cosine = _cutoff(r, CUTOFF)
        gaussians, deviation = _gaussians(r[:, None], mu, sigma)
        gaussians = tl.where(inside[:, None], gaussians, 0.0)
        s = gaussians * (cosine * cosine)[:, None]
        t = tl.full((EDGES, NU_BLOCK), 0, G.dtype.element_ty)
        z_at = Z + j[:, None] * F + b[None, :]
        for c in range(0, F, F_BLOCK):
            column = c + b < F
            z = tl.load(z_at + c, mask=live[:, None] & column[None, :], other=0)
            g = tl.load(g_at + c, mask=(nu < NU)[:, None] & column[None, :], other=0)
            t = tl.dot(z, tl.trans(g), t, input_precision=PRODUCTS, out_dtype=t.dtype)
            if FEATURES == F:
                w = tl.dot(s, g, input_precision=PRODUCTS, out_dtype=t.dtype)
                w_at = W + (first + k + x)[:, None] * F + (c + b)[None, :]
                tl.store(w_at, w, mask=live[:, None] & column[None, :])
            elif FEATURES > 0:
                if (c >= start) & (c < start + FEATURES):
                    w = tl.dot(s, g, input_precision=PRODUCTS, out_dtype=t.dtype)
                    w_at = W + (first + k + x)[:, None] * FEATURES + (c - start + b)[None, :]
                    mine = column & (c - start + b < FEATURES)
                    tl.store(w_at, w, mask=live[:, None] & mine[None, :])
        slope = -t * s * deviation
        if LEARNED:
            dmu += slope * sigma / (mu * mu)
            dsigma += slope * (1.0 / r[:, None] - 1.0 / mu)
        if DISTANCES:
            sine = tl.sin((r / CUTOFF) * HALF_PI)
            cut = sine * cosine * (-2.0 * HALF_PI / CUTOFF)
            along = t * gaussians * cut[:, None] - slope * sigma / (r * r)[:, None]
            tl.store(DR + first + k + x, tl.reduce(along, 1, _add), mask=live)
    if LEARNED:
        part = PARTS + tl.program_id(0).to(tl.int64) * (2 * NU) + nu
        tl.store(part, tl.reduce(dmu, 0, _add), mask=nu < NU)
        tl.store(part + NU, tl.reduce(dsigma, 0, _add), mask=nu < NU)


@triton.jit
def _sum_parts(
    PARTS: tl.tensor,
    A: tl.tensor,
    B: tl.tensor,
    rows: tl.tensor,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Sums over the rows of ``[rows, FIRST + SECOND]``, one column each: to a, then to b."""
    n = tl.program_id(0)
    x = tl.arange(0, ROWS)
    total = tl.full((ROWS,), 0, PARTS.dtype.element_ty)
    for k in range(0, rows, ROWS):
        at = (k + x).to(tl.int64) * (FIRST + SECOND) + n
        total += tl.load(PARTS + at, mask=k + x < rows, other=0)
    if n < FIRST:
        tl.store(A + n, tl.reduce(total, 0, _add))
    else:
        tl.store(B + n - FIRST, tl.reduce(total, 0, _add))


def interact(where: Where, z: Tensor, V: Tensor, keep: bool) -> tuple[Tensor, Kept | None]:
    """See :func:`hipnn_pyg.ops.cpu.interact`; environments are kept as ``[N, nu, in]``."""
    (nu, in_channels, _), z = V.shape, z.contiguous()
    environments = z.new_empty(where.pattern.num_receivers, nu * in_channels)
    block = _block(in_channels)
    grid = (environments.size(0) * triton.cdiv(in_channels, block),)
    if environments.numel():
        with torch.cuda.device_of(z):
            _environments[grid](
                *(where.r.contiguous(), where.mu, where.sigma, z),
                *(where.pattern.row, where.pattern.j, environments, float(where.cutoff)),
                *(nu, in_channels, _sensitivity_block(nu), block, EDGES),
                **OPTIONS,
            )
    received = environments @ V.flatten(0, 1)
    return received, Kept(environments, None) if keep else None


def interact_backward(
    where: Where,
    z: Tensor,
    V: Tensor,
    kept: Kept | None,
    gradient: Tensor,
    slopes: Sequence[Tensor | None],
) -> None:
    """See :func:`hipnn_pyg.ops.cpu.interact_backward`."""
    dr, dmu, dsigma, dz, dV = slopes
    pattern, (nu, in_channels, out_channels), z = where.pattern, V.shape, z.contiguous()
    if dV is not None:
        assert kept is not None, "a gradient in V needs what the forward pass kept"
        torch.mm(kept.environments.t(), gradient, out=dV.view(nu * in_channels, out_channels))
    learned = dmu is not None or dsigma is not None
    if dr is None and dz is None and not learned:
        return
    if dz is not None:
        pattern = pattern.with_order()
    of_environments = gradient @ V.flatten(0, 1).t()
    atoms, edges = of_environments.size(0), pattern.j.numel()
    turns = TURNS if atoms < FEW else 1
    columns = _columns_at_once(z, edges) if dz is not None else 0
    sent = z.new_empty(edges, columns) if dz is not None else z
    parts = z.new_empty(atoms * turns, 2 * nu) if learned else z
    for start in range(0, max(columns and in_channels, 1), max(columns, 1)):
        once, taken = start == 0, min(columns, in_channels - start)
        with torch.cuda.device_of(z):
            if atoms:
                _edge_slopes[(atoms * turns,)](
                    *(of_environments, where.r.contiguous(), where.mu, where.sigma, z),
                    *(pattern.row, pattern.j, sent, parts, z if dr is None else dr, start),
                    *(taken, learned and once, dr is not None and once, float(where.cutoff)),
                    *(nu, in_channels, _sensitivity_block(nu), _block(in_channels), EDGES, turns),
                    _products(z),
                    **OPTIONS,
                )
            if dz is not None and dz.numel():
                wide = max(32, triton.next_power_of_2(min(taken, 128)))
                _by_sender[(pattern.num_senders * triton.cdiv(taken, wide),)](
                    *(sent, pattern.order, pattern.column, dz, start, in_channels, taken),
                    *(wide, 8),
                    **OPTIONS,
                )
    if learned:
        dmu = torch.empty_like(where.mu) if dmu is None else dmu
        dsigma = torch.empty_like(where.sigma) if dsigma is None else dsigma
        with torch.cuda.device_of(z):
            _sum_parts[(2 * nu,)](parts, dmu, dsigma, parts.size(0), nu, nu, 1024, num_warps=4)


def _columns_at_once(z: Tensor, edges: int) -> int:
    """Columns of what goes back to the senders, ``[E, columns]``: all, or as many blocks as fit."""
    width, block = z.size(1), _block(z.size(1))
    fitting = WORKSPACE // (z.element_size() * max(edges, 1))
    return width if fitting >= width else min(width, max(fitting // block * block, block))


def _sensitivity_block(nu: int) -> int:
    return max(16, triton.next_power_of_2(nu))


# -- dense layers ----------------------------------------------------------------------------------


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
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
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
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
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
    size: tl.tensor,
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
    to = DW + tl.program_id(2).to(tl.int64) * size
    if layer > 0:
        to += first + (layer - 1) * (2 * F * F + 2 * F)
    left = INNER + layer.to(tl.int64) * atoms * F
    right = ACTIVATIONS + layer.to(tl.int64) * atoms * F
    width = F
    if matrix == 2 * LAYERS:  # M~
        left = OUTER
        right = Z
        width = IN
        to = DW + tl.program_id(2).to(tl.int64) * size + F * IN + F * F + 2 * F
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
    begin = tl.program_id(2) * rows_of_a_part
    end = tl.minimum(begin + rows_of_a_part, atoms)
    for k in range(begin, end, ROWS):
        row = (k + n).to(tl.int64)
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
        with torch.cuda.device_of(z):
            _dense[(triton.cdiv(atoms, ROWS),)](
                *(z, received, _joined(weights), activations, outputs, atoms),
                *(z.size(1), out_channels, layers),
                *(_step(z, z.size(1)), _step(z, out_channels), _column_block(out_channels)),
                *(_products(z), ROWS),
                num_stages=_stages(z.device),
                **DENSE,
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
    with torch.cuda.device_of(z):
        _dense_slopes[(triton.cdiv(atoms, ROWS),)](
            *(_joined(weights), activations, gradient, outer, inner, z if dz is None else dz),
            *(atoms, dz is not None, *sizes),
            *(_column_block(in_channels), _step(z, out_channels), _column_block(out_channels)),
            *(_products(z), ROWS),
            num_stages=_stages(z.device),
            **DENSE,
        )
        if dweights is not None:
            down, across = 16, 32
            tiles = triton.cdiv(out_channels, down) * triton.cdiv(
                max(in_channels, out_channels), across
            )
            num_parts = triton.cdiv(atoms, ATOMS_OF_A_PART)
            parts = dweights
            if num_parts > 1:
                parts = dweights.new_empty(num_parts, dweights.numel())
            matrices = 2 * layers + (in_channels != out_channels)
            _weight_slopes[(tiles, matrices, num_parts)](
                *(z, activations, between, outer, inner, parts, atoms, dweights.numel()),
                *(ATOMS_OF_A_PART, *sizes, down, across, ATOMS_AT_ONCE, _products(z)),
                num_warps=4,
                num_stages=3,
            )
            if num_parts > 1:
                torch.sum(parts, 0, out=dweights)
    return inner[0]


def _products(x: Tensor) -> str:
    """How products are computed: of float32 on the tensor cores, as three products of TF32."""
    return "tf32x3" if x.dtype == torch.float32 and torch.version.hip is None else "ieee"


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
    whole = _column_block(width)
    fits = whole <= LARGEST_WHOLE and x.dtype == torch.float32 and _stages(x.device) > 1
    return whole if fits else 16


def _column_block(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _joined(weights: Weights) -> Tensor:
    """The weights one after the other: where they lie, if they lie so, else a copy."""
    present = [w for w in weights if w is not None]
    first, end = present[0], present[0].storage_offset()
    for weight in present:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and weight.storage_offset() == end and weight.is_contiguous()):
            return torch.cat([w.detach().flatten() for w in present])
        end += weight.numel()
    return first.detach().as_strided((end - first.storage_offset(),), (1,))


# -- readout ---------------------------------------------------------------------------------------


@triton.jit
def _readout(
    Z: tl.tensor,
    W: tl.tensor,
    B: tl.tensor,
    SIGMA_E: tl.tensor,
    ENERGY: tl.tensor,
    atoms: tl.tensor,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """sigma_E w . z + b of some atoms."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    f = tl.arange(0, BLOCK)
    mask = (row < atoms)[:, None] & (f < F)[None, :]
    z = tl.load(Z + row[:, None] * F + f[None, :], mask=mask, other=0)
    w = tl.load(W + f, mask=f < F, other=0)
    sigma_e = tl.load(SIGMA_E).to(Z.dtype.element_ty)
    energy = sigma_e * tl.reduce(z * w[None, :], 1, _add) + tl.load(B)
    tl.store(ENERGY + row, energy.to(tl.float64), mask=row < atoms)


@triton.jit
def _readout_slopes(
    Z: tl.tensor,
    W: tl.tensor,
    G: tl.tensor,
    SIGMA_E: tl.tensor,
    DZ: tl.tensor,
    DWB: tl.tensor,
    atoms: tl.tensor,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    MANY: tl.constexpr,
) -> None:
    """Gradients in z: one program for some atoms. In w and b, ``[parts, F + 1]``: the last
    programs, each MANY atoms and 16 columns.
    """
    sigma_e = tl.load(SIGMA_E).to(Z.dtype.element_ty)
    blocks = (atoms + ROWS - 1) // ROWS
    if tl.program_id(0) < blocks:
        i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        f = tl.arange(0, BLOCK)
        slope = tl.load(G + i, mask=i < atoms, other=0).to(Z.dtype.element_ty)
        w = tl.load(W + f, mask=f < F, other=0)
        at = DZ + i[:, None] * F + f[None, :]
        dz = (sigma_e * slope)[:, None] * w[None, :]
        tl.store(at, dz, mask=(i < atoms)[:, None] & (f < F)[None, :])
    else:
        columns: tl.constexpr = (F + 15) // 16
        mine = tl.program_id(0) - blocks
        part = mine // columns
        b = (mine % columns) * 16 + tl.arange(0, 16)
        row = part.to(tl.int64) * MANY + tl.arange(0, MANY)
        live = row < atoms
        g = tl.load(G + row, mask=live, other=0).to(Z.dtype.element_ty)
        mask = live[:, None] & (b < F)[None, :]
        z = tl.load(Z + row[:, None] * F + b[None, :], mask=mask, other=0)
        to = DWB + part * (F + 1)
        tl.store(to + b, sigma_e * tl.reduce(g[:, None] * z, 0, _add), mask=b < F)
        if mine % columns == 0:
            tl.store(to + F, tl.reduce(g, 0, _add))


@triton.jit
def _inputs(
    SPECIES: tl.tensor,
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    Z: tl.tensor,
    ENERGY: tl.tensor,
    atoms: tl.tensor,
    NUM: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One-hot features and E^0 of some atoms."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, COLUMNS)
    live = i < atoms
    species = tl.load(SPECIES + i, mask=live, other=0)
    energy = tl.load(WEIGHT + species, mask=live, other=0) + tl.load(BIAS)
    tl.store(ENERGY + i, energy, mask=live)
    hot = (species[:, None] == f[None, :]).to(Z.dtype.element_ty)
    at = Z + i.to(tl.int64)[:, None] * NUM + f[None, :]
    tl.store(at, hot, mask=live[:, None] & (f < NUM)[None, :])


def inputs(species: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Any:
    """Input features (Eq. 3) and zeroth-order energies.

    Args:
        species: places in the species list, ``[N]``.
        weight: E^0 of each species, float64, ``[S]``.
        bias: added to them, ``[1]``.
        dtype: of the features.

    Returns:
        ``[N, S]`` and, float64, ``[N]``.
    """
    species = species.contiguous()
    atoms, num = species.numel(), weight.numel()
    z = torch.empty(atoms, num, dtype=dtype, device=species.device)
    energy = weight.new_empty(atoms)
    if atoms:
        with torch.cuda.device_of(species):
            _inputs[(triton.cdiv(atoms, 128),)](
                *(species, weight, bias, z, energy, atoms, num, triton.next_power_of_2(num), 128),
                num_warps=4,
            )
    return z, energy


def readout(z: Tensor, w: Tensor, b: Tensor, sigma_e: Tensor) -> Tensor:
    """See :func:`hipnn_pyg.ops.cpu.readout`; sigma_E is on the device, ``[]``."""
    energy = z.new_empty(z.size(0), dtype=torch.float64)
    if z.size(0):
        with torch.cuda.device_of(z):
            _readout[(triton.cdiv(z.size(0), ROWS),)](
                *(z, w, b, sigma_e, energy, *z.shape, _column_block(z.size(1)), ROWS), num_warps=4
            )
    return energy


def readout_backward(
    z: Tensor, w: Tensor, gradient: Tensor, sigma_e: Tensor, dw: Tensor | None, db: Tensor | None
) -> Tensor:
    """See :func:`hipnn_pyg.ops.cpu.readout_backward`; sigma_E is on the device, ``[]``."""
    dz = torch.empty_like(z)
    (atoms, width), learned = z.shape, dw is not None and db is not None
    if not atoms:
        for slope in (dw, db):
            if slope is not None:
                slope.zero_()
        return dz
    blocks, parts = triton.cdiv(atoms, ROWS), triton.cdiv(atoms, 256)
    found = z.new_empty(parts, width + 1) if learned else z
    with torch.cuda.device_of(z):
        _readout_slopes[(blocks + (parts * triton.cdiv(width, 16) if learned else 0),)](
            *(z, w, gradient.contiguous(), sigma_e, dz, found, atoms, width),
            *(_column_block(width), ROWS, 256),
            num_warps=4,
        )
        if dw is not None and db is not None:
            _sum_parts[(width + 1,)](found, dw, db, parts, width, 1, 64, num_warps=1)
    return dz
