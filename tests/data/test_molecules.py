"""Structures: SMILES to 3-D, ASE and files to Data and back, and what is refused."""

from __future__ import annotations

import gzip
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom
from torch_geometric.data import Batch, Data

from hipnn_pyg.checks import HIPNNWarning, StructureError
from hipnn_pyg.data import molecules
from hipnn_pyg.data.molecules import (
    from_atoms,
    from_smiles,
    read_atoms,
    read_each,
    read_structures,
    to_atoms,
)
from hipnn_pyg.data.sets import FileSet
from hipnn_pyg.data.targets import ASE_ENERGY


@pytest.fixture
def default_dtype(dtype: torch.dtype) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield dtype
    torch.set_default_dtype(before)


# SMILES


def test_methane_geometry() -> None:
    data = from_smiles("C")
    assert sorted(data.z.tolist()) == [1, 1, 1, 1, 6] and data.smiles == "C"
    distances = (data.pos[1:] - data.pos[0]).norm(dim=1)
    torch.testing.assert_close(distances, torch.full((4,), 1.092), atol=0.01, rtol=0)  # MMFF94
    angles = torch.nn.functional.normalize(data.pos[1:] - data.pos[0])
    cosines = (angles @ angles.T)[torch.triu(torch.ones(4, 4), diagonal=1).bool()]
    torch.testing.assert_close(cosines, torch.full((6,), -1 / 3), atol=0.01, rtol=0)


def test_seed_decides_the_conformer() -> None:
    flexible = "CCCCO"
    first, again, other = (from_smiles(flexible, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.pos, again.pos) and torch.equal(first.z, other.z)
    assert not torch.allclose(torch.pdist(first.pos), torch.pdist(other.pos), atol=1e-2)
    for outside in (-1, 2**31):  # -1 is RDKit's word for a random one
        with pytest.raises(ValueError, match=f"0 to 2147483647, not {outside}"):
            from_smiles(flexible, seed=outside)


def test_optimisation_moves_the_atoms() -> None:
    embedded, relaxed = (from_smiles("CCO", optimize=choice) for choice in (False, True))
    assert torch.equal(embedded.z, relaxed.z)
    moved = (torch.pdist(embedded.pos) - torch.pdist(relaxed.pos)).abs().max()
    assert 1e-3 < moved < 1.0


def test_smiles_in_both_precisions(default_dtype: torch.dtype) -> None:
    data = from_smiles("O")
    assert data.pos.dtype == default_dtype and data.z.dtype == torch.int64


@pytest.mark.parametrize(
    ("smiles", "step"),
    [
        ("C1CC", "parsing failed"),
        ("C(C)(C)(C)(C)C", "parsing failed"),
        ("", "parsing failed"),
        ("CCO.O", "2 fragments"),
        ("[Na+].[Cl-]", "2 fragments"),
        ("CB(O)O", "MMFF94 has no parameters.*optimize=False .--optimize false"),
        ("*C", r"MMFF94 has no parameters"),
    ],
)
def test_smiles_errors_name_the_step(smiles: str, step: str) -> None:
    with pytest.raises(StructureError, match=step) as caught:
        from_smiles(smiles)
    assert isinstance(caught.value, ValueError) and repr(smiles) in str(caught.value)


def test_an_optimisation_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from_smiles("CCO")  # control
    monkeypatch.setattr(molecules, "_MAX_MMFF_STEPS", 1)
    with pytest.raises(StructureError, match="'CCO': MMFF94 did not converge in 1 steps"):
        from_smiles("CCO")
    assert from_smiles("CCO", optimize=False).num_nodes == 9


def test_smiles_without_parameters_needs_no_optimisation() -> None:
    assert 5 in from_smiles("CB(O)O", optimize=False).z
    with pytest.raises(StructureError, match="no element"):
        from_smiles("*C", optimize=False)


def test_impossible_embedding() -> None:
    """A triple bond is straight: it does not fit into a ring of three, a double bond does."""
    assert from_smiles("C1=CC1", seed=5).num_nodes == 7
    with pytest.raises(StructureError, match=r"embedding \(ETKDGv3, seed 5\)"):
        from_smiles("C1#CC1", seed=5)


def test_missing_rdkit_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match="pip install rdkit"):
        from_smiles("C")


# ASE


def test_molecule_from_ase(default_dtype: torch.dtype) -> None:
    atoms = molecule("CH3CH2OH")
    data = from_atoms(atoms)
    assert data.z.tolist() == atoms.numbers.tolist() and set(data.keys()) == {"z", "pos"}
    assert data.pos.dtype == default_dtype
    np.testing.assert_allclose(data.pos.numpy(), atoms.positions, atol=1e-6)


def test_periodic_structures_batch() -> None:
    diamond = bulk("C", "diamond", a=3.567)
    cell = [[4, 0, 0], [1, 4, 0], [0, 0, 9]]
    slab = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], cell=cell, pbc=[1, 1, 0])
    batch = Batch.from_data_list([from_atoms(diamond), from_atoms(slab)])
    assert batch.cell.shape == (2, 3, 3) and batch.pbc.tolist() == [[True] * 3, [True, True, False]]
    np.testing.assert_allclose(batch.cell[1].numpy(), slab.cell.array)  # rows are the vectors
    # control: a cell without periodicity is a box drawn around a molecule, not a crystal
    slab.pbc = False
    assert "cell" not in from_atoms(slab)


def test_round_trip_through_data() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        atoms = bulk("NaCl", "rocksalt", a=5.64)
        atoms.pbc = [True, False, True]
        again = to_atoms(from_atoms(atoms))
    finally:
        torch.set_default_dtype(torch.float32)
    assert again == atoms and again.calc is None


def test_to_atoms_stores_results(tmp_path: Path) -> None:
    data = from_atoms(molecule("H2O"))
    atoms = to_atoms(data, energy=torch.tensor([-14.2]), forces=torch.ones(3, 3))
    ase.io.write(tmp_path / "w.extxyz", atoms)
    (again,) = read_structures(tmp_path / "w.extxyz")
    assert again.energy.item() == pytest.approx(-14.2) and again.force.sum() == 9
    assert "energy" not in from_atoms(to_atoms(data))
    one, other = from_atoms(to_atoms(data, energy=2.5)), from_atoms(to_atoms(data, forces=data.pos))
    assert one.energy.item() == 2.5 and "force" not in one
    assert torch.equal(other.force, data.pos) and "energy" not in other


def test_to_atoms_takes_one_graph() -> None:
    batch = Batch.from_data_list([from_atoms(molecule("H2O"))] * 2)
    with pytest.raises(StructureError, match="2 graphs in one batch"):
        to_atoms(batch)
    assert len(to_atoms(Batch.from_data_list([from_atoms(molecule("H2O"))]))) == 3


def test_results_are_taken_only_if_they_belong_to_the_structure() -> None:
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-14.0, forces=np.eye(3))
    data = from_atoms(atoms)
    assert ASE_ENERGY.select(data).tolist() == [-14.0] and data.energy.dtype == torch.float64
    assert torch.equal(data.force, torch.eye(3))
    atoms.positions[0] += 0.1
    assert not {"energy", "force"} & set(from_atoms(atoms).keys())


def test_nothing_is_computed() -> None:
    atoms = bulk("Cu")
    atoms.calc = EMT()
    assert "energy" not in from_atoms(atoms)
    energy = atoms.get_potential_energy()  # control: once computed, it is there
    assert from_atoms(atoms).energy.item() == energy


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "no atoms"),
        (Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), "H2: a position is not finite"),
        (Atoms("HX", [[0, 0, 0], [0, 0, 1]]), "atom 1 has no element"),
        (Atoms("H", pbc=True), "periodic along .* zero or dependent"),
        (Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), "zero or dependent"),
        (Atoms("H", cell=[np.inf, 1, 1], pbc=True), "the cell is not finite"),
    ],
)
def test_bad_structures(atoms: Atoms, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        from_atoms(atoms)


def test_partly_periodic_cell_needs_only_its_own_vectors() -> None:
    wire = Atoms("H", cell=[0, 0, 3], pbc=[False, False, True])
    assert from_atoms(wire).cell[0, 2, 2] == 3


# files


def test_xyz_file(tmp_path: Path) -> None:
    path = tmp_path / "two.xyz"
    path.write_text("2\nhydrogen\nH 0 0 0\nH 0 0 0.74\n1\nno energy here\nHe 1 2 3\n")
    first, second = read_structures(path)
    assert first.z.tolist() == [1, 1] and set(first.keys()) == {"z", "pos"}
    assert second.pos.tolist() == [[1.0, 2.0, 3.0]]


def test_extxyz_keeps_energy_forces_and_cell(tmp_path: Path) -> None:
    path = tmp_path / "h.xyz"
    header = 'Lattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3:forces:R:3 energy=-27.2'
    path.write_text(f"1\n{header}\nH 0 0 0 0.1 0.2 0.3\n")
    (data,) = read_structures(path)
    assert data.energy.tolist() == [-27.2] and data.energy.dtype == torch.float64
    torch.testing.assert_close(data.force, torch.tensor([[0.1, 0.2, 0.3]]))
    assert data.pbc.all() and data.cell.shape == (1, 3, 3)


def test_database_file(tmp_path: Path) -> None:
    with connect(tmp_path / "s.db") as database:
        for name in ("H2O", "CH4"):
            atoms = molecule(name)
            atoms.calc = SinglePointCalculator(atoms, energy=-float(len(atoms)))
            database.write(atoms)
    assert [data.energy.item() for data in read_structures(tmp_path / "s.db")] == [-3.0, -5.0]


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no structure file .*missing\.xyz"):
        read_structures(tmp_path / "missing.xyz")
    assert not (tmp_path / "missing.xyz").exists()
    contents = {
        "empty.xyz": "",
        "cut.xyz": "3\n\nH 0 0 0\n",
        "text.xyz": "This is a letter.\nIt has two lines.\n",
        "unknown.format": "nothing known",
        "letters.xyz": "1\n\nH a b c\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(StructureError, match=name):
            read_structures(tmp_path / name)


def test_file_errors_name_the_structure(tmp_path: Path) -> None:
    path = tmp_path / "nan.xyz"
    path.write_text("1\n\nH 0 0 0\n1\n\nH 0 0 nan\n")
    with pytest.raises(StructureError, match=r"nan\.xyz, structure 1: .*not finite"):
        read_structures(path)


@pytest.mark.parametrize("name", ["two.xyz", "two.EXTXYZ", "two.xyz.gz"])
def test_a_blank_line_between_structures(name: str, tmp_path: Path) -> None:
    """ASE ends there, as if the file did; blank comments and blank lines at the end are fine."""
    first, second = "1\n\nH 0 0 0\n", "2\n\nH 0 0 0\nH 0 0 0.7\n"
    write = gzip.open if name.endswith("gz") else open
    with write(tmp_path / name, "wt") as file:
        file.write(f"{first}{second}\n  \n")
    if "EXT" not in name:  # which ASE does not know by its name
        assert [len(data.z) for data in read_structures(tmp_path / name)] == [1, 2]  # control
    with write(tmp_path / name, "wt") as file:
        file.write(f"{first}\n{second}")
    with pytest.raises(StructureError, match=rf"{name}, line 4 is blank.*delete it"):
        read_structures(tmp_path / name)


def test_copies_among_the_structures_to_learn_are_warned_of(tmp_path: Path) -> None:
    """One may be learned and the other tested. The same atoms in another cell are no copy."""
    path = tmp_path / "few.extxyz"
    images = [bulk("Cu", a=a) for a in (3.5, 3.6, 3.7, 3.6)]
    for atoms, energy in zip(images, (1.0, 2.0, 3.0, 4.0), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    ase.io.write(path, images[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FileSet(str(path), 2, 1).load()  # control
    ase.io.write(path, images)
    with pytest.warns(HIPNNWarning, match=r"1 of 4 structures are copies .*structure 3 of 1\)"):
        FileSet(str(path), 2, 1).load()


def test_a_charge_is_warned_of_once(tmp_path: Path) -> None:
    """By the first structure that has one; partial charges are none."""
    path, frame = tmp_path / "ions.extxyz", "1\nProperties=species:S:1:pos:R:3 {}\nO 0 0 0\n"
    texts = ("", "charge=0", "charge=-1", "charge=2")
    path.write_text("".join(map(frame.format, texts)))
    with pytest.warns(HIPNNWarning, match=r"ions.extxyz, structure 2 has charge -1:") as caught:
        assert len(read_structures(path)) == 4
    assert len(caught) == 1
    with pytest.warns(HIPNNWarning, match=r"structure -1 has charge \+2:"):
        read_atoms(path, -1)
    ase.io.write(tmp_path / "ion.traj", Atoms("O", info={"charge": np.float64(-1)}))
    with pytest.warns(HIPNNWarning, match="structure 0 has charge -1:"):
        read_structures(tmp_path / "ion.traj")
    with warnings.catch_warnings():  # control
        warnings.simplefilter("error")
        path.write_text("".join(map(frame.format, (*texts[:2], "charge=unknown"))))
        assert len(read_structures(path)) == 3
        ase.io.write(tmp_path / "partial.traj", Atoms("O", charges=[-0.4]))
        read_structures(tmp_path / "partial.traj")


def sdf_record(smiles: str, dimensions: int = 3) -> str:
    """With all hydrogens in space, or drawn without them."""
    mol = Chem.MolFromSmiles(smiles)
    if dimensions == 2:
        rdDepictor.Compute2DCoords(mol)
    else:
        mol = Chem.AddHs(mol)
        rdDistGeom.EmbedMolecule(mol, randomSeed=0)
    mol.SetProp("_Name", "" if smiles == "[He]" else smiles)
    return Chem.MolToMolBlock(mol) + "$$$$\n"


@pytest.mark.parametrize("name", ["all.sdf", "all.SDF", "all.sdf.gz"])
def test_every_record_of_an_sdf_file(name: str, tmp_path: Path) -> None:
    """ASE would read the first. What a model cannot know of is named, the rest is read."""
    records = ["CCO", "C[CH2]", "CC(=O)[O-]", "[He]", "C[N+](=O)[O-]"]
    text = "".join(map(sdf_record, records)) + sdf_record("Oc1ccccc1", 2)
    write = gzip.open if name.endswith("gz") else open
    with write(tmp_path / name, "wt") as file:
        file.write(text)
    ethanol, radical, ion, helium, nitromethane, drawing = read_each(tmp_path / name)
    assert [len(found.z) for found in (ethanol, helium, nitromethane)] == [9, 1, 7]
    assert [found.name for found in (ethanol, helium)] == ["CCO", ""]
    assert ethanol.z.tolist() == [6, 6, 8, 1, 1, 1, 1, 1, 1]
    for found, number, message in (
        (radical, 1, r"charge \+0 and 1 unpaired"),
        (ion, 2, "charge -1 and 0 unpaired"),
        (drawing, 5, "drawn in two dimensions"),
    ):
        assert re.search(rf"{name}, record {number}.*{message}", str(found))
    with pytest.raises(StructureError, match="record 1 has charge"):
        read_structures(tmp_path / name)


def test_records_without_all_hydrogens(tmp_path: Path) -> None:
    """In space, too; a radical that no line of the record calls one is such a record."""
    path = tmp_path / "some.sdf"

    def found(record: str) -> Data | StructureError:
        path.write_text(record)
        return read_each(path)[0]

    ethanol, radical = Chem.MolFromMolBlock(sdf_record("CCO"), removeHs=True), sdf_record("C[CH2]")
    bare = Chem.MolToMolBlock(ethanol) + "$$$$\n"
    silent = re.sub("M  RAD.*\n", "", radical).replace("0  3  0", "0  0  0")
    assert "3D" in bare and silent != radical
    assert "room for more hydrogens (6)" in str(found(bare))
    assert "room for more hydrogens (1)" in str(found(silent))
    # control: what is whole, whatever its bonds are like, and what has none
    for smiles in ("CCO", "C[N+](=O)[O-]", "c1cc[nH]c1", "CS(C)(=O)=O", "[C-]#[O+]", "OB(O)O"):
        record = sdf_record(smiles)
        assert isinstance(found(record), Data), smiles
        aromatic = Chem.MolFromMolBlock(record, removeHs=False)
        block = Chem.MolToMolBlock(aromatic, kekulize=False, forceV3000=True)
        assert isinstance(found(block + "$$$$\n"), Data), smiles
    ase.io.write(path, molecule("CH3OH"), format="sdf")
    assert len(read_each(path)[0].z) == 6


@pytest.mark.parametrize("name", ["one.mol", "one.MOL.gz"])
def test_a_mol_file_is_one_record(name: str, tmp_path: Path) -> None:
    """ASE would take the atoms of an ion, or of a drawing."""
    write = gzip.open if name.endswith("gz") else open

    def found(record: str) -> Data | StructureError:
        with write(tmp_path / name, "wt") as file:
            file.write(record.removesuffix("$$$$\n"))
        (only,) = read_each(tmp_path / name)
        return only

    ethanol = found(sdf_record("CCO"))  # control
    assert ethanol.z.tolist() == [6, 6, 8, 1, 1, 1, 1, 1, 1]
    assert "has charge -1" in str(found(sdf_record("CC(=O)[O-]")))
    assert "drawn in two dimensions" in str(found(sdf_record("CCO", 2)))


def test_a_broken_record_loses_no_other(tmp_path: Path) -> None:
    path = tmp_path / "some.sdf"
    path.write_text(f"{sdf_record('C')}\nno\n\nrecord\n$$$$\n{sdf_record('O')}")
    methane, broken, water = read_each(path)
    assert [len(methane.z), len(water.z)] == [5, 3]
    assert "record 1: RDKit cannot read it" in str(broken)
    path.write_text("")
    with pytest.raises(StructureError, match="holds no structure"):
        read_each(path)
    whole = gzip.compress(sdf_record("C").encode())
    for content in (b"nonsense", whole[:-20]):
        (tmp_path / "torn.sdf.gz").write_bytes(content)
        with pytest.raises(StructureError, match=r"torn\.sdf\.gz is damaged"):
            read_each(tmp_path / "torn.sdf.gz")


def test_data_without_pbc_flag_is_periodic_in_its_cell() -> None:
    data = Data(z=torch.tensor([1]), pos=torch.zeros(1, 3), cell=5 * torch.eye(3).unsqueeze(0))
    assert to_atoms(data).pbc.all()
    data.pbc = torch.tensor([[True, False, False]])
    assert to_atoms(data).pbc.tolist() == [True, False, False]
