"""Rows of many groups, one group after the other: those of some groups, by indexing."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(index: Tensor, counts: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of some groups, one group after the other.

    Args:
        index: groups, int64 on the CPU, ``[G]``.
        counts: rows of every group, on the CPU, ``[M]``.
        start: first row of every group, where the rows are, ``[M]``.

    Returns:
        First row of each group in the result and, last, their number R, ``[G + 1]``; the group of
        each row, ``[R]``; where each row is found, ``[R]``.
    """
    number, device = counts[index], start.device
    total = int(number.sum())
    index, number = index.to(device), number.to(device)
    ptr = torch.cat((number.new_zeros(1), number.cumsum(0)))
    group = torch.arange(index.numel(), device=device)
    group = group.repeat_interleave(number, output_size=total)
    offset = start[index] - ptr[:-1]
    return ptr, group, torch.arange(total, device=device) + offset[group]
