"""The look shared by all figures: one journal column, a colour-blind safe palette."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
