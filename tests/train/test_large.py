"""Molecules so large that a step searches their neighbours instead of computing all pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.build
import pytest
import torch
from torch_geometric.data import Data

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.data.forces import ASE_FORCES
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.train import Trainer, Training
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member
from hipnn_pyg.train.force_loss import HIPNNForceLoss
from hipnn_pyg.train.graphs import capture_wanted, compile_wanted, mostly_large
from hipnn_pyg.train.loss import HIPNNLoss, batch_pairs
from hipnn_pyg.train.step import TrainingStep

Make = Callable[..., HIPNN]
FEW = 5
"""Atoms beyond which neighbours are searched here: in all molecules but water."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """``search()``: from now on in molecules of more than FEW atoms."""
    return lambda: monkeypatch.setattr("hipnn_pyg.train.loss.ALL_PAIRS_LIMIT", FEW)


def pack(number: int, names: tuple[str, ...], forces: bool) -> PackedMolecules:
    """Shaken molecules with labels of no physics (eV, eV/Å), float64."""
    generator, items = torch.Generator().manual_seed(0), []
    for count in range(number):
        atoms = ase.build.molecule(names[count % len(names)])
        atoms.rattle(0.1, seed=count)
        z, pos = torch.tensor(atoms.numbers), torch.tensor(atoms.positions)
        energy, force = (torch.randn(size, generator=generator) for size in (1, pos.shape))
        items.append(Data(z=z, pos=pos, energy=energy, force=force))
    return PackedMolecules.pack(items, ASE_ENERGY, forces=ASE_FORCES if forces else None)


def step_of(model: HIPNN, forces: bool) -> TrainingStep:
    weights = dict(lambda_l2=1e-2, lambda_r=0.1)
    if forces:
        return TrainingStep(HIPNNForceLoss(model, 0.3, **weights))
    return TrainingStep(HIPNNLoss(model, **weights))


@pytest.mark.parametrize("kernel", ["reference", "padded", "auto"])
@pytest.mark.parametrize("forces", [False, True])
@pytest.mark.parametrize("number", [1, 9], ids=["by_layers", "by_molecules"])
def test_the_gradient_is_that_of_all_pairs(
    number: int, forces: bool, kernel: str, cell_model: Make, search: Callable[[], None]
) -> None:
    """Also the loss that autograd goes through, at a vector that is not the step's own."""
    names = ("C6H6", "CH3CH2OH", "H2O", "C3H8")
    step = step_of(cell_model(kernel=kernel), forces)
    batch = pack(number, names, forces).gather(torch.arange(number))
    assert (step.direct is not None) == (kernel == "auto")

    def found() -> list[Any]:
        vectors = (step.vector, step.vector.detach().clone())
        return [step.gradient(vector, step.frozen, batch) for vector in vectors]

    def pairs() -> int:
        r = batch_pairs(step.loss.model, step.loss.kernel, batch.pos, batch).r
        return int(r.isfinite().sum())

    before, every = found(), pairs()
    search()
    torch.testing.assert_close(found(), before, rtol=1e-9, atol=1e-11)
    assert pairs() < 0.95 * every == 0.95 * batch.num_edges  # control
    if step.direct is not None:
        assert step.direct._structures(batch).pos is None  # of which a kernel would take all pairs


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
def test_training_is_the_same_and_goes_on(
    forces: bool, cell_model: Make, search: Callable[[], None], tmp_path: Path
) -> None:
    """As with all pairs up to rounding; trained in two pieces or one with the same bits."""
    packed = pack(24, ("C6H6", "H2O", "CH3CH2OH"), forces)
    train, validation = packed.subset(torch.arange(18)), packed.subset(torch.arange(18, 24))

    def trainer(folder: Path) -> Trainer:
        model = cell_model().fit_e0(train, ASE_ENERGY, scale="residual")
        config = Training(epochs=6, batch_size=4, seed=1, device="cpu", learning_rate=1e-2)
        return Trainer(model, train, validation, config, folder, progress=False)

    all_pairs = trainer(tmp_path / "all_pairs")
    all_pairs.fit()
    search()
    whole = trainer(tmp_path / "whole")
    whole.fit()
    for ours, theirs in zip(whole.history, all_pairs.history, strict=True):
        del ours["seconds"], theirs["seconds"]
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert whole.settings == all_pairs.settings

    half = trainer(tmp_path / "half")
    half.epochs = 3
    half.fit()
    rest = trainer(tmp_path / "half")
    rest.resume()
    rest.fit()
    assert torch.equal(rest.objective.vector, whole.objective.vector)


def spheres(sizes: list[int]) -> PackedMolecules:
    """Hydrogen atoms on a lattice, the nearest to its middle."""
    items = []
    for size in sizes:
        pos = 1.5 * torch.cartesian_prod(*[torch.arange(-4, 5)] * 3).double()
        nearest = pos.norm(dim=1).argsort(stable=True)[:size]
        energy = torch.tensor([float(size)])
        items.append(Data(z=torch.ones(size).long(), pos=pos[nearest], energy=energy))
    return PackedMolecules.pack(items, ASE_ENERGY, validate=False)


def test_beyond_300_atoms_neighbours_are_searched(
    cell_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not in a compiled step."""
    for size, searched in ((300, False), (301, True)):
        batch = spheres([20, size]).gather(torch.arange(2))
        pairs = batch_pairs(cell_model(), "reference", batch.pos, batch)
        assert (len(pairs.r) < batch.num_edges) is searched
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert len(batch_pairs(cell_model(), "reference", batch.pos, batch).r) == batch.num_edges


def test_large_molecules_are_neither_captured_nor_compiled_by_themselves() -> None:
    """Both compute all pairs: where most of them are in large molecules they are asked for."""
    assert mostly_large(spheres([400, 20, 20]))
    assert not mostly_large(spheres([300, 20])) and not mostly_large(spheres([310] + [20] * 260))
    cuda, steps = torch.device("cuda"), 10**6
    for name in ("auto", "on"):
        capture, compile = Training(capture=name), Training(compile=name)  # type: ignore[arg-type]
        compiled = (compile, cuda, "padded", steps, True, False, 1)
        assert capture_wanted(capture, cuda, 1, False, True) == (name == "on")
        assert compile_wanted(*compiled, True) == (name == "on")
        assert capture_wanted(capture, cuda, 1) and compile_wanted(*compiled)  # controls


def test_a_trainer_asks_whether_its_molecules_are_large(
    cell_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    module = "hipnn_pyg.train.trainer."
    monkeypatch.setattr(module + "capture_wanted", lambda *given: asked.append(given[4]))
    monkeypatch.setattr(module + "compile_wanted", lambda *given: asked.append(given[7]))
    for sizes in ([310, 20], [20, 30]):
        molecules = spheres(sizes)
        model = cell_model().fit_e0(molecules, ASE_ENERGY)
        Trainer(model, molecules, molecules, Training(device="cpu"), progress=False)
    assert asked == [True, True, False, False]


def test_members_with_large_molecules_take_turns(cell_model: Make) -> None:
    """As on a GPU, where steps that are not captured are batched, which computes all pairs."""
    members = []
    for sizes in ([310, 20], [20, 30]):
        molecules = spheres(sizes)
        model = cell_model().fit_e0(molecules, ASE_ENERGY)
        member = Member(model, molecules, molecules, Training(device="cpu"), progress=False)
        member.device = torch.device("cuda")
        members.append(member)
    large, small = members
    for some, batched in (([large], False), ([small, large], False), ([small], True)):
        assert EnsembleTrainer(some, progress=False).batched is batched
