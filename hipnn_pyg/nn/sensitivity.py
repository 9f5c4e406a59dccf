"""Sensitivity functions, Eq. 10: how strongly an atom feels a neighbour at distance r."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hipnn_pyg.nn.cutoff import cosine_cutoff


def sensitivities(r: Tensor, mu: Tensor, sigma: Tensor, cutoff: float) -> Tensor:
    r"""Eq. 10 as a function: Gaussians in inverse distance times the cutoff.

    Args:
        r: distances in Å, ``[*]``.
        mu: centres in Å, ``[nu]``.
        sigma: in Å, ``[nu]``; the width in inverse distance is 1 / sigma.
        cutoff: R_cut in Å.

    Returns:
        ``[*, nu]``.
    """
    deviation = (1 / r.unsqueeze(-1) - 1 / mu) * sigma
    return torch.exp(-0.5 * deviation.square()) * cosine_cutoff(r, cutoff).unsqueeze(-1)


class Sensitivity(nn.Module):
    r"""Gaussians in inverse distance times the cutoff (Eq. 10).

    .. math:: s_\nu(r) = \exp\left[-\frac{(r^{-1} - \mu_\nu^{-1})^2}{2 \sigma_\nu^{-2}}\right]
        \varphi_\mathrm{cut}(r)

    Initially the inverse centres are evenly spaced from 1/r_low to 1/r_high and
    sigma = 2 num_sensitivities r_low (Sec. II.F). Both are learned, one set per interaction layer.

    Args:
        num_sensitivities: N_sensitivity, the number of functions.
        r_low: smallest centre in Å.
        r_high: largest centre in Å.
        cutoff: R_cut in Å.
    """

    def __init__(self, num_sensitivities: int, r_low: float, r_high: float, cutoff: float) -> None:
        super().__init__()
        self.r_low, self.r_high, self.cutoff = r_low, r_high, cutoff
        self.mu = nn.Parameter(torch.empty(num_sensitivities))
        self.sigma = nn.Parameter(torch.empty(num_sensitivities))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set mu and sigma (both in Å) to the paper's initial values."""
        with torch.no_grad():
            inverse = torch.linspace(
                1 / self.r_low, 1 / self.r_high, self.mu.numel(), dtype=torch.float64
            )
            self.mu.copy_(1 / inverse)
            self.sigma.fill_(2 * self.sigma.numel() * self.r_low)

    def forward(self, r: Tensor) -> Tensor:
        """Sensitivities of distances of any shape ``[*]`` in Å: ``[*, num_sensitivities]``."""
        return sensitivities(r, self.mu, self.sigma, self.cutoff)
