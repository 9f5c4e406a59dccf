"""Predict energies, their orders E^n and R of SMILES, structure files or a PyG data set.

Examples:

  hipnn predict --model runs/qm9 CCO "c1ccccc1"
  hipnn predict --model runs/qm9 molecules.xyz --output energies.csv
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import ase.io
import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from torch_geometric.data import Data, InMemoryDataset

from hipnn_pyg.checks import StructureError
from hipnn_pyg.cli.run_folder import usable_device
from hipnn_pyg.data.molecules import from_smiles, read_structures, to_atoms
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.targets import Target
from hipnn_pyg.models.files import atomic_write, load_model
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.train.metrics import Predictions, predict
from hipnn_pyg.units import ENERGY_UNITS, convert

SHOWN = 40
"""Rows printed to a terminal; files get all."""


class StoredDataset(InMemoryDataset):
    """A PyG data set as it lies in a root folder: the one file below ``processed/``.

    Args:
        root: folder that PyG's data set class was given.
    """

    def __init__(self, root: str | Path) -> None:
        files = sorted(
            path for path in Path(root).rglob("processed/*.pt") if not path.name.startswith("pre_")
        )
        if len(files) != 1:
            raise StructureError(
                f"{root} has {len(files)} files processed/*.pt: give the root folder of one "
                "PyG InMemoryDataset"
            )
        super().__init__()
        self.load(str(files[0]))


class Named(NamedTuple):
    """A structure and what to call it."""

    name: str
    data: Data


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn predict``."""
    options.add_argument("--model", type=str, required=True, help="run folder or model folder")
    options.add_argument(
        "inputs",
        nargs="+",
        type=str,
        help="SMILES, files that ASE reads (xyz, extxyz, db ...), or roots of PyG data sets",
    )
    options.add_argument("--output", type=str | None, help="a .csv, .xyz or .extxyz file")
    options.add_argument("--unit", type=str | None, help="energy unit; default: the model's")
    options.add_argument("--seed", type=int, default=0, help="of the conformers made from SMILES")
    options.add_argument(
        "--optimize", type=bool, default=True, help="relax conformers made from SMILES (MMFF94)"
    )
    options.add_argument("--limit", type=int | None, help="first structures only")
    options.add_argument("--device", type=str, default="cpu", help="cpu or cuda")


def run(arguments: Namespace) -> None:
    """Predict and write."""
    model = load_model(arguments.model, usable_device(arguments.device))
    unit = arguments.unit or model.energy_unit
    structures = read_inputs(arguments.inputs, arguments.seed, arguments.optimize)
    structures = structures[: arguments.limit]
    rows = predict_rows(model, structures, unit)
    if arguments.output is None:
        Console().print(as_table(rows, unit))
    elif Path(arguments.output).suffix == ".csv":
        atomic_write({Path(arguments.output): as_csv(rows).encode()})
    elif Path(arguments.output).suffix in (".xyz", ".extxyz"):
        write_extxyz(Path(arguments.output), structures, rows, unit)
    else:
        raise ValueError(f"--output {arguments.output} must end in .csv, .xyz or .extxyz")


def read_inputs(inputs: Iterable[str], seed: int = 0, optimize: bool = True) -> list[Named]:
    """Structures of every input: an existing file or folder, else a SMILES.

    Args:
        inputs: SMILES strings, file names, folder names.
        seed: of the conformers made from SMILES.
        optimize: relax those with MMFF94.

    Raises:
        StructureError: an input is none of these, or holds a bad structure.
    """
    found: list[Named] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            dataset: Sequence[Data] = StoredDataset(path)
            found += [
                Named(str(data.get("name") or f"{text}#{number}"), data)
                for number, data in enumerate(dataset)
            ]
        elif path.is_file():
            structures = read_structures(path)
            found += [Named(f"{path.name}#{number}", d) for number, d in enumerate(structures)]
        elif path.suffix in (".xyz", ".extxyz", ".db", ".traj", ".cif", ".sdf", ".json"):
            raise StructureError(f"{text} does not exist: give a file, a folder or a SMILES")
        else:
            found.append(Named(text, from_smiles(text, seed, optimize)))
    for name, data in found:
        if "cell" in data:
            raise StructureError(
                f"{name} is periodic, and periodic cells are not supported yet: remove cell and pbc"
            )
    return found


def predict_rows(
    model: HIPNN, structures: Sequence[Named], unit: str
) -> list[dict[str, str | float]]:
    """One row per structure: name, energy, each order E^n (in ``unit``) and R.

    Args:
        model: the model.
        structures: what to predict.
        unit: energy unit of the rows.

    Raises:
        ValueError: the model's unit cannot be converted.
        StructureError: bad structures.
    """
    factor = 1.0 if unit == model.energy_unit else convert(1.0, model.energy_unit, unit)
    no_target = Target("none", model.energy_unit, "none")
    items = [Data(z=d.z, pos=d.pos, none=torch.zeros(1)) for _, d in structures]
    packed = PackedMolecules.pack(items, no_target)
    result: Predictions = predict(model, packed)
    return [
        {
            "name": name,
            "energy": float(energy) * factor,
            "unit": unit,
            **{f"E{n}": float(order) * factor for n, order in enumerate(orders)},
            "R": float(r),
        }
        for (name, _), energy, orders, r in zip(structures, *result, strict=True)
    ]


def as_table(rows: Sequence[dict[str, str | float]], unit: str) -> Table:
    """The rows for a terminal."""
    table = Table(title=f"energies in {unit}; R: non-hierarchicality, larger is less certain")
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading == "name" else "right")
    for row in rows[:SHOWN]:
        table.add_row(*(v if isinstance(v, str) else f"{v:.5f}" for v in row.values()))
    if len(rows) > SHOWN:
        table.caption = f"{len(rows) - SHOWN:,} more rows: write them all with --output FILE.csv"
    return table


def as_csv(rows: Sequence[dict[str, str | float]]) -> str:
    """The rows as CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_extxyz(
    path: Path, structures: Sequence[Named], rows: Sequence[dict[str, str | float]], unit: str
) -> None:
    """Structures with their results; ``energy`` is in eV, as ASE stores it."""
    if unit not in ENERGY_UNITS:
        raise ValueError(
            f"extxyz stores energies in eV, and {unit!r} cannot be converted: use .csv"
        )
    images = []
    for (_, data), row in zip(structures, rows, strict=True):
        in_ev = {k: convert(v, unit, "eV") for k, v in row.items() if isinstance(v, float)}
        atoms = to_atoms(data, energy=in_ev["energy"])
        atoms.info |= {key: value for key, value in in_ev.items() if key.startswith("E")}
        atoms.info |= {"name": row["name"], "R": row["R"]}
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
