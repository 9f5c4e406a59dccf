r"""The environment sum, the one place where atoms exchange information.

.. math:: e_{i,\nu b} = \sum_{j \ne i} s_\nu(r_{ij}) z_{j,b}

Eqs. 8 and 9 are linear in it: :math:`\sum_{j,b} v_{ab}(r_{ij}) z_{j,b}
= \sum_{\nu,b} V_{\nu,ab} e_{i,\nu b}`. Summing over neighbours first costs far less than building
:math:`v_{ab}(r_{ij})` for every pair.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from hipnn_pyg.graph.pairs import Pairs
from hipnn_pyg.ops import envsum


class EnvironmentSum(MessagePassing):
    """The environment sum as message passing; it has no parameters, so any kernel can stand in.

    Edges scatter the messages (the specification), or run the kernels of :mod:`hipnn_pyg.ops` if
    they carry a pattern; the padded layout contracts each atom's row of neighbours in one batched
    matrix product. All give the same numbers.
    """

    def __init__(self) -> None:
        super().__init__(aggr="sum", node_dim=0)

    def forward(self, s: Tensor, z: Tensor, pairs: Pairs) -> Tensor:
        """Sum over neighbours.

        Args:
            s: sensitivities, ``[E, nu]`` (edges) or ``[N, K, nu]`` (padded).
            z: features, ``[N, F]``.
            pairs: who sends to whom, in the same layout as ``s``.

        Returns:
            Environments ``[N, nu, F]``.
        """
        if pairs.pattern is not None:
            return envsum(s, z, pairs.pattern)
        if pairs.padded:
            return torch.bmm(s.transpose(1, 2), z[pairs.j]).to(z.dtype)
        assert pairs.i is not None
        edge_index = torch.stack((pairs.j, pairs.i))
        return self.propagate(edge_index, s=s, z=z, size=(z.size(0), z.size(0)))

    def message(self, s: Tensor, z_j: Tensor) -> Tensor:
        """The term under the sum, ``[E, nu, F]``."""
        return s.unsqueeze(2) * z_j.unsqueeze(1)
