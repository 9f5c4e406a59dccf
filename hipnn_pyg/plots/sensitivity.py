"""The sensitivity functions of an interaction layer and the cutoff (Fig. 2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from hipnn_pyg.plots.arrays import Array, finite_array
from hipnn_pyg.plots.style import (
    BLUE,
    LABEL_SIZE,
    TEXT_SIZE,
    VERMILION,
    add_title,
    finish_axes,
    legend_above,
    new_figure,
)


def sensitivities(
    r: ArrayLike,
    s: ArrayLike,
    cutoff_values: ArrayLike,
    length_unit: str = "Å",
    r_cut: float | None = None,
    title: str | None = None,
    initial: ArrayLike | None = None,
) -> Figure:
    r"""Sensitivities :math:`s_\nu(r)` (Eq. 10) in blue under the cutoff function (Eq. 11), dashed.

    Args:
        r: distances, [num_r], in ``length_unit``.
        s: sensitivities at ``r``, cutoff included, [num_r, num_sensitivities], dimensionless.
        cutoff_values: phi_cut at ``r``, [num_r], dimensionless.
        length_unit: of ``r`` and ``r_cut``.
        r_cut: cutoff radius, marked by a vertical line when given.
        title: text above the figure.
        initial: sensitivities before training, same shape as ``s``, drawn in grey behind.

    Returns:
        A figure with one panel.

    Raises:
        ValueError: unequal lengths, empty arrays or non-finite values.
    """
    r = finite_array("r", r, (None,))
    s = finite_array("s", s, (len(r), None))
    cutoff_values = finite_array("cutoff_values", cutoff_values, r.shape)
    before = None if initial is None else finite_array("initial", initial, s.shape)
    figure = new_figure(2.6 if title is None else 2.8)
    ax = figure.subplots()
    _panel(ax, r, s, cutoff_values, before)
    if r_cut is not None:
        radius = float(finite_array("r_cut", r_cut, (), above=0))
        label = rf"$R_{{\rm cut}}$ = {radius:.3g} {length_unit}"
        ax.axvline(radius, color=VERMILION, linestyle=":", linewidth=1.0, label=label)
    ax.set_xlim(r.min(), max(r.max(), r_cut or 0) * 1.02)
    finish_axes(ax, f"Distance $r$ ({length_unit})", "Sensitivity (dimensionless)")
    ax.legend(fontsize=TEXT_SIZE, loc="upper right", framealpha=1, edgecolor="none")
    add_title(figure, title)
    return figure


def sensitivities_by_layer(
    r: ArrayLike,
    trained: Sequence[ArrayLike],
    cutoff_values: ArrayLike,
    initial: ArrayLike,
    length_unit: str = "Å",
) -> Figure:
    """One panel per interaction layer: sensitivities after training over those before it.

    Args:
        r: distances, [num_r], in ``length_unit``.
        trained: of each layer, cutoff included, [num_r, num_sensitivities], dimensionless.
        cutoff_values: phi_cut at ``r``, [num_r], dimensionless.
        initial: before training, the same in every layer, [num_r, num_sensitivities].
        length_unit: of ``r``.

    Raises:
        ValueError: no layer, unequal lengths, empty arrays or non-finite values.
    """
    if not trained:
        raise ValueError("trained is empty: pass the sensitivities of at least one layer")
    r = finite_array("r", r, (None,))
    before = finite_array("initial", initial, (len(r), None))
    cutoff_values = finite_array("cutoff_values", cutoff_values, r.shape)
    figure = new_figure(1.9 * len(trained) + 0.6)
    panels = figure.subplots(len(trained), sharex=True, squeeze=False)[:, 0]
    for number, (ax, values) in enumerate(zip(panels, trained, strict=True), start=1):
        _panel(ax, r, finite_array(f"trained[{number - 1}]", values, before.shape), cutoff_values,
               before)  # fmt: skip
        ax.set_xlim(r.min(), r.max())
        finish_axes(ax, "", f"Sensitivity,\ninteraction {number}")
    panels[-1].set_xlabel(f"Distance $r$ ({length_unit})", fontsize=LABEL_SIZE)
    legend_above(figure, 3, *panels[0].get_legend_handles_labels())
    return figure


def _panel(ax: Axes, r: Array, s: Array, cutoff_values: Array, initial: Array | None) -> None:
    if initial is not None:
        lines = ax.plot(r, initial, color="0.7", linewidth=0.8, zorder=1)
        lines[0].set_label(r"$s_\nu(r)$, initial")
    lines = ax.plot(r, s, color=BLUE, linewidth=0.9)
    lines[0].set_label(r"$s_\nu(r)$" if initial is None else r"$s_\nu(r)$, trained")
    ax.plot(r, cutoff_values, "--", color="black", linewidth=1.2, label=r"$\varphi_{\rm cut}(r)$")
    ax.set_ylim(bottom=min(0.0, float(s.min())))
