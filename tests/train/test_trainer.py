"""The training loop: it learns, averages, keeps the best, and stops cleanly when it must."""

from __future__ import annotations

import copy
import csv
import errno
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.accelerators import MPSAccelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.swa_utils import AveragedModel
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from hipnn_pyg import (
    HIPNN,
    HIPNNWarning,
    PackedLoader,
    PackedMolecules,
    StructureError,
    load_model,
    save_model,
)
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.models.files import read_card, write_model
from hipnn_pyg.train import Trainer, Training, TrainingStopped, error_statistics, predict
from hipnn_pyg.train.loss import l2_norm
from hipnn_pyg.train.recipe import WeightAverage, flattened, running_average

Parts = tuple[PackedMolecules, PackedMolecules]
Models = Callable[..., HIPNN]
Settings = Callable[..., Training]


# --- learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_training_learns(
    recipe: str, new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    model = new_model()
    target = parts[1].target
    e0_only = error_statistics(predict(model, parts[1]).orders[:, 0], target, "eV").mae
    config = settings(
        recipe=recipe, epochs=15, batch_size=3, learning_rate=1e-2, checkpoint_seconds=60.0
    )
    trainer = Trainer(model, *parts, config, tmp_path / "run", progress=False)
    best = trainer.fit()

    mae = error_statistics(predict(best, parts[1]).energy, target, "eV").mae
    assert mae < 0.5 * e0_only
    assert mae == pytest.approx(trainer.best_mae, rel=1e-9) and not best.training
    assert trainer.best_mae == min(row["validation_mae"] for row in trainer.history)
    assert trainer.history[trainer.best_epoch - 1]["validation_mae"] == trainer.best_mae
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["validation_mae"]) for row in rows] == [
        row["validation_mae"] for row in trainer.history
    ]
    assert [int(row["epoch"]) for row in rows] == list(range(1, 16))
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "version_0")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("validation_mae")]
    assert logged == [
        (row["epoch"], pytest.approx(row["validation_mae"], rel=1e-6)) for row in trainer.history
    ]
    stored = load_model(tmp_path / "run")  # the best one, not the last one
    assert torch.equal(predict(stored, parts[1]).energy, predict(best, parts[1]).energy)
    card = read_card(tmp_path / "run")
    assert card["epoch"] == trainer.best_epoch and card["validation_unit"] == "kcal/mol"
    assert card["energy_unit"] == "eV" and card["target"] == "energy"


def test_train_columns_are_means_over_the_epoch(
    new_model: Models, parts: Parts, settings: Settings
) -> None:
    """With a learning rate of practically 0 they are those of the fixed model's mini-batches."""
    train = replace(parts[0], pos=parts[0].pos.double())
    weights = dict(lambda_l2=1e-3, lambda_r=0.1)
    config = settings(recipe="paper", epochs=1, batch_size=40, learning_rate=1e-30, **weights)
    trainer = Trainer(new_model().double(), train, parts[1], config, progress=False)
    trainer.fit()
    energy, _, r = predict(trainer.model, train)
    columns: dict[str, list[float]] = {"train_loss": [], "train_mae": [], "train_r": []}
    for index in PackedLoader(train, 40, shuffle=True, seed=0).partition(0):
        error = energy[index] - train.target[index]
        mae, rmse, mean_r = error.abs().mean(), error.square().mean().sqrt(), r[index].mean()
        loss = (mae + rmse) / trainer.model.sigma_e + 0.1 * mean_r + 1e-3 * l2_norm(trainer.model)
        mae *= 23.060547830619  # eV in kcal/mol, as the validation columns
        for column, value in zip(columns.values(), (loss, mae, mean_r), strict=True):
            column.append(value.item())
    for name, values in columns.items():
        mean = sum(values) / 3
        assert trainer.history[0][name] == pytest.approx(mean, rel=1e-9), name
        assert abs(values[0] - mean) > 1e-3 * mean  # control: the mini-batches are not alike
    assert trainer.history[0]["learning_rate"] == 1e-30


def test_what_training_leaves_of_what_was(
    new_model: Models, parts: Parts, settings: Settings
) -> None:
    """Nothing of what a file said of the model; no denormal numbers on a CPU."""
    model, tiny = new_model(), torch.tensor([1e-40])
    model.card = {"target": "zpve"}
    trainer = Trainer(model, *parts, settings(epochs=1), progress=False)
    trainer.fit()
    assert model.card == {}
    assert float(tiny * 1.0) == 0.0
    torch.set_flush_denormal(False)
    assert float(tiny * 1.0) > 0.0  # control


def test_e0_stays_exactly(new_model: Models, parts: Parts, settings: Settings) -> None:
    model = new_model()
    e0, sigma = model.reference.weight.detach().clone(), model.sigma_e
    moved = model.blocks[0].interaction.V.detach().clone()
    trainer = Trainer(model, *parts, settings(average_every=1), progress=False)
    trainer.fit()
    assert trainer.average is not None
    for kept in (trainer.model, trainer.average.module):
        assert kept.reference.weight.dtype == torch.float64
        assert torch.equal(kept.reference.weight, e0) and kept.sigma_e == sigma
        assert not torch.equal(kept.blocks[0].interaction.V, moved)


def test_a_loader_goes_in_through_pack(
    new_model: Models, structures: list[Data], parts: Parts, settings: Settings
) -> None:
    loader = DataLoader(structures[:90], batch_size=4)
    sources = (parts[0], loader, structures[:90], PackedLoader(parts[0], batch_size=32))
    weights = []
    for source in sources:
        train = PackedMolecules.pack(source, ASE_ENERGY)
        trainer = Trainer(new_model(), train, parts[1], settings(epochs=1), progress=False)
        weights.append(trainer.fit().blocks[0].interaction.V)
    assert all(torch.equal(other, weights[0]) for other in weights[1:])


@pytest.mark.parametrize("capture", ["off", "on"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_in_an_epoch_are_averaged_all_the_same(
    steps: int, capture: str, new_model: Models, parts: Parts
) -> None:
    """Small data sets: an average that no step enters would be the untrained model."""
    model = new_model()
    before = copy.deepcopy(model.state_dict())
    config = Training(epochs=3, batch_size=-(-90 // steps), warmup_steps=1, capture=capture)
    trainer = Trainer(model, *parts, config, progress=False)
    assert trainer.steps_per_epoch == steps and config.average_every == 5
    after = trainer.fit().state_dict()
    assert trainer.average is not None and int(trainer.average.n_averaged) == 3
    assert not torch.equal(after["blocks.0.interaction.V"], before["blocks.0.interaction.V"])
    maes = [row["validation_mae"] for row in trainer.history]
    assert len(set(maes)) == 3


def test_a_subset_may_leave_foreign_species_out(parts: Parts, settings: Settings) -> None:
    """Of the packed molecules, some of which have oxygen, those that the model knows."""
    train = parts[0]
    known = [k for k in range(90) if 8 not in train.gather(torch.tensor([k])).z]
    rest = train.subset(torch.tensor(known))
    assert 10 < len(rest) < 90 and 8 in rest.z and 8 not in rest.atomic_numbers()
    model = HIPNN(species=(1, 6, 7), hidden_channels=4, num_onsite=1).fit_e0(rest)
    trained = Trainer(model, rest, rest, settings(epochs=1), progress=False).fit()
    assert len(predict(trained, rest).energy) == len(rest)
    for refused in (lambda: predict(trained, train), lambda: trained.fit_e0(train)):  # control
        with pytest.raises(StructureError, match="atomic number 8"):
            refused()


def test_an_apple_gpu_is_not_taken(
    new_model: Models, parts: Parts, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has neither float64 nor kernels of ours."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    assert Fabric(accelerator="auto").device.type == "mps"  # control
    trainer = Trainer(new_model(), *parts, settings(device="auto"), progress=False)
    assert trainer.device.type == "cpu"


@pytest.mark.parametrize("name", ["train", "validation"])
def test_no_molecules_are_refused(
    name: str, new_model: Models, parts: Parts, settings: Settings
) -> None:
    given = dict(zip(("train", "validation"), parts, strict=True))
    given[name] = given[name].subset(torch.arange(0))
    with pytest.raises(ValueError, match=f"no {name} molecules: make num_{name} at least 1"):
        Trainer(new_model(), **given, config=settings(), progress=False)


def test_energies_in_another_unit_are_refused(parts: Parts, settings: Settings) -> None:
    model = HIPNN(species=(1, 6, 7, 8), hidden_channels=4).fit_e0(parts[0])
    Trainer(model, *parts, settings(), progress=False)  # control
    model.energy_unit = "kcal/mol"
    with pytest.raises(ValueError, match="gives energies in kcal/mol, the train molecules .* eV"):
        Trainer(model, *parts, settings(), progress=False)


def test_foreign_species_are_refused(parts: Parts, settings: Settings) -> None:
    with pytest.raises(StructureError, match=r"7"):
        Trainer(HIPNN(species=(1, 6, 8)), *parts, settings(), progress=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"split_seed": -2}, "split_seed must be at least 0, not -2"),
        ({"seed": 2**63}, r"seed must be below 2\*\*63, not 9223372036854775808"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, not nan"),
        ({"lambda_l2": -5.0}, "lambda_l2 must be at least 0, not -5"),
        ({"lambda_r": float("nan")}, "lambda_r must be at least 0, not nan"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must be at least 0, not -1"),
        ({"average_decay": 1.5}, "average_decay must be between 0 and 1, not 1.5"),
        ({"decay": 5.0}, "decay must be between 0 and 1, not 5"),
    ],
)
def test_impossible_settings(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**change)  # type: ignore[arg-type]


# --- the weight average -----------------------------------------------------------------------


def test_running_average_by_hand() -> None:
    """Weights of the old average: 1/10, 2/11, 3/12, then decay = 0.25 caps them."""
    average = [torch.tensor([1.0, 1.0], dtype=torch.float64)]
    update = running_average(0.25)
    expected = 1.0
    for count, (new, old_weight) in enumerate(
        [(3.0, 1 / 10), (5.0, 2 / 11), (-2.0, 3 / 12), (8.0, 0.25), (0.5, 0.25)]
    ):
        update(average, [torch.tensor([new, new], dtype=torch.float64)], count)
        expected = old_weight * expected + (1 - old_weight) * new
        assert average[0].tolist() == pytest.approx([expected, expected], rel=1e-14)
    frozen = torch.tensor([-1029.8631529], dtype=torch.float64)
    kept = [frozen.clone()]
    update(kept, [frozen], 3)
    assert torch.equal(kept[0], frozen)


def test_the_average_of_the_vector_is_that_of_the_parameters(new_model: Models) -> None:
    models = [new_model() for _ in range(2)]
    vectors = [flattened(model) for model in models]
    one = WeightAverage(models[0], 0.4)
    other = AveragedModel(models[1], multi_avg_fn=running_average(0.4))
    for _ in range(6):
        change = torch.randn_like(vectors[0])
        for vector in vectors:
            vector += change
        one.update(vectors[0])
        other.update_parameters(models[1])
        assert one.n_averaged == other.n_averaged
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not torch.allclose(one.vector, vectors[0])  # control: it is no copy


def test_the_average_is_what_is_judged(new_model: Models, parts: Parts, settings: Settings) -> None:
    """Every second step of 10: 5 updates, followed by hand from the weights at those steps."""
    config = settings(epochs=1, average_every=2, average_decay=0.3)
    trainer = Trainer(new_model(), *parts, config, progress=False)
    bias = trainer.model.blocks[0].readout.bias
    seen = []
    after_step = trainer.schedule.after_step
    trainer.schedule.after_step = lambda: (seen.append(bias.item()), after_step())[1]  # type: ignore
    trainer.fit()
    # AveragedModel copies at its first update
    expected = seen[1]
    for count, new in enumerate(seen[3::2], start=1):
        old_weight = min(0.3, (1 + count) / (10 + count))
        expected = old_weight * expected + (1 - old_weight) * new
    assert len(seen) == 10 and trainer.average is not None
    assert trainer.average.module.blocks[0].readout.bias.item() == pytest.approx(expected, rel=1e-5)
    energy = predict(trainer.average.module, parts[1]).energy
    mae = error_statistics(energy, parts[1].target, "eV").mae
    assert mae == pytest.approx(trainer.best_mae, rel=1e-9)


# --- stopping ---------------------------------------------------------------------------------


def poisoned(parts: Parts, molecule: int) -> PackedMolecules:
    """The training part with one target that is not finite, as if no check had seen it."""
    target = parts[0].target.clone()
    target[molecule] = float("nan")
    return replace(parts[0], target=target)


def with_bad_batch(parts: Parts) -> PackedMolecules:
    """The same, in the third mini-batch of nine of the first epoch."""
    order = PackedLoader(parts[0], 9, shuffle=True, seed=0).partition(0)
    return poisoned(parts, int(order[2][0]))


def test_non_finite_loss_names_the_batch(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    order = PackedLoader(parts[0], 9, shuffle=True, seed=0).partition(0)
    molecule = int(order[6][4])  # in the seventh batch of the first epoch
    trainer = Trainer(
        new_model(), poisoned(parts, molecule), parts[1], settings(), tmp_path, progress=False
    )
    with pytest.raises(TrainingStopped, match=r"loss of batch 6 of epoch 1 is not") as stopped:
        trainer.fit()
    assert str(order[6][:5].tolist()) in str(stopped.value) and not stopped.value.interrupted
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["progress"]["step"] == 6  # the six good steps, none of the bad one
    assert all(bool(weight.isfinite().all()) for weight in checkpoint["model"].values())


def test_divergence_stops(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    config = settings(learning_rate=1e25, recipe="paper")
    trainer = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    with pytest.raises(TrainingStopped, match="not finite .*lower learning_rate"):
        trainer.fit()
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(bool(weight.isfinite().all()) for weight in checkpoint["model"].values())
    calm = Trainer(new_model(), *parts, settings(epochs=1, recipe="paper"), progress=False)
    assert calm.fit() is calm.model  # control


def test_weights_that_the_last_step_spoilt(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    """No loss shows them: validation does, also if asked again. There is no best model at first."""
    config = settings(learning_rate=1e30, recipe="paper", batch_size=90, epochs=1)
    trainer = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    with pytest.raises(TrainingStopped, match="validation error after epoch 1 is not fin") as stop:
        trainer.fit()
    assert "--start" not in str(stop.value) and not (tmp_path / "model.json").exists()
    spoilt = Trainer(new_model(), *parts, settings(epochs=2), tmp_path / "b", progress=False)
    end_epoch = spoilt.end_epoch

    def spoil() -> None:
        if spoilt.epoch == 1:
            spoilt.average.vector.fill_(torch.nan)  # type: ignore[union-attr]
        end_epoch()

    spoilt.end_epoch = spoil  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(TrainingStopped, match="after epoch 2 is not finite.*--start RUN"):
            spoilt.fit()
    checkpoint = torch.load(tmp_path / "b" / "checkpoint.pt", weights_only=True)
    assert all(bool(weight.isfinite().all()) for weight in checkpoint["average"].values())
    spoilt.end_epoch = end_epoch  # type: ignore[method-assign]
    spoilt.resume()
    assert spoilt.fit() is spoilt.model and spoilt.history[-1]["epoch"] == 2


@pytest.mark.parametrize("kept", ["nothing", "the model", "a checkpoint"])
def test_a_failure_says_what_is_left(
    kept: str, new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    """In the first step or, where there is a best model, in the second epoch."""
    folder = tmp_path if kept == "a checkpoint" else None
    trainer = Trainer(new_model(), *parts, settings(), folder, progress=False)
    begin_epoch = trainer.begin_epoch

    def spoil() -> None:
        begin_epoch()
        if kept == "nothing" or trainer.epoch == 1:
            with torch.no_grad():
                trainer.objective.vector.fill_(torch.nan)

    trainer.begin_epoch = spoil  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match=r"is not finite .*: begin a new run with") as stopped:
        trainer.fit()
    words = {"the model": "has the weights of epoch 1", "a checkpoint": "checkpoint is intact"}
    for what, said in words.items():
        assert (said in str(stopped.value)) is (what == kept)
    assert ("--start RUN" in str(stopped.value)) is (kept == "a checkpoint")
    weights = torch.cat([weight.flatten() for weight in trainer.model.parameters()])
    assert bool(weights.isfinite().all()) is (kept == "the model")
    if kept == "the model":
        for name, weight in trainer.model.state_dict().items():
            assert torch.equal(weight, trainer.best_state[name])


@pytest.mark.parametrize("capture", ["off", "on"])
def test_a_trainer_goes_on_after_a_failure(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path, capture: str
) -> None:
    """From its checkpoint, as one that never failed."""
    config = settings(epochs=2, capture=capture)
    theirs = Trainer(new_model(), *parts, config, progress=False)
    theirs.fit()
    trainer = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    take_step = trainer.take_step

    def spoil(index: torch.Tensor) -> None:
        take_step(index)
        if (trainer.epoch, trainer.step) == (1, 3):
            with torch.no_grad():
                trainer.objective.vector.mul_(1e30)

    trainer.take_step = spoil  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="of epoch 2 is not finite"):
        trainer.fit()
    trainer.take_step = take_step  # type: ignore[method-assign]
    trainer.interrupted = True  # as where Ctrl-C came at the same time
    trainer.resume()
    trainer.fit()
    assert torch.equal(trainer.objective.vector, theirs.objective.vector)


@pytest.mark.parametrize("last", [True, False])
def test_an_epoch_whose_validation_failed_is_validated_again(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path, last: bool
) -> None:
    """As where another process dies in it: the checkpoint does not call the epoch done."""
    config = settings(epochs=2 if last else 3)
    theirs = Trainer(new_model(), *parts, config, progress=False)
    theirs.fit()
    trainer = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    validate = trainer._validate

    def lost(judged: HIPNN) -> object:
        if trainer.epoch == 1:
            raise RuntimeError("another process is gone")
        return validate(judged)

    trainer._validate = lost  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError, match="is gone"):
        trainer.fit()
    trainer._save()
    again = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    again.resume()
    assert not again.finished and (again.epoch, again.step) == (1, again.steps_per_epoch)
    again.fit()
    names = ("epoch", "train_loss", "validation_mae", "learning_rate")
    rows = [[[row[name] for name in names] for row in one.history] for one in (again, theirs)]
    assert rows[0] == rows[1] and again.best_epoch == theirs.best_epoch


def test_what_a_failed_run_did_not_write_is_forgotten(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    """The best model of epochs after the checkpoint: its facts do not go with older weights."""
    trainer = Trainer(new_model(), *parts, settings(epochs=3), tmp_path, progress=False)
    trainer._best_written = trainer._saved_at = float("inf")  # written only when asked for
    trainer.start()
    for epoch in range(3):
        trainer.begin_epoch()
        for index in trainer.batches():
            trainer.take_step(index)
        trainer.end_epoch()
        if epoch == 0:
            trainer._save()
            trainer._best_written = trainer._saved_at = float("inf")
    assert trainer.best_epoch == 3  # and then the power failed
    trainer.resume()
    assert (trainer.epoch, trainer.best_epoch) == (1, 1)
    trainer._save()
    assert read_card(tmp_path)["epoch"] == 1


def test_a_resumed_model_has_its_unit(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    """That of the molecules, and E^0 and sigma_E of the checkpoint: nothing to be warned of."""
    Trainer(new_model(), *parts, settings(epochs=1), tmp_path, progress=False).fit()
    bare = new_model()
    bare.set_e0(None, 1.0)
    bare.energy_unit = "unknown"
    trainer = Trainer(bare, *parts, settings(epochs=1), tmp_path, progress=False)
    trainer.resume()
    assert trainer.model.energy_unit == parts[0].spec.unit != "unknown"
    with warnings.catch_warnings():
        warnings.simplefilter("error", HIPNNWarning)
        assert trainer.fit().energy_unit == parts[0].spec.unit
    assert read_card(tmp_path)["energy_unit"] == parts[0].spec.unit


@pytest.mark.parametrize("fitted", [False, True])
def test_a_model_that_was_not_fitted(
    fitted: bool, new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    """Is warned of where training starts; its file says what its energies are in."""
    model = new_model()
    if not fitted:
        model.set_e0(None, 1.0)
        model.energy_unit = "unknown"
    trainer = Trainer(model, *parts, settings(epochs=1), tmp_path, progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HIPNNWarning)
        trainer.fit()
    places = [one.filename for one in caught if "E^0 is 0 and sigma_E is 1" in str(one.message)]
    assert places == ([] if fitted else [__file__])
    assert load_model(tmp_path).energy_unit == "eV"


def test_an_interrupt_does_not_save_a_bad_step(
    new_model: Models, parts: Parts, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the loss is looked at late; an interrupt in the bad step must look first."""
    train = with_bad_batch(parts)
    trainer = Trainer(new_model(), train, parts[1], settings(), progress=False)
    saved: list[int] = []
    monkeypatch.setattr(trainer, "_save", lambda: saved.append(trainer.step))

    def watch_late(loss: torch.Tensor) -> None:
        if not loss.isfinite():
            trainer.first_bad, trainer.interrupted = torch.tensor(trainer.step - 1), True

    monkeypatch.setattr(trainer, "_watch", watch_late)
    with pytest.raises(TrainingStopped, match="loss of batch 2 of epoch 1 is not finite"):
        trainer.fit()
    assert saved == []


def test_over_several_gpus_a_bad_step_stops_all_at_the_end_of_the_epoch(
    new_model: Models,
    parts: Parts,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the first process saves: there it may not stop alone, nor keep what is bad."""
    train = with_bad_batch(parts)

    def steps(sharded: Any) -> tuple[list[int], int]:
        trainer = Trainer(new_model(), train, parts[1], settings(), tmp_path, progress=False)
        saved: list[int] = []
        monkeypatch.setattr(trainer, "_save", lambda: saved.append(trainer.step))
        trainer.device = torch.device("cuda")  # where the loss is looked at late
        with pytest.raises(TrainingStopped, match="loss of batch 2 of epoch 1 is not finite"):
            for index in trainer.batches():
                terms = trainer.gradient_of(index)
                trainer.sharded = sharded
                trainer.update(terms)
                trainer.sharded = None
            trainer.end_epoch()
        return saved, trainer.step

    together: Any = SimpleNamespace(asked=False, stop_agreed=lambda look: False)
    assert steps(together) == ([1, 2], 10)
    assert steps(None) == ([1, 2], 3)  # control: one process stops there


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hipnn_pyg.models.files.os.fsync", no_space)


def test_full_disk_keeps_the_old_checkpoint(
    new_model: Models,
    parts: Parts,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Trainer(new_model(), *parts, settings(epochs=1), tmp_path, progress=False).fit()
    files = ("checkpoint.pt", "model.safetensors", "model.json", "metrics.csv")
    before = {name: (tmp_path / name).read_bytes() for name in files}
    trainer = Trainer(new_model(seed=1), *parts, settings(epochs=1), tmp_path, progress=False)
    trainer.begun = True  # as if the files were its own
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(OSError, match="No space left on device.*file is intact"):
            trainer.fit()
        with pytest.raises(OSError, match="No space left on device"):
            save_model(trainer.model, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files} == before
    assert not list(tmp_path.glob("*.tmp"))
    resumed = Trainer(new_model(), *parts, settings(epochs=1), tmp_path, progress=False)
    resumed.resume()
    assert resumed.epoch == 1
    save_model(trainer.model, tmp_path)  # control: with space the file changes
    assert (tmp_path / "model.safetensors").read_bytes() != before["model.safetensors"]


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_the_best_model_is_on_disk_in_the_end(
    seconds: float,
    new_model: Models,
    parts: Parts,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where epochs are short it is not written after each, but with checkpoints and errors."""
    module = "hipnn_pyg.train.trainer"
    monkeypatch.setattr(f"{module}.BEST_SECONDS", seconds)
    written: list[int] = []

    def noted(model: HIPNN, state: Any, folder: Path, facts: dict[str, Any]) -> Path:
        written.append(facts["epoch"])
        return write_model(model, state, folder, facts)

    monkeypatch.setattr(f"{module}.write_model", noted)
    config = settings(epochs=4, checkpoint_seconds=1e9)
    trainer = Trainer(new_model(), *parts, config, tmp_path / "a", progress=False)
    best = trainer.fit()
    assert trainer.best_epoch == 4 and written == ([1, 2, 3, 4] if seconds == 0 else [1, 4])
    for name, weight in load_model(tmp_path / "a").state_dict().items():
        assert torch.equal(weight, best.state_dict()[name])

    written.clear()
    trainer = Trainer(new_model(), *parts, config, tmp_path / "b", progress=False)
    end_epoch = trainer.end_epoch

    def spoil() -> None:
        end_epoch()
        if trainer.epoch == 2:
            with torch.no_grad():
                trainer.objective.vector.fill_(torch.nan)

    monkeypatch.setattr(trainer, "end_epoch", spoil)
    with pytest.raises(TrainingStopped, match="best weights"):
        trainer.fit()
    assert written == [1, 2] and read_card(tmp_path / "b")["epoch"] == 2
    assert torch.isfinite(load_model(tmp_path / "b").blocks[0].readout.weight).all()


def test_a_run_is_not_overwritten(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    """A script that is run again after an interrupt stops before its first step."""
    config = settings(epochs=2)
    Trainer(new_model(), *parts, config, tmp_path, progress=False).fit()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    again = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    with pytest.raises(FileExistsError, match=r"resume\(\)"):
        again.fit()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    again.resume()
    assert again.fit() is not None and again.epoch == 2


def test_two_trainings_do_not_share_a_folder(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    """As when a job is submitted twice; the first goes on, and its end frees the folder."""
    config = settings(epochs=2)
    first = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    take_step, refusals = first.take_step, []

    def meanwhile(index: torch.Tensor) -> None:
        take_step(index)
        if first.step == 1:
            second = Trainer(new_model(), *parts, config, tmp_path, progress=False)
            second.resume()
            with pytest.raises(BlockingIOError, match=f"another training runs in {tmp_path}"):
                second.fit()
            refusals.append(second.step)

    first.take_step = meanwhile  # type: ignore[method-assign]
    first.fit()
    assert refusals == [1, 1] and first.finished
    third = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    third.resume()
    assert third.fit() is not None
