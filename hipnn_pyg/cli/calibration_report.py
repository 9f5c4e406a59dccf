"""What ``hipnn calibrate`` prints, draws and a model's card says, from what it wrote."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hipnn_pyg.plots import plot_error_bars
from hipnn_pyg.reproduce.report import Report, Table
from hipnn_pyg.uncertainty import GEOMETRIES, ErrorBars
from hipnn_pyg.units import reported

SHORT = {
    **{"R": "R", "ensemble": "spread", "R and ensemble": "both"},
    **{"given": "given", "rdkit": "RDKit"},
}
"""Names of kinds of error bars and geometries on a picture."""


def sections(report: dict[str, Any]) -> list[Report]:
    """Errors, coverage, what R and the ensemble gain, and the flag.

    Args:
        report: the contents of ``calibration.json``.
    """
    return [_statistics(report), _coverage(report), _comparison(report), _classes(report)]


def _statistics(report: dict[str, Any]) -> Report:
    rows = []
    for geometry, values in report["geometries"].items():
        statistics = values["statistics"]
        above = statistics["above_1_kcal"]
        figures = [f"{statistics[key]:.3f}" for key in ("mae", "rmse")]
        share = "-" if above is None else f"{above:.2f}"
        rows.append([GEOMETRIES[geometry], f"{statistics['num']:,}", *figures, share])
    headings = ["test molecules", "number", "MAE", "RMSE", "% above 1 kcal/mol"]
    return Report("statistics", f"On the test set ({report['unit']})", Table(headings, rows))


def _coverage(report: dict[str, Any]) -> Report:
    rows, levels, errors = [], [0.0], []
    for geometry, values in report["geometries"].items():
        levels, name = values["levels"], GEOMETRIES[geometry]
        parts = [values["coverage"], *values["coverage_in_quartiles_of_R"]]
        for k, inside in enumerate(parts):
            label = f"{name}, quartile {k} of R" if k else name
            rows.append([label, *(f"{100 * part:.1f}" for part in inside)])
        widths = [f"{width:.3f}" for width in values["mean_half_width"]]
        rows.append([f"{name}, mean half-width", *widths])
        of_quartile = math.sqrt(0.9 * 0.1 / (values["num_test"] / 4))
        errors.append(f"{100 * of_quartile:.1f} ({name})")
    table = Table(["test molecules", *(f"{100 * level:g} %" for level in levels)], rows)
    text = f"Standard error of a quartile's share at 90 %, in points: {', '.join(errors)}."
    title = f"Errors inside their intervals (%), and half-widths ({report['unit']})"
    return Report("coverage", title, table, (text,))


def _comparison(report: dict[str, Any]) -> Report:
    rows, growth = [], []
    for geometry, kinds in report["comparison"].items():
        for row in kinds:
            rows.append(
                [
                    f"{row['kind']}, {GEOMETRIES[geometry]}",
                    f"{100 * row['coverage_90']:.1f}",
                    f"{row['mean_half_width_90']:.3f}",
                    f"{row['crps']:.3f}",
                    f"{row['crps_relative']:.3f} ± {row['crps_relative_se']:.3f}",
                ]
            )
        grows = report["geometries"][geometry]["errors_grow_with_R"]
        words = {
            True: "errors grow with R",
            False: "errors do not grow with R",
            None: "one bin of R",
        }
        growth.append(f"{GEOMETRIES[geometry]}: {words[grows]}.")
    headings = ["error bar from", "inside (%)", "half-width", "CRPS", "relative CRPS"]
    title = f"What R and the spread of an ensemble add: 90 % intervals ({report['unit']})"
    text = (
        "CRPS, the smaller the better, relative to one width for all; ± is the standard error.",
        " ".join(growth),
    )
    return Report("comparison", title, Table(headings, rows), text)


def _classes(report: dict[str, Any]) -> Report:
    rows = []
    for geometry, values in report["geometries"].items():
        alarms = f"{100 * values['false_alarms']:.1f}"
        name = f"test molecules, {GEOMETRIES[geometry]}"
        rows.append([name, f"{values['num_test']:,}", "-", "-", alarms])
    for row in report["classes"]:
        low, high = row["interval"]
        rows.append(
            [
                f"{row['class']}, {GEOMETRIES[row['geometry']]}",
                f"{row['num']:,}",
                f"{row['auc']:.3f} [{low:.3f}, {high:.3f}]",
                f"{row['auc_of_R']:.3f}",
                f"{100 * row['flagged']:.1f}",
            ]
        )
    headings = ["class", "number", "AUC of the distance [95 %]", "AUC of R", "flagged (%)"]
    text = (
        "Flagged test molecules and controls are false alarms; of the other classes, what is not "
        "flagged was missed."
    )
    return Report("classes", "Structures unlike the training data", Table(headings, rows), (text,))


def draw(bars: ErrorBars, report: dict[str, Any]) -> Figure:
    """Half-widths against R, coverage, CRPS.

    Args:
        bars: the error bars.
        report: the contents of ``calibration.json``.
    """
    factor, _ = reported(bars.unit)
    curves, covered, numbers, relative = {}, {}, {}, {}
    for geometry, (intervals, _) in bars.calibrations.items():
        low, high = np.maximum(intervals.r_range, 1e-12)
        r = np.geomspace(low, max(high, 1.001 * low), 200)
        r = np.clip(r, *intervals.r_range)
        usual = None if intervals.beta is None else np.full(len(r), intervals.beta)
        name = GEOMETRIES[geometry]
        curves[name] = (np.maximum(r, 1e-12), factor * intervals.half_width(r, usual))
        covered[name] = report["geometries"][geometry]["coverage_in_quartiles_of_R"]
        numbers[name] = report["geometries"][geometry]["num_test"]
        for row in report["comparison"][geometry][1:]:  # the first is the constant one
            figures = (row["crps_relative"], row["crps_relative_se"])
            relative[f"{SHORT[row['kind']]}, {SHORT[geometry]}"] = figures
    return plot_error_bars(curves, covered, numbers, bars.levels, relative, report["unit"])
