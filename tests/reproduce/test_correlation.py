"""Spearman's rank correlation: its value, its interval, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from hipnn_pyg.reproduce.correlation import _mid_ranks, rank_correlation


def sample(seed: int, size: int = 300, slope: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=size)
    return x, slope * x + random.normal(size=size)


def test_value_is_scipys_and_ranks_do_not_see_the_scale() -> None:
    x, y = sample(0)
    ours = rank_correlation([(x, y)])
    assert ours.rho == spearmanr(x, y).statistic
    assert ours.low < ours.rho < ours.high
    assert rank_correlation([(np.exp(x), y**3)]) == ours
    assert str(ours) == f"{ours.rho:.3f} [{ours.low:.3f}, {ours.high:.3f}]"


def test_ranks_with_ties() -> None:
    values = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5])
    np.testing.assert_array_equal(_mid_ranks(values), rankdata(values))


def test_the_interval_covers_the_truth_in_about_95_of_100_samples() -> None:
    slope = 0.5
    truth = 6 / np.pi * np.arcsin(slope / np.sqrt(1 + slope**2) / 2)  # bivariate normal
    inside = 0
    for seed in range(100):
        _, low, high = rank_correlation([sample(seed)], resamples=200)
        inside += low < truth < high
    assert 88 <= inside <= 100


def test_unrelated_numbers_and_opposite_ones() -> None:
    x, y = sample(1, slope=0.0)
    unrelated = rank_correlation([(x, y)])
    assert unrelated.low < 0 < unrelated.high
    assert rank_correlation([(x, -x)])[:] == pytest.approx((-1, -1, -1))


def test_several_samples_are_averaged_and_narrow_the_interval() -> None:
    samples = [sample(seed) for seed in range(8)]
    one, all_of_them = rank_correlation(samples[:1]), rank_correlation(samples)
    each = [spearmanr(x, y).statistic for x, y in samples]
    assert all_of_them.rho == pytest.approx(np.mean(each))
    ratio = (one.high - one.low) / (all_of_them.high - all_of_them.low)
    assert ratio == pytest.approx(np.sqrt(8), rel=0.25)


def test_bad_samples() -> None:
    x, y = sample(0)
    for bad, message in (
        ([], "no samples"),
        ([(x[:9], y[:9])], "10 or more"),
        ([(x, y[1:])], "300 and 299"),
        ([(np.ones(300), y)], "vary"),
    ):
        with pytest.raises(ValueError, match=message):
            rank_correlation(bad)
