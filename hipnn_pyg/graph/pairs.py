"""Who is near whom: the pairs (i, j) that every interaction layer sums over, in two layouts.

Direction words, everywhere: ``j`` is the neighbour that sends, ``i`` the centre that receives,
``r_ij = pos_j - pos_i + shift``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from hipnn_pyg import ops
from hipnn_pyg.ops import Pattern, edge_pattern, molecule_kernels, takes


class Pairs(NamedTuple):
    """Neighbour pairs in one of two layouts; sensitivities act elementwise on ``r`` in either.

    * **edges** (the specification): ``j``, ``i``, ``r`` are ``[E]``, sorted by receiver ``i``.
      With a ``pattern`` the kernels of :mod:`hipnn_pyg.ops` sum over them.
    * **padded**: ``j``, ``r`` are ``[N, K]``, row i holds the neighbours of atom i, ``i`` is None.
      Unused places have ``r = inf``, where every sensitivity is exactly 0.

    Attributes:
        j: index of the sending atom, int64.
        i: index of the receiving atom, int64, or None in the padded layout.
        r: distance in Å.
        pattern: where each atom's edges begin, for the kernels.
    """

    j: Tensor
    i: Tensor | None
    r: Tensor
    pattern: Pattern | None = None


def edge_distances(pos: Tensor, edge_index: Tensor, shift: Tensor | None = None) -> Tensor:
    """``|pos_j - pos_i + shift|`` of each edge.

    Args:
        pos: positions in Å, ``[N, 3]``.
        edge_index: ``[2, E]``, row 0 = j (sends), row 1 = i (receives).
        shift: periodic-image vectors in Å, ``[E, 3]``, added to ``pos_j``.

    Returns:
        Distances in Å, ``[E]``.
    """
    j, i = edge_index
    r_ij = pos[j] - pos[i]
    if shift is not None:
        r_ij = r_ij + shift
    return torch.linalg.vector_norm(r_ij, dim=-1)


def sorted_edges(edge_index: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """An edge list in any order and form, sorted by receiver, and its shifts.

    Args:
        edge_index: integers ``[2, E]``, a PyG ``EdgeIndex`` too.
        shift: periodic-image vectors, ``[E, 3]``.
    """
    if isinstance(edge_index, EdgeIndex):
        edge_index = edge_index.as_tensor()
    edge_index = edge_index.long().contiguous()
    receiver = edge_index[1]
    if not bool((receiver[1:] >= receiver[:-1]).all()):
        order = receiver.argsort(stable=True)
        edge_index = edge_index[:, order]
        shift = None if shift is None else shift[order]
    return edge_index, shift


def edge_pairs(pos: Tensor, edge_index: Tensor, shift: Tensor | None = None) -> Pairs:
    """The edge layout of an edge list as :func:`sorted_edges` takes it."""
    edge_index, shift = sorted_edges(edge_index, shift)
    return Pairs(edge_index[0], edge_index[1], edge_distances(pos, edge_index, shift))


def pad_pairs(pairs: Pairs, num_atoms: int) -> Pairs:
    """The padded layout of receiver-sorted edges; K is the largest number of neighbours.

    Args:
        pairs: edge layout, sorted by receiver.
        num_atoms: N, since atoms without neighbours have no edge.

    Returns:
        The same pairs, ``[N, K]``.
    """
    assert pairs.i is not None
    degree = torch.bincount(pairs.i, minlength=num_atoms)
    width = int(degree.max()) if num_atoms else 0
    column = torch.arange(pairs.i.numel(), device=pairs.i.device)
    column = column - (degree.cumsum(0) - degree)[pairs.i]
    j = pairs.i.new_zeros(num_atoms, width).index_put((pairs.i, column), pairs.j)
    r = pairs.r.new_full((num_atoms, width), torch.inf).index_put((pairs.i, column), pairs.r)
    return Pairs(j, None, r)


def molecule_sizes(
    pos: Tensor, batch: Tensor, num_graphs: int | None = None, kernels: bool = False
) -> tuple[Tensor, int, int]:
    """Where each molecule begins, and how large they are.

    Args:
        pos: positions, ``[N, 3]``.
        batch: molecule of each atom, sorted, ``[N]``.
        num_graphs: G, if known.
        kernels: let the compiled kernel do it where it can.

    Returns:
        ``(ptr [G + 1], atoms of the largest molecule, sum of n (n - 1))``; where G is not known, of
        the molecules up to the last one with atoms.
    """
    gpu = molecule_kernels(pos) if kernels else None
    if gpu is not None:
        num_graphs = int(batch[-1]) + 1 if num_graphs is None else num_graphs
        found: tuple[Tensor, int, int] = gpu.sizes(batch, num_graphs)
        return found
    counts = torch.bincount(batch, minlength=num_graphs or 0)
    ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return ptr, int(counts.max()), int((counts * (counts - 1)).sum())


def molecule_edges(
    pos: Tensor,
    batch: Tensor,
    ptr: Tensor,
    num_edges: int,
    kernels: bool = False,
    max_atoms: int | None = None,
) -> Pairs:
    """All pairs inside each molecule as edges with their pattern, in closed form.

    Nothing is searched, padded or sorted. Pairs beyond the cutoff are kept; their sensitivities
    are exactly 0.

    Args:
        pos: positions in Å, ``[N, 3]``.
        batch: molecule of each atom, sorted, ``[N]``.
        ptr: first atom of each molecule and, last, N; ``[G + 1]``.
        num_edges: E = sum of n (n - 1) over the molecules.
        kernels: let the compiled kernel do it where it can.
        max_atoms: atoms of the largest molecule (or more); a GPU's kernel needs it.
    """
    gpu = molecule_kernels(pos) if kernels and max_atoms is not None else None
    if gpu is not None:
        pattern, r = gpu.molecule_edges(pos, ptr, max_atoms, num_edges)
        if pos.requires_grad and torch.is_grad_enabled():
            r = edge_distances(pos, torch.stack((pattern.j, pattern.i)))
        return Pairs(pattern.j, pattern.i, r, pattern)
    if kernels and pos.device.type == "cpu" and takes(pos) and not pos.requires_grad:
        pattern, r = ops.molecule_edges(pos, ptr, num_edges)
        return Pairs(pattern.j, pattern.i, r, pattern)
    partners = (ptr[1:] - ptr[:-1])[batch] - 1
    row = torch.cat((ptr.new_zeros(1), partners.cumsum(0)))
    atom = torch.arange(pos.size(0), device=pos.device)
    i = atom.repeat_interleave(partners, output_size=num_edges)
    first = ptr[:-1][batch][i]
    place = torch.arange(num_edges, device=pos.device) - row[i]
    after = (place >= i - first).long()  # skip i itself
    j = first + place + after
    reverse = j.new_empty(0)
    if pos.is_cuda or pos.requires_grad:
        # Atom i stands in the row of j at its own place among the partners of j.
        reverse = row[j] + (i - first) - (1 - after)
    r = edge_distances(pos, torch.stack((j, i)))
    return Pairs(j, i, r, Pattern(j, i, row, reverse, row))


def molecule_pairs(pos: Tensor, batch: Tensor, ptr: Tensor, max_atoms: int) -> Pairs:
    """All pairs inside each molecule of a batch, padded to ``K = max_atoms - 1``.

    Nothing is searched and no shape depends on the positions: this is the layout that compiles
    and captures. Pairs beyond the cutoff are kept; their sensitivities are exactly 0.

    Args:
        pos: positions in Å, ``[N, 3]``.
        batch: molecule of each atom, sorted, ``[N]``.
        ptr: first atom of each molecule and, last, N; ``[G + 1]``.
        max_atoms: number of atoms of the largest molecule (or more).
    """
    first = ptr[:-1][batch].unsqueeze(1)
    last = ptr[1:][batch].unsqueeze(1)
    atom = torch.arange(pos.size(0), device=pos.device).unsqueeze(1)
    j = first + torch.arange(max_atoms - 1, device=pos.device)
    j = j + (j >= atom).to(j.dtype)  # skip i itself
    inside = j < last
    j = torch.where(inside, j, first)
    # The norm's gradient at 0 is NaN: squares of unused places are replaced before the root.
    square = (pos[j] - pos.unsqueeze(1)).square().sum(-1)
    r = torch.where(inside, square, torch.inf).sqrt()
    return Pairs(j, None, r)


def all_pairs(
    kernel: str, pos: Tensor, batch: Tensor, ptr: Tensor, max_atoms: int, num_edges: int
) -> Pairs:
    """All pairs inside each molecule, in the layout that a kernel takes.

    Args:
        kernel: ``"reference"``, ``"padded"`` or ``"fused"``.
        pos: positions in Å, ``[N, 3]``.
        batch: molecule of each atom, sorted, ``[N]``.
        ptr: first atom of each molecule and, last, N; ``[G + 1]``.
        max_atoms: atoms of the largest molecule.
        num_edges: sum of n (n - 1) over the molecules.
    """
    if kernel == "padded":
        return molecule_pairs(pos, batch, ptr, max_atoms)
    fused = kernel == "fused"
    pairs = molecule_edges(pos, batch, ptr, num_edges, fused, max_atoms)
    return pairs if fused else pairs._replace(pattern=None)


def laid_out(kernel: str, edges: Pairs, num_atoms: int) -> Pairs:
    """Edges in the layout that a kernel takes.

    Args:
        kernel: ``"reference"``, ``"padded"`` or ``"fused"``.
        edges: edge layout, sorted by receiver.
        num_atoms: N.
    """
    if kernel == "padded":
        return pad_pairs(edges, num_atoms)
    if kernel == "fused":
        assert edges.i is not None
        return edges._replace(pattern=edge_pattern(edges.j, edges.i, num_atoms))
    return edges
