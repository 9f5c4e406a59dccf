r"""Split-conformal error bars whose width follows R and, for an ensemble, the models' spread.

Of n calibration errors, the :math:`\lceil (n + 1) p \rceil`-th smallest is :math:`q_p`. A molecule
drawn as the calibration molecules were then has

.. math:: P(|\hat E - E| \le q_p) \ge p

whatever the model and the distribution of its errors (Vovk, Gammerman and Shafer, *Algorithmic
Learning in a Random World*, 2005; Angelopoulos and Bates, arXiv:2107.07511). Two refinements:

- **Mondrian bins of R** (Vovk et al., 2003; "Mondrian" because bins tile the input space): each bin
  has quantiles of its own, so that coverage holds where R is small and where it is large. Between
  the bins' medians :math:`\log q_p` is linear in log R, which leaves no steps, and beyond the first
  and the last it is constant. What the joined curve covers too much or too little, one factor for
  each level makes up for: over all calibration molecules as many errors lie inside as in the
  formula above. With one bin that is the formula; with more, nothing is promised of one R alone,
  and what was measured on test molecules stands in the model's files.
- **A scale** (normalised conformal prediction: Papadopoulos et al. 2008; Lei et al.,
  arXiv:1604.04173): errors of an ensemble are divided by :math:`s = (\sigma + \beta)^a`, with the
  models' sample standard deviation :math:`\sigma`, its median :math:`\beta`, and the slope a of
  :math:`\log |e|` against :math:`\log(\sigma + \beta)`; intervals are :math:`s\, q_p(R)`. The slope
  comes from a fifth of the calibration molecules, drawn at random, the quantiles from the others.

Quantile regression in log R, conformalised (Romano, Patterson and Candès, arXiv:1905.03222),
covered the quartiles of R as well within the sampling error, with more to fit. Nothing is promised
for molecules of another kind than the calibration's: the flag of
:mod:`hipnn_pyg.uncertainty.distance` is for those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVELS = (0.5, 0.9, 0.95)
"""Coverage of the intervals that are kept with a model."""

MOST_BINS = 10
BIN_SIZE = 400
"""Bins of R hold at least this many molecules, where there are enough for two bins."""

SMALLEST = 1e-6
"""Quantiles below this share of the largest error count as this: errors are divided by them."""
SMALLEST_R = 1e-12
"""R below this counts as this: its logarithm is taken."""
SCALING = 5
"""Of an ensemble one in so many calibration molecules tells how the spread counts."""
LEAST = 0.01
"""Errors of an ensemble below this share of their 90 % quantile tell no more of the spread."""
STEPS = 200
"""R of the calibration molecules is kept as quantiles, so many steps from the smallest up."""
ARRAYS = ("log_r", "log_q", "r_quantiles")
"""Of :class:`ConformalIntervals`: lists in JSON."""


def fewest(level: float, with_spread: bool = False) -> int:
    """The smallest calibration set that has a quantile at this level: p / (1 - p), rounded up.

    Args:
        level: p, between 0 and 1.
        with_spread: of an ensemble, which sets one in :data:`SCALING` aside.

    Raises:
        ValueError: a level outside of these.
    """
    if not 0 < level < 1:
        raise ValueError(f"a level must lie between 0 and 1, not {level}")
    least = math.ceil(round(level / (1 - level), 9))
    return least + (least - 1) // (SCALING - 1) if with_spread else least


def conformal_quantile(scores: ArrayLike, level: float) -> float:
    """The ceil((n + 1) p)-th smallest of n calibration scores.

    Args:
        scores: n scores; infinite ones are the largest.
        level: p.

    Raises:
        ValueError: too few scores for this level, one that is not a number, or an infinite result.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if len(ordered) < fewest(level):
        raise ValueError(
            f"an interval of {100 * level:g} % needs at least {fewest(level)} calibration "
            f"molecules, not {len(ordered)}: set more aside, or ask for a lower level"
        )
    place = math.ceil(round((len(ordered) + 1) * level, 9))
    quantile = float(ordered[place - 1])
    if np.isnan(ordered).any() or not np.isfinite(quantile):
        raise ValueError(
            f"the {100 * level:g} % quantile of {len(ordered)} calibration molecules is "
            f"{quantile}, as {int((~np.isfinite(ordered)).sum())} of them are not finite: look at "
            "those first"
        )
    return quantile


@dataclass(frozen=True)
class ConformalIntervals:
    """Half-widths of intervals around a prediction, as a function of R and the spread.

    Attributes:
        levels: coverage of each interval, ascending, ``[L]``.
        log_r: median of log R in each bin, ascending, ``[B]``.
        log_q: log of the quantiles of abs(error) / s there, ``[B, L]``.
        r_quantiles: of the calibration molecules' R, from the smallest to the largest, in equal
            steps, ``[STEPS + 1]``.
        beta: added to the spread, in the unit of the energies; None for no spread.
        slope: a, the power of the spread.
        num: calibration molecules.
        errors_grow: whether errors (90 %), not divided by s, are larger in the last bin of R than
            in the first; None: one bin.
    """

    levels: tuple[float, ...]
    log_r: Floats
    log_q: Floats
    r_quantiles: Floats
    beta: float | None
    slope: float
    num: int
    errors_grow: bool | None

    @classmethod
    def fit(
        cls,
        error: Floats,
        r: Floats,
        spread: Floats | None = None,
        levels: tuple[float, ...] = LEVELS,
        most_bins: int = MOST_BINS,
    ) -> ConformalIntervals:
        """Calibrate on molecules that played no part in training, drawn at random.

        Args:
            error: abs(prediction - target), ``[n]``.
            r: non-hierarchicality, ``[n]``.
            spread: sample standard deviation over the models, ``[n]``; None for one model.
            levels: coverage of each interval, ascending.
            most_bins: bins of R at most; 1 leaves R out.

        Raises:
            ValueError: too few molecules for the highest level; values that are not finite; levels
                that do not ascend.
        """
        inputs = [error, r] if spread is None else [error, r, spread]
        if not all(np.isfinite(values).all() and len(values) == len(error) for values in inputs):
            raise ValueError("errors, R and spread must be finite and equally many")
        if not levels or list(levels) != sorted(set(levels)):
            raise ValueError(f"levels must ascend, not {levels}")
        num, scale, beta, slope = len(error), np.ones(len(error)), None, 0.0
        r_quantiles = np.quantile(r, np.linspace(0, 1, STEPS + 1)) if num else np.zeros(1)
        if spread is not None:
            drawn = np.random.default_rng(0).permutation(num)
            aside, rest = np.split(drawn, [num // SCALING])
            beta, slope = _scale(error[aside], spread[aside])
            error, r, scale = error[rest], r[rest], (spread[rest] + beta) ** slope
        scores = error / scale
        conformal_quantile(scores, max(levels))  # refuses too few

        log_r = np.log(np.maximum(r, SMALLEST_R))
        least = max(BIN_SIZE, 2 * fewest(max(levels)))  # a bin may have half as many
        bins = _bins(log_r, min(most_bins, max(1, len(scores) // least)))
        grow: bool | None = None
        if len(bins) > 1:
            first, last = (conformal_quantile(error[bins[k]], 0.9) for k in (0, -1))
            grow = last > first
        medians = np.array([np.median(log_r[bin]) for bin in bins])
        quantiles = [[conformal_quantile(scores[bin], p) for p in levels] for bin in bins]
        log_q = np.log(np.maximum(quantiles, SMALLEST * scores.max()) + np.finfo(np.float64).tiny)
        over = scores[:, None] / np.exp(_joined(log_r, medians, log_q))
        factors = [conformal_quantile(column, p) for column, p in zip(over.T, levels, strict=True)]
        log_q = log_q + np.log(np.maximum(factors, SMALLEST))
        return cls(tuple(levels), medians, log_q, r_quantiles, beta, slope, num, grow)

    @property
    def r_range(self) -> tuple[float, float]:
        """The smallest and the largest R of the calibration molecules."""
        return float(self.r_quantiles[0]), float(self.r_quantiles[-1])

    def beyond(self, r: Floats) -> NDArray[np.bool_]:
        """Which R no calibration molecule came near, ``[M]``."""
        low, high = self.r_range
        return ~((low <= r) & (r <= high))

    def half_width(self, r: Floats, spread: Floats | None = None) -> Floats:
        """Half-widths, ``[M, L]``, in the unit of the calibration errors.

        Where R lies beyond the calibration's, the widest bin counts.

        Args:
            r: non-hierarchicality, ``[M]``.
            spread: sample standard deviation over the models, ``[M]``; as in :meth:`fit`.

        Raises:
            ValueError: a spread is missing, or not wanted.
        """
        if (spread is None) != (self.beta is None):
            made = "one model" if self.beta is None else "an ensemble, whose spread it needs"
            raise ValueError(f"this error bar was calibrated for {made}: run `hipnn calibrate`")
        log_r = np.log(np.maximum(r, SMALLEST_R))
        log_q = _joined(log_r, self.log_r, self.log_q)
        log_q = np.where(self.beyond(r)[:, None], self.log_q.max(axis=0), log_q)
        width = np.exp(np.maximum.accumulate(log_q, axis=1))
        if spread is not None and self.beta is not None:
            width = width * ((spread + self.beta) ** self.slope)[:, None]
        return width

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        arrays = {name: getattr(self, name).tolist() for name in ARRAYS}
        return asdict(self) | arrays

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ConformalIntervals:
        """What :meth:`to_json` gave, or an older version, which kept the ends of ``r_quantiles``
        only, as ``r_range``, and left ``errors_grow`` to be told from ``log_q``."""
        values = dict(values)
        if "errors_grow" not in values:
            column = [row[values["levels"].index(0.9)] for row in values["log_q"]]
            values["errors_grow"] = column[-1] > column[0] if len(column) > 1 else None
        if "r_range" in values:
            values["r_quantiles"] = values.pop("r_range")
        arrays = {name: np.array(values[name], dtype=np.float64) for name in ARRAYS}
        return cls(**{**values, **arrays, "levels": tuple(values["levels"])})


def _joined(log_r: Floats, medians: Floats, log_q: Floats) -> Floats:
    """Logs of the quantiles between the bins' medians, ``[M, L]``."""
    return np.stack([np.interp(log_r, medians, column) for column in log_q.T], axis=1)


def _scale(error: Floats, spread: Floats) -> tuple[float, float]:
    """beta and the least-squares slope of log abs(error); 0 where the spread says nothing.

    Errors far below the large ones count as :data:`LEAST` of these, lest molecules that the models
    know exactly decide.
    """
    beta, large = 0.0, 0.0
    if len(spread):
        beta, large = float(np.median(spread)), float(np.quantile(error, 0.9))
    if len(spread) < 20 or beta <= 0 or large <= 0 or not np.ptp(spread):
        return beta, 0.0
    size = np.maximum(error, LEAST * large)
    return beta, max(0.0, float(np.polyfit(np.log(spread + beta), np.log(size), 1)[0]))


def _bins(log_r: Floats, number: int) -> list[NDArray[np.int64]]:
    """Members of bins of about equal size; equal values stay together."""
    order = np.argsort(log_r, kind="stable")
    values, smallest = log_r[order], len(order) // (2 * number)
    cuts, begin = [], 0
    for place in (len(order) * k // number for k in range(1, number)):
        cut = int(np.searchsorted(values, values[place]))
        if cut - begin >= smallest:
            cuts.append(cut)
            begin = cut
    return np.split(order, cuts)
