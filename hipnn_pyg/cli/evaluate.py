"""Print a run's errors on its test set, beside the paper's if any: MAE, RMSE, % above 1 kcal/mol.

Forces and stress are tested where they were learned, forces with --forces wherever the data set has
them.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from hipnn_pyg.cli.run_folder import RunFolder, history, of_class, usable_device
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.sets import MoleculeSet, QM9Set
from hipnn_pyg.models.files import atomic_write, check_writable, load_model
from hipnn_pyg.reproduce.report import print_whole
from hipnn_pyg.reproduce.rows import printed_for
from hipnn_pyg.reproduce.tables import STATISTICS, published
from hipnn_pyg.train.config import Network
from hipnn_pyg.train.metrics import (
    ErrorStatistics,
    ForceStatistics,
    error_statistics,
    force_statistics,
    predict,
    predict_stress,
    stress_statistics,
)

Part = Literal["test", "validation", "train"]


class Evaluation(NamedTuple):
    """Errors of a run on one part of its data set.

    Attributes:
        energy: of the energies, kcal/mol where the target is an energy.
        forces: of the force components, kcal/mol/Å; None where they were not looked at.
        paper: the paper's figures for the energies, as text.
        stress: of the stress components, GPa; None where stress was not looked at.
    """

    energy: ErrorStatistics
    forces: ForceStatistics | None
    paper: dict[str, str]
    stress: ForceStatistics | None = None


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn evaluate``."""
    options.add_argument("run", type=str, help="run folder of hipnn train")
    options.add_argument("--part", type=Part, default="test", help="which molecules")
    options.add_argument(
        "--forces", action="store_true", help="test forces even if they were not learned"
    )
    options.add_argument("--json", type=str | None, default=None, help="a copy of results.json")
    options.add_argument("--root", type=str | None, default=None, help="folder of the data set")
    options.add_argument("--device", type=str, default="cpu", help="cpu or cuda")


def run(arguments: Namespace) -> None:
    """Evaluate and print."""
    settings = (arguments.part, arguments.root, arguments.device, arguments.forces)
    path = Path(arguments.run)
    if arguments.json is not None:
        check_writable(Path(arguments.json).parent)
    print_whole(Console(), report(evaluate(path, *settings), arguments.part))
    if arguments.json is not None:
        shutil.copyfile(RunFolder(path).results, arguments.json)


def evaluate(
    path: Path,
    part: Part = "test",
    root: str | None = None,
    device: str = "cpu",
    forces: bool = False,
) -> Evaluation:
    """Predict one part of a run's data set; writes ``predictions.npz`` and ``results.json``.

    Args:
        path: run folder.
        part: which molecules.
        root: another folder for the data set.
        device: where to compute.
        forces: test forces even if they were not learned.

    Raises:
        ModelFileError: the folder holds no run, or a damaged one.
        OSError: nothing can be written to the folder.
        ValueError: there are no such molecules, or their data set has no forces.
    """
    folder = RunFolder(path)
    model = load_model(path, usable_device(device))
    check_writable(path)
    molecules, packed, split = folder.molecules(root)
    if forces and packed.forces is None:
        packed = _with_forces(molecules)
    index = getattr(split, part)
    if not len(index):
        raise ValueError(f"{path} has no {part} molecules: choose another --part")
    chosen = packed.subset(index)
    target, unit, of_forces, of_stress = chosen.target.cpu(), model.energy_unit, None, None
    components: dict[str, Any] = {}
    if chosen.forces is None:
        prediction = predict(model, chosen)
    else:
        learned = chosen.stress is not None and bool(torch.isfinite(chosen.stress).any())
        prediction, predicted, stress = predict_stress(model, chosen, stress=learned)
        labels = chosen.forces[chosen.atoms]
        of_forces = force_statistics(predicted, labels, unit)
        components |= {"forces": predicted.numpy(), "forces_target": labels.cpu().numpy()}
        if learned and chosen.stress is not None:
            of_stress = stress_statistics(stress, chosen.stress, unit)
            components |= {"stress": stress.numpy(), "stress_target": chosen.stress.cpu().numpy()}
    statistics = error_statistics(prediction.energy, target, unit)
    predictions = io.BytesIO()
    np.savez_compressed(
        predictions,
        **components,
        index=index.numpy(),
        target=target.numpy(),
        prediction=prediction.energy.numpy(),
        orders=prediction.orders.numpy(),
        nonhierarchicality=prediction.nonhierarchicality.numpy(),
        unit=np.array(unit),
        part=np.array(part),
    )
    network = of_class(Network, model.card["hyperparameters"])
    paper = paper_figures(molecules, network) if part == "test" else {}
    results = {"part": part, **statistics._asdict(), "paper": paper, "model": model.card}
    if folder.metrics.is_file():
        results["seconds"] = float(history(folder)["seconds"][-1])  # of the whole training
    if of_forces is not None:
        results["forces"] = of_forces._asdict()
    if of_stress is not None:
        results["stress"] = of_stress._asdict()
    text = json.dumps(results, indent=2).encode()
    atomic_write({folder.predictions: predictions.getvalue(), folder.results: text})
    return Evaluation(statistics, of_forces, paper, of_stress)


def _with_forces(molecules: MoleculeSet) -> PackedMolecules:
    """A data set loaded once more, now with its forces."""
    if isinstance(molecules, QM9Set):
        raise ValueError("QM9 has no forces to test against: leave --forces out")
    return replace(molecules, forces=True).load()[0]


def paper_figures(molecules: MoleculeSet, network: Network) -> dict[str, str]:
    """The paper's figures for the same data, sizes and network, as text; {} if none."""
    paper = printed_for(molecules, network)
    return {name: published(figure, STATISTICS[name][1]) for name, figure in paper.items()}


def report(evaluation: Evaluation, part: str) -> Table:
    """The table that ``hipnn evaluate`` prints, with a column for the paper's figures, if any."""
    statistics, forces, paper, stress = evaluation
    table = Table(title=f"{part} set, {statistics.num:,} molecules")
    table.add_column("statistic")
    for heading in ["this run", *["paper"] * bool(paper)]:
        table.add_column(heading, justify="right")

    def add(name: str, value: str, key: str = "") -> None:
        table.add_row(name, value, *[paper.get(key, "-")] * bool(paper))

    unit = statistics.unit
    add(f"MAE ({unit})", f"{statistics.mae:.3f}", "mae")
    add(f"RMSE ({unit})", f"{statistics.rmse:.3f}", "rmse")
    if statistics.above_1_kcal is not None:
        add("errors above 1 kcal/mol (%)", f"{statistics.above_1_kcal:.2f}", "above_1_kcal")
        in_mev = statistics.to("meV")
        add("MAE (meV)", f"{in_mev.mae:.2f}")
        add("RMSE (meV)", f"{in_mev.rmse:.2f}")
    for what, errors in (("force", forces), ("stress", stress)):
        if errors is not None:
            add(f"{what} MAE ({errors.unit})", f"{errors.mae:.3f}")
            add(f"{what} RMSE ({errors.unit})", f"{errors.rmse:.3f}")
    return table
