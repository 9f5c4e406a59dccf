"""Print a run's errors on its test set, beside the paper's: MAE, RMSE, % above 1 kcal/mol."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from hipnn_pyg.cli.run_folder import RunFolder, usable_device
from hipnn_pyg.data.sets import MD17Set, MoleculeSet, QM9Set
from hipnn_pyg.models.files import atomic_write, load_model, read_card
from hipnn_pyg.paper import TABLE_1, TABLE_2, TABLE_3
from hipnn_pyg.train.metrics import ErrorStatistics, error_statistics, predict


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn evaluate``."""
    options.add_argument("run", type=str, help="run folder of hipnn train")
    options.add_argument(
        "--part",
        type=Literal["test", "validation", "train"],
        default="test",
        help="which molecules",
    )
    options.add_argument("--root", type=str | None, default=None, help="folder of the data set")
    options.add_argument("--device", type=str, default="cpu", help="cpu or cuda")


def run(arguments: Namespace) -> None:
    """Evaluate and print."""
    statistics, paper = evaluate(
        Path(arguments.run), arguments.part, arguments.root, arguments.device
    )
    Console().print(report(statistics, paper, arguments.part))


def evaluate(
    path: Path,
    part: Literal["test", "validation", "train"] = "test",
    root: str | None = None,
    device: str = "cpu",
) -> tuple[ErrorStatistics, dict[str, str]]:
    """Predict one part of a run's data set; writes ``predictions.npz`` and ``results.json``.

    Args:
        path: run folder.
        part: which molecules.
        root: another folder for the data set.
        device: where to compute.

    Returns:
        Our statistics (kcal/mol where the target is an energy), and the paper's as text.
    """
    folder = RunFolder(path)
    model = load_model(path, usable_device(device))
    molecules, packed, split = folder.molecules(root)
    index = getattr(split, part)
    if not len(index):
        raise ValueError(f"{path} has no {part} molecules: choose another --part")
    chosen = packed.subset(index)
    prediction = predict(model, chosen)
    target = chosen.target.cpu()
    statistics = error_statistics(prediction.energy, target, model.energy_unit)
    np.savez_compressed(
        folder.predictions,
        index=index.numpy(),
        target=target.numpy(),
        prediction=prediction.energy.numpy(),
        orders=prediction.orders.numpy(),
        nonhierarchicality=prediction.nonhierarchicality.numpy(),
        unit=np.array(model.energy_unit),
        part=np.array(part),
    )
    card = read_card(path)
    paper = published(molecules, card)
    results = {"part": part, **statistics._asdict(), "paper": paper, "model": card}
    atomic_write({folder.results: json.dumps(results, indent=2).encode()})
    return statistics, paper


def published(molecules: MoleculeSet, card: dict[str, Any]) -> dict[str, str]:
    """The paper's figures for the same data, training size and network, as text; {} if none."""
    size = molecules.num_train + molecules.num_validation
    network = card["hyperparameters"]
    if isinstance(molecules, MD17Set):
        standard = (molecules.num_train, network["hidden_channels"], network["num_onsite"])
        if molecules.molecule in TABLE_3 and standard == (1_000, 20, 0):
            return {"mae": "{:.3f} ± {:.3f}".format(*TABLE_3[molecules.molecule])}
        return {}
    if not isinstance(molecules, QM9Set) or asdict(molecules)["target"] != "U0_atom":
        return {}
    if network["num_interactions"] != 2 or network["num_onsite"] != 3:
        return {}
    row = TABLE_2.get((network["hidden_channels"], network["hierarchical"]))
    if size == 110_426 and row is not None:
        return {
            "mae": "{:.3f} ± {:.3f}".format(*row.mae),
            "rmse": "{:.3f} ± {:.3f}".format(*row.rmse),
            "above_1_kcal": "{:.2f} ± {:.2f}".format(*row.above_1_kcal),
        }
    if size in TABLE_1 and network["hidden_channels"] == 80 and network["hierarchical"]:
        return {"mae": "{:.3f} ± {:.3f}".format(*TABLE_1[size])}
    return {}


def report(statistics: ErrorStatistics, paper: dict[str, str], part: str) -> Table:
    """The table that ``hipnn evaluate`` prints."""
    table = Table(title=f"{part} set, {statistics.num:,} molecules")
    for heading in ("statistic", "this run", "paper"):
        table.add_column(heading, justify="left" if heading == "statistic" else "right")
    unit = statistics.unit
    table.add_row(f"MAE ({unit})", f"{statistics.mae:.3f}", paper.get("mae", "-"))
    table.add_row(f"RMSE ({unit})", f"{statistics.rmse:.3f}", paper.get("rmse", "-"))
    if statistics.above_1_kcal is not None:
        table.add_row(
            "errors above 1 kcal/mol (%)",
            f"{statistics.above_1_kcal:.2f}",
            paper.get("above_1_kcal", "-"),
        )
        in_mev = statistics.to("meV")
        table.add_row("MAE (meV)", f"{in_mev.mae:.2f}", "-")
        table.add_row("RMSE (meV)", f"{in_mev.rmse:.2f}", "-")
    return table
