"""The structure and the potential that ``hipnn md`` and ``hipnn relax`` start from."""

from __future__ import annotations

from typing import Literal

import torch
from ase import Atoms
from jsonargparse import ArgumentParser, Namespace

from hipnn_pyg.checks import StructureError
from hipnn_pyg.cli.run_folder import usable_device
from hipnn_pyg.data.molecules import read_atoms
from hipnn_pyg.interfaces.ase import HIPNNCalculator

SMALL = 32
"""Atoms up to which one thread is taken: a second one gains a tenth on an idle machine, and on a
busy one the two wait for each other, ten times as long as a step takes."""


def add_options(options: ArgumentParser, run: str) -> None:
    """Options that both commands have.

    Args:
        options: the parser.
        run: default of ``--run``.
    """
    options.add_argument("structure", type=str, help="a file that ASE reads (xyz, cif, vasp ...)")
    options.add_argument(
        "--model",
        action="append",
        type=str,
        required=True,
        help="run folder, model folder, or name of a model that comes with the package; that of an "
        "ensemble, or --model again, for an average",
    )
    options.add_argument("--index", type=int, default=-1, help="which structure of the file")
    options.add_argument("--run", type=str, default=run, help="folder of the results")
    options.add_argument(
        "--min_distance", type=float, default=0.4, help="stop when atoms come closer (Å)"
    )
    options.add_argument("--skin", type=float, default=0.5, help="of the neighbour list (Å)")
    options.add_argument(
        "--precision",
        type=Literal["model", "float32", "float64"],
        default="model",
        help="of the network",
    )
    options.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    options.add_argument(
        "--i-know",
        action="store_true",
        help="use the model although it was not trained as a potential",
    )


def load(arguments: Namespace) -> Atoms:
    """The structure with its calculator; sets the number of threads for its size.

    Raises:
        StructureError: the file cannot be read, or holds no such structure.
        ModelFileError: no such model.
        NotAPotentialError: the model was not trained as a potential (``--i-know``).
        SelfCheckError: the kernels of this machine disagree with the reference.
        ValueError: an unknown device.
    """
    atoms = read_structure(arguments.structure, arguments.index)
    names = arguments.model
    atoms.calc = HIPNNCalculator(
        names[0] if len(names) == 1 else names,
        usable_device(arguments.device),
        None if arguments.precision == "model" else arguments.precision,
        arguments.skin,
        arguments.i_know,
        min_distance=arguments.min_distance,
    )
    if len(atoms) <= SMALL:
        torch.set_num_threads(1)
    return atoms


def read_structure(path: str, index: int = -1) -> Atoms:
    """One structure of a file in any format ASE knows, with velocities and constraints.

    Args:
        path: the file.
        index: which; negative ones count from the end.

    Raises:
        FileNotFoundError: there is no such file.
        StructureError: it cannot be read, or holds no such structure.
    """
    found = read_atoms(path, index)[0]
    if isinstance(found, StructureError):
        raise found
    if not len(found):
        raise StructureError(f"{path}, structure {index}: no atoms")
    return found
