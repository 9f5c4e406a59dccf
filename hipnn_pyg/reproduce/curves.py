"""MAE against the number of training molecules, and against the time of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hipnn_pyg.paper import TABLE_1_OTHERS
from hipnn_pyg.plots import Curve, error_curves
from hipnn_pyg.reproduce.groups import Group, groups_of, trained_as
from hipnn_pyg.reproduce.report import Report, Table
from hipnn_pyg.reproduce.rows import Row
from hipnn_pyg.reproduce.tables import TRAINED, Found, compared, number, provenance

PRINTED = "printed in the paper"


def learning_curve(rows: Sequence[Row], found: Found) -> Report:
    """Test MAE against N_train, one curve for each budget of training.

    Args:
        rows: experiments that differ in the size of the training set.
        found: all runs.
    """
    name, title = "learning-curve", "Learning curve on QM9"
    lines, data = [], []
    budgets: dict[str, list[tuple[int, Group]]] = {}
    for row in sorted(rows, key=lambda row: row.molecules.num_train):
        groups = groups_of(row, found.records)
        if not groups:
            cells = compared(None, row.paper.get("mae"), "mae")
            lines.append([f"{row.molecules.num_train:,}", *cells, "not run"])
        for group in groups:
            budgets.setdefault(budget(group), []).append((row.molecules.num_train, group))
            ours = group.mean("mae")
            cells = compared(ours, row.paper.get("mae"), "mae")
            lines.append([f"{row.molecules.num_train:,}", *cells, provenance(group)])
            data.append({"num_train": row.molecules.num_train, "mae": ours and ours._asdict(),
                         "budget": budget(group), "runs": provenance(group)})  # fmt: skip
    headings = ["N_train", "MAE (kcal/mol)", "paper (difference)", TRAINED]
    table = Table(headings, lines, wide=(TRAINED,))
    if not budgets:
        return Report(name, title, table)
    curves = {label: _against_size(points) for label, points in budgets.items()}
    curves |= _printed(rows)
    figure = error_curves(curves, "Training molecules", "Test MAE (kcal/mol)")
    return Report(name, title, table, data=data, figure=figure)


def time_curve(row: Row, found: Found) -> Report:
    """Validation MAE while training, and test MAE at its end, against the time of training.

    Args:
        row: the experiment.
        found: all runs.
    """
    name, title = "time-curve", f"Error against the time of training, {row.label} features"
    groups = sorted(groups_of(row, found.records), key=lambda group: group.seconds)
    if not groups:
        return Report(name, title, text=("not run",))
    curves, lines, data = {}, [], []
    several = len({group.hardware for group in groups}) > 1
    for group in groups:
        mae = group.mean("mae")
        assert mae is not None
        label, history = budget(group), group.records[0].arrays()
        label += f" ({group.hardware})" if several else ""
        best = np.minimum.accumulate(history["validation_mae"])
        minutes = group.seconds / 60
        curves[label] = Curve(history["seconds"] / 60, best)
        bar = None if mae.bar is None else [mae.bar]
        curves[f"_{label}"] = Curve([minutes], [mae.value], bar, False, "o", continued=True)
        lines.append([label, number(mae, 3), f"{minutes:,.1f}", provenance(group)])
        data.append({"budget": label, "mae": mae._asdict(), "minutes": minutes,
                     "runs": provenance(group)})  # fmt: skip
    levels = {PRINTED: row.paper["mae"][0]} if "mae" in row.paper else None
    figure = error_curves(curves, "Minutes of training", "MAE (kcal/mol)", levels)
    headings = ["recipe", "test MAE (kcal/mol)", "minutes", TRAINED]
    text = "Lines: best validation MAE so far (first seed); points: test MAE of the model."
    return Report(name, title, Table(headings, lines, wide=(TRAINED,)), (text,), data, figure)


def budget(group: Group) -> str:
    """What a group was trained with, whatever it was trained on."""
    return trained_as(group.settings, group.settings["epochs"])


def _against_size(points: Sequence[tuple[int, Group]]) -> Curve:
    means = [group.mean("mae") for _, group in points]
    values = [mean.value for mean in means if mean is not None]
    bars = [mean.bar for mean in means if mean is not None]
    known = [bar for bar in bars if bar is not None]
    return Curve([n for n, _ in points], values, known if len(known) == len(bars) else None,
                 marker="o")  # fmt: skip


def _printed(rows: Sequence[Row]) -> dict[str, Curve]:
    """What the paper printed for these sizes: its own figures, and SchNet's."""
    own = [(row.molecules.num_train, *row.paper["mae"]) for row in rows if "mae" in row.paper]
    if not own:
        return {}
    schnet = [
        (row.molecules.num_train, TABLE_1_OTHERS[int(row.key)]["SchNet"])
        for row in rows
        if "mae" in row.paper
    ]
    n, mae, bar = zip(*sorted(own), strict=True)
    n_schnet, mae_schnet = zip(*sorted(schnet), strict=True)
    return {
        PRINTED: Curve(n, mae, bar, marker="s", reference=True),
        "SchNet (quoted there)": Curve(n_schnet, mae_schnet, marker="^", reference=True),
    }
