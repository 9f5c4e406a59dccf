"""Train a model on QM9, MD17 or your own structures; Ctrl-C loses nothing, --resume goes on.

The run folder then holds config.yaml, split.npz, metrics.csv, model.safetensors, model.json,
checkpoint.pt and TensorBoard logs; that of an ensemble holds one such folder per model, member-0,
member-1 ..., for hipnn evaluate and plot; hipnn predict takes the whole. Examples:

  hipnn train qm9 --recipe fast --epochs 10
  hipnn train qm9 --ensemble 8
  hipnn train qm9 --ensemble 4 --split_seed 0
  hipnn train md17 --molecule benzene
  hipnn train md17 --molecule "revised benzene" --forces
  hipnn train file --path structures.extxyz --num_train 900 --num_validation 100
  hipnn train file --path crystals.extxyz --num_train 90 --num_validation 10 --forces --stress
  hipnn train file --path mine.extxyz --num_train 90 --num_validation 10 --start qm9-u0
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from hipnn_pyg.cli.ensemble import train_ensemble
from hipnn_pyg.cli.prepare import prepare
from hipnn_pyg.cli.run_folder import RunFolder, of_class
from hipnn_pyg.data.sets import SETS, FileSet, MD17Set, MoleculeSet, QM9RDKitSet, QM9Set
from hipnn_pyg.models.files import ModelFileError, read_card
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.pretrained import model_folder
from hipnn_pyg.train.config import Network, Training
from hipnn_pyg.train.trainer import Trainer

DEFAULTS: dict[type, dict[str, object]] = {
    QM9Set: {},
    QM9RDKitSet: {},
    MD17Set: {"hidden_channels": 20, "num_onsite": 0, "epochs": 2000},  # Table III's model
    FileSet: {},
}
FORCES: dict[str, object] = {
    "hidden_channels": 64,
    "num_interactions": 3,
    "num_onsite": 2,
    "num_sensitivities": 10,  # smoother functions: forces are learned with less overfitting
    "batch_size": 5,
    "learning_rate": 2e-3,
    "lambda_r": 1e-3,
    "energy_weight": 0.01,
    "epochs": 1000,
    "validate_every": 10,
}
"""What ``--forces`` changes in these defaults; chosen by the validation errors of malonaldehyde."""
FLAGS = ("forces", "stress")
"""Options without a value."""
HELP = {
    "qm9": "QM9, the paper's main data set",
    "qm9-rdkit": "QM9's energies on RDKit geometries, for models that get SMILES",
    "md17": "a trajectory of MD17 or revised MD17 (Table III's model by default)",
    "file": "your own structures with energies",
}


class ConfigFile(ActionConfigFile):
    """``--config FILE``; names a key that is no option (jsonargparse loses it two levels deep)."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        known = {action.dest for action in parser._actions}
        try:
            keys = yaml.safe_load(Path(values).read_text())
        except (OSError, yaml.YAMLError) as error:
            parser.error(f"--config {values}: {error}")
        unknown = [key for key in keys or () if key not in known]
        if unknown:
            parser.error(f"--config {values}: {unknown[0]!r} is no option of this command")
        super().__call__(parser, namespace, values, option)


class Options(ArgumentParser):
    """Options whose defaults are those for forces where ``forces`` is chosen, and the network of
    the model to begin with where ``start`` names one: as an argument or in a ``--config`` file. A
    resumed run has a copy of that model."""

    def parse_args(self, args: Any = None, *more: Any, **others: Any) -> Any:
        """As ArgumentParser's."""
        chosen = _chosen(args or ())
        if chosen.get("forces"):
            self.set_defaults(FORCES)
            if chosen.get("recipe") == "paper":  # whose annealing needs every validation
                self.set_defaults({"validate_every": 1})
        start = chosen.get("start")
        if chosen.get("resume"):
            kept = RunFolder(Path(str(chosen.get("run", self.get_default("run"))))).start
            start = kept if kept.exists() else start
        if start:
            self.set_defaults(_network_of(str(start)))
        return super().parse_args(args, *more, **others)


def _chosen(args: Sequence[str]) -> dict[str, Any]:
    """What arguments, and files among them, say of ``forces``, ``start``, ``run``, ``recipe`` and
    ``resume``; the last counts."""
    chosen: dict[str, Any] = {}
    for number, argument in enumerate(args):
        name, given, value = argument.partition("=")
        value = value if given else "".join(args[number + 1 : number + 2])
        if name in ("--forces", "--resume"):
            chosen[name[2:]] = True
        elif name in ("--start", "--run", "--recipe"):
            chosen[name[2:]] = value
        elif name == "--config" and Path(value).is_file():
            with suppress(OSError, yaml.YAMLError):  # reported when it is parsed
                settings = yaml.safe_load(Path(value).read_text())
                chosen |= settings if isinstance(settings, dict) else {}
    return chosen


def _network_of(name: str) -> dict[str, Any]:
    """The sizes of a trained model's network; {} if there is none, which is reported later."""
    try:
        sizes = read_card(model_folder(name))["hyperparameters"]
    except ModelFileError:
        return {}
    return {field.name: sizes[field.name] for field in fields(Network)}


def add_options(parser: ArgumentParser) -> None:
    """Options of ``hipnn train``: one sub-command per data set."""
    sets = parser.add_subcommands(title="data sets", metavar="DATASET", dest="dataset")
    for name, kind in SETS.items():
        options = Options(description=f"Train on {HELP[name]}.")
        options.add_argument("--config", action=ConfigFile, help="a YAML file of these options")
        options.add_argument("--dataset", type=Literal[name], default=name, help=SUPPRESS)
        options.add_argument("--run", type=str, default=f"runs/{name}", help="run folder")
        options.add_argument("--resume", action="store_true", help="go on with the run in --run")
        options.add_argument(
            "--start",
            type=str | None,
            default=None,
            help="begin with the weights, E^0 and sigma_E of a trained model: a run folder or a "
            "name such as qm9-u0",
        )
        options.add_argument(
            "--ensemble",
            type=PositiveInt,
            default=1,
            help="models to train at once, of seed, seed + 1 ..., each with its own split unless "
            "--split_seed names one",
        )
        if kind in (MD17Set, FileSet):
            options.add_argument(
                "--forces",
                action="store_true",
                help="learn the forces, too; with other defaults: see --forces --help",
            )
        if kind is FileSet:
            options.add_argument(
                "--stress",
                action="store_true",
                help="with --forces: learn the stress, too, of the structures that have it",
            )
        for group in (kind, Network, Training):
            options.add_class_arguments(group, skip={*FLAGS})
        options.set_defaults(DEFAULTS[kind])
        sets.add_subcommand(name, options, help=HELP[name])


def run(arguments: Namespace) -> None:
    """Train as told."""
    name = arguments.dataset
    options = arguments[name].as_dict()
    molecules: MoleculeSet = of_class(SETS[name], options)
    settings = (
        molecules,
        of_class(Network, options),
        of_class(Training, options),
        Path(options["run"]),
    )
    number = int(options["ensemble"])
    if number > 1:
        if options["start"] is not None:
            raise ValueError("--start gives one model its weights: leave --ensemble out")
        train_ensemble(*settings, number, resume=options["resume"])
    else:
        train(*settings, resume=options["resume"], start=options["start"])


def train(
    molecules: MoleculeSet,
    network: Network,
    training: Training,
    path: Path,
    resume: bool = False,
    progress: bool = True,
    start: str | None = None,
) -> HIPNN:
    """Load, split, fit E^0, train; everything goes to the run folder.

    Args:
        molecules: the data set.
        network: the network.
        training: the settings of training.
        path: run folder.
        resume: go on with the run there.
        progress: show a progress bar and the result.
        start: a trained model to begin with, see :func:`~hipnn_pyg.cli.prepare.prepare`.

    Returns:
        The model with the best validation error.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is false.
        ModelFileError: nothing to resume, or a run with other settings.
        ValueError: a model to begin with that does not fit.
    """
    training = training.resolved()
    RunFolder(path).check_ready(molecules, network, training, resume)
    settings = (molecules, network, training, path, resume, progress)
    trainer = prepare(Trainer, molecules.load(), *settings, start=start)
    model = trainer.fit()
    if trainer.progress:
        forces = ""
        if trainer.forces:
            forces = f", of forces {trainer.best_row['validation_force_mae']:.4f} kcal/mol/Å,"
        if trainer.stress:
            forces += f" of stress {trainer.best_row['validation_stress_mae']:.4f} GPa,"
        print(
            f"validation MAE {trainer.best_mae:.4f} {trainer.metric_unit}{forces} in the best "
            f"epoch, {trainer.best_epoch} of {trainer.epoch}, {trainer.seconds:.0f} s of training; "
            f"next: {RunFolder(path).evaluation}"
        )
    return model
