"""The cutoff function, Eq. 11."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine_cutoff(r: Tensor, cutoff: float) -> Tensor:
    r"""Smooth cutoff (Eq. 11), exactly 0 at and beyond ``cutoff``.

    .. math:: \varphi_\mathrm{cut}(r) = \cos^2\left(\frac{\pi}{2} \frac{r}{R_\mathrm{cut}}\right),
        \quad r \le R_\mathrm{cut}

    Args:
        r: distances in Å, any shape; ``inf`` is allowed and gives 0.
        cutoff: R_cut in Å.

    Returns:
        Values in [0, 1], the shape of ``r``; value and first derivative are continuous.
    """
    inside = torch.clamp(r / cutoff, max=1.0)
    return torch.where(r < cutoff, torch.cos(0.5 * math.pi * inside).square(), 0.0)
