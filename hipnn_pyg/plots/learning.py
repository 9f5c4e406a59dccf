"""Learning curves: error, loss and learning rate against the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

from hipnn_pyg.plots.arrays import finite_array
from hipnn_pyg.plots.style import (
    COLOURS,
    GREY,
    LABEL_SIZE,
    finish_axes,
    legend_above,
    new_figure,
)


def learning_curves(
    epochs: ArrayLike,
    curves: Mapping[str, ArrayLike],
    unit: str = "kcal/mol",
    learning_rate: ArrayLike | None = None,
    reference: Mapping[str, float] | None = None,
    loss: ArrayLike | None = None,
    also: Mapping[str, Mapping[str, ArrayLike]] | None = None,
) -> Figure:
    """Errors per epoch on a logarithmic axis, with loss and learning rate below.

    Args:
        epochs: epoch numbers, [num_epochs].
        curves: label -> error per epoch, [num_epochs], in ``unit``.
        unit: the energy unit of ``curves`` and ``reference``.
        learning_rate: [num_epochs], dimensionless; given, it gets a panel of its own.
        reference: label -> error in ``unit``, drawn as horizontal lines, for example
            ``{"paper": 0.256}``.
        loss: training loss, [num_epochs], dimensionless (the errors in it are divided by
            sigma_E, Eq. 14); given, it gets a panel of its own.
        also: unit -> curves in that unit, of forces for example; each unit gets a panel.

    Returns:
        A figure of panels that share the epoch axis.

    Raises:
        ValueError: no curve, unequal lengths, or a value that is not finite and positive.
    """
    if not curves:
        raise ValueError("curves is empty: pass at least one label with its error per epoch")
    x = finite_array("epochs", epochs, (None,))
    below = {
        label: finite_array(name, value, x.shape, above=0)
        for name, label, value in (
            ("loss", "Training loss\n(dimensionless)", loss),
            ("learning_rate", "Learning rate\n(dimensionless)", learning_rate),
        )
        if value is not None
    }
    errors = [(unit, curves), *(also or {}).items()]
    ratios = [1.9] * len(errors) + [1.15] * len(below)
    figure = new_figure(0.5 + sum(ratios))
    panels = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]

    colours = cycle(COLOURS)
    for ax, (its_unit, its_curves) in zip(panels, errors, strict=False):
        for label, values in its_curves.items():
            y = finite_array(f"curves[{label!r}]", values, x.shape, above=0)
            ax.plot(x, y, color=next(colours), linewidth=1.0, label=label)
        finish_axes(ax, "", f"Error ({its_unit})")
    _reference_lines(panels[0], reference or {})
    for ax, (label, y) in zip(panels[len(errors) :], below.items(), strict=True):
        ax.plot(x, y, color="black", linewidth=1.0)
        finish_axes(ax, "", label)

    for ax in panels:
        _log_axis(ax)
    panels[-1].set_xlabel("Epoch", fontsize=LABEL_SIZE)
    panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.align_ylabels()
    legend_above(figure, 2)
    return figure


def _reference_lines(ax: Axes, reference: Mapping[str, float]) -> None:
    for (label, value), dashes in zip(reference.items(), cycle((":", "--", "-.")), strict=False):
        y = float(finite_array(f"reference[{label!r}]", value, (), above=0))
        ax.axhline(y, color=GREY, linestyle=dashes, linewidth=1.0, label=f"{label}, {y:g}")


def _log_axis(ax: Axes) -> None:
    """Log y with plain numbers on the ticks, also where the data span less than a decade."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    decades = np.log10(high / low)
    if decades > 0.7:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,)))
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
