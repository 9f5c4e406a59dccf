"""Structures from SMILES, ASE atoms and files, to and from PyG ``Data``: Å and eV."""

from __future__ import annotations

import lzma
import warnings
import zlib
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg.checks import HIPNNWarning, StructureError

if TYPE_CHECKING:
    from rdkit.Chem import Mol

_MAX_MMFF_STEPS = 5_000
COMPRESSED = (".gz", ".bz2", ".xz")
"""Ends of names behind which ASE looks for what is compressed."""


def from_smiles(smiles: str, seed: int = 0, optimize: bool = True) -> Data:
    """Build one conformer of a molecule: add hydrogens, embed (ETKDGv3), relax with MMFF94.

    Args:
        smiles: SMILES of one connected molecule.
        seed: seed of the embedding, 0 to 2^31 - 1; the same seed gives the same coordinates.
        optimize: relax with MMFF94 after embedding.

    Returns:
        ``Data`` with ``z`` ``[N]``, ``pos`` ``[N, 3]`` in Å and ``smiles``.

    Raises:
        StructureError: the SMILES cannot be parsed, is several, has several fragments, a charge or
            an unpaired electron, cannot be embedded, or MMFF94 has no parameters for it or does
            not converge.
        ValueError: a seed outside that range, of which RDKit makes a random one, or none.
        ImportError: RDKit is not installed.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"the seed of an embedding must be 0 to {2**31 - 1}, not {seed}")
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise ImportError("SMILES need RDKit: pip install rdkit") from error
    if len(smiles.split()) > 1:  # of which RDKit makes the molecule's name
        raise StructureError(f"SMILES {smiles!r}: it has white space within; give one SMILES")
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None or mol.GetNumAtoms() == 0:
            raise StructureError(f"SMILES {smiles!r}: parsing failed; it is empty or not valid")
        fragments = len(Chem.GetMolFrags(mol))
        if fragments > 1:
            raise StructureError(
                f"SMILES {smiles!r}: {fragments} fragments, whose distance a SMILES does not say; "
                f"give each '.'-separated part by itself"
            )
        _check_neutral(mol, f"SMILES {smiles!r}")
        mol = Chem.AddHs(mol)
        _embed(mol, smiles, seed)
        if optimize:
            _relax(mol, smiles)
    return Data(
        z=_atomic_numbers([atom.GetAtomicNum() for atom in mol.GetAtoms()], f"SMILES {smiles!r}"),
        pos=_real(mol.GetConformer().GetPositions()),
        smiles=smiles,
    )


def _embed(mol: Mol, smiles: str, seed: int) -> None:
    from rdkit.Chem import rdDistGeom

    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed
    if rdDistGeom.EmbedMolecule(mol, parameters) != 0:
        raise StructureError(
            f"SMILES {smiles!r}: embedding (ETKDGv3, seed {seed}) found no 3-D structure; "
            f"try another seed, or read the structure from a file"
        )


def _relax(mol: Mol, smiles: str) -> None:
    from rdkit.Chem import rdForceFieldHelpers

    if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        raise StructureError(
            f"SMILES {smiles!r}: MMFF94 has no parameters for it; optimize=False "
            f"(--optimize false) keeps the embedded geometry"
        )
    if rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=_MAX_MMFF_STEPS) != 0:
        raise StructureError(
            f"SMILES {smiles!r}: MMFF94 did not converge in {_MAX_MMFF_STEPS} steps; "
            f"optimize=False (--optimize false) keeps the embedded geometry"
        )


def from_atoms(atoms: Atoms) -> Data:
    """Convert an ASE structure.

    Positions and cell get torch's default dtype. Energy, forces and stress are taken over if a
    calculator holds them for exactly this structure; nothing is computed.

    Returns:
        ``Data`` with ``z`` ``[N]`` and ``pos`` ``[N, 3]`` in Å; ``cell`` ``[1, 3, 3]`` in Å (rows
        are the lattice vectors) and ``pbc`` ``[1, 3]`` if it is periodic in any direction;
        ``energy`` ``[1]`` in eV (float64), ``force`` ``[N, 3]`` in eV/Å and, if it is periodic in
        all directions, ``stress`` ``[1, 3, 3]`` in eV/Å^3 if known.

    Raises:
        StructureError: no atoms, an unknown element, a position or cell that is not finite, a
            periodic direction without a lattice vector, or an energy that is no number.
    """
    label = f"structure {atoms.get_chemical_formula() or 'without atoms'}"
    data = Data(z=_atomic_numbers(atoms.numbers, label), pos=_real(atoms.positions))
    if not torch.isfinite(data.pos).all():
        raise StructureError(f"{label}: a position is not finite")
    if atoms.pbc.any():
        _check_cell(atoms, label)
        data.cell = _real(atoms.cell.array).unsqueeze(0)
        data.pbc = torch.tensor(atoms.pbc).unsqueeze(0)
    energy, forces, stress = (_known_result(atoms, name) for name in ("energy", "forces", "stress"))
    if energy is not None:
        try:
            data.energy = torch.tensor([float(energy)], dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise StructureError(
                f"{label}: its energy is {energy!r}, which is no number"
            ) from error
    if forces is not None:
        data.force = _real(forces)
    if stress is not None and atoms.pbc.all():
        full = voigt_6_to_full_3x3_stress(stress) if np.shape(stress) == (6,) else stress
        data.stress = _real(full).reshape(1, 3, 3)
    return data


def _check_neutral(mol: Any, label: str) -> None:
    """A model sees elements and positions, so that an ion would get a neutral molecule's energy."""
    charge = sum(atom.GetFormalCharge() for atom in mol.GetAtoms())
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
    if charge or unpaired:
        raise StructureError(
            f"{label} has charge {charge:+d} and {unpaired} unpaired electrons: models know "
            "neither, and their training molecules are neutral and closed-shell"
        )


def read_structures(path: str | Path) -> list[Data]:
    """Read every structure of a file in any format ASE knows (xyz, extxyz, cif, db, traj, ...).

    Returns:
        One ``Data`` per structure, as :func:`from_atoms` makes it; ``energy`` is in eV, so its
        target is :data:`hipnn_pyg.data.targets.ASE_ENERGY`.

    Raises:
        FileNotFoundError: there is no such file.
        StructureError: ASE cannot read it, it holds no structure, or one of them is not valid.
    """
    structures = []
    for found in read_each(path):
        if isinstance(found, StructureError):
            raise found
        structures.append(found)
    return structures


def read_each(path: str | Path) -> list[Data | StructureError]:
    """The same, with the reason in place of each structure that is not valid.

    Where all have a name (the title of an SDF record, ``name=`` in extxyz), ``name`` is kept.

    Raises:
        FileNotFoundError: there is no such file.
        StructureError: ASE cannot read it, or it holds no structure.
    """
    structures: list[Data | StructureError] = []
    read = read_atoms(path)
    named = all("name" in found.info for found in read if isinstance(found, Atoms))
    for number, found in enumerate(read):
        if isinstance(found, StructureError):
            structures.append(found)
            continue
        try:
            data = from_atoms(found)
        except StructureError as error:
            structures.append(StructureError(f"{path}, structure {number}: {error}"))
            continue
        if named:
            data.name = str(found.info["name"])
        structures.append(data)
    return structures


def read_atoms(path: str | Path, index: int | None = None) -> list[Atoms | StructureError]:
    """Structures of a file as ASE has them, with velocities and constraints.

    Records of SDF and MOL files are read by RDKit. One with a charge or an unpaired electron is no
    structure, nor is one drawn in two dimensions or without its hydrogens. Of other formats a
    charge in ``info`` (extxyz: ``charge=-1``) is warned of, once.

    Args:
        path: the file.
        index: which structure, negative ones count from the end; None for all.

    Returns:
        The structures, or the reason in place of each that is none.

    Raises:
        FileNotFoundError: there is no such file.
        StructureError: it cannot be read, or holds no (such) structure.
    """
    import ase.io
    from ase.io.formats import open_with_compression

    if not Path(path).exists():
        raise FileNotFoundError(f"no structure file {path}")
    kind = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() not in COMPRESSED]
    which = slice(None) if index is None else slice(index, index + 1 or None)
    found: list[Atoms | StructureError]
    if kind[-1:] in ([".sdf"], [".mol"]):  # of which ASE reads the atoms of the first record only
        found = _records(path)[which]
    else:
        try:
            if kind[-1:] in ([".xyz"], [".extxyz"]):
                with open_with_compression(str(path), "r") as file:
                    _check_whole(path, file)
            found = list(ase.io.iread(path, index=which, do_not_split_by_at_sign=True))
        except (ImportError, StructureError):
            raise
        except Exception as error:  # every ASE format has exceptions of its own
            part = "it" if index is None else f"structure {index} of it"
            raise StructureError(
                f"{path}: ASE cannot read {part} ({type(error).__name__}: {error}); `ase info "
                "--formats` lists the formats it knows"
            ) from error
    if not found:
        raise StructureError(f"{path} holds no structure" + ("" if index is None else f" {index}"))
    _warn_if_charged(path, found, index)
    return found


def _warn_if_charged(
    path: str | Path, structures: list[Atoms | StructureError], index: int | None
) -> None:
    """A model can learn ions of one charge; it would take others, and molecules, for the same."""
    for number, atoms in enumerate(structures):
        charge = atoms.info.get("charge") if isinstance(atoms, Atoms) else None
        if isinstance(charge, Real) and charge:
            place = number if index is None else index
            warnings.warn(
                f"{path}, structure {place} has charge {charge:+g}: models do not know charge; let "
                "one learn and predict structures of one charge only",
                HIPNNWarning,
                stacklevel=3,
            )
            return


def _check_whole(path: str | Path, file: IO[str]) -> None:
    """At a blank line between two structures of an xyz file ASE would stop reading."""
    lines = enumerate(file, 1)
    for number, line in lines:
        if not line.strip():
            if any(rest.strip() for _, rest in lines):
                raise StructureError(
                    f"{path}, line {number} is blank, where the next structure should begin: "
                    "delete it, nothing behind it would be read"
                )
            return
        if not line.strip().isdecimal():
            return  # another kind of file
        for _ in zip(range(int(line) + 1), lines, strict=False):  # comment and atoms
            pass


def _records(path: str | Path) -> list[Atoms | StructureError]:
    """Every record of an SDF or MOL file, with all the atoms that it lists."""
    from ase.io.formats import open_with_compression
    from rdkit import Chem, rdBase

    try:
        with open_with_compression(str(path), "rb") as file:
            content = BytesIO(file.read())
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise StructureError(f"{path} is damaged ({error}): restore it") from error
    structures: list[Atoms | StructureError] = []
    with rdBase.BlockLogs():
        records = Chem.ForwardSDMolSupplier(content, sanitize=False, removeHs=False)
        for number, mol in enumerate(records):
            try:
                structures.append(_of_record(mol, f"{path}, record {number}"))
            except StructureError as error:
                structures.append(error)
    return structures


def _of_record(mol: Mol | None, where: str) -> Atoms:
    if mol is None or not mol.GetNumConformers():
        raise StructureError(f"{where}: RDKit cannot read it, or it has no positions")
    _check_neutral(mol, where)
    conformer = mol.GetConformer()
    if mol.GetNumAtoms() > 1 and not conformer.Is3D():
        raise StructureError(
            f"{where} is drawn in two dimensions: give it 3-D positions with all hydrogens (and "
            "3D in its second line, if all z are 0), or its SMILES"
        )
    mol.UpdatePropertyCache(strict=False)
    missing = sum(atom.GetNumImplicitHs() for atom in mol.GetAtoms())
    if missing and mol.GetNumBonds():  # without bonds there is nothing to judge by
        raise StructureError(
            f"{where} has bonds that leave room for more hydrogens ({missing}): give all atoms; if "
            "none are missing, correct the bonds, or leave them out as in an xyz file"
        )
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    return Atoms(numbers, conformer.GetPositions(), info={"name": mol.GetProp("_Name")})


def to_atoms(
    data: Data, energy: Tensor | float | None = None, forces: Tensor | None = None
) -> Atoms:
    """Convert one graph to ASE, with results attached so that ``ase.io.write`` stores them.

    Args:
        data: one graph with ``z`` and ``pos``, and ``cell`` with ``pbc`` if periodic.
        energy: its energy in eV; the label in ``data.energy`` is not used.
        forces: its forces in eV/Å, ``[N, 3]``; the label in ``data.force`` is not used.

    Raises:
        StructureError: ``data`` holds several graphs.
    """
    from ase.calculators.singlepoint import SinglePointCalculator

    if getattr(data, "num_graphs", 1) != 1:
        raise StructureError(
            f"{data.num_graphs} graphs in one batch: convert each of batch.to_data_list()"
        )
    atoms = Atoms(numbers=_array(data.z), positions=_array(data.pos))
    if getattr(data, "cell", None) is not None:
        atoms.cell[:] = _array(data.cell).reshape(3, 3)
        atoms.pbc = _array(data.pbc).reshape(3) if getattr(data, "pbc", None) is not None else True
    if energy is not None or forces is not None:
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=None if energy is None else float(energy),
            forces=None if forces is None else _array(forces).reshape(len(atoms), 3),
        )
    return atoms


def _atomic_numbers(numbers: Any, label: str) -> Tensor:
    z = torch.as_tensor(np.asarray(numbers), dtype=torch.int64)
    if z.numel() == 0:
        raise StructureError(f"{label}: there are no atoms")
    if int(z.min()) < 1:
        raise StructureError(f"{label}: atom {int(z.argmin())} has no element (atomic number 0)")
    return z


def _check_cell(atoms: Atoms, label: str) -> None:
    cell = atoms.cell.array
    if not np.isfinite(cell).all():
        raise StructureError(f"{label}: the cell is not finite")
    periodic = cell[atoms.pbc]
    if np.linalg.matrix_rank(periodic) < len(periodic):
        raise StructureError(
            f"{label}: periodic along {atoms.pbc.tolist()}, but those lattice vectors are zero or "
            f"dependent: {periodic.tolist()} Å"
        )


def _known_result(atoms: Atoms, name: str) -> Any:
    """A result the calculator already holds for these atoms, else None."""
    results = getattr(atoms.calc, "results", {})
    if name not in results or atoms.calc.check_state(atoms):
        return None
    return results[name]


def _real(values: np.ndarray) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.get_default_dtype())


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
