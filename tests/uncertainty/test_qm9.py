"""The goals on real QM9, for the model that comes with the package: coverage, false alarms, AUC."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg import PackedMolecules
from hipnn_pyg.data.embedded import embed
from hipnn_pyg.data.molecules import from_smiles
from hipnn_pyg.data.qm9 import QM9Pack
from hipnn_pyg.data.targets import QM9_TARGETS
from hipnn_pyg.models.pretrained import pretrained_folder
from hipnn_pyg.uncertainty import CalibratedModel, ErrorBars, Sample, take_sample
from hipnn_pyg.uncertainty.conformal import conformal_quantile
from hipnn_pyg.uncertainty.scores import auc, coverage
from hipnn_pyg.uncertainty.structures import drugs, stretched

NAME = "qm9-u0"
NUM_SMILES = 1000


@pytest.fixture(scope="module")
def model() -> CalibratedModel:
    return CalibratedModel.load(NAME)


@pytest.fixture(scope="module")
def bars(model: CalibratedModel) -> ErrorBars:
    assert model.error_bars is not None
    return model.error_bars


@pytest.fixture(scope="module")
def molecules(whole_qm9: QM9Pack) -> PackedMolecules:
    return PackedMolecules.pack(whole_qm9, QM9_TARGETS["U0_atom"], validate=False)


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    """Molecules that neither trained, stopped nor calibrated the model."""
    stored = np.load(pretrained_folder(NAME) / "predictions.npz")
    return torch.from_numpy(np.flatnonzero(np.unpackbits(stored["test_set"])))


@pytest.fixture(scope="module")
def given(
    model: CalibratedModel, bars: ErrorBars, molecules: PackedMolecules, held_out: Tensor
) -> Sample:
    return take_sample(model.models, bars.statistics, molecules.subset(held_out))


@pytest.fixture(scope="module")
def rdkit(
    model: CalibratedModel,
    bars: ErrorBars,
    molecules: PackedMolecules,
    whole_qm9: QM9Pack,
    held_out: Tensor,
) -> Sample:
    some = held_out[:: len(held_out) // NUM_SMILES]
    made = embed([*whole_qm9._data.smiles], molecules, some).molecules
    return take_sample(model.models, bars.statistics, made)


def test_intervals_cover_what_they_say(bars: ErrorBars, given: Sample) -> None:
    intervals = bars.calibrations["given"].intervals
    assert len(given.error) > 10_000 and intervals.num == 10_000
    width = intervals.half_width(given.r, given.spread)
    overall, quartile = coverage(given.error, width, given.r, intervals.levels).deviation()
    assert overall < 1.5 and quartile < 3
    one = np.array([conformal_quantile(given.error, level) for level in intervals.levels])
    constant = np.broadcast_to(one, width.shape)  # control: one width for all
    overall, quartile = coverage(given.error, constant, given.r, intervals.levels).deviation()
    assert overall < 1.5 and quartile > 5  # wrong where R is large


def test_an_ensemble_errs_less_and_its_spread_tells_more_than_R(
    molecules: PackedMolecules, held_out: Tensor, given: Sample
) -> None:
    """``qm9-u0`` is its first member, its test set is the same."""
    ensemble = CalibratedModel.load("qm9-u0-ensemble")
    stored = np.load(pretrained_folder("qm9-u0-ensemble") / "predictions.npz")
    assert np.array_equal(np.flatnonzero(np.unpackbits(stored["test_set"])), held_out.numpy())
    bars, some = ensemble.error_bars, slice(None, None, 4)
    assert bars is not None and len(ensemble.models) == 3
    sample = take_sample(ensemble.models, bars.statistics, molecules.subset(held_out[some]))
    assert sample.error.mean() < given.error[some].mean()
    intervals = bars.calibrations["given"].intervals
    width = intervals.half_width(sample.r, sample.spread)
    covered = coverage(sample.error, width, sample.r, intervals.levels)
    overall, quartile = covered.deviation()
    assert overall < 3 and quartile < 6  # three standard deviations of 2,600 and of 650 molecules
    assert sample.spread is not None
    by_spread = spearmanr(sample.spread, sample.error).statistic
    assert by_spread > 0.25 and by_spread > spearmanr(sample.r, sample.error).statistic + 0.05
    at_odds = sample.spread > np.quantile(sample.spread, 0.75)  # where the members disagree most
    inside = (sample.error <= width[:, 1])[at_odds].mean()
    constant = conformal_quantile(sample.error, 0.9)  # control: one width for all
    assert inside > 0.86 and (sample.error <= constant)[at_odds].mean() < inside - 0.04


def test_rdkit_geometries_need_their_own_intervals(
    bars: ErrorBars, given: Sample, rdkit: Sample
) -> None:
    assert len(rdkit.error) > 0.95 * NUM_SMILES
    assert rdkit.error.mean() > 3 * given.error.mean()
    inside = {}
    for geometry in ("given", "rdkit"):
        width = bars.calibrations[geometry].intervals.half_width(rdkit.r, rdkit.spread)
        inside[geometry] = (rdkit.error[:, None] <= width).mean(0)
    np.testing.assert_allclose(inside["rdkit"], (0.5, 0.9, 0.95), atol=0.045)  # of 1,000
    assert inside["given"][1] < 0.6  # control


def test_flag_hits_five_percent_of_molecules_like_the_training_data(
    bars: ErrorBars, given: Sample, rdkit: Sample
) -> None:
    for geometry, test, tolerance in (("given", given, 0.01), ("rdkit", rdkit, 0.02)):
        alarms = (test.distance > bars.calibrations[geometry].threshold).mean()
        assert alarms == pytest.approx(0.05, abs=tolerance)


def test_flag_tells_stretched_bonds(
    model: CalibratedModel, molecules: PackedMolecules, held_out: Tensor, given: Sample
) -> None:
    batches = [molecules.gather(held_out[k : k + 1]) for k in range(0, 10_000, 40)]
    usual = [Data(z=batch.z, pos=batch.pos) for batch in batches]
    far = [changed for k, data in enumerate(usual) if (changed := stretched(data, 0.3, k))]
    judged = model.predict([*usual, *far], "given").judgement
    assert judged is not None and len(far) > 240
    same, others = judged.distance[: len(usual)].numpy(), judged.distance[len(usual) :].numpy()
    assert auc(given.distance, others).low > 0.9
    assert auc(given.distance, same).auc == pytest.approx(0.5, abs=0.06)  # control
    assert float(judged.unlike_training[len(usual) :].double().mean()) > 0.8


def test_flag_tells_molecules_of_twelve_and_more_heavy_atoms(
    model: CalibratedModel, rdkit: Sample
) -> None:
    large = [from_smiles(drug.smiles) for drug in drugs()[::4]]
    judged = model.predict(large, "rdkit").judgement
    assert judged is not None
    assert auc(rdkit.distance, judged.distance.numpy()).auc > 0.9
    assert float(judged.unlike_training.double().mean()) > 0.5  # of usual ones, one in twenty
    assert bool(torch.isfinite(judged.half_width).all())
