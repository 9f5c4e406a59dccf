"""From settings to a trainer with its data, split, E^0 and run folder."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from hipnn_pyg.cli.run_folder import RunFolder
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.sets import MoleculeSet, describe, split
from hipnn_pyg.data.splits import Split
from hipnn_pyg.models.files import ModelFileError
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.train.config import Network, Training
from hipnn_pyg.train.launch import first_process
from hipnn_pyg.train.trainer import Trainer

T = TypeVar("T", bound=Trainer)


def prepare(
    kind: type[T],
    loaded: tuple[PackedMolecules, Tensor],
    molecules: MoleculeSet,
    network: Network,
    training: Training,
    path: Path,
    resume: bool = False,
    progress: bool = True,
    resident: PackedMolecules | None = None,
) -> T:
    """Split, fit E^0, write settings and split: a trainer that is ready to start or go on.

    Args:
        kind: of trainer.
        loaded: all molecules, and those that may be drawn from.
        molecules: the data set.
        network: the network.
        training: the settings of training, resolved.
        path: run folder.
        resume: go on with the run there.
        progress: show a progress bar.
        resident: all molecules on the trainer's device, if they are there already.

    Raises:
        ModelFileError: a run on another split, or a damaged one.
    """
    folder, (packed, candidates) = RunFolder(path), loaded
    parts = split(molecules, len(packed), candidates, training.seed)
    if resume and Split.load(folder.split).checksum != parts.checksum:
        raise ModelFileError(
            f"{path} was trained on another split: the data set now has {len(packed)} molecules; "
            "resume with the data it began with, or choose another --run folder"
        )
    if not resume and first_process():
        folder.write_config(molecules, network, training)
        parts.save(folder.split)

    torch.manual_seed(training.seed)
    species = sorted(set(packed.z.tolist()))
    model = HIPNN(species=species, **asdict(network))
    assert training.energy_scale is not None
    model.fit_e0(packed.subset(parts.train), packed.spec, training.energy_scale)
    provenance = {**describe(molecules), "seed": training.seed, "recipe": training.recipe}
    for machine_path in ("root", "path"):
        provenance.pop(machine_path, None)
    provenance["split_sha256"] = parts.checksum
    if getattr(molecules, "trajectories", False):
        provenance["trained_on_trajectories"] = True
    provenance["trained_on"] = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
    there = packed if resident is None else resident
    fit, validation = there.subset(parts.train), there.subset(parts.validation)
    trainer = kind(model, fit, validation, training, path, provenance, progress)
    if resume:
        trainer.resume()
    return trainer
