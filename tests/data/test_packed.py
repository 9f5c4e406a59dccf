"""Packed molecules: the mini-batches of PyG's DataLoader, drawn by index, checked on entry."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import ase.build
import pytest
import torch
from in_memory import InMemory
from torch import Tensor
from torch.utils.data import BatchSampler, SequentialSampler, SubsetRandomSampler
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from hipnn_pyg import HIPNNWarning, PackedLoader, PackedMolecules, StructureError, Target
from hipnn_pyg.data.forces import ASE_FORCES, MD17_FORCES
from hipnn_pyg.data.stress import ASE_STRESS
from hipnn_pyg.ops import cpu

ENERGY = Target("energy", "eV", "energy")


@pytest.fixture
def items() -> list[Data]:
    """11 shaken molecules of one to nine atoms."""
    found = []
    for number in range(11):
        atoms = ase.build.molecule(("CH4", "H2O", "CH3CH2OH", "H", "NH3")[number % 5])
        atoms.rattle(0.05, seed=number)
        found.append(
            Data(
                z=torch.tensor(atoms.numbers),
                pos=torch.tensor(atoms.positions).float(),
                energy=torch.tensor([-10.0 * number - 0.1], dtype=torch.float64),
            )
        )
    return found


def replaced(items: list[Data], number: int, **fields: Tensor) -> list[Data]:
    changed = [item.clone() for item in items]
    changed[number].update(fields)
    return changed


SOURCES = {
    "list": lambda items: items,
    "memory": InMemory,
    "transform": lambda items: InMemory(items, transform=lambda data: data),
    "loader": lambda items: DataLoader(items, batch_size=4, shuffle=True),
    "batches": lambda items: list(DataLoader(items, batch_size=4)),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_same_fields_as_pygs_loader(items: list[Data], source: Callable, batch_size: int) -> None:
    ours = PackedLoader(PackedMolecules.pack(source(items), ENERGY), batch_size)
    theirs = DataLoader(items, batch_size=batch_size)
    assert len(ours) == len(theirs)
    for first, second in zip(ours, theirs, strict=True):
        for name in ("z", "pos", "batch", "ptr", "energy"):
            assert torch.equal(first[name], second[name]), name
            assert first[name].dtype == second[name].dtype, name
        assert first.num_nodes == second.num_nodes and first.num_graphs == second.num_graphs


def test_target_comes_under_its_own_key(items: list[Data]) -> None:
    for number, item in enumerate(items):
        item.y = torch.zeros(1, 19)
        item.y[0, 12] = float(number)
    loader = PackedLoader(PackedMolecules.pack(InMemory(items), Target("U0", "eV", "y", 12)), 4)
    batches = list(loader)
    assert torch.cat([data.y for data in batches]).tolist() == list(map(float, range(11)))
    assert batches[0].y.dtype == torch.float64 and "energy" not in batches[0]


@pytest.mark.parametrize(
    "choice", [[3], [0, 1, 2], [10, 2, 5, 3], [4, 4, 1]], ids=["one", "first", "any", "repeated"]
)
def test_subset_and_gather(items: list[Data], choice: list[int]) -> None:
    packed = PackedMolecules.pack(items, ENERGY)
    index = torch.tensor(choice)
    expected = next(iter(DataLoader([items[k] for k in choice], batch_size=50)))
    part = packed.subset(index)
    assert len(part) == len(choice) and len(packed) == 11
    for found in (packed.gather(index), part.gather(torch.arange(len(choice)))):
        for name in ("z", "pos", "batch", "ptr"):
            assert torch.equal(getattr(found, name), expected[name])
        assert torch.equal(found.target, expected.energy)
        assert found.max_atoms == int(expected.ptr.diff().max())
    assert part.pos is packed.pos  # nothing but the index lists is copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_draws_the_same(
    items: list[Data], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for item in items:
        item.pos = item.pos.to(dtype)
    packed = PackedMolecules.pack(items, ENERGY)
    packed = packed.subset(torch.tensor([9, 1, 4, 4, 0]))
    choices = [torch.tensor(c) for c in ([4, 0, 0, 3], [2], [-1, 1])] + [torch.arange(5)[::2]]
    drawn = {}
    for loaded in (True, False):
        monkeypatch.setattr(cpu, "loaded", lambda loaded=loaded: loaded)
        drawn[loaded] = [packed.gather(index) for index in choices]
        with pytest.raises(IndexError, match="index 5 is out of bounds"):
            packed.gather(torch.tensor([0, 5]))
    for fast, slow in zip(*drawn.values(), strict=True):
        assert fast[4:6] == slow[4:6]  # atoms of the largest, number of pairs
        for one, other in zip(fast, slow, strict=True):
            if isinstance(one, Tensor):
                assert torch.equal(one, other) and one.dtype == other.dtype
    monkeypatch.setattr(cpu, "gather", None)  # control: it was asked
    monkeypatch.setattr(cpu, "loaded", lambda: True)
    with pytest.raises(TypeError, match="not callable"):
        packed.gather(choices[0])


def test_subset_of_a_dataset_is_followed(items: list[Data]) -> None:
    order = [7, 0, 9]
    whole = InMemory(items)
    for part in (whole[order], torch.utils.data.Subset(whole, order), whole[torch.tensor(order)]):
        packed = PackedMolecules.pack(part, ENERGY)
        assert packed.target.tolist() == [items[k].energy.item() for k in order]
        assert torch.equal(packed.gather(torch.tensor([2])).pos, items[9].pos)
    nested = (
        PackedMolecules.pack(whole, ENERGY)
        .subset(torch.tensor([5, 7, 9]))
        .subset(torch.tensor([2, 0]))
    )
    assert torch.equal(nested.gather(torch.tensor([0])).pos, items[9].pos)


def test_moving_keeps_the_counts_on_the_cpu(items: list[Data]) -> None:
    """On the "meta" device nothing can be read back: drawing batches needs no synchronisation."""
    packed = PackedMolecules.pack(items, ENERGY)
    moved = packed.to("meta")
    assert moved.device.type == "meta" and packed.device.type == "cpu"
    assert moved.counts.device.type == "cpu"
    batch = moved.gather(torch.tensor([0, 2]))
    assert batch.pos.shape == (5 + 9, 3) and batch.pos.device.type == "meta"
    assert batch.target.device.type == "meta" and batch.max_atoms == 9
    assert torch.equal(packed.to("cpu").gather(torch.tensor([2])).pos, items[2].pos)


@pytest.mark.parametrize("source", [list, InMemory], ids=["list", "memory"])
def test_data_on_a_device_is_packed_there(items: list[Data], source: Callable) -> None:
    moved = [item.to("meta") for item in items]
    packed = PackedMolecules.pack(source(moved), ENERGY, validate=False)
    assert packed.counts.device.type == "cpu"
    assert packed.start.device.type == packed.device.type == "meta"
    batch = packed.subset(torch.tensor([0, 2])).gather(torch.tensor([1]))
    assert batch.pos.shape == (9, 3) and batch.ptr.device.type == batch.pos.device.type == "meta"


def test_packing_twice_changes_nothing(items: list[Data]) -> None:
    """Nor does a loader of packed molecules, whose forces have the target's unit already."""
    for item in items:
        item.force = torch.ones_like(item.pos)
    packed = PackedMolecules.pack(items, ENERGY, forces=MD17_FORCES)
    assert packed.forces is not None and float(packed.forces.max()) < 0.1  # eV/Å
    loader = PackedLoader(packed, 4, shuffle=True)
    for source in (packed, loader):
        assert PackedMolecules.pack(source, ENERGY, forces=MD17_FORCES) is packed
    assert loader.epoch == 0  # nothing was drawn


def test_one_molecule_in_memory(items: list[Data]) -> None:
    packed = PackedMolecules.pack(InMemory(items[:1]), ENERGY)
    assert len(packed) == 1 and torch.equal(packed.gather(torch.tensor([0])).pos, items[0].pos)


# -- partitions --------------------------------------------------------------------------------


def test_partition_is_a_function_of_seed_and_epoch(items: list[Data]) -> None:
    molecules = PackedMolecules.pack(items, ENERGY).subset(torch.arange(100) % 11)

    def parts(seed: int, epoch: int, shuffle: bool = True) -> tuple[Tensor, ...]:
        return PackedLoader(molecules, 30, shuffle, seed).partition(epoch)

    def flat(seed: int, epoch: int) -> list[int]:
        return torch.cat(parts(seed, epoch)).tolist()

    torch.manual_seed(0)
    first = flat(3, 5)
    torch.manual_seed(99)  # the global generator has no say
    assert flat(3, 5) == first
    assert sorted(first) == list(range(100))
    different = [flat(3, 6), flat(4, 5), flat(5, 3)]
    assert first not in different and len(set(map(tuple, different))) == 3
    assert [len(part) for part in parts(3, 5)] == [30, 30, 30, 10]
    assert torch.cat(parts(3, 5, shuffle=False)).tolist() == list(range(100))
    assert sorted(flat(2**80 + 1, 5)) == list(range(100))  # any seed


def energies(loader: PackedLoader) -> list[float]:
    return torch.cat([data.energy for data in loader]).tolist()


def test_loader_shuffles_anew_every_epoch_reproducibly(items: list[Data]) -> None:
    packed = PackedMolecules.pack(items, ENERGY)
    first, again = (PackedLoader(packed, 4, shuffle=True, seed=7) for _ in range(2))
    epochs = [energies(first) for _ in range(3)]
    assert [energies(again) for _ in range(3)] == epochs
    assert len(set(map(tuple, epochs))) == 3
    assert all(sorted(epoch) == sorted(packed.target.tolist()) for epoch in epochs)
    again.epoch = 1  # resuming at an epoch
    assert energies(again) == epochs[1]
    assert energies(PackedLoader(packed, 4, shuffle=True, seed=8)) != epochs[0]
    plain = PackedLoader(packed, 4)
    assert energies(plain) == energies(plain) == packed.target.tolist()


def test_every_field_follows_the_shuffling(items: list[Data]) -> None:
    packed = PackedMolecules.pack(items, ENERGY)
    for data in PackedLoader(packed, 4, shuffle=True, seed=1):
        for k, energy in enumerate(data.energy.tolist()):
            original = items[round(-(energy + 0.1) / 10)]
            assert torch.equal(data.pos[data.batch == k], original.pos)
            assert torch.equal(data.z[data.ptr[k] : data.ptr[k + 1]], original.z)


# -- bad input ---------------------------------------------------------------------------------

NOWHERE = torch.empty(0, 3)
NOT_FINITE = "molecule 1 of the dataset: position of atom 1 is .* not finite"


@pytest.mark.parametrize("source", [list, InMemory], ids=["list", "memory"])
@pytest.mark.parametrize(
    ("number", "fields", "message"),
    [
        (3, {"energy": torch.tensor([torch.nan])}, "target of molecule 3 is nan"),
        (9, {"energy": torch.tensor([-torch.inf])}, "target of molecule 9 is -inf"),
        (1, {"pos": torch.tensor([[0, 0, 0], [torch.nan, 0, 0], [1, 0, 0]])}, NOT_FINITE),
        (1, {"pos": torch.tensor([[0, 0, 0], [0, 1.0, 0], [0, 1, 0]])}, "molecule 1 .*duplicate"),
        (3, {"z": torch.empty(0, dtype=torch.long), "pos": NOWHERE}, "molecule 3 .*no atoms"),
    ],
    ids=["nan_target", "inf_target", "nan_position", "duplicate_atom", "empty"],
)
def test_bad_molecules_are_named(
    items: list[Data], source: Callable, number: int, fields: dict[str, Tensor], message: str
) -> None:
    PackedMolecules.pack(source(items), ENERGY)  # control
    with pytest.raises(StructureError, match=message):
        PackedMolecules.pack(source(replaced(items, number, **fields)), ENERGY)


@pytest.mark.parametrize("source", [list, InMemory], ids=["list", "memory"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: {"z": item.z.new_ones(5)}, "1 of the dataset(: pos .* to match z| has 5 at)"),
        (lambda item: {"z": item.z.view(-1, 1)}, r"z must be integers of shape \[N\]"),
        (lambda item: {"pos": item.pos.repeat(1, 2)}, r"pos must be .* of shape \[\d+, 3\]"),
        (lambda item: {"z": None}, "z is None: give it as a tensor"),
    ],
    ids=["other_number", "table", "six_columns", "none"],
)
def test_atoms_that_do_not_match_their_positions(
    items: list[Data], source: Callable, change: Callable, message: str
) -> None:
    """Checked or not: they would shift the atoms of all molecules behind them."""
    broken = [item.clone().update(change(item)) for item in items[:2]]
    cpu.library()  # the kernel that gathers mini-batches believes what it is given
    for validate in (True, False):
        with pytest.raises(StructureError, match=message):
            PackedMolecules.pack(source(broken), ENERGY, validate)


def test_energies_of_another_dtype(items: list[Data]) -> None:
    """The kernel that gathers mini-batches takes float64 ones."""
    cpu.library()
    packed = PackedMolecules.pack(items, ENERGY)
    short = replace(packed, target=packed.target.float())
    index = torch.arange(11).repeat(50)
    assert torch.equal(short.gather(index).target, packed.gather(index).target.float())


def test_one_structure_is_a_data_set(items: list[Data]) -> None:
    for one, held in ((items[4], items[4:5]), (Batch.from_data_list(items), items)):
        packed = PackedMolecules.pack(one, ENERGY)
        assert packed.target.tolist() == [float(item.energy) for item in held]


def test_bad_molecules_that_were_left_out_do_not_matter(items: list[Data]) -> None:
    """The advice of the error can be followed: drop that molecule and pack the rest."""
    broken = replaced(items, 1, pos=torch.full((3, 3), torch.nan))
    rest = [number for number in range(11) if number != 1]
    packed = PackedMolecules.pack(InMemory(broken)[rest], ENERGY)
    assert packed.target.tolist() == [items[k].energy.item() for k in rest]


def test_validation_can_be_left_out(items: list[Data]) -> None:
    broken = replaced(items, 3, energy=torch.tensor([torch.nan]))
    packed = PackedMolecules.pack(broken, ENERGY, validate=False)
    assert bool(torch.isnan(packed.target[3]))
    with pytest.raises(StructureError, match="molecule 3"):
        packed.check()


@pytest.mark.parametrize("source", [list, InMemory], ids=["list", "memory"])
def test_no_molecules(items: list[Data], source: Callable) -> None:
    nothing = source(items)[:0]
    with pytest.raises(StructureError, match="no molecules"):
        PackedMolecules.pack(nothing, ENERGY)


def test_missing_target_is_named(items: list[Data]) -> None:
    for source in (items, InMemory(items)):
        with pytest.raises(KeyError, match="no tensor at data.forces; the data has .*'pos', 'z'"):
            PackedMolecules.pack(source, Target("forces", "eV", "forces"))


def test_an_empty_subset_has_no_batches(items: list[Data]) -> None:
    """For example a test set of size 0: an empty loop, as for an empty list."""
    packed = PackedMolecules.pack(items, ENERGY).subset(torch.empty(0, dtype=torch.long))
    for shuffle in (False, True):
        loader = PackedLoader(packed, 4, shuffle=shuffle)
        assert len(loader) == 0 and list(loader) == []


def test_batch_size_must_be_positive(items: list[Data]) -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        PackedLoader(PackedMolecules.pack(items, ENERGY), 0)


@pytest.mark.parametrize(("factor", "unit"), [(1 / 0.529177, "Bohr"), (0.1, "nm")])
def test_other_length_units_warn(items: list[Data], factor: float, unit: str) -> None:
    for item in items:
        item.pos *= factor
    with pytest.warns(HIPNNWarning, match=f"as if in {unit}.*multiply them by"):
        PackedMolecules.pack(items, ENERGY)


def test_angstrom_does_not_warn(items: list[Data]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(PackedMolecules.pack(items, ENERGY)) == 11
        hydrogens = [item for item in items if item.num_nodes == 1]  # no neighbours, no distance
        assert len(PackedMolecules.pack(hydrogens, ENERGY)) == 2


class Hundredfold(InMemory):
    """What indexing gives is not what is stored."""

    def get(self, index: int) -> Data:
        data = super().get(index)
        data.energy = 100 * data.energy
        return data


def test_what_a_dataset_gives_is_packed(items: list[Data]) -> None:
    packed = PackedMolecules.pack(Hundredfold(items), ENERGY)
    torch.testing.assert_close(packed.target, 100 * PackedMolecules.pack(items, ENERGY).target)


def test_what_a_sampler_draws_is_packed(items: list[Data]) -> None:
    chosen = [7, 2, 5]
    sampler = SubsetRandomSampler(chosen, torch.Generator().manual_seed(0))
    packed = PackedMolecules.pack(DataLoader(items, batch_size=2, sampler=sampler), ENERGY)
    whole = PackedMolecules.pack(items, ENERGY).target
    assert sorted(packed.target.tolist()) == sorted(whole[chosen].tolist())
    for source in (
        DataLoader(items, batch_sampler=BatchSampler(sampler, 2, drop_last=False)),
        DataLoader(items, batch_sampler=[[7, 2], [5]]),
        DataLoader(items[2:8], batch_size=2, sampler=SequentialSampler(range(3))),
    ):
        packed = PackedMolecules.pack(source, ENERGY)
        drawn = [item.energy.tolist() for item in source]
        assert sorted(packed.target.tolist()) == sorted(energy for part in drawn for energy in part)
    everything = PackedMolecules.pack(DataLoader(items, batch_size=2, shuffle=True), ENERGY)
    assert torch.equal(everything.target, whole)  # control


def test_atoms_of_a_subset(items: list[Data]) -> None:
    for item in items:
        item.force = torch.randn_like(item.pos)
    index = torch.tensor([7, 2, 2, 9])
    part = PackedMolecules.pack(items, ENERGY, forces=ASE_FORCES).subset(index)
    assert part.forces is not None
    batch = part.gather(torch.arange(4))
    for stored, drawn in ((part.z, batch.z), (part.pos, batch.pos), (part.forces, batch.forces)):
        assert torch.equal(stored[part.atoms], drawn)
        assert len(stored) > len(drawn)  # control: of a subset they hold others, too


def test_a_hash_tells_molecules_apart(items: list[Data]) -> None:
    packed = PackedMolecules.pack(items, ENERGY)
    assert PackedMolecules.pack(InMemory(items), ENERGY).sha256 == packed.sha256
    parts = packed.subset(torch.arange(11)), packed.subset(torch.arange(11).flip(0))
    assert parts[0].sha256 == packed.sha256 != parts[1].sha256
    for change in (
        {"pos": items[3].pos + 1e-4},
        {"energy": items[3].energy + 1e-9},
        {"z": torch.tensor([2])},
        {"cell": 20 * torch.eye(3).unsqueeze(0)},
    ):
        assert PackedMolecules.pack(replaced(items, 3, **change), ENERGY).sha256 != packed.sha256
    crystals = [
        PackedMolecules.pack(replaced(items, 3, cell=a * torch.eye(3).unsqueeze(0)), ENERGY)
        for a in (20, 20, 21)
    ]
    assert crystals[0].sha256 == crystals[1].sha256 != crystals[2].sha256
    open_ = {"cell": 20 * torch.eye(3).unsqueeze(0), "pbc": torch.tensor([[True, True, False]])}
    slab = PackedMolecules.pack(replaced(items, 3, **open_), ENERGY)
    assert slab.sha256 != crystals[0].sha256


def test_a_hash_tells_labels_apart(items: list[Data]) -> None:
    """Forces and stress count if they are asked for."""
    cell, along = 20 * torch.eye(3).unsqueeze(0), torch.eye(3, dtype=torch.float64).unsqueeze(0)
    for item in items:
        item.cell, item.force, item.stress = cell, 0.1 * torch.ones_like(item.pos), along.clone()

    def hashes(found: list[Data]) -> tuple[str, ...]:
        asked = ({}, {"forces": ASE_FORCES}, {"stress": ASE_STRESS})
        return tuple(PackedMolecules.pack(found, ENERGY, **labels).sha256 for labels in asked)

    before = hashes(items)
    assert len(set(before)) == 3
    changes = {"force": items[3].force + 1e-6, "stress": along + 1e-9}
    for place, (name, value) in enumerate(changes.items(), 1):
        after = hashes(replaced(items, 3, **{name: value}))
        assert [n for n in range(3) if after[n] != before[n]] == [place]
