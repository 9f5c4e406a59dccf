"""Cells of packed structures and the neighbours in their images: positions that are learned from do
not move, so they are searched once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.ragged import rows_of
from hipnn_pyg.graph import image_shift, radius_graph_pbc

if TYPE_CHECKING:
    from hipnn_pyg.data.packed import PackedMolecules

AT_ONCE = 64
"""Structures that are searched in one go."""


class BatchCells(NamedTuple):
    """Cells of the structures of a mini-batch, and their edges once those were searched.

    Attributes:
        cell: lattice vectors in rows, Å, ``[G, 3, 3]``.
        pbc: periodic directions, ``[G, 3]``.
        edge_index: ``[2, E]``, row 0 = j (sends), row 1 = i (receives), sorted by i.
        shift: periodic-image vectors in Å, ``[E, 3]``: r_ij = pos_j - pos_i + shift.
    """

    cell: Tensor
    pbc: Tensor
    edge_index: Tensor | None = None
    shift: Tensor | None = None


class PackedEdges(NamedTuple):
    """The edges of M structures, one structure after the other, in 14 bytes each.

    Attributes:
        j: sending atom within its structure, int32, ``[E]``.
        i: receiving atom within its structure, ascending, int32, ``[E]``.
        images: lattice translations of j, int16, ``[E, 3]``.
        counts: edges of each structure, on the CPU, ``[M]``.
        start: first edge of each structure, ``[M]``.
        cutoff: that they are within (Å).
    """

    j: Tensor
    i: Tensor
    images: Tensor
    counts: Tensor
    start: Tensor
    cutoff: float

    @classmethod
    def search(cls, molecules: PackedMolecules, cutoff: float) -> PackedEdges:
        """All pairs within a cutoff.

        Args:
            molecules: packed, with cells.
            cutoff: R_cut in Å.

        Raises:
            StructureError: atoms more than 32,767 cells apart.
        """
        j, i, images, counts = [], [], [], []
        for index in torch.arange(len(molecules)).split(AT_ONCE):
            block = molecules.gather(index)
            assert block.cells is not None
            where = (block.cells.cell, block.cells.pbc, block.batch)
            edge_index, _, translations = radius_graph_pbc(
                block.pos, cutoff, *where, return_images=True
            )
            graph = block.batch[edge_index[1]]
            sender, receiver = edge_index - block.ptr[graph]
            j.append(sender.int())
            i.append(receiver.int())
            farthest = int(translations.abs().max()) if translations.numel() else 0
            if farthest > torch.iinfo(torch.int16).max:
                raise StructureError(
                    f"structures {int(index[0])} to {int(index[-1])} of the dataset: atoms stand "
                    f"{farthest} cells apart: wrap them into their cell"
                )
            images.append(translations.short())
            counts.append(torch.bincount(graph, minlength=index.numel()).cpu())
        number = torch.cat(counts)
        start = (number.cumsum(0) - number).to(molecules.device)
        return cls(torch.cat(j), torch.cat(i), torch.cat(images), number, start, cutoff)

    def to(self, device: torch.device | str) -> PackedEdges:
        """The same edges on another device (the counts stay on the CPU)."""
        j, i, images, start = (x.to(device) for x in (self.j, self.i, self.images, self.start))
        return PackedEdges(j, i, images, self.counts, start, self.cutoff)

    def subset(self, index: Tensor) -> PackedEdges:
        """Those of some structures, int64 on the CPU, ``[m]``; nothing is copied but indices."""
        start = self.start[index.to(self.start.device)]
        return self._replace(counts=self.counts[index], start=start)

    def gather(self, index: Tensor, first: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """``edge_index`` and ``shift`` of a mini-batch, as :class:`BatchCells` has them.

        Args:
            index: structures, int64 on the CPU, ``[G]``.
            first: first atom of each in the mini-batch, ``[G]``.
            cell: lattice vectors of each in rows, Å, ``[G, 3, 3]``.
        """
        _, graph, edge = rows_of(index, self.counts, self.start)
        edge_index = torch.stack((self.j[edge], self.i[edge])) + first[graph]
        return edge_index, image_shift(self.images[edge], cell, graph)


class PackedCells(NamedTuple):
    """Cells of M structures; those of molecules are 0, and not periodic.

    Attributes:
        cell: lattice vectors in rows, Å, ``[M, 3, 3]``.
        pbc: periodic directions, ``[M, 3]``.
        edges: the neighbours, once they were searched.
    """

    cell: Tensor
    pbc: Tensor
    edges: PackedEdges | None = None

    @classmethod
    def join(cls, found: Mapping[int, PackedCells], counts: Sequence[int]) -> PackedCells | None:
        """The cells of all items of a data set; None if no item has one.

        Args:
            found: those of some items, by number, on one device.
            counts: structures of each item.
        """
        if not found:
            return None
        some = next(iter(found.values()))
        each = [
            found.get(number, cls(some.cell.new_zeros(size, 3, 3), some.pbc.new_zeros(size, 3)))
            for number, size in enumerate(counts)
        ]
        return cls(torch.cat([one.cell for one in each]), torch.cat([one.pbc for one in each]))

    def to(self, device: torch.device | str) -> PackedCells:
        """The same cells on another device."""
        edges = None if self.edges is None else self.edges.to(device)
        return PackedCells(self.cell.to(device), self.pbc.to(device), edges)

    def subset(self, index: Tensor) -> PackedCells:
        """Those of some structures, int64 on the CPU, ``[m]``."""
        there = index.to(self.cell.device)
        edges = None if self.edges is None else self.edges.subset(index)
        return PackedCells(self.cell[there], self.pbc[there], edges)

    def gather(self, index: Tensor, first: Tensor, dtype: torch.dtype) -> BatchCells:
        """Those of a mini-batch.

        Args:
            index: structures, int64 on the CPU, ``[G]``.
            first: first atom of each in the mini-batch, ``[G]``.
            dtype: of its positions.
        """
        there = index.to(self.cell.device)
        cell, pbc = self.cell[there].to(dtype), self.pbc[there]
        if self.edges is None:
            return BatchCells(cell, pbc)
        return BatchCells(cell, pbc, *self.edges.gather(index, first, cell))


def cells_of(data: Data, num: int, number: int = 0) -> PackedCells | None:
    """``cell`` and ``pbc`` of some structures; None where nothing is periodic.

    Args:
        data: with ``cell [num, 3, 3]`` or ``[3 num, 3]`` in Å, rows are the lattice vectors, and
            ``pbc [num, 3]`` or ``[3 num]``; without ``pbc`` all directions are periodic.
        num: structures.
        number: of the first one, for messages.

    Raises:
        StructureError: no tensors, another shape, or periodic directions without a cell.
    """
    cell, pbc = data.get("cell"), data.get("pbc")
    what = f"structure {number} of the dataset"
    for name, value in (("cell", cell), ("pbc", pbc)):
        if value is not None and not isinstance(value, Tensor):
            raise StructureError(f"{what}: {name} is a {type(value).__name__}: give it as a tensor")
    if (cell is None and pbc is None) or (pbc is not None and not bool(pbc.any())):
        return None
    if cell is None:
        raise StructureError(
            f"{what} has pbc {pbc.tolist()} and no cell: give its lattice vectors in Å, or no pbc"
        )
    if cell.shape not in ((num, 3, 3), (3 * num, 3)):
        raise StructureError(
            f"{what} has a cell of shape {list(cell.shape)}: give [{num}, 3, 3] (Å, lattice "
            "vectors in rows)"
        )
    if pbc is None:
        pbc = torch.ones(num, 3, dtype=torch.bool, device=cell.device)
    if pbc.shape not in ((num, 3), (3 * num,)):
        raise StructureError(f"{what} has pbc of shape {list(pbc.shape)}: give [{num}, 3]")
    return PackedCells(cell.view(num, 3, 3), pbc.view(num, 3).bool())
