"""Predictions over a data set, and the statistics of their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from hipnn_pyg import HIPNN, Forces, PackedMolecules
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.graph import Pairs
from hipnn_pyg.models.hipnn import EnergyTerms, Kernel
from hipnn_pyg.train import error_statistics, predict
from hipnn_pyg.train.metrics import predict_forces

KERNELS = [name for name in get_args(Kernel) if name != "auto"]
EV_IN_KCAL = 23.060547830619  # CODATA 2018: 96485.33212... J/mol over 4184 J


def test_statistics_by_hand() -> None:
    """Errors 0.5, -1.5, 1, 2 kcal/mol: MAE 5/4, RMSE sqrt(7.5/4), half of them above 1."""
    target = torch.tensor([10.0, 20.0, 30.0, 40.0])
    prediction = target + torch.tensor([0.5, -1.5, 1.0, 2.0])
    statistics = error_statistics(prediction, target, "kcal/mol")
    assert statistics.mae == 1.25 and statistics.above_1_kcal == 50.0
    assert statistics.rmse == pytest.approx((7.5 / 4) ** 0.5, rel=1e-15)
    assert statistics.unit == "kcal/mol" and statistics.num == 4


@pytest.mark.parametrize("unit, factor", [("eV", EV_IN_KCAL), ("meV", EV_IN_KCAL / 1000)])
def test_statistics_against_numpy(unit: str, factor: float) -> None:
    random = np.random.default_rng(0)
    target = random.normal(size=500) - 1.0e4
    error = random.normal(scale=1.2 / factor, size=500)
    statistics = error_statistics(torch.tensor(target + error), torch.tensor(target), unit)
    in_kcal = ((target + error) - target) * factor
    assert statistics.mae == pytest.approx(np.abs(in_kcal).mean(), rel=1e-9)
    assert statistics.rmse == pytest.approx(np.sqrt((in_kcal**2).mean()), rel=1e-9)
    assert statistics.above_1_kcal == pytest.approx(100 * (np.abs(in_kcal) > 1).mean())
    assert 20 < statistics.above_1_kcal < 60  # the limit lies among the errors
    back = statistics.to(unit)
    assert back.unit == unit and back.mae == pytest.approx(statistics.mae / factor, rel=1e-9)
    assert back.above_1_kcal == statistics.above_1_kcal  # a percentage has no unit


def test_statistics_of_what_is_no_energy() -> None:
    statistics = error_statistics(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 0.0]), "Debye")
    assert (statistics.mae, statistics.unit, statistics.above_1_kcal) == (3.0, "Debye", None)


def test_predict_is_the_model_call(
    new_model: Callable[..., HIPNN],
    structures: list[Data],
    parts: tuple[PackedMolecules, PackedMolecules],
) -> None:
    model = new_model().double().train()
    batch = Batch.from_data_list(structures[90:])
    result = predict(model, parts[1], batch_size=7)
    assert model.training and model.validate  # left as they were
    direct = model.eval().energy_terms(batch.z, batch.pos, batch.batch)
    exact = dict(rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(result.energy, direct.energy[:, 0], **exact)
    torch.testing.assert_close(result.nonhierarchicality, direct.nonhierarchicality, **exact)
    orders = direct.terms.new_zeros(30, 3).index_add(0, batch.batch, direct.terms)
    torch.testing.assert_close(result.orders, orders, **exact)
    torch.testing.assert_close(result.orders.sum(1), result.energy, **exact)
    assert not result.energy.requires_grad and result.energy.dtype == torch.float64
    # the molecules are not all alike, so a wrong order would have shown
    assert not torch.allclose(result.energy, result.energy.flip(0), rtol=1e-6)


def test_predict_does_not_depend_on_the_batch_size(
    new_model: Callable[..., HIPNN], parts: tuple[PackedMolecules, PackedMolecules]
) -> None:
    model = new_model().double()
    one_by_one = predict(model, parts[1], batch_size=1)
    for batch_size in (4, 30, 1000):
        for ours, alone in zip(predict(model, parts[1], batch_size), one_by_one, strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_forces_in_inference_mode(
    kernel: Kernel, new_model: Callable[..., HIPNN], structures: list[Data]
) -> None:
    """Where the molecules may have been made, too."""
    alone = Data(z=torch.tensor([8]), pos=torch.zeros(1, 3), energy=torch.zeros(1))
    items = [alone, *structures[:4]]
    model, packed = new_model(kernel=kernel), PackedMolecules.pack(items, ASE_ENERGY)
    expected, slopes = predict_forces(model, packed, batch_size=3)
    pulls = [Forces(model.eval())(data).forces for data in structures[:4]]
    torch.testing.assert_close(slopes[1:], torch.cat(pulls), rtol=1e-4, atol=1e-5)
    assert not bool(slopes[0].any()) and float(slopes.abs().max()) > 1e-2
    with torch.inference_mode():
        again = PackedMolecules.pack(items, ASE_ENERGY)
        assert again.pos.is_inference()
        energies, forces = predict_forces(model, again, batch_size=3)
        assert torch.is_inference_mode_enabled()
        made_here = predict(new_model(kernel=kernel), again).energy
    assert torch.equal(forces, slopes) and torch.equal(energies.energy, expected.energy)
    torch.testing.assert_close(made_here, expected.energy)


class Detached(HIPNN):
    """One that knows no derivatives."""

    def atom_terms(self, species: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return super().atom_terms(species, pairs._replace(r=pairs.r.detach()))


class Lifted(HIPNN):
    """With a term of its own in all energies."""

    def energy_terms(self, *arguments: Any) -> EnergyTerms:
        out = super().energy_terms(*arguments)
        return out._replace(energy=out.energy + 1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_forces_that_autograd_does_not_know_are_refused(
    kernel: Kernel, new_model: Callable[..., HIPNN], parts: tuple[PackedMolecules, PackedMolecules]
) -> None:
    """They are not 0, but of lone atoms."""
    model = new_model(kernel=kernel)
    energies, _ = predict_forces(model, parts[1])  # control
    model.__class__ = Detached
    torch.testing.assert_close(predict(model, parts[1]).energy, energies.energy)
    with pytest.raises(RuntimeError, match="does not depend on positions"):
        predict_forces(model, parts[1])
    model.__class__ = Lifted
    torch.testing.assert_close(predict(model, parts[1]).energy, energies.energy + 1)
    with pytest.raises(TypeError, match="Lifted has energy_terms of its own"):
        predict_forces(model, parts[1])


def test_a_failure_leaves_the_model_as_it_was(
    new_model: Callable[..., HIPNN],
    parts: tuple[PackedMolecules, PackedMolecules],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = new_model().train()

    def fail(self: PackedMolecules, index: torch.Tensor) -> None:
        raise MemoryError

    monkeypatch.setattr(PackedMolecules, "gather", fail)
    with pytest.raises(MemoryError):
        predict(model, parts[1])
    assert model.training and model.validate
