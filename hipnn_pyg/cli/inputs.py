"""What ``hipnn predict`` and ``hipnn explain`` are given: structures, and those that are none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch_geometric.data import Data, InMemoryDataset

from hipnn_pyg.checks import StructureError, check_species
from hipnn_pyg.data.embedded import conformers
from hipnn_pyg.data.molecules import read_each
from hipnn_pyg.data.periodic import cells_of
from hipnn_pyg.uncertainty import CalibratedModel
from hipnn_pyg.uncertainty.error_bars import Kind

HELP = "SMILES, .smi files, files that ASE reads (xyz, db ...), roots of PyG data sets"
SMILES_FILES = (".smi", ".smiles")
"""A SMILES and, after a space or tab, a name on each line."""
STRUCTURE_FILES = (
    *SMILES_FILES,
    *(".xyz", ".extxyz", ".db", ".traj", ".cif", ".sdf", ".mol", ".json"),
)


class StoredDataset(InMemoryDataset):
    """A PyG data set as it lies in a root folder: the one file below ``processed/``.

    Args:
        root: folder that PyG's data set class was given.
    """

    def __init__(self, root: str | Path) -> None:
        files = sorted(
            path for path in Path(root).rglob("processed/*.pt") if not path.name.startswith("pre_")
        )
        if len(files) != 1:
            raise StructureError(
                f"{root} has {len(files)} files processed/*.pt: give the root folder of one "
                "PyG InMemoryDataset"
            )
        super().__init__()
        try:
            torch.load(files[0], weights_only=True)  # PyG itself would run code that a file brings
        except Exception as error:  # of damage inside, torch and pickle have many
            raise StructureError(
                f"{files[0]} is damaged, or holds more than PyG's Data and tensors "
                f"({type(error).__name__}): load it in a script of your own"
            ) from error
        self.load(str(files[0]))


class Named(NamedTuple):
    """A structure, what to call it, and where its positions come from."""

    name: str
    data: Data
    geometry: Kind = "given"


class Refused(NamedTuple):
    """What has no energy, and why."""

    name: str
    reason: str


Listed = tuple[str, Data | StructureError | str]
"""A name, and a structure, a SMILES, or why it is none of these."""


def listed(inputs: Iterable[str], limit: int | None = None) -> list[Listed]:
    """What every input holds: an existing file or folder, else a SMILES; nothing is embedded.

    Args:
        inputs: SMILES strings, file names, folder names.
        limit: the first so many only.

    Raises:
        StructureError: an input is none of these, or a file cannot be read.
    """
    found: list[Listed] = []
    for text in inputs:
        path = Path(text)
        if text and os.path.isdir(path):  # not path.is_dir(): it fails on a long SMILES
            dataset: Sequence[Data] = StoredDataset(path)
            left = None if limit is None else max(0, limit - len(found))
            found += _named(text, islice(dataset, left))
        elif os.path.isfile(path) and path.suffix.lower() in SMILES_FILES:
            found += read_smiles(path)
        elif os.path.isfile(path):
            found += _named(text, read_each(path))
        elif path.suffix.lower() in STRUCTURE_FILES:
            raise StructureError(f"{text} does not exist: give a file, a folder or a SMILES")
        elif can_be_parsed(text):
            found.append((text, text))
        else:
            reason = f"SMILES {text!r}: parsing failed; nor is there a file of that name"
            found.append((text, StructureError(reason)))
    return found[:limit]


def _named(text: str, structures: Iterable[Data | StructureError]) -> Iterator[Listed]:
    """Structures of one input with their own names, or its name and their numbers."""
    for number, each in enumerate(structures):
        name = each.get("name") if isinstance(each, Data) else None
        yield str(name or f"{text}#{number}"), each


def can_be_parsed(smiles: str) -> bool:
    """Whether RDKit can read a SMILES."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles) is not None


def embedded(
    found: Sequence[Listed], seed: int = 0, optimize: bool = True, progress: bool = False
) -> list[Named | Refused]:
    """Structures of what was listed.

    Args:
        found: as :func:`listed` gives it.
        seed: of the conformers made from SMILES.
        optimize: relax those with MMFF94.
        progress: show a progress bar while SMILES are embedded.
    """
    smiles = [source for _, source in found if isinstance(source, str)]
    made = conformers(smiles, seed, progress, optimize)
    read: list[Named | Refused] = []
    for name, source in found:
        if isinstance(source, str):
            data = next(made)
            if isinstance(data, StructureError):
                read.append(Refused(name, str(data)))
            else:
                read.append(Named(name, data, "rdkit" if optimize else None))
        elif isinstance(source, StructureError):
            read.append(Refused(name, str(source)))
        else:
            read.append(_structure(name, source))
    return read


def _structure(name: str, data: Data) -> Named | Refused:
    try:
        return Named(name, data, "given" if cells_of(data, 1) is None else "periodic")
    except StructureError as error:
        return Refused(name, f"{name}: {error}")


def read_smiles(path: Path) -> list[tuple[str, str]]:
    """Name and SMILES of each line; what has no name is called by its SMILES.

    Args:
        path: a file of a SMILES and, after a space or tab, a name on each line.

    Raises:
        StructureError: it is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise StructureError(f"{path} is not UTF-8 ({error}): save it as that") from error
    found = (line.split(maxsplit=1) for line in lines)
    return [(parts[-1].strip(), parts[0]) for parts in found if parts]


def check(read: list[Named | Refused], model: CalibratedModel) -> list[Named | Refused]:
    """The same, with the reason in place of each structure that the model cannot take.

    Args:
        read: as :func:`embedded` gives it.
        model: what shall predict their energies.
    """
    structures = [each.data for each in read if isinstance(each, Named)]
    if not structures or fault(structures, model) is None:  # the usual case, all at once
        return read
    checked: list[Named | Refused] = []
    for each in read:
        reason = fault([each.data], model) if isinstance(each, Named) else None
        checked.append(each if reason is None else Refused(each.name, f"{each.name}: {reason}"))
    return checked


def fault(structures: list[Data], model: CalibratedModel) -> str | None:
    """What the model cannot take of some structures; None: it takes them all."""
    try:
        z = model.pack(structures).z
        for member in model.models:
            check_species(z, member.species_index(z) >= 0, member.species)
    except StructureError as error:
        return str(error)
    return None
