"""Stress labels: where a data set keeps them and in which unit, which is declared, never guessed.

Inside, stress is in the target's energy unit per Å^3 and has ASE's sign: the derivative of the
energy in a strain over the volume, positive where a crystal is under tension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.forces import check_energy_unit
from hipnn_pyg.units import ENERGY_UNITS, LENGTH_UNITS, GPa

STRESS_UNITS = {
    f"{energy}/{length}^3": ENERGY_UNITS[energy] / LENGTH_UNITS[length] ** 3
    for energy in ENERGY_UNITS
    for length in LENGTH_UNITS
} | {"GPa": GPa}
"""Each unit in eV/Å^3."""

_ASYMMETRY = 1e-3
"""How much stress[a, b] and stress[b, a] may differ, relative to the largest component."""


@dataclass(frozen=True)
class StressLabels:
    r"""The stress :math:`\sigma_{ab} = V^{-1}\, \partial E / \partial \varepsilon_{ab}` of the
    periodic structures of a data set; those without it are learned from all the same.

    Args:
        unit: a key of :data:`STRESS_UNITS`, e.g. "eV/Angstrom^3" or "GPa".
        key: the attribute of :class:`~torch_geometric.data.Data` that holds it, ``[1, 3, 3]``.

    Raises:
        ValueError: the unit is none of these.
    """

    unit: str
    key: str = "stress"

    def __post_init__(self) -> None:
        if self.unit not in STRESS_UNITS:
            raise ValueError(
                f"the unit of stress is {self.unit!r}; it must be declared, e.g. 'eV/Angstrom^3' "
                f"or 'GPa' (all: {sorted(STRESS_UNITS)})"
            )

    def select(self, data: Data, num: int) -> Tensor:
        """The stress of some structures.

        Args:
            data: they, as one graph or a batch.
            num: their number.

        Returns:
            ``[num, 3, 3]`` in :attr:`unit`, float64; NaN where ``data`` has none.

        Raises:
            StructureError: it has another shape.
        """
        stress = getattr(data, self.key, None)
        if stress is None:
            return data.pos.new_full((num, 3, 3), torch.nan, dtype=torch.float64)
        if not isinstance(stress, Tensor) or stress.shape not in ((num, 3, 3), (3 * num, 3)):
            found = list(stress.shape) if isinstance(stress, Tensor) else type(stress).__name__
            raise StructureError(
                f"data.{self.key} must be the stress in {self.unit} of shape [{num}, 3, 3], not "
                f"{found} (ase.stress.voigt_6_to_full_3x3_stress converts six numbers)"
            )
        return stress.reshape(num, 3, 3).double()

    def factor(self, energy_unit: str) -> float:
        """What a stress in :attr:`unit` is multiplied by to be in ``energy_unit`` / Å^3.

        Raises:
            ValueError: ``energy_unit`` is no known unit of energy.
        """
        check_energy_unit(f"stress in {self.unit}", energy_unit)
        return STRESS_UNITS[self.unit] / STRESS_UNITS[f"{energy_unit}/Angstrom^3"]


ASE_STRESS = StressLabels("eV/Angstrom^3")
"""The stress of structures read through ASE, which stores eV/Å^3."""


def check_stress(stress: Tensor, pbc: Tensor | None) -> None:
    """Every stress is finite, symmetric and that of a structure which has one.

    Args:
        stress: ``[M, 3, 3]``; NaN throughout where there is none.
        pbc: periodic directions, ``[M, 3]``; None for molecules.

    Raises:
        StructureError: naming the first that is not.
    """
    known = ~torch.isnan(stress).flatten(1).all(1)
    uneven = (stress - stress.mT).flatten(1).abs().amax(1)
    scale = stress.flatten(1).abs().amax(1)
    full = torch.zeros_like(known) if pbc is None else pbc.all(1)
    for wrong, what in (
        (~full, "is not periodic in three directions and so has no stress: leave it out there"),
        (~torch.isfinite(scale), "is not finite: remove it"),
        (uneven > _ASYMMETRY * scale, "is not symmetric: give dE/d(strain) / V in rows"),
    ):
        bad = (known & wrong).nonzero()
        if len(bad):
            number = int(bad[0])
            raise StructureError(
                f"structure {number} of the dataset, with the stress {stress[number].tolist()}, "
                f"{what}"
            )
