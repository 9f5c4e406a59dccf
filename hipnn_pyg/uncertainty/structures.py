"""Structures unlike QM9's, made to test whether a model notices: each class says how."""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch_geometric.data import Data

BOND = 1.25
"""Two atoms are bonded up to this multiple of the sum of their covalent radii."""


class Drug(NamedTuple):
    """A drug of H, C, N, O and F with 12 or more heavy atoms (``datasets/drugs``)."""

    name: str
    formula: str
    smiles: str


def drugs() -> list[Drug]:
    """The list of ``datasets/drugs``, larger than any molecule of QM9."""
    text = files("hipnn_pyg.data").joinpath("drugs.csv").read_text()
    return [Drug(**row) for row in csv.DictReader(text.splitlines())]


def bonds(data: Data) -> NDArray[np.bool_]:
    """Which atoms are bonded, judged by distance alone, ``[N, N]``."""
    z, pos = data.z.numpy(), data.pos.double()
    near = torch.cdist(pos, pos).numpy() < BOND * (covalent_radii[z][:, None] + covalent_radii[z])
    return near & ~np.eye(len(z), dtype=bool)


def stretched(data: Data, by: float = 0.3, seed: int = 0) -> Data | None:
    """One bond outside rings longer by ``by`` Å: everything behind it moves along.

    Args:
        data: a molecule.
        by: lengthening in Å; negative to compress.
        seed: which bond.

    Returns:
        The changed copy; None if no bond cuts the molecule in two.
    """
    joined = bonds(data)
    pairs = np.argwhere(np.triu(joined))
    for i, j in np.random.default_rng(seed).permutation(pairs):
        rest = joined.copy()
        rest[i, j] = rest[j, i] = False
        _, part = connected_components(csr_array(rest))
        if part[i] != part[j]:
            along = torch.nn.functional.normalize(data.pos[j] - data.pos[i], dim=0)
            moved = torch.from_numpy(part == part[j])[:, None]
            return Data(z=data.z, pos=data.pos + by * along * moved)
    return None


def rattled(data: Data, by: float = 0.1, seed: int = 0) -> Data:
    """Every coordinate moved by a normal deviate of ``by`` Å."""
    deviates = np.random.default_rng(seed).normal(0, by, data.pos.shape)
    return Data(z=data.z, pos=data.pos + torch.from_numpy(deviates).to(data.pos))


def rotated(data: Data, seed: int = 0) -> Data:
    """Turned as a whole: the same molecule, so every answer must stay."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    turn: Tensor = torch.from_numpy(matrix * np.sign(np.linalg.det(matrix))).to(data.pos)
    return Data(z=data.z, pos=data.pos @ turn.T)
