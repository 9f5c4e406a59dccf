"""Make error bars and the flag for structures unlike the training data, and test them.

One part of the run's test set calibrates; the rest measures what came out. Of an ensemble's run
folder the mean of all members is calibrated, on molecules that none of them was trained with.
Writes error_bars.json and .safetensors (for hipnn predict), calibration.json and
plots/error_bars.png. Example:

  hipnn calibrate runs/qm9
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt
from rich.console import Console

from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.cli.calibration_report import draw, sections
from hipnn_pyg.cli.run_folder import RunFolder, usable_device
from hipnn_pyg.data.embedded import embed
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.sets import QM9Set
from hipnn_pyg.data.splits import Split, random_split
from hipnn_pyg.models.files import (
    ModelFileError,
    atomic_write,
    check_writable,
    load_model,
    member_folders,
    read_card,
)
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.uncertainty import CalibratedModel, ErrorBars, FeatureStatistics, take_sample
from hipnn_pyg.uncertainty.assess import assess, compare, foreign_classes
from hipnn_pyg.uncertainty.conformal import fewest
from hipnn_pyg.uncertainty.error_bars import Geometry
from hipnn_pyg.uncertainty.sample import Sample
from hipnn_pyg.uncertainty.scores import CRPS_LEVELS
from hipnn_pyg.units import reported

FEWEST_TEST = 4
"""Test molecules: coverage is measured in quartiles of R."""


class Halves(NamedTuple):
    """The test set of all members, in two parts.

    Attributes:
        molecules: the whole data set on its own geometries.
        smiles: of every molecule; None where the data set has none.
        names: of every molecule; None where the data set has none.
        learned: training molecules of the first member, as it saw them.
        calibration: indices of one part.
        test: indices of the other.
        checksum: of both, SHA-256.
    """

    molecules: PackedMolecules
    smiles: list[str] | None
    names: list[str] | None
    learned: PackedMolecules
    calibration: torch.Tensor
    test: torch.Tensor
    checksum: str


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn calibrate``."""
    options.add_argument("run", type=str, help="run folder of hipnn train, also with --ensemble")
    options.add_argument(
        "--num_calibration", type=int, default=10_000, help="test molecules that calibrate"
    )
    options.add_argument(
        "--num_smiles",
        type=NonNegativeInt,
        default=10_000,
        help="of them, and of the others, at most so many are embedded by RDKit; 0 for none",
    )
    options.add_argument("--seed", type=int, default=0, help="which test molecules calibrate")
    options.add_argument("--root", type=str | None, default=None, help="folder of the data set")
    options.add_argument("--device", type=str, default="cpu", help="cpu or cuda")


def run(arguments: Namespace) -> None:
    """Calibrate, test, print."""
    report = calibrate(
        Path(arguments.run),
        arguments.num_calibration,
        arguments.num_smiles,
        arguments.seed,
        arguments.root,
        arguments.device,
        progress=True,
    )
    for section in sections(report):
        section.show(Console())


def calibrate(
    path: Path,
    num_calibration: int = 10_000,
    num_smiles: int = 10_000,
    seed: int = 0,
    root: str | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Make, keep and test error bars; everything goes to the run folder.

    Args:
        path: run folder of one model or of an ensemble.
        num_calibration: test molecules that calibrate; the others test.
        num_smiles: at most so many of each are also embedded by RDKit.
        seed: of the choice.
        root: another folder for the data set.
        device: where to compute.
        progress: show progress bars.

    Returns:
        What ``calibration.json`` holds; energies in ``unit``.

    Raises:
        ModelFileError: the folder holds no run.
        OSError: nothing can be written to the folder.
        ValueError: too few molecules.
    """
    members = member_folders(path)
    models = [load_model(member, usable_device(device)) for member in members]
    check_writable(path)
    halves = take_halves(members, num_calibration, seed, root)
    order = torch.randperm(len(halves.test), generator=torch.Generator().manual_seed(seed))
    halves = halves._replace(test=halves.test[order])
    least = _fewest(members)
    embedded = len(_some(halves.calibration, num_smiles))
    if halves.smiles is not None and 0 < embedded < least:
        raise ValueError(
            f"num_smiles = {num_smiles} is not enough: {least} or more molecules calibrate; raise "
            "it (RDKit may fail at some), or 0 to leave RDKit's geometries out"
        )
    statistics = FeatureStatistics.fit(models[0], halves.learned)
    calibration, test, failed = take_samples(models, statistics, halves, num_smiles, progress)
    if "rdkit" in test:
        numbers = [len(samples["rdkit"].error) for samples in (calibration, test)]
        if numbers[0] < least or numbers[1] < FEWEST_TEST:
            warnings.warn(
                f"no error bars for RDKit's geometries: of {numbers[0]} molecules that calibrate "
                f"and {numbers[1]} that test it can make them, {least} and {FEWEST_TEST} are "
                "needed",
                HIPNNWarning,
                stacklevel=2,
            )
            del calibration["rdkit"], test["rdkit"]

    record: dict[str, Any] = {
        "calibration_seed": seed,
        "num_calibration": len(halves.calibration),
        "num_test": len(halves.test),
        "calibration_split_sha256": halves.checksum,
    }
    unit = models[0].energy_unit
    bars = ErrorBars.fit(statistics, calibration, unit, **record)
    model = CalibratedModel(models, bars)
    report = {
        "unit": unit,
        "num_models": len(models),
        **record,
        "rdkit_failed": failed,
        "geometries": {g: assess(bars.calibrations[g], test[g], unit) for g in test},
        "comparison": {g: compare(calibration[g], test[g]) for g in test},
        "classes": foreign_classes(model, halves.molecules, halves.test, test),
    }
    report = in_reported_unit(report)
    folder = RunFolder(path)
    folder.plots.mkdir(exist_ok=True)
    bars.save(path, members)
    atomic_write({path / "calibration.json": json.dumps(report, indent=2).encode()})
    draw(bars, report).savefig(folder.plots / "error_bars.png", dpi=200)
    return report


def take_samples(
    models: list[HIPNN],
    statistics: FeatureStatistics,
    halves: Halves,
    num_smiles: int,
    progress: bool,
) -> tuple[dict[Geometry, Sample], dict[Geometry, Sample], int]:
    """Errors of both parts on each kind of geometry.

    Args:
        models: the members.
        statistics: of the first model's training atoms.
        halves: the molecules.
        num_smiles: at most so many of each part are also embedded by RDKit.
        progress: show progress bars.

    Returns:
        What calibrates, what tests, and at how many molecules RDKit failed.
    """
    calibration: dict[Geometry, Sample] = {}
    test: dict[Geometry, Sample] = {}
    failed = 0
    for samples, index in ((calibration, halves.calibration), (test, halves.test)):
        samples["given"] = take_sample(models, statistics, halves.molecules.subset(index))
        some = _some(index, num_smiles)
        if halves.smiles is not None and len(some):
            made = embed(halves.smiles, halves.molecules, some, progress=progress)
            samples["rdkit"] = take_sample(models, statistics, made.molecules)
            failed += made.failed
    return calibration, test, failed


def _some(index: torch.Tensor, most: int) -> torch.Tensor:
    """Evenly spaced molecules, at most so many."""
    number = min(most, len(index))
    return index[torch.arange(number) * len(index) // max(number, 1)]


def take_halves(members: list[Path], number: int, seed: int, root: str | None) -> Halves:
    """The molecules that no member was trained or chosen with, in two parts.

    Args:
        members: run folders of models of one data set.
        number: molecules that calibrate.
        seed: of the choice.
        root: another folder for the data set.

    Raises:
        ModelFileError: a folder holds no run, or one of another data set.
        ValueError: too few molecules, or periodic structures.
    """
    sources = [_source(member) for member in members]
    for member, source in zip(members, sources, strict=True):
        if source != sources[0]:
            raise ModelFileError(
                f"{members[0]} learned {sources[0]}, {member} {source}: members of an ensemble "
                "must learn one data set, else some know the others' test molecules"
            )
    chosen, packed, first = RunFolder(members[0]).molecules(root)
    if packed.cells is not None:
        raise ValueError(
            f"{members[0]} learned periodic structures, for which there are no error bars yet: "
            "R, which every prediction has, tells how far to trust it"
        )
    shared = first.test.numpy()
    for member in members[1:]:
        shared = np.intersect1d(shared, Split.load(RunFolder(member).split).test.numpy())
    least = _fewest(members)
    if not least <= number <= len(shared) - FEWEST_TEST:
        whose, way_out = "the run's test set has", ""
        if len(shared) < len(first.test):
            whose = "the members' test sets share"
            way_out = "; members trained on one split share more: hipnn train --split_seed 0"
        raise ValueError(
            f"num_calibration = {number:,} is not possible: {least} molecules or more calibrate, "
            f"{FEWEST_TEST} or more test, and {whose} {len(shared):,}{way_out}"
        )
    candidates = torch.from_numpy(shared)
    split = random_split(len(packed), number, 0, seed, candidates, "calibration")
    learned, smiles, names = packed.subset(first.train), None, None
    if isinstance(chosen, QM9Set):
        packed, _, dataset = chosen.load_with_dataset()  # also of who learned RDKit's geometries
        smiles, names = [*dataset._data.smiles], [*dataset._data.name]
    return Halves(packed, smiles, names, learned, split.train, split.test, split.checksum)


def _fewest(members: list[Path]) -> int:
    """Molecules that must calibrate, for all intervals that :func:`compare` fits."""
    return fewest(max(CRPS_LEVELS), len(members) > 1)


def _source(member: Path) -> str:
    """Which data set a model has learned: its name, molecule and file, and what that held."""
    settings = RunFolder(member).read_config()
    names = [settings[name] for name in ("dataset", "molecule") if name in settings]
    if "path" in settings:
        names.append(str(Path(settings["path"]).resolve()))
        names.append(f"(SHA-256 {read_card(member).get('geometries_sha256')})")
    return " ".join(names)


def in_reported_unit(report: dict[str, Any]) -> dict[str, Any]:
    """Half-widths and CRPS in the unit that errors are reported in."""
    factor, unit = reported(report["unit"])
    for values in report["geometries"].values():
        values["mean_half_width"] = [factor * width for width in values["mean_half_width"]]
    for row in (row for rows in report["comparison"].values() for row in rows):
        row["mean_half_width_90"] *= factor
        row["crps"] *= factor
    return report | {"unit": unit}
