"""Molecules of a data set as a user's SMILES would give them: embedded anew by RDKit."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.molecules import from_smiles
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.ragged import rows_of
from hipnn_pyg.data.targets import Target

PART = 10_000
"""Molecules whose geometries are kept in one file."""
WORKERS_PAY_AFTER = 500
"""Molecules that take as long to embed as processes to start."""
RECIPE = b"as typed, ETKDGv3, MMFF94, seed 0"
"""How geometries are made, to be changed with that: kept ones are then made anew."""


class Embedded(NamedTuple):
    """Molecules on RDKit geometries, with the energies of the data set's own geometries.

    Attributes:
        molecules: packed.
        kept: which they are, ``[m]``.
        failed: how many could not be embedded, or came out with other atoms.
    """

    molecules: PackedMolecules
    kept: Tensor
    failed: int


def embed(
    smiles: Sequence[str],
    molecules: PackedMolecules,
    index: Tensor,
    seed: int = 0,
    progress: bool = False,
) -> Embedded:
    """Embed SMILES (ETKDG), relax them (MMFF94) and keep the data set's energies.

    They are taken as people type them, see :func:`typed`.

    Args:
        smiles: of every molecule, as the data set has them.
        molecules: the data set, on the CPU.
        index: which molecules.
        seed: of the conformers.
        progress: show a progress bar.

    Raises:
        StructureError: none of them could be embedded.
    """
    items, kept = [], []
    chosen = index.tolist()
    made = conformers([typed(smiles[number]) for number in chosen], seed, progress)
    for number, data in zip(chosen, made, strict=True):
        batch = molecules.gather(torch.tensor([number]))
        if isinstance(data, Data) and torch.equal(data.z.sort().values, batch.z.sort().values):
            items.append(Data(z=data.z, pos=data.pos, energy=batch.target))
            kept.append(number)
    target = Target(molecules.spec.name, molecules.spec.unit, "energy")
    return Embedded(PackedMolecules.pack(items, target), torch.tensor(kept), len(index) - len(kept))


def typed(smiles: str) -> str:
    """A SMILES as people type it: hydrogens implied, no stereochemistry.

    Those of PyG's own QM9 spell hydrogens out and have the stereochemistry of the DFT geometry,
    which nobody knows beforehand.

    Args:
        smiles: it is not changed if it has neither, or cannot be read.
    """
    from rdkit import Chem

    mol = None
    if any(mark in smiles for mark in ("[H]", "@", "/", "\\")):
        mol = Chem.MolFromSmiles(smiles)
    return smiles if mol is None else Chem.MolToSmiles(mol, isomericSmiles=False)


def on_rdkit_geometries(
    smiles: Sequence[str], molecules: PackedMolecules, folder: Path, progress: bool = False
) -> tuple[PackedMolecules, Tensor]:
    """A data set with RDKit's geometries (seed 0) in place of its own.

    They are kept in files of 10,000 molecules, named by their SMILES, their elements and how they
    are made (:data:`RECIPE`): what was interrupted goes on.

    Args:
        smiles: of every molecule.
        molecules: the data set, on the CPU.
        folder: of the files, for one version of RDKit.
        progress: show a progress bar.

    Returns:
        The data set and which molecules have an RDKit geometry, ``[M]``; the others have their own.

    Raises:
        ValueError: a file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    z, pos = molecules.z.clone(), molecules.pos.clone()
    found = torch.zeros(len(molecules), dtype=torch.bool)
    for first in range(0, len(molecules), PART):
        index = torch.arange(first, min(first + PART, len(molecules)))
        file = folder / f"{first:06d}-{_digest(smiles, molecules, index)}.npz"
        if not file.exists():
            made = embed(smiles, molecules, index, progress=progress)
            z_made, pos_made = made.molecules.z.numpy(), made.molecules.pos.numpy()
            partial = file.with_suffix(f".{os.getpid()}.npz")
            np.savez_compressed(partial, kept=made.kept.numpy(), z=z_made, pos=pos_made)
            partial.replace(file)
        kept, own_z, own_pos = _read(file)
        _, _, atoms = rows_of(kept, molecules.counts, molecules.start)
        z[atoms], pos[atoms] = own_z.to(z.dtype), own_pos.to(pos.dtype)
        found[kept] = True
    return replace(molecules, z=z, pos=pos), found


def _read(file: Path) -> list[Tensor]:
    """Which molecules a file of geometries has, their atomic numbers and positions."""
    try:
        with np.load(file) as stored:
            return [torch.from_numpy(stored[name]) for name in ("kept", "z", "pos")]
    except Exception as error:  # of damage inside, NumPy, zipfile and zlib have many
        raise ValueError(
            f"{file} is damaged ({error!r}): delete it, then it is made again"
        ) from error


def _digest(smiles: Sequence[str], molecules: PackedMolecules, index: Tensor) -> str:
    """Of what the geometries of some molecules depend on."""
    part = molecules.subset(index)
    digest = hashlib.sha256(RECIPE + "\n".join(smiles[k] for k in index.tolist()).encode())
    digest.update(part.counts.numpy().tobytes() + part.atomic_numbers().numpy().tobytes())
    return digest.hexdigest()[:16]


def conformers(
    smiles: Sequence[str], seed: int, progress: bool = False, optimize: bool = True
) -> Iterator[Data | StructureError]:
    """One conformer of each SMILES in turn, see :func:`from_smiles`, or why it has none.

    Args:
        smiles: the molecules; many are shared out over the processor's cores.
        seed: of the conformers.
        progress: show a progress bar.
        optimize: relax them with MMFF94.
    """
    bar = tqdm(
        total=len(smiles),
        desc="embedding SMILES",
        leave=False,
        disable=not progress,
        delay=1.0,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )
    given = (smiles, repeat(seed), repeat(optimize))
    with bar, _workers(len(smiles)) as pool:
        found = (
            map(_conformer, *given) if pool is None else pool.map(_conformer, *given, chunksize=50)
        )
        for text, made in zip(smiles, found, strict=True):
            bar.update()
            if isinstance(made, str):
                yield StructureError(made)
            else:
                yield Data(z=torch.tensor(made[0]), pos=torch.tensor(made[1]), smiles=text)


@contextmanager
def _workers(number: int) -> Iterator[ProcessPoolExecutor | None]:
    cores = os.cpu_count() or 1
    if cores == 1 or number < WORKERS_PAY_AFTER:
        yield None
        return
    fresh = multiprocessing.get_context("spawn")  # threads of this process do not survive a fork
    with ProcessPoolExecutor(cores, fresh, torch.set_num_threads, (1,)) as pool:
        yield pool


def _conformer(smiles: str, seed: int, optimize: bool) -> tuple[np.ndarray, np.ndarray] | str:
    try:
        data = from_smiles(smiles, seed, optimize)
    except StructureError as error:
        return str(error)
    return data.z.numpy(), data.pos.numpy()
