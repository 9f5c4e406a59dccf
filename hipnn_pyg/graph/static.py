"""All pairs of a mini-batch of fixed size: the places that it does not need join nobody."""

from __future__ import annotations

import torch
from torch import Tensor

from hipnn_pyg.graph.pairs import Pairs, edge_distances
from hipnn_pyg.ops import Pattern


def static_edges(pos: Tensor, batch: Tensor, ptr: Tensor, num_edges: int) -> Pairs:
    """:func:`~hipnn_pyg.graph.pairs.molecule_edges` where no shape depends on the molecules.

    Atoms that are padding stand last and have no molecule. They share the edges that are left over:
    each of those joins an atom to itself at r = inf, where every sensitivity is exactly 0. So every
    edge stands in some atom's row, and kernels need to know nothing of padding.

    Args:
        pos: positions in Å, ``[N, 3]``; those of padding atoms do not matter.
        batch: molecule of each atom, sorted, and G for padding, ``[N]``; the last atom is padding.
        ptr: first atom of each molecule, the number of atoms without padding, and that once more:
            the padding is a molecule without atoms; ``[G + 2]``.
        num_edges: E, at least the sum of n (n - 1) over the molecules.

    Returns:
        ``[E]`` edges with their pattern, distances to the last bit those of ``molecule_edges``.
    """
    atom = torch.arange(pos.size(0), device=pos.device)
    edge = torch.arange(num_edges, device=pos.device)
    size = ptr.diff()
    real = atom < ptr[-1]

    left = num_edges - (size * (size - 1)).sum()
    share = (left + pos.size(0) - ptr[-1] - 1) // (pos.size(0) - ptr[-1])
    spare = (left - share * (atom - ptr[-1])).clamp(min=0).minimum(share)
    row = torch.where(real, size[batch] - 1, spare).cumsum(0)
    i = torch.searchsorted(row, edge, right=True)
    row = torch.cat((row.new_zeros(1), row))

    first = ptr[:-1][batch][i]
    place = edge - row[i]
    after = (place >= i - first).long()  # skip i itself
    joins = real[i]
    j = torch.where(joins, first + place + after, i)
    # Atom i stands in the row of j at its own place among the partners of j.
    reverse = torch.where(joins, row[j] + (i - first) - (1 - after), edge)
    r = torch.where(joins, edge_distances(pos, torch.stack((j, i))), torch.inf)
    return Pairs(j, i, r, Pattern(j, i, row, reverse, row))
