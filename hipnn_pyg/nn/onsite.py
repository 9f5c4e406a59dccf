"""On-site layers, Eqs. 5-7: each atom by itself."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import softplus

from hipnn_pyg.nn.residual import Linear, Residual


class OnSite(nn.Module):
    r"""On-site layer (Eq. 5) with the residual transformation (Eq. 7); f is softplus (Eq. 6).

    .. math:: \tilde z_{i,a} = f\left(\sum_b W_{ab} z_{i,b} + B_a\right)

    Args:
        in_channels: number of input features.
        out_channels: number of output features.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.W = Linear(in_channels, out_channels)  # holds W and B
        self.residual = Residual(in_channels, out_channels)

    def forward(self, z: Tensor) -> Tensor:
        """Features ``[N, in]`` to features ``[N, out]``."""
        return self.residual(softplus(self.W(z)), z)
