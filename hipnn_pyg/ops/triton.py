"""The three sums as Triton kernels, for a GPU.

One program owns one receiver (or one sender) and a block of columns, and walks that atom's edges in
their order: nothing is added atomically, so the same input gives the same bits. All arithmetic is
in the dtype of the input ("ieee": no TF32). A block product needs sizes that are powers of two, at
least 16; what a block has too many is masked.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hipnn_pyg.ops.operands import checked
from hipnn_pyg.ops.pattern import Pattern
from hipnn_pyg.ops.triton_tiles import kernel

WORKSPACE = 2**28
"""Bytes that featsum may use for its intermediate; more only where s itself is larger."""

EDGES = 16
PARTS = 2
OPTIONS: dict[str, Any] = dict(num_warps=1, num_stages=3, enable_fp_fusion=True)


@triton.jit
def _envsum(
    S: tl.tensor,
    Z: tl.tensor,
    ROW: tl.tensor,
    J: tl.tensor,
    E: tl.tensor,
    NU: tl.constexpr,
    F: tl.constexpr,
    NU_BLOCK: tl.constexpr,
    F_BLOCK: tl.constexpr,
    EDGES: tl.constexpr,
) -> None:
    """e[i] = s^T z over the edges of i, [NU_BLOCK, EDGES] x [EDGES, F_BLOCK] at a time."""
    blocks: tl.constexpr = (F + F_BLOCK - 1) // F_BLOCK
    i = (tl.program_id(0) // blocks).to(tl.int64)
    b = (tl.program_id(0) % blocks) * F_BLOCK + tl.arange(0, F_BLOCK)
    nu = tl.program_id(1) * NU_BLOCK + tl.arange(0, NU_BLOCK)
    x = tl.arange(0, EDGES)
    first = tl.load(ROW + i)
    degree = (tl.load(ROW + i + 1) - first).to(tl.int32)
    s_at = S + first * NU + x[None, :] * NU + nu[:, None]
    e = tl.full((NU_BLOCK, F_BLOCK), 0, E.dtype.element_ty)
    for k in range(0, degree, EDGES):
        live = k + x < degree
        j = tl.load(J + first + k + x, mask=live, other=0)
        s = tl.load(s_at + k * NU, mask=live[None, :] & (nu < NU)[:, None], other=0)
        z_at = Z + j[:, None] * F + b[None, :]
        z = tl.load(z_at, mask=live[:, None] & (b < F)[None, :], other=0)
        e = tl.dot(s, z, e, input_precision="ieee", out_dtype=E.dtype.element_ty)
    e_at = E + i * (NU * F) + nu[:, None] * F + b[None, :]
    tl.store(e_at, e, mask=(nu < NU)[:, None] & (b < F)[None, :])


@triton.jit
def _sensesum(
    G: tl.tensor,
    Z: tl.tensor,
    ROW: tl.tensor,
    J: tl.tensor,
    T: tl.tensor,
    NU: tl.constexpr,
    F: tl.constexpr,
    NU_BLOCK: tl.constexpr,
    F_BLOCK: tl.constexpr,
    EDGES: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """t[x] = z[j(x)] g[i]^T, EDGES edges at a time; the PARTS programs of a receiver take turns."""
    i = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    b = tl.arange(0, F_BLOCK)
    nu = tl.program_id(1) * NU_BLOCK + tl.arange(0, NU_BLOCK)
    x = tl.arange(0, EDGES)
    first = tl.load(ROW + i)
    degree = (tl.load(ROW + i + 1) - first).to(tl.int32)
    g_at = G + i * (NU * F) + nu[None, :] * F + b[:, None]
    t_at = T + first * NU + x[:, None] * NU + nu[None, :]
    for k in range(part * EDGES, degree, PARTS * EDGES):
        live = k + x < degree
        j = tl.load(J + first + k + x, mask=live, other=0)
        z_at = Z + j[:, None] * F + b[None, :]
        t = tl.full((EDGES, NU_BLOCK), 0, T.dtype.element_ty)
        for c in range(0, F, F_BLOCK):
            z = tl.load(z_at + c, mask=live[:, None] & (c + b < F)[None, :], other=0)
            g = tl.load(g_at + c, mask=(c + b < F)[:, None] & (nu < NU)[None, :], other=0)
            t = tl.dot(z, g, t, input_precision="ieee", out_dtype=T.dtype.element_ty)
        tl.store(t_at + k * NU, t, mask=live[:, None] & (nu < NU)[None, :])


@triton.jit
def _edge_features(
    G: tl.tensor,
    S: tl.tensor,
    ROW: tl.tensor,
    W: tl.tensor,
    start: tl.tensor,
    NU: tl.constexpr,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    NU_BLOCK: tl.constexpr,
    F_BLOCK: tl.constexpr,
    EDGES: tl.constexpr,
) -> None:
    """w[x] = s[x] g[i(x)], columns start ... start + WIDTH - 1 of F."""
    blocks: tl.constexpr = (WIDTH + F_BLOCK - 1) // F_BLOCK
    i = (tl.program_id(0) // blocks).to(tl.int64)
    b = (tl.program_id(0) % blocks) * F_BLOCK + tl.arange(0, F_BLOCK)
    nu = tl.arange(0, NU_BLOCK)
    x = tl.arange(0, EDGES)
    first = tl.load(ROW + i)
    degree = (tl.load(ROW + i + 1) - first).to(tl.int32)
    g_at = G + i * (NU * F) + start + nu[:, None] * F + b[None, :]
    s_at = S + first * NU + x[:, None] * NU + nu[None, :]
    w_at = W + first * WIDTH + x[:, None] * WIDTH + b[None, :]
    for k in range(0, degree, EDGES):
        live = k + x < degree
        w = tl.full((EDGES, F_BLOCK), 0, W.dtype.element_ty)
        for n in range(0, NU, NU_BLOCK):
            s = tl.load(s_at + k * NU + n, mask=live[:, None] & (n + nu < NU)[None, :], other=0)
            g = tl.load(g_at + n * F, mask=(n + nu < NU)[:, None] & (b < WIDTH)[None, :], other=0)
            w = tl.dot(s, g, w, input_precision="ieee", out_dtype=W.dtype.element_ty)
        tl.store(w_at + k * WIDTH, w, mask=live[:, None] & (b < WIDTH)[None, :])


@kernel
def _by_sender(
    W: tl.tensor,
    ORDER: tl.tensor,
    COLUMN: tl.tensor,
    U: tl.tensor,
    start: tl.tensor,
    each: tl.tensor,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    F_BLOCK: tl.constexpr,
    EDGES: tl.constexpr,
) -> None:
    """u[n] = sum of w over the edges that n sends, EDGES loads in flight.

    Of ``each`` atoms the edges follow one another, the end of the last stands behind its beginning.
    """
    blocks: tl.constexpr = (WIDTH + F_BLOCK - 1) // F_BLOCK
    n = (tl.program_id(0) // blocks).to(tl.int64)
    b = (tl.program_id(0) % blocks) * F_BLOCK + tl.arange(0, F_BLOCK)
    column = COLUMN + n + n // each
    first = tl.load(column)
    degree = (tl.load(column + 1) - first).to(tl.int32)
    u = tl.full((F_BLOCK,), 0, U.dtype.element_ty)
    for k in range(0, degree, EDGES):
        for m in tl.static_range(EDGES):
            live = k + m < degree
            x = tl.load(ORDER + first + k + m, mask=live, other=0)
            u += tl.load(W + x * WIDTH + b, mask=b < tl.where(live, WIDTH, 0), other=0)
    tl.store(U + n * F + start + b, u, mask=b < WIDTH)


def envsum(s: Tensor, z: Tensor, pattern: Pattern) -> Tensor:
    """See :func:`hipnn_pyg.ops.reference.envsum`."""
    pattern, s, z = checked(pattern, s=s, z=z)
    rows, nu, width = pattern.num_receivers, s.size(1), z.size(1)
    e = z.new_empty(rows, nu, width)
    if e.numel():
        nu_block, f_block = feature_block(nu), feature_block(width)
        grid = (rows * triton.cdiv(width, f_block), triton.cdiv(nu, nu_block))
        with torch.cuda.device_of(z):
            _envsum[grid](
                s, z, pattern.row, pattern.j, e, nu, width, nu_block, f_block, EDGES, **OPTIONS
            )
    return e


def sensesum(g: Tensor, z: Tensor, pattern: Pattern) -> Tensor:
    """See :func:`hipnn_pyg.ops.reference.sensesum`."""
    pattern, g, z = checked(pattern, g=g, z=z)
    rows, nu, width = g.shape
    t = z.new_empty(pattern.j.numel(), nu)
    if t.numel():
        nu_block = feature_block(nu)
        grid = (rows * PARTS, triton.cdiv(nu, nu_block))
        with torch.cuda.device_of(z):
            _sensesum[grid](
                g, z, pattern.row, pattern.j, t, nu, width, nu_block, 16, EDGES, PARTS, **OPTIONS
            )
    return t


def featsum(g: Tensor, s: Tensor, pattern: Pattern) -> Tensor:
    """See :func:`hipnn_pyg.ops.reference.featsum`.

    In two steps, so that each g[i] is read once and not once per edge: the features that every edge
    carries back, ``[E, columns]``, then their sum by sender. Columns are taken in as many passes
    as keep the intermediate within :data:`WORKSPACE` or the size of s.
    """
    pattern, g, s = checked(pattern.with_order(), g=g, s=s)
    rows, nu, width = g.shape
    u = g.new_empty(pattern.num_senders, width)
    columns = _columns_at_once(s, width)
    w = g.new_empty(s.size(0), columns)
    for start in range(0, width if u.numel() else 0, max(columns, 1)):
        taken = min(columns, width - start)
        block = feature_block(taken)
        with torch.cuda.device_of(g):
            if rows:
                _edge_features[(rows * triton.cdiv(taken, block),)](
                    *(g, s, pattern.row, w, start, nu, width, taken),
                    *(feature_block(nu), block, EDGES),
                    **OPTIONS,
                )
            send_back(w, pattern, u, start, taken, pattern.num_senders)
    return u


def send_back(w: Tensor, pattern: Pattern, u: Tensor, start: int, taken: int, each: int) -> None:
    """Columns ``start .. start + taken - 1`` of u: what the edges carry, summed by sender.

    Args:
        w: what each edge carries, ``[E, at least taken]``.
        pattern: with its order by senders.
        u: the result, ``[senders of all models, columns]``.
        start: the first of the columns.
        taken: their number.
        each: senders of each model.
    """
    wide = max(32, triton.next_power_of_2(min(taken, 128)))
    _by_sender[(u.size(0) * triton.cdiv(taken, wide),)](
        *(w, pattern.order, pattern.column, u, start, each),
        *(u.size(1), taken, wide, 8),
        **OPTIONS,
    )


def feature_block(size: int) -> int:
    """Width of a block over ``size`` columns: a product takes at least 16."""
    return 16 if size <= 16 else 32


def _columns_at_once(s: Tensor, width: int) -> int:
    """Columns of featsum's intermediate ``[E, columns]``: all, or whole blocks that fit."""
    fitting = max(WORKSPACE // s.element_size(), s.numel()) // max(s.size(0), 1)
    return width if fitting >= width else max(fitting // 32 * 32, min(width, 16))
