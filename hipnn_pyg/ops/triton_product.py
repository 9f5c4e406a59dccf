"""Products of the matrices of several models as a Triton kernel.

For several products of narrow matrices PyTorch's float32 kernels take 1.4 to 2.2 times as long as
the tensor cores take for three products of TF32 (H200). Nothing is added atomically: same input,
same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hipnn_pyg.ops.triton_tiles import dot, products

PROGRAMS = 600
"""A sum is computed in parts, as many as make so many programs of the product."""
PART = 150
"""Terms of a part, at least."""
SMALL = 128
"""Matrices of fewer rows and terms are divided among more programs."""


@triton.jit
def _product(
    A: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    m_size: tl.tensor,
    k_size: tl.tensor,
    n_size: tl.tensor,
    a_model: tl.tensor,
    a_down: tl.tensor,
    a_across: tl.tensor,
    b_model: tl.tensor,
    b_down: tl.tensor,
    b_across: tl.tensor,
    c_part: tl.tensor,
    c_model: tl.tensor,
    k_part: tl.tensor,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> None:
    """Two blocks of columns, side by side, of c = a b: of a model and a part of the sum."""
    tiles = (n_size + FIRST + SECOND - 1) // (FIRST + SECOND)
    m = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    n = (tl.program_id(0) % tiles) * (FIRST + SECOND) + tl.arange(0, FIRST)
    o = (tl.program_id(0) % tiles) * (FIRST + SECOND) + FIRST + tl.arange(0, SECOND)
    model, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    x = tl.arange(0, DEPTH)
    begin = part * k_part
    count = tl.minimum(begin + k_part, k_size) - begin
    A += model * a_model + begin.to(tl.int64) * a_across
    B += model * b_model + begin.to(tl.int64) * b_down
    C += part * c_part + model * c_model + m.to(tl.int64)[:, None] * n_size
    a_at = A + m.to(tl.int64)[:, None] * a_down + x[None, :] * a_across
    b_at = B + x.to(tl.int64)[:, None] * b_down
    row = (m < m_size)[:, None]
    first = tl.full((ROWS, FIRST), 0, C.dtype.element_ty)
    second = tl.full((ROWS, SECOND), 0, C.dtype.element_ty)
    for k in range(0, count, DEPTH):
        there = k + x < count
        a = tl.load(a_at, mask=row & there[None, :], other=0)
        there = there[:, None]
        b = tl.load(b_at + n[None, :] * b_across, mask=there & (n < n_size)[None, :], other=0)
        first = dot(a, b, first, PRODUCTS)
        b = tl.load(b_at + o[None, :] * b_across, mask=there & (o < n_size)[None, :], other=0)
        second = dot(a, b, second, PRODUCTS)
        a_at += DEPTH * a_across
        b_at += DEPTH * b_down
    tl.store(C + n[None, :], first, mask=row & (n < n_size)[None, :])
    tl.store(C + o[None, :], second, mask=row & (o < n_size)[None, :])


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b, of one model by PyTorch."""
    found = product_in_parts(a, b, out)
    return found if found.dim() == a.dim() else torch.sum(found, 0, out=out)


def product_in_parts(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The same, of several models perhaps in parts that are to be added.

    Args:
        a: ``[m, k]``, or ``[K, m, k]`` of K models.
        b: ``[k, n]`` or ``[K, k, n]``.
        out: where to, unless there are parts; its rows lie one after the other. None for a new
            tensor.

    Returns:
        ``[m, n]``, ``[K, m, n]`` or ``[parts, K, m, n]``.
    """
    how = products(a)
    if a.dim() == 2 or how == "ieee" or not a.numel() or not b.numel():
        return torch.matmul(a, b, out=out)
    (models, m, k), n = a.shape, b.size(-1)
    depth, first, second = 16, 64, 16
    rows, stages = 64, 3 if n < SMALL else 2
    if n < SMALL and min(m, k) < SMALL:
        rows, stages = 32, 3
    programs = triton.cdiv(m, rows) * triton.cdiv(n, first + second)
    parts = max(1, min(PROGRAMS // (programs * models), k // PART))
    k_part = triton.cdiv(triton.cdiv(k, parts), depth) * depth
    parts = triton.cdiv(k, k_part)
    if parts > 1 or out is None:
        found = a.new_empty(parts, models, m, n)
    else:
        found = out.unsqueeze(0)
    c_part, c_model = found.stride(0), found.stride(1)
    with torch.cuda.device_of(a):
        _product[(programs, models, parts)](
            *(a, b, found, m, k, n, *a.stride(), *b.stride(), c_part, c_model, k_part),
            *(rows, depth, first, second, how),
            num_warps=2,
            num_stages=stages,
        )
    return found if parts > 1 else found[0]
