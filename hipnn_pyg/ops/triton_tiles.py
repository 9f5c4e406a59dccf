"""What the Triton kernels of the layers share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.standard import _sum_combine as _add

ROWS = 16
"""Atoms that a program takes at a time through the dense layers and the readout."""
SIZES = ("atoms", "each", "rows", "graphs", "edges", "steps")
"""Arguments that differ from call to call."""

kernel = triton.jit(do_not_specialize=SIZES)
"""A kernel that is compiled once for all these: Triton would again for the first multiple of 16."""


def exact(x: Tensor) -> str:
    """How sums of products are computed: of float32 on the tensor cores, as three of TF32."""
    return "tf32x3" if x.dtype == torch.float32 and torch.version.hip is None else "ieee"


def products(x: Tensor) -> str:
    """The same of matrix products, which may be less precise (:mod:`hipnn_pyg.nn.precision`)."""
    setting = torch.backends.cuda.matmul
    chosen = getattr(setting, "fp32_precision", None)  # PyTorch before 2.9 has the other alone
    lowered = setting.allow_tf32 if chosen is None else chosen == "tf32"
    return "tf32" if lowered and exact(x) == "tf32x3" else exact(x)


@triton.jit
def _split(x):  # type: ignore[no-untyped-def]
    """Two numbers that the tensor cores take whole as TF32, but for the last bit of the second."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def dot(a, b, c, PRODUCTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """a b + c. "tf32x3": of float32, as three products of TF32; what is left out is a rounding."""
    if PRODUCTS == "tf32x3":
        a, a_rest = _split(a)
        b, b_rest = _split(b)
        c = tl.dot(a_rest, b, c, input_precision="tf32", out_dtype=c.dtype)
        c = tl.dot(a, b_rest, c, input_precision="tf32", out_dtype=c.dtype)
        return tl.dot(a, b, c, input_precision="tf32", out_dtype=c.dtype)
    return tl.dot(a, b, c, input_precision=PRODUCTS, out_dtype=c.dtype)


def column_block(width: int) -> int:
    """Columns of a block that holds all of a row."""
    return max(16, triton.next_power_of_2(width))


def column_blocks(width: int) -> tuple[int, int]:
    """Columns of the two blocks that hold a row together: 80 of 64 + 32.

    Of fewer than 32 columns Triton would give the same to several warps.
    """
    first = max(32, triton.next_power_of_2(width) // 2)
    return first, max(32, triton.next_power_of_2(max(width - first, 1)))


def stack_of(parameter: Tensor, dimensions: int) -> tuple[int, int]:
    """Number of models K that a parameter is of, and how far apart in memory theirs lie.

    Args:
        parameter: of one model, or of K with a leading dimension.
        dimensions: that it has in one model.
    """
    if parameter.dim() == dimensions:
        return 1, 0
    return parameter.size(0), parameter.stride(0)


def by_model(x: Tensor, parameter: Tensor, dimensions: int) -> Tensor:
    """``[N, columns]`` as ``[K, N / K, columns]`` where a parameter is that of K models.

    Args:
        x: of the atoms of all models, one model after the other.
        parameter: as :func:`stack_of` takes it.
        dimensions: that it has in one model.
    """
    return x if parameter.dim() == dimensions else x.unflatten(0, (parameter.size(0), -1))


@kernel
def sum_parts(
    PARTS: tl.tensor,
    A: tl.tensor,
    B: tl.tensor,
    rows: tl.tensor,
    a_stride: tl.tensor,
    b_stride: tl.tensor,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Sums over a model's rows of ``[rows, FIRST + SECOND]``, one column each: to a, then to b."""
    n = tl.program_id(0)
    model = tl.program_id(1).to(tl.int64)
    PARTS += model * rows * (FIRST + SECOND)
    A += model * a_stride
    B += model * b_stride
    x = tl.arange(0, ROWS)
    total = tl.full((ROWS,), 0, PARTS.dtype.element_ty)
    for k in range(0, rows, ROWS):
        at = (k + x).to(tl.int64) * (FIRST + SECOND) + n
        total += tl.load(PARTS + at, mask=k + x < rows, other=0)
    if n < FIRST:
        tl.store(A + n, tl.reduce(total, 0, _add))
    else:
        tl.store(B + n - FIRST, tl.reduce(total, 0, _add))
