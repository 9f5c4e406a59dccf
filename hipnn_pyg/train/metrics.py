"""Predictions over a data set, the paper's three statistics of their errors, and those of forces
and stress."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.checks import StructureError, check_species
from hipnn_pyg.data.packed import PackedMolecules, edges_of
from hipnn_pyg.data.periodic import BatchCells
from hipnn_pyg.data.stress import StressLabels
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.neighborhood import neighborhood
from hipnn_pyg.models.potential import energy_and_pull
from hipnn_pyg.models.self_check import self_check
from hipnn_pyg.nn import molecule_sums
from hipnn_pyg.train.force_loss import component_sums
from hipnn_pyg.units import ENERGY_UNITS, convert, reported

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


def predict(model: HIPNN, molecules: PackedMolecules, batch_size: int | None = None) -> Predictions:
    """Predict packed (hence checked) molecules.

    Args:
        model: the model; its mode is left as it was.
        molecules: moved to the model's device.
        batch_size: molecules per pass; None for 256, on a GPU 1,024.

    Raises:
        StructureError: no molecules, or species that the model does not know.
    """
    if batch_size is None:
        batch_size = 1024 if model.reference.weight.is_cuda else 256
    energy, orders, r, _, _ = _predict(model, molecules, batch_size, forces=False)
    return Predictions(energy, orders, r)


def predict_forces(
    model: HIPNN, molecules: PackedMolecules, batch_size: int = 256
) -> tuple[Predictions, Tensor]:
    """Predict packed (hence checked) molecules and, by one gradient, the forces on their atoms.

    Args:
        model: the model; its mode is left as it was.
        molecules: moved to the model's device.
        batch_size: molecules per pass.

    Returns:
        ``(predictions, forces)``: energy unit / Å, on the CPU, ``[N, 3]``.

    Raises:
        StructureError: no molecules, or species that the model does not know.
        TypeError: a model with ``energy_terms`` of its own.
    """
    predictions, forces, _ = predict_stress(model, molecules, batch_size, stress=False)
    return predictions, forces


def predict_stress(
    model: HIPNN, molecules: PackedMolecules, batch_size: int = 256, stress: bool = True
) -> tuple[Predictions, Tensor, Tensor]:
    """As :func:`predict_forces`, and by the same gradient the stress of periodic structures.

    Args:
        model: the model; its mode is left as it was.
        molecules: moved to the model's device.
        batch_size: molecules per pass.
        stress: whether to compute it.

    Returns:
        ``(predictions, forces, stress)``: the last dE/d(strain) / volume, energy unit / Å^3, on the
        CPU, ``[M, 3, 3]``, NaN where a structure is not periodic in three directions; ``[0]`` if
        not computed.

    Raises:
        StructureError: no molecules, or species that the model does not know.
        TypeError: a model with ``energy_terms`` of its own.
    """
    energy, orders, r, forces, of_cells = _predict(model, molecules, batch_size, True, stress)
    return Predictions(energy, orders, r), forces, of_cells


def _predict(
    model: HIPNN, molecules: PackedMolecules, batch_size: int, forces: bool, stress: bool = False
) -> list[Tensor]:
    """Energies, orders, R, forces and stress (``[0]`` if not asked for)."""
    if not len(molecules):
        raise StructureError("there are no molecules to predict: give at least one")
    if forces and getattr(model.energy_terms, "__func__", None) is not HIPNN.energy_terms:
        raise TypeError(
            f"{type(model).__name__} has energy_terms of its own, whose derivatives are not taken: "
            "give it atom_terms of its own instead, or wrap it in hipnn_pyg.Forces"
        )
    device = model.reference.weight.device
    self_check(model.kernel_on(device), device)
    molecules = molecules.to(device).with_edges(model.cutoff)
    z = molecules.atomic_numbers()
    check_species(z, model.species_index(z) >= 0, model.species)
    parts: list[list[Tensor]] = []
    with _evaluating(model), torch.inference_mode(False), torch.no_grad():
        for index in torch.arange(len(molecules)).split(batch_size):
            batch, num = molecules.gather(index), index.numel()
            given, virial = (batch.z, batch.pos, batch.batch), None
            edge_index, shift = edges_of(batch)
            if forces:
                near = neighborhood(model, *given, num, edge_index, shift)
                terms, _, pull, virial = energy_and_pull(model, near, batch.pos, stress, False)
                energy, r = molecule_sums(terms, batch.batch, num, near.pairs.pattern is not None)
            else:
                total, terms, r, _ = model.energy_terms(*given, edge_index, shift, num)
                energy, pull = total[:, 0], terms.new_empty(0)
            orders = terms.new_zeros(num, terms.size(1)).index_add(0, batch.batch, terms)
            of_cells = pull.new_empty(0) if virial is None else _per_volume(virial, batch.cells)
            parts.append([part.cpu() for part in (energy, orders, r, pull, of_cells)])
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@contextmanager
def _evaluating(model: HIPNN) -> Iterator[None]:
    """Without checks (done) and without derivatives in the parameters."""
    training, validate = model.training, model.validate
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    model.validate = False
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_()
        model.train(training)
        model.validate = validate


def _per_volume(virial: Tensor, cells: BatchCells | None) -> Tensor:
    """Stress ``[G, 3, 3]`` from dE/d(strain); NaN where a structure has none."""
    if cells is None:
        return torch.full_like(virial, torch.nan)
    volume = torch.linalg.det(cells.cell).abs().view(-1, 1, 1)
    full = cells.pbc.all(1).view(-1, 1, 1)
    return torch.where(full, virial / volume, torch.nan)


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
    factor, _ = reported(unit)
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
    return ErrorStatistics(
        absolute / num,
        math.sqrt(square / num),
        100 * above / num if unit in ENERGY_UNITS else None,
        reported(unit)[1],
        int(num),
    )


class ForceStatistics(NamedTuple):
    """Statistics of the errors of the components of forces, or of stress, over a data set.

    Attributes:
        mae: mean absolute error.
        rmse: root-mean-square error.
        unit: of both.
        num: components, 3 for each atom or 9 for each structure.
    """

    mae: float
    rmse: float
    unit: str
    num: int


def force_statistics(prediction: Tensor, target: Tensor, unit: str) -> ForceStatistics:
    """MAE and RMSE of force components, in kcal/mol/Å.

    Args:
        prediction: ``[N, 3]``.
        target: ``[N, 3]``.
        unit: energy unit of both, per Å.
    """
    return summed_force_statistics(force_statistics_sums(prediction, target, unit))


def force_statistics_sums(prediction: Tensor, target: Tensor, unit: str) -> Tensor:
    """What :func:`summed_force_statistics` needs; adds up over parts of a data set.

    Args:
        prediction: ``[N, 3]``.
        target: ``[N, 3]``.
        unit: energy unit of both, per Å.

    Returns:
        Sums of abs(f) and f^2 in kcal/mol/Å and the number of components; float64 on the CPU,
        ``[3]``.
    """
    factor = convert(1.0, unit, "kcal/mol")
    error = (prediction.cpu().double() - target.cpu().double()) * factor
    return component_sums(error)


def summed_force_statistics(sums: Tensor, unit: str = "kcal/mol/Å") -> ForceStatistics:
    """The statistics from the sums over a data set, ``[3]``."""
    absolute, square, num = sums.tolist()
    return ForceStatistics(absolute / num, math.sqrt(square / num), unit, int(num))


def stress_statistics(prediction: Tensor, target: Tensor, unit: str) -> ForceStatistics:
    """MAE and RMSE of stress components, in GPa, over the structures that have a label.

    Args:
        prediction: ``[M, 3, 3]``.
        target: ``[M, 3, 3]``, NaN where a structure has none.
        unit: energy unit of both, per Å^3.
    """
    return summed_force_statistics(stress_statistics_sums(prediction, target, unit), "GPa")


def stress_statistics_sums(prediction: Tensor, target: Tensor, unit: str) -> Tensor:
    """As :func:`force_statistics_sums`, of :func:`stress_statistics`: in GPa, ``[3]``."""
    target = target.cpu().double()
    known = ~torch.isnan(target)
    error = prediction.cpu().double()[known] - target[known]
    return component_sums(error / StressLabels("GPa").factor(unit))
