"""Errors over the validation molecules, and the number that decides which model is the best."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.train.config import Training
from hipnn_pyg.train.metrics import (
    ErrorStatistics,
    ForceStatistics,
    force_statistics_sums,
    predict,
    predict_forces,
    statistics_sums,
    summed_force_statistics,
    summed_statistics,
)


class Validation(NamedTuple):
    """Errors over the validation molecules.

    Attributes:
        energy: of the energies.
        forces: of the force components; None where forces are not learned.
    """

    energy: ErrorStatistics
    forces: ForceStatistics | None

    @property
    def row(self) -> dict[str, float]:
        """The columns of ``metrics.csv``."""
        row = {"validation_mae": self.energy.mae, "validation_rmse": self.energy.rmse}
        if self.forces is not None:
            row["validation_force_mae"] = self.forces.mae
            row["validation_force_rmse"] = self.forces.rmse
        return row

    def __str__(self) -> str:
        of_forces = f", {self.forces.mae:.3f} {self.forces.unit}" if self.forces else ""
        return f"{self.energy.mae:.3f} {self.energy.unit}{of_forces}"


def validation_sums(model: HIPNN | None, molecules: PackedMolecules | None, forces: bool) -> Tensor:
    """What :func:`summed_validation` needs; adds up over parts of the molecules.

    Args:
        model: the model.
        molecules: packed molecules; None for no molecules.
        forces: whether forces are learned.

    Returns:
        Float64, ``[4]``; ``[7]`` with forces.
    """
    if model is None or molecules is None:
        return torch.zeros(7 if forces else 4, dtype=torch.float64)
    unit, target = molecules.spec.unit, molecules.target
    if not forces:
        return statistics_sums(predict(model, molecules).energy, target, unit)
    prediction, predicted = predict_forces(model, molecules)
    labels = molecules.gather(torch.arange(len(molecules))).forces
    assert labels is not None
    of_energies = statistics_sums(prediction.energy, target, unit)
    return torch.cat((of_energies, force_statistics_sums(predicted, labels, unit)))


def summed_validation(sums: Tensor, unit: str) -> Validation:
    """The errors from the sums over all molecules.

    Args:
        sums: as :func:`validation_sums` gives them.
        unit: of the energies.
    """
    forces = summed_force_statistics(sums[4:]) if len(sums) > 4 else None
    return Validation(summed_statistics(sums[:4], unit), forces)


def score(row: dict[str, float], config: Training) -> float:
    r"""What is lowest for the best model: the energies' MAE or, with forces,
    :math:`\sqrt{\mathrm{MAE}_E\, \mathrm{MAE}_F}`.

    The geometric mean asks for no unit and no weight between the two: an epoch wins if one error
    falls by more percent than the other rises, so that neither is bought with the other, whichever
    dominates the loss. An error whose weight in the loss is 0 has no say.

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
    if config.energy_weight == 0:
        return row["validation_force_mae"]
    return math.sqrt(row["validation_mae"] * row["validation_force_mae"])
