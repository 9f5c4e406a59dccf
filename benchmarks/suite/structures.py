"""What is measured on: molecules of QM9, random molecules, boxes of water."""

from __future__ import annotations

import math

import numpy as np
import torch
from ase import Atoms
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg import PackedMolecules
from hipnn_pyg.data.sets import QM9Set
from hipnn_pyg.data.targets import Target
from hipnn_pyg.data.unavailable import DatasetUnavailableError
from suite.rows import Unavailable

SPECIES = (1, 6, 7, 8, 9)


def qm9_molecules(root: str, num: int, seed: int) -> PackedMolecules:
    """Random molecules of QM9 (U0 atomisation energies in eV).

    Raises:
        Unavailable: QM9 is neither there nor to be had.
    """
    try:
        packed, kept = QM9Set(root=root).load()
    except (DatasetUnavailableError, ImportError) as error:
        raise Unavailable(f"QM9: {error}; --synthetic takes random molecules") from error
    generator = torch.Generator().manual_seed(seed)
    return packed.subset(kept[torch.randperm(len(kept), generator=generator)[:num]])


def random_molecules(num: int, seed: int) -> PackedMolecules:
    """Clumps of 9 to 27 atoms, 18 on average, at least 1 Å apart, with made-up energies in eV."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*3 * [np.arange(4.0)]), axis=-1).reshape(-1, 3)
    molecules = []
    for n in random.integers(9, 28, num):
        pos = 1.4 * grid[random.permutation(64)[:n]] + random.uniform(-0.1, 0.1, (n, 3))
        z = torch.from_numpy(random.choice(SPECIES, n, p=(0.51, 0.35, 0.06, 0.07, 0.01)))
        energy = torch.tensor([-4.0 * n + random.normal()], dtype=torch.float64)
        molecules.append(Data(z=z, pos=torch.from_numpy(pos).float(), energy=energy))
    return PackedMolecules.pack(molecules, Target("energy", "eV", "energy"))


SPACING = 30.0 ** (1 / 3)
"""Edge of the cube of a water molecule in Å: 3 atoms in 30 Å^3."""


def water_box(num_atoms: int, seed: int) -> tuple[Tensor, Tensor]:
    """A finite piece of water: molecules on a cubic grid, shaken and turned at random.

    0.1 atoms per Å^3; atoms of different molecules are at least 1.2 Å apart, since molecules that
    are closer are turned again.

    Args:
        num_atoms: at most so many atoms, a multiple of 3 below.
        seed: of shifts and rotations.

    Returns:
        ``(z [N], pos [N, 3] float32 in Å)``.
    """
    random = np.random.default_rng(seed)
    count = num_atoms // 3
    side = math.ceil(count ** (1 / 3))
    centres = np.stack(np.unravel_index(np.arange(count), 3 * (side,)), axis=1) * SPACING
    centres += random.uniform(-0.1, 0.1, centres.shape)
    half = math.radians(104.52 / 2)
    arms = 0.9572 * np.array(
        [[math.sin(half), math.cos(half), 0], [-math.sin(half), math.cos(half), 0]]
    )
    water = np.concatenate([np.zeros((1, 3)), arms])
    pos = np.empty((count, 3, 3))
    turned = np.arange(count)
    while turned.size:
        rotations = Rotation.random(turned.size, rng=random).as_matrix()
        pos[turned] = centres[turned, None] + np.einsum("mxy,ay->max", rotations, water)
        close = cKDTree(pos.reshape(-1, 3)).query_pairs(1.2, output_type="ndarray") // 3
        turned = np.unique(close[close[:, 0] != close[:, 1], 0])
    z = torch.tensor([8, 1, 1]).repeat(count)
    return z, torch.from_numpy(pos.reshape(-1, 3)).float()


def water_crystal(num_atoms: int, seed: int) -> Atoms:
    """:func:`water_box` as the content of a cubic cell that repeats.

    Args:
        num_atoms: about so many atoms: those of a cube of molecules, at least one.
        seed: of shifts and rotations.
    """
    side = max(1, round((num_atoms / 3) ** (1 / 3)))
    z, pos = water_box(3 * side**3, seed)
    return Atoms(z.numpy(), pos.double().numpy(), cell=3 * [side * SPACING], pbc=True)
