"""``hipnn train --ensemble``: several models, splits and run folders, one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hipnn_pyg.cli.prepare import prepare
from hipnn_pyg.cli.run_folder import RunFolder
from hipnn_pyg.data.sets import MoleculeSet
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.reproduce.groups import mean
from hipnn_pyg.reproduce.report import print_whole
from hipnn_pyg.reproduce.tables import number as figure
from hipnn_pyg.train.config import Network, Training
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member
from hipnn_pyg.train.trainer import Trainer


def train_ensemble(
    molecules: MoleculeSet,
    network: Network,
    training: Training,
    path: Path,
    number: int,
    resume: bool = False,
    progress: bool = True,
) -> list[HIPNN]:
    """Train several models at once, each as ``hipnn train`` would with its own seed.

    Args:
        molecules: the data set.
        network: the network.
        training: the settings of training; model k has the seed ``training.seed + k``.
        path: run folder; model k's own is ``member-k`` in it.
        number: of models.
        resume: go on with the ensemble there.
        progress: show a progress bar and the results.

    Returns:
        The models with the best validation error.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is false.
        ModelFileError: nothing to resume, or an ensemble with other settings.
        ValueError: several devices.
    """
    training, folder = training.resolved(), RunFolder(path)
    if training.devices != 1 or training.num_nodes != 1:
        raise ValueError(
            f"--ensemble {number} trains all models on one device: leave --devices "
            f"{training.devices} --num_nodes {training.num_nodes} out"
        )
    folder.check_ready(molecules, network, training, resume, number)
    loaded, resident, members = molecules.load(), None, []
    if not resume:
        folder.write_config(molecules, network, training, number)
    for k in range(number):
        own = folder.member(k)
        going_on = resume and own.checkpoint.exists()  # killed before its first: it starts anew
        seeded = replace(training, seed=training.seed + k)
        own.check_ready(molecules, network, seeded, going_on)
        settings = (molecules, network, seeded, own.path, going_on)
        member = prepare(Member, loaded, *settings, progress=False, resident=resident)
        if resident is None:
            resident = loaded[0].to(member.device)
        members.append(member)
    models = EnsembleTrainer(members, progress=progress).fit()
    if progress:
        print_whole(Console(), report(members))
        print(f"next: {folder.member(0).evaluation}")
    return models


def report(members: Sequence[Trainer]) -> Table:
    """The table that training an ensemble ends with.

    The error bar of the mean is the sample standard deviation over the square root of the number
    of models; fewer than three have none.
    """
    unit = members[0].metric_unit
    errors = {f"validation MAE ({unit})": "validation_mae"}
    if members[0].forces:
        errors[f"of forces ({unit}/Å)"] = "validation_force_mae"
    if members[0].stress:
        errors["of stress (GPa)"] = "validation_stress_mae"
    table = Table(title=f"{len(members)} models")
    for heading in ("model", "seed", *errors, "best epoch", "epochs"):
        table.add_column(heading, justify="right")
    for number, member in enumerate(members):
        figures = [f"{member.best_row[column]:.4f}" for column in errors.values()]
        of_epochs = f"{member.best_epoch}", f"{member.epoch}"
        table.add_row(f"{number}", f"{member.config.seed}", *figures, *of_epochs)
    table.add_section()
    columns = [[member.best_row[column] for member in members] for column in errors.values()]
    table.add_row("mean", "", *(figure(mean(column), 4) for column in columns))
    return table
