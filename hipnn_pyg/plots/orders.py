"""How the orders of the energy decay: mean of abs(E^n), and the error of the truncated sum."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from hipnn_pyg.plots.arrays import finite_array
from hipnn_pyg.plots.style import BLUE, TEXT_SIZE, VERMILION, finish_axes, legend_above, new_figure


def order_energies(mean_abs: ArrayLike, truncated_mae: ArrayLike, unit: str = "kcal/mol") -> Figure:
    r"""Both against the order, on a logarithmic axis, where exponential decay is a straight line.

    Args:
        mean_abs: mean over molecules of :math:`|E^n|`, [num_orders], in ``unit``.
        truncated_mae: MAE of :math:`\sum_{n \le k} E^n`, [num_orders], in ``unit``.
        unit: an energy unit.

    Raises:
        ValueError: unequal lengths, or values that are not finite and positive.
    """
    energies = finite_array("mean_abs", mean_abs, (None,), above=0)
    maes = finite_array("truncated_mae", truncated_mae, energies.shape, above=0)
    figure = new_figure(2.7)
    ax = figure.subplots()
    ax.set_yscale("log")
    orders = np.arange(len(energies))
    for values, colour, marker, label in (
        (energies, BLUE, "o", r"mean $|E^n|$"),
        (maes, VERMILION, "s", r"MAE of $\sum_{n \leq k} E^n$"),
    ):
        ax.plot(orders, values, marker=marker, ms=4, lw=1.0, color=colour, label=label)
        for n, value in enumerate(values):
            ax.annotate(
                f"{value:,.0f}" if value >= 1000 else f"{value:.3g}",
                (n, value),
                textcoords="offset points",
                xytext=(5, 4),
                color=colour,
                fontsize=TEXT_SIZE,
            )
    ax.set_xlim(-0.25, len(energies) - 0.5)
    ax.set_ylim(top=3 * max(energies.max(), maes.max()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    finish_axes(ax, "Order $n$, last order kept $k$", f"Energy ({unit})")
    legend_above(figure, 2)
    return figure
