"""Predictions over a data set and the paper's three statistics of their errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.checks import StructureError, check_species
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.self_check import self_check
from hipnn_pyg.units import ENERGY_UNITS, convert

CHEMICAL_ACCURACY = 1.0
"""kcal/mol."""


class Predictions(NamedTuple):
    """Predictions for M molecules, on the CPU, energies in the model's unit.

    Attributes:
        energy: total energies, float64, ``[M]``.
        orders: sum over atoms of E_i^n for each order, float64, ``[M, num_interactions + 1]``.
        nonhierarchicality: R (Eq. 18), ``[M]``.
    """

    energy: Tensor
    orders: Tensor
    nonhierarchicality: Tensor


@torch.no_grad()
def predict(model: HIPNN, molecules: PackedMolecules, batch_size: int = 256) -> Predictions:
    """Predict packed (hence checked) molecules.

    Args:
        model: the model; its mode is left as it was.
        molecules: moved to the model's device.
        batch_size: molecules per pass.

    Raises:
        StructureError: no molecules, or species that the model does not know.
    """
    if not len(molecules):
        raise StructureError("there are no molecules to predict: give at least one")
    device = model.reference.weight.device
    self_check(model.kernel_on(device), device)
    molecules = molecules.to(device)
    check_species(molecules.z, model.species_index(molecules.z) >= 0, model.species)
    training, validate = model.training, model.validate
    model.eval()
    model.validate = False
    parts = []
    try:
        for index in torch.arange(len(molecules)).split(batch_size):
            batch = molecules.gather(index)
            out = model.energy_terms(batch.z, batch.pos, batch.batch, num_graphs=index.numel())
            orders = out.terms.new_zeros(index.numel(), out.terms.size(1))
            orders = orders.index_add(0, batch.batch, out.terms)
            parts.append((out.energy[:, 0].cpu(), orders.cpu(), out.nonhierarchicality.cpu()))
    finally:
        model.train(training)
        model.validate = validate
    return Predictions(*(torch.cat(part) for part in zip(*parts, strict=True)))


class ErrorStatistics(NamedTuple):
    """Statistics of the errors over a data set, as in Table II.

    Attributes:
        mae: mean absolute error (Eq. 12).
        rmse: root-mean-square error (Eq. 13).
        above_1_kcal: percentage of errors above 1 kcal/mol; None if the unit is no energy.
        unit: of mae and rmse.
        num: molecules.
    """

    mae: float
    rmse: float
    above_1_kcal: float | None
    unit: str
    num: int

    def to(self, unit: str) -> ErrorStatistics:
        """The same statistics in another energy unit."""
        return self._replace(
            mae=convert(self.mae, self.unit, unit), rmse=convert(self.rmse, self.unit, unit),
            unit=unit,
        )  # fmt: skip


def error_statistics(prediction: Tensor, target: Tensor, unit: str) -> ErrorStatistics:
    """MAE, RMSE and percentage above 1 kcal/mol.

    Args:
        prediction: ``[M]``.
        target: ``[M]``.
        unit: of both.

    Returns:
        In kcal/mol if ``unit`` is an energy, else in ``unit``.
    """
    return summed_statistics(statistics_sums(prediction, target, unit), unit)


def statistics_sums(prediction: Tensor, target: Tensor, unit: str) -> Tensor:
    """What :func:`summed_statistics` needs of some molecules; adds up over parts of a data set.

    Args:
        prediction: ``[M]``.
        target: ``[M]``.
        unit: of both.

    Returns:
        Sums of abs(e) and e^2 in the unit of the statistics, the number of errors above
        1 kcal/mol, M; float64 on the CPU, ``[4]``.
    """
    factor = convert(1.0, unit, "kcal/mol") if unit in ENERGY_UNITS else 1.0
    error = (prediction.cpu().double() - target.cpu().double()) * factor
    above = (error.abs() > CHEMICAL_ACCURACY).sum()
    return torch.stack(
        (error.abs().sum(), error.square().sum(), above, error.new_tensor(len(error)))
    )


def summed_statistics(sums: Tensor, unit: str) -> ErrorStatistics:
    """The statistics from the sums over a data set.

    Args:
        sums: as :func:`statistics_sums` gives them, ``[4]``.
        unit: of the energies that went in.
    """
    absolute, square, above, num = sums.tolist()
    is_energy = unit in ENERGY_UNITS
    return ErrorStatistics(
        absolute / num,
        math.sqrt(square / num),
        100 * above / num if is_energy else None,
        "kcal/mol" if is_energy else unit,
        int(num),
    )
