"""Conformal intervals: exact coverage, coverage given R, what is refused, what lies beyond."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hipnn_pyg.uncertainty import conformal
from hipnn_pyg.uncertainty.conformal import ConformalIntervals, conformal_quantile, fewest
from hipnn_pyg.uncertainty.scores import CRPS_LEVELS, coverage, crps

LEVELS = (0.5, 0.9, 0.95)


def sample(seed: int, number: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors whose scale follows R and, more closely, the spread of an ensemble."""
    random = np.random.default_rng(seed)
    r = 10 ** random.normal(-0.5, 0.3, number)
    spread = 10 ** random.normal(-0.3, 0.3, number) * r**0.5
    return np.abs(random.normal(size=number)) * (0.1 + spread), r, spread


def covered(intervals: ConformalIntervals, spread_known: bool = False, seed: int = 1) -> tuple:
    error, r, spread = sample(seed)
    width = intervals.half_width(r, spread if spread_known else None)
    return coverage(error, width, r, intervals.levels).deviation()


def test_quantile_is_an_order_statistic() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, 100))  # 99 of them
    assert [conformal_quantile(scores, p) for p in LEVELS] == [50, 90, 95]
    assert conformal_quantile(np.arange(1, 20), 0.95) == 19  # the largest of just enough
    assert 100 * 0.55 > 55 == conformal_quantile(scores, 0.55)  # whatever float64 makes of it
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"between 0 and 1, not {level}"):
            conformal_quantile(scores, level)


@pytest.mark.parametrize(("level", "needed"), [(0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_small_sets_are_refused(level: float, needed: int) -> None:
    assert fewest(level) == needed
    assert conformal_quantile(np.ones(needed), level) == 1
    with pytest.raises(ValueError, match=f"at least {needed} calibration molecules, not"):
        conformal_quantile(np.ones(needed - 1), level)
    few = np.linspace(0.1, 1, needed)
    assert ConformalIntervals.fit(few, few, levels=(level,)).half_width(few).shape == (needed, 1)
    with pytest.raises(ValueError, match=f"needs at least {needed}"):
        ConformalIntervals.fit(few[1:], few[1:], levels=(level,))
    with pytest.raises(ValueError, match="95 % needs at least 19"):  # not only 50 % its one
        ConformalIntervals.fit(few[:0], few[:0])


@pytest.mark.parametrize("level", [0.1, 0.5, 0.75, 0.8, 0.9, 0.95, 0.975, 0.99])
def test_an_ensemble_needs_more_but_no_more_than_that(level: float) -> None:
    """One in five tells how the spread counts."""
    needed = fewest(level, with_spread=True)
    error, r, spread = sample(0, needed)
    fitted = ConformalIntervals.fit(error, r, spread, levels=(level,))
    assert fitted.half_width(r, spread).shape == (needed, 1)
    with pytest.raises(ValueError, match=f"at least {fewest(level)} calibration molecules, not"):
        ConformalIntervals.fit(error[1:], r[1:], spread[1:], levels=(level,))


def test_only_a_fifth_tells_how_the_spread_counts() -> None:
    """The quantiles come from other molecules, else they would know what they are divided by."""
    error, r, spread = sample(0, 100)
    slope = ConformalIntervals.fit(error, r, spread).slope
    changed = [np.where(np.arange(100) == k, 2 * error, error) for k in range(100)]
    assert sum(ConformalIntervals.fit(e, r, spread).slope != slope for e in changed) == 20


def test_a_spread_that_says_nothing_does_not_count() -> None:
    error, r, spread = sample(0, 1000)
    most = np.random.default_rng(1).random(1000) < 0.6
    alone = ConformalIntervals.fit(error, r).half_width(r)
    assert ConformalIntervals.fit(error, r, spread).slope > 0.5  # control
    for other in (np.full(1000, 0.3), np.where(most, 0.0, spread), 1 / spread):
        fitted = ConformalIntervals.fit(error, r, other)
        assert fitted.slope == 0
        np.testing.assert_allclose(fitted.half_width(r, 10 * other), alone, rtol=0.3)
    for number, counts in ((99, False), (100, True)):  # of 19 nothing can be told
        slope = ConformalIntervals.fit(error[:number], r[:number], spread[:number]).slope
        assert (slope > 0) is counts
    nothing = ConformalIntervals.fit(0 * error, r, spread).half_width(r, spread)
    assert nothing.max() < 1e-300


@pytest.mark.parametrize("number", [999, 2000, 5000])
def test_high_levels_have_larger_bins(number: int) -> None:
    """A level that all molecules suffice for is not refused because a bin has too few."""
    error, r, _ = sample(3, number)
    intervals = ConformalIntervals.fit(error, r, levels=(0.5, 0.9, 0.999))
    fewer = ConformalIntervals.fit(error, r, levels=(0.5, 0.9))
    assert 1 <= len(intervals.log_r) <= len(fewer.log_r)
    assert len(intervals.log_r) < len(fewer.log_r) or number == 999  # control
    error, r, _ = sample(4)
    assert (error <= intervals.half_width(r)[:, 2]).mean() > 0.995
    with pytest.raises(ValueError, match="at least 999"):
        ConformalIntervals.fit(error[:998], r[:998], levels=(0.999,))


def test_coverage_over_many_calibrations_is_exact() -> None:
    """With n = 19 the 95 % interval covers 19/20, and with n = 24 still: 24/25."""
    random = np.random.default_rng(3)
    for n, expected in ((19, 19 / 20), (24, 24 / 25), (39, 38 / 40)):
        draws = random.exponential(size=(20_000, n + 1))
        bound = [conformal_quantile(row, 0.95) for row in draws[:, :-1]]
        assert np.mean(draws[:, -1] <= bound) == pytest.approx(expected, abs=0.005)


def test_the_joined_curve_covers_as_much_as_its_bins_would() -> None:
    """Errors that R foretells steeply: between and beyond the bins' medians the curve is wrong, the
    coverage over all is not. Control: without the factors it is."""
    as_fitted, without = [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        r = random.lognormal(0, 1.0, 3600)
        error = np.abs(random.normal(size=3600)) * r**3
        fitted = ConformalIntervals.fit(error[:1600], r[:1600])
        assert len(fitted.log_r) == 4
        as_fitted.append((error[1600:, None] <= fitted.half_width(r[1600:])).mean(0))
        bins = conformal._bins(np.log(r[:1600]), 4)
        bare = [[conformal_quantile(error[bin], p) for p in LEVELS] for bin in bins]
        without_factors = replace(fitted, log_q=np.log(bare))
        without.append((error[1600:, None] <= without_factors.half_width(r[1600:])).mean(0))
    np.testing.assert_allclose(np.mean(as_fitted, 0), LEVELS, atol=0.008)
    assert np.abs(np.mean(without, 0) - LEVELS).max() > 0.02


def test_the_order_of_the_molecules_does_not_matter_much() -> None:
    """Sorted by error, as a data set sorted by size may be."""
    error, r, spread = sample(0)
    order = np.argsort(error)
    sorted_ones = ConformalIntervals.fit(error[order], r[order], spread[order])
    assert max(covered(sorted_ones, spread_known=True)) < 2.5


def test_levels_must_ascend() -> None:
    error, r, _ = sample(0, 500)
    for levels in ((0.9, 0.5), (0.5, 0.5), ()):
        with pytest.raises(ValueError, match="levels must ascend"):
            ConformalIntervals.fit(error, r, levels=levels)
    with pytest.raises(ValueError, match="equally many"):
        ConformalIntervals.fit(error, r[1:])


def test_whether_errors_grow_with_r() -> None:
    error, r, _ = sample(0)
    assert ConformalIntervals.fit(error, r).errors_grow
    assert ConformalIntervals.fit(error, 1 / r).errors_grow is False
    assert ConformalIntervals.fit(error[:300], r[:300]).errors_grow is None  # one bin
    order = np.argsort(r)
    humped = error.copy()
    humped[order[2000:4000]] *= 100  # the second bin: only the first and the last count
    assert ConformalIntervals.fit(humped, r).errors_grow
    humped[order[:2000]] *= 10
    assert ConformalIntervals.fit(humped, r).errors_grow is False  # control


def test_errors_that_the_spread_follows_grow_with_r_all_the_same() -> None:
    """Divided by the power of the spread they fall."""
    random = np.random.default_rng(0)
    r = random.uniform(1, 2, 4000)
    error = np.abs(random.normal(size=4000)) * r
    fitted = ConformalIntervals.fit(error, r, r * random.uniform(0.9, 1.1, 4000))
    assert fitted.log_q[-1, 1] < fitted.log_q[0, 1] and fitted.errors_grow


def test_the_unit_of_energy_does_not_matter() -> None:
    """Also where most errors are 0, as those of a model that knows its molecules may be."""
    error, r, _ = sample(0, 3000)
    error[np.random.default_rng(1).permutation(3000)[:2000]] = 0.0
    width = ConformalIntervals.fit(error, r).half_width(r)
    assert (width > 0).all() and width[:, 0].max() < 1e-3 * width[:, 1].min()
    again = ConformalIntervals.fit(1e-4 * error, r).half_width(r)
    np.testing.assert_allclose(again, 1e-4 * width, rtol=1e-6)
    assert ConformalIntervals.fit(0 * error, r).half_width(r).max() < 1e-300


@pytest.mark.parametrize("known", [0.0, 1e-9])
@pytest.mark.parametrize("number", [100, 1000])
def test_what_an_ensemble_knows_exactly_does_not_widen_the_rest(number: int, known: float) -> None:
    """As lone atoms: every second error is (next to) nothing, whatever the spread."""
    error, r, spread = sample(0, number)
    exact = np.random.default_rng(1).random(number) < 0.5
    fitted = ConformalIntervals.fit(np.where(exact, known, error), r, spread)
    other_error, other_r, other_spread = sample(1)
    width = fitted.half_width(other_r, other_spread)[:, 1]
    assert (other_error <= width).mean() == pytest.approx(0.8, abs=0.1)  # and of all of them 90 %
    assert width.mean() < 2 * np.quantile(other_error, 0.8) and 0 < fitted.slope < 3


def test_coverage_holds_in_each_quartile_of_r() -> None:
    error, r, _ = sample(0)
    overall, quartile = covered(ConformalIntervals.fit(error, r))
    assert overall < 1.0 and quartile < 2.5
    overall, quartile = covered(ConformalIntervals.fit(error, r, most_bins=1))  # control
    assert overall < 1.0 and quartile > 10


def test_the_spread_sharpens_and_a_random_one_does_not() -> None:
    error, r, spread = sample(0)
    test_error, test_r, test_spread = sample(1)
    noise = np.random.default_rng(5).permutation

    def score(known: np.ndarray | None, test: np.ndarray | None) -> float:
        fitted = ConformalIntervals.fit(error, r, known, levels=CRPS_LEVELS)
        width = fitted.half_width(test_r, test)
        observed = (test_error[:, None] <= width).mean(0)
        np.testing.assert_allclose(observed, CRPS_LEVELS, atol=0.015)
        return float(crps(test_error, width).mean())

    alone = score(None, None)
    assert score(spread, test_spread) < 0.96 * alone
    assert score(noise(spread), noise(test_spread)) == pytest.approx(alone, rel=0.01)
    both = ConformalIntervals.fit(error, r, spread)
    assert max(covered(both, spread_known=True)) < 2.5 and both.slope > 0.5
    with pytest.raises(ValueError, match="an ensemble, whose spread it needs"):
        both.half_width(test_r)
    with pytest.raises(ValueError, match="for one model"):
        ConformalIntervals.fit(error, r).half_width(test_r, test_spread)


def test_beyond_the_calibrated_r_the_widest_bin_counts() -> None:
    random = np.random.default_rng(0)
    r = random.uniform(1, 2, 10_000)
    error = np.abs(random.normal(size=len(r))) * (3 - r)  # errors fall with R here
    intervals = ConformalIntervals.fit(error, r)
    places = np.array([1.02, 1.98, 0.5, 4.0])
    width = intervals.half_width(places)
    assert (width[0] > 1.5 * width[1]).all()
    np.testing.assert_allclose(width[2], width.max(0))
    np.testing.assert_allclose(width[3], width.max(0))
    assert intervals.beyond(places).tolist() == [False, False, True, True]
    assert intervals.r_range == (r.min(), r.max())
    assert intervals.r_quantiles[100] == pytest.approx(np.median(r))


def test_half_widths_are_smooth_in_r_and_ordered_in_the_level() -> None:
    error, r, _ = sample(0)
    intervals = ConformalIntervals.fit(error, r)
    fine = np.geomspace(*intervals.r_range, 20_001)
    width = intervals.half_width(fine)
    assert np.abs(np.diff(np.log(width), axis=0)).max() < 1e-2  # no steps
    assert (np.diff(width, axis=1) > 0).all()
    assert width[-1, 1] > 2 * width[0, 1]
    crossed = replace(intervals, log_q=intervals.log_q[:, ::-1]).half_width(fine)
    np.testing.assert_array_equal(crossed, np.tile(width[:, 2:], 3))  # no narrower than below


@pytest.mark.parametrize("with_spread", [False, True])
def test_json_keeps_every_bit(with_spread: bool) -> None:
    error, r, spread = sample(0, 3000)
    known = spread if with_spread else None
    intervals = ConformalIntervals.fit(error, r, known)
    again = ConformalIntervals.from_json(json.loads(json.dumps(intervals.to_json())))
    np.testing.assert_array_equal(again.half_width(r, known), intervals.half_width(r, known))
    assert again.num == 3000 and again.levels == LEVELS
    older = intervals.to_json()
    older["r_range"] = [older["r_quantiles"][0], older.pop("r_quantiles")[-1]]
    assert older.pop("errors_grow") is True
    again = ConformalIntervals.from_json(older)
    assert again.errors_grow is not with_spread  # of an ensemble they are divided by s
    np.testing.assert_array_equal(again.half_width(r, known), intervals.half_width(r, known))


def test_equal_values_of_r_are_one_bin() -> None:
    error = np.abs(np.random.default_rng(0).normal(size=6000))
    two = np.where(np.arange(6000) % 3, 5.0, 9.0)
    width = ConformalIntervals.fit(np.where(two == 5, error, 2 * error), two).half_width(
        np.array([5.0, 9.0])
    )
    np.testing.assert_allclose(width[1] / width[0], 2, rtol=0.1)
    assert len(ConformalIntervals.fit(error, np.full(6000, 7.0)).log_r) == 1
    for number, tenths in ((2000, 4), (4000, 2)):  # which alone would be too few
        r = np.where(np.arange(number) % 10 < tenths, 5.0, 9.0)
        assert len(ConformalIntervals.fit(error[:number], r, levels=(0.999,)).log_r) == 1
    zero = ConformalIntervals.fit(error, np.zeros(6000)).half_width(np.zeros(1))
    np.testing.assert_allclose(zero[0], [conformal_quantile(error, p) for p in LEVELS])


def test_infinite_scores_are_the_largest() -> None:
    """As distances of molecules with elements that training hardly had."""
    scores = np.arange(1.0, 1000.0)
    spoiled = np.where(scores < 41, np.inf, scores)
    assert conformal_quantile(spoiled, 0.9) == 940.0  # the 900th after the 40 largest
    with pytest.raises(ValueError, match="99 % quantile of 999 .* is inf, as 40 of them"):
        conformal_quantile(spoiled, 0.99)
    with pytest.raises(ValueError, match="1 of them are not finite"):
        conformal_quantile(np.where(scores == 7, np.nan, scores), 0.9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    good = np.linspace(0.1, 1, 50)
    spoiled = np.where(np.arange(50) == 7, bad, good)
    for arguments in ((spoiled, good), (good, spoiled), (good, good, spoiled)):
        with pytest.raises(ValueError, match="finite"):
            ConformalIntervals.fit(*arguments)
