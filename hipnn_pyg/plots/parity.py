"""Parity plot: prediction against target, and the distribution of the error."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from hipnn_pyg.plots.arrays import Array, finite_array
from hipnn_pyg.plots.style import (
    BLUE,
    GREY,
    TEXT_SIZE,
    add_title,
    finish_axes,
    new_figure,
)

# viridis without its palest end, which is lost on white paper
DENSITY = ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.12, 1.0, 256)))
MAX_SCATTER = 2000  # above this many points, hexagons show the density that dots would hide


def parity(target: ArrayLike, prediction: ArrayLike, unit: str, title: str | None = None) -> Figure:
    """Prediction against target with MAE and RMSE, and below it the histogram of the error.

    Args:
        target: reference values, any shape, in ``unit``.
        prediction: predicted values, same shape and unit.
        unit: shown on every axis and figure of merit.
        title: text above the figure.

    Returns:
        A figure with two panels. More than 2000 points are drawn as hexagonal bins. The histogram
        spans 99% of the absolute errors and states how many lie outside.

    Raises:
        ValueError: unequal shapes, empty arrays or non-finite values.
    """
    target = finite_array("target", target)
    prediction = finite_array("prediction", prediction, target.shape)
    figure = new_figure(4.6)
    top, bottom = figure.subplots(2, height_ratios=[2.4, 1.0])
    _points(top, target.ravel(), prediction.ravel(), unit)
    _error_histogram(bottom, (prediction - target).ravel(), unit)
    add_title(figure, title)
    return figure


def _points(ax: Axes, target: Array, prediction: Array, unit: str) -> None:
    low, high = min(target.min(), prediction.min()), max(target.max(), prediction.max())
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin
    if target.size > MAX_SCATTER:
        hexagons = ax.hexbin(
            target,
            prediction,
            gridsize=50,
            bins="log",
            mincnt=1,
            cmap=DENSITY,
            linewidths=0.1,
            extent=(low, high, low, high),
        )
        # the corner opposite the diagonal is free
        bar = ax.figure.colorbar(
            hexagons, cax=ax.inset_axes((0.52, 0.16, 0.42, 0.035)), orientation="horizontal"
        )
        bar.ax.set_title("Count per hexagon", fontsize=TEXT_SIZE, pad=3)
        bar.ax.tick_params(labelsize=TEXT_SIZE)
    else:
        ax.plot(target, prediction, "o", color=BLUE, ms=2.5, alpha=0.6, mew=0)
    ax.axline((low, low), slope=1, color="black", linewidth=0.7, zorder=3)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    ax.ticklabel_format(useOffset=False, style="plain")
    error = prediction - target
    text = (
        f"MAE {np.abs(error).mean():.3g} {unit}\n"
        f"RMSE {np.sqrt(np.square(error).mean()):.3g} {unit}\n"
        f"N = {error.size:,}"
    )
    ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize=TEXT_SIZE)
    finish_axes(ax, f"Target ({unit})", f"Prediction ({unit})")


def _error_histogram(ax: Axes, error: Array, unit: str) -> None:
    # "higher" picks an error that occurs, so that few points are all inside
    window = float(np.quantile(np.abs(error), 0.99, method="higher")) or 1.0
    bins = 41 if error.size > 200 else 11
    counts, edges = np.histogram(error, bins=bins, range=(-window, window))
    ax.stairs(counts, edges, fill=True, color=BLUE, alpha=0.8)
    ax.axvline(0, color="black", linewidth=0.7)
    ax.set_xlim(-window, window)
    ax.set_ylim(0, 1.08 * counts.max())
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    outside = int((np.abs(error) > window).sum())
    if outside:
        text = f"{outside:,} outside,\nlargest {np.abs(error).max():.3g}"
        ax.text(
            0.97,
            0.92,
            text,
            transform=ax.transAxes,
            va="top",
            ha="right",
            color=GREY,
            fontsize=TEXT_SIZE,
        )
    finish_axes(ax, f"Prediction − target ({unit})", "Count")
