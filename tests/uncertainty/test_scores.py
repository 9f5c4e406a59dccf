"""Coverage, CRPS and AUC against their definitions, and what is reported of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from hipnn_pyg.uncertainty import LEVELS, ConformalIntervals, Sample, conformal_quantile
from hipnn_pyg.uncertainty.assess import assess, compare
from hipnn_pyg.uncertainty.error_bars import Calibration
from hipnn_pyg.uncertainty.scores import CRPS_LEVELS, auc, coverage, crps, ratio


def test_crps_of_a_normal_distribution() -> None:
    """Against the closed form, CRPS = s [y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi)], y = e / s."""
    y = np.linspace(0, 4, 41)
    width = np.tile(2.5 * norm.ppf((1 + np.array(CRPS_LEVELS)) / 2), (41, 1))
    exact = 2.5 * (y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(crps(2.5 * y, width), exact, atol=0.03)


def test_crps_is_best_for_the_true_width() -> None:
    error = np.abs(np.random.default_rng(0).normal(size=20_000))
    true = norm.ppf((1 + np.array(CRPS_LEVELS)) / 2) * np.ones((len(error), 1))
    best = crps(error, true)
    for factor in (0.7, 1.4):
        relative, standard_error = ratio(crps(error, factor * true), best)
        assert relative > 1 + 5 * standard_error


def test_ratio_of_means_over_the_same_molecules() -> None:
    """Its standard error is the scatter over samples; that of independent ones would be larger."""
    random = np.random.default_rng(0)

    def draw() -> tuple[float, float]:
        reference = random.exponential(size=400)
        return ratio(0.45 * reference + 0.05 * random.exponential(size=400), reference)

    found, said = np.array([draw() for _ in range(400)]).T
    assert found.mean() == pytest.approx(0.5, abs=0.001)
    assert said.mean() == pytest.approx(found.std(), rel=0.1) and said.mean() < 0.15 / np.sqrt(400)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    random = np.random.default_rng(0)
    usual = random.integers(0, 8, 60).astype(float)  # with ties
    foreign = random.integers(3, 10, 40).astype(float)
    pairs = np.sign(foreign[:, None] - usual) / 2 + 0.5
    found = auc(usual, foreign)
    assert found.auc == pytest.approx(pairs.mean(), abs=1e-12)
    assert found.low < found.auc < found.high and found.high - found.low < 0.25
    assert auc(foreign, usual).auc == pytest.approx(1 - found.auc)
    assert auc(usual, usual).auc == pytest.approx(0.5)
    assert auc(usual, usual + 100) == (1, 1, 1)
    assert auc(usual, foreign) == found  # the draws are seeded


def test_bootstrap_interval_shrinks_with_the_sample() -> None:
    """As the standard error of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 837, 1988)."""
    random = np.random.default_rng(1)
    for number in (100, 1600):
        usual, foreign = random.normal(0, 1, number), random.normal(1, 1, 2 * number)
        area = auc(usual, foreign)
        assert area.low - 0.02 < norm.cdf(np.sqrt(0.5)) < area.high + 0.02
        above = usual[:, None] < foreign
        variance = above.mean(1).var() / number + above.mean(0).var() / (2 * number)
        assert area.high - area.low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.12)


def test_coverage_counts_in_quartiles_of_r() -> None:
    r = np.repeat([1.0, 2.0, 3.0, 4.0], 10)
    error = np.tile(np.arange(10.0), 4)
    width = np.column_stack([np.repeat([5.0, 6.0, 7.0, 8.0], 10), np.full(40, 8.5)]) - 0.5
    found = coverage(error, width, r, (0.5, 0.9))
    np.testing.assert_allclose(found.quartiles, [[0.5, 0.9], [0.6, 0.9], [0.7, 0.9], [0.8, 0.9]])
    np.testing.assert_allclose(found.overall, [0.65, 0.9])
    np.testing.assert_allclose(found.deviation(), (15, 30))
    tied = coverage(error, width, np.ones(40), (0.5, 0.9))  # no quartile is ever empty
    assert np.isfinite(tied.quartiles).all()
    np.testing.assert_allclose(tied.quartiles.mean(0), tied.overall)
    with pytest.raises(ValueError, match="four or more molecules, not 3"):
        coverage(error[:3], width[:3], r[:3], (0.5, 0.9))


def sample(seed: int) -> Sample:
    """Errors in eV that follow R and, at one R, the spread."""
    random = np.random.default_rng(seed)
    r, noise = 10 ** random.normal(0, 0.3, 4000), 10 ** random.normal(0, 0.3, 4000)
    error = np.abs(random.normal(size=4000)) * r * noise
    return Sample(error, r, 0.1 * r**0.5 * noise, random.exponential(size=4000))


def test_what_r_and_the_spread_each_add() -> None:
    calibration, test = sample(0), sample(1)
    rows = {row["kind"]: row for row in compare(calibration, test)}
    assert list(rows) == ["constant", "R", "ensemble", "R and ensemble"]
    known = {"R": (None, 10), "ensemble": (True, 1), "R and ensemble": (True, 10)}
    for name, (spread, bins) in {"constant": (None, 1), **known}.items():
        given, seen = (s.spread if spread else None for s in (calibration, test))
        fitted = ConformalIntervals.fit(calibration.error, calibration.r, given, (0.9,), bins)
        width, row = fitted.half_width(test.r, seen)[:, 0], rows[name]
        assert row["mean_half_width_90"] == pytest.approx(width.mean())
        assert row["coverage_90"] == np.mean(test.error <= width) == pytest.approx(0.9, abs=0.015)
        assert row["crps_relative"] == pytest.approx(row["crps"] / rows["constant"]["crps"])
    constant = conformal_quantile(calibration.error, 0.9)
    assert rows["constant"]["mean_half_width_90"] == pytest.approx(constant)
    scores = [row["crps_relative"] for row in rows.values()]
    assert scores[0] == 1 and max(scores[1:]) < 0.97
    alone = compare(calibration._replace(spread=None), test._replace(spread=None))
    assert alone == [*rows.values()][:2]


def test_what_is_reported_of_error_bars() -> None:
    calibration, test = sample(0), sample(1)
    intervals = ConformalIntervals.fit(calibration.error, calibration.r, calibration.spread)
    report = assess(Calibration(intervals, 3.0), test, "eV")
    width = intervals.half_width(test.r, test.spread)
    inside = test.error[:, None] <= width
    assert report["levels"] == [*LEVELS] and report["errors_grow_with_R"]
    assert report["coverage"] == inside.mean(0).tolist()
    assert report["mean_half_width"] == width.mean(0).tolist()
    low, middle, high = report["quartiles_of_R"]
    lowest, *_, highest = report["coverage_in_quartiles_of_R"]
    np.testing.assert_allclose(lowest, inside[test.r < low].mean(0), atol=1e-12)
    np.testing.assert_allclose(highest, inside[test.r > high].mean(0), atol=1e-12)
    assert middle == np.median(test.r) and report["num_calibration"] == report["num_test"] == 4000
    far = (test.distance > 3) | intervals.beyond(test.r)
    assert report["false_alarms"] == far.mean() == pytest.approx(np.exp(-3), abs=0.01)
    assert report["statistics"]["unit"] == "kcal/mol"
    assert report["statistics"]["mae"] == pytest.approx(23.06055 * test.error.mean(), rel=1e-5)
