"""Errors against what they were paid with: training molecules, or minutes of training."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from hipnn_pyg.plots.arrays import finite_array
from hipnn_pyg.plots.style import (
    COLOURS,
    GREY,
    finish_axes,
    legend_above,
    new_figure,
    plain_ticks,
)

SHORT = 24
"""Characters of a label that leaves room for another one beside it."""


class Curve(NamedTuple):
    """One curve or set of points.

    Attributes:
        x: what the error was paid with, [num_points], above 0.
        y: the error, [num_points], above 0.
        bar: half the length of the error bar of y, [num_points]; None for none.
        line: connect the points by a line.
        marker: matplotlib's name of a marker, or "" for none.
        reference: of somebody else: grey, its line dashed.
        continued: in the colour of the curve before.
    """

    x: ArrayLike
    y: ArrayLike
    bar: ArrayLike | None = None
    line: bool = True
    marker: str = ""
    reference: bool = False
    continued: bool = False


def error_curves(
    curves: Mapping[str, Curve], xlabel: str, ylabel: str, levels: Mapping[str, float] | None = None
) -> Figure:
    """Error curves on two logarithmic axes.

    Args:
        curves: label -> curve; labels that begin with "_" stay out of the legend.
        xlabel: quantity and unit.
        ylabel: quantity and unit.
        levels: label -> error, drawn as dotted horizontal lines.

    Raises:
        ValueError: no curve, unequal lengths, or values that are not finite and positive.
    """
    if not curves:
        raise ValueError("curves is empty: pass at least one label with its points")
    figure = new_figure(2.9)
    ax = figure.subplots()
    ax.set(xscale="log", yscale="log")
    colours, colour = cycle(COLOURS), ""
    for label, curve in curves.items():
        if not (curve.reference or (curve.continued and colour)):
            colour = next(colours)
        _draw(ax, label, curve, GREY if curve.reference else colour)
    for label, level in (levels or {}).items():
        y = float(finite_array(f"levels[{label!r}]", level, (), above=0))
        ax.axhline(y, color=GREY, linestyle=":", linewidth=1.0, label=f"{label}, {y:g}")
    for axis in (ax.xaxis, ax.yaxis):
        plain_ticks(ax, axis.axis_name)
    finish_axes(ax, xlabel, ylabel)
    longest = max(map(len, curves))
    columns = 2 if longest <= SHORT else 1
    legend_above(figure, columns)
    return figure


def _draw(ax: Axes, label: str, curve: Curve, colour: str) -> None:
    x = finite_array(f"x of {label!r}", curve.x, (None,), above=0)
    y = finite_array(f"y of {label!r}", curve.y, x.shape, above=0)
    bar = None if curve.bar is None else finite_array(f"bar of {label!r}", curve.bar, x.shape, 0)
    style = ("--" if curve.reference else "-") if curve.line else "none"
    ax.errorbar(
        x,
        y,
        bar,
        color=colour,
        linestyle=style,
        linewidth=1.0,
        marker=curve.marker or None,
        ms=3.5,
        elinewidth=0.8,
        capsize=2,
        label=label,
    )
