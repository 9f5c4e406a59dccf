"""A simulation: energy and temperature against time."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from hipnn_pyg.plots.arrays import finite_array
from hipnn_pyg.plots.style import BLUE, TEXT_SIZE, VERMILION, finish_axes, new_figure


def energy_against_time(
    time: ArrayLike,
    energy: ArrayLike,
    temperature: ArrayLike,
    label: str = "total energy",
    drift: float | None = None,
) -> Figure:
    """Energy per atom relative to its mean, and temperature, against time.

    Args:
        time: in ps, [num_samples].
        energy: difference from the mean in meV/atom, [num_samples].
        temperature: in K, [num_samples].
        label: what energy it is.
        drift: slope of the energy in meV/atom/ps; given, its line through the middle is drawn.

    Returns:
        A figure with two panels that share the time axis.

    Raises:
        ValueError: unequal lengths, or a value that is not finite.
    """
    t = finite_array("time", time, (None,))
    e = finite_array("energy", energy, t.shape)
    kelvin = finite_array("temperature", temperature, t.shape, at_least=0)
    figure = new_figure(3.0)
    above, below = figure.subplots(2, sharex=True, height_ratios=[1.4, 1])
    above.plot(t, e, color=BLUE, linewidth=0.6)
    if drift is not None:
        line = float(finite_array("drift", drift, ())) * (t - t.mean())
        text = f"drift {drift:.2g} meV/atom/ps"
        above.plot(t, line, color=VERMILION, linewidth=1.0, label=text)
        above.legend(fontsize=TEXT_SIZE, frameon=False, loc="best")
    below.plot(t, kelvin, color="black", linewidth=0.6)
    finish_axes(above, "", f"{label.capitalize()}\n(meV/atom)")
    finish_axes(below, "Time (ps)", "Temperature (K)")
    for ax in (above, below):
        ax.yaxis.set_major_locator(MaxNLocator(5))
    figure.align_ylabels()
    return figure
