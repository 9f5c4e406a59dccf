"""Which atom sends to which: the sparsity pattern that the three sums share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pattern(NamedTuple):
    """Edges sorted by receiver, with the places where each receiver's and each sender's begin.

    Any list will do: directed, with duplicates, with periodic images. Nothing assumes
    :math:`s_{ij} = s_{ji}`.

    Attributes:
        j: sending atom of each edge, int64, ``[E]``.
        i: receiving atom of each edge, int64, ascending, ``[E]``.
        row: the edges of receiver i are ``row[i] .. row[i + 1] - 1``, ``[num_receivers + 1]``.
        order: the edges sorted by sender (stable), ``[E]``; may be empty until it is needed,
            for derivatives (see :meth:`with_order`).
        column: those of sender n are ``order[column[n] .. column[n + 1] - 1]``,
            ``[num_senders + 1]``.
    """

    j: Tensor
    i: Tensor
    row: Tensor
    order: Tensor
    column: Tensor

    @property
    def num_receivers(self) -> int:
        """Number of receiving atoms."""
        return self.row.size(0) - 1

    @property
    def num_senders(self) -> int:
        """Number of sending atoms."""
        return self.column.size(0) - 1

    def with_order(self) -> Pattern:
        """The same pattern with ``order`` and ``column``, computed now if they are still empty."""
        if self.order.size(0) == self.j.size(0):
            return self
        order = self.j.argsort(stable=True)
        return self._replace(order=order, column=_starts(self.j, self.num_senders))


def edge_pattern(j: Tensor, i: Tensor, num_atoms: int) -> Pattern:
    """The pattern of an edge list that is sorted by receiver.

    Args:
        j: sending atoms, ``[E]``.
        i: receiving atoms, ascending, ``[E]``.
        num_atoms: N.
    """
    pattern = Pattern(j, i, _starts(i, num_atoms), j.new_empty(0), j.new_zeros(num_atoms + 1))
    return pattern.with_order() if j.is_cuda and torch.is_grad_enabled() else pattern


def _starts(atoms: Tensor, num_atoms: int) -> Tensor:
    counts = torch.bincount(atoms, minlength=num_atoms)
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))
