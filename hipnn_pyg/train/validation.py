"""Errors over the validation molecules, and the number that decides which model is the best."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.models.captured import CapturedEnergies
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.train.config import Training
from hipnn_pyg.train.metrics import (
    ErrorStatistics,
    ForceStatistics,
    force_statistics_sums,
    predict,
    predict_stress,
    statistics_sums,
    stress_statistics_sums,
    summed_force_statistics,
    summed_statistics,
)

MOLECULES_AT_ONCE = 512
"""What a graph of the validation has room for."""


class Validation(NamedTuple):
    """Errors over the validation molecules.

    Attributes:
        energy: of the energies.
        forces: of the force components; None where forces are not learned.
        stress: of the stress components; None where stress is not learned.
    """

    energy: ErrorStatistics
    forces: ForceStatistics | None
    stress: ForceStatistics | None = None

    @property
    def row(self) -> dict[str, float]:
        """The columns of ``metrics.csv``."""
        row = {"validation_mae": self.energy.mae, "validation_rmse": self.energy.rmse}
        if self.forces is not None:
            row["validation_force_mae"] = self.forces.mae
            row["validation_force_rmse"] = self.forces.rmse
        if self.stress is not None:
            row["validation_stress_mae"] = self.stress.mae
            row["validation_stress_rmse"] = self.stress.rmse
        return row

    def __str__(self) -> str:
        each = [part for part in (self.energy, self.forces, self.stress) if part is not None]
        return ", ".join(f"{part.mae:.3f} {part.unit}" for part in each)


def validation_sums(
    model: HIPNN, molecules: PackedMolecules, forces: bool, stress: bool = False
) -> Tensor:
    """What :func:`summed_validation` needs; adds up over parts of the molecules.

    Args:
        model: the model.
        molecules: packed molecules; there may be none.
        forces: whether forces are learned.
        stress: whether stress is learned, too.

    Returns:
        Float64, ``[4]``; ``[7]`` with forces, ``[10]`` with stress.
    """
    if not len(molecules):
        return torch.zeros(4 + 3 * forces + 3 * stress, dtype=torch.float64)
    unit, target = molecules.spec.unit, molecules.target
    if not forces:
        return statistics_sums(predict(model, molecules).energy, target, unit)
    prediction, predicted, of_cells = predict_stress(model, molecules, stress=stress)
    assert molecules.forces is not None
    labels = molecules.forces[molecules.atoms]
    sums = [statistics_sums(prediction.energy, target, unit)]
    sums.append(force_statistics_sums(predicted, labels, unit))
    if stress:
        assert molecules.stress is not None
        sums.append(stress_statistics_sums(of_cells, molecules.stress, unit))
    return torch.cat(sums)


class CapturedValidation:
    """:func:`validation_sums` of energies by CUDA graphs: an epoch may take less than a second.

    Args:
        molecules: packed and checked, on a GPU.
    """

    def __init__(self, molecules: PackedMolecules) -> None:
        self.molecules = molecules
        index = torch.arange(len(molecules)).split(MOLECULES_AT_ONCE)
        self.batches = [molecules.gather(part) for part in index]
        self.energies: CapturedEnergies | None = None

    def sums(self, model: HIPNN) -> Tensor:
        """What :func:`summed_validation` needs, ``[4]``.

        Args:
            model: the same in every call, or graphs are recorded anew.
        """
        if self.energies is None or self.energies.model is not model:
            self.energies = CapturedEnergies(model)
        checks, model.validate = model.validate, False  # molecules are packed, and so checked
        try:
            found = [
                self.energies.in_float64(part.z, part.pos, part.batch, part.target.numel())
                for part in self.batches
            ]
        finally:
            model.validate = checks
        spec, target = self.molecules.spec, self.molecules.target
        return statistics_sums(torch.cat(found)[:, 0], target, spec.unit)


def summed_validation(sums: Tensor, unit: str) -> Validation:
    """The errors from the sums over all molecules.

    Args:
        sums: as :func:`validation_sums` gives them.
        unit: of the energies.
    """
    forces = summed_force_statistics(sums[4:7]) if len(sums) > 4 else None
    stress = summed_force_statistics(sums[7:], "GPa") if len(sums) > 7 else None
    return Validation(summed_statistics(sums[:4], unit), forces, stress)


def score(row: dict[str, float], config: Training) -> float:
    r"""What is lowest for the best model: the energies' MAE or, with forces,
    :math:`\sqrt{\mathrm{MAE}_E\, \mathrm{MAE}_F}`; with stress the like of three.

    The geometric mean asks for no unit and no weights: an epoch wins if one error falls by more
    percent than another rises, so that none is bought with another, whichever dominates the loss.
    An error whose weight in the loss is 0 has no say.

    Args:
        row: of ``metrics.csv``; {} where there is no model yet.
        config: settings.

    Returns:
        inf for {}.
    """
    if not row:
        return math.inf
    if "validation_force_mae" not in row:
        return row["validation_mae"]
    names = ("validation_force_mae", "validation_stress_mae")
    errors = [row[name] for name in names if name in row]
    errors += [row["validation_mae"]] if config.energy_weight else []
    return float(math.prod(errors) ** (1 / len(errors)))
