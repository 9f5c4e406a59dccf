"""Spearman's rank correlation with a bootstrap confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

Floats = NDArray[np.float64]


class RankCorrelation(NamedTuple):
    """Spearman's rho, and the interval that holds it with 95 % confidence."""

    rho: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.rho:.3f} [{self.low:.3f}, {self.high:.3f}]"


def rank_correlation(
    samples: Sequence[tuple[Floats, Floats]], resamples: int = 1000, seed: int = 0
) -> RankCorrelation:
    """Mean over samples of Spearman's rank correlation, with its percentile bootstrap interval.

    The molecules of every sample are drawn anew, with replacement, ``resamples`` times; the
    interval is from the 2.5th to the 97.5th percentile of the mean correlation.

    Args:
        samples: pairs of equally long arrays, say R and abs(error) of one test set.
        resamples: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: no sample, or one with fewer than 10 pairs or values that are all equal.
    """
    if not samples:
        raise ValueError("no samples: give at least one pair of arrays")
    ranked = []
    for x, y in samples:
        if len(x) < 10 or len(x) != len(y):
            raise ValueError(
                f"a rank correlation with an interval needs 10 or more pairs, not {len(x)} and "
                f"{len(y)} values"
            )
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            raise ValueError("a rank correlation needs values that vary: these are all equal")
        ranked.append(tuple(rankdata(values, "dense").astype(np.int64) for values in (x, y)))
    random = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for k in range(resamples):
        each = []
        for a, b in ranked:
            chosen = random.integers(len(a), size=len(a))
            each.append(np.corrcoef(_mid_ranks(a[chosen]), _mid_ranks(b[chosen]))[0, 1])
        drawn[k] = np.mean(each)
    rho = float(np.mean([spearmanr(x, y).statistic for x, y in samples]))
    if not np.isfinite(drawn).all():
        raise ValueError("a rank correlation needs values that vary: these are nearly all equal")
    low, high = np.quantile(drawn, (0.025, 0.975))
    return RankCorrelation(rho, float(low), float(high))


def _mid_ranks(values: NDArray[np.int64]) -> Floats:
    """Ranks of integers, ties sharing the mean of theirs: counted, where sorting costs more."""
    counts = np.bincount(values)
    return (np.cumsum(counts) - (counts - 1) / 2)[values]
