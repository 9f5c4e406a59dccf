"""A small learning problem: stretched molecules whose energies follow a known formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.train import LossTerms, Trainer, Training
from hipnn_pyg.train.step import TrainingStep

FREE_ATOM = {1: -0.1, 6: -0.6, 7: -0.5, 8: -0.4}
"""eV."""


def make_structures(number: int, seed: int = 0) -> list[Data]:
    """Stretched molecules; energy (eV) = free atoms - sum over pairs of 3 exp(-r / 1 Å)."""
    names = ("CH4", "NH3", "H2O", "H2", "OH")
    stretch = np.random.default_rng(seed).uniform(0.8, 1.4, number)
    structures = []
    for count in range(number):
        atoms = ase.build.molecule(names[count % len(names)])
        atoms.positions *= stretch[count]
        atoms.rattle(0.02, seed=count)
        r = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
        energy = sum(FREE_ATOM[z] for z in atoms.numbers) - 3.0 * np.exp(-r).sum()
        structures.append(
            Data(
                z=torch.tensor(atoms.numbers),
                pos=torch.tensor(atoms.positions, dtype=torch.float32),
                energy=torch.tensor([energy], dtype=torch.float64),
            )
        )
    return structures


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One order of summation, also for what a module trains once for all tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def structures() -> list[Data]:
    """120 molecules."""
    return make_structures(120)


@pytest.fixture
def parts(structures: list[Data]) -> tuple[PackedMolecules, PackedMolecules]:
    """90 to train on, 30 to validate with."""
    packed = PackedMolecules.pack(structures, ASE_ENERGY)
    return packed.subset(torch.arange(90)), packed.subset(torch.arange(90, 120))


@pytest.fixture
def new_model(parts: tuple[PackedMolecules, PackedMolecules]) -> Callable[..., HIPNN]:
    """``new_model(seed=0)``: a small model with its energy scale fitted to the training part."""

    def build(seed: int = 0, **options: Any) -> HIPNN:
        torch.manual_seed(seed)
        defaults = dict(
            species=(1, 6, 7, 8), hidden_channels=6, num_onsite=1, num_sensitivities=6, cutoff=5.0
        )
        return HIPNN(**(defaults | options)).fit_e0(parts[0], ASE_ENERGY)

    return build


@pytest.fixture
def settings() -> Callable[..., Training]:
    """``settings(**changes)``: short, eager training on the CPU with a checkpoint every step."""

    def build(**changes: Any) -> Training:
        defaults = dict(epochs=3, batch_size=9, device="cpu", compile="off", checkpoint_seconds=0.0)
        return Training(**(defaults | changes))

    return build


@pytest.fixture
def cell_model() -> Callable[..., HIPNN]:
    """``cell_model(seed=2)``: a small model of H, C and O in float64, with a cutoff of 3.6 Å."""

    def build(seed: int = 2, **options: Any) -> HIPNN:
        torch.manual_seed(seed)
        sizes = dict(hidden_channels=7, num_onsite=1, num_sensitivities=6, cutoff=3.6)
        model = HIPNN(species=(1, 6, 8), **(sizes | options)).double()
        model.set_e0([-1.0, -2.0, -3.0], 0.7)
        return model

    return build


@pytest.fixture(scope="session")
def checkpoint() -> Callable[..., dict[str, Any]]:
    """``checkpoint(folder, random=False)``: the last one without its times and compilations,
    with the state of PyTorch's random numbers if asked for."""

    def read(folder: Path, random: bool = False) -> dict[str, Any]:
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        del state["progress"]["seconds"]
        for row in state["history"]:
            del row["seconds"], row["compiled_graphs"]
        if not random:
            del state["rng"]
        return state

    return read


@pytest.fixture
def interrupt_after() -> Callable[[Trainer, int], None]:
    """``interrupt_after(trainer, steps)``: press Ctrl-C during this step of the run."""

    def interrupt(trainer: Trainer, steps: int) -> None:
        after_step, done = trainer.schedule.after_step, [0]

        def count() -> None:
            after_step()
            done[0] += 1
            trainer.interrupted = trainer.interrupted or done[0] == steps

        trainer.schedule.after_step = count  # type: ignore[method-assign]

    return interrupt


SameGradient = Callable[[TrainingStep, TrainingStep, MoleculeBatch], tuple[LossTerms, Tensor]]


@pytest.fixture
def same_gradient() -> SameGradient:
    """``same_gradient(ours, readable, batch)``: loss and gradient of one step are those of the
    other, and those of finite differences, in float64; returns them."""

    def check(
        ours: TrainingStep, readable: TrainingStep, batch: MoleculeBatch
    ) -> tuple[LossTerms, Tensor]:
        terms, gradient = ours.gradient(ours.vector, ours.frozen, batch)
        vector = readable.vector.detach().clone()
        expected, slopes = readable.gradient(vector, readable.frozen, batch)
        torch.testing.assert_close(tuple(terms), tuple(expected), rtol=1e-10, atol=1e-12)
        scale = slopes.abs().max()
        torch.testing.assert_close(gradient / scale, slopes / scale, rtol=1e-9, atol=1e-11)
        change = torch.randn(len(vector), generator=torch.Generator().manual_seed(0)).double()
        change *= 1e-6 / change.norm()
        low, high = (
            float(readable.evaluate(vector + sign * change, readable.frozen, batch).loss.detach())
            for sign in (-1, 1)
        )
        assert float(slopes @ change) == pytest.approx((high - low) / 2, rel=1e-5)
        return terms, gradient

    return check
