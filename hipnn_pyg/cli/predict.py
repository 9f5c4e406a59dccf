"""Predict energies, their orders E^n and R of SMILES, structure files or a PyG data set.

With the error bars of hipnn calibrate: half-widths of the 50, 90 and 95 % intervals, and a flag for
structures unlike the training data. The model may be an ensemble's run folder, or the name of one
that comes with the package. Examples:

  hipnn predict --model runs/qm9 CCO "c1ccccc1"
  hipnn predict --model runs/qm9 molecules.xyz --output energies.csv
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import ase.io
from jsonargparse import ArgumentParser, Namespace
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch_geometric.data import Data, InMemoryDataset

from hipnn_pyg.checks import StructureError
from hipnn_pyg.cli.run_folder import usable_device
from hipnn_pyg.data.molecules import from_smiles, read_structures, to_atoms
from hipnn_pyg.models.files import atomic_write
from hipnn_pyg.uncertainty import GEOMETRIES, CalibratedModel, Geometry
from hipnn_pyg.units import ENERGY_UNITS, convert

SHOWN = 40
"""Rows printed to a terminal; files get all."""

Row = dict[str, str | float | bool]


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
    """A structure, what to call it, and where its positions come from."""

    name: str
    data: Data
    geometry: Geometry | None = "given"


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn predict``."""
    options.add_argument(
        "--model", type=str, required=True, help="run folder, model folder or name"
    )
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
    model = CalibratedModel.load(arguments.model, usable_device(arguments.device))
    unit = arguments.unit or model.energy_unit
    structures = read_inputs(arguments.inputs, arguments.seed, arguments.optimize)
    structures = structures[: arguments.limit]
    rows = predict_rows(model, structures, unit)
    if arguments.output is None:
        Console().print(*as_tables(rows, unit))
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
            geometry: Geometry | None = "rdkit" if optimize else None
            found.append(Named(text, from_smiles(text, seed, optimize), geometry))
    for name, data, _ in found:
        if "cell" in data:
            raise StructureError(
                f"{name} is periodic, and periodic cells are not supported yet: remove cell and pbc"
            )
    return found


def predict_rows(model: CalibratedModel, structures: Sequence[Named], unit: str) -> list[Row]:
    """One row per structure: name, energy, error bars, each order E^n (in ``unit``), R and flag.

    Args:
        model: the model or ensemble.
        structures: what to predict.
        unit: energy unit of the rows.

    Raises:
        ValueError: the model's unit cannot be converted.
        StructureError: bad structures.
    """
    factor = 1.0 if unit == model.energy_unit else convert(1.0, model.energy_unit, unit)
    rows: dict[int, Row] = {}
    for geometry in dict.fromkeys(structure.geometry for structure in structures):
        places = [k for k, structure in enumerate(structures) if structure.geometry == geometry]
        bars = model.error_bars
        calibrated = bars is not None and geometry in bars.calibrations
        data = [structures[k].data for k in places]
        out = model.predict(data, geometry if calibrated else None)
        for number, place in enumerate(places):
            row: Row = {
                "name": structures[place].name,
                "energy": float(out.energy[number]) * factor,
            }
            row["unit"] = unit
            if out.judgement is not None and bars is not None:
                widths = out.judgement.half_width[number].tolist()
                for level, width in zip(bars.levels, widths, strict=True):
                    row[f"q{100 * level:g}"] = width * factor
            if out.seen.spread is not None:
                row["spread"] = float(out.seen.spread[number]) * factor
            for n, order in enumerate(out.seen.orders[number].tolist()):
                row[f"E{n}"] = order * factor
            row["R"] = float(out.seen.nonhierarchicality[number])
            row["geometry"] = GEOMETRIES[geometry]
            if out.judgement is not None:
                row["unlike_training"] = bool(out.judgement.unlike_training[number])
            rows[place] = row
    return [rows[k] for k in range(len(structures))]


def as_tables(rows: Sequence[Row], unit: str) -> list[Table]:
    """The rows for a terminal, one table for each kind of geometry."""
    tables = []
    for geometry in dict.fromkeys(row["geometry"] for row in rows):
        mine = [row for row in rows if row["geometry"] == geometry]
        tables.append(_as_table(mine, f"energies in {unit}, {geometry}", unit))
    return tables


def _as_table(rows: Sequence[Row], title: str, unit: str) -> Table:
    digits, short = (5, 4) if unit in ("eV", "Hartree") else (3, 3)
    judged = "unlike_training" in rows[0]
    energy = "energy ± q90" if judged else "energy"
    others = [name for name in rows[0] if name[0] in "ERs"]  # E0 ..., R, spread
    caption = "R: non-hierarchicality, larger is less certain"
    if judged:
        caption = f"q90: 90 % of errors are smaller; unlike: no training data like it\n{caption}"
    if len(rows) > SHOWN:
        caption += f"\n{len(rows) - SHOWN:,} more rows: write them all with --output FILE.csv"
    table = Table(title=title, caption=caption, box=SIMPLE)
    for heading in ["name", energy, *others] + ["flag"] * judged:
        justify: Literal["left", "right"] = "left" if heading in ("name", "flag") else "right"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading != "name")
    for row in rows[:SHOWN]:
        cells = [f"{row['energy']:.{digits}f}", *(f"{row[name]:.{short}f}" for name in others)]
        if judged:
            cells[0] += f" ± {row['q90']:.{digits}f}"
            cells.append("unlike" if row["unlike_training"] else "")
        table.add_row(str(row["name"]), *cells)
    return table


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV text; what a row has no value for stays empty."""
    text = io.StringIO()
    columns = max(rows, key=len)
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_extxyz(path: Path, structures: Sequence[Named], rows: Sequence[Row], unit: str) -> None:
    """Structures with their results; energies are in eV, as ASE stores them."""
    if unit not in ENERGY_UNITS:
        raise ValueError(
            f"extxyz stores energies in eV, and {unit!r} cannot be converted: use .csv"
        )
    images = []
    for structure, row in zip(structures, rows, strict=True):
        energies = {
            key: convert(value, unit, "eV")
            for key, value in row.items()
            if isinstance(value, float) and key != "R"
        }
        atoms = to_atoms(structure.data, energy=energies.pop("energy"))
        rest = row.keys() - energies - {"energy", "unit"}
        atoms.info |= energies | {key: row[key] for key in row if key in rest}
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
