"""HIP-NN's layers and their first derivatives by Triton: :mod:`.cpu` for a GPU."""

from hipnn_pyg.ops.triton_dense import dense, dense_backward
from hipnn_pyg.ops.triton_interaction import interact, interact_backward
from hipnn_pyg.ops.triton_readout import inputs, readout, readout_backward

__all__ = [
    "dense",
    "dense_backward",
    "inputs",
    "interact",
    "interact_backward",
    "readout",
    "readout_backward",
]
