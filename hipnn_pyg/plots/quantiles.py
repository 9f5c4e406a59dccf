"""Error quantiles against the non-hierarchicality R (Fig. 3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from hipnn_pyg.plots.arrays import Array, finite_array
from hipnn_pyg.plots.style import (
    GREY,
    LABEL_SIZE,
    LIGHT_GREY,
    TEXT_SIZE,
    finish_axes,
    legend_above,
    new_figure,
    plain_ticks,
)


class ErrorQuantiles(NamedTuple):
    """Quantiles of the absolute error in bins of log10 R."""

    bin_edges: Array
    """log10 R at the edges of all bins, [num_bins + 1]."""
    counts: NDArray[np.int64]
    """Molecules in each bin, [num_bins]."""
    kept: NDArray[np.bool_]
    """Bins with at least ``min_count`` molecules, [num_bins]."""
    log10_R: Array
    """Centres of the kept bins, [num_kept]."""
    quantiles: Array
    """Q_err(p, R) in the unit of the error, [num_kept, len(p)]; NaN where a bin of fewer than
    p / (1 - p) molecules has no such quantile."""
    p: Array
    """Cumulative probabilities, [len(p)]."""
    min_count: int
    """The fewest molecules a bin needs to be kept."""
    num_sparse: int
    """Molecules in the bins that were dropped."""
    num_zero: int
    """Molecules with R = 0, which have no place on a logarithmic axis and are in no bin."""


def error_quantiles(
    R: ArrayLike,
    abs_error: ArrayLike,
    p: Sequence[float] = (0.5, 0.75, 0.9, 0.95, 0.99),
    bin_width: float = 0.066,
    min_count: int = 10,
) -> ErrorQuantiles:
    r"""Quantiles of the error in bins of log10 R (Eq. 19).

    .. math:: P(|\hat E - E| < Q_{\rm err}(p, R) \,|\, R) = p

    Of n molecules the quantile is the p (n + 1)-th smallest error, so that the next molecule's is
    smaller with probability p. Bin edges are whole multiples of ``bin_width``, so that different
    test sets share them. To combine several splits, as the paper does, concatenate their arrays
    first.

    Args:
        R: non-hierarchicality of each molecule (Eq. 18), [num_molecules], dimensionless.
        abs_error: absolute energy error of each molecule, [num_molecules], any unit.
        p: cumulative probabilities, between 0 and 1.
        bin_width: width of a bin in log10 R.
        min_count: bins with fewer molecules are left out of the quantiles.

    Raises:
        ValueError: unequal lengths, empty arrays, values that are not finite or negative, a
            probability outside (0, 1), or no bin with ``min_count`` molecules.
    """
    R = finite_array("R", R, (None,), at_least=0)
    abs_error = finite_array("abs_error", abs_error, R.shape, at_least=0)
    width = float(finite_array("bin_width", bin_width, (), above=0))
    probabilities = finite_array("p", p, (None,), above=0)
    if probabilities.max() >= 1:
        raise ValueError(
            f"p = {probabilities.max():g}, but it must be below 1: a quantile at 1 "
            "is the largest error, take abs_error.max()"
        )
    placed = R > 0
    if not placed.any():
        raise ValueError(
            f"all {R.size} values of R are 0 and have no logarithm: is the model's "
            "hierarchy off or untrained? R comes from Eq. 18"
        )
    index = np.floor(np.log10(R[placed]) / width).astype(np.int64)
    first = int(index.min())
    counts = np.bincount(index - first)
    kept = counts >= max(min_count, 1)
    if not kept.any():
        raise ValueError(
            f"the fullest bin holds {counts.max()} molecules, fewer than min_count = "
            f"{min_count}: widen bin_width ({width:g}) or lower min_count"
        )
    edges: Array = width * (first + np.arange(len(counts) + 1, dtype=np.float64))
    error = abs_error[placed]
    inside = [error[index == first + b] for b in kept.nonzero()[0]]
    quantiles = np.array([np.quantile(e, probabilities, method="weibull") for e in inside])
    fewest = probabilities / (1 - probabilities)
    quantiles[counts[kept][:, None] < fewest - 1e-9] = np.nan
    return ErrorQuantiles(
        bin_edges=edges,
        counts=counts,
        kept=kept,
        log10_R=(edges[:-1] + width / 2)[kept],
        quantiles=quantiles,
        p=probabilities,
        min_count=min_count,
        num_sparse=int(counts[~kept].sum()),
        num_zero=int((~placed).sum()),
    )


def plot_error_quantiles(
    quantiles: ErrorQuantiles, unit: str = "kcal/mol", title: str | None = None
) -> Figure:
    """Fig. 3: one line per probability, the histogram of log R, scaled, in grey behind.

    Args:
        quantiles: the result of :func:`error_quantiles`.
        unit: of the errors in it.
        title: above the panel.

    Returns:
        A figure with logarithmic axes. Molecules that no line includes are counted below it.

    Raises:
        ValueError: a quantile is 0 and has no place on a logarithmic axis.
    """
    lines = quantiles.quantiles
    finite_array("quantiles", lines[~np.isnan(lines)], above=0)
    figure = new_figure(3.0)
    ax = figure.subplots()
    ax.set(xscale="log", yscale="log")
    colours = matplotlib.colormaps["viridis"](np.linspace(0.8, 0.0, len(quantiles.p)))
    for p, y, colour, marker in zip(quantiles.p, lines.T, colours, cycle("osD^v<>"), strict=False):
        ax.plot(
            10**quantiles.log10_R,
            y,
            marker=marker,
            ms=2.2,
            lw=1.0,
            color=colour,
            label=f"p = {p:g}",
        )
    # x is R, y a fraction of the panel's height: the histogram has no axis of its own
    ax.stairs(
        0.9 * quantiles.counts / quantiles.counts.max(),
        10**quantiles.bin_edges,
        transform=ax.get_xaxis_transform(),
        fill=True,
        color=LIGHT_GREY,
        zorder=0,
        label="histogram of log R",
    )
    ax.set_xlim(10 ** quantiles.bin_edges[0], 10 ** quantiles.bin_edges[-1])
    finish_axes(ax, "Non-hierarchicality $R$ (dimensionless)", rf"$Q_{{\rm err}}$ ({unit})")
    for axis in ("x", "y"):
        plain_ticks(ax, axis)
    if title is not None:
        ax.set_title(title, fontsize=LABEL_SIZE)  # below the legend
    legend_above(figure, 3)
    left_out = _left_out(quantiles)
    if left_out:
        figure.supxlabel(left_out, fontsize=TEXT_SIZE - 1, color=GREY)
    return figure


def _left_out(quantiles: ErrorQuantiles) -> str:
    parts = []
    if quantiles.num_sparse:
        parts.append(f"{quantiles.num_sparse:,} in bins of fewer than {quantiles.min_count}")
    if quantiles.num_zero:
        parts.append(f"{quantiles.num_zero:,} with R = 0")
    return "Molecules in no line: " + ", ".join(parts) if parts else ""
