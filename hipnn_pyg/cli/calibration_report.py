"""Tables and the picture of ``hipnn calibrate``, from what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from hipnn_pyg.plots import plot_error_bars
from hipnn_pyg.uncertainty import ErrorBars
from hipnn_pyg.units import ENERGY_UNITS, convert

GEOMETRY_NAMES = {"given": "geometry as given", "rdkit": "RDKit geometry"}
"""What the kinds of geometry are called for people."""


def tables(report: dict[str, Any]) -> list[Table]:
    """Coverage, what R and the ensemble gain, and the flag.

    Args:
        report: the contents of ``calibration.json``.
    """
    return [_coverage(report), _comparison(report), _classes(report)]


def _new(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    return table


def _coverage(report: dict[str, Any]) -> Table:
    first = next(iter(report["geometries"].values()))
    levels = [f"{100 * level:g} %" for level in first["levels"]]
    table = _new(
        f"errors inside their intervals (%); energies in {report['unit']}",
        ["test molecules", "number", "MAE", *levels],
    )
    for geometry, values in report["geometries"].items():
        inside = [f"{100 * part:.1f}" for part in values["coverage"]]
        number, mae = f"{values['num_test']:,}", f"{values['statistics']['mae']:.3f}"
        table.add_row(GEOMETRY_NAMES[geometry], number, mae, *inside)
        for k, parts in enumerate(values["coverage_in_quartiles_of_R"], start=1):
            table.add_row(f"  quartile {k} of R", "", "", *(f"{100 * part:.1f}" for part in parts))
        widths = [f"{width:.3f}" for width in values["mean_half_width"]]
        table.add_row("  mean half-width", "", "", *widths)
        table.add_section()
    return table


def _comparison(report: dict[str, Any]) -> Table:
    unit = report["unit"]
    headings = ["error bar from", "inside (%)", "half-width", "CRPS", "relative CRPS"]
    table = _new(f"90 % intervals: what R and the ensemble gain ({unit})", headings)
    for row in report["comparison"]:
        figures = (f"{row[key]:.3f}" for key in ("mean_half_width_90", "crps", "crps_relative"))
        table.add_row(row["kind"], f"{100 * row['coverage_90']:.1f}", *figures)
    return table


def _classes(report: dict[str, Any]) -> Table:
    table = _new(
        "flag for structures unlike the training data: AUC [95 % interval]",
        ["class", "geometry", "number", "AUC", "of R alone", "flagged (%)"],
    )
    for geometry, values in report["geometries"].items():
        alarms = f"{100 * values['false_alarms']:.1f}"
        table.add_row("test molecules", geometry, f"{values['num_test']:,}", "", "", alarms)
    for row in report["classes"]:
        low, high = row["interval"]
        table.add_row(
            row["class"],
            row["geometry"],
            f"{row['num']:,}",
            f"{row['auc']:.3f} [{low:.3f}, {high:.3f}]",
            f"{row['auc_of_R']:.3f}",
            f"{100 * row['flagged']:.1f}",
        )
    return table


def draw(bars: ErrorBars, report: dict[str, Any]) -> Figure:
    """Half-widths against R, coverage, CRPS.

    Args:
        bars: the error bars.
        report: the contents of ``calibration.json``.
    """
    is_energy = bars.unit in ENERGY_UNITS
    factor = convert(1.0, bars.unit, "kcal/mol") if is_energy else 1.0
    curves, covered = {}, {}
    for geometry, (intervals, _) in bars.calibrations.items():
        low, high = np.maximum(intervals.r_range, 1e-12)
        r = np.geomspace(low, max(high, 1.001 * low), 200)
        r = np.clip(r, *intervals.r_range)
        usual = None if intervals.beta is None else np.full(len(r), intervals.beta)
        name = GEOMETRY_NAMES[geometry]
        curves[name] = (np.maximum(r, 1e-12), factor * intervals.half_width(r, usual))
        covered[name] = report["geometries"][geometry]["coverage_in_quartiles_of_R"]
    relative = {row["kind"]: row["crps_relative"] for row in report["comparison"]}
    return plot_error_bars(curves, covered, bars.levels, relative, report["unit"])
