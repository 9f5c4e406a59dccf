"""The calibrated error bar of one prediction, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch_geometric.data import Data

from hipnn_pyg.uncertainty import GEOMETRIES, GIVEN, CalibratedModel, Geometry
from hipnn_pyg.uncertainty.error_bars import Calibration
from hipnn_pyg.units import convert


class Trust(NamedTuple):
    """What is known about the error of one prediction.

    Attributes:
        intervals: coverage (0 to 1) to half-width of the interval in the unit asked for; empty
            without calibration.
        geometry: the words for where the positions come from.
        missing: why there is no interval; empty if there is one.
        unlike: why the structure is unlike the training data, so that the interval is no promise;
            empty if it is not.
        grows: whether errors of the calibration molecules grew with R; None if that is not known.
    """

    intervals: dict[float, float]
    geometry: str
    missing: str = ""
    unlike: Sequence[str] = ()
    grows: bool | None = None

    @property
    def q90(self) -> float | None:
        """Half-width of the 90 % interval, if there is one."""
        return self.intervals.get(0.9)

    @property
    def holds_for(self) -> str:
        """What the interval is for, where that is not plain from how the positions were made."""
        return GIVEN if self.intervals and self.geometry == GEOMETRIES["given"] else ""


def judge(
    model: CalibratedModel,
    data: Data,
    geometry: Geometry | None = "given",
    unit: str | None = None,
) -> Trust:
    """Ask a model's error bars about one molecule.

    Args:
        model: with or without error bars.
        data: one molecule with ``z`` and ``pos`` in Å.
        geometry: ``"rdkit"`` for a structure made from SMILES and relaxed with MMFF94, None for
            one that was not relaxed, else ``"given"``.
        unit: of the half-widths; None for the model's.

    Raises:
        ValueError: the unit cannot be converted.
    """
    words = GEOMETRIES[geometry]
    bars = model.error_bars
    if bars is None or geometry is None or geometry not in bars.calibrations:
        return Trust({}, words, why_missing(model))
    prediction = model.predict(data, geometry)
    judgement = prediction.judgement
    assert judgement is not None
    unit = unit or model.energy_unit
    factor = 1.0 if unit == bars.unit else convert(1.0, bars.unit, unit)
    widths = (factor * judgement.half_width[0]).tolist()
    intervals = dict(zip(bars.levels, widths, strict=True))
    calibration, unlike = bars.calibrations[geometry], []
    if judgement.unlike_training[0]:
        r = float(prediction.seen.nonhierarchicality[0])
        unlike = _reasons(calibration, float(judgement.distance[0]), r)
    return Trust(intervals, words, unlike=unlike, grows=calibration.intervals.errors_grow)


def why_missing(model: CalibratedModel) -> str:
    """Why there is no error bar where a model makes none."""
    if model.error_bars is None:
        return "not calibrated (hipnn calibrate does it)"
    calibrated = ", ".join(GEOMETRIES[known] for known in model.error_bars.calibrations)
    return f"not calibrated for this, only for: {calibrated}"


def _reasons(calibration: Calibration, distance: float, r: float) -> list[str]:
    """What the flag was raised for: an atom, R, or both."""
    low, high = calibration.intervals.r_range
    reasons = []
    if not distance <= calibration.threshold:
        reasons.append(
            f"an atom is at distance {distance:.2f} from the training atoms "
            f"({calibration.threshold:.2f} is the limit)"
        )
    if not low <= r <= high:
        reasons.append(f"R is outside the calibration's range, {low:.3g} to {high:.3g}")
    return reasons
