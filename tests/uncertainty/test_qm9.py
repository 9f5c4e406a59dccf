"""The goals on real QM9, with the trained model of results/: coverage, false alarms, AUC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from hipnn_pyg import HIPNN, PackedMolecules, load_model
from hipnn_pyg.data.embedded import embed
from hipnn_pyg.data.molecules import from_smiles
from hipnn_pyg.data.qm9 import QM9Pack
from hipnn_pyg.data.splits import Split, random_split
from hipnn_pyg.data.targets import QM9_TARGETS
from hipnn_pyg.uncertainty import CalibratedModel, ErrorBars, FeatureStatistics, Sample, take_sample
from hipnn_pyg.uncertainty.scores import auc, coverage
from hipnn_pyg.uncertainty.structures import drugs, stretched

RUN = Path(__file__).parents[2] / "results" / "qm9-fast-10"
NUM_SMILES = 400
Halves = tuple[Sample, Sample]


@pytest.fixture(scope="module")
def model() -> HIPNN:
    return load_model(RUN)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> QM9Pack:
    return QM9Pack(tmp_path_factory.mktemp("qm9"))


@pytest.fixture(scope="module")
def molecules(dataset: QM9Pack) -> PackedMolecules:
    return PackedMolecules.pack(dataset, QM9_TARGETS["U0_atom"], validate=False)


@pytest.fixture(scope="module")
def halves() -> Split:
    """10,000 of the run's test molecules to calibrate with (``train``), the others to test."""
    test = Split.load(RUN / "split.npz").test
    return random_split(int(test.max()) + 1, 10_000, 0, 0, test)


@pytest.fixture(scope="module")
def statistics(model: HIPNN, molecules: PackedMolecules) -> FeatureStatistics:
    train = Split.load(RUN / "split.npz").train
    return FeatureStatistics.fit(model, molecules.subset(train[::8]))


@pytest.fixture(scope="module")
def given(
    model: HIPNN, statistics: FeatureStatistics, molecules: PackedMolecules, halves: Split
) -> Halves:
    first, second = (
        take_sample([model], statistics, molecules.subset(part))
        for part in (halves.train, halves.test)
    )
    return first, second


@pytest.fixture(scope="module")
def rdkit(
    model: HIPNN,
    statistics: FeatureStatistics,
    molecules: PackedMolecules,
    dataset: QM9Pack,
    halves: Split,
) -> Halves:
    smiles, samples = [*dataset._data.smiles], []
    for part in (halves.train, halves.test):
        some = part[:: len(part) // NUM_SMILES]
        samples.append(take_sample([model], statistics, embed(smiles, molecules, some).molecules))
    return samples[0], samples[1]


@pytest.fixture(scope="module")
def bars(statistics: FeatureStatistics, given: Halves, rdkit: Halves) -> ErrorBars:
    return ErrorBars.fit(statistics, {"given": given[0], "rdkit": rdkit[0]}, "eV")


def test_intervals_cover_what_they_say(bars: ErrorBars, given: Halves) -> None:
    test, intervals = given[1], bars.calibrations["given"].intervals
    assert len(test.error) > 10_000 and intervals.num == 10_000
    found = coverage(test.error, intervals.half_width(test.r), test.r, intervals.levels)
    overall, quartile = found.deviation()
    assert overall < 1.5 and quartile < 3
    constant = ErrorBars.fit(bars.statistics, {"given": given[0]._replace(r=0 * given[0].r)}, "eV")
    width = constant.calibrations["given"].intervals.half_width(0 * test.r)
    overall, quartile = coverage(test.error, width, test.r, intervals.levels).deviation()
    assert overall < 1.5 and quartile > 5  # control: one width for all is wrong where R is large


def test_rdkit_geometries_need_their_own_intervals(
    bars: ErrorBars, given: Halves, rdkit: Halves
) -> None:
    test = rdkit[1]
    assert len(test.error) > 0.95 * NUM_SMILES
    assert test.error.mean() > 3 * given[1].error.mean()
    inside = {}
    for geometry in ("given", "rdkit"):
        intervals = bars.calibrations[geometry].intervals
        width = intervals.half_width(test.r)
        inside[geometry] = (test.error[:, None] <= width).mean(0)
    np.testing.assert_allclose(inside["rdkit"], (0.5, 0.9, 0.95), atol=0.08)
    assert inside["given"][1] < 0.6  # control


def test_flag_hits_five_percent_of_molecules_like_the_training_data(
    bars: ErrorBars, given: Halves, rdkit: Halves
) -> None:
    for geometry, test, tolerance in (("given", given[1], 0.01), ("rdkit", rdkit[1], 0.04)):
        alarms = (test.distance > bars.calibrations[geometry].threshold).mean()
        assert alarms == pytest.approx(0.05, abs=tolerance)


def test_flag_tells_stretched_bonds(
    model: HIPNN, bars: ErrorBars, molecules: PackedMolecules, halves: Split, given: Halves
) -> None:
    batches = [molecules.gather(halves.test[k : k + 1]) for k in range(0, 10_000, 40)]
    usual = [Data(z=batch.z, pos=batch.pos) for batch in batches]
    far = [changed for k, data in enumerate(usual) if (changed := stretched(data, 0.3, k))]
    judged = CalibratedModel([model], bars).predict([*usual, *far]).judgement
    assert judged is not None and len(far) > 240
    same, others = judged.distance[: len(usual)].numpy(), judged.distance[len(usual) :].numpy()
    assert auc(given[1].distance, others).low > 0.9
    assert auc(given[1].distance, same).auc == pytest.approx(0.5, abs=0.06)  # control
    assert float(judged.unlike_training[len(usual) :].double().mean()) > 0.8


def test_flag_tells_molecules_of_twelve_and_more_heavy_atoms(
    model: HIPNN, bars: ErrorBars, rdkit: Halves
) -> None:
    large = [from_smiles(drug.smiles) for drug in drugs()[::4]]
    judged = CalibratedModel([model], bars).predict(large, "rdkit").judgement
    assert judged is not None
    assert auc(rdkit[1].distance, judged.distance.numpy()).low > 0.9
    assert float(judged.unlike_training.double().mean()) > 0.75
    assert bool(torch.isfinite(judged.half_width).all())
