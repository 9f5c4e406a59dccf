"""Molecules of a data set as a user's SMILES would give them: embedded anew by RDKit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.molecules import from_smiles
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.targets import Target


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
    bar = tqdm(
        index.tolist(),
        "embedding SMILES",
        leave=False,
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )
    for number in bar:
        batch = molecules.gather(torch.tensor([number]))
        try:
            data = from_smiles(smiles[number], seed)
        except StructureError:
            continue
        if torch.equal(data.z.sort().values, batch.z.sort().values):
            items.append(Data(z=data.z, pos=data.pos, energy=batch.target))
            kept.append(number)
    target = Target(molecules.spec.name, molecules.spec.unit, "energy")
    return Embedded(PackedMolecules.pack(items, target), torch.tensor(kept), len(index) - len(kept))
