"""The parts of one energy: every atom and order, and where the orders stop decaying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg.checks import check_shapes
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.self_check import self_check
from hipnn_pyg.nn.readout import nonhierarchicality
from hipnn_pyg.units import convert

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Breakdown:
    r"""One molecule's energy, taken apart.

    .. math:: E = \sum_i \sum_n E_i^n, \qquad R = \sum_{n \ge 1} \sum_i R_i^n, \qquad
        R_i^n = \frac{(E_i^n)^2}{(E_i^n)^2 + (E_i^{n-1})^2} \quad \text{(Eqs. 1, 2, 18)}

    Attributes:
        z: atomic numbers, ``[N]``.
        pos: positions in Å, ``[N, 3]``.
        terms: :math:`E_i^n` in ``unit``, mean over the models, ``[N, num_interactions + 1]``.
        steps: :math:`R_i^n` for n = 1, 2 ..., dimensionless, between 0 and 1, mean over the models,
            ``[N, num_interactions]``.
        unit: of the energies.
        hierarchical: whether the model has orders below the last; without them R says nothing.
    """

    z: NDArray[np.int64]
    pos: Floats
    terms: Floats
    steps: Floats
    unit: str
    hierarchical: bool = True

    @cached_property
    def symbols(self) -> list[str]:
        """Chemical symbols, ``[N]``."""
        return [chemical_symbols[number] for number in self.z]

    @property
    def formula(self) -> str:
        """In Hill order: C2H6O."""
        return Formula.from_list(self.symbols).format("hill")

    @property
    def atoms(self) -> Floats:
        """Energy of each atom, all orders together, ``[N]``."""
        return self.terms.sum(axis=1)

    @property
    def orders(self) -> Floats:
        """Energy of each order, all atoms together, ``[num_interactions + 1]``."""
        return self.terms.sum(axis=0)

    @property
    def energy(self) -> float:
        """E."""
        return float(self.terms.sum())

    @property
    def r_atoms(self) -> Floats:
        """The share of each atom in R, ``[N]``."""
        return self.steps.sum(axis=1)

    @property
    def r_orders(self) -> Floats:
        """The share of each order in R, 0 for n = 0, ``[num_interactions + 1]``."""
        return np.concatenate([[0.0], self.steps.sum(axis=0)])

    @property
    def r(self) -> float:
        """R of the molecule."""
        return float(self.steps.sum())

    @property
    def breaks(self) -> NDArray[np.bool_]:
        """Where an order is larger than the one below it (R_i^n > 1/2): the hierarchy breaks.

        ``[N, num_interactions]``; nowhere if the model has no hierarchy.
        """
        return (self.steps > 0.5) & self.hierarchical

    @property
    def largest(self) -> NDArray[np.int64]:
        """Which order n >= 1 contributes most to each atom, in absolute value, ``[N]``."""
        return np.abs(self.terms[:, 1:]).argmax(axis=1) + 1

    def broken_orders(self, atom: int) -> list[int]:
        """The orders n at which the hierarchy breaks at an atom."""
        return [int(n) + 1 for n in self.breaks[atom].nonzero()[0]]


@torch.no_grad()
def break_down(models: Sequence[HIPNN], data: Data, unit: str | None = None) -> Breakdown:
    """Predict one molecule and keep every part.

    Args:
        models: one model, or the members of an ensemble: parts are means over them.
        data: one molecule with ``z`` and ``pos`` in Å.
        unit: energy unit of the result; None for the model's.

    Raises:
        StructureError: a bad molecule, or species that a model does not know.
        ValueError: the unit cannot be converted.
    """
    first = models[0]
    check_shapes(data.get("z"), data.get("pos"))
    unit = unit or first.energy_unit
    terms, steps = [], []
    for model in models:
        factor = 1.0 if unit == model.energy_unit else convert(1.0, model.energy_unit, unit)
        device = model.reference.weight.device
        self_check(model.kernel_on(device), device)
        found = model.energy_terms(data.z.to(device), data.pos.to(device)).terms
        terms.append(found.cpu() * factor)
        steps.append(_steps(found.cpu()))
    return Breakdown(
        data.z.cpu().numpy(),
        data.pos.double().cpu().numpy(),
        torch.stack(terms).mean(0).numpy(),
        torch.stack(steps).mean(0).numpy(),
        unit,
        first.hierarchical,
    )


def _steps(terms: Tensor) -> Tensor:
    """The summands of Eq. 18: each atom taken as a molecule of its own, each order by itself."""
    num_atoms, num_terms = terms.shape
    alone = torch.arange(num_atoms)
    columns = [
        nonhierarchicality(terms[:, n - 1 : n + 1], alone, num_atoms) for n in range(1, num_terms)
    ]
    return torch.stack(columns, dim=1)
