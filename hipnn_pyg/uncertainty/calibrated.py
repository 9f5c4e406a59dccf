"""A trained model, or an ensemble, with its error bars: energies one knows how far to trust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from hipnn_pyg.data.packed import PackedMolecules, drawn_from
from hipnn_pyg.data.targets import Target
from hipnn_pyg.models.files import load_model, member_folders
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.pretrained import model_folder
from hipnn_pyg.uncertainty.error_bars import ErrorBars, Geometry, Judgement
from hipnn_pyg.uncertainty.sample import Observation, observe

Molecules: TypeAlias = PackedMolecules | Data | Sequence[Data] | DataLoader
"""What :meth:`CalibratedModel.predict` takes."""


class CalibratedPrediction(NamedTuple):
    """Predictions for M molecules, in the model's energy unit.

    Attributes:
        energy: mean over the models, float64, ``[M]``.
        q90: the error is below this for 90 % of molecules like the calibration's, ``[M]``; NaN
            without calibration.
        unlike_training: whether a molecule is unlike the training data, so that q90 is no
            promise, ``[M]``; None without calibration.
        seen: what the models said.
        judgement: intervals of every level; None without calibration.
    """

    energy: Tensor
    q90: Tensor
    unlike_training: Tensor | None
    seen: Observation
    judgement: Judgement | None


class CalibratedModel:
    """One model or an ensemble, with error bars where ``hipnn calibrate`` has made them.

    Args:
        models: the members, in evaluation mode.
        error_bars: of their mean; None if it was not calibrated.
    """

    def __init__(self, models: Sequence[HIPNN], error_bars: ErrorBars | None = None) -> None:
        self.models = list(models)
        self.error_bars = error_bars

    @classmethod
    def load(cls, name: str | Path, device: torch.device | str = "cpu") -> CalibratedModel:
        """Read a model, or all of an ensemble.

        Args:
            name: a run folder, a model folder, the folder of an ensemble, or the name of a model
                that comes with the package.
            device: where to put the models.

        Raises:
            ModelFileError: no such model, or a damaged one.
        """
        folder = model_folder(name)
        members = member_folders(folder)
        models = [load_model(member, device) for member in members]
        return cls(models, ErrorBars.load(folder, members))

    @property
    def energy_unit(self) -> str:
        """Unit of energies and error bars."""
        return self.models[0].energy_unit

    def predict(
        self,
        molecules: Molecules,
        geometry: Geometry | None,
    ) -> CalibratedPrediction:
        """Energies, error bars and flags.

        Args:
            molecules: molecules with ``z`` and ``pos`` in Å; a ``Batch`` or a ``Data`` with
                ``batch`` holds several; of a ``DataLoader`` its dataset is taken, or the part of it
                that a sampler draws, see :meth:`~hipnn_pyg.data.packed.PackedMolecules.pack`.
            geometry: ``"rdkit"`` for structures that
                :func:`~hipnn_pyg.data.molecules.from_smiles` made, ``"given"`` for those as good
                as the data set's: their error bars differ much; None for none.

        Raises:
            StructureError: no molecules, or bad ones.
            ValueError: the model has error bars, but none for this kind of geometry.
        """
        packed = self.pack(molecules)
        seen = observe(self.models, packed)
        if self.error_bars is None or geometry is None:
            unknown = torch.full_like(seen.energy, torch.nan)
            return CalibratedPrediction(seen.energy, unknown, None, seen, None)
        distance = self.error_bars.statistics.distances(self.models[0], packed)
        judgement = self.error_bars.judge(geometry, seen.nonhierarchicality, seen.spread, distance)
        q90 = judgement.half_width[:, self.error_bars.levels.index(0.9)]
        return CalibratedPrediction(seen.energy, q90, judgement.unlike_training, seen, judgement)

    def pack(self, molecules: Molecules) -> PackedMolecules:
        """Checked and packed molecules; energies they may have are left out."""
        if isinstance(molecules, PackedMolecules):
            return molecules
        if isinstance(molecules, DataLoader):
            molecules = drawn_from(molecules)
        listed = [molecules] if isinstance(molecules, Data) else molecules
        no_target = Target("none", self.energy_unit, "none")
        bare = []
        for data in listed:
            kept = {name: data[name] for name in ("batch", "cell", "pbc") if name in data}
            number = int(data.batch.max()) + 1 if kept.get("batch") is not None else 1
            bare.append(Data(z=data.get("z"), pos=data.pos, none=torch.zeros(number), **kept))
        return PackedMolecules.pack(bare, no_target)
