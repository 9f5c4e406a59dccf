"""Coverage, CRPS and AUC against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from hipnn_pyg.uncertainty.scores import CRPS_LEVELS, auc, coverage, crps


def test_crps_of_a_normal_distribution() -> None:
    """Against the closed form, CRPS = s [y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi)], y = e / s."""
    y = np.linspace(0, 4, 41)
    width = np.tile(2.5 * norm.ppf((1 + np.array(CRPS_LEVELS)) / 2), (41, 1))
    exact = 2.5 * (y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / np.sqrt(np.pi))
    ours = [crps(2.5 * y[k : k + 1], width[k : k + 1]) for k in range(41)]
    np.testing.assert_allclose(ours, exact, atol=0.03)


def test_crps_is_best_for_the_true_width() -> None:
    error = np.abs(np.random.default_rng(0).normal(size=20_000))
    true = norm.ppf((1 + np.array(CRPS_LEVELS)) / 2) * np.ones((len(error), 1))
    best = crps(error, true)
    assert best < crps(error, 0.7 * true) and best < crps(error, 1.4 * true)


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
    random = np.random.default_rng(1)
    sizes = []
    for number in (100, 1600):
        area = auc(random.normal(0, 1, number), random.normal(1, 1, number))
        assert area.low - 0.02 < norm.cdf(np.sqrt(0.5)) < area.high + 0.02
        sizes.append(area.high - area.low)
    assert sizes[0] / sizes[1] == pytest.approx(4, rel=0.3)


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
