"""A file of small molecules, and a run trained on it through the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from os import environ
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from hipnn_pyg.cli import main

SMALL = (
    "--hidden_channels 6 --num_onsite 1 --num_sensitivities 6 --cutoff 5 --device cpu --compile off"
).split()
"""A network that trains in a second."""
SMILES = ("C", "N", "O", "CO")
"""Of the four molecules that the files of these tests repeat."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the subprocesses, also for what a module makes once for all its tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_molecules(path: Path, number: int = 200) -> Path:
    """Rattled molecules with energies (eV) = free atoms - sum over pairs of 3 exp(-r / 1 Å)."""
    names, free = ("CH4", "NH3", "H2O", "CH3OH"), {1: -0.5, 6: -3.0, 7: -2.5, 8: -2.0}
    images = []
    for count in range(number):
        atoms = ase.build.molecule(names[count % 4])
        atoms.rattle(0.1, seed=count)
        r = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
        energy = sum(free[z] for z in atoms.numbers) - 3.0 * np.exp(-r).sum()
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
    return path


@pytest.fixture(scope="session")
def molecule_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 molecules."""
    return write_molecules(tmp_path_factory.mktemp("molecules") / "molecules.extxyz")


@pytest.fixture(scope="session")
def qm9_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved QM9 pack of 100 molecules: free atoms, and pairs that attract each other."""
    root, items = tmp_path_factory.mktemp("qm9"), []
    for index in range(100):
        atoms = ase.build.molecule(("CH4", "NH3", "H2O", "CH3OH")[index % 4])
        atoms.rattle(0.1, seed=index)
        r = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
        y = torch.zeros(1, 19)
        y[0, 12] = float(-2.0 * len(atoms) - 3.0 * np.exp(-r).sum())  # U0_atom in eV
        z, pos = torch.tensor(atoms.numbers), torch.tensor(atoms.positions).float()
        idx, name = torch.tensor([index]), f"gdb_{index + 1}"
        items.append(Data(z=z, pos=pos, y=y, idx=idx, name=name, smiles=SMILES[index % 4]))
    return save_qm9(items, root)


def save_qm9(items: list[Data], root: Path) -> Path:
    """Molecules as a saved QM9 pack."""
    folder = root / "qm9pack" / "processed"
    folder.mkdir(parents=True)
    InMemoryDataset.save(items, str(folder / "qm9pack_v1.pt"))
    for name in ("pre_transform", "pre_filter"):  # what PyG checks before it takes the file
        torch.save("None", folder / f"{name}.pt")
    return root


def train_options(path: Path, run: Path, *more: str) -> list[str]:
    """``hipnn train file`` with 160 molecules to train on, 20 to validate, 20 to test."""
    return [
        *("train", "file", "--path", str(path), "--num_train", "160", "--num_validation", "20"),
        *("--run", str(run), *SMALL, *more),
    ]


@pytest.fixture
def training(molecule_file: Path) -> Callable[..., list[str]]:
    """``training(run, *options)``: the command line of a small training run."""
    return lambda run, *more: train_options(molecule_file, run, *more)


@pytest.fixture(scope="session")
def trained(molecule_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; the tests that take it add results and plots to it but train no further."""
    run = tmp_path_factory.mktemp("trained") / "run"
    options = ("--epochs", "8", "--batch_size", "8", "--learning_rate", "0.01")
    assert main(train_options(molecule_file, run, *options)) == 0
    return run


def checkpoint(run: Path) -> dict[str, Any]:
    """What the last checkpoint holds, without the times."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    del state["progress"]["seconds"]
    for row in state["history"]:
        del row["seconds"]
    return state


def different(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Names of the entries of two checkpoints that are not equal to the last bit."""
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [where]
        return [x for key in ours for x in different(ours[key], theirs[key], f"{where}/{key}")]
    if isinstance(ours, list):
        return different(dict(enumerate(ours)), dict(enumerate(theirs)), where)
    same = torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
    return [] if same else [where]


@pytest.fixture
def hipnn() -> Callable[[Sequence[str]], subprocess.Popen[str]]:
    """``hipnn(arguments)``: the command in a process of its own, on one core."""

    def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
        code = "import sys; from hipnn_pyg.cli import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
