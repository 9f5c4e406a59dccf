"""From settings to a trainer with its data, split, E^0 and run folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from ase.data import chemical_symbols
from torch import Tensor

from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.cli.hardware import hardware
from hipnn_pyg.cli.run_folder import RunFolder
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.sets import FileSet, MoleculeSet, describe, split
from hipnn_pyg.data.splits import Split
from hipnn_pyg.data.statistics import composition
from hipnn_pyg.data.targets import NO_SUMS, Target
from hipnn_pyg.models.files import ModelFileError, copy_model, load_model, read_card
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.pretrained import model_folder
from hipnn_pyg.train.config import Network, Training
from hipnn_pyg.train.launch import first_process
from hipnn_pyg.train.metrics import predict
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
    start: str | None = None,
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
        start: a trained model to begin with, instead of random weights: a run folder or the name
            of one that comes with the package.

    Raises:
        ModelFileError: a run on another split, or a damaged one.
        ValueError: the model to begin with has another network, unit or target, does not know all
            species, or learned another split of these structures, whose training set has molecules
            of this test set.
    """
    folder, (packed, candidates) = RunFolder(path), loaded
    if resume:
        start = folder.read_config().get("start")
    parts = split(molecules, len(packed), candidates, training.seed_of_split)
    if resume and Split.load(folder.split).checksum != parts.checksum:
        raise ModelFileError(
            f"{path} was trained on another split: the data set now has {len(packed)} molecules; "
            "resume with the data it began with, or choose another --run folder"
        )
    if not resume and first_process():
        folder.write_config(molecules, network, training, start=start)
        parts.save(folder.split)

    torch.manual_seed(training.seed)
    provenance = _provenance(molecules, training, packed, parts)
    if start is None:
        if network.r_high > network.cutoff and not resume:
            warnings.warn(
                f"r_high = {network.r_high} Å is beyond cutoff = {network.cutoff} Å: sensitivities "
                f"centred there see few pairs or none; --r_high {network.cutoff} puts all within",
                HIPNNWarning,
                stacklevel=2,
            )
        model = _new_model(packed, packed.subset(parts.train), network, training)
    else:
        kept = folder.start if resume and folder.start.exists() else model_folder(start)
        card = read_card(kept)
        redrawn = partial(_checksum, molecules, len(packed), candidates)
        _check_start(start, card, network, packed.spec, provenance, redrawn)
        model, provenance["started_from"] = load_model(kept), _origin(start, card)
        _check_known(start, model.species, packed.subset(candidates).atomic_numbers())
        if kept != folder.start and first_process():
            copy_model(kept, folder.start)
    there = packed if resident is None else resident
    fit, validation = there.subset(parts.train), there.subset(parts.validation)
    trainer = kind(model, fit, validation, training, path, provenance, progress)
    if resume:
        trainer.resume()
    elif start is not None:
        _warn_of_reference(start, model, trainer.train, trainer.validation)
    return trainer


def _provenance(
    molecules: MoleculeSet, training: Training, packed: PackedMolecules, parts: Split
) -> dict[str, Any]:
    """What model files will say of the run: data set, split, recipe, machine."""
    seeds = {"seed": training.seed, "split_seed": training.seed_of_split}
    provenance = {**describe(molecules), **seeds, "recipe": training.recipe}
    for machine_path in ("root", "path"):
        provenance.pop(machine_path, None)
    provenance["split_sha256"] = parts.checksum
    if isinstance(molecules, FileSet):
        provenance["structures_sha256"] = packed.sha256
        provenance["geometries_sha256"] = packed.geometries_sha256
    provenance["trained_on"] = {
        "date": date.today().isoformat(),
        "machine": hardware(training.device),
        "torch": torch.__version__,
    }
    return provenance


def _new_model(
    packed: PackedMolecules, learned: PackedMolecules, network: Network, training: Training
) -> HIPNN:
    """Random weights for all species of a data set, E^0 of its training molecules."""
    species = sorted(set(packed.z.tolist()))
    if unseen := sorted(set(species) - set(learned.atomic_numbers().tolist())):
        warnings.warn(
            f"{_symbols(unseen)} occurs in no training structure: its energy stays 0, "
            "predictions with it mean nothing; train on more structures, with another --seed, or "
            "leave these out",
            HIPNNWarning,
            stacklevel=3,
        )
    if packed.spec in NO_SUMS:
        warnings.warn(
            f"{packed.spec.name} does not grow with the molecule, as a sum over atoms does, and "
            "will be learned badly; docs/property.md gives such targets a head of their own",
            HIPNNWarning,
            stacklevel=3,
        )
    model = HIPNN(species=species, **asdict(network))
    assert training.energy_scale is not None
    return model.fit_e0(learned, packed.spec, training.energy_scale)


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in numbers)


def _checksum(
    molecules: MoleculeSet, num: int, candidates: Tensor, train: int, validation: int, seed: int
) -> str:
    """Of the split of a data set into so many molecules; empty if it has not so many."""
    try:
        sizes = replace(molecules, num_train=train, num_validation=validation)
        return split(sizes, num, candidates, seed).checksum
    except ValueError:
        return ""


def _check_start(
    name: str,
    card: Mapping[str, Any],
    network: Network,
    target: Target,
    data: Mapping[str, Any],
    redrawn: Callable[[int, int, int], str],
) -> None:
    """Whether a trained model may be what this run begins with; raises ValueError if not, warns
    where that cannot be known.

    ``redrawn`` gives the checksum of a split of this data set: training and validation molecules,
    and the seed.
    """
    for option, wanted in asdict(network).items():
        if (its := card["hyperparameters"][option]) != wanted:
            raise ValueError(f"--start {name} has {option} = {its}, not {wanted}: --{option} {its}")
    if card["energy_unit"] != target.unit:
        raise ValueError(
            f"--start {name} gives energies in {card['energy_unit']}, this data set in "
            f"{target.unit}: start with a model of that unit"
        )
    if _same_structures(card, data) and card.get("target") != target.name:
        raise ValueError(
            f"--start {name} learned {card.get('target')}, not {target.name}, and keeps its E^0: "
            "start with a model of that target"
        )
    who = f"--start {name}"
    while card:
        if _same_structures(card, data) and not _keeps_apart(card, data, redrawn):
            sizes = _sizes(card)
            way_out = "train without it"
            if None not in sizes and redrawn(*sizes) == card.get("split_sha256"):
                way_out = (
                    f"use its --split_seed {sizes[2]}, --num_validation {sizes[1]} and --num_train "
                    f"{sizes[0]} or more"
                )
            raise ValueError(
                f"{who} learned another split of these structures: some molecules of this test or "
                f"validation set were its training molecules; {way_out}"
            )
        if card.get("dataset") == data["dataset"] == "file" and not _same_structures(card, data):
            warnings.warn(
                f"{who} learned from another file: nobody can tell here whether some of its "
                "training structures are in this test set, as after adding structures to the file",
                HIPNNWarning,
                stacklevel=2,
            )
        card = card.get("started_from", {})
        who = f"--start {name} began with {card.get('model')}, which"


def _check_known(name: str, species: Sequence[int], present: Tensor) -> None:
    """Whether a trained model knows all species of a data set; raises ValueError if not."""
    if unknown := sorted(set(present.tolist()) - set(species)):
        raise ValueError(
            f"--start {name} does not know {_symbols(unknown)}, which is in this data set: start "
            "with a model that does, or leave such structures out"
        )


def _warn_of_reference(
    name: str, model: HIPNN, train: PackedMolecules, validation: PackedMolecules
) -> None:
    """Of a trained model that errs by more than energies of atoms alone, fitted to the new data:
    nothing else tells that it counts energies from something else."""
    e0 = torch.linalg.pinv(composition(train, model.species)) @ train.target
    fitted = composition(validation, model.species) @ e0
    alone = float((fitted - validation.target).abs().mean())
    its = float((predict(model, validation).energy - validation.target.cpu()).abs().mean())
    if its > alone:
        unit = validation.spec.unit
        warnings.warn(
            f"--start {name} errs by {its:.4g} {unit} (MAE) on the validation structures, E^0 "
            f"fitted to this training set alone by {alone:.4g} {unit}: if the model counts "
            "energies from another reference, shift those of the data to it, or train without "
            "--start",
            HIPNNWarning,
            stacklevel=3,
        )


def _same_structures(card: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Whether two data sets have the same structures, with other geometries or labels or not."""
    if card.get("dataset") == data.get("dataset") == "file":
        # a model from before the geometries' hash knows that of geometries and labels
        key = "geometries_sha256" if "geometries_sha256" in card else "structures_sha256"
        return card.get(key) == data.get(key)
    return _names(card) == _names(data)


def _names(data: Mapping[str, Any]) -> tuple[str, str]:
    """Of a data set's structures."""
    dataset, molecule = str(data.get("dataset")), str(data.get("molecule"))
    return dataset.removesuffix("-rdkit"), molecule.removeprefix("revised ")


def _sizes(data: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Training and validation molecules, and the seed of a split."""
    seed = data.get("split_seed", data.get("seed"))
    return data.get("num_train"), data.get("num_validation"), seed


def _keeps_apart(
    card: Mapping[str, Any], data: Mapping[str, Any], redrawn: Callable[[int, int, int], str]
) -> bool:
    """Whether what a model learned is within this run's training set: the same split, or one of
    the same draw with fewer training molecules (:func:`hipnn_pyg.data.splits.random_split`)."""
    if card.get("split_sha256") == data["split_sha256"]:
        return True
    (train, *its), (most, *own) = _sizes(card), _sizes(data)
    nested = None not in (train, *its) and its == own and train <= most
    return nested and redrawn(train, *its) == card.get("split_sha256")


def _origin(name: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """What a model file says of the model that its training began with."""
    own = (
        *("dataset", "molecule", "num_train", "num_validation", "seed", "split_seed"),
        *("split_sha256", "structures_sha256", "geometries_sha256", "training_seconds"),
        "started_from",  # as that model itself may have
    )
    return {"model": Path(name).name, **{key: card[key] for key in own if key in card}}
