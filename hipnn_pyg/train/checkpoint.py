"""Checkpoints: everything a run needs to go on, readable with ``weights_only=True``."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from hipnn_pyg.models.files import ModelFileError, atomic_write

if TYPE_CHECKING:
    from hipnn_pyg.train.trainer import Trainer
    from hipnn_pyg.train.validation import Validation

PROGRESS = ("epoch", "step", "seconds", "best_mae", "best_epoch", "stopped")
"""Attributes of a trainer that say how far it is."""


MAY_CHANGE = {
    *("device", "devices", "num_nodes", "compile", "capture", "self_check", "checkpoint_seconds")
}
"""Settings of training that say how it is computed, not what comes out."""


def settings_of(trainer: Trainer) -> dict[str, Any]:
    """What a run must share with the one that it goes on with."""
    train = trainer.train
    atoms = hashlib.sha256(train.counts.numpy().tobytes())
    atoms.update(train.atomic_numbers().cpu().numpy().tobytes())
    settings = {k: v for k, v in asdict(trainer.config).items() if k not in MAY_CHANGE}
    network = trainer.model.hyperparameters
    hashes = {
        "training molecules (SHA-256)": atoms.hexdigest(),
        "training positions and labels (SHA-256)": train.sha256,
        "validation positions and labels (SHA-256)": trainer.validation.sha256,
    }
    return {**settings, **network, **hashes}


def check_settings(path: Path, state: dict[str, Any], trainer: Trainer) -> None:
    """A checkpoint must be of a run with the same settings and molecules.

    Args:
        path: of the checkpoint.
        state: its contents; those from before settings were kept are taken as they are.
        trainer: what shall go on with it.

    Raises:
        ModelFileError: naming the first that differs.
    """
    new = trainer.settings
    for name, old in state.get("settings", {}).items():
        if old != new.get(name):
            raise ModelFileError(
                f"{path} is of a run with {name} = {old}, not {new.get(name)}: resume with the "
                "old value, or train in another folder"
            )


def run_state(trainer: Trainer) -> dict[str, Any]:
    """All that a run needs to go on, for :func:`restore_run`; the tensors are not copied."""
    return {
        "settings": trainer.settings,
        "totals": trainer.totals,
        "model": trainer.model.state_dict(),
        "average": None if trainer.average is None else trainer.average.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "progress": {name: getattr(trainer, name) for name in PROGRESS},
        "history": trainer.history,
    }


def restore_run(trainer: Trainer, state: dict[str, Any]) -> None:
    """Bring a new trainer of the same settings to where ``run_state()`` was taken."""
    trainer.model.load_state_dict(state["model"])
    if trainer.average is not None:
        trainer.average.load_state_dict(state["average"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    for name in PROGRESS:
        setattr(trainer, name, state["progress"][name])
    trainer.history = state["history"]
    totals = state["totals"]
    trainer.totals[: totals.numel()] = totals  # older runs did not count those with stress


def best_model(trainer: Trainer, validation: Validation) -> dict[str, Any]:
    """What the file of a trainer's best model says about it.

    Args:
        trainer: at the end of the epoch.
        validation: of the model.
    """
    facts = {
        "epoch": trainer.epoch,
        "validation_mae": validation.energy.mae,
        "training_seconds": round(trainer.seconds, 3),
        "validation_unit": validation.energy.unit,
        "target": trainer.train.spec.name,
        "trained_on_forces": trainer.forces,
        "trained_on_stress": trainer.stress,
    }
    if validation.forces is not None:
        facts["validation_force_mae"] = validation.forces.mae
        facts["validation_force_unit"] = validation.forces.unit
    if validation.stress is not None:
        facts["validation_stress_mae"] = validation.stress.mae
        facts["validation_stress_unit"] = validation.stress.unit
    return facts


@contextmanager
def claimed(folder: Path | None) -> Iterator[None]:
    """Inside, no other training writes to a folder.

    Args:
        folder: of a run; None for none.

    Raises:
        BlockingIOError: another training does.
        OSError: it cannot be made.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"another training runs in {folder}: wait for its end, or choose another folder"
        ) from error
    except (NotImplementedError, OSError):  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; after any failure the old one is intact.

    Args:
        path: the file.
        state: tensors, numbers, strings and containers of these.
    """
    buffer = io.BytesIO()
    torch.save({**state, "rng": rng_state()}, buffer)
    atomic_write({path: buffer.getvalue()})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, all of it on the CPU; :func:`restore_rng` is for the end of resuming.

    Raises:
        ModelFileError: missing, truncated or foreign.
        OSError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path} does not exist: nothing to resume; leave --resume out to start this run"
        ) from error
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        state["rng"]["cpu"], state["progress"]
    except Exception as error:  # torch.load raises many kinds on damaged files
        raise ModelFileError(
            f"{path} is truncated or not a checkpoint ({type(error).__name__}): start the run anew "
            "in another folder"
        ) from error
    return state


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write one row per epoch (CSV); columns that an older version did not know stay empty.

    Args:
        path: the file.
        history: the rows.
    """
    if not history:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, history[-1], restval="")
    writer.writeheader()
    writer.writerows(history)
    atomic_write({path: text.getvalue().encode()})


def rng_state() -> dict[str, Any]:
    """States of torch's random number generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng(rng: dict[str, Any]) -> None:
    """Go on from ``rng_state()``; last of all, since building a model draws numbers too."""
    torch.set_rng_state(rng["cpu"])
    if torch.cuda.is_available():  # there may have been more GPUs
        torch.cuda.set_rng_state_all(rng["cuda"][: torch.cuda.device_count()])
