"""From run folders to records in ``results/``: what is where, and how far it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from hipnn_pyg.cli.evaluate import evaluate
from hipnn_pyg.cli.run_folder import RunFolder, history
from hipnn_pyg.data.sets import MoleculeSet, describe
from hipnn_pyg.models.files import ModelFileError, load_model, read_arrays, read_card
from hipnn_pyg.nn import Sensitivity
from hipnn_pyg.reproduce.names import record_name
from hipnn_pyg.reproduce.records import Record, completed, read_records, write_record
from hipnn_pyg.reproduce.tables import Found, Unfinished
from hipnn_pyg.train import Network, Training
from hipnn_pyg.train.checkpoint import load_checkpoint
from hipnn_pyg.units import reported

Part = Literal["test", "validation"]
RECORDS = "records"
"""Folder of the records in the folder of results."""


class Run(NamedTuple):
    """A run folder.

    Attributes:
        folder: its files.
        settings: as a record has them.
        epoch: epochs done.
        best_mae: on the validation molecules; None before the first epoch.
        begun: whether there is anything to go on from.
        finished: whether all is done.
    """

    folder: RunFolder
    settings: dict[str, Any]
    epoch: int
    best_mae: float | None
    begun: bool
    finished: bool


def settings_of(molecules: MoleculeSet, network: Network, training: Training) -> dict[str, Any]:
    """What the record of such a run has for its settings."""
    return completed({**describe(molecules), **asdict(network), **asdict(training.resolved())})


def look_at(path: Path) -> Run:
    """Read how far a run is.

    Raises:
        ModelFileError: no run, or a damaged one.
    """
    folder = RunFolder(path)
    settings = folder.read_config()
    if folder.checkpoint.exists():
        progress = load_checkpoint(folder.checkpoint)["progress"]
        finished = progress["epoch"] >= settings["epochs"] or progress["stopped"]
        best = progress["best_mae"] if progress["best_epoch"] else None
        return Run(folder, completed(settings), progress["epoch"], best, True, finished)
    if (path / "model.json").is_file():  # finished, the checkpoint removed
        card = read_card(path)
        rows = history(folder)
        epoch, best = int(rows["epoch"][-1]), card["validation_mae"]
        return Run(folder, completed(settings), epoch, best, True, True)
    return Run(folder, completed(settings), 0, None, False, False)


def single_runs(path: Path) -> Iterator[Path]:
    """All run folders of single models below a folder, members of ensembles included."""
    for config in sorted(path.rglob("config.yaml")):
        if "ensemble" not in RunFolder(config.parent).read_config():
            yield config.parent


class Ensemble(NamedTuple):
    """Seed of the first member, and how many there are."""

    seed: int
    number: int


def ensemble_of(path: Path) -> Ensemble | None:
    """The ensemble that a run folder is a member of."""
    config = RunFolder(path.parent).config
    settings = RunFolder(path.parent).read_config() if config.is_file() else {}
    return Ensemble(settings["seed"], settings["ensemble"]) if "ensemble" in settings else None


def found(results: Path, runs: Path) -> Found:
    """Everything there is: records, and unfinished runs that have none."""
    records = read_records(results / RECORDS)
    done = [record.settings for record in records]
    unfinished = [
        Unfinished(run.settings, run.epoch, run.settings["epochs"], run.best_mae)
        for run in map(look_at, single_runs(runs))
        if run.begun and run.settings not in done
    ]
    return Found(records, unfinished)


def collect(
    path: Path, results: Path, root: str | None = None, part: Part = "test", hardware: str = ""
) -> Path:
    """Evaluate a finished run and write its record.

    Args:
        path: run folder.
        results: folder of the results.
        root: another folder for the data set than the one in the configuration.
        part: which molecules.
        hardware: where it was trained; by default what the model file says.

    Returns:
        The JSON file of the record.

    Raises:
        ModelFileError: no run, or one that is not finished.
    """
    run = look_at(path)
    if "ensemble" in run.folder.read_config():
        raise ModelFileError(
            f"{path} is an ensemble, whose members have a record each: give {path}/member-0 ..."
        )
    if not run.finished:
        raise ModelFileError(
            f"{path} is not finished (epoch {run.epoch} of {run.settings['epochs']}): go on with "
            "it first"
        )
    statistics = evaluate(path, part, root).energy
    predictions = read_arrays(run.folder.predictions, "collect it again")
    model, rows = load_model(path), history(run.folder)
    card, (factor, _) = model.card, reported(model.energy_unit)
    target, orders = predictions["target"], predictions["orders"]
    truncated = (orders.cumsum(1) - target[:, None]) * factor
    arrays = {"error": ((predictions["prediction"] - target) * factor).astype(np.float32)}
    if model.hierarchical:
        arrays["nonhierarchicality"] = predictions["nonhierarchicality"].astype(np.float32)
    for name in ("seconds", "validation_mae", "validation_rmse"):
        arrays[name] = rows[name].astype(np.float32)
    arrays["epoch"] = rows["epoch"].astype(np.int32)
    trained_on = card["trained_on"]
    record = Record(
        settings=run.settings,
        part=part,
        split_sha256=card["split_sha256"],
        epochs=run.epoch,
        best_epoch=card["epoch"],
        seconds=round(float(rows["seconds"][-1]), 3),
        hardware=hardware or trained_on["machine"],
        date=trained_on["date"],
        versions={"hipnn_pyg": card["hipnn_pyg_version"], "torch": trained_on["torch"]},
        num_parameters=card["num_parameters"],
        unit=statistics.unit,
        num=statistics.num,
        mae=statistics.mae,
        rmse=statistics.rmse,
        above_1_kcal=statistics.above_1_kcal,
        mean_abs_order=(np.abs(orders).mean(0) * factor).tolist(),
        truncated_mae=np.abs(truncated).mean(0).tolist() if model.hierarchical else [],
        sensitivities=[_centres(block.interaction.sensitivity) for block in model.blocks],
    )
    records = results / RECORDS
    return write_record(record, arrays, records, record_name(record, read_records(records)))


def tidy(path: Path) -> None:
    """Remove what only an unfinished run needs: checkpoint, logs, predictions.

    A member of an ensemble is left as it is until all of them are finished.
    """
    siblings = path.parent.glob("member-*") if ensemble_of(path) else []
    if not all(look_at(sibling).finished for sibling in siblings):
        return
    folder = RunFolder(path)
    for file in (folder.checkpoint, folder.predictions):
        file.unlink(missing_ok=True)
    shutil.rmtree(path / "logs", ignore_errors=True)


def _centres(sensitivity: torch.nn.Module) -> dict[str, list[float]]:
    assert isinstance(sensitivity, Sensitivity)
    return {
        name: [round(value, 6) for value in getattr(sensitivity, name).tolist()]
        for name in ("mu", "sigma")
    }
