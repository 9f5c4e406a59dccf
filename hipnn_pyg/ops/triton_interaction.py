r"""The interaction layer and its first derivatives as Triton kernels.

Sensitivities are computed where they are used, from distances; nothing of size ``[E, nu]`` is kept.
Nothing is added atomically: same input, same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.standard import _sum_combine as _add

from hipnn_pyg.ops.operands import Kept, Where
from hipnn_pyg.ops.triton import WORKSPACE, feature_block, send_back
from hipnn_pyg.ops.triton_product import product, product_in_parts
from hipnn_pyg.ops.triton_tiles import by_model, dot, exact, kernel, stack_of, sum_parts

EDGES = 16
"""Edges that a program takes at a time."""
COLUMNS = 16
"""Columns that a program takes at a time for slopes."""
WIDE = 16
"""Sums over neighbours of more columns than these have two warps."""
SINE = tl.constexpr(
    tuple((-1) ** n * (math.pi / 2) ** (2 * n + 1) / math.factorial(2 * n + 1) for n in range(11))
)
"""Taylor's series of sin(pi x / 2): for 0 <= x <= 1 what is left out is below 1e-17."""
HALF_PI = tl.constexpr(math.pi / 2)


@triton.jit
def _gaussians(r, mu, sigma):  # type: ignore[no-untyped-def]
    """The Gaussians of Eq. 10 and their argument (1/r - 1/mu) sigma."""
    deviation = (1.0 / r - 1.0 / mu) * sigma
    return tl.exp(-0.5 * deviation * deviation), deviation


@triton.jit
def _sine(x):  # type: ignore[no-untyped-def]
    """sin(pi x / 2) for 0 <= x <= 1, without a reduction of the argument."""
    total = x * 0.0
    for n in tl.static_range(11):
        total = total * (x * x) + SINE[10 - n]
    return total * x


@triton.jit
def _cutoff(r, CUTOFF: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether r is within the cutoff, r brought to it if not, and the root of Eq. 11."""
    inside = r < CUTOFF
    r = tl.where(inside, r, CUTOFF)
    return inside, r, _sine(1.0 - r * (1.0 / CUTOFF))


@kernel
def _environments(
    R: tl.tensor,
    MU: tl.tensor,
    SIGMA: tl.tensor,
    Z: tl.tensor,
    ROW: tl.tensor,
    J: tl.tensor,
    E: tl.tensor,
    each: tl.tensor,
    stride: tl.tensor,
    CUTOFF: tl.constexpr,
    NU: tl.constexpr,
    F: tl.constexpr,
    NU_BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    EDGES: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> None:
    """e[i] = sum over the edges of i of s(r) z[j], two blocks of columns side by side."""
    blocks: tl.constexpr = (F + FIRST + SECOND - 1) // (FIRST + SECOND)
    i = (tl.program_id(0) // blocks).to(tl.int64)
    b = (tl.program_id(0) % blocks) * (FIRST + SECOND) + tl.arange(0, FIRST)
    nu = tl.arange(0, NU_BLOCK)
    x = tl.arange(0, EDGES)
    model = i // each
    first = tl.load(ROW + i + model)
    degree = (tl.load(ROW + i + model + 1) - first).to(tl.int32)
    mu = tl.load(MU + model * stride + nu, mask=nu < NU, other=1)
    sigma = tl.load(SIGMA + model * stride + nu, mask=nu < NU, other=1)
    e = tl.full((NU_BLOCK, FIRST), 0, E.dtype.element_ty)
    e_at = E + i * (NU * F) + nu[:, None] * F
    if SECOND > 0:
        d = (tl.program_id(0) % blocks) * (FIRST + SECOND) + FIRST + tl.arange(0, SECOND)
        f = tl.full((NU_BLOCK, SECOND), 0, E.dtype.element_ty)
    for k in range(0, degree, EDGES):
        live = k + x < degree
        j = tl.load(J + first + k + x, mask=live, other=0)
        r = tl.load(R + first + k + x, mask=live, other=CUTOFF)
        inside, r, cosine = _cutoff(r, CUTOFF)
        gaussians, _ = _gaussians(r[None, :], mu[:, None], sigma[:, None])
        s = tl.where(inside[None, :], gaussians * (cosine * cosine)[None, :], 0.0)
        z_at = Z + j[:, None] * F
        z = tl.load(z_at + b[None, :], mask=live[:, None] & (b < F)[None, :], other=0)
        e = dot(s, z, e, PRODUCTS)
        if SECOND > 0:
            z = tl.load(z_at + d[None, :], mask=live[:, None] & (d < F)[None, :], other=0)
            f = dot(s, z, f, PRODUCTS)
    tl.store(e_at + b[None, :], e, mask=(nu < NU)[:, None] & (b < F)[None, :])
    if SECOND > 0:
        tl.store(e_at + d[None, :], f, mask=(nu < NU)[:, None] & (d < F)[None, :])


@kernel
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
    each: tl.tensor,
    stride: tl.tensor,
    FEATURES: tl.constexpr,
    LEARNED: tl.constexpr,
    DISTANCES: tl.constexpr,
    CUTOFF: tl.constexpr,
    NU: tl.constexpr,
    F: tl.constexpr,
    NU_BLOCK: tl.constexpr,
    F_BLOCK: tl.constexpr,
    EDGES: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> None:
    """What the gradient g[i] in e[i] makes of the edges of i: those in s, and what follows.

    w[x] = s(r_x) g[i], FEATURES columns from ``start`` on, goes back to the sender; the gradients
    in mu and sigma are i's part, in r those of the edges.
    """
    i = tl.program_id(0).to(tl.int64)
    b = tl.arange(0, F_BLOCK)
    nu = tl.arange(0, NU_BLOCK)
    x = tl.arange(0, EDGES)
    model = i // each
    first = tl.load(ROW + i + model)
    degree = (tl.load(ROW + i + model + 1) - first).to(tl.int32)
    mu = tl.load(MU + model * stride + nu, mask=nu < NU, other=1)[None, :]
    sigma = tl.load(SIGMA + model * stride + nu, mask=nu < NU, other=1)[None, :]
    of_mu = sigma / (mu * mu)
    g_at = G + i * (NU * F) + nu[:, None] * F + b[None, :]
    dmu = tl.full((EDGES, NU_BLOCK), 0, G.dtype.element_ty)
    dsigma = tl.full((EDGES, NU_BLOCK), 0, G.dtype.element_ty)
    for k in range(0, degree, EDGES):
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
            t = dot(z, tl.trans(g), t, PRODUCTS)
        slope = -t * s * deviation
        if LEARNED:
            dmu += slope * of_mu
            dsigma += slope * (1.0 / r[:, None] - 1.0 / mu)
        if DISTANCES:
            cut = _sine(r * (1.0 / CUTOFF)) * cosine * (-2.0 * HALF_PI / CUTOFF)
            along = t * gaussians * cut[:, None] - slope * sigma / (r * r)[:, None]
            tl.store(DR + first + k + x, tl.reduce(along, 1, _add), mask=live)
    if LEARNED:
        part = PARTS + i * (2 * NU) + nu
        tl.store(part, tl.reduce(dmu, 0, _add), mask=nu < NU)
        tl.store(part + NU, tl.reduce(dsigma, 0, _add), mask=nu < NU)
    if FEATURES > 0:
        for k in range(0, degree, EDGES):
            live = k + x < degree
            r = tl.load(R + first + k + x, mask=live, other=CUTOFF)
            inside, r, cosine = _cutoff(r, CUTOFF)
            gaussians, _ = _gaussians(r[:, None], mu, sigma)
            s = tl.where(inside[:, None], gaussians, 0.0) * (cosine * cosine)[:, None]
            w_at = W + (first + k) * FEATURES + x[:, None] * FEATURES + b[None, :]
            for c in range(0, FEATURES, F_BLOCK):
                mine = (c + b < FEATURES) & (start + c + b < F)
                g = tl.load(g_at + start + c, mask=(nu < NU)[:, None] & mine[None, :], other=0)
                w = dot(s, g, tl.full((EDGES, F_BLOCK), 0, G.dtype.element_ty), PRODUCTS)
                tl.store(w_at + c, w, mask=live[:, None] & mine[None, :])


def interact(where: Where, z: Tensor, V: Tensor, keep: bool) -> tuple[Tensor, Kept | None]:
    """See :func:`hipnn_pyg.ops.cpu.interact`; environments are kept as ``[N, nu, in]``.

    Of several models what is received comes in parts, ``[parts, N, out]``, which ``dense`` adds.
    """
    (nu, in_channels, _), z = V.shape[-3:], z.contiguous()
    environments = z.new_empty(_receivers(where), nu * in_channels)
    first, second = _columns(in_channels)
    grid = (environments.size(0) * triton.cdiv(in_channels, first + second),)
    if environments.numel():
        with torch.cuda.device_of(z):
            _environments[grid](
                *(where.r.contiguous(), where.mu, where.sigma, z),
                *(where.pattern.row, where.pattern.j, environments, *_shares(where)),
                *(float(where.cutoff), nu, in_channels, _sensitivity_block(nu), first, second),
                *(EDGES, exact(z)),
                num_warps=2 if in_channels > WIDE else 1,
                num_stages=1,
            )
    received = product_in_parts(by_model(environments, V, 3), V.flatten(-3, -2))
    received = received if V.dim() == 3 else received.flatten(-3, -2)
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
    pattern, (nu, in_channels, _), z = where.pattern, V.shape[-3:], z.contiguous()
    gradient = by_model(gradient, V, 3)
    if dV is not None:
        assert kept is not None, "a gradient in V needs what the forward pass kept"
        environments = by_model(kept.environments, V, 3)
        product(environments.mT, gradient, dV.view(V.shape).flatten(-3, -2))
    learned = dmu is not None or dsigma is not None
    if dr is None and dz is None and not learned:
        return
    if dz is not None:
        pattern = pattern.with_order()
    of_environments = product(gradient, V.flatten(-3, -2).mT).flatten(0, -2)
    atoms, edges = of_environments.size(0), pattern.j.numel()
    columns = _columns_at_once(z, edges) if dz is not None else 0
    options: dict[str, Any] = dict(num_stages=3 if in_channels > WIDE else 1)
    if exact(z) == "tf32x3":  # few registers, so that many programs run at a time
        options["maxnreg"] = 168
    sent = z.new_empty(edges, columns) if dz is not None else z
    parts = z.new_empty(atoms, 2 * nu) if learned else z
    for start in range(0, max(columns and in_channels, 1), max(columns, 1)):
        once, taken = start == 0, min(columns, in_channels - start)
        with torch.cuda.device_of(z):
            if atoms:
                _edge_slopes[(atoms,)](
                    *(of_environments, where.r.contiguous(), where.mu, where.sigma, z),
                    *(pattern.row, pattern.j, sent, parts, z if dr is None else dr, start),
                    *_shares(where),
                    *(taken, learned and once, dr is not None and once, float(where.cutoff)),
                    *(nu, in_channels, _sensitivity_block(nu), COLUMNS, EDGES, exact(z)),
                    num_warps=1,
                    **options,
                )
            if dz is not None and dz.numel():
                send_back(sent, pattern, dz, start, taken, _shares(where)[0])
    if learned:
        dmu = torch.empty_like(where.mu) if dmu is None else dmu
        dsigma = torch.empty_like(where.sigma) if dsigma is None else dsigma
        models = stack_of(where.mu, 1)[0]
        apart = (stack_of(dmu, 1)[1], stack_of(dsigma, 1)[1])
        with torch.cuda.device_of(z):
            sum_parts[(2 * nu, models)](
                *(parts, dmu, dsigma, parts.size(0) // models, *apart, nu, nu, 1024), num_warps=4
            )


def _receivers(where: Where) -> int:
    """Receiving atoms, of all models."""
    return where.pattern.row.size(0) - stack_of(where.mu, 1)[0]


def _shares(where: Where) -> tuple[int, int]:
    """Receiving atoms of each model, and how far apart their parameters lie."""
    models, stride = stack_of(where.mu, 1)
    return max(_receivers(where) // models, 1), stride


def _columns_at_once(z: Tensor, edges: int) -> int:
    """Columns of what goes back to the senders, ``[E, columns]``: all, or as many blocks as fit."""
    width, block = z.size(1), feature_block(z.size(1))
    fitting = WORKSPACE // (z.element_size() * max(edges, 1))
    return width if fitting >= width else min(width, max(fitting // block * block, block))


def _columns(width: int) -> tuple[int, int]:
    """Columns of two blocks that a program takes side by side, the second perhaps of none."""
    first = max(16, min(64, triton.next_power_of_2(width + 1) // 2))
    rest = min(width - first, 64)
    return first, max(16, triton.next_power_of_2(rest)) if rest > 0 else 0


def _sensitivity_block(nu: int) -> int:
    return max(16, triton.next_power_of_2(nu))
