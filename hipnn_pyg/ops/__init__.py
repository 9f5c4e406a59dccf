"""HIP-NN's layers and training step, compiled. ``nn`` reads well without opening this."""

from hipnn_pyg.ops.cpu import KernelUnavailableError, molecule_edges
from hipnn_pyg.ops.devices import available, molecule_kernels, takes, transformed
from hipnn_pyg.ops.layers import dense, interact
from hipnn_pyg.ops.pattern import Pattern, edge_pattern
from hipnn_pyg.ops.sums import envsum, featsum, sensesum

__all__ = [
    "KernelUnavailableError",
    "Pattern",
    "available",
    "dense",
    "edge_pattern",
    "envsum",
    "featsum",
    "interact",
    "molecule_edges",
    "molecule_kernels",
    "sensesum",
    "takes",
    "transformed",
]
