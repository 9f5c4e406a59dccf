"""The real trainer against the bare step, and an ensemble against one model."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypeVar

import torch

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.train import Trainer, Training
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member
from suite import tasks
from suite.bench import Bench
from suite.rows import Goal, Row, Unavailable, interleave
from suite.settings import Settings
from suite.structures import SPECIES

QM9_STEPS = 3_648
"""Steps of an epoch of QM9: 109,426 molecules in batches of 30."""
QM9_VALIDATION = 1_000

ENSEMBLE = 8
"""Models, as in the paper."""

EVEN = 0.98
"""Least ratio of what is no slower: two alike trainings, measured like this, differ as much."""
MANY = 6
"""Times as many rounds where a small difference counts; the more often turns change, the better."""

T = TypeVar("T", bound=Trainer)

Kind = Literal["one", "apart", "ensemble"]

_trainers: dict[str, Sequence[Trainer | EnsembleTrainer]] = {}


def trainer(bench: Bench) -> list[Row]:
    """Seconds per 1,000 steps of the trainer and of bare steps of the same kind."""
    settings = bench.settings
    size = settings.batch_sizes[0]
    steps = settings.trainer_steps
    team, missing = bench.team(["HIPNN"])
    if not team:
        raise Unavailable(missing["HIPNN"])
    with tempfile.TemporaryDirectory() as folder, bench.fresh() as worker:
        worker(start, "one", bench.molecules, settings, steps, folder)
        turns = {
            "Trainer": lambda number: worker(fit_epochs, "one") / steps * 1e3,
            "bare step": lambda number: team["HIPNN"](
                tasks.turn, "HIPNN", "step", bench.batches(size, steps + 1, number)
            ),
        }
        turns["bare step"](-1)
        samples, failed = interleave(turns, settings.trainer_rounds)
    title = f"1,000 steps, batch {size}"
    loss = Row(title, "s", "Trainer", samples, failed, ["bare step"])
    loss.goals = [Goal(0.9, "bare step")]
    epochs = {name: [t and t * QM9_STEPS / 1e3 for t in v] for name, v in samples.items()}
    epoch = Row("epoch of QM9, 109,426 molecules", "s", "Trainer", epochs, failed)
    epoch.goals = [Goal(40)]
    epoch.note = f"extrapolated from {steps:,} steps"
    return [loss, epoch]


def ensemble(bench: Bench) -> list[Row]:
    """Eight models in one process beside one after the other."""
    other = "one after the other"
    return [ensemble_row(bench, "cpu", other, "apart", Goal(EVEN, other))]


def epoch_row(bench: Bench, device: str, steps: int, goal: Goal) -> Row:
    """Seconds of an epoch of ``Trainer.fit`` with all that belongs to it."""
    settings = bench.settings
    epochs = settings.gpu_epochs if device == "cuda" else 1
    with tempfile.TemporaryDirectory() as folder, bench.fresh() as worker:
        worker(start, "one", bench.molecules, settings, steps, folder, device)
        turns = {"Trainer": lambda number: worker(fit_epochs, "one", epochs) / epochs}
        samples, failed = interleave(turns, settings.trainer_rounds)
    title = f"{'GPU: ' if device == 'cuda' else ''}epoch of {steps:,} steps"
    row = Row(title, "s", "Trainer", samples, failed, goals=[goal])
    row.note = f"of runs of {epochs} epochs" if epochs > 1 else ""
    return row


def ensemble_row(bench: Bench, device: str, other: str, kind: Kind, goal: Goal) -> Row:
    """Seconds of an epoch of the ensemble, and of one trainer or as many, called ``other``."""
    settings, epochs = bench.settings, 1
    steps, rounds = max(1, settings.trainer_steps // ENSEMBLE // 2), MANY * settings.rounds
    if device == "cuda":
        steps, epochs, rounds = settings.gpu_trainer_steps, settings.gpu_epochs, settings.rounds
    with tempfile.TemporaryDirectory() as folder, bench.fresh() as worker:
        for name in (kind, "ensemble"):
            worker(start, name, bench.molecules, settings, steps, f"{folder}/{name}", device)
        turns = {
            "ensemble": lambda number: worker(fit_epochs, "ensemble", epochs) / epochs,
            other: lambda number: worker(fit_epochs, kind, epochs) / epochs,
        }
        samples, failed = interleave(turns, rounds)
    title = f"{'GPU: ' if device == 'cuda' else ''}{ENSEMBLE} models, {steps:,} steps each"
    row = Row(title, "s", "ensemble", samples, failed, [other], goals=[goal])
    row.note = f"an epoch, of runs of {epochs} epochs" if epochs > 1 else ""
    return row


# -- inside a worker process ---------------------------------------------------------------------


def start(
    kind: Kind,
    molecules: PackedMolecules,
    settings: Settings,
    steps: int,
    folder: str,
    device: str = "cpu",
) -> None:
    """Make a trainer that writes to ``folder`` and train one epoch: compilation and warm-up.

    Args:
        kind: of one model, of as many models as an ensemble has, each alone, or of an ensemble.
        molecules: to train on, again from the first if they are too few.
        settings: sizes and seed.
        steps: of an epoch.
        folder: for checkpoints and logs.
        device: that trains.
    """

    def make(of: type[T]) -> list[T]:
        number = 1 if kind == "one" else ENSEMBLE
        return [
            _trainer(of, molecules, settings, steps, Path(folder) / str(k), device, k)
            for k in range(number)
        ]

    _trainers[kind] = [EnsembleTrainer(make(Member))] if kind == "ensemble" else make(Trainer)
    fit_epochs(kind)


def _trainer(
    kind: type[T],
    molecules: PackedMolecules,
    settings: Settings,
    steps: int,
    folder: Path,
    device: str,
    number: int,
) -> T:
    """The trainer of one model on random molecules, with validation in QM9's proportion."""
    size, seed = settings.batch_sizes[0], settings.seed + number
    num_train = size * steps
    num_validation = max(1, round(QM9_VALIDATION * steps / QM9_STEPS))
    index = torch.randperm(len(molecules), generator=torch.Generator().manual_seed(seed))
    index = index.repeat(-(-(num_train + num_validation) // len(molecules)))
    train = molecules.subset(index[:num_train])
    validation = molecules.subset(index[num_train : num_train + num_validation])
    torch.manual_seed(seed)
    model = HIPNN(SPECIES, **asdict(settings.network)).fit_e0(train, train.spec)
    epochs = max(settings.trainer_rounds, MANY * settings.rounds) * settings.gpu_epochs + 1
    config = Training(batch_size=size, epochs=epochs, seed=seed, device=device)
    return kind(model, train, validation, config, folder)


def fit_epochs(kind: Kind, epochs: int = 1) -> float:
    """Seconds of more epochs with everything that belongs to them, progress bar included."""
    for trainer in _trainers[kind]:
        for member in trainer.members if isinstance(trainer, EnsembleTrainer) else [trainer]:
            member.epochs = member.epoch + epochs
            member.model.train()
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        for trainer in _trainers[kind]:
            trainer.fit()
    return time.perf_counter() - began
