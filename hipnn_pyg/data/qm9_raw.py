"""Write the raw files of ``torch_geometric.datasets.QM9`` from the ``qm9pack`` wheel.

The wheel has geometries and SMILES but no bonds between the atoms of the geometry. The bonds are
found by drawing the SMILES with its hydrogens and laying that graph over the graph of the
geometry.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import covalent_radii
from rdkit import Chem
from tqdm import tqdm

from hipnn_pyg.data.qm9 import RAW_FILES
from hipnn_pyg.data.qm9_records import NUM_QM9, PROPERTIES, QM9Records, read_qm9pack

HARTREE_IN_CSV = 627.509
"""kcal/mol per Hartree in the atomisation columns of the official ``gdb9.sdf.csv``.

A fact about that file (methane's u0_atom is -395.999594594), not a choice of units.
"""

UNMATCHED_FILE = "unmatched_bonds.txt"

CSV_COLUMNS = (*PROPERTIES, "u0_atom", "u298_atom", "h298_atom", "g298_atom")


class QM9RawFiles(NamedTuple):
    """What :func:`write_qm9_raw` wrote."""

    folder: Path
    """``root/raw``."""
    molecules: int
    """Molecules with a geometry and properties."""
    placeholders: int
    """Records that only hold their place, listed in ``uncharacterized.txt``."""
    unmatched: list[int]
    """1-based gdb9 indices written without bonds, listed in ``unmatched_bonds.txt``."""


def write_qm9_raw(
    root: str | os.PathLike[str],
    indices: Iterable[int] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> QM9RawFiles:
    """Write ``gdb9.sdf``, ``gdb9.sdf.csv`` and ``uncharacterized.txt`` into ``root/raw``.

    ``torch_geometric.datasets.QM9(root)`` then loads all 130,831 molecules, with the original
    ``idx`` and ``name``, without a download. Records are V3000, so positions keep their 10
    decimals; bonds are single, double or triple with formal charges on their atoms. A molecule
    that the wheel lacks is one dummy atom with ``nan`` properties at its own index, which PyG
    skips by ``uncharacterized.txt``.

    Args:
        root: the root to give to PyG's ``QM9``.
        indices: 1-based gdb9 indices to write, for a small data set; the file then ends at the
            largest, and every other index up to it is a placeholder. Default: all.
        overwrite: replace raw files that exist, and remove what PyG made of them.
        progress: show a progress bar.

    Returns:
        The folder and the counts.

    Raises:
        FileExistsError: a raw file exists, or what PyG made of some, and ``overwrite`` is false.
        ValueError: an index is not in the wheel.
        ModuleNotFoundError: ``qm9pack`` is not installed.
    """
    folder = Path(root).expanduser() / "raw"
    processed = [*(folder.parent / "processed").glob("data_v*.pt")]
    existing = [path for name in RAW_FILES if (path := folder / name).exists()] + processed
    if existing and not overwrite:
        raise FileExistsError(
            f"there already is {', '.join(map(str, existing))}; overwrite=True (--overwrite) "
            "replaces it"
        )
    records = read_qm9pack()
    rows, last = _select_rows(records, indices)
    absent = sorted(set(range(1, last + 1)) - set(rows))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        unmatched = _write_sdf(Path(partial) / RAW_FILES[0], records, rows, last, progress)
        _write_csv(Path(partial) / RAW_FILES[1], records, rows, last)
        _write_absent(Path(partial) / RAW_FILES[2], absent)
        _write_unmatched(Path(partial) / UNMATCHED_FILE, unmatched)
        for file in Path(partial).iterdir():
            os.replace(file, folder / file.name)
    for file in processed:
        file.unlink()
    return QM9RawFiles(folder, len(rows), len(absent), list(unmatched))


def match_smiles(smiles: str, z: np.ndarray, pos: np.ndarray) -> Chem.Mol | None:
    """Lay the bonds of a SMILES over the atoms of a geometry.

    The geometry's graph has as many bonds as the SMILES, hydrogens included: the pairs that are
    closest in units of their summed covalent radii, so there is no distance threshold to choose.
    The SMILES matches where the two graphs are the same, element by element.

    Args:
        smiles: SMILES with implied hydrogens; not aromatic, so bond orders are whole.
        z: atomic numbers, [n].
        pos: positions in Å, [n, 3].

    Returns:
        The unsanitized molecule in the atom order of ``z``, with explicit hydrogens, bond orders
        and formal charges but no conformer; None where the graphs differ.
    """
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    if mol is None:
        return None
    mol.UpdatePropertyCache(strict=False)
    mol = Chem.AddHs(mol)
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if sorted(numbers) != sorted(z.tolist()):
        return None
    drawn = {_ordered(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()}
    closest = _closest_pairs(z, pos, len(drawn))
    if numbers == z.tolist() and drawn == closest:  # the usual case: the same order of atoms
        return mol
    atom_of = _skeleton(z.tolist(), closest).GetSubstructMatch(_skeleton(numbers, drawn))
    return Chem.RenumberAtoms(mol, np.argsort(atom_of).tolist()) if atom_of else None


def _ordered(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


def _closest_pairs(z: np.ndarray, pos: np.ndarray, count: int) -> set[tuple[int, int]]:
    """The ``count`` pairs i < j with the least distance over summed covalent radii."""
    i, j = np.triu_indices(len(z), k=1)
    distance = np.linalg.norm(pos[i] - pos[j], axis=1)
    chosen = np.argsort(distance / (covalent_radii[z[i]] + covalent_radii[z[j]]))[:count]
    return set(zip(i[chosen].tolist(), j[chosen].tolist(), strict=True))


def _skeleton(numbers: Sequence[int], pairs: Iterable[tuple[int, int]]) -> Chem.Mol:
    """Elements and connections alone: no charge, no bond order."""
    mol = Chem.RWMol()
    for number in numbers:
        mol.AddAtom(Chem.Atom(number))
    for a, b in pairs:
        mol.AddBond(a, b, Chem.BondType.SINGLE)
    return mol.GetMol()


def _select_rows(records: QM9Records, indices: Iterable[int] | None) -> tuple[dict[int, int], int]:
    """Row of the records for each chosen 1-based index, and the last index to write."""
    row_of = {int(index): row for row, index in enumerate(records.index)}
    if indices is None:
        return row_of, NUM_QM9
    chosen = sorted({int(index) for index in indices})
    unknown = [index for index in chosen if index not in row_of]
    if unknown or not chosen:
        raise ValueError(
            f"indices {unknown[:5]} are not in qm9pack; choose 1-based gdb9 indices from 1 to "
            f"{NUM_QM9} that are not among the {NUM_QM9 - len(row_of):,} uncharacterized ones"
        )
    return {index: row_of[index] for index in chosen}, chosen[-1]


def _write_sdf(
    path: Path, records: QM9Records, rows: dict[int, int], last: int, progress: bool
) -> dict[int, str]:
    """Write one record per index; return the SMILES of those that had to go without bonds."""
    unmatched: dict[int, str] = {}
    with path.open("w") as file:
        for index in tqdm(range(1, last + 1), "gdb9.sdf", disable=not progress):
            if index not in rows:
                file.write(_sdf_record(f"gdb_{index}", Chem.MolFromSmiles("*"), np.zeros((1, 3))))
                continue
            row = rows[index]
            atoms = slice(records.ptr[row], records.ptr[row + 1])
            z, pos, smiles = records.z[atoms], records.pos[atoms], records.smiles[row]
            mol = match_smiles(smiles, z, pos)
            if mol is None:
                unmatched[index] = smiles
                mol = _skeleton(z.tolist(), [])
            file.write(_sdf_record(f"gdb_{index}", mol, pos))
    return unmatched


def _sdf_record(name: str, mol: Chem.Mol, pos: np.ndarray) -> str:
    conformer = Chem.Conformer(len(pos))
    conformer.Set3D(True)
    conformer.SetPositions(np.ascontiguousarray(pos))
    mol.AddConformer(conformer)
    mol.SetProp("_Name", name)
    style: Any = Chem.MolWriterParams()
    style.forceV3000, style.precision = True, 10
    style.kekulize, style.includeStereo = False, False
    return f"{Chem.MolToMolBlock(mol, style)}$$$$\n"


def _write_csv(path: Path, records: QM9Records, rows: dict[int, int], last: int) -> None:
    """Write the properties in Hartree, the four atomisation columns in kcal/mol."""
    atomization = np.round(records.atomization_energies() * HARTREE_IN_CSV, 9)
    values = np.concatenate([records.properties, atomization], axis=1)
    with path.open("w") as file:
        file.write(",".join(("mol_id", *CSV_COLUMNS)) + "\n")
        for index in range(1, last + 1):
            line = values[rows[index]].tolist() if index in rows else [float("nan")] * 19
            file.write(f"gdb_{index}," + ",".join(map(repr, line)) + "\n")


def _write_absent(path: Path, absent: list[int]) -> None:
    """PyG skips nine lines of head and the closing rule, and reads the first column between."""
    path.write_text("\n".join([*_absent_head(len(absent)), *map("{:8d}".format, absent), RULE, ""]))


RULE = "=" * 78


def _absent_head(count: int) -> Iterator[str]:
    yield f"QM9 molecules without a record in the qm9pack wheel: {count}."
    yield "All 3,054 of the complete data set failed QM9's own consistency check: the relaxed"
    yield "geometry and the starting one gave different SMILES (Ramakrishnan et al. 2014,"
    yield "doi:10.1038/sdata.2014.22). Where this list is longer, only a part was written."
    yield "Each one is a single dummy atom in gdb9.sdf and a line of nan in gdb9.sdf.csv."
    yield ""
    yield RULE
    yield "   Index (1-based gdb9 index)"
    yield RULE


def _write_unmatched(path: Path, unmatched: dict[int, str]) -> None:
    head = "# 1-based gdb9 index and SMILES of the molecules written without bonds\n"
    path.write_text(head + "".join(f"{index} {smiles}\n" for index, smiles in unmatched.items()))
