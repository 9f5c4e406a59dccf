"""How good error bars and flags are: coverage, sharpness, CRPS, AUC."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]


class Coverage(NamedTuple):
    """Fractions of errors inside their intervals, for each level.

    Attributes:
        levels: nominal coverage, ``[L]``.
        overall: over all molecules, ``[L]``.
        quartiles: in each quartile of R, from the smallest R up, ``[4, L]``.
        num: molecules.
    """

    levels: tuple[float, ...]
    overall: Floats
    quartiles: Floats
    num: int

    def deviation(self) -> tuple[float, float]:
        """Largest differences from the nominal levels, overall and in a quartile, in points."""
        worst = (np.abs(part - self.levels).max() for part in (self.overall, self.quartiles))
        overall, quartiles = (100 * float(value) for value in worst)
        return overall, quartiles


def coverage(error: Floats, half_width: Floats, r: Floats, levels: tuple[float, ...]) -> Coverage:
    """Coverage overall and in quartiles of R, which hold equally many molecules.

    Args:
        error: abs(prediction - target), ``[M]``.
        half_width: of the intervals, in the same unit, ``[M, L]``.
        r: non-hierarchicality, ``[M]``.
        levels: nominal coverage, ``[L]``.

    Raises:
        ValueError: fewer than four molecules.
    """
    if len(error) < 4:
        raise ValueError(f"coverage in quartiles needs four or more molecules, not {len(error)}")
    inside = error[:, None] <= half_width
    quartiles = np.array_split(np.argsort(r, kind="stable"), 4)
    parts = np.array([inside[members].mean(0) for members in quartiles])
    return Coverage(levels, inside.mean(0), parts, len(error))


CRPS_LEVELS = tuple((k + 0.5) / 20 for k in range(20))
"""Levels at which :func:`crps` looks at an error bar."""


def crps(error: Floats, half_width: Floats) -> Floats:
    r"""Continuous ranked probability score of each error bar, in the unit of the error, ``[M]``.

    Intervals :math:`\hat E \pm q_p` of all levels p are a predictive distribution around the
    prediction; its CRPS (Gneiting and Raftery, J. Am. Stat. Assoc. 102, 359, 2007), twice the
    integral of the pinball loss, becomes

    .. math:: \int_0^1 \left[ (1 - p)\, q_p + \max(|e| - q_p, 0) \right] dp

    Smaller is better; it rewards coverage and sharpness together.

    Args:
        error: abs(prediction - target), ``[M]``.
        half_width: q_p at :data:`CRPS_LEVELS`, ``[M, 20]``.
    """
    p = np.array(CRPS_LEVELS)
    return ((1 - p) * half_width + np.maximum(error[:, None] - half_width, 0)).mean(axis=1)


def ratio(values: Floats, reference: Floats) -> tuple[float, float]:
    """Ratio of two means over the same molecules, and its standard error.

    Args:
        values: of each molecule, ``[M]``.
        reference: of the same molecules, ``[M]``.
    """
    mean = values.mean() / reference.mean()
    scatter = (values - mean * reference).std() / reference.mean()
    return float(mean), float(scatter / np.sqrt(len(values)))


class AUC(NamedTuple):
    """Area under the ROC curve, and the bootstrap interval that holds it with 95 % confidence."""

    auc: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.auc:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(usual: Floats, foreign: Floats) -> AUC:
    """Probability that a foreign structure has the larger score than a usual one.

    The interval is a percentile bootstrap's: both samples are drawn anew, 500 times.

    Args:
        usual: scores of structures like the training data, ``[M]``.
        foreign: scores of the others, ``[K]``.
    """
    random = np.random.default_rng(0)

    def again(sample: Floats) -> Floats:
        return sample[random.integers(len(sample), size=len(sample))]

    drawn = [_area(again(usual), again(foreign)) for _ in range(500)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return AUC(_area(usual, foreign), float(low), float(high))


def _area(usual: Floats, foreign: Floats) -> float:
    """The Mann-Whitney statistic over its largest value; ties count one half."""
    ranks = rankdata(np.concatenate((usual, foreign)))[len(usual) :]
    largest = len(usual) * len(foreign)
    return float((ranks.sum() - len(foreign) * (len(foreign) + 1) / 2) / largest)
