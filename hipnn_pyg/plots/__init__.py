"""Plots: arrays in, a matplotlib ``Figure`` out. Nothing is shown and no global state is touched.

>>> figure = parity(target, prediction, unit="kcal/mol")  # doctest: +SKIP
>>> figure.savefig("parity.pdf")  # doctest: +SKIP
"""

from hipnn_pyg.plots.learning import learning_curves
from hipnn_pyg.plots.parity import parity
from hipnn_pyg.plots.quantiles import ErrorQuantiles, error_quantiles, plot_error_quantiles
from hipnn_pyg.plots.sensitivity import sensitivities

__all__ = [
    "ErrorQuantiles",
    "error_quantiles",
    "learning_curves",
    "parity",
    "plot_error_quantiles",
    "sensitivities",
]
