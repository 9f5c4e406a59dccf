"""Error bars and flag measured on molecules that had no part in making them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.formula import Formula
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg.data.molecules import from_smiles
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.train.metrics import error_statistics
from hipnn_pyg.uncertainty.calibrated import CalibratedModel
from hipnn_pyg.uncertainty.conformal import MOST_BINS, ConformalIntervals
from hipnn_pyg.uncertainty.error_bars import Calibration, Geometry
from hipnn_pyg.uncertainty.sample import Sample, as_array
from hipnn_pyg.uncertainty.scores import CRPS_LEVELS, auc, coverage, crps, ratio
from hipnn_pyg.uncertainty.structures import drugs, rattled, rotated, stretched


def assess(calibration: Calibration, test: Sample, unit: str) -> dict[str, Any]:
    """Coverage and false alarms on test molecules.

    Args:
        calibration: error bars for their kind of geometry.
        test: what came out for them.
        unit: of the errors.

    Returns:
        JSON values; half-widths in ``unit``, the statistics as
        :func:`~hipnn_pyg.train.metrics.error_statistics` gives them.
    """
    error = torch.from_numpy(test.error)
    intervals = calibration.intervals
    width = intervals.half_width(test.r, test.spread)
    covered = coverage(test.error, width, test.r, intervals.levels)
    flagged = calibration.unlike(test.distance, test.r)
    overall, quartiles = covered.deviation()
    return {
        "num_calibration": intervals.num,
        "num_test": covered.num,
        "statistics": error_statistics(error, torch.zeros_like(error), unit)._asdict(),
        "levels": [*intervals.levels],
        "coverage": covered.overall.tolist(),
        "coverage_in_quartiles_of_R": covered.quartiles.tolist(),
        "quartiles_of_R": np.quantile(test.r, (0.25, 0.5, 0.75)).tolist(),
        "largest_deviation_in_points": {"overall": overall, "in_a_quartile": quartiles},
        "mean_half_width": width.mean(0).tolist(),
        "false_alarms": float(flagged.mean()),
        "errors_grow_with_R": intervals.errors_grow,
    }


def compare(calibration: Sample, test: Sample) -> list[dict[str, Any]]:
    """Error bars that know nothing, R, the spread of the ensemble, or both; calibrated alike.

    Args:
        calibration: what came out for the calibration molecules.
        test: for the test molecules.

    Returns:
        For each kind its coverage at 90 %, mean half-width of that interval and CRPS, and the
        CRPS relative to the constant one's with its standard error.
    """
    kinds: dict[str, tuple[bool, bool]] = {"constant": (False, False), "R": (True, False)}
    if test.spread is not None:
        kinds |= {"ensemble": (False, True), "R and ensemble": (True, True)}
    rows: list[dict[str, Any]] = []
    constant = np.empty(0)
    for name, (with_r, with_spread) in kinds.items():
        known, seen = (s.spread if with_spread else None for s in (calibration, test))
        bins = MOST_BINS if with_r else 1
        narrow, wide = (
            ConformalIntervals.fit(calibration.error, calibration.r, known, levels, bins)
            for levels in ((0.9,), CRPS_LEVELS)
        )
        q90 = narrow.half_width(test.r, seen)[:, 0]
        score = crps(test.error, wide.half_width(test.r, seen))
        constant = score if name == "constant" else constant
        relative, standard_error = ratio(score, constant)
        rows.append(
            {
                "kind": name,
                "coverage_90": float((test.error <= q90).mean()),
                "mean_half_width_90": float(q90.mean()),
                "crps": float(score.mean()),
                "crps_relative": relative,
                "crps_relative_se": standard_error,
            }
        )
    return rows


def foreign_classes(
    model: CalibratedModel,
    molecules: PackedMolecules,
    index: Tensor,
    usual: Mapping[Geometry, Sample],
) -> list[dict[str, Any]]:
    """How well the flag tells classes of structures from test molecules.

    The first half of the test molecules, at most 1,000, is changed; the others are what the
    changed ones are told from. Drugs are told from test molecules on RDKit geometries.

    Args:
        model: with its error bars.
        molecules: the data set.
        index: the test molecules, in random order.
        usual: what came out for the test molecules, in the same order, on each kind of geometry.

    Returns:
        For each class the AUC of the distance with its 95 % bootstrap interval, that of R alone,
        and the share that is flagged.
    """
    half = min(1000, len(index) // 2)
    originals = [_single(molecules, int(number)) for number in index[:half]]
    changed: dict[str, list[Data]] = {
        "unchanged (control)": originals,
        "rotated (control)": [rotated(data, k) for k, data in enumerate(originals)],
        "one bond + 0.3 Å": _each(stretched, originals, 0.3),
        "one bond − 0.15 Å": _each(stretched, originals, -0.15),
        "all atoms ± 0.1 Å": _each(rattled, originals, 0.1),
    }
    rest = usual["given"].part(slice(half, None))
    rows = [_row(model, name, data, "given", rest) for name, data in changed.items() if data]
    if "rdkit" in usual:
        large = _embedded_drugs(model.models[0].species)
        if large:
            rows.append(_row(model, "12+ heavy atoms", large, "rdkit", usual["rdkit"]))
    return rows


def _row(
    model: CalibratedModel, name: str, data: Sequence[Data], geometry: Geometry, usual: Sample
) -> dict[str, Any]:
    out = model.predict(data, geometry)
    assert out.judgement is not None
    by_distance = auc(usual.distance, as_array(out.judgement.distance))
    by_r = auc(usual.r, as_array(out.seen.nonhierarchicality))
    return {
        "class": name,
        "geometry": geometry,
        "num": len(data),
        "auc": by_distance.auc,
        "interval": [by_distance.low, by_distance.high],
        "auc_of_R": by_r.auc,
        "flagged": float(out.judgement.unlike_training.double().mean()),
    }


def _each(
    change: Callable[[Data, float, int], Data | None], originals: Sequence[Data], by: float
) -> list[Data]:
    """Changed copies, of those molecules that can be changed."""
    changed = [change(data, by, seed) for seed, data in enumerate(originals)]
    return [data for data in changed if data is not None]


def _single(molecules: PackedMolecules, number: int) -> Data:
    batch = molecules.gather(torch.tensor([number]))
    return Data(z=batch.z, pos=batch.pos)


def _embedded_drugs(species: tuple[int, ...]) -> list[Data]:
    """Those whose elements the model knows."""
    known = {chemical_symbols[number] for number in species}
    fitting = [drug for drug in drugs() if Formula(drug.formula).count().keys() <= known]
    return [from_smiles(drug.smiles) for drug in fitting]
