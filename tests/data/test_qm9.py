"""QM9 from the wheel: every record, the exclusions, the raw files PyG reads, the three ways out."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import socket
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from rdkit import Chem
from torch_geometric.data import InMemoryDataset
from torch_geometric.datasets import QM9
from torch_geometric.loader import DataLoader

from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.data import qm9, qm9_raw
from hipnn_pyg.data.embedded import typed
from hipnn_pyg.data.molecules import read_structures
from hipnn_pyg.data.qm9 import HARD_TO_CONVERGE, QM9Pack, load_qm9, qm9_kept
from hipnn_pyg.data.qm9_raw import match_smiles, write_qm9_raw
from hipnn_pyg.data.qm9_records import (
    FREE_ATOM_ENERGIES,
    NUM_QM9,
    PROPERTIES,
    QM9Records,
    _parse_elements,
    _parse_numbers,
    qm9pack_files,
    read_qm9pack,
)
from hipnn_pyg.data.unavailable import DatasetUnavailableError
from hipnn_pyg.units import Hartree, kcal_per_mol

FACTS = Path(__file__).parents[2] / "datasets" / "qm9"

WRITTEN = [*range(1, 58), 59, 62, 63, 187, 274, 281, 1000, 1500]
"""Indices of the small raw data set; 58, 60, 61 and most later ones stay placeholders."""


@pytest.fixture(scope="module")
def pack_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pack")


@pytest.fixture(scope="module")
def records() -> QM9Records:
    return read_qm9pack()


@pytest.fixture(scope="module")
def pack(pack_root: Path, records: QM9Records) -> QM9Pack:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qm9, "read_qm9pack", lambda: records)
        return QM9Pack(pack_root)


@pytest.fixture(scope="module")
def wheel_rows(records: QM9Records) -> dict[int, dict[str, str]]:
    """100 random records as the csv module reads them, by 1-based index."""
    rng = np.random.default_rng(0)
    chosen = {f'"dsgdb9nsd_{i:06d}.xyz"' for i in rng.choice(records.index, 100, replace=False)}
    rows: dict[int, dict[str, str]] = {}
    for path in qm9pack_files():
        with path.open() as file:
            head = next(file)
            lines = [line for line in file if line.partition(",")[0] in chosen]
        rows |= {int(row["Index"]): row for row in csv.DictReader([head, *lines])}
    assert len(rows) == 100
    return rows


@pytest.fixture
def from_records(records: QM9Records, monkeypatch: pytest.MonkeyPatch) -> QM9Records:
    """Let the writer take the parsed records instead of parsing the wheel once more."""
    monkeypatch.setattr(qm9_raw, "read_qm9pack", lambda: records)
    return records


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Make the official download fail; the list gets the socket timeout of every attempt."""
    attempts: list[float | None] = []

    def fail(self: QM9) -> None:
        attempts.append(socket.getdefaulttimeout())
        raise URLError("Name or service not known\nsecond line")

    monkeypatch.setattr(QM9, "download", fail)
    return attempts


def canonical(mol: Chem.Mol) -> str:
    """Canonical SMILES with implied hydrogens, without stereo."""
    mol = Chem.Mol(mol)
    Chem.SanitizeMol(mol)
    mol = Chem.RemoveHs(mol)
    Chem.RemoveStereochemistry(mol)
    return Chem.MolToSmiles(mol)


# --- the pack ---------------------------------------------------------------------------------


def test_methane_is_the_first_row(pack: QM9Pack) -> None:
    methane = pack[0]
    assert (methane.name, methane.smiles, int(methane.idx)) == ("gdb_1", "C", 0)
    assert methane.z.tolist() == [6, 1, 1, 1, 1]
    assert methane.pos.shape == (5, 3) and methane.y.shape == (1, 19)
    y = methane.y[0].double()
    expected = {1: 13.21, 2: -0.3877 * Hartree, 7: -40.47893 * Hartree, 11: 6.469, 16: 157.7118}
    for column, value in expected.items():
        assert float(y[column]) == pytest.approx(value, rel=1e-7)
    # MoleculeNet's kcal/mol columns for methane, with its own 627.509 kcal/mol per Hartree
    official = np.array([-395.999594594, -398.643290011, -401.014646522, -372.471772148])
    np.testing.assert_allclose(y[12:16].numpy(), official / 627.509 * Hartree, rtol=2e-7)
    assert float(pack[1].y[0, 12]) != pytest.approx(float(y[12]), rel=1e-3)  # ammonia differs


def test_hundred_random_records_match_the_wheel(
    pack: QM9Pack, wheel_rows: dict[int, dict[str, str]]
) -> None:
    position = {int(index): k for k, index in enumerate(pack.idx + 1)}
    symbols = np.array(["", "H", "", "", "", "", "C", "N", "O", "F"])
    for index, row in wheel_rows.items():
        data = pack[position[index]]
        xyz = json.loads(re.sub(r"\.(?=[,\]E])", "", row["XYZ_Ang"]))
        assert torch.equal(data.pos, torch.tensor(xyz, dtype=torch.float32))
        assert list(symbols[data.z.numpy()]) == json.loads(row["Elements"].replace("'", '"'))
        assert (data.name, data.smiles) == (f"gdb_{index}", row["SMILES"])
        free = np.sum([FREE_ATOM_ENERGIES[str(s)] for s in symbols[data.z.numpy()]], axis=0)
        values = np.array([float(row[column]) for column in PROPERTIES.values()])
        energies = (values[10:14] - free) * Hartree
        expected = np.concatenate([values[3:], energies, values[:3]])
        expected[[2, 3, 4, 6, 7, 8, 9, 10]] *= Hartree
        np.testing.assert_allclose(data.y[0].numpy(), expected, rtol=1.2e-7)


def test_standard_deviation_of_atomisation_energy(pack: QM9Pack) -> None:
    y = pack._data.y.double() / kcal_per_mol  # type: ignore[union-attr]
    assert float(y[:, 12].std()) == pytest.approx(238.07, abs=0.005)
    assert float(y[:, 7].std()) > 1000  # the total energies are another column


def test_whole_and_indexed_access(pack: QM9Pack) -> None:
    assert len(pack) == 130_831
    assert bool((pack.idx.diff() > 0).all())
    chosen = pack[torch.tensor([5, 0, 130_830])]
    assert [data.name for data in chosen] == ["gdb_6", "gdb_1", f"gdb_{NUM_QM9}"]
    assert [data.name for data in pack[[5, 0]]] == ["gdb_6", "gdb_1"]
    batch = next(iter(DataLoader(pack[:7], batch_size=7)))
    assert batch.z.shape == batch.batch.shape and batch.pos.shape == (len(batch.z), 3)
    assert batch.y.shape == (7, 19) and batch.name == [f"gdb_{i}" for i in range(1, 8)]


def test_saved_pack_loads_without_the_wheel(
    pack: QM9Pack, pack_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    again = load_qm9(pack_root, "auto")
    assert isinstance(again, QM9Pack)
    assert torch.equal(again.y, pack.y) and torch.equal(again.pos, pack.pos)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hipnn_pyg\[data\]"'):
        load_qm9(tmp_path, "qm9pack")


# --- exclusions and facts ---------------------------------------------------------------------


def test_absent_molecules_are_the_uncharacterized_ones(
    pack: QM9Pack, from_records: QM9Records, data_dir: Path | None, tmp_path: Path
) -> None:
    if data_dir is None:  # the same format, as far as index 1500
        write_qm9_raw(tmp_path, indices=from_records.index[from_records.index <= 1500])
        path, last = tmp_path / "raw" / "uncharacterized.txt", 1500
    else:
        path, last = data_dir / "qm9" / "uncharacterized.txt", NUM_QM9
    listed = {int(line.split()[0]) for line in path.read_text().split("\n")[9:-2]}
    absent = set(range(1, NUM_QM9 + 1)) - set((pack.idx + 1).tolist())
    assert len(absent) == 3_054 and {58, 61, 80, 185, 133_865, 133_866} < absent
    assert {index for index in absent if index <= last} == listed


def test_eleven_more_exclusions(pack: QM9Pack, data_dir: Path | None) -> None:
    folders = [FACTS, *([data_dir / "qm9"] if data_dir else [])]
    for folder in folders:
        lines = (folder / "hard_to_converge_11.txt").read_text().splitlines()
        assert tuple(int(x) for x in lines if not x.startswith("#")) == HARD_TO_CONVERGE
    kept = qm9_kept(pack)
    assert len(HARD_TO_CONVERGE) == 11 and len(kept) == 130_823
    assert not set((pack.idx[kept] + 1).tolist()) & set(HARD_TO_CONVERGE)
    assert torch.equal(qm9_kept(pack[:50]), torch.arange(50))  # nothing to exclude there


def test_free_atoms_equal_the_fact_file(data_dir: Path | None) -> None:
    lines = (FACTS / "free_atoms.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert {s: tuple(map(float, values)) for s, *values in rows} == FREE_ATOM_ENERGIES
    if data_dir is not None:
        rows = [x.split() for x in (data_dir / "qm9" / "atomref.txt").read_text().splitlines()[5:]]
        official = {row[0]: tuple(map(float, row[2:6])) for row in rows if len(row) == 7}
        assert official == FREE_ATOM_ENERGIES


# --- the raw files ----------------------------------------------------------------------------


def test_written_raw_files_load_in_pyg(
    pack: QM9Pack, from_records: QM9Records, tmp_path: Path
) -> None:
    written = write_qm9_raw(tmp_path, indices=WRITTEN)
    assert (written.molecules, written.placeholders) == (len(WRITTEN), 1500 - len(WRITTEN))
    assert written.unmatched == []
    official = load_qm9(tmp_path)  # local raw files come first, whatever else there is
    assert type(official) is QM9
    assert (official.idx + 1).tolist() == WRITTEN
    position = {int(i): k for k, i in enumerate(pack.idx)}
    for data in official:
        ours = pack[position[int(data.idx)]]
        assert data.name == ours.name and torch.equal(data.z, ours.z)
        assert torch.equal(data.pos, ours.pos)  # bit for bit: 10 decimals survive the SDF
        torch.testing.assert_close(data.y, ours.y, rtol=4e-7, atol=0)
        assert canonical(Chem.MolFromSmiles(data.smiles)) == canonical(
            Chem.MolFromSmiles(ours.smiles)
        )
        assert data.edge_attr.shape == (data.edge_index.shape[1], 4)
        assert not data.edge_attr[:, 3].any()  # Kekulé: no aromatic bond
        i, j = data.edge_index
        assert {*zip(i.tolist(), j.tolist(), strict=True)} == {
            *zip(j.tolist(), i.tolist(), strict=True)
        }
        assert float((data.pos[i] - data.pos[j]).norm(dim=-1).max()) < 1.7
        assert (i.bincount(minlength=len(data.z))[data.z == 1] == 1).all()
    acetylene = official[3]
    assert acetylene.smiles == "[H]C#C[H]"
    ours = [pack[position[int(index)]].smiles for index in official.idx]
    flat = [Chem.MolToSmiles(Chem.MolFromSmiles(one), isomericSmiles=False) for one in ours]
    assert [typed(one) for one in official.smiles] == flat and flat[3] == "C#C"
    assert [typed(one) for one in ours] == ours
    assert acetylene.edge_attr.sum(0).tolist() == [4, 0, 2, 0]
    assert len(qm9_kept(official)) == len(WRITTEN)


def test_csv_has_the_columns_of_moleculenet(from_records: QM9Records, tmp_path: Path) -> None:
    folder = write_qm9_raw(tmp_path, indices=[1, 3]).folder
    head, methane, ammonia, _water = (folder / "gdb9.sdf.csv").read_text().splitlines()
    assert head == (
        "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,"
        "u0_atom,u298_atom,h298_atom,g298_atom"
    )
    assert [float(x) for x in methane.split(",")[1:]] == [
        157.7118, 157.70997, 157.70699, 0, 13.21, -0.3877, 0.1171, 0.5048, 35.3641, 0.044749,
        -40.47893, -40.476062, -40.475117, -40.498597, 6.469,
        -395.999594594, -398.643290011, -401.014646522, -372.471772148,
    ]  # fmt: skip
    assert ammonia == "gdb_2" + ",nan" * 19  # not chosen: a placeholder


def test_existing_raw_files_are_not_replaced(from_records: QM9Records, tmp_path: Path) -> None:
    folder = write_qm9_raw(tmp_path, indices=[1]).folder
    before = (folder / "gdb9.sdf").read_text()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_qm9_raw(tmp_path, indices=[1, 2])
    assert (folder / "gdb9.sdf").read_text() == before
    assert write_qm9_raw(tmp_path, indices=[1, 2], overwrite=True).molecules == 2
    assert (folder / "gdb9.sdf").read_text() != before
    with pytest.raises(ValueError, match=r"\[58\].*not in qm9pack"):
        write_qm9_raw(tmp_path, indices=[1, 58], overwrite=True)


def test_what_pyg_made_of_other_raw_files_is_removed(
    from_records: QM9Records, tmp_path: Path
) -> None:
    """It would be loaded in place of the new ones."""
    write_qm9_raw(tmp_path, indices=[1, 2])
    assert [data.name for data in QM9(str(tmp_path))] == ["gdb_1", "gdb_2"]
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(FileExistsError, match=r"processed.data_v3\.pt; overwrite=True"):
        write_qm9_raw(tmp_path, indices=[3])
    write_qm9_raw(tmp_path, indices=[3], overwrite=True)
    assert [data.name for data in QM9(str(tmp_path))] == ["gdb_3"]


def test_unmatched_molecule_is_listed_and_has_no_bonds(
    records: QM9Records, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    smiles = ["C", "N", "[OH-]", *records.smiles[3:]]  # water's SMILES is made wrong
    monkeypatch.setattr(qm9_raw, "read_qm9pack", lambda: replace(records, smiles=smiles))
    written = write_qm9_raw(tmp_path, indices=[1, 2, 3])
    assert written.unmatched == [3]
    lines = (written.folder / "unmatched_bonds.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["3 [OH-]"]
    dataset = QM9(str(tmp_path))
    assert [data.edge_index.shape[1] for data in dataset] == [8, 6, 0]
    assert dataset[2].z.tolist() == [8, 1, 1]


def test_bonds_give_the_smiles_of_the_record(records: QM9Records, tmp_path: Path) -> None:
    """And, written as PyG's raw files are, they are read as whole molecules."""
    rng = np.random.default_rng(1)
    rows = rng.choice(len(records.index), 1500, replace=False).tolist()
    charged = [k for k, smiles in enumerate(records.smiles) if "+" in smiles][:50]
    equal, written = [], []
    for row in rows + charged:
        atoms = slice(records.ptr[row], records.ptr[row + 1])
        mol = match_smiles(records.smiles[row], records.z[atoms], records.pos[atoms])
        assert mol is not None
        assert [a.GetAtomicNum() for a in mol.GetAtoms()] == records.z[atoms].tolist()
        equal.append(canonical(mol) == canonical(Chem.MolFromSmiles(records.smiles[row])))
        written.append(qm9_raw._sdf_record(records.smiles[row], mol, records.pos[atoms]))
    assert np.mean(equal[:1500]) >= 0.99
    assert np.mean(equal[1500:]) >= 0.99
    (tmp_path / "all.sdf").write_text("".join(written))
    assert len(read_structures(tmp_path / "all.sdf")) == len(written)


def test_match_follows_the_geometry_not_the_order(records: QM9Records) -> None:
    atoms = slice(records.ptr[6], records.ptr[7])
    z, pos, smiles = records.z[atoms], records.pos[atoms].copy(), "CC"
    order = np.random.default_rng(2).permutation(len(z))
    plain, shuffled = match_smiles(smiles, z, pos), match_smiles(smiles, z[order], pos[order])
    assert plain is not None and shuffled is not None
    for i, bonded in enumerate(Chem.GetAdjacencyMatrix(shuffled)):
        assert bonded.tolist() == Chem.GetAdjacencyMatrix(plain)[order[i]][order].tolist()
    assert match_smiles("C=C", z, pos) is None  # too few hydrogens
    outward = pos[5] - pos.mean(axis=0)
    pos[2] = pos[5] + 0.7 * outward / np.linalg.norm(outward)
    assert match_smiles(smiles, z, pos) is None  # two hydrogens of ethane have met


# --- where it comes from ----------------------------------------------------------------------


def test_official_download_is_tried_before_the_wheel(
    no_network: list[float | None],
    records: QM9Records,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    few = int(records.ptr[3])
    small = QM9Records(
        records.index[:3], records.smiles[:3], records.ptr[:4], records.z[:few],
        records.pos[:few], records.properties[:3],
    )  # fmt: skip
    monkeypatch.setattr(qm9, "read_qm9pack", lambda: small)
    with pytest.warns(HIPNNWarning, match=r"download failed .*: it was read from the qm9pack"):
        dataset = load_qm9(tmp_path)
    assert isinstance(dataset, QM9Pack) and len(dataset) == 3
    assert len(no_network) == 1
    timeout = no_network[0]
    assert timeout is not None and timeout <= 10  # it cannot hang
    assert socket.getdefaulttimeout() is None
    assert isinstance(load_qm9(tmp_path), QM9Pack) and len(no_network) == 1  # saved: no new try


def test_torn_download_is_removed_and_own_files_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "mine.zip").write_text("own")

    def tear(self: QM9) -> None:
        (raw / "qm9.zip").write_text("half")
        raise ConnectionResetError("connection reset")

    monkeypatch.setattr(QM9, "download", tear)
    with pytest.raises(DatasetUnavailableError, match="connection reset"):
        load_qm9(tmp_path, "official")
    assert [file.name for file in raw.iterdir()] == ["mine.zip"]


@pytest.mark.parametrize("source", ["auto", "official"])
def test_all_ways_blocked_is_one_readable_line(
    source: qm9.Source,
    no_network: list[float | None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetUnavailableError) as caught:
        load_qm9(tmp_path, source)
    message = str(caught.value)
    assert "\n" not in message and "Name or service not known" in message
    for way_out in ("official download", 'pip install "hipnn_pyg[data]"', str(tmp_path / "raw")):
        assert way_out in message
    for name in ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt"):
        assert name in message


def test_broken_local_files_are_not_called_a_download_problem(
    no_network: list[float | None], tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    for name in qm9.RAW_FILES:
        (tmp_path / "raw" / name).write_text("")
    with pytest.raises(ValueError, match="cannot read the QM9 files in .*restore or delete them"):
        load_qm9(tmp_path)
    assert no_network == []


def test_a_torn_raw_file_is_no_molecule(from_records: QM9Records, tmp_path: Path) -> None:
    raw = write_qm9_raw(tmp_path, indices=[1, 2]).folder / "gdb9.sdf"
    raw.write_bytes(raw.read_bytes()[:-300])
    with pytest.raises(ValueError, match="cannot read the QM9 files in .*restore or delete them"):
        load_qm9(tmp_path)


@pytest.mark.parametrize("left", [0, 10, -30], ids=["empty", "torn", "end_missing"])
def test_a_damaged_processed_file_is_named(
    left: int, from_records: QM9Records, tmp_path: Path
) -> None:
    """Not the raw files, which are whole: what is done as it says helps."""
    write_qm9_raw(tmp_path, indices=[1, 2])
    load_qm9(tmp_path)
    made = tmp_path / "processed" / "data_v3.pt"
    made.write_bytes(made.read_bytes()[:left])
    with pytest.raises(ValueError, match=f"{made} is damaged .*delete its folder") as caught:
        load_qm9(tmp_path)
    assert "\n" not in str(caught.value)
    shutil.rmtree(made.parent)
    assert len(load_qm9(tmp_path)) == 2


def test_what_pyg_processed_is_of_no_use_without_its_raw_files(
    no_network: list[float | None],
    from_records: QM9Records,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """PyG downloads them again: as any download, with a timeout and a way out."""
    monkeypatch.setattr(qm9, "read_qm9pack", lambda: from_records)
    folder = write_qm9_raw(tmp_path, indices=[1, 2]).folder
    assert len(load_qm9(tmp_path)) == 2 and no_network == []  # control
    shutil.rmtree(folder)
    with pytest.raises(DatasetUnavailableError, match="Three ways out"):
        load_qm9(tmp_path, "official")
    assert isinstance(load_qm9(tmp_path), QM9Pack)
    assert len(no_network) == 2 and None not in no_network


def test_leftovers_do_not_stand_in_the_way(
    no_network: list[float | None],
    records: QM9Records,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What an older PyG made and a torn archive: the wheel is read, the archive thrown away."""
    old = tmp_path / "old" / "processed" / "data_v2.pt"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"older")
    monkeypatch.setattr(qm9, "read_qm9pack", lambda: records)
    assert isinstance(load_qm9(tmp_path / "old"), QM9Pack) and old.exists()

    def torn(self: QM9) -> None:
        raise zipfile.BadZipFile("File is not a zip file")

    monkeypatch.setattr(QM9, "download", torn)
    archive = tmp_path / "new" / "raw" / "qm9.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"PK")
    with pytest.raises(DatasetUnavailableError, match="not a zip file"):
        load_qm9(tmp_path / "new", "official")
    assert not archive.exists()


def test_a_damaged_pack_is_named(pack: QM9Pack, pack_root: Path, tmp_path: Path) -> None:
    shutil.copytree(pack_root, tmp_path, dirs_exist_ok=True)
    assert len(load_qm9(tmp_path)) == len(pack)  # control
    path = tmp_path / "qm9pack" / "processed" / "qm9pack_v1.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"qm9pack_v1\.pt is damaged .*delete it"):
        load_qm9(tmp_path)


def test_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source='figshare'"):
        load_qm9(tmp_path, "figshare")  # type: ignore[arg-type]


# --- parsing ----------------------------------------------------------------------------------


def test_numbers_in_every_notation() -> None:
    text = "[[0.,1.5,-2.5E-6],[2.e-6,3,1.*^-6]][[-4.,5.,6.]]"
    expected = [0, 1.5, -2.5e-6, 2e-6, 3, 1e-6, -4, 5, 6]
    assert _parse_numbers(text, 9).tolist() == expected
    with pytest.raises(ValueError, match="9 coordinates where the atom counts say 12"):
        _parse_numbers(text, 12)
    with pytest.raises(ValueError, match="'n' in a list of coordinates"):
        _parse_numbers("[[nan,1.,2.]]", 3)


def test_elements() -> None:
    assert _parse_elements("['C','H']['O','N','F']", 5).tolist() == [6, 1, 8, 7, 9]
    with pytest.raises(ValueError, match="1 of them not H, C, N, O or F"):
        _parse_elements("['C','S']", 2)


def test_pack_is_an_in_memory_dataset(pack: QM9Pack) -> None:
    assert isinstance(pack, InMemoryDataset)
    assert set(pack[0].keys()) == {"z", "pos", "y", "idx", "name", "smiles"}
