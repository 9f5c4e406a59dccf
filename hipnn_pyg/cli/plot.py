"""Draw a run: learning curves, parity, sensitivities (Fig. 2), errors against R (Fig. 3)."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from matplotlib.figure import Figure

from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.cli.run_folder import RunFolder
from hipnn_pyg.data.stress import StressLabels
from hipnn_pyg.explain.standing import are_current
from hipnn_pyg.models.files import load_model, read_arrays, read_card
from hipnn_pyg.nn import Sensitivity, cosine_cutoff
from hipnn_pyg.plots import (
    error_quantiles,
    learning_curves,
    parity,
    plot_error_quantiles,
    sensitivities,
)
from hipnn_pyg.units import convert, reported

PICTURES = ("sensitivities", "learning", "parity", "forces", "stress", "quantiles")
"""All that there may be."""
AGAIN = "run `hipnn evaluate` again"


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn plot``."""
    options.add_argument("run", type=str, help="run folder of hipnn train")


def run(arguments: Namespace) -> None:
    """Draw everything the run folder has data for."""
    for path in plot(Path(arguments.run)):
        print(path)


def plot(path: Path) -> list[Path]:
    """Write ``plots/*.png`` of a run folder; what is not drawn now is removed.

    Args:
        path: run folder; parity and errors against R need ``hipnn evaluate`` first.

    Returns:
        The pictures.

    Raises:
        ModelFileError: the folder holds no run.
    """
    folder = RunFolder(path)
    folder.read_config()
    drawings: dict[str, Callable[[RunFolder], Figure]] = {"sensitivities": draw_sensitivities}
    if folder.metrics.is_file():
        drawings["learning"] = draw_learning
    if folder.predictions.is_file() and not are_current(path):
        warnings.warn(
            f"{folder.predictions} is of an earlier state of the model: run `hipnn evaluate` "
            "again to draw it",
            HIPNNWarning,
            stacklevel=2,
        )
    elif folder.predictions.is_file():
        drawings["parity"] = draw_parity
        for name in components_of(folder):
            drawings[name] = partial(draw_components, name=name)
        if load_model(path).hierarchical:  # else R counts atoms
            drawings["quantiles"] = draw_quantiles
    folder.plots.mkdir(exist_ok=True)
    written = []
    for name, draw in drawings.items():
        try:
            figure = draw(folder)
        except ValueError as error:  # too few molecules for quantiles, say
            warnings.warn(f"no {name}.png: {error}", HIPNNWarning, stacklevel=2)
            continue
        written.append(folder.plots / f"{name}.png")
        figure.savefig(written[-1], dpi=200)
    for name in PICTURES:
        if (old := folder.plots / f"{name}.png") not in written:
            old.unlink(missing_ok=True)  # of an earlier evaluation
    return written


def draw_learning(folder: RunFolder) -> Figure:
    """Validation errors, training loss and learning rate per epoch."""
    with open(folder.metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    column = {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}
    rate = column["learning_rate"]
    paper, unit = {}, str(read_card(folder.path).get("validation_unit", "kcal/mol"))
    if folder.results.is_file():
        mae = json.loads(folder.results.read_text())["paper"].get("mae")
        paper = {"paper": float(mae.split()[0])} if mae else {}
    return learning_curves(
        column["epoch"],
        {
            "validation MAE": column["validation_mae"],
            "validation RMSE": column["validation_rmse"],
        },
        unit,
        also={
            its_unit: {
                f"{name} {kind.upper()}": column[f"validation_{name}_{kind}"]
                for kind in ("mae", "rmse")
            }
            for name, its_unit in (("force", f"{unit}/Å"), ("stress", "GPa"))
            if f"validation_{name}_mae" in column
        },
        learning_rate=np.maximum(rate, 1e-3 * rate.max()) if rate.any() else None,  # ends at 0
        reference=paper,
        loss=column["train_loss"],
    )


class _Errors(NamedTuple):
    """Target and prediction in kcal/mol where they are energies, R, the unit, a title for molecules
    that are not the test set's."""

    target: np.ndarray
    prediction: np.ndarray
    r: np.ndarray
    unit: str
    title: str | None


def _errors(folder: RunFolder) -> _Errors:
    """What ``hipnn evaluate`` has written."""
    names = ("target", "prediction", "nonhierarchicality", "unit", "part")
    stored = read_arrays(folder.predictions, AGAIN, *names)
    target, prediction, r, unit, part = (stored[name] for name in names)
    factor, name = reported(str(unit))
    return _Errors(factor * target, factor * prediction, r, name, _title(part))


def _title(part: object) -> str | None:
    """What stands above a picture of molecules that are not the test set's."""
    return None if str(part) == "test" else f"{part} set"


def draw_parity(folder: RunFolder) -> Figure:
    """Predicted against true energies."""
    found = _errors(folder)
    return parity(found.target, found.prediction, found.unit, found.title)


def components_of(folder: RunFolder) -> list[str]:
    """Which of "forces" and "stress" ``hipnn evaluate`` has predicted."""
    stored = read_arrays(folder.predictions, AGAIN)
    return [name for name in ("forces", "stress") if name in stored]


def draw_components(folder: RunFolder, name: str) -> Figure:
    """Predicted against true components of forces (kcal/mol/Å) or stress (GPa)."""
    names = (f"{name}_target", name, "unit", "part")
    stored = read_arrays(folder.predictions, AGAIN, *names)
    target, prediction, unit, part = (stored[name] for name in names)
    known = ~np.isnan(target)
    if name == "stress":
        factor, its_unit = 1 / StressLabels("GPa").factor(str(unit)), "GPa"
    else:
        factor, its_unit = convert(1.0, str(unit), "kcal/mol"), "kcal/mol/Å"
    figures = (factor * target[known], factor * prediction[known])
    return parity(*figures, its_unit, _title(part))


def draw_quantiles(folder: RunFolder) -> Figure:
    """Fig. 3: quantiles of the error against R."""
    found = _errors(folder)
    quantiles = error_quantiles(found.r, np.abs(found.prediction - found.target))
    return plot_error_quantiles(quantiles, unit=found.unit, title=found.title)


@torch.no_grad()
def draw_sensitivities(folder: RunFolder) -> Figure:
    """Fig. 2: the first layer's sensitivities as trained (blue) and initially (grey)."""
    model = load_model(folder.path)
    trained = model.blocks[0].interaction.sensitivity
    assert isinstance(trained, Sensitivity)
    initial = Sensitivity(trained.mu.numel(), trained.r_low, trained.r_high, trained.cutoff)
    r = torch.linspace(0.5, trained.cutoff, 600)
    return sensitivities(
        r.numpy(),
        trained(r).numpy(),
        cosine_cutoff(r, trained.cutoff).numpy(),
        r_cut=trained.cutoff,
        initial=initial(r).numpy(),
    )
