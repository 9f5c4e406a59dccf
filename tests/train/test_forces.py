"""Training on forces: the loss, its gradient through every kernel, and what the trainer does."""

from __future__ import annotations

import csv
import gc
import json
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
import reference
import torch
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg import HIPNN, HIPNNPotential, PackedMolecules, load_model
from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.forces import ASE_FORCES
from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.interfaces.ase import check_is_potential
from hipnn_pyg.models.files import read_card
from hipnn_pyg.train import HIPNNLoss, Trainer, Training, TrainingStopped, predict
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member
from hipnn_pyg.train.force_loss import HIPNNForceLoss, force_scale, terms_and_forces
from hipnn_pyg.train.graphs import COMPILE_PAYS_AFTER, FORCES_PAY_AFTER, compile_wanted
from hipnn_pyg.train.metrics import force_statistics, predict_forces
from hipnn_pyg.train.step import TrainingStep
from hipnn_pyg.train.validation import score, validation_sums

KERNELS = ("reference", "padded", "fused")
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS)
SIGMA_F = 1.3
NETWORKS: dict[str, dict[str, Any]] = {
    "small": {},
    "three_orders": dict(num_interactions=3, num_onsite=0),
    "no_hierarchy": dict(hierarchical=False),
}

Build = Callable[..., Any]


def labelled(atoms: ase.Atoms, dtype: torch.dtype = torch.float64) -> Data:
    """Energy (eV) = -0.3 per atom - sum over pairs of 3 exp(-r / 1 Å), and its forces."""
    pos = torch.tensor(atoms.positions).requires_grad_()
    energy = -3.0 * torch.exp(-torch.pdist(pos)).sum() - 0.3 * len(atoms)
    (slope,) = torch.autograd.grad(energy, pos)
    return Data(
        z=torch.tensor(atoms.numbers),
        pos=pos.detach().to(dtype),
        energy=energy.detach().view(1),
        force=-slope,
    )


def distorted(names: Sequence[str], scale: float = 0.05) -> list[Data]:
    structures = []
    for number, name in enumerate(names):
        atoms = ase.build.molecule(name)
        atoms.rattle(scale, seed=number)
        structures.append(labelled(atoms))
    return structures


def batch_of(names: Sequence[str] = ("H2O", "CH3OH", "H", "NH3")) -> MoleculeBatch:
    """Distorted molecules of different sizes, one of them an atom: float64."""
    packed = PackedMolecules.pack(distorted(names), ASE_ENERGY, forces=ASE_FORCES)
    return packed.gather(torch.arange(len(packed)))


def new_step(model: HIPNN, **weights: float) -> TrainingStep:
    defaults = dict(energy_weight=0.7, force_weight=1.9, lambda_l2=1e-3, lambda_r=0.1)
    return TrainingStep(HIPNNForceLoss(model, SIGMA_F, **(defaults | weights)))


# -- the loss --------------------------------------------------------------------------------------


def numpy_energies(model: HIPNN, batch: MoleculeBatch, pos: np.ndarray) -> np.ndarray:
    near = reference.neighbours(pos, batch.batch.tolist(), model.cutoff)
    terms = reference.atom_terms(batch.z.tolist(), near, reference.model_arrays(model))
    return np.bincount(batch.batch.numpy(), weights=terms.sum(1))


def test_loss_against_finite_differences_of_numpy_energies(
    small_model: Callable[..., HIPNN],
) -> None:
    model, batch, h = small_model(num_interactions=1), batch_of(("H2O", "OH")), 1e-4
    pos = batch.pos.numpy()
    forces = np.zeros_like(pos)
    for atom, axis in np.ndindex(*pos.shape):
        moved = np.zeros_like(pos)
        moved[atom, axis] = h
        rise = numpy_energies(model, batch, pos + moved) - numpy_energies(model, batch, pos - moved)
        forces[atom, axis] = -rise.sum() / (2 * h)
    e = numpy_energies(model, batch, pos) - batch.target.numpy()
    f = forces - batch.forces.numpy()
    near = reference.neighbours(pos, batch.batch.tolist(), model.cutoff)
    terms = reference.atom_terms(batch.z.tolist(), near, reference.model_arrays(model))
    expected = dict(
        mae=np.abs(e).mean(),
        rmse=np.sqrt((e**2).mean()),
        force_mae=np.abs(f).mean(),
        force_rmse=np.sqrt((f**2).mean()),
        r=reference.nonhierarchicality(terms, batch.batch.tolist()).mean(),
    )
    got = new_step(model)(batch)
    for name, value in expected.items():
        assert getattr(got, name).item() == pytest.approx(value, rel=1e-6), name
        assert getattr(got, name).dtype == torch.float64
    loss = 0.7 * (expected["mae"] + expected["rmse"]) / model.sigma_e
    loss += 1.9 * (expected["force_mae"] + expected["force_rmse"]) / SIGMA_F
    loss += 1e-3 * got.l2.item() + 0.1 * expected["r"]
    assert got.loss.item() == pytest.approx(loss, rel=1e-6)


def test_forces_are_the_potentials(small_model: Callable[..., HIPNN]) -> None:
    batch, model = batch_of(), small_model()
    prediction = HIPNNPotential(model)(batch.z, batch.pos, batch.batch)
    for kernel in KERNELS:
        terms, forces, _ = terms_and_forces(model, kernel, batch)
        torch.testing.assert_close(forces, prediction.forces, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(terms.sum(1), prediction.energies, rtol=1e-12, atol=1e-12)
    assert bool((prediction.forces[9] == 0).all()) and float(prediction.forces.abs().max()) > 0.1


def test_without_force_weight_it_is_the_papers_loss(small_model: Callable[..., HIPNN]) -> None:
    batch, model = batch_of(), small_model()
    paper = TrainingStep(HIPNNLoss(model, 1e-3, 0.1))
    expected, slope = paper.gradient(paper.vector, paper.frozen, batch)
    for force_weight, equal in ((0.0, True), (1e-3, False)):  # the second is the control
        ours = new_step(model, energy_weight=1.0, force_weight=force_weight)
        got, gradient = ours.gradient(ours.vector, ours.frozen, batch)
        assert (got.loss.item() == pytest.approx(expected.loss.item(), rel=1e-13)) is equal
        assert torch.allclose(gradient, slope, rtol=1e-9, atol=1e-12) is equal


def test_each_weight_is_that_of_its_labels(small_model: Callable[..., HIPNN]) -> None:
    batch, model = batch_of(), small_model()
    assert batch.forces is not None
    other = {
        "energy": batch._replace(target=batch.target + 0.3),
        "force": batch._replace(forces=batch.forces.roll(1, 0)),
    }
    for weights, deaf in (({"energy_weight": 0.0}, "energy"), ({"force_weight": 0.0}, "force")):
        step = new_step(model, **weights)
        _, before = step.gradient(step.vector, step.frozen, batch)
        for name, changed in other.items():
            _, after = step.gradient(step.vector, step.frozen, changed)
            assert torch.equal(before, after) is (name == deaf)


def test_sums_over_parts_make_the_loss_of_the_whole(small_model: Callable[..., HIPNN]) -> None:
    packed = PackedMolecules.pack(distorted(("H2O", "CH4", "OH")), ASE_ENERGY, forces=ASE_FORCES)
    step = new_step(small_model())
    parts = sum(step.loss.sums(packed.gather(torch.tensor([k]))) for k in range(3))
    whole = step(packed.gather(torch.arange(3)))
    for name, value in step.loss.terms(parts, whole.l2)._asdict().items():
        assert value.item() == pytest.approx(getattr(whole, name).item(), rel=1e-12), name


def test_scale_is_the_root_mean_square() -> None:
    packed = PackedMolecules.pack(distorted(("H2O", "CH4")), ASE_ENERGY, forces=ASE_FORCES)
    assert packed.forces is not None
    assert force_scale(packed) == pytest.approx(packed.forces.square().mean().sqrt().item())
    assert force_scale(packed.subset(torch.tensor([1]))) == pytest.approx(
        packed.forces[3:].square().mean().sqrt().item()
    )
    with pytest.raises(StructureError, match="all forces of the 2 training molecules are 0"):
        force_scale(replace(packed, forces=torch.zeros_like(packed.forces)))
    with pytest.raises(StructureError, match="no force labels"):
        force_scale(replace(packed, forces=None))


def test_labels_are_read_without_a_mini_batch_of_everything(
    small_model: Callable[..., HIPNN], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has all pairs, and in periodic structures all edges."""
    packed = PackedMolecules.pack(distorted(("H2O", "CH4")), ASE_ENERGY, forces=ASE_FORCES)
    gather, drawn = PackedMolecules.gather, []

    def count(self: PackedMolecules, index: Tensor) -> MoleculeBatch:
        drawn.append(index.tolist())
        return gather(self, index)

    monkeypatch.setattr(PackedMolecules, "gather", count)
    force_scale(packed)
    assert not drawn
    sums = validation_sums(small_model(), packed, forces=True)
    assert drawn == [[0, 1]] and sums[6] == 3 * 8  # control: to predict, in one batch


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (1.0, -0.1), (0.0, 0.0)])
def test_weights_that_make_no_loss(
    small_model: Callable[..., HIPNN], weights: tuple[float, float]
) -> None:
    with pytest.raises(ValueError, match="at least 0, and one of them positive"):
        HIPNNForceLoss(small_model(), SIGMA_F, *weights)


# -- its gradient ----------------------------------------------------------------------------------


def losses_and_gradients(
    small_model: Callable[..., HIPNN], kernel: str, batch: MoleculeBatch
) -> tuple[Tensor, Tensor]:
    step = new_step(small_model(kernel=kernel, num_interactions=2))
    assert step.loss.kernel == kernel
    terms, gradient = step.gradient(step.vector, step.frozen, batch)
    assert not gradient.requires_grad and not terms.loss.requires_grad
    return torch.stack(tuple(terms)), gradient


def test_every_kernel_gives_the_same_loss_and_gradient(small_model: Callable[..., HIPNN]) -> None:
    batch = batch_of()
    values, gradient = losses_and_gradients(small_model, "reference", batch)
    for kernel in KERNELS[1:]:
        ours, its = losses_and_gradients(small_model, kernel, batch)
        torch.testing.assert_close(ours, values, rtol=1e-11, atol=0.0)
        torch.testing.assert_close(its, gradient, rtol=1e-9, atol=1e-11)
    assert float(gradient.abs().max()) > 0.1
    assert int((gradient == 0).sum()) < 0.05 * gradient.numel()


@EVERY_KERNEL
def test_gradient_against_finite_differences(
    small_model: Callable[..., HIPNN], kernel: str
) -> None:
    """Central differences of the loss along random directions of the parameters."""
    step, batch, h = new_step(small_model(kernel=kernel)), batch_of(), 1e-6
    _, gradient = step.gradient(step.vector, step.frozen, batch)
    energies_only = new_step(small_model(kernel=kernel), force_weight=0.0)
    _, deaf = energies_only.gradient(energies_only.vector, energies_only.frozen, batch)
    draw = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(gradient.shape, generator=draw, dtype=torch.float64)
        direction /= direction.norm()
        up, down = (
            step.evaluate(step.vector.detach() + sign * h * direction, step.frozen, batch)[0].item()
            for sign in (1, -1)
        )
        slope = (up - down) / (2 * h)
        assert slope == pytest.approx(float(gradient @ direction), rel=1e-6)
        # Control: forces matter, so that their part of the gradient is seen to be right.
        assert abs(slope - float(deaf @ direction)) > 1e-2 * abs(slope)


def test_explicit_vector_gives_the_same_gradient(small_model: Callable[..., HIPNN]) -> None:
    """The path that compiles, through functional_call."""
    step, batch = new_step(small_model()), batch_of()
    own = step.gradient(step.vector, step.frozen, batch)
    other = step.gradient(step.vector.detach().clone(), step.frozen, batch)
    torch.testing.assert_close(own[1], other[1], rtol=1e-11, atol=1e-13)
    assert own[0].loss.item() == pytest.approx(other[0].loss.item(), rel=1e-13)


@pytest.mark.parametrize("network", NETWORKS)
def test_without_autograd_it_is_the_same(
    network: str, small_model: Callable[..., HIPNN], dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    step = new_step(small_model(dtype, **NETWORKS[network]))
    assert step.direct is not None
    for names in (("H2O", "CH3OH", "H", "NH3"), ("H",), ("CH4",)):
        batch = batch_of(names)
        terms, gradient = step.gradient(step.vector, step.frozen, batch)
        expected, slopes = step.gradient(step.vector.clone(), step.frozen, batch)
        torch.testing.assert_close(tuple(terms), tuple(expected), **tolerance)
        scale = slopes.abs().max()
        torch.testing.assert_close(gradient / scale, slopes / scale, **tolerance)
    # Control: labels that are the model's own forces leave a loss of energies alone.
    batch = batch_of()
    _, forces, _ = terms_and_forces(step.loss.model, "padded", batch)
    before = step.gradient(step.vector, step.frozen, batch)[0]
    right = batch._replace(forces=forces.detach().double())
    after, gradient = step.gradient(step.vector, step.frozen, right)
    assert float(after.force_mae) < 1e-5 < float(before.force_mae)
    assert bool(gradient.isfinite().all())


def test_forces_are_learned_without_autograd_on_a_cpu_alone() -> None:
    """They are compiled where they are learned by autograd, in long runs."""
    cpu, long = torch.device("cpu"), FORCES_PAY_AFTER
    auto = Training(compile="auto")
    assert not compile_wanted(auto, cpu, "fused", long, forces=True)
    assert compile_wanted(auto, cpu, "padded", long, forces=True)
    assert not compile_wanted(auto, cpu, "padded", long - 1, forces=True)
    assert compile_wanted(Training(compile="on"), cpu, "fused", 1, forces=True)


def test_forces_are_not_compiled_over_several_processes() -> None:
    """The compiler refuses the gradient within the part of a step that it would get there."""
    cuda, long = torch.device("cuda"), COMPILE_PAYS_AFTER
    auto, on = Training(compile="auto"), Training(compile="on")
    assert not compile_wanted(auto, cuda, "padded", long, forces=True, processes=2)
    with pytest.raises(ValueError, match="forces on several processes"):
        compile_wanted(on, cuda, "padded", long, forces=True, processes=2)
    assert compile_wanted(auto, cuda, "padded", long, forces=True)  # controls
    assert compile_wanted(on, cuda, "padded", long, processes=2)


def test_step_compiles_as_one_graph_for_all_sizes(small_model: Callable[..., HIPNN]) -> None:
    """Forward, forces and backward in one graph without breaks; what Inductor then gets."""
    torch._dynamo.config.trace_autograd_ops = True
    step = new_step(small_model())  # kernel "auto" trains padded
    assert step.loss.kernel == "padded"
    graphs: list[Any] = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(step.gradient, backend=count, dynamic=True, fullgraph=True)
    # No number of molecules is 3, that of coordinates, which torch.compile would take for the same.
    for names in (
        ("H2O", "CH3OH", "NH3", "OH", "CO"),
        ("CH4", "H2O"),
        ("CH4", "H2O", "NH3", "O2", "OH", "CO"),
    ):
        batch = batch_of(names)
        terms, gradient = compiled(step.vector, step.frozen, batch)
        expected, slope = step.gradient(step.vector, step.frozen, batch)
        torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-12)
        assert terms.force_mae.item() == pytest.approx(expected.force_mae.item(), rel=1e-12)
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("by_hand", [True, False])
def test_gradient_at_zero_error(small_model: Callable[..., HIPNN], by_hand: bool) -> None:
    """RMSE is a norm: where all errors are 0, so is its gradient, and not 0/0."""
    model, batch = small_model(), batch_of(("H2O", "CH4"))
    with torch.no_grad():
        for block in model.blocks:
            block.readout.weight.zero_()  # no forces, to the last bit
    step = new_step(model, energy_weight=0.0, lambda_l2=0.0, lambda_r=0.0)
    if not by_hand:
        step.direct = None
    assert batch.forces is not None
    right = batch._replace(forces=torch.zeros_like(batch.forces))
    terms, gradient = step.gradient(step.vector, step.frozen, right)
    assert terms.loss.item() == 0.0 and bool((gradient == 0).all())
    _, control = step.gradient(step.vector, step.frozen, batch)
    assert bool((control != 0).any())


# -- memory ----------------------------------------------------------------------------------------


class Saved:
    """A tensor that a graph saved for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def left_over(step: TrainingStep, batch: MoleculeBatch, steps: int, keep: bool = False) -> int:
    """Tensors of graphs, and Python's own, that are alive after some steps of Adam but not before.

    Args:
        keep: hold on to a graph, as a leak would.
    """
    optimizer = torch.optim.Adam([step.vector], lr=1e-4, fused=True)
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor.detach())
        alive.add(saved)
        return saved

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    most = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        for number in range(10 + steps):
            if number == 10:
                before = tensors()
            _, step.vector.grad = step.gradient(step.vector, step.frozen, batch)
            optimizer.step()
            if keep and number == 10:
                kept.append(step(batch).loss)
            most = max(most, len(alive))
        assert alive or not keep
    return most + tensors() - before


@EVERY_KERNEL
def test_no_graph_outlives_its_step(small_model: Callable[..., HIPNN], kernel: str) -> None:
    sizes = dict(num_interactions=1, num_onsite=1, hidden_channels=4, num_sensitivities=4)
    step = new_step(small_model(torch.float32, kernel=kernel, **sizes))
    batch = batch_of(("H2O", "CH4"))
    assert left_over(step, batch, 30) == 0
    assert left_over(step, batch, 20, keep=True) > 20  # control


# -- the trainer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed() -> PackedMolecules:
    """90 stretched molecules to train on and 30 to validate with, float32 but for the labels."""
    names, structures = ("CH4", "NH3", "H2O", "H2", "OH"), []
    stretch = np.random.default_rng(0).uniform(0.8, 1.4, 120)
    for count in range(120):
        atoms = ase.build.molecule(names[count % len(names)])
        atoms.positions *= stretch[count]
        atoms.rattle(0.02, seed=count)
        structures.append(labelled(atoms, torch.float32))
    return PackedMolecules.pack(structures, ASE_ENERGY, forces=ASE_FORCES)


@pytest.fixture(scope="module")
def trainer(packed: PackedMolecules) -> Build:
    """``trainer(folder, forces=True, kind=Trainer, seed=0, **settings)``: a small network."""

    def build(
        folder: Path | None = None,
        forces: bool = True,
        kind: type[Trainer] = Trainer,
        seed: int = 0,
        **changes: Any,
    ) -> Any:
        data = packed if forces else replace(packed, forces=None)
        parts = data.subset(torch.arange(90)), data.subset(torch.arange(90, 120))
        torch.manual_seed(seed)
        size = dict(hidden_channels=6, num_onsite=1, num_sensitivities=6, cutoff=5.0)
        model = HIPNN((1, 6, 7, 8), **size).fit_e0(parts[0], ASE_ENERGY)
        defaults = dict(epochs=6, batch_size=9, device="cpu", compile="off", learning_rate=5e-3)
        config = Training(**(defaults | {"seed": seed, "checkpoint_seconds": 1e9} | changes))
        return kind(model, *parts, config, folder, {"dataset": "made up"}, progress=False)

    return build


def force_mae(run: Any, model: HIPNN, packed: PackedMolecules) -> float:
    validation = packed.subset(torch.arange(90, 120))
    _, forces = predict_forces(model, validation)
    labels = validation.gather(torch.arange(30)).forces
    assert labels is not None
    return force_statistics(forces, labels, "eV").mae


def test_forces_are_learned(trainer: Build, packed: PackedMolecules, tmp_path: Path) -> None:
    with_forces, without = trainer(tmp_path, epochs=15), trainer(forces=False, epochs=15)
    assert with_forces.forces and not without.forces
    errors = [force_mae(run, run.fit(), packed) for run in (with_forces, without)]
    assert errors[0] < 0.6 * errors[1]  # control: energies alone teach less about forces
    history = with_forces.history
    assert history[-1]["validation_force_mae"] < 0.5 * history[0]["validation_force_mae"]
    assert history[-1]["train_force_mae"] < 0.5 * history[0]["train_force_mae"]
    assert "validation_force_mae" not in without.history[0]
    assert errors[0] == pytest.approx(with_forces.best_row["validation_force_mae"], rel=1e-5)

    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [float(row["validation_force_mae"]) for row in rows] == [
        row["validation_force_mae"] for row in history
    ]
    card = read_card(tmp_path)
    assert card["trained_on_forces"] is True and card["validation_force_unit"] == "kcal/mol/Å"
    assert card["validation_force_mae"] == with_forces.best_row["validation_force_mae"]
    check_is_potential(card)


def test_the_logged_error_has_the_unit_of_the_validation(trainer: Build) -> None:
    """kcal/mol/Å, of labels in eV/Å; nothing moves in the one step."""
    run = trainer(recipe="paper", epochs=1, batch_size=90, learning_rate=1e-30)
    run.fit()
    _, forces = predict_forces(run.model, run.train)
    expected = force_statistics(forces, run.train.forces[run.train.atoms], "eV")
    assert expected.unit == "kcal/mol/Å"
    assert run.history[0]["train_force_mae"] == pytest.approx(expected.mae, rel=1e-4)


def test_card_without_forces_says_so(trainer: Build, tmp_path: Path) -> None:
    trainer(tmp_path / "energies", forces=False, epochs=1).fit()
    trainer(tmp_path / "weight", epochs=1, force_weight=0.0).fit()
    for name in ("energies", "weight"):
        card = read_card(tmp_path / name)
        assert card["trained_on_forces"] is False and "validation_force_mae" not in card


def test_best_model_is_best_in_both(trainer: Build) -> None:
    rows = [dict(validation_mae=e, validation_force_mae=f) for e, f in ((1, 4), (2, 1.9), (1, 3.9))]
    config = Training()
    scores = [score(row, config) for row in rows]
    assert scores == pytest.approx([2.0, math.sqrt(3.8), math.sqrt(3.9)])
    assert [score(row, Training(energy_weight=0.0)) for row in rows] == [4, 1.9, 3.9]
    assert score({"validation_mae": 3.0}, config) == 3.0 and score({}, config) == math.inf

    run = trainer(recipe="paper", learning_rate=0.05, epochs=12)
    run.fit()
    found = [score(row, run.config) for row in run.history]
    assert run.best_epoch == 1 + int(np.argmin(found))
    assert run.best_mae == run.best_row["validation_mae"]


def test_interrupted_training_resumes_to_the_same_numbers(trainer: Build, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", validate_every=2)
    whole.fit()
    half = trainer(tmp_path / "half", validate_every=2)
    half.start()
    for epoch in range(3):
        for index in half.batches()[: 10 if epoch < 2 else 4]:
            half.take_step(index)
        if epoch < 2:
            half.end_epoch()
    half._save()
    resumed = trainer(tmp_path / "half", validate_every=2)
    resumed.resume()
    assert (resumed.epoch, resumed.step) == (2, 4)
    resumed.fit()
    for row, expected in zip(resumed.history, whole.history, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in expected.items() if k != "seconds"
        }
    ours, theirs = (load_model(tmp_path / name).state_dict() for name in ("half", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_validating_less_often_changes_nothing_else(trainer: Build) -> None:
    often, seldom = trainer(epochs=5), trainer(epochs=5, validate_every=3)
    often.fit(), seldom.fit()
    assert [row["epoch"] for row in seldom.history] == [3, 5]
    for row, first in zip(seldom.history, (0, 3), strict=True):
        same = often.history[first : row["epoch"]]
        assert row["validation_force_mae"] == same[-1]["validation_force_mae"]
        mean = sum(one["train_force_mae"] for one in same) / len(same)
        assert row["train_force_mae"] == pytest.approx(mean, rel=1e-12)
    with pytest.raises(ValueError, match="every epoch: set it to 1, or take the recipe fast"):
        Training(recipe="paper", validate_every=2)


def test_forces_that_are_not_finite_end_the_training(trainer: Build) -> None:
    """Where the energies are."""
    run = trainer(epochs=1)
    run.validation = replace(run.validation, forces=run.validation.forces * math.nan)
    with pytest.raises(TrainingStopped, match="validation error after epoch 1 is not finite"):
        run.fit()
    assert math.isfinite(run.last.energy.mae)


def test_validation_needs_forces_too(trainer: Build, packed: PackedMolecules) -> None:
    run = trainer(epochs=1)
    bare = replace(run.validation, forces=None)
    with pytest.raises(ValueError, match="validation molecules none"):
        Trainer(run.model, run.train, bare, run.config, progress=False)


def test_ensemble_trains_each_as_alone(trainer: Build, tmp_path: Path) -> None:
    members = [trainer(tmp_path / f"{s}", kind=Member, seed=s, epochs=2) for s in (0, 1)]
    EnsembleTrainer(members, progress=False).fit()
    for seed, member in enumerate(members):
        alone = trainer(seed=seed, epochs=2)
        alone.fit()
        assert member.best_row["validation_force_mae"] == alone.best_row["validation_force_mae"]
    assert members[0].best_row != members[1].best_row
    again = [trainer(kind=Member, seed=s) for s in (0, 1)]
    with pytest.raises(ValueError, match="batched steps learn neither forces"):
        EnsembleTrainer(again, batched=True, progress=False)
    mixed = [trainer(kind=Member, seed=s, forces=s == 0) for s in (0, 1)]
    with pytest.raises(ValueError, match="choice between energies and forces"):
        EnsembleTrainer(mixed, progress=False)


# -- prediction ------------------------------------------------------------------------------------


@EVERY_KERNEL
def test_predicted_forces(small_model: Callable[..., HIPNN], kernel: str) -> None:
    packed = PackedMolecules.pack(
        distorted(("H2O", "CH3OH", "H", "NH3", "CH4")), ASE_ENERGY, forces=ASE_FORCES
    )
    model = small_model(kernel=kernel)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    prediction, forces = predict_forces(model, packed, batch_size=2)
    every = packed.gather(torch.arange(5))
    expected = HIPNNPotential(model)(every.z, every.pos, every.batch)
    torch.testing.assert_close(forces, expected.forces, rtol=1e-10, atol=1e-12)
    alone = predict(model, packed, batch_size=2)
    torch.testing.assert_close(prediction, alone, rtol=1e-12, atol=1e-12)
    assert not forces.requires_grad and not prediction.energy.requires_grad
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_statistics_by_hand() -> None:
    labels = torch.zeros(2, 3)
    prediction = torch.tensor([[3.0, 0, 0], [0, -4.0, 0]])
    found = force_statistics(prediction, labels, "kcal/mol")
    assert found.mae == pytest.approx(7 / 6) and found.rmse == pytest.approx((25 / 6) ** 0.5)
    assert found.num == 6 and found.unit == "kcal/mol/Å"
    in_ev = force_statistics(prediction, labels, "eV")
    assert in_ev.mae == pytest.approx(23.060548 * 7 / 6, rel=1e-7)
    json.dumps(found._asdict())
