"""Energies from features (Eq. 4) and how far to trust them (Eq. 18)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hipnn_pyg.nn.residual import glorot_
from hipnn_pyg.ops import molecule_kernels


class ReferenceEnergy(nn.Module):
    r"""The zeroth-order term :math:`E_i^0 = w^0 \cdot z_i^0 + b^0`, one energy per species.

    Least squares on the training energies (Sec. II.F), then frozen. The parameters, and the energy
    scale ``sigma_e`` kept beside them, stay float64 whatever ``.float()`` or ``.to(dtype)`` does to
    the rest of the model: total energies are far larger than the differences of interest.

    Args:
        num_species: number of species.
    """

    def __init__(self, num_species: int) -> None:
        super().__init__()
        zeros = torch.zeros(num_species, dtype=torch.float64)
        self.weight = nn.Parameter(zeros, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)
        self.sigma_e: Tensor
        self.register_buffer("sigma_e", torch.ones((), dtype=torch.float64))

    def forward(self, species: Tensor) -> Tensor:
        """Place in the species list ``[N]`` to energies ``[N]``, float64; NaN for foreign atoms."""
        return torch.where(species < 0, torch.nan, self.weight[species] + self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ReferenceEnergy:
        """Follow moves between devices but not casts: ``fn`` sees the bits as integers."""

        def keep_float64(tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float64:
                return fn(tensor)
            bits = tensor.view(torch.int64)
            moved = fn(bits)
            return (moved if moved.dtype == torch.int64 else bits.to(moved.device)).view(
                torch.float64
            )

        super()._apply(keep_float64, recurse)
        return self


class EnergyReadout(nn.Module):
    r"""Linear regression on the features of order n >= 1 (Eq. 4), factorised (Sec. II.F).

    .. math:: E_i^n = \sigma_E \tilde w^n \cdot z_i + b^n

    :math:`\tilde w^n` is dimensionless and starts Glorot uniform times 10^(-2n), so that the
    orders begin hierarchical (the text's "hierarchical decay"; printed as sigma_E / 10^(-2n)).

    Args:
        in_channels: number of features.
        order: n.
    """

    def __init__(self, in_channels: int, order: int) -> None:
        super().__init__()
        self.order = order
        self.weight = nn.Parameter(torch.empty(in_channels))
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew and zero the bias."""
        glorot_(self.weight, self.weight.numel(), 1)
        with torch.no_grad():
            self.weight.mul_(10.0 ** (-2 * self.order))
            self.bias.zero_()

    def forward(self, z: Tensor, sigma_e: Tensor) -> Tensor:
        """Features ``[N, in]`` and sigma_E (energy unit) to energies ``[N]``."""
        # No matrix-vector product: its last bits depend on where the numbers lie in memory.
        return sigma_e.to(z.dtype) * (z * self.weight).sum(1) + self.bias


def nonhierarchicality(terms: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    r"""Non-hierarchicality of each molecule (Eq. 18), a sum over its atoms.

    .. math:: R = \sum_{n \ge 1} \sum_i \frac{(E_i^n)^2}{(E_i^n)^2 + (E_i^{n-1})^2}

    A term is 0 (with gradient 0) where both energies vanish.

    Args:
        terms: :math:`E_i^n`, ``[N, num_interactions + 1]``.
        batch: molecule of each atom, ``[N]``.
        num_graphs: number of molecules.

    Returns:
        R, dimensionless, ``[num_graphs]``.
    """
    square = terms.square()
    upper, lower = square[:, 1:], square[:, :-1]
    total = upper + lower
    ratio = upper / torch.where(total > 0, total, 1.0)
    return terms.new_zeros(num_graphs).index_add(0, batch, ratio.sum(1))


def molecule_sums(
    terms: Tensor, batch: Tensor, num_graphs: int, kernels: bool = False
) -> tuple[Tensor, Tensor]:
    """Total energies (Eqs. 1, 2) and non-hierarchicality R (Eq. 18).

    Args:
        terms: :math:`E_i^n`, float64, ``[N, num_interactions + 1]``.
        batch: molecule of each atom, sorted, ``[N]``.
        num_graphs: number of molecules.
        kernels: let a GPU's kernel do it where no derivatives are wanted.

    Returns:
        Energies (energy unit) and R, ``[num_graphs]`` each.
    """
    gpu = molecule_kernels(terms) if kernels and not torch.is_grad_enabled() else None
    if gpu is not None:
        found: tuple[Tensor, Tensor] = gpu.molecule_sums(terms, batch, num_graphs)
        return found
    energy = terms.new_zeros(num_graphs).index_add(0, batch, terms.sum(dim=1))
    return energy, nonhierarchicality(terms, batch, num_graphs)
