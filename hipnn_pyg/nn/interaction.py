"""Interaction layers, Eqs. 8-9: information passes between atoms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hipnn_pyg.graph.pairs import Pairs
from hipnn_pyg.nn.environment import EnvironmentSum
from hipnn_pyg.nn.residual import Linear, Residual, glorot_
from hipnn_pyg.nn.sensitivity import Sensitivity


class Interaction(nn.Module):
    r"""Interaction layer (Eqs. 8, 9) with the residual transformation (Eq. 7).

    .. math:: \tilde z_{i,a} = f\Big(\sum_{j,b} v_{ab}(r_{ij}) z_{j,b} + \sum_b W_{ab} z_{i,b}
        + B_a\Big), \qquad v_{ab}(r) = \sum_\nu V_{\nu,ab} s_\nu(r)

    W couples an atom to itself, so j runs over the other atoms only.

    Args:
        in_channels: number of input features.
        out_channels: number of output features.
        sensitivity: the layer's own functions :math:`s_\nu`.
    """

    def __init__(self, in_channels: int, out_channels: int, sensitivity: Sensitivity) -> None:
        super().__init__()
        self.sensitivity = sensitivity
        self.environment_sum = EnvironmentSum()
        self.V = nn.Parameter(torch.empty(sensitivity.mu.numel(), in_channels, out_channels))
        self.W = Linear(in_channels, out_channels)  # holds W and B
        self.residual = Residual(in_channels, out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw V anew; the other parts reset themselves."""
        num_sensitivities, in_channels, out_channels = self.V.shape
        glorot_(self.V, num_sensitivities * in_channels, out_channels)

    def forward(self, z: Tensor, pairs: Pairs) -> Tensor:
        """Features ``[N, in]`` and neighbour pairs to features ``[N, out]``."""
        return self.residual(softplus(self.received(z, pairs) + self.W(z)), z)

    def received(self, z: Tensor, pairs: Pairs) -> Tensor:
        r""":math:`\sum_{j,b} v_{ab}(r_{ij}) z_{j,b}` of every atom, ``[N, out]``."""
        e = self.environment_sum(self.sensitivity(pairs.r), z, pairs)
        return (e.flatten(1) @ self.V.flatten(0, 1)).to(e.dtype)  # autocast: see nn.precision
