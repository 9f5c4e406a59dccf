"""Where the R of one molecule stands among others that the model had not learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hipnn_pyg.data.sets import SETS, QM9RDKitSet
from hipnn_pyg.models.files import ModelFileError, read_arrays, read_card
from hipnn_pyg.uncertainty import ErrorBars, Geometry

Floats = NDArray[np.float64]

AGAIN = "run `hipnn evaluate` again, or delete it"
BINS = 40
"""Of the histogram, equally wide in log10 R."""


class KnownR(NamedTuple):
    """R of molecules on one kind of geometry.

    Attributes:
        r: non-hierarchicality (Eq. 18) of each, or their quantiles in equal steps.
        part: what they are: ``"calibration"``, ``"test"``, ``"validation"`` or ``"train"``.
        num: molecules.
    """

    r: Floats
    part: str
    num: int


class Standing(NamedTuple):
    """Where R stands among M others.

    Attributes:
        fraction: of the others with a smaller R.
        median: of the others.
        num: M.
        part: what they are.
        edges: log10 R at the edges of the histogram's bins, ``[BINS + 1]``.
        counts: of known R in each bin, ``[BINS]``.
        place: log10 R of this molecule, moved to the histogram's edge if it lies outside.
        outside: whether it lies outside.
    """

    fraction: float
    median: float
    num: int
    part: str
    edges: Floats
    counts: NDArray[np.int64]
    place: float
    outside: bool

    @property
    def words(self) -> str:
        """Larger than that of how many."""
        others = f"{self.num:,} {self.part} molecules (median {self.median:.4f})"
        if self.fraction in (0.0, 1.0):
            return f"{'larger' if self.fraction else 'smaller'} than that of all {others}"
        return f"larger than that of {100 * self.fraction:.1f} % of {others}"


def are_current(folder: str | Path) -> bool:
    """Whether ``predictions.npz`` is of the model as it is now, not of an older state of it.

    ``results.json`` beside it, if there is one, then holds the model's card.

    Args:
        folder: a run folder that was evaluated, or the folder of a model of the package.

    Raises:
        ModelFileError: one of them is damaged.
    """
    path = Path(folder) / "results.json"
    if not path.is_file() or not (Path(folder) / "model.json").is_file():
        return True
    try:
        evaluated = json.loads(path.read_text())["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} is damaged ({error!r}): {AGAIN}") from error
    return bool(evaluated == read_card(folder))


def known_r(folder: str | Path, bars: ErrorBars | None, geometry: Geometry | None) -> KnownR | None:
    """R of molecules on a kind of geometry, where ``hipnn calibrate`` or ``evaluate`` found it.

    Args:
        folder: of the model.
        bars: its error bars; their calibration molecules come first.
        geometry: where the positions come from; R is larger or smaller on other geometries.

    Returns:
        None where there is none.

    Raises:
        ModelFileError: a damaged file.
    """
    if bars is not None and geometry in bars.calibrations:
        intervals = bars.calibrations[geometry].intervals
        if len(intervals.r_quantiles) > 2:  # an older calibration kept the ends
            return _positive(intervals.r_quantiles, "calibration", intervals.num)
    card = read_card(folder) if (Path(folder) / "model.json").is_file() else {}
    learned = "rdkit" if SETS.get(card.get("dataset", "")) is QM9RDKitSet else "given"
    return _evaluated(folder) if geometry == learned else None


def _evaluated(folder: str | Path) -> KnownR | None:
    """R of the molecules in a model's ``predictions.npz``; None where there is none, or where it
    is of an older state of the weights (:func:`are_current`).

    Args:
        folder: a run folder that was evaluated, or the folder of a model of the package.

    Raises:
        ModelFileError: a damaged file.
    """
    path = Path(folder) / "predictions.npz"
    if not path.is_file() or not are_current(folder):
        return None
    stored = read_arrays(path, AGAIN)
    if "nonhierarchicality" not in stored:
        return None
    r = stored["nonhierarchicality"].astype(np.float64)
    return _positive(r, str(stored.get("part", "test")), len(r))


def _positive(r: Floats, part: str, num: int) -> KnownR | None:
    """A model without hierarchy has R = 0."""
    r = r[np.isfinite(r) & (r > 0)]
    return KnownR(r, part, num) if len(r) else None


def stand(r: float, known: KnownR | None) -> Standing | None:
    """Place one R among others.

    Args:
        r: of the molecule.
        known: of the others; None gives None.
    """
    if known is None:
        return None
    log_r = np.log10(known.r)
    low, high = float(log_r.min()), float(log_r.max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(log_r, BINS, (low, high))
    place = float(np.log10(r)) if r > 0 else -np.inf
    return Standing(
        float((known.r < r).mean()),
        float(np.median(known.r)),
        known.num,
        known.part,
        edges,
        counts,
        min(max(place, low), high),
        not low <= place <= high,
    )
