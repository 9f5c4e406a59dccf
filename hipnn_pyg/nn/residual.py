"""What on-site and interaction layers share: the residual step (Eq. 7) and Glorot weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def glorot_(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """Glorot uniform: U(-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010).

    The fans are passed in because V's are not spelled out in the paper: there we take
    fan_in = N_sensitivity N_in and fan_out = N_out, the sizes of the contraction it enters.
    """
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    with torch.no_grad():
        weight.uniform_(-bound, bound)


class Linear(nn.Linear):
    """A linear map with Glorot-uniform weight and zero bias."""

    def reset_parameters(self) -> None:
        """Draw the weight anew and zero the bias."""
        glorot_(self.weight, self.in_features, self.out_features)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, z: Tensor) -> Tensor:
        """``[N, in]`` to ``[N, out]``, in the dtype of ``z`` under autocast too."""
        return super().forward(z).to(z.dtype)


class Residual(nn.Module):
    r"""The residual transformation (Eq. 7).

    .. math:: z'_a = \sum_b \left(\tilde W_{ab} \tilde z_b + \tilde M_{ab} z_b\right) + \tilde B_a

    :math:`\tilde M` is the fixed identity when the sizes agree and learned otherwise.

    Args:
        in_channels: size of ``z``.
        out_channels: size of the activation and of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.W = Linear(out_channels, out_channels)  # holds W~ and B~
        self.M = (
            None if in_channels == out_channels else Linear(in_channels, out_channels, bias=False)
        )

    def forward(self, activation: Tensor, z: Tensor) -> Tensor:
        """Activation ``[N, out]`` and layer input ``[N, in]`` to new features ``[N, out]``."""
        return self.W(activation) + (z if self.M is None else self.M(z))
