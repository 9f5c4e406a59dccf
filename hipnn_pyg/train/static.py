"""Mini-batches of fixed shape, drawn on the device: what a training step needs to be captured."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.data.packed import MoleculeBatch, PackedMolecules
from hipnn_pyg.graph import Pairs, molecule_pairs
from hipnn_pyg.graph.static import static_edges
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.ops import available
from hipnn_pyg.train.force_loss import (
    HIPNNForceLoss,
    component_sums,
    force_errors,
    terms_and_forces,
)
from hipnn_pyg.train.loss import HIPNNLoss, sums_of_terms

SPREADS = (2.0, 3.0)
"""Standard deviations above the mean size that the usual capacities have room for."""
ROUND = 16
"""Capacities are multiples of this: kernels take as many atoms at a time, all of one model."""


class Capacity(NamedTuple):
    """Room for a mini-batch.

    Attributes:
        atoms: A, more than there are in any mini-batch that uses it: the last one is padding.
        edges: E, pairs inside the molecules, each in both directions.
    """

    atoms: int
    edges: int


def capacities(counts: Tensor, batch_size: int) -> list[Capacity]:
    """The shapes that the mini-batches of a data set need, ascending.

    The sizes of random mini-batches of G molecules scatter by sqrt(G) times the molecules' standard
    deviation: the first capacity leaves out about one mini-batch in fifty, the second one in a
    thousand, the last one none.

    Args:
        counts: atoms of each molecule, ``[M]``.
        batch_size: G.
    """
    needed = []
    for sizes in (counts, counts * (counts - 1)):
        all_of_them = int(sizes.topk(batch_size).values.sum())
        mean, deviation = float(sizes.double().mean()), float(sizes.double().std(correction=0))
        room = (batch_size * mean + s * math.sqrt(batch_size) * deviation for s in SPREADS)
        needed.append([*(min(math.ceil(most), all_of_them) for most in room), all_of_them])
    rounded = (Capacity(_up(atoms + 1), _up(edges)) for atoms, edges in zip(*needed, strict=True))
    return list(dict.fromkeys(rounded))


def _up(size: int) -> int:
    return -(-size // ROUND) * ROUND


class StaticBatches:
    """The mini-batches of an epoch: written to the device once, then drawn there one by one.

    Args:
        molecules: to draw from, on the device.
        batch_size: molecules of a mini-batch, G.
        steps: mini-batches of an epoch.
        dtype: of the distances that are drawn; None for that of the positions.
        forces: whether to draw force labels, too.

    Attributes:
        capacities: the shapes that mini-batches are drawn in.
        step: number of the next mini-batch, ``[1]``.
    """

    def __init__(
        self,
        molecules: PackedMolecules,
        batch_size: int,
        steps: int,
        dtype: torch.dtype | None = None,
        forces: bool = False,
    ) -> None:
        device = molecules.device
        self.molecules = molecules
        self.batch_size = batch_size = min(batch_size, len(molecules))
        self.capacities = capacities(molecules.counts, batch_size)
        self.max_atoms = int(molecules.counts.max())
        self.counts = molecules.counts.to(device)
        self.order = torch.zeros(steps * batch_size, dtype=torch.long, device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.needed: list[int] = []
        self.dtype = molecules.pos.dtype if dtype is None else dtype
        self.forces = molecules.forces if forces else None
        self.by_kernels = device.type == "cuda" and not forces and not available("cuda")

    def begin(self, order: Tensor, step: int = 0) -> None:
        """Write the mini-batches of an epoch.

        Args:
            order: molecules in the order of the mini-batches, int64 on the CPU.
            step: the one to begin with.
        """
        self._write(self.order, order)
        self._size(step)

    def _write(self, order: Tensor, molecules: Tensor) -> None:
        """Molecules one after the other; -1 where the last mini-batch has fewer."""
        order[: molecules.numel()].copy_(molecules)
        order[molecules.numel() :].fill_(-1)

    def _size(self, step: int) -> None:
        """The capacity that each step of the order needs."""
        self.step.fill_(step)
        counts = torch.where(self.order < 0, 0, self.counts[self.order])
        counts = counts.unflatten(-1, (-1, self.batch_size))
        atoms, edges = counts.sum(-1), (counts * (counts - 1)).sum(-1)
        too_small = [(atoms >= room.atoms) | (edges > room.edges) for room in self.capacities]
        needed = torch.stack(too_small).sum(0)
        self.needed = (needed if needed.dim() == 1 else needed.amax(0)).tolist()

    def capacity_of(self, step: int) -> Capacity:
        """The smallest capacity that takes a mini-batch of the epoch."""
        return self.capacities[self.needed[step]]

    def draw(self, capacity: Capacity) -> MoleculeBatch:
        """The mini-batch number :attr:`step`; no shape and no Python number depends on it.

        Padding atoms stand behind the molecules, in a graph G of their own, of which ``ptr`` says
        that it is empty. Where the mini-batch has fewer than G molecules, the last ones have no
        atoms and the target 0.

        Args:
            capacity: that it fits into.

        Returns:
            Fields of fixed shape: ``z [A]``, ``pos [A, 3]``, ``batch [A]``, ``ptr [G + 2]``,
            ``target [G]`` and, if they are wanted, ``forces [A, 3]``, 0 on padding.
        """
        if self.by_kernels:
            return self._drawn_by_kernels(capacity)
        data, size = self.molecules, self.batch_size
        place = torch.arange(size, device=data.device)
        molecule = self.order[self.step * size + place]
        there = molecule >= 0
        molecule = molecule.clamp(min=0)
        last = torch.where(there, self.counts[molecule], 0).cumsum(0)
        ptr = torch.cat((torch.zeros_like(last[:1]), last, last[-1:]))
        atom = torch.arange(capacity.atoms, device=data.device)
        batch = torch.searchsorted(last, atom, right=True)  # G for padding
        # Padding copies the first atom of the mini-batch, whose species the model knows.
        start, real = data.start[torch.cat((molecule, molecule[:1]))], batch < size
        source = start[batch] + torch.where(real, atom - ptr[batch], 0)
        forces = self.forces
        if forces is not None:
            forces = torch.where(real.unsqueeze(1), forces[source], 0.0)
        return MoleculeBatch(
            data.z[source],
            data.pos[source],
            batch,
            ptr,
            self.max_atoms,
            capacity.edges,
            torch.where(there, data.target[molecule], 0.0),
            forces,
        )

    def _drawn_by_kernels(self, capacity: Capacity) -> MoleculeBatch:
        """The same in two launches, with the pairs."""
        from hipnn_pyg.ops import triton_step  # needs Triton

        data = self.molecules
        molecules = (data.z, data.pos, self.counts, data.start, data.target)
        sizes = (self.batch_size, self.max_atoms, *capacity, self.dtype)
        z, pos, batch, ptr, target, pattern, r = triton_step.draw(
            self.order, self.step, molecules, *sizes
        )
        pairs = Pairs(pattern.j, pattern.i, r, pattern)
        place = (batch, ptr, self.max_atoms, capacity.edges)
        return MoleculeBatch(z, pos, *place, target, pairs=pairs)


class StaticLoss(HIPNNLoss):
    """:class:`HIPNNLoss` that also takes the mini-batches of :class:`StaticBatches`.

    Padding atoms have no pairs and no energies; molecules without atoms have no error, and are not
    counted.
    """

    def sums(self, batch: MoleculeBatch) -> Tensor:
        """Sums over the molecules, as :func:`~hipnn_pyg.train.loss.error_sums` gives them."""
        if not _is_padded(batch):
            return super().sums(batch)
        batch = _with_pairs(self.model, self.kernel, batch)
        assert batch.pairs is not None
        terms, _ = self.model.atom_terms(self.model.species_index(batch.z), batch.pairs)
        return _sums_of_terms(terms, batch)


class StaticForceLoss(HIPNNForceLoss):
    """:class:`HIPNNForceLoss`, without stress, that takes them, too: padding has no forces."""

    def sums(self, batch: MoleculeBatch) -> Tensor:
        """Sums over the molecules and their atoms, as those of :class:`HIPNNForceLoss`."""
        if not _is_padded(batch):
            return super().sums(batch)
        batch = _with_pairs(self.model, self.kernel, batch)
        terms, forces, _ = terms_and_forces(self.model, self.kernel, batch)
        errors, count = force_errors(forces, batch), 3 * batch.ptr[-1]
        return torch.cat((_sums_of_terms(terms, batch), component_sums(errors, count)))


def _is_padded(batch: MoleculeBatch) -> bool:
    return batch.ptr.size(0) == batch.target.size(0) + 2


def _with_pairs(model: HIPNN, kernel: str, batch: MoleculeBatch) -> MoleculeBatch:
    """The same with all pairs inside the molecules, in the layout that a kernel takes."""
    real = (batch.batch < batch.target.size(0)).unsqueeze(1)
    pos = torch.where(real, batch.pos, 0.0).to(model.blocks[0].interaction.V.dtype)
    if kernel == "padded":
        pairs = molecule_pairs(pos, batch.batch, batch.ptr, batch.max_atoms)
    else:
        pairs = static_edges(pos, batch.batch, batch.ptr, batch.num_edges)
        pairs = pairs if kernel == "fused" else pairs._replace(pattern=None)
    return batch._replace(pos=pos, pairs=pairs)


def _sums_of_terms(terms: Tensor, batch: MoleculeBatch) -> Tensor:
    """:func:`~hipnn_pyg.train.loss.sums_of_terms` of the molecules that have atoms."""
    real = (batch.batch < batch.target.size(0)).unsqueeze(1)
    target = torch.cat((batch.target, torch.zeros_like(batch.target[:1])))
    sums = sums_of_terms(torch.where(real, terms, 0.0), batch._replace(target=target))
    count = (batch.ptr.diff() > 0).sum()
    return torch.cat((sums[:3], count.to(sums.dtype).view(1)))
