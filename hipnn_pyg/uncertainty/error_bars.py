"""Error bars and flag of a model or an ensemble: fitted, and kept in its folder.

``error_bars.json`` holds everything but the large arrays of ``error_bars.safetensors``. Both belong
to exactly the weights whose SHA-256 they name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from hipnn_pyg.models.files import ModelFileError, atomic_write, weights_sha256
from hipnn_pyg.uncertainty.conformal import ConformalIntervals, Floats, conformal_quantile
from hipnn_pyg.uncertainty.distance import FeatureStatistics
from hipnn_pyg.uncertainty.sample import Sample, as_array

FORMAT = "hipnn_pyg error bars"
FORMAT_VERSION = 1

Geometry = Literal["given", "rdkit"]
"""Where positions come from: ``"given"`` (as good as the data set's) or ``"rdkit"`` (a SMILES
embedded by ETKDG and relaxed with MMFF94), which makes larger errors."""

Kind = Geometry | Literal["periodic"] | None
"""The same, and what there are no error bars for."""

GEOMETRIES: dict[Kind, str] = {
    "given": "geometry as given",
    "rdkit": "RDKit geometry",
    "periodic": "periodic structure",
    None: "RDKit geometry, not relaxed",
}
"""What the kinds of geometry are called."""

GIVEN = "geometries made as the data set's were (see the model's card), not a force field's"
"""What error bars for ``"given"`` are for."""

FALSE_ALARMS = 0.05
"""Share of molecules like the calibration's whose distance is beyond the threshold; R beyond all
of their n adds up to 2 / (n + 1)."""


class Calibration(NamedTuple):
    """Error bars for one kind of geometry.

    Attributes:
        intervals: half-widths in the model's energy unit.
        threshold: molecules further from the training data than this are flagged.
    """

    intervals: ConformalIntervals
    threshold: float

    def unlike(self, distance: Floats, r: Floats) -> NDArray[np.bool_]:
        """The flag: which molecules are unlike the training data, ``[M]``.

        Args:
            distance: from the training data, ``[M]``; what is no number is unlike it.
            r: non-hierarchicality, ``[M]``.
        """
        return ~(distance <= self.threshold) | self.intervals.beyond(r)


class Judgement(NamedTuple):
    """How far to trust M predictions.

    Attributes:
        half_width: of the intervals around the energy, one per level, ``[M, L]``.
        unlike_training: the flag: an atom unlike the training data's, or R beyond the
            calibration's; the interval is then no promise. ``[M]``.
        distance: from the training data, about 1 for a usual atom, ``[M]``.
    """

    half_width: Tensor
    unlike_training: Tensor
    distance: Tensor


@dataclass(frozen=True)
class ErrorBars:
    """Calibrated error bars and the flag for structures unlike the training data.

    Attributes:
        statistics: features of the training atoms, as the first model sees them.
        calibrations: one for each kind of geometry that was calibrated.
        unit: of the half-widths.
        provenance: JSON values kept with it.
    """

    statistics: FeatureStatistics
    calibrations: dict[Geometry, Calibration]
    unit: str
    provenance: dict[str, Any]

    @classmethod
    def fit(
        cls,
        statistics: FeatureStatistics,
        samples: Mapping[Geometry, Sample],
        unit: str,
        **provenance: Any,
    ) -> ErrorBars:
        """Calibrate on molecules that none of the models was trained, stopped or chosen with.

        Args:
            statistics: features of the first model's training atoms.
            samples: what came out for calibration molecules, for each kind of geometry.
            unit: of the errors.
            **provenance: JSON values to keep with it.

        Raises:
            ValueError: too few molecules, see :func:`~hipnn_pyg.uncertainty.conformal.fewest`.
        """
        calibrations: dict[Geometry, Calibration] = {
            geometry: Calibration(
                ConformalIntervals.fit(sample.error, sample.r, sample.spread),
                conformal_quantile(sample.distance, 1 - FALSE_ALARMS),
            )
            for geometry, sample in samples.items()
        }
        return cls(statistics, calibrations, unit, provenance)

    @property
    def levels(self) -> tuple[float, ...]:
        """Coverage of the intervals."""
        return next(iter(self.calibrations.values())).intervals.levels

    def judge(
        self,
        geometry: Geometry,
        nonhierarchicality: Tensor,
        spread: Tensor | None,
        distance: Tensor,
    ) -> Judgement:
        """Error bars and flag of predictions.

        Args:
            geometry: where the positions come from.
            nonhierarchicality: R, mean over the models, ``[M]``.
            spread: sample standard deviation over the models, ``[M]``; None of one model.
            distance: from the training data, see :class:`FeatureStatistics`, ``[M]``.

        Raises:
            ValueError: this kind of geometry was not calibrated.
        """
        if geometry not in self.calibrations:
            raise ValueError(
                f"no error bars for geometry {geometry!r}: choose from {[*self.calibrations]}"
            )
        calibration, r = self.calibrations[geometry], as_array(nonhierarchicality)
        width = calibration.intervals.half_width(r, None if spread is None else as_array(spread))
        unlike = calibration.unlike(as_array(distance), r)
        return Judgement(torch.from_numpy(width), torch.from_numpy(unlike), distance.cpu())

    # -- files ---------------------------------------------------------------------------------

    def save(self, folder: str | Path, members: Sequence[Path]) -> None:
        """Write ``error_bars.json`` and ``error_bars.safetensors``.

        Args:
            folder: of the model or ensemble.
            members: the folder of each model.

        Raises:
            OSError: the disk is full or not writable; older files stay intact.
        """
        s = self.statistics
        card = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "weights_sha256": [weights_sha256(member) for member in members],
            "energy_unit": self.unit,
            "calibrations": {
                geometry: {"intervals": c.intervals.to_json(), "threshold": c.threshold}
                for geometry, c in self.calibrations.items()
            },
            **self.provenance,
        }
        arrays = {
            "species": s.species,
            "counts": s.counts,
            "mean": s.mean.float(),
            "whitening": s.whitening.float(),
        }
        names = _files(folder)
        atomic_write(
            {
                names[1]: serialize(arrays, metadata={"format": FORMAT}),
                names[0]: json.dumps(card, indent=2).encode(),
            }
        )

    @classmethod
    def load(cls, folder: str | Path, members: Sequence[Path]) -> ErrorBars | None:
        """Read what :meth:`save` wrote; None where nothing was.

        Args:
            folder: of the model or ensemble.
            members: the folder of each model.

        Raises:
            ModelFileError: damaged, from a newer version, or made for other weights.
        """
        path, arrays = _files(folder)
        if not path.is_file():
            return None
        try:
            card = json.loads(path.read_text())
            if card.pop("format") != FORMAT or card.pop("format_version") != FORMAT_VERSION:
                raise ModelFileError(f"{path} has another format: upgrade hipnn_pyg")
            tensors = deserialize(arrays.read_bytes())
            calibrations: dict[Geometry, Calibration] = {
                geometry: Calibration(
                    ConformalIntervals.from_json(values["intervals"]), float(values["threshold"])
                )
                for geometry, values in card.pop("calibrations").items()
                if geometry in get_args(Geometry)
            }
            statistics = FeatureStatistics(
                tensors["species"],
                tensors["mean"].double(),
                tensors["whitening"].double(),
                tensors["counts"],
            )
            unit, hashes = card.pop("energy_unit"), card.pop("weights_sha256")
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            SafetensorError,
            OSError,
        ) as error:
            raise ModelFileError(
                f"{path} or {arrays.name} beside it is damaged ({error!r}): run `hipnn calibrate`"
            ) from error
        if hashes != [weights_sha256(member) for member in members]:
            raise ModelFileError(
                f"{path} was made for other weights than those in the folder now: run "
                "`hipnn calibrate` again, or delete it"
            )
        return cls(statistics, calibrations, unit, card)


def _files(folder: str | Path) -> tuple[Path, Path]:
    return Path(folder) / "error_bars.json", Path(folder) / "error_bars.safetensors"
