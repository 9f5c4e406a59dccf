"""A run that was interrupted and resumed is the uninterrupted run, bit for bit on the CPU."""

from __future__ import annotations

import builtins
import errno
import io
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hipnn_pyg import HIPNN, HIPNNWarning, ModelFileError, PackedMolecules, load_model
from hipnn_pyg.train import Trainer, Training, TrainingStopped

Parts = tuple[PackedMolecules, PackedMolecules]
Models = Callable[..., HIPNN]
Settings = Callable[..., Training]
Checkpoint = Callable[..., dict[str, Any]]
InterruptAfter = Callable[[Trainer, int], None]

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(ours: Any, theirs: Any, where: str = "checkpoint") -> None:
    """Equal to the last bit, through dictionaries and lists."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    elif isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("recipe", ["paper", "fast"])
@pytest.mark.parametrize("steps", [1, 7, 10, 24], ids=lambda steps: f"after_{steps}_steps")
def test_bit_for_bit(
    recipe: str,
    steps: int,
    new_model: Models,
    parts: Parts,
    settings: Settings,
    interrupt_after: InterruptAfter,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    """Ten steps an epoch: interrupted in the first step, mid-epoch, at an epoch's end, late."""
    config = settings(recipe=recipe, t_init=1, t_patience=1, average_every=2)
    whole = Trainer(new_model(), *parts, config, tmp_path / "whole", progress=False)
    whole.fit()

    first = Trainer(new_model(), *parts, config, tmp_path / "run", progress=False)
    interrupt_after(first, steps)
    with pytest.raises(TrainingStopped, match="go on with --resume") as stopped:
        first.fit()
    assert stopped.value.interrupted
    torch.manual_seed(99)  # whatever happened in between
    second = Trainer(new_model(seed=7), *parts, config, tmp_path / "run", progress=False)
    second.resume()
    assert 10 * second.epoch + second.step == steps
    second.fit()

    assert_same(*(checkpoint(tmp_path / run, random=True) for run in ("run", "whole")))
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert second.best_epoch == whole.best_epoch and second.seconds > 0


def test_fit_may_be_called_again(
    new_model: Models, parts: Parts, settings: Settings, interrupt_after: InterruptAfter
) -> None:
    """As in a notebook, where a cell is stopped and run once more."""
    whole = Trainer(new_model(), *parts, settings(), progress=False)
    whole.fit()
    trainer = Trainer(new_model(), *parts, settings(), progress=False)
    interrupt_after(trainer, 13)
    with pytest.raises(TrainingStopped):
        trainer.fit()
    assert (trainer.epoch, trainer.step) == (1, 3)
    bar = trainer._bar()
    assert (bar.n, bar.total) == (90 + 3 * 9, 3 * 90)
    trainer.fit()
    assert torch.equal(trainer.objective.vector, whole.objective.vector)


def test_the_clock_goes_on(
    new_model: Models,
    parts: Parts,
    settings: Settings,
    interrupt_after: InterruptAfter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step takes a second; what passes between the two runs does not count."""
    now = [0.0]

    def timed() -> Trainer:
        trainer = Trainer(new_model(), *parts, settings(), tmp_path, progress=False)
        take_step = trainer.take_step

        def tick(index: Tensor) -> None:
            now[0] += 1
            take_step(index)

        trainer.take_step = tick  # type: ignore[method-assign]
        return trainer

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = timed()
    interrupt_after(first, 13)
    with pytest.raises(TrainingStopped):
        first.fit()
    now[0] += 1000
    second = timed()
    second.resume()
    assert second.seconds == 13
    second.fit()
    assert [row["seconds"] for row in second.history] == [10, 20, 30]


@pytest.mark.parametrize(
    "changes, width, train, message",
    [
        ({"epochs": 30}, 6, 0, "epochs = 3, not 30"),
        ({"recipe": "paper"}, 6, 0, "recipe = fast, not paper"),
        ({}, 7, 0, "hidden_channels = 6, not 7"),
        ({}, 6, 1, "training molecules"),
        ({}, 6, 2, "validation positions and labels"),
    ],
    ids=["epochs", "recipe", "network", "molecules", "validation"],
)
def test_a_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any],
    width: int,
    train: int,
    message: str,
    new_model: Models,
    parts: Parts,
    settings: Settings,
    interrupt_after: InterruptAfter,
    tmp_path: Path,
) -> None:
    first = Trainer(new_model(), *parts, settings(), tmp_path, progress=False)
    interrupt_after(first, 3)
    with pytest.raises(TrainingStopped):
        first.fit()
    shifted = replace(parts[1], target=parts[1].target + 1)
    molecules = ((parts[0], parts[1]), (parts[1], parts[1]), (parts[0], shifted))[train]
    config = settings(**changes)
    other = Trainer(new_model(hidden_channels=width), *molecules, config, tmp_path, progress=False)
    before = other.objective.vector.clone()
    with pytest.raises(ModelFileError, match=message):
        other.resume()
    assert torch.equal(other.objective.vector, before)  # nothing was loaded
    same = Trainer(new_model(), *parts, settings(compile="auto"), tmp_path, progress=False)
    same.resume()  # control
    assert same.step == 3


def test_another_seed_is_another_run(
    new_model: Models, parts: Parts, settings: Settings, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Control for the test above: the data order alone changes the weights."""
    states = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        Trainer(new_model(), *parts, settings(seed=seed), folder, progress=False).fit()
        states.append(checkpoint(folder)["model"])
    name = "blocks.0.interaction.V"
    assert not torch.allclose(states[0][name], states[1][name], rtol=1e-6)


def test_random_numbers_go_on(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    trainer = Trainer(new_model(), *parts, settings(epochs=1), tmp_path, progress=False)
    trainer.fit()
    expected = torch.rand(3)
    torch.manual_seed(1234)
    trainer.resume()
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_run_stays_as_it_is(
    new_model: Models, parts: Parts, settings: Settings, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Also one that the schedule stopped before its last epoch."""
    config = settings(recipe="paper", epochs=40, t_init=1, t_patience=1, learning_rate=1e-30)
    trainer = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    trainer.fit()
    assert 3 <= trainer.epoch < 40
    before = checkpoint(tmp_path, random=True)
    again = Trainer(new_model(), *parts, config, tmp_path, progress=False)
    again.resume()
    again.fit()
    assert again.epoch == trainer.epoch
    assert_same(checkpoint(tmp_path, random=True), before)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing", "a model"])
def test_bad_checkpoints(
    damage: str, new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    trainer = Trainer(new_model(), *parts, settings(epochs=1), tmp_path, progress=False)
    trainer.fit()
    path = tmp_path / "checkpoint.pt"
    trainer.resume()  # control
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "foreign":
        path.write_text("epoch: 3\n")
    elif damage == "a model":
        torch.save(trainer.model.state_dict(), path)
    else:
        path.unlink()
    message = "nothing to resume" if damage == "missing" else "truncated or not a checkpoint"
    with pytest.raises(ModelFileError, match=message) as caught:
        trainer.resume()
    assert str(path) in str(caught.value)


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    new_model: Models,
    parts: Parts,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(new_model(), *parts, settings(epochs=1), tmp_path, progress=False)
    trainer.fit()
    path, opened = tmp_path / "checkpoint.pt", io.open

    def closed(file: Any, *arguments: Any, **options: Any) -> Any:
        if Path(file) == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(file, *arguments, **options)

    with monkeypatch.context() as patch:  # root may read everything
        patch.setattr(io, "open", closed)
        patch.setattr(builtins, "open", closed)
        with pytest.raises(PermissionError, match=r"Permission denied: .*checkpoint\.pt"):
            trainer.resume()
    trainer.resume()  # control


def test_compiled_training(
    new_model: Models,
    parts: Parts,
    settings: Settings,
    interrupt_after: InterruptAfter,
    tmp_path: Path,
) -> None:
    """50 steps, compiled and with an interrupt, are those of an eager run to 1e-5.

    A C++ compiler is part of the test environment: without one this test fails.
    """
    assert shutil.which("g++") or shutil.which("clang++")

    def trainer(compile: str) -> Trainer:
        config = settings(
            recipe="paper", epochs=5, compile=compile, checkpoint_seconds=60.0, learning_rate=1e-3
        )
        model = new_model(hidden_channels=4, num_onsite=0, num_sensitivities=4)
        made = Trainer(model, *parts, config, tmp_path / compile, progress=False)
        assert made.compiled is (compile == "on")
        return made

    eager, compiled = trainer("off"), trainer("on")
    eager.fit()
    interrupt_after(compiled, 23)
    with pytest.raises(TrainingStopped):
        compiled.fit()
    with torch.no_grad():
        for parameter in compiled.model.parameters():
            parameter.mul_(1.5)  # all of it must come from the checkpoint
    compiled.resume()
    compiled.fit()
    assert 10 * compiled.epoch == 10 * eager.epoch == 50
    for ours, theirs in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert compiled.best_mae == pytest.approx(eager.best_mae, rel=1e-5)
    moved = new_model(hidden_channels=4, num_onsite=0, num_sensitivities=4)
    assert not torch.allclose(
        moved.blocks[0].interaction.V, eager.model.blocks[0].interaction.V, atol=1e-3
    )


def test_a_damaged_best_model_does_not_end_the_run(
    new_model: Models,
    parts: Parts,
    settings: Settings,
    interrupt_after: InterruptAfter,
    tmp_path: Path,
) -> None:
    """Its checkpoint is whole: the weights go on, and the best of the epochs left is kept."""
    whole = Trainer(new_model(), *parts, settings(), tmp_path / "whole", progress=False)
    whole.fit()
    first = Trainer(new_model(), *parts, settings(), tmp_path / "run", progress=False)
    interrupt_after(first, 13)
    with pytest.raises(TrainingStopped):
        first.fit()
    assert first.best_epoch == 1
    (tmp_path / "run" / "model.safetensors").write_bytes(b"")
    second = Trainer(new_model(), *parts, settings(), tmp_path / "run", progress=False)
    with pytest.warns(HIPNNWarning, match=r"model\.safetensors is missing.* Training goes on"):
        second.resume()
    second.fit()
    assert torch.equal(second.objective.vector, whole.objective.vector)
    assert second.best_epoch == whole.best_epoch > 1
    assert load_model(tmp_path / "run").card["epoch"] == whole.best_epoch
    (tmp_path / "run" / "model.safetensors").write_bytes(b"")
    third = Trainer(new_model(), *parts, settings(), tmp_path / "run", progress=False)
    with pytest.raises(ModelFileError, match="restore it from a copy"):  # nothing is left to do
        third.resume()
