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
from torch_geometric.nn.aggr import SumAggregation

from hipnn_pyg.graph.pairs import Pairs
from hipnn_pyg.nn.hooks import unchanged
from hipnn_pyg.ops import envsum

MESSAGE_HOOKS = tuple(
    f"_{part}_forward{when}_hooks"
    for part in ("propagate", "message", "aggregate", "message_and_aggregate")
    for when in ("", "_pre")
)
"""What PyG's ``register_message_forward_hook`` and its like fill."""
METHODS = ("propagate", "message", "aggregate", "update")


class EnvironmentSum(MessagePassing):
    """The environment sum as message passing; it has no parameters, so any kernel can stand in.

    Edges scatter the messages (the specification), or run the kernels of :mod:`hipnn_pyg.ops` if
    they carry a pattern; the padded layout contracts each atom's row of neighbours in one batched
    matrix product. All give the same numbers.
    """

    def __init__(self) -> None:
        super().__init__(aggr="sum", node_dim=0)

    @property
    def as_written(self) -> bool:
        """Whether nobody looks at messages or changed what is done with them: any kernel can stand
        in."""
        own = self.__dict__
        return (
            type(self) is EnvironmentSum
            and not any(map(own.__getitem__, MESSAGE_HOOKS))
            and not any(name in own for name in METHODS)
            and not own.get("_explain")
            and unchanged(own["_modules"]["aggr_module"], SumAggregation)
        )

    def forward(self, s: Tensor, z: Tensor, pairs: Pairs) -> Tensor:
        """Sum over neighbours.

        Args:
            s: sensitivities, ``[E, nu]`` (edges) or ``[N, K, nu]`` (padded).
            z: features, ``[N, F]``.
            pairs: who sends to whom, in the same layout as ``s``.

        Returns:
            Environments ``[N, nu, F]``.
        """
        j, i = pairs.j, pairs.i
        if not self.as_written:
            if i is None:
                i = torch.arange(z.size(0), device=j.device).unsqueeze(1).expand_as(j)
            if not self.__dict__.get("_explain"):  # else a mask has an entry for each edge
                near = (s != 0).any(-1)  # beyond the cutoff, layouts hold different pairs
                j, i, s = j[near], i[near], s[near]
        elif pairs.pattern is not None:
            return envsum(s, z, pairs.pattern)
        elif i is None:
            return torch.bmm(s.transpose(1, 2), z[j]).to(z.dtype)
        edge_index = torch.stack((j, i))
        return self.propagate(edge_index, s=s, z=z, size=(z.size(0), z.size(0)))

    def message(self, s: Tensor, z_j: Tensor) -> Tensor:
        """The term under the sum, ``[E, nu, F]``."""
        return s.unsqueeze(2) * z_j.unsqueeze(1)
