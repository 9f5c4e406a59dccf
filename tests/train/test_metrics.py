"""Predictions over a data set, and the statistics of their errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.train import error_statistics, predict

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
