"""Relax a structure with a trained model: positions, and the cell if wanted.

The folder --run then holds last.extxyz (the result), trajectory.extxyz and relax.log. Examples:

  hipnn relax molecule.xyz --model runs/md17
  hipnn relax crystal.cif --model runs/file --cell true --optimizer FIRE --fmax 0.001
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from hipnn_pyg.cli import system
from hipnn_pyg.cli.run_folder import of_class
from hipnn_pyg.interfaces.relaxation import Relaxation, relax
from hipnn_pyg.interfaces.simulation import SimulationStopped


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn relax``."""
    system.add_options(options, run="runs/relax")
    options.add_class_arguments(Relaxation)


def run(arguments: Namespace) -> None:
    """Relax and report.

    Raises:
        SimulationStopped: not converged; what was reached is on the disk.
    """
    settings: Relaxation = of_class(Relaxation, arguments.as_dict())
    folder = Path(arguments.run)
    result = relax(system.load(arguments), settings, folder)
    print(
        f"{result.steps} steps of {settings.optimizer}: energy {result.energy:.6f} eV, largest "
        f"force {result.largest_force:.2g} eV/Å, R {result.nonhierarchicality:.4g}; "
        f"{folder / 'last.extxyz'}"
    )
    if not result.converged:
        raise SimulationStopped(
            f"not converged in {result.steps} steps (--fmax {settings.fmax} eV/Å): go on from "
            f"{folder / 'last.extxyz'}, or allow more --steps"
        )
