"""Plots: arrays in, a matplotlib ``Figure`` out. Nothing is shown and no global state is touched.

>>> figure = parity(target, prediction, unit="kcal/mol")  # doctest: +SKIP
>>> figure.savefig("parity.pdf")  # doctest: +SKIP
"""

from hipnn_pyg.plots.curves import Curve, error_curves
from hipnn_pyg.plots.dynamics import energy_against_time
from hipnn_pyg.plots.error_bars import plot_error_bars
from hipnn_pyg.plots.learning import learning_curves
from hipnn_pyg.plots.orders import order_energies
from hipnn_pyg.plots.parity import parity
from hipnn_pyg.plots.quantiles import ErrorQuantiles, error_quantiles, plot_error_quantiles
from hipnn_pyg.plots.sensitivity import sensitivities, sensitivities_by_layer

__all__ = [
    "Curve",
    "ErrorQuantiles",
    "energy_against_time",
    "error_curves",
    "error_quantiles",
    "learning_curves",
    "order_energies",
    "parity",
    "plot_error_bars",
    "plot_error_quantiles",
    "sensitivities",
    "sensitivities_by_layer",
]
