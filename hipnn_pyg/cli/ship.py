"""Make a folder that comes with the package from a calibrated run (for developers).

The folder holds the weights of every member, their error bars, card.md with a picture, and
predictions.npz: 200 named test molecules with what the model says about them. Example:

  hipnn ship runs/qm9 qm9-u0
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace

from hipnn_pyg.cli.calibrate import Halves, take_halves
from hipnn_pyg.cli.model_card import model_card
from hipnn_pyg.cli.run_folder import RunFolder
from hipnn_pyg.models.files import ModelFileError, atomic_write, member_folders, read_card
from hipnn_pyg.models.pretrained import PRETRAINED
from hipnn_pyg.uncertainty import CalibratedModel

NUM_NAMED = 200
"""Test molecules whose predictions are kept."""


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn ship``."""
    options.add_argument("run", type=str, help="run folder that hipnn calibrate has seen")
    options.add_argument("name", type=str, help="of the model, such as qm9-u0")
    options.add_argument(
        "--output", type=str, default=str(PRETRAINED), help="where the folder NAME goes"
    )
    options.add_argument("--root", type=str | None, default=None, help="folder of the data set")


def run(arguments: Namespace) -> None:
    """Write the folder and say how large it is."""
    folder = ship(Path(arguments.run), arguments.name, Path(arguments.output), root=arguments.root)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")


def ship(path: Path, name: str, output: Path = PRETRAINED, root: str | None = None) -> Path:
    """Copy a calibrated run's models, with card and named predictions.

    Args:
        path: run folder of one model or of an ensemble.
        name: lower-case letters, digits and hyphens.
        output: where the folder goes.
        root: another folder for the data set.

    Returns:
        The folder.

    Raises:
        FileExistsError: there is such a folder.
        ModelFileError: the run was not calibrated.
        ValueError: a name that is no name.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"{name!r} is no model name: use a-z, 0-9 and hyphens, as in qm9-u0")
    target = output / name
    if target.exists():
        raise FileExistsError(f"{target} exists: delete it first, or choose another name")
    members = member_folders(path)
    model = CalibratedModel.load(path)
    report = path / "calibration.json"
    if model.error_bars is None or not report.is_file():
        raise ModelFileError(
            f"{path} has no error bars: run `hipnn calibrate {shlex.quote(str(path))}` first"
        )
    record = model.error_bars.provenance
    seed = int(record["calibration_seed"])
    halves = take_halves(members, int(record["num_calibration"]), seed, root)
    if halves.checksum != record["calibration_split_sha256"]:
        raise ModelFileError(f"{path} was calibrated on other molecules: run `hipnn calibrate`")

    named = named_predictions(model, halves, seed)
    contents: dict[Path, bytes] = {}
    for number, member in enumerate(members):
        place = target if number == 0 else target / f"member-{number}"
        for file in ("model.safetensors", "model.json"):
            contents[place / file] = (member / file).read_bytes()
    for file in ("error_bars.safetensors", "error_bars.json", "calibration.json"):
        contents[target / file] = (path / file).read_bytes()
    contents[target / "error_bars.png"] = (RunFolder(path).plots / "error_bars.png").read_bytes()
    settings = [RunFolder(member).read_config() for member in members]
    cards = [read_card(member) for member in members]
    text = model_card(name, cards, settings, json.loads(report.read_text()))
    contents[target / "card.md"] = text.encode()
    for place in {path.parent for path in contents}:
        place.mkdir(parents=True, exist_ok=True)
    atomic_write(contents)
    np.savez_compressed(target / "predictions.npz", **named)
    return target


def named_predictions(model: CalibratedModel, halves: Halves, seed: int) -> dict[str, Any]:
    """Structures of some test molecules, and all that the model says about them.

    Args:
        model: with its error bars.
        halves: the data set and its test molecules.
        seed: which of them.

    Returns:
        Arrays; energies in the model's unit, positions in Å. ``test_set`` has one bit per molecule
        of the data set (``numpy.packbits``).
    """
    molecules, test = halves.molecules, halves.test
    draw = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    index = test[draw[:NUM_NAMED]].sort().values
    batch = molecules.gather(index)
    out = model.predict(molecules.subset(index), "given")
    assert out.unlike_training is not None
    inside = np.zeros(len(molecules), dtype=bool)
    inside[test.numpy()] = True
    smiles = halves.smiles or [""] * len(molecules)
    names = halves.names or [f"molecule {number}" for number in range(len(molecules))]
    return {
        "name": np.array([names[number] for number in index.tolist()]),
        "smiles": np.array([smiles[number] for number in index.tolist()]),
        "index": index.numpy(),
        "counts": batch.ptr.diff().numpy(),
        "z": batch.z.numpy().astype(np.uint8),
        "pos": batch.pos.numpy(),
        "target": batch.target.numpy(),
        "energy": out.energy.numpy(),
        "q90": out.q90.numpy(),
        "nonhierarchicality": out.seen.nonhierarchicality.numpy(),
        "unlike_training": out.unlike_training.numpy(),
        "unit": np.array(model.energy_unit),
        "test_set": np.packbits(inside),
    }
