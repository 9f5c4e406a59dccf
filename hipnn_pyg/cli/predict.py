"""Predict energies, their orders E^n and R of SMILES, structure files or a PyG data set.

With the error bars of hipnn calibrate: half-widths of the 50, 90 and 95 % intervals, and a flag for
structures unlike the training data. The model may be an ensemble's run folder, or the name of one
that comes with the package. What has no energy (a SMILES that RDKit cannot embed, an element that
the model does not know) is named in the end; all others have theirs. Examples:

  hipnn predict --model qm9-u0-rdkit CCO "c1ccccc1"
  hipnn predict --model qm9-u0-rdkit library.smi --output energies.csv
  hipnn predict --model runs/qm9 molecules.xyz --unit kcal/mol
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ase.io
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hipnn_pyg.checks import StructureError
from hipnn_pyg.cli.inputs import HELP, Named, Refused, check, embedded, listed
from hipnn_pyg.cli.run_folder import usable_device
from hipnn_pyg.data.molecules import to_atoms
from hipnn_pyg.explain.trust import why_missing
from hipnn_pyg.models.files import atomic_write, check_writable
from hipnn_pyg.reproduce.report import print_whole
from hipnn_pyg.uncertainty import GEOMETRIES, GIVEN, CalibratedModel, Geometry
from hipnn_pyg.units import ENERGY_UNITS, convert

SHOWN = 40
"""Rows printed to a terminal; files get all."""

DIGITS = {"Hartree": (5, 4), "eV": (4, 3)}
"""Decimals of energies, and of orders, spread and R, on a terminal; files get all."""

Row = dict[str, str | float | bool]


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn predict``."""
    options.add_argument(
        "--model", type=str, required=True, help="run folder, model folder or name"
    )
    options.add_argument("inputs", nargs="+", type=str, help=HELP)
    options.add_argument("--output", type=str | None, help="a .csv, .xyz or .extxyz file")
    options.add_argument("--unit", type=str | None, help="energy unit; default: the model's")
    options.add_argument("--seed", type=int, default=0, help="of the conformers made from SMILES")
    options.add_argument(
        "--optimize", type=bool, default=True, help="relax conformers made from SMILES (MMFF94)"
    )
    options.add_argument("--limit", type=PositiveInt | None, help="first structures only")
    options.add_argument("--device", type=str, default="cpu", help="cpu or cuda")


def run(arguments: Namespace) -> None:
    """Predict and write."""
    model = CalibratedModel.load(arguments.model, usable_device(arguments.device))
    unit = arguments.unit or model.energy_unit
    output = Path(arguments.output) if arguments.output else None
    check_output(output, unit, model.energy_unit)
    found = listed(arguments.inputs, arguments.limit)
    read = check(embedded(found, arguments.seed, arguments.optimize, progress=True), model)
    structures = [each for each in read if isinstance(each, Named)]
    refused = [each for each in read if isinstance(each, Refused)]
    rows = predict_rows(model, structures, unit)
    if output is not None and output.suffix == ".csv" and read:
        left = iter(rows)
        lines = [next(left) if isinstance(r, Named) else error_row(r) for r in read]
        atomic_write({output: as_csv(lines).encode()})
        print(output)
    elif output is not None and rows:
        write_extxyz(output, structures, rows, unit)
        print(output)
    elif rows:
        print_whole(Console(), *as_tables(rows, unit, model))
    if refused or not read:
        raise StructureError(complaint(refused, len(read)))


def check_output(output: Path | None, unit: str, energy_unit: str) -> None:
    """Whether results can be written, before they are computed; makes the folder.

    Args:
        output: a file, or None for the terminal.
        unit: energy unit to write.
        energy_unit: the model's.

    Raises:
        OSError: nothing can be written to the folder.
        ValueError: a format or unit that is none.
    """
    if unit != energy_unit:
        convert(1.0, energy_unit, unit)
    if output is None:
        return
    if output.suffix not in (".csv", ".xyz", ".extxyz"):
        raise ValueError(f"--output {output} must end in .csv, .xyz or .extxyz")
    if output.suffix != ".csv" and unit not in ENERGY_UNITS:
        raise ValueError(
            f"extxyz stores energies in eV, and {unit!r} cannot be converted: use .csv"
        )
    check_writable(output.parent)


def error_row(refused: Refused) -> Row:
    """The row of what has no energy."""
    return {"name": refused.name, "error": refused.reason}


def complaint(refused: Sequence[Refused], number: int) -> str:
    """What is wrong with the structures that have no energy.

    Args:
        refused: these.
        number: of all structures.
    """
    if number <= 1:
        return refused[0].reason if refused else "no structures were given"
    reasons = "\n".join(f"  {each.reason}" for each in refused[:SHOWN])
    more = f"\n  and {len(refused) - SHOWN:,} more" if len(refused) > SHOWN else ""
    return f"{len(refused):,} of {number:,} structures have no energy:\n{reasons}{more}"


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
        data = [structures[k].data for k in places]
        known: Geometry | None = None
        if geometry != "periodic" and bars is not None and geometry in bars.calibrations:
            known = geometry
        out = model.predict(data, known)
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


def as_tables(rows: Sequence[Row], unit: str, model: CalibratedModel) -> list[Table]:
    """The rows for a terminal, one table for each kind of geometry.

    Args:
        rows: as :func:`predict_rows` gives them.
        unit: of the energies.
        model: that they are of.
    """
    tables = []
    for geometry in dict.fromkeys(row["geometry"] for row in rows):
        mine = [row for row in rows if row["geometry"] == geometry]
        what = model.models[0].card.get("target", "energy")
        title, about_r = f"{what} in {unit}, {geometry}", _about_r(model, str(geometry))
        if "unlike_training" not in mine[0]:
            about_r = f"no error bars: {why_missing(model)}\n{about_r}"
        tables.append(_as_table(mine, title, unit, about_r))
    return tables


def _about_r(model: CalibratedModel, geometry: str) -> str:
    """What R says about the errors of a model."""
    if not model.models[0].hierarchical:
        return "the model has no hierarchy: R says nothing"
    calibrations = model.error_bars.calibrations if model.error_bars is not None else {}
    known = {GEOMETRIES[g]: c.intervals.errors_grow for g, c in calibrations.items()}
    grows = known.get(geometry)
    if grows is None:
        return "R: non-hierarchicality, Eq. 18 of the paper"
    return f"R: non-hierarchicality; this model's errors {'' if grows else 'do not '}grow with it"


def _as_table(rows: Sequence[Row], title: str, unit: str, about_r: str) -> Table:
    digits, short = DIGITS.get(unit, (3, 3))
    judged = "unlike_training" in rows[0]
    energy = "energy ± q90" if judged else "energy"
    others = [name for name in rows[0] if name[0] in "ERs"]  # E0 ..., R, spread
    caption = about_r
    if judged:
        caption = f"q90: 90 % of errors are smaller; unlike: no training data like it\n{caption}"
        if rows[0]["geometry"] == GEOMETRIES["given"]:
            caption = f"error bars are for {GIVEN}\n{caption}"
    if len(rows) > SHOWN:
        caption += f"\n{len(rows) - SHOWN:,} more rows: write them all with --output FILE.csv"
    table = Table(
        title=title, caption=caption, box=SIMPLE, pad_edge=False, collapse_padding=True
    )  # so that an ensemble's rows fit 80 columns
    for heading in ["name", energy, *others] + ["flag"] * judged:
        justify: Literal["left", "right"] = "left" if heading in ("name", "flag") else "right"
        least = 8 if heading == "name" else None
        table.add_column(heading, justify=justify, overflow="fold", min_width=least)
    for row in rows[:SHOWN]:
        cells = [f"{row['energy']:.{digits}f}", *(f"{row[name]:.{short}f}" for name in others)]
        if judged:
            cells[0] += f" ± {row['q90']:.{digits}f}"
            cells.append("unlike" if row["unlike_training"] else "")
        table.add_row(*map(Text, [str(row["name"]), *cells]))
    return table


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV text; what a row has no value for stays empty."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_extxyz(path: Path, structures: Sequence[Named], rows: Sequence[Row], unit: str) -> None:
    """Structures with their results; energies are in eV, as ASE stores them."""
    images = []
    for structure, row in zip(structures, rows, strict=True):
        energies = {
            key: convert(value, unit, "eV")
            for key, value in row.items()
            if isinstance(value, float) and key != "R"
        }
        atoms = to_atoms(structure.data, energy=energies.pop("energy"))
        rest = row.keys() - energies - {"energy", "unit"}
        words = {key: row[key] for key in row if key in rest}
        atoms.info |= energies | {
            key: _stored(value) if isinstance(value, str) else value for key, value in words.items()
        }
        images.append(atoms)
    text = io.StringIO()
    ase.io.write(text, images, format="extxyz")
    atomic_write({path: text.getvalue().encode()})


def _stored(text: str) -> str:
    """Text as ASE's reader gives it back: plain, or as JSON where plain it would be a number, say.

    The reader takes backslashes for escapes, and looks for numbers, lists and truth values.
    """
    plain = text.replace("\\", "\\\\")
    read = key_val_str_to_dict(key_val_dict_to_str({"text": plain, "next": 1}))
    if isinstance(read["text"], str) and read == {"text": text, "next": 1}:
        return plain
    return f"_JSON {json.dumps(text)}".replace("\\", "\\\\")
