"""What ``hipnn train`` leaves in a run folder, and how the other commands read it back."""

from __future__ import annotations

import csv
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml

from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.sets import SETS, MoleculeSet, describe
from hipnn_pyg.data.splits import Split
from hipnn_pyg.models.files import ModelFileError, atomic_write, read_card
from hipnn_pyg.train.checkpoint import MAY_CHANGE
from hipnn_pyg.train.config import Network, Training, as_trained

T = TypeVar("T")

RESUME_MAY_CHANGE = {*MAY_CHANGE, "root", "source", "path"}
"""Settings that do not change what is computed, so a resumed run may differ in them."""


def of_class(kind: type[T], values: dict[str, Any]) -> T:
    """The instance of a dataclass whose fields stand among ``values``; others have defaults."""
    present = {field.name for field in fields(kind)} & values.keys()  # type: ignore[arg-type]
    return kind(**{name: values[name] for name in present})


def usable_device(name: str) -> torch.device:
    """The device of a ``--device`` option.

    Raises:
        ValueError: this machine's PyTorch has no such device.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used ({reason}): try cpu") from error


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of a run.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting, resolved (YAML)."""
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        """Where training goes on from."""
        return self.path / "checkpoint.pt"

    @property
    def split(self) -> Path:
        """Training, validation and test indices."""
        return self.path / "split.npz"

    @property
    def start(self) -> Path:
        """The model that training began with (``--start``): a folder."""
        return self.path / "start"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.path / "metrics.csv"

    @property
    def predictions(self) -> Path:
        """What ``hipnn evaluate`` predicted."""
        return self.path / "predictions.npz"

    @property
    def results(self) -> Path:
        """Test statistics (JSON)."""
        return self.path / "results.json"

    @property
    def plots(self) -> Path:
        """Pictures."""
        return self.path / "plots"

    def member(self, number: int) -> RunFolder:
        """The folder of one model of an ensemble: that of an ordinary run."""
        return RunFolder(self.path / f"member-{number}")

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint, of one model or of a member of an ensemble."""
        return self.checkpoint.exists() or any(self.path.glob("member-*/checkpoint.pt"))

    @property
    def has_model(self) -> bool:
        """Whether there is a trained model; a finished one may have given up its checkpoint."""
        return any(any(self.path.glob(name)) for name in ("model.json", "member-*/model.json"))

    @property
    def evaluation(self) -> str:
        """The command that comes after training; without a test set it names another part."""
        part = "" if len(Split.load(self.split).test) else " --part validation"
        return f"hipnn evaluate {shlex.quote(str(self.path))}{part}"

    def write_config(
        self,
        molecules: MoleculeSet,
        network: Network,
        training: Training,
        ensemble: int = 1,
        start: str | None = None,
    ) -> None:
        """Keep the settings; ``hipnn train DATASET --config`` takes them back."""
        self.path.mkdir(parents=True, exist_ok=True)
        settings = {**describe(molecules), **asdict(network), **asdict(training)}
        if start is not None:
            settings["start"] = start
        if ensemble > 1:
            settings["ensemble"] = ensemble
        atomic_write({self.config: yaml.safe_dump(settings, sort_keys=False).encode()})

    def read_config(self) -> dict[str, Any]:
        """Every setting of the run.

        Raises:
            ModelFileError: the folder holds no run, or a damaged one.
        """
        if not self.config.is_file():
            raise ModelFileError(f"{self.path} holds no run (no config.yaml): see hipnn train")
        try:
            settings = yaml.safe_load(self.config.read_text())
        except yaml.YAMLError:
            settings = None
        if not isinstance(settings, dict) or settings.get("dataset") not in SETS:
            raise ModelFileError(f"{self.config} is damaged: start the run anew")
        return settings

    def check_same(
        self, molecules: MoleculeSet, network: Network, training: Training, ensemble: int = 1
    ) -> None:
        """A resumed run must have the settings it began with.

        Raises:
            ModelFileError: naming the first setting that differs.
        """
        old = {"ensemble": 1, **as_trained(self.read_config(), type(molecules))}
        old.pop("start", None)  # the checkpoint is further on
        new = {**describe(molecules), **asdict(network), **asdict(training), "ensemble": ensemble}
        for name in sorted((old.keys() | new.keys()) - RESUME_MAY_CHANGE):
            if old.get(name) != new.get(name):
                raise ModelFileError(
                    f"{self.path} was trained with {name} = {old.get(name)}, not {new.get(name)}: "
                    f"resume with the old value, or choose another --run folder"
                )

    def check_ready(
        self,
        molecules: MoleculeSet,
        network: Network,
        training: Training,
        resume: bool,
        ensemble: int = 1,
    ) -> None:
        """A new run needs a folder without one; a resumed run the settings that it began with.

        Raises:
            FileExistsError: the folder holds a run and ``resume`` is false.
            ModelFileError: nothing to resume, or a run with other settings.
        """
        if not resume and (self.begun or self.has_model):
            raise FileExistsError(
                f"{self.path} holds a run: go on with --resume, or choose another --run"
            )
        if resume:
            self.check_same(molecules, network, training, ensemble)
        if resume and not self.begun and self.has_model:
            raise ModelFileError(f"{self.path} is finished, its checkpoint gone: nothing to resume")
        if resume and not self.begun:
            raise ModelFileError(
                f"{self.path} has no checkpoint: nothing to resume; leave --resume out to start "
                "this run"
            )

    def molecules(self, root: str | None = None) -> tuple[MoleculeSet, PackedMolecules, Split]:
        """The data set of the run, loaded, and its split.

        Args:
            root: another folder for the data set than the one in the configuration.

        Raises:
            ModelFileError: a file of other structures than those that were split: its test set
                might hold training structures.
        """
        settings = self.read_config()
        if root is not None:
            settings["path" if settings["dataset"] == "file" else "root"] = root
        chosen: MoleculeSet = of_class(SETS[settings["dataset"]], settings)
        packed, candidates = chosen.load()
        card = read_card(self.path) if (self.path / "model.json").is_file() else {}
        known = card.get("structures_sha256")
        if known not in (None, packed.sha256):
            raise ModelFileError(
                f"{settings['path']} does not hold the structures that {self.path} was trained on, "
                "or not in their order: its test set would have training structures; restore it"
            )
        split = Split.load(self.split)
        drawn = torch.cat((split.train, split.validation, split.test))
        if not bool(torch.isin(drawn, candidates).all()):
            raise ModelFileError(
                f"{self.path} was split among molecules that its data set no longer offers, such "
                "as those that another version of RDKit embeds: restore it, or train anew"
            )
        return chosen, packed, split


def history(folder: RunFolder) -> dict[str, np.ndarray]:
    """Columns of ``metrics.csv``.

    Raises:
        ModelFileError: missing or empty.
    """
    try:
        with open(folder.metrics, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["validation_mae"]]
        names = ("epoch", "seconds", "validation_mae", "validation_rmse")
        return {name: np.array([float(row[name]) for row in rows]) for name in names if rows[0]}
    except (OSError, IndexError, KeyError, ValueError) as error:
        raise ModelFileError(f"{folder.metrics} is missing or damaged: {error!r}") from error
