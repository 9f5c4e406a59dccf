"""Molecules packed into a few long tensors that live on the device: mini-batches by indexing.

Collating a list of ``Data`` objects costs more than a training step; indexing costs almost nothing.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import RandomSampler, SequentialSampler, Subset
from torch_geometric.data import Batch, Data, InMemoryDataset
from torch_geometric.datasets import MD17
from torch_geometric.loader import DataLoader

from hipnn_pyg.checks import (
    HIPNNWarning,
    StructureError,
    check_distances,
    check_graphs,
    check_shapes,
    check_targets,
    warn_unlikely_unit,
)
from hipnn_pyg.data.forces import ForceLabels, check_forces
from hipnn_pyg.data.md17 import md17_energies
from hipnn_pyg.data.periodic import BatchCells, PackedCells, PackedEdges, cells_of
from hipnn_pyg.data.ragged import rows_of
from hipnn_pyg.data.stress import StressLabels, check_stress
from hipnn_pyg.data.targets import Target
from hipnn_pyg.data.unavailable import DatasetUnavailableError
from hipnn_pyg.graph import Pairs, edge_distances, radius_graph, radius_graph_pbc
from hipnn_pyg.graph.lattice import read_lattice
from hipnn_pyg.ops import cpu

_CHECK_BLOCK = 4096
"""Molecules whose distances are checked in one go."""


class MoleculeBatch(NamedTuple):
    """One mini-batch. G molecules, N atoms.

    Attributes:
        z: atomic numbers, ``[N]``.
        pos: positions in Å, ``[N, 3]``.
        batch: molecule of each atom, sorted, ``[N]``.
        ptr: first atom of each molecule and, last, N; ``[G + 1]``.
        max_atoms: atoms of the largest molecule.
        num_edges: sum of n (n - 1) over the molecules.
        target: energies in the target's unit, float64, ``[G]``.
        forces: in the target's unit per Å, ``[N, 3]``; None without force labels.
        pairs: all pairs inside the molecules, if whoever drew the mini-batch made them.
        cells: of periodic structures; None where nothing is periodic.
        stress: in the target's unit per Å^3, float64, ``[G, 3, 3]``, NaN where a structure has
            none; None without stress labels.
    """

    z: Tensor
    pos: Tensor
    batch: Tensor
    ptr: Tensor
    max_atoms: int
    num_edges: int
    target: Tensor
    forces: Tensor | None = None
    pairs: Pairs | None = None
    cells: BatchCells | None = None
    stress: Tensor | None = None


def edges_of(batch: MoleculeBatch) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """``edge_index`` and ``shift`` of periodic structures; None for molecules, whose pairs are all.

    Args:
        batch: of packed structures.

    Raises:
        StructureError: periodic structures whose neighbours were not searched.
    """
    cells = batch.cells
    if cells is None:
        return None, None
    if cells.edge_index is None or cells.shift is None:
        raise StructureError(
            "the neighbours of these periodic structures were not searched: take "
            "molecules.with_edges(model.cutoff)"
        )
    return cells.edge_index, cells.shift


@dataclass(frozen=True)
class PackedMolecules:
    """All molecules of a data set in concatenated form.

    Attributes:
        z: atomic numbers of all atoms, ``[A]``.
        pos: positions in Å, ``[A, 3]``.
        counts: atoms per molecule, on the CPU, ``[M]``.
        target: energies in the target's unit, float64, ``[M]``.
        start: first atom of each molecule, where the atoms are, ``[M]``.
        spec: name, unit and place of the target.
        forces: in the target's unit per Å, ``[A, 3]``; None without force labels.
        force_labels: what the force labels are called.
        cells: of periodic structures; None where nothing is periodic.
        stress: in the target's unit per Å^3, float64, ``[M, 3, 3]``, NaN where a structure has
            none; None without stress labels.
        stress_labels: what the stress labels are called.
    """

    z: Tensor
    pos: Tensor
    counts: Tensor
    target: Tensor
    start: Tensor
    spec: Target
    forces: Tensor | None = None
    force_labels: ForceLabels | None = None
    cells: PackedCells | None = None
    stress: Tensor | None = None
    stress_labels: StressLabels | None = None

    @classmethod
    def pack(
        cls,
        source: Any,
        target: Target,
        validate: bool = True,
        forces: ForceLabels | None = None,
        stress: StressLabels | None = None,
    ) -> PackedMolecules:
        """Pack a PyG dataset, a list of ``Data``, one ``Data`` or ``Batch``, or a ``DataLoader``.

        Packed molecules, also those of a :class:`PackedLoader`, stay as they are. An
        ``InMemoryDataset`` without transform is only re-indexed; of a ``DataLoader`` over a dataset
        the dataset is taken, in its own order. A sampler other than torch's ``SequentialSampler``
        and ``RandomSampler``, which draw from all of it, is asked once for what it draws. The
        energies of PyG's ``MD17``, which it stores as float32, are read again from the raw file in
        float64.

        Args:
            source: where ``z``, ``pos`` and the target are.
            target: which number is learned.
            validate: check every molecule (:mod:`hipnn_pyg.checks`).
            forces: the force labels and their unit; None to leave forces alone.
            stress: the stress labels and their unit, of structures that have any; None to leave
                stress alone.

        Raises:
            StructureError: no molecules, or a bad one.
            KeyError: no tensor where the target or the forces should be.
            IndexError: a table without the target's column.
            ValueError: not one value of the target for each molecule; forces or stress beside
                energies of unknown unit; molecules that were packed with another target, or
                without such labels.
        """
        if isinstance(source, PackedLoader):
            source = source.molecules
        if isinstance(source, PackedMolecules):
            if source.spec != target:
                raise ValueError(
                    f"these molecules were packed with {source.spec}, not {target}: name the "
                    "former, or pack the source anew"
                )
            for labels, own, what in (
                (forces, source.forces, "forces"),
                (stress, source.stress, "stress"),
            ):
                if labels is not None and own is None:
                    raise ValueError(
                        f"these molecules were packed without {what}: pack the source anew"
                    )
            return source
        if isinstance(source, Data):
            source = [source]
        if isinstance(source, DataLoader):
            source = drawn_from(source)
        source = _indexed(source)
        if isinstance(source, InMemoryDataset) and _gives_what_it_stores(source):
            packed = cls._of_in_memory(source, target, forces, stress)
        else:
            packed = cls._of_items(source, target, forces, stress)
        rounded = isinstance(source, MD17) and source._data.energy.dtype != torch.float64
        if rounded and target.key == "energy":
            packed = replace(packed, target=_float64_energies(source, packed.target))
        if validate:
            packed.check()
        return packed

    @classmethod
    def _of_in_memory(
        cls,
        dataset: InMemoryDataset,
        target: Target,
        labels: ForceLabels | None,
        of_stress: StressLabels | None,
    ) -> PackedMolecules:
        if not len(dataset):
            raise StructureError("the dataset holds no molecules: give at least one")
        stored = dataset._data
        slices = dataset.slices or {}
        if {"z", "pos"} <= slices.keys():
            _check_slices(slices["z"].diff(), slices["pos"].diff())
        check_shapes(stored.get("z"), stored.get("pos"))
        counts = slices["pos"].diff() if slices else torch.tensor([len(stored.pos)])
        whole = Data(batch=torch.arange(len(counts)))
        whole[target.key] = target.stored(stored)
        energies = target.select(whole).double()
        start = (counts.cumsum(0) - counts).to(stored.pos.device)
        forces = None
        if labels is not None:
            forces = labels.select(stored) * labels.factor(target.unit)
        stress = None
        if of_stress is not None:
            stress = of_stress.select(stored, len(counts)) * of_stress.factor(target.unit)
        packed = cls(
            z=stored.z,
            pos=stored.pos,
            counts=counts,
            target=energies,
            start=start,
            spec=target,
            forces=forces,
            force_labels=labels,
            cells=cells_of(stored, len(counts)),
            stress=stress,
            stress_labels=of_stress,
        )
        indices = torch.as_tensor(list(dataset.indices()))
        everything = len(indices) == len(counts) and bool((indices.diff() == 1).all())
        return packed if everything else packed.subset(indices)

    @classmethod
    def _of_items(
        cls,
        source: Iterable[Data],
        target: Target,
        labels: ForceLabels | None,
        of_stress: StressLabels | None,
    ) -> PackedMolecules:
        z, pos, counts, energies, forces, stress = [], [], [], [], [], []
        cells: dict[int, PackedCells] = {}
        for number, item in enumerate(source):
            try:
                check_shapes(getattr(item, "z", None), getattr(item, "pos", None))
            except StructureError as error:
                raise StructureError(f"item {number} of the dataset: {error}") from None
            z.append(item.z)
            pos.append(item.pos)
            sizes = torch.tensor([item.num_nodes])
            if item.batch is not None:
                check_graphs(item.z, item.pos, item.batch)
                sizes = item.batch.bincount().cpu()
            counts.append(sizes)
            if (own := cells_of(item, len(counts[-1]), len(counts) - 1)) is not None:
                cells[len(counts) - 1] = own
            energies.append(target.select(item).double())
            if labels is not None:
                forces.append(labels.select(item) * labels.factor(target.unit))
            if of_stress is not None:
                found = of_stress.select(item, len(counts[-1]))
                stress.append(found * of_stress.factor(target.unit))
        if not z:
            raise StructureError("the dataset holds no molecules: give at least one")
        sizes = torch.cat(counts)
        return cls(
            z=torch.cat(z),
            pos=torch.cat(pos),
            counts=sizes,
            target=torch.cat(energies),
            start=(sizes.cumsum(0) - sizes).to(pos[0].device),
            spec=target,
            forces=torch.cat(forces) if forces else None,
            force_labels=labels,
            cells=PackedCells.join(cells, [len(one) for one in counts]),
            stress=torch.cat(stress) if stress else None,
            stress_labels=of_stress,
        )

    @functools.cached_property
    def sha256(self) -> str:
        """Of the molecules in their order: sizes, elements, positions, target, forces, cells,
        stress."""
        atoms = self.atoms
        parts = [self.counts, self.z[atoms], self.pos[atoms], self.target]
        parts += [] if self.forces is None else [self.forces[atoms]]
        parts += [] if self.cells is None else [self.cells.cell, self.cells.pbc]
        parts += [] if self.stress is None else [self.stress]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def geometries_sha256(self) -> str:
        """The same of sizes, elements, positions and cells alone, whatever the labels."""
        bare = replace(self, target=self.target[:0], forces=None, stress=None)
        return bare.sha256

    def check(self) -> None:
        """Check every molecule; raises :class:`~hipnn_pyg.checks.StructureError`."""
        if not bool((self.counts > 0).all()):
            empty = int((self.counts == 0).nonzero()[0])
            raise StructureError(f"molecule {empty} of the dataset has no atoms: leave it out")
        check_targets(self.target, len(self))
        if self.cells is not None:
            read_lattice(self.cells.cell, self.cells.pbc, len(self), self.pos)
        if self.stress is not None:
            check_stress(self.stress, None if self.cells is None else self.cells.pbc)
        for molecules in torch.arange(len(self)).split(_CHECK_BLOCK):
            block = self.gather(molecules)
            if block.forces is not None:
                check_forces(block.forces, block.batch, molecules)
            finite = torch.isfinite(block.pos).all(dim=1)
            nearest = _nearest_distances(block) if bool(finite.all()) else finite.double()
            number = molecules[block.batch[nearest.argmin()].cpu()]  # the worst one
            worst = self.gather(number.reshape(1))
            try:
                check_graphs(worst.z, worst.pos)
                check_distances(nearest)
            except StructureError as error:
                raise StructureError(f"molecule {number} of the dataset: {error}") from None
            if int(molecules[0]) == 0:
                warn_unlikely_unit(block.z, nearest, block.batch, "the dataset")

    def __len__(self) -> int:
        return self.counts.numel()

    @property
    def device(self) -> torch.device:
        """Where the atoms are."""
        return self.z.device

    @property
    def atoms(self) -> Tensor:
        """Where the atoms of these molecules stand in ``z``, ``pos`` and ``forces``, ``[N]``."""
        return rows_of(torch.arange(len(self)), self.counts, self.start)[2]

    def atomic_numbers(self) -> Tensor:
        """Z of the atoms of these molecules, ``[N]``; of a subset :attr:`z` holds others, too."""
        return self.z[self.atoms]

    def to(self, device: torch.device | str) -> PackedMolecules:
        """The same molecules on another device (the counts stay on the CPU)."""
        return replace(
            self,
            z=self.z.to(device),
            pos=self.pos.to(device),
            target=self.target.to(device),
            start=self.start.to(device),
            forces=None if self.forces is None else self.forces.to(device),
            cells=None if self.cells is None else self.cells.to(device),
            stress=None if self.stress is None else self.stress.to(device),
        )

    def subset(self, index: Tensor) -> PackedMolecules:
        """Some of the molecules; nothing but the index lists is copied.

        Args:
            index: molecules, int64, ``[m]``, in any order.
        """
        index = index.cpu()
        there = index.to(self.device)
        return replace(
            self,
            counts=self.counts[index],
            target=self.target[there],
            start=self.start[there],
            cells=None if self.cells is None else self.cells.subset(index),
            stress=None if self.stress is None else self.stress[there],
        )

    def with_edges(self, cutoff: float) -> PackedMolecules:
        """The same with the neighbours in periodic structures, which are searched once.

        Molecules without a cell need none: all pairs inside them are neighbours.

        Args:
            cutoff: R_cut of the model in Å.
        """
        cells = self.cells
        if cells is None or (cells.edges is not None and cells.edges.cutoff == cutoff):
            return self
        found = PackedEdges.search(self, cutoff)
        return replace(self, cells=cells._replace(edges=found))

    @functools.cached_property
    def _plain(self) -> bool:
        """Whether a kernel takes it: molecules with energies alone, on a CPU."""
        whole = (self.counts, self.start, self.z, self.pos, self.target)
        return (
            self.forces is None
            and self.cells is None
            and self.stress is None
            and self.pos.dtype in cpu.SUFFIX
            and self.z.dtype == torch.int64
            and self.z.dim() == 1
            and self.pos.shape == (self.z.size(0), 3)
            and self.target.dtype == torch.float64
            and all(t.device.type == "cpu" and t.is_contiguous() for t in whole)
            and not self.pos.requires_grad
            and bool((self.start + self.counts <= self.z.size(0)).all())
        )

    def gather(self, index: Tensor) -> MoleculeBatch:
        """The mini-batch of some molecules.

        Args:
            index: molecules, int64 on the CPU, ``[G]``.
        """
        whole = index.dtype == torch.int64 and index.dim() == 1 and index.numel() > 0
        if whole and self._plain and cpu.loaded():
            rows = (self.counts, self.start)
            found = cpu.gather(index.contiguous(), rows, self.z, self.pos, self.target)
            if found is not None:
                return MoleculeBatch(*found)
        counts = self.counts[index]
        ptr, batch, atoms = rows_of(index, self.counts, self.start)
        there, cells = index.to(self.device), None
        if self.cells is not None:
            cells = self.cells.gather(index, ptr[:-1], self.pos.dtype)
        return MoleculeBatch(
            z=self.z[atoms],
            pos=self.pos[atoms],
            batch=batch,
            ptr=ptr,
            max_atoms=int(counts.max()),
            num_edges=int((counts * (counts - 1)).sum()),
            target=self.target[there],
            forces=None if self.forces is None else self.forces[atoms],
            cells=cells,
            stress=None if self.stress is None else self.stress[there],
        )


def _check_slices(numbers: Tensor, positions: Tensor) -> None:
    """As many atomic numbers as positions in each molecule."""
    if not torch.equal(numbers, positions):
        odd = int((numbers != positions).nonzero()[0])
        raise StructureError(
            f"molecule {odd} of the dataset has {int(numbers[odd])} atomic numbers and "
            f"{int(positions[odd])} positions: repair it, or pack a list of Data without it"
        )


def _nearest_distances(block: MoleculeBatch) -> Tensor:
    """Distance of each atom to its nearest neighbour in Å, ``[N]``; inf if beyond 3 Å."""
    shift = None
    if block.cells is None:
        edge_index = radius_graph(block.pos, 3.0, block.batch)
    else:
        where = (block.cells.cell, block.cells.pbc, block.batch)
        edge_index, shift = radius_graph_pbc(block.pos, 3.0, *where)
    nearest = block.pos.new_full((block.pos.size(0),), torch.inf)
    r = edge_distances(block.pos, edge_index, shift)
    return nearest.scatter_reduce(0, edge_index[1], r, "amin")


def _indexed(source: Any) -> Any:
    """PyG's own part of a dataset instead of torch's ``Subset`` (``random_split``) of it."""
    if not isinstance(source, Subset):
        return source
    whole = _indexed(source.dataset)
    return whole[list(source.indices)] if isinstance(whole, InMemoryDataset) else source


def drawn_from(loader: DataLoader) -> Any:
    """What a loader draws from: the dataset, or the part of it that a sampler names.

    Args:
        loader: of ``Data``; a sampler other than torch's ``SequentialSampler`` and
            ``RandomSampler`` of the whole dataset is asked once.
    """
    sampler, batches = loader.sampler, loader.batch_sampler
    if batches is not None and getattr(batches, "sampler", None) is not sampler:
        return Subset(loader.dataset, [int(index) for batch in batches for index in batch])
    everything = isinstance(sampler, (SequentialSampler, RandomSampler))
    if everything and sampler.data_source is loader.dataset:
        return loader.dataset
    return Subset(loader.dataset, [int(index) for index in sampler])


def _gives_what_it_stores(dataset: InMemoryDataset) -> bool:
    """Whether indexing gives the stored molecules, and nothing that a class or transform makes."""
    kind = type(dataset)
    own = kind.get is InMemoryDataset.get and kind.__getitem__ is InMemoryDataset.__getitem__
    return own and dataset.transform is None


def _float64_energies(dataset: MD17, stored: Tensor) -> Tensor:
    """Energies of PyG's MD17 without the rounding of its float32 (0.008 to 0.03 kcal/mol)."""
    try:
        energies = md17_energies(dataset)
        if torch.equal(energies.float(), stored.float()):
            return energies
        return stored  # a transform made others of them
    except (DatasetUnavailableError, ValueError) as error:
        warnings.warn(f"MD17 energies stay float32: {error}", HIPNNWarning, stacklevel=3)
        return stored


class PackedLoader:
    """Iterate mini-batches of packed molecules, with the fields of PyG's ``DataLoader`` batches.

    Each item is a ``Batch`` with ``z``, ``pos``, ``batch``, ``ptr``, the target under its own key
    (float64, ``[G]``), likewise the forces if there are any (target's unit per Å, ``[N, 3]``), and
    ``cell [G, 3, 3]`` and ``pbc [G, 3]`` of periodic structures, and their stress if there are
    labels (target's unit per Å^3, ``[G, 3, 3]``, NaN where a structure has none).

    Args:
        molecules: the packed molecules.
        batch_size: molecules per mini-batch.
        shuffle: a new random partition every epoch.
        seed: of the shuffling; epoch e always has the partition that (seed, e) gives.

    Raises:
        ValueError: a batch size below 1.
    """

    def __init__(
        self, molecules: PackedMolecules, batch_size: int, shuffle: bool = False, seed: int = 0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.molecules = molecules
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.molecules) // self.batch_size)

    def partition(self, epoch: int) -> tuple[Tensor, ...]:
        """Indices of each mini-batch of an epoch; the last one may be smaller."""
        num = len(self.molecules)
        if not num:
            return ()
        order = random_order(num, self.seed, epoch) if self.shuffle else torch.arange(num)
        return order.split(self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        batches = self.partition(self.epoch)
        self.epoch += 1
        for index in batches:
            item = self.molecules.gather(index)
            data = Batch(z=item.z, pos=item.pos, batch=item.batch, ptr=item.ptr)
            data[self.molecules.spec.key] = item.target
            if self.molecules.force_labels is not None:
                data[self.molecules.force_labels.key] = item.forces
            if item.cells is not None:
                data.cell, data.pbc = item.cells.cell, item.cells.pbc
            if self.molecules.stress_labels is not None:
                data[self.molecules.stress_labels.key] = item.stress
            yield data


def random_order(num: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``range(num)``, a function of its arguments alone, ``[num]``.

    Args:
        num: number of molecules.
        seed: of the run.
        epoch: which permutation.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(num, generator=generator)
