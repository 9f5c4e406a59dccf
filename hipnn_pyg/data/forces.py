"""Force labels: where a data set keeps them and in which unit, which is declared and never guessed.

Inside, forces are in the target's energy unit per Å, as :math:`-dE/dr` of a model is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg.checks import StructureError
from hipnn_pyg.units import ENERGY_UNITS, LENGTH_UNITS

FORCE_UNITS = {
    f"{energy}/{length}": ENERGY_UNITS[energy] / LENGTH_UNITS[length]
    for energy in ENERGY_UNITS
    for length in LENGTH_UNITS
}
"""Each unit in eV/Å."""


@dataclass(frozen=True)
class ForceLabels:
    """The forces :math:`F_i = -dE/dr_i` on the atoms of a data set.

    Args:
        unit: a key of :data:`FORCE_UNITS`, e.g. "eV/Angstrom".
        key: the attribute of :class:`~torch_geometric.data.Data` that holds them, ``[N, 3]``.

    Raises:
        ValueError: the unit is none of these.
    """

    unit: str
    key: str = "force"

    def __post_init__(self) -> None:
        if self.unit not in FORCE_UNITS:
            raise ValueError(
                f"the unit of forces is {self.unit!r}; it must be declared, e.g. 'eV/Angstrom', "
                f"'kcal/mol/Angstrom' or 'Hartree/Bohr' (all: {sorted(FORCE_UNITS)})"
            )

    def select(self, data: Data) -> Tensor:
        """The forces of one graph or of a batch.

        Args:
            data: with ``pos`` ``[N, 3]``.

        Returns:
            ``[N, 3]`` in :attr:`unit` and in the stored dtype.

        Raises:
            KeyError: ``data`` has no tensor of this name.
            StructureError: it is not one vector per atom.
        """
        forces = getattr(data, self.key, None)
        if not isinstance(forces, Tensor):
            raise KeyError(
                f"no tensor of forces at data.{self.key}; the data has "
                f"{sorted(map(str, data.keys()))}"
            )
        if forces.shape != data.pos.shape or not forces.is_floating_point():
            raise StructureError(
                f"data.{self.key} must be floating point of shape {list(data.pos.shape)}, one "
                f"force per atom in {self.unit}, not {forces.dtype} of shape {list(forces.shape)}"
            )
        return forces

    def factor(self, energy_unit: str) -> float:
        """What a force in :attr:`unit` is multiplied by to be in ``energy_unit`` / Å.

        Raises:
            ValueError: ``energy_unit`` is no known unit of energy.
        """
        check_energy_unit(f"forces in {self.unit}", energy_unit)
        return FORCE_UNITS[self.unit] / FORCE_UNITS[f"{energy_unit}/Angstrom"]


MD17_FORCES = ForceLabels("kcal/mol/Angstrom")
"""The forces of ``torch_geometric.datasets.MD17``."""

ASE_FORCES = ForceLabels("eV/Angstrom")
"""The forces of structures read through ASE, which stores eV/Å."""


def check_energy_unit(labels: str, energy_unit: str) -> None:
    """Derivatives of an energy need one of known unit beside them.

    Args:
        labels: what they are, for the message.
        energy_unit: the target's.

    Raises:
        ValueError: it is no known unit of energy.
    """
    if energy_unit not in ENERGY_UNITS:
        raise ValueError(
            f"{labels} cannot stand beside energies in {energy_unit!r}: declare the target's unit, "
            f"one of {sorted(ENERGY_UNITS)}"
        )


def check_forces(forces: Tensor, batch: Tensor, molecules: Tensor) -> None:
    """Every force of some molecules is finite.

    Args:
        forces: ``[N, 3]``.
        batch: molecule of each atom, ``[N]``.
        molecules: their numbers in the data set, for the message.

    Raises:
        StructureError: naming the first molecule with one that is not.
    """
    finite = torch.isfinite(forces).all(dim=1)
    if not bool(finite.all()):
        atom = int((~finite).nonzero()[0])
        number = int(molecules[int(batch[atom])])
        raise StructureError(
            f"molecule {number} of the dataset: a force is {forces[atom].tolist()}, which is not "
            "finite: remove that molecule"
        )
