"""Explain one prediction: a page with the molecule in 3-D, E^n and R of every atom, the error bar.

The page opens without a server and without a network. Examples:

  hipnn explain CCO --model runs/qm9
  hipnn explain molecules.xyz --index 3 --model runs/qm9 --unit kcal/mol --output third.html
  hipnn explain "c1ccccc1" --model runs/qm9 --text
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from hipnn_pyg.checks import StructureError
from hipnn_pyg.cli.inputs import HELP, Listed, Named, Refused, embedded, listed
from hipnn_pyg.cli.run_folder import usable_device
from hipnn_pyg.explain import Report, break_down, judge, known_r, render, stand, summary, tables
from hipnn_pyg.models.files import atomic_write, check_writable, member_folders, read_card
from hipnn_pyg.models.pretrained import model_folder
from hipnn_pyg.reproduce.report import print_whole
from hipnn_pyg.uncertainty import CalibratedModel


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn explain``."""
    options.add_argument("input", type=str, help=HELP)
    options.add_argument(
        "--model", type=str, required=True, help="run folder, model folder, or name of a model"
    )
    options.add_argument("--output", type=str, default="explain.html", help="the page")
    options.add_argument("--text", action="store_true", help="print the tables; no page is written")
    options.add_argument("--index", type=int | None, help="which structure of a file, from 0")
    options.add_argument("--unit", type=str | None, help="energy unit; default: the model's")
    options.add_argument("--seed", type=int, default=0, help="of the conformer made from SMILES")
    options.add_argument(
        "--optimize", type=bool, default=True, help="relax a conformer made from SMILES (MMFF94)"
    )
    options.add_argument("--device", type=str, default="cpu", help="cpu or cuda")


def run(arguments: Namespace) -> None:
    """Write the page, or print."""
    output = Path(arguments.output)
    if output.suffix not in (".html", ".htm"):
        raise ValueError(f"--output {output} must end in .html")
    if not arguments.text:
        check_writable(output.parent)
    chosen = choose(listed([arguments.input]), arguments)
    (structure,) = embedded([chosen], arguments.seed, arguments.optimize)
    if isinstance(structure, Refused):
        raise StructureError(structure.reason)
    report = explain(structure, arguments)
    if not arguments.text:
        atomic_write({output: render(report).encode()})  # first: a terminal may lack characters
    print(*summary(report), sep="\n")
    if arguments.text:
        print_whole(Console(), *tables(report))
        return
    print(f"{output}: open it in a browser")


def choose(structures: Sequence[Listed], arguments: Namespace) -> Listed:
    """The one structure to explain.

    Raises:
        StructureError: there are none, or several and ``--index`` names none of them.
    """
    index = arguments.index
    if not structures:
        raise StructureError(f"{arguments.input} holds no structures")
    if index is None and len(structures) == 1:
        index = 0
    if index is None or not 0 <= index < len(structures):
        raise StructureError(
            f"{arguments.input} holds {len(structures):,} structures: choose one with --index "
            f"0 ... {len(structures) - 1}" + ("" if index is None else f", not {index}")
        )
    return structures[index]


def explain(structure: Named, arguments: Namespace) -> Report:
    """Everything that is known about one prediction.

    Raises:
        StructureError: of a periodic structure.
    """
    geometry = structure.geometry
    if geometry == "periodic":
        raise StructureError(
            f"{structure.name} is periodic, which the page does not show: hipnn predict prints its "
            "energy, E^n and R"
        )
    folder = model_folder(arguments.model)
    model = CalibratedModel.load(folder, usable_device(arguments.device))
    data = structure.data
    parts = break_down(model.models, data, arguments.unit)
    trust = judge(model, data, geometry, parts.unit)
    cards = [read_card(member) for member in member_folders(folder)]
    return Report(
        structure.name,
        parts,
        trust,
        stand(parts.r, known_r(folder, model.error_bars, geometry)),
        folder.resolve().name,
        facts(cards[0], len(cards)),
    )


def facts(card: dict[str, Any], num_models: int) -> dict[str, str]:
    """What a model file says about its model, for people."""
    sizes = card["hyperparameters"]
    known = {
        "data set": card.get("dataset"),
        "target": card.get("target"),
        "training molecules": card.get("num_train"),
        "models": num_models if num_models > 1 else None,
        "features": sizes["hidden_channels"],
        "interactions": sizes["num_interactions"],
        "cutoff": f"{sizes['cutoff']:.3f} Å",
        "parameters": f"{card['num_parameters']:,}",
        "recipe": card.get("recipe"),
        "hipnn_pyg": card.get("hipnn_pyg_version"),
    }
    if num_models == 1:  # members of an ensemble have one each
        known["epoch"] = card.get("epoch")
    if num_models == 1 and "validation_mae" in card:
        known["validation MAE"] = f"{card['validation_mae']:.3f} {card.get('validation_unit', '')}"
    return {
        name: f"{value:,}" if isinstance(value, int) else str(value)
        for name, value in known.items()
        if value is not None
    }
