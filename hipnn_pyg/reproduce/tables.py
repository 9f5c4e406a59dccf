"""Tables I, II and III: our statistics beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hipnn_pyg.paper import NUM_SPLITS, Estimate
from hipnn_pyg.reproduce.groups import Group, Mean, groups_of, is_of, trained_as
from hipnn_pyg.reproduce.records import Record
from hipnn_pyg.reproduce.report import Report, Table
from hipnn_pyg.reproduce.rows import Row

STATISTICS = {
    "mae": ("MAE (kcal/mol)", 3),
    "rmse": ("RMSE (kcal/mol)", 3),
    "above_1_kcal": ("> 1 kcal/mol (%)", 2),
}
"""Statistic -> heading and digits, as in Table II."""

PAPER = "paper (difference)"
TRAINED = "trained"
NOTE = (
    f"The paper's figures are means over {NUM_SPLITS} splits after 1,000 to 2,000 epochs. In "
    "brackets: ours minus the paper's, in units of the paper's error bar (the scatter of a single "
    f"split is √{NUM_SPLITS} = {NUM_SPLITS**0.5:.1f} of them). Ours has an error bar of the same "
    "kind from three splits on. Seconds are of training, mean over the splits, which share them "
    "where they were trained at once."
)


@dataclass(frozen=True)
class Unfinished:
    """A run that was cut off.

    Args:
        settings: as a record has them.
        epoch: epochs done.
        epochs: most epochs.
        validation_mae: the best so far (kcal/mol), None before the first epoch.
    """

    settings: dict[str, Any]
    epoch: int
    epochs: int
    validation_mae: float | None


@dataclass(frozen=True)
class Found:
    """All that there is.

    Args:
        records: of finished runs.
        unfinished: runs that go on when the command is given again.
    """

    records: Sequence[Record]
    unfinished: Sequence[Unfinished] = ()


def accuracy(
    name: str, title: str, first: str, rows: Sequence[Row], found: Found, statistics: Sequence[str]
) -> Report:
    """One of the paper's tables; what was not run says so.

    Args:
        name: of the files.
        title: one line.
        first: heading of the first column.
        rows: the experiments.
        found: runs of these and other experiments.
        statistics: keys of :data:`STATISTICS`.
    """
    headings = [first]
    for statistic in statistics:
        headings += [STATISTICS[statistic][0], PAPER]
    lines, data = [], []
    for row in rows:
        groups = groups_of(row, found.records)
        unfinished = [run for run in found.unfinished if is_of(row, run.settings)]
        for group in groups:
            cells = [row.label]
            for statistic in statistics:
                cells += compared(group.mean(statistic), row.paper.get(statistic), statistic)
            lines.append([*cells, provenance(group)])
        for run in unfinished:
            lines.append([row.label, *_empty(row, statistics), going_on(run)])
        if not groups and not unfinished:
            lines.append([row.label, *_empty(row, statistics), "not run"])
        data.append(
            {
                "row": row.key,
                "paper": dict(row.paper),
                "runs": [group_data(group, row, statistics) for group in groups],
                "unfinished": [going_on(run) for run in unfinished],
            }
        )
    table = Table([*headings, TRAINED], lines, wide=(TRAINED,))
    return Report(name, title, table, (NOTE,), data)


def difference(ours: float, paper: Estimate) -> float:
    """Ours minus the paper's in units of its error bar."""
    return (ours - paper[0]) / paper[1]


def compared(ours: Mean | None, paper: Estimate | None, statistic: str) -> list[str]:
    """Two cells: our figure; the paper's, and how far ours is from it."""
    digits = STATISTICS[statistic][1]
    return [number(ours, digits), published(paper, digits, ours)]


def number(figure: Mean | None, digits: int) -> str:
    """A mean with its error bar, if it has one."""
    if figure is None:
        return "-"
    bar = "" if figure.bar is None else f" ± {figure.bar:.{digits}f}"
    return f"{figure.value:.{digits}f}{bar}"


def provenance(group: Group) -> str:
    """Recipe, epochs, seeds, seconds, hardware and dates of a group."""
    records = group.records
    epochs = sum(record.epochs for record in records) / len(records)
    seeds = ", ".join(str(record.seed) for record in records)
    dates = sorted({record.date for record in records})
    several = "s" * (len(records) > 1)
    splits = f"{group.num_splits} split{'s' * (group.num_splits > 1)} (seed{several} {seeds})"
    if group.num_splits < len(records):
        splits = f"{len(records)} models on {splits}"
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    how = trained_as(group.settings, epochs)
    return f"{how}; {splits}; {group.seconds:,.0f} s; {group.hardware}; {when}"


def going_on(run: Unfinished) -> str:
    """Where a run stands that was cut off."""
    reached = "" if run.validation_mae is None else f", validation MAE {run.validation_mae:.3f}"
    seed = run.settings["seed"]
    recipe = run.settings["recipe"]
    return f"not finished: {recipe}, seed {seed}, epoch {run.epoch:,} of {run.epochs:,}{reached}"


def group_data(group: Group, row: Row, statistics: Sequence[str]) -> dict[str, Any]:
    """A group for the JSON file."""
    data: dict[str, Any] = {
        "settings": group.settings,
        "seeds": [record.seed for record in group.records],
        "epochs": [record.epochs for record in group.records],
        "seconds": [record.seconds for record in group.records],
        "hardware": [record.hardware for record in group.records],
        "dates": [record.date for record in group.records],
    }
    for statistic in statistics:
        ours, paper = group.mean(statistic), row.paper.get(statistic)
        data[statistic] = None if ours is None else ours._asdict()
        if ours is not None and paper is not None:
            data[statistic]["difference_in_error_bars"] = round(difference(ours.value, paper), 2)
    return data


def published(paper: Estimate | None, digits: int, ours: Mean | None = None) -> str:
    """The paper's figure and, in brackets, how far ours is from it."""
    if paper is None:
        return "-"
    text = f"{paper[0]:.{digits}f} ± {paper[1]:.{digits}f}"
    return text if ours is None else f"{text} ({difference(ours.value, paper):+,.1f})"


def _empty(row: Row, statistics: Sequence[str]) -> list[str]:
    """Cells of a row that has no figures of ours."""
    cells = []
    for statistic in statistics:
        cells += ["-", published(row.paper.get(statistic), STATISTICS[statistic][1])]
    return cells
