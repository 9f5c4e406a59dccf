"""Each member of an ensemble is the model trained alone, in turn or batched."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.optim import Adam
from torch_geometric.data import Data

from hipnn_pyg import HIPNN, PackedMolecules, load_model
from hipnn_pyg.data.splits import random_split
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.train import Trainer, Training, TrainingStopped
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member
from hipnn_pyg.train.loss import HIPNNLoss
from hipnn_pyg.train.stack import adam_steps, gather_padded, stacked_gradient
from hipnn_pyg.train.step import TrainingStep

T = TypeVar("T", bound=Trainer)
SEEDS = (0, 1, 2)
RECIPES: dict[str, dict[str, Any]] = {
    "paper": dict(
        recipe="paper", epochs=13, t_init=8, t_patience=2, decay=0.5, learning_rate=0.02
    ),  # rates fall at different epochs; two of the members stop early
    "fast": dict(recipe="fast", epochs=9, average_every=2),
}
STEPS = 12
"""Per epoch: 11 mini-batches of 8 molecules and one of 2."""
BATCHED = pytest.mark.parametrize("batched", [False, True], ids=["in_turn", "batched"])
Build = Callable[..., Any]
Ensemble = Callable[..., EnsembleTrainer]
Checkpoint = Callable[[Path], dict[str, Any]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def build(structures: list[Data]) -> Build:
    """``build(kind, seed, folder)``: a trainer with the seed's own split, E^0 and weights; with
    ``frozen``, those of the first block are not learned."""
    packed = PackedMolecules.pack(structures, ASE_ENERGY)
    defaults = dict(batch_size=8, device="cpu", compile="off", checkpoint_seconds=1e9)

    def make(
        kind: type[T],
        seed: int,
        folder: Path | None = None,
        dtype: torch.dtype = torch.float64,
        weights: int | None = None,
        network: dict[str, Any] | None = None,
        frozen: bool = False,
        **changes: Any,
    ) -> T:
        split = random_split(len(packed), 90, 30, seed)
        all = replace(packed, pos=packed.pos.to(dtype))  # else distances have float32's rounding
        train, validation = all.subset(split.train), all.subset(split.validation)
        torch.manual_seed(seed if weights is None else weights)
        size = dict(hidden_channels=6, num_onsite=1, num_sensitivities=6, cutoff=5.0)
        model = HIPNN(species=(1, 6, 7, 8), **(size | (network or {})))
        model = model.fit_e0(train, ASE_ENERGY).to(dtype)
        model.blocks[0].requires_grad_(not frozen)
        config = Training(**{"epochs": 2, "seed": seed, **defaults, **changes})
        return kind(model, train, validation, config, folder, progress=False)

    return make


@pytest.fixture(scope="module")
def ensemble(build: Build) -> Ensemble:
    """``ensemble(folder, batched, **changes)``: a member for each of the seeds."""

    def make(folder: Path | None, batched: bool, **changes: Any) -> EnsembleTrainer:
        folders = [None if folder is None else folder / str(seed) for seed in SEEDS]
        places = zip(SEEDS, folders, strict=True)
        members = [build(Member, seed, where, **changes) for seed, where in places]
        return EnsembleTrainer(members, batched, progress=False)

    return make


def largest_difference(ours: Any, theirs: Any) -> float:
    """Over all numbers of two checkpoints of the same build, relative to 1 or their size."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        return largest_difference(list(ours.values()), list(theirs.values()))
    if isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        return max(map(largest_difference, ours, theirs), default=0.0)
    if isinstance(ours, Tensor):
        ours, theirs = ours.double(), theirs.double()
        return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())
    if isinstance(ours, float):
        return abs(ours - theirs) / max(1.0, abs(theirs))
    assert ours == theirs
    return 0.0


# --- members equal the model trained alone ----------------------------------------------------


@pytest.fixture(scope="module")
def alone(build: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model trained alone, by both recipes: a folder per recipe with one per seed."""
    folders = {}
    for name, recipe in RECIPES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        for seed in SEEDS:
            build(Trainer, seed, folders[name] / str(seed), **recipe).fit()
    return folders


@BATCHED
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_member_is_the_model_trained_alone(
    recipe: str,
    batched: bool,
    alone: dict[str, Path],
    ensemble: Ensemble,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    """Weights, losses, optimizer, schedule and average after 100 steps and more, in float64."""
    together, began = ensemble(tmp_path, batched, **RECIPES[recipe]), time.monotonic()
    models = together.fit()
    assert sum(member.seconds for member in together.members) <= time.monotonic() - began
    states = []
    for member, model, seed in zip(together.members, models, SEEDS, strict=True):
        folder = alone[recipe] / str(seed)
        states.append(checkpoint(folder))
        assert STEPS * states[-1]["progress"]["epoch"] >= 100
        limit = 1e-8 if batched else 0.0
        assert largest_difference(checkpoint(tmp_path / str(seed)), states[-1]) <= limit
        best = load_model(folder).state_dict()
        assert largest_difference(model.state_dict(), best) <= limit
        assert not model.training and member.seconds > 0
    # Control: the members differ from each other by far more than from themselves.
    for first, second in ((0, 1), (1, 2), (2, 0)):
        assert largest_difference(states[first]["model"], states[second]["model"]) > 1e-2
        assert max_loss_difference(states[first], states[second]) > 1e-2


def max_loss_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Over the epochs that both have."""
    pairs = zip(first["history"], second["history"], strict=False)
    return max(abs(a["train_loss"] - b["train_loss"]) for a, b in pairs)


def before_each_step(trainer: EnsembleTrainer, act: Callable[[], None]) -> None:
    """Do something before each step of the ensemble (of all at once, or one member's)."""

    def first(take: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def after_it(given: Any) -> Any:
            act()
            return take(given)

        return after_it

    if trainer.together:
        trainer._take_step = first(trainer._take_step)  # type: ignore[method-assign]
        return
    for member in trainer.members:
        member.take_step = first(member.take_step)  # type: ignore[method-assign]


@BATCHED
def test_a_members_clock_runs_in_its_own_steps(
    batched: bool, ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second; steps together are shared, and an epoch's last one is in its row."""
    now = [0.0]

    def tick() -> None:
        now[0] += 1

    together = ensemble(None, batched, epochs=2)
    before_each_step(together, tick)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    together.fit()
    share = len(SEEDS) if batched else 1
    for member in together.members:
        spent = [row["seconds"] for row in member.history]
        assert spent == pytest.approx([STEPS / share, 2 * STEPS / share])
        assert member.seconds == pytest.approx(spent[-1])


def test_control_rates_and_ends_differ_between_members(
    alone: dict[str, Path], checkpoint: Checkpoint
) -> None:
    """What the test above compares has plateaus and early stopping in it."""
    states = [checkpoint(alone["paper"] / str(seed)) for seed in SEEDS]
    assert len({state["progress"]["epoch"] for state in states}) == 3
    assert sum(state["progress"]["stopped"] for state in states) == 2
    rates = [[row["learning_rate"] for row in state["history"]] for state in states]
    assert all(len(set(of_member)) == 2 for of_member in rates)
    assert any(len(set(of_epoch)) == 2 for of_epoch in zip(*rates, strict=False))


@pytest.mark.parametrize("seed, weights", [(1, 7), (7, 1)], ids=["weights", "data"])
def test_control_another_seed_is_another_model(
    seed: int,
    weights: int,
    ensemble: Ensemble,
    build: Build,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    ensemble(tmp_path / "together", True, epochs=1).fit()
    build(Trainer, seed, tmp_path / "alone", weights=weights, epochs=1).fit()
    ours, theirs = checkpoint(tmp_path / "together" / "1"), checkpoint(tmp_path / "alone")
    assert largest_difference(ours["model"], theirs["model"]) > 1e-4


def test_only_batched_steps_copy_the_model(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("hipnn_pyg.train.ensemble.stacked_gradient", copied)
    ensemble(None, False, epochs=1).fit()
    with pytest.raises(MemoryError):  # control
        ensemble(None, True, epochs=1).fit()


def test_frozen_layers_stay_each_members_own(build: Build) -> None:
    members = [build(Member, seed, frozen=True) for seed in SEEDS]
    EnsembleTrainer(members, batched=True, progress=False).fit()
    for member, seed in zip(members, SEEDS, strict=True):
        alone = build(Trainer, seed, frozen=True)
        start = alone.model.blocks[0].interaction.V.clone()
        ours, theirs = member.model.state_dict(), alone.fit().state_dict()
        assert largest_difference(ours, theirs) <= 1e-8
        assert torch.equal(member.model.blocks[0].interaction.V, start)
    first, second = (member.model.blocks[0].interaction.V for member in members[:2])
    assert not torch.allclose(first, second, atol=1e-2)  # control
    with pytest.raises(ValueError, match="member 1 .* another set of frozen parameters"):
        EnsembleTrainer([build(Member, 0), build(Member, 1, frozen=True)])


def test_float32_has_the_same_loss_curve(ensemble: Ensemble, build: Build) -> None:
    together = ensemble(None, True, dtype=torch.float32)
    together.fit()
    for member, seed in zip(together.members, SEEDS, strict=True):
        alone = build(Trainer, seed, dtype=torch.float32)
        alone.fit()
        for ours, theirs in zip(member.history, alone.history, strict=True):
            for name in ("train_loss", "train_mae", "validation_mae"):
                assert ours[name] == pytest.approx(theirs[name], rel=0.01)
    curves = [[row["train_loss"] for row in member.history] for member in together.members]
    assert curves[0] != pytest.approx(curves[1], rel=0.01)  # control


def test_one_compilation_serves_all_members(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turn and batched; the graphs run eagerly here, so that nothing but tracing takes time."""
    compile = torch.compile
    for batched in (False, True):
        torch._dynamo.reset()
        counter = CompileCounter()

        def count(function: Any, counter: Any = counter, **options: Any) -> Any:
            return compile(function, backend=counter, **options)

        monkeypatch.setattr(torch, "compile", count)
        together = ensemble(None, batched, epochs=1, compile="on", recipe="paper")
        together.fit()
        assert counter.frame_count == 1
        eager = ensemble(None, batched, epochs=1, compile="off", recipe="paper")
        eager.fit()
        for ours, theirs in zip(together.members, eager.members, strict=True):
            weights = ours.objective.vector, theirs.objective.vector
            torch.testing.assert_close(*weights, rtol=1e-8, atol=1e-8)
        assert not torch.allclose(
            together.members[0].objective.vector, together.members[1].objective.vector, atol=1e-3
        )


# --- the parts of the batched step ------------------------------------------------------------


def padded(build: Build) -> tuple[list[Member], list[Tensor], Any]:
    members = [build(Member, seed) for seed in SEEDS]
    indices = [member.next_batch() for member in members]
    return members, indices, gather_padded([member.train for member in members], indices)


def test_gather_padded_is_gather_with_atoms_behind(build: Build) -> None:
    members, indices, batch = padded(build)
    sizes = []
    for k, (member, index) in enumerate(zip(members, indices, strict=True)):
        own = member.train.gather(index)
        atoms = own.z.numel()
        sizes.append(atoms)
        assert torch.equal(batch.z[k, :atoms], own.z)
        assert torch.equal(batch.pos[k, :atoms], own.pos)
        assert torch.equal(batch.batch[k, :atoms], own.batch)
        assert bool((batch.batch[k, atoms:] == index.numel()).all())
        assert torch.equal(batch.ptr[k, :-1], own.ptr) and batch.ptr[k, -1] == own.ptr[-1]
        assert torch.equal(batch.target[k], own.target)
        assert batch.max_atoms >= own.max_atoms and batch.num_edges >= own.num_edges
    assert batch.z.size(1) == max(sizes) > min(sizes)  # control: something is padded


def test_padding_atoms_change_nothing(build: Build) -> None:
    """Not even atoms nowhere do; loss and gradient are those of the molecules."""
    members, indices, batch = padded(build)
    vectors = torch.stack([member.objective.vector.detach() for member in members])
    names = members[0].frozen
    frozen = {name: torch.stack([member.frozen[name] for member in members]) for name in names}
    gradient = stacked_gradient(members[0].objective)
    padding = (batch.batch == indices[0].numel()).unsqueeze(2)
    assert padding.any()
    lost = batch._replace(pos=torch.where(padding, torch.nan, batch.pos))
    far = batch._replace(pos=torch.where(padding, 1e6, batch.pos))
    for some in (batch, lost, far):
        terms, gradients = gradient(vectors, frozen, some)
        for k, (member, index) in enumerate(zip(members, indices, strict=True)):
            step = TrainingStep(HIPNNLoss(member.model))
            own, expected = step.gradient(vectors[k], step.frozen, member.train.gather(index))
            torch.testing.assert_close([t[k] for t in terms], [*own], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(gradients[k], expected, rtol=1e-10, atol=1e-12)
    moved = batch._replace(pos=torch.where(padding, batch.pos, batch.pos * 1.01))  # control
    assert not torch.allclose(gradient(vectors, frozen, moved)[1], gradients, rtol=1e-3)


def test_adam_steps_are_adam() -> None:
    """Different rates, steps and gradients; the last one takes its first step by itself."""
    torch.manual_seed(0)
    start = torch.randn(4, 7)

    def optimizers() -> list[Adam]:
        rates = (1e-2, 1e-3, 1e-2, 5e-3)
        made = [
            Adam([torch.nn.Parameter(row.clone())], lr=rate, fused=True)
            for row, rate in zip(start, rates, strict=True)
        ]
        step(made[0], 9)
        for optimizer in made[:3]:
            step(optimizer, 1)
        return made

    def weight(optimizer: Adam) -> torch.nn.Parameter:
        return optimizer.param_groups[0]["params"][0]

    def step(optimizer: Adam, seed: int, alone: bool = True) -> None:
        torch.manual_seed(seed)
        weight(optimizer).grad = torch.randn(7)
        if alone:
            optimizer.step()

    ours, theirs = optimizers(), optimizers()
    before = [weight(optimizer).detach().clone() for optimizer in ours]
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        step(one, number, alone=False)
        step(other, number)
    adam_steps(ours)
    for optimizer in ours:
        optimizer.step()
    for one, other, old in zip(ours, theirs, before, strict=True):
        assert torch.equal(weight(one), weight(other))
        assert largest_difference(one.state_dict(), other.state_dict()) == 0.0
        assert not torch.equal(weight(one), old)  # control


# --- stopping and going on --------------------------------------------------------------------


def after_steps(trainer: EnsembleTrainer, steps: int, act: Callable[[], None]) -> None:
    """Do something before this step of the ensemble."""
    done = [0]

    def count() -> None:
        done[0] += 1
        if done[0] == steps:
            act()

    before_each_step(trainer, count)


@BATCHED
@pytest.mark.parametrize("steps", [1, 12, 20])
def test_a_resumed_ensemble_is_the_uninterrupted_one(
    batched: bool, steps: int, ensemble: Ensemble, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """SIGTERM in the first step, in the last of an epoch, within one: every member is saved."""
    changes = dict(average_every=2)
    ensemble(tmp_path / "whole", batched, **changes).fit()
    first = ensemble(tmp_path / "run", batched, **changes)
    handler = signal.getsignal(signal.SIGTERM)
    after_steps(first, steps, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingStopped, match="go on with --resume") as stopped:
        first.fit()
    assert stopped.value.interrupted and signal.getsignal(signal.SIGTERM) is handler
    progress = [checkpoint(tmp_path / "run" / str(seed))["progress"] for seed in SEEDS]
    done = [STEPS * p["epoch"] + p["step"] for p in progress]
    assert done == [steps] * 3 if batched else done[0] == min(steps, STEPS) and sum(done) == steps
    second = ensemble(tmp_path / "run", batched, **changes)
    for member in second.members:  # all of it must come from the checkpoints
        with torch.no_grad():
            member.objective.vector.mul_(1.5)
    second.resume()
    second.fit()
    for seed in SEEDS:
        ours, theirs = (checkpoint(tmp_path / run / str(seed)) for run in ("run", "whole"))
        assert largest_difference(ours, theirs) == 0.0
        files = [tmp_path / run / str(seed) / "model.safetensors" for run in ("run", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_an_interrupt_in_the_last_step_stops_nothing(ensemble: Ensemble) -> None:
    together = ensemble(None, True, epochs=1)
    after_steps(together, STEPS, together._ask_to_stop)
    assert len(together.fit()) == len(SEEDS)
    earlier = ensemble(None, True, epochs=1)  # control
    after_steps(earlier, STEPS - 1, earlier._ask_to_stop)
    with pytest.raises(TrainingStopped, match="with 3 of 3 models in training"):
        earlier.fit()


@BATCHED
def test_members_that_lag_behind_catch_up(
    batched: bool, ensemble: Ensemble, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A kill may leave members at different steps, or without a checkpoint."""
    changes = dict(recipe="paper", checkpoint_seconds=0.0)
    ensemble(tmp_path / "whole", batched, **changes).fit()
    first = ensemble(tmp_path / "run", batched, **changes)

    def keep() -> None:
        shutil.copytree(tmp_path / "run" / "2", tmp_path / "early")

    after_steps(first, 5 if batched else 2 * STEPS + 5, keep)
    first.fit()
    for seed, source in ((0, None), (2, tmp_path / "early")):
        shutil.rmtree(tmp_path / "run" / str(seed))
        if source:
            shutil.copytree(source, tmp_path / "run" / str(seed))
    second = ensemble(tmp_path / "run", batched, **changes)
    second.resume()
    assert [member.place for member in second.members] == [(0, 0), (2, 0), (0, 4)]
    for model, seed in zip(second.fit(), SEEDS, strict=True):
        ours, theirs = (checkpoint(tmp_path / run / str(seed)) for run in ("run", "whole"))
        assert largest_difference(ours, theirs) < 1e-8
        best = load_model(tmp_path / "run" / str(seed)).state_dict()
        assert largest_difference(model.state_dict(), best) == 0.0 and not model.training


@BATCHED
def test_a_member_that_fails_is_named_and_the_others_go_on(
    batched: bool,
    ensemble: Ensemble,
    build: Build,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    together = ensemble(tmp_path / "run", batched, epochs=2)
    bad = together.members[1]
    molecule = int(bad.next_batch()[0])
    bad.train = replace(bad.train, target=bad.train.target.clone())
    bad.train.target[molecule] = torch.nan
    with pytest.raises(TrainingStopped, match="member 1: the loss of batch 0 of epoch 1") as error:
        together.fit()
    assert "2 others are trained" in str(error.value) and not error.value.interrupted
    for seed in (0, 2):
        build(Trainer, seed, tmp_path / "alone" / str(seed), epochs=2).fit()
        ours, theirs = (checkpoint(tmp_path / run / str(seed)) for run in ("run", "alone"))
        assert largest_difference(ours, theirs) < 1e-8


@BATCHED
def test_a_member_that_failed_goes_on_from_its_checkpoint(
    batched: bool, ensemble: Ensemble, build: Build, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    together = ensemble(tmp_path / "run", batched, epochs=2, checkpoint_seconds=0.0)
    number = 0 if batched else 1
    bad = together.members[number]

    def spoil() -> None:
        with torch.no_grad():
            bad.objective.vector.fill_(torch.nan)

    after_steps(together, STEPS + 3, spoil)
    with pytest.raises(TrainingStopped, match=rf"member {number}: the loss of batch 2 of epoch"):
        together.fit()
    assert bad.step == 3  # it took none after that
    together.resume()
    together.fit()
    for seed in SEEDS:
        build(Trainer, seed, tmp_path / "alone" / str(seed), epochs=2).fit()
        ours, theirs = (checkpoint(tmp_path / run / str(seed)) for run in ("run", "alone"))
        assert largest_difference(ours, theirs) < 1e-8


@BATCHED
def test_a_member_whose_validation_fails_at_once_is_named(
    batched: bool, ensemble: Ensemble
) -> None:
    """As where it was stopped between the last step of an epoch and the validation."""
    together = ensemble(None, batched, epochs=2)
    bad = together.members[1]
    bad.validation = replace(bad.validation, target=bad.validation.target * torch.nan)
    bad.step = STEPS
    with pytest.raises(TrainingStopped, match="member 1: the validation error.*2 others"):
        together.fit()
    assert [member.place for member in together.members] == [(2, 0), (0, STEPS), (2, 0)]


def test_no_members_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        EnsembleTrainer([])


@pytest.mark.parametrize(
    "name, options, attributes",
    [
        ("network", {"network": {"num_onsite": 0}}, {}),
        ("kernel", {"network": {"kernel": "padded"}}, {}),
        ("precision", {"dtype": torch.float32}, {}),
        ("precision of products", {"precision": "bf16"}, {}),
        ("device", {}, {"device": torch.device("meta")}),
        ("lambda_l2", {"lambda_l2": 0.5}, {}),
        ("lambda_r", {"lambda_r": 0.5}, {}),
        ("choice between energies and forces", {}, {"forces": True}),
        ("choice to learn stress", {}, {"stress": True}),
        ("energy_weight", {"energy_weight": 0.5}, {}),
        ("force_weight", {"force_weight": 0.5}, {}),
        ("stress_weight", {"stress_weight": 0.5}, {}),
    ],
)
def test_members_must_be_alike(
    name: str, options: dict[str, Any], attributes: dict[str, Any], build: Build
) -> None:
    one, other = build(Member, 0), build(Member, 1, **options)
    for attribute, value in attributes.items():
        setattr(other, attribute, value)
    with pytest.raises(ValueError, match=rf"member 1 .* another {name} \("):
        EnsembleTrainer([one, other])
    EnsembleTrainer([one, build(Member, 1)])  # control


@pytest.mark.parametrize("name", ["batch_size", "number of training molecules"])
def test_batched_members_take_as_many_molecules(name: str, build: Build) -> None:
    one, other = build(Member, 0), build(Member, 1, batch_size=5 if name == "batch_size" else 8)
    if name != "batch_size":
        other.train = other.train.subset(torch.arange(80))
    with pytest.raises(ValueError, match=rf"member 1 .* another {name} \("):
        EnsembleTrainer([one, other], batched=True)
    assert not EnsembleTrainer([one, other]).batched  # control: a CPU takes turns


# -- captured steps --------------------------------------------------------------------------------


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members take captured steps, as on a GPU; without its kernels in turn."""
    monkeypatch.setattr(Member, "alone", True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_captured_members_are_the_models_alone(
    recipe: str,
    captured: None,
    build: Build,
    ensemble: Ensemble,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    """Bit for bit; two of them stop early."""
    trainer = ensemble(tmp_path / "together", "auto", capture="on", **RECIPES[recipe])
    assert not trainer.batched and not trainer.stacked
    trainer.fit()
    assert all(member.captured is not None for member in trainer.members)
    for seed in SEEDS:
        alone = build(Trainer, seed, tmp_path / "alone", capture="on", **RECIPES[recipe])
        alone.fit()
        files = (tmp_path / "together" / str(seed), tmp_path / "alone")
        assert largest_difference(*map(checkpoint, files)) == 0.0
        shutil.rmtree(tmp_path / "alone")


def test_captured_members_go_on_where_they_were(
    captured: None, ensemble: Ensemble, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    options = dict(capture="on", **RECIPES["fast"])
    whole = ensemble(tmp_path / "whole", "auto", **options)
    whole.fit()
    stopped = ensemble(tmp_path / "stopped", "auto", **options)
    taken = []

    def stop() -> None:
        taken.append(1)
        if len(taken) == 30:
            stopped.interrupted = True

    for member in stopped.members[:1]:
        count = member._count_step
        member._count_step = lambda count=count: (count(), stop())  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="3 of 3 models"):
        stopped.fit()
    assert [member.place for member in stopped.members] == [(2, 6), (2, 0), (2, 0)]
    again = ensemble(tmp_path / "stopped", "auto", **options)
    again.resume()
    again.fit()
    for seed in SEEDS:
        files = (tmp_path / "whole" / str(seed), tmp_path / "stopped" / str(seed))
        assert largest_difference(*map(checkpoint, files)) == 0.0


def test_an_interrupt_does_not_save_a_bad_member(
    captured: None, ensemble: Ensemble, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The loss of a captured step is looked at late; what it has from its first step stays."""
    together = ensemble(tmp_path, "auto", capture="on")

    def spoil() -> None:
        together.interrupted = True
        with torch.no_grad():
            together.members[0].objective.vector.fill_(torch.nan)

    after_steps(together, 2, spoil)
    with pytest.raises(TrainingStopped, match="with 2 of 3 models in training"):
        together.fit()
    states = [checkpoint(tmp_path / str(seed)) for seed in SEEDS]
    assert [state["progress"]["step"] for state in states] == [1, 0, 0]  # the others are saved
    assert bool(states[0]["model"]["blocks.0.interaction.V"].isfinite().all())


def test_a_member_that_resumes_is_captured_again(
    captured: None, ensemble: Ensemble, tmp_path: Path
) -> None:
    """In the epoch that it goes on in, not only from the next one on."""
    options = dict(capture="on", epochs=2, checkpoint_seconds=0.0)
    member = ensemble(tmp_path, "auto", **options).members[0]
    member.start()
    steps = member.rest_of_epoch()
    for _ in range(3):
        next(steps)
    member.resume()
    assert member.captured is None and member.place == (0, 3)
    next(member.rest_of_epoch())
    assert member.captured is not None
