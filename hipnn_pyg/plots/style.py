"""The look shared by all figures: one journal column, a colour-blind safe palette."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

COLUMN_WIDTH = 3.37  # inches: one column of a two-column journal page
LABEL_SIZE, TEXT_SIZE = 8.0, 7.0  # points
GREY, LIGHT_GREY = "0.45", "0.85"
BLUE, VERMILION = "#0072B2", "#D55E00"
# Okabe and Ito, Color Universal Design (2008); their yellow is too pale for lines on white.
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(height: float) -> Figure:
    """An empty one-column figure, ``height`` in inches, outside pyplot."""
    return Figure(figsize=(COLUMN_WIDTH, height), dpi=300, layout="constrained")


def finish_axes(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Label an axes and give it the common text sizes and tick style."""
    ax.set_xlabel(xlabel, fontsize=LABEL_SIZE)
    ax.set_ylabel(ylabel, fontsize=LABEL_SIZE)
    ax.tick_params(which="both", direction="in", top=True, right=True, labelsize=TEXT_SIZE)


def add_title(figure: Figure, title: str | None) -> None:
    """Put ``title`` above the figure; None adds nothing."""
    if title is not None:
        figure.suptitle(title, fontsize=LABEL_SIZE)


def legend_above(figure: Figure, columns: int, *entries: Any) -> None:
    """A legend above all panels: of all their labels, or of ``entries`` (handles, labels)."""
    figure.legend(
        *entries, loc="outside upper center", ncols=columns, fontsize=TEXT_SIZE, frameon=False
    )


def plain_ticks(ax: Axes, name: str) -> None:
    """Plain numbers at 1, 2, 5 times powers of ten where that fits, else at powers of ten."""
    low, high = ax.get_xlim() if name == "x" else ax.get_ylim()
    axis = ax.xaxis if name == "x" else ax.yaxis
    decades = np.log10(high / low)
    if decades < 0.5:  # a narrow range: widen it, so that at least two ticks fall in
        middle = np.sqrt(low * high)
        (ax.set_xlim if name == "x" else ax.set_ylim)(middle / 2, middle * 2)
    few = decades < (2.0 if name == "x" else 2.5)  # there is less room along x
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())
