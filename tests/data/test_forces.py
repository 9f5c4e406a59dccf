"""Force labels: one vector per atom in a declared unit, or a clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, Hartree, kcal, mol
from in_memory import InMemory
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from hipnn_pyg import PackedLoader, PackedMolecules
from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.forces import ASE_FORCES, FORCE_UNITS, MD17_FORCES, ForceLabels
from hipnn_pyg.data.sets import FileSet
from hipnn_pyg.data.targets import ASE_ENERGY, MD17_ENERGY, Target

SOURCES = {
    "list": lambda items: items,
    "memory": InMemory,
    "loader": lambda items: DataLoader(items, batch_size=2),
    "batches": lambda items: list(DataLoader(items, batch_size=2)),
}
EVERY_SOURCE = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


@pytest.fixture
def items() -> list[Data]:
    """Five molecules of one to nine atoms; every force tells its molecule and atom."""
    found = []
    for number, name in enumerate(("H2O", "CH3CH2OH", "H", "CH4", "NH3")):
        atoms = ase.build.molecule(name)
        force = torch.arange(3.0 * len(atoms), dtype=torch.float64).view(-1, 3) + 100 * number
        energy = torch.tensor([float(number)], dtype=torch.float64)
        pos = torch.tensor(atoms.positions, dtype=torch.float32)
        found.append(Data(z=torch.tensor(atoms.numbers), pos=pos, energy=energy, force=force))
    return found


@EVERY_SOURCE
def test_forces_stay_with_their_atoms(items: list[Data], source: Callable) -> None:
    packed = PackedMolecules.pack(source(items), ASE_ENERGY, forces=ASE_FORCES)
    assert torch.equal(packed.forces, torch.cat([item.force for item in items]))
    for choice in ([3], [4, 0, 2], [1, 1]):
        index = torch.tensor(choice)
        expected = torch.cat([items[k].force for k in choice])
        assert torch.equal(packed.gather(index).forces, expected)
        part = packed.subset(index).to("cpu")
        assert torch.equal(part.gather(torch.arange(len(choice))).forces, expected)


def test_loader_gives_forces_under_their_key(items: list[Data]) -> None:
    packed = PackedMolecules.pack(items, ASE_ENERGY, forces=ASE_FORCES)
    ours, theirs = next(iter(PackedLoader(packed, 5))), next(iter(DataLoader(items, 5)))
    assert torch.equal(ours.force, theirs.force)


def test_without_labels_there_are_none(items: list[Data]) -> None:
    packed = PackedMolecules.pack(items, ASE_ENERGY)
    assert packed.forces is None and packed.gather(torch.arange(2)).forces is None
    assert "force" not in next(iter(PackedLoader(packed, 5)))
    with pytest.raises(ValueError, match="packed without forces"):
        PackedMolecules.pack(packed, ASE_ENERGY, forces=ASE_FORCES)


@pytest.mark.parametrize(
    ("labels", "target", "factor"),
    [
        (ASE_FORCES, ASE_ENERGY, 1.0),
        (MD17_FORCES, MD17_ENERGY, 1.0),
        (MD17_FORCES, ASE_ENERGY, kcal / mol),
        (ASE_FORCES, MD17_ENERGY, mol / kcal),
        (ForceLabels("Hartree/Bohr"), ASE_ENERGY, Hartree / Bohr),
        (ForceLabels("eV/nm"), ASE_ENERGY, 0.1),
    ],
    ids=lambda value: getattr(value, "unit", None),
)
def test_units_are_converted_to_the_energys_per_angstrom(
    items: list[Data], labels: ForceLabels, target: Target, factor: float
) -> None:
    forces = PackedMolecules.pack(items, target, forces=labels).forces
    expected = factor * torch.cat([item.force for item in items])
    torch.testing.assert_close(forces, expected, rtol=1e-7, atol=0.0)
    if factor == 1.0:
        assert torch.equal(forces, expected)


@pytest.mark.parametrize("unit", ["", "unknown", "eV", "kcal/mol", "eV/A"])
def test_a_unit_must_be_declared(unit: str) -> None:
    with pytest.raises(ValueError, match=r"must be declared, e\.g\. 'eV/Angstrom'"):
        ForceLabels(unit)
    with pytest.raises(TypeError):
        ForceLabels()  # type: ignore[call-arg]
    assert "eV/Angstrom" in FORCE_UNITS


@EVERY_SOURCE
def test_no_forces_beside_energies_of_unknown_unit(items: list[Data], source: Callable) -> None:
    unknown = Target("energy", "unknown", "energy")
    PackedMolecules.pack(source(items), unknown)  # control: energies alone need no unit
    with pytest.raises(ValueError, match="energies in 'unknown': declare the target's unit"):
        PackedMolecules.pack(source(items), unknown, forces=ASE_FORCES)


def spoilt(items: list[Data], number: int, force: Tensor) -> list[Data]:
    items = [item.clone() for item in items]
    items[number].force = force
    return items


@pytest.mark.parametrize("source", [SOURCES["list"], SOURCES["memory"]], ids=["list", "memory"])
def test_bad_forces_are_named(items: list[Data], source: Callable) -> None:
    bad = items[3].force.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(StructureError, match=r"molecule 3 .*force .*nan.*remove that molecule"):
        PackedMolecules.pack(source(spoilt(items, 3, bad)), ASE_ENERGY, forces=ASE_FORCES)
    PackedMolecules.pack(source(spoilt(items, 3, bad)), ASE_ENERGY)  # nobody looks at them


@pytest.mark.parametrize(
    "force",
    [torch.zeros(4, 3), torch.zeros(5), torch.zeros(15), torch.zeros(3, 5), torch.ones(5, 3).int()],
    ids=["atoms", "norms", "flat", "transposed", "integers"],
)
def test_wrong_shapes_are_refused(items: list[Data], force: Tensor) -> None:
    with pytest.raises(StructureError, match=r"floating point of shape \[5, 3\].*eV/Angstrom"):
        PackedMolecules.pack(spoilt(items, 3, force), ASE_ENERGY, forces=ASE_FORCES)


@pytest.mark.parametrize("source", [SOURCES["list"], SOURCES["memory"]], ids=["list", "memory"])
def test_missing_forces_are_named(items: list[Data], source: Callable) -> None:
    with pytest.raises(KeyError, match=r"no tensor of forces at data\.F"):
        PackedMolecules.pack(source(items), ASE_ENERGY, forces=ForceLabels("eV/Angstrom", "F"))


# -- files ---------------------------------------------------------------------------------------


def write(path: Path, forces: bool = True, number: int = 20) -> list[np.ndarray]:
    """Water molecules with energies (eV) and, but for the last one, forces (eV/Å)."""
    images, written = [], []
    for count in range(number):
        atoms = ase.build.molecule("H2O")
        atoms.rattle(0.1, seed=count)
        written.append(np.random.default_rng(count).normal(size=(3, 3)))
        labels = {"forces": written[-1]} if forces or count < number - 1 else {}
        atoms.calc = SinglePointCalculator(atoms, energy=-14.0 - 0.01 * count, **labels)
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
    return written


def test_forces_of_a_file(tmp_path: Path) -> None:
    written = write(tmp_path / "water.extxyz")
    packed, _ = FileSet(str(tmp_path / "water.extxyz"), 10, 5, forces=True).load()
    expected = torch.tensor(np.concatenate(written), dtype=torch.float32)
    torch.testing.assert_close(packed.forces, expected, rtol=0.0, atol=1e-6)
    assert FileSet(str(tmp_path / "water.extxyz"), 10, 5).load()[0].forces is None


def test_a_structure_without_forces_is_named(tmp_path: Path) -> None:
    path = tmp_path / "water.extxyz"
    write(path, forces=False)
    FileSet(str(path), 10, 5).load()  # control: its energy is there
    with pytest.raises(StructureError, match=r"structure 19: no force to learn.*forces:R:3"):
        FileSet(str(path), 10, 5, forces=True).load()
