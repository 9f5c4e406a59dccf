"""Calibrated error bars: their half-widths against R, their coverage, and what they gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from hipnn_pyg.plots.arrays import finite_array
from hipnn_pyg.plots.style import (
    BLUE,
    COLOURS,
    GREY,
    TEXT_SIZE,
    finish_axes,
    legend_above,
    new_figure,
    plain_ticks,
)


def plot_error_bars(
    half_widths: Mapping[str, tuple[ArrayLike, ArrayLike]],
    coverage: Mapping[str, ArrayLike],
    num_test: Mapping[str, int],
    levels: Sequence[float],
    relative_crps: Mapping[str, tuple[float, float]],
    unit: str = "kcal/mol",
) -> Figure:
    """Three panels, from top to bottom.

    Half-widths of the intervals against R; observed minus nominal coverage in each quartile of R,
    with bars of two standard errors; CRPS of each kind of error bar relative to a constant one.

    Args:
        half_widths: geometry -> R ``[n]`` and half-widths in ``unit``, ``[n, L]``.
        coverage: geometry -> observed coverage in the quartiles of R, ``[4, L]``.
        num_test: geometry -> molecules of all quartiles.
        levels: nominal coverage, ``[L]``.
        relative_crps: kind of error bar -> CRPS / CRPS of a constant one, and its standard error.
        unit: an energy unit.

    Raises:
        ValueError: nothing to draw, unequal lengths, or values that are not finite and positive.
    """
    if not half_widths or not relative_crps:
        raise ValueError("nothing to draw: give half_widths and relative_crps")
    height = 0.5 + 0.12 * len(relative_crps)
    figure = new_figure(4.6 + height)
    top, middle, bottom = figure.subplots(3, height_ratios=(1.5, 1.2, height))
    number = len(levels)
    styles = (("o-", None), ("o--", "none"))

    top.set(xscale="log", yscale="log")
    for (name, (r, width)), (style, face) in zip(half_widths.items(), styles, strict=False):
        x = finite_array(f"R of {name}", r, (None,), above=0)
        y = finite_array(f"half-widths of {name}", width, (len(x), number), above=0)
        for level, column, colour in zip(levels, y.T, cycle(COLOURS), strict=False):
            label = f"{100 * level:g} %, {name}"
            top.plot(
                x, column, style, color=colour, linewidth=1.0, label=label, ms=4, mfc=face,
                markevery=[-1],
            )  # fmt: skip
    for axis in "xy":
        plain_ticks(top, axis)
    finish_axes(top, "Non-hierarchicality $R$ (dimensionless)", f"Half-width ({unit})")
    legend_above(figure, len(half_widths))

    middle.axhline(0, color=GREY, linewidth=0.7)
    for (name, observed), filled in zip(coverage.items(), (True, False), strict=False):
        points = finite_array(f"coverage of {name}", observed, (4, number), at_least=0)
        off = 100 * (points - np.asarray(levels))
        for k, colour in zip(range(number), cycle(COLOURS), strict=False):
            aside = 0.12 * (k - (number - 1) / 2) + (0 if filled else 0.04)
            face = colour if filled else "none"
            scatter = 200 * np.sqrt(levels[k] * (1 - levels[k]) * 4 / num_test[name])
            middle.errorbar(
                np.arange(1, 5) + aside, off[:, k], scatter, fmt="o", ms=4, color=colour,
                markerfacecolor=face, elinewidth=0.7,
            )  # fmt: skip
    middle.set_xticks(range(1, 5))
    finish_axes(middle, "Quartile of $R$", "Coverage − nominal\n(points)")

    places = np.arange(len(relative_crps))[::-1]
    pairs = finite_array("relative_crps", [*relative_crps.values()], (None, 2), at_least=0)
    values, scatter = pairs.T
    bottom.errorbar(
        values, places, xerr=2 * scatter, fmt="o", ms=4, color=BLUE, elinewidth=0.7, zorder=4
    )
    bottom.axvline(1, color=GREY, linewidth=0.7)
    bottom.set_yticks(places, [*relative_crps])
    bottom.set_ylim(-0.7, len(places) - 0.3)
    for place, value, by in zip(places, values, scatter, strict=True):
        at = value + 2 * by
        text = bottom.text(at, place, f"  {value:.3f} ± {by:.3f}", va="center", fontsize=TEXT_SIZE)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    bottom.xaxis.set_major_locator(MaxNLocator(5))
    least, most = min(0.98, (values - 2 * scatter).min()), max(1, (values + 2 * scatter).max())
    bottom.set_xlim(least - 0.1 * (most - least), most + 0.6 * (most - least))  # room for text
    finish_axes(bottom, "CRPS / CRPS of a constant error bar", "Error bar from")
    bottom.tick_params(axis="y", length=0)
    return figure
