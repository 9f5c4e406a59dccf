"""What lower precision does to the energies and forces of a trained model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.models.files import load_model
from hipnn_pyg.models.pretrained import pretrained_folder
from hipnn_pyg.nn.precision import Precision, matrix_products
from hipnn_pyg.units import convert
from suite.bench import Bench
from suite.rows import Row, Unavailable

SHIPPED = "qm9-u0"
"""The model of the package that is measured if none is named."""


def precision(bench: Bench) -> list[Row]:
    """Errors of energies and forces in float32, TF32 and bf16 against float64."""
    return errors_on(bench, "cpu")


def errors_on(bench: Bench, device: str) -> list[Row]:
    """Mean and largest errors on a device."""
    run = Path(bench.settings.run) if bench.settings.run else pretrained_folder(SHIPPED)
    if not (run / "model.safetensors").exists():
        raise Unavailable(f"{run} holds no model: name a run folder with --run")
    size = min(bench.settings.precision_molecules, len(bench.molecules))
    (index,) = bench.batches(size, 1, 0)
    with bench.fresh() as worker:
        errors, idle = worker(errors_of, str(run), bench.molecules.subset(index), device)
    rows = []
    for (what, unit), of_each in errors.items():
        row = Row(f"{device.upper()}: {what}", unit, "float32")
        row.samples = {name: [error] for name, error in of_each.items()}
        row.note = f"{size} molecules, model {run.name}"
        for name in idle:
            row.note += f"; {name} has no effect on this device: equal to float32, bit for bit"
        rows.append(row)
    return rows


def errors_of(
    run: str, molecules: PackedMolecules, device: str
) -> tuple[dict[tuple[str, str], dict[str, float]], list[str]]:
    """Mean and largest errors of each precision, and which precisions changed nothing.

    The float32 model and its float64 copy get the same positions, rounded to float32.

    Args:
        run: folder of the model.
        molecules: all at once.
        device: that computes.

    Returns:
        For each ``(quantity, unit)`` the error of each precision; the names without effect.
    """
    model = load_model(run, device)
    model.validate = False
    there = molecules.to(device)
    exact = energies_and_forces(copy.deepcopy(model).double(), there, "float32")
    names = get_args(Precision)
    found = {name: energies_and_forces(model, there, name) for name in names}
    factor = convert(1.0, model.energy_unit, "kcal/mol")
    errors: dict[tuple[str, str], dict[str, float]] = {}
    for number, (what, unit) in enumerate((("energies", "kcal/mol"), ("forces", "kcal/mol/Å"))):
        for name in names:
            error = (found[name][number].double() - exact[number]).abs() * factor
            errors.setdefault((f"mean error of {what}", unit), {})[name] = float(error.mean())
            errors.setdefault((f"largest error of {what}", unit), {})[name] = float(error.max())
    plain = found["float32"]
    idle = [
        name
        for name in names[1:]
        if all(torch.equal(one, other) for one, other in zip(found[name], plain, strict=True))
    ]
    return errors, idle


def energies_and_forces(
    model: HIPNN, molecules: PackedMolecules, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Energies ``[M]`` and forces ``[N, 3]`` in the model's energy unit (/ Å)."""
    batch = molecules.gather(torch.arange(len(molecules)))
    pos = batch.pos.to(model.blocks[0].interaction.V.dtype).requires_grad_()
    with matrix_products(precision, pos.device):
        energy = model.energy_terms(batch.z, pos, batch.batch, num_graphs=len(molecules)).energy
        (slope,) = torch.autograd.grad(energy.sum(), pos)
    return energy.detach()[:, 0], -slope
