"""Simulate molecular dynamics with a trained model; a killed run goes on with --resume.

The folder --run then holds log.csv, trajectory.extxyz, last.extxyz, report.json and energy.png.
An nve simulation reports how well the energy is conserved. Examples:

  hipnn md molecule.xyz --model runs/md17 --time 50
  hipnn md crystal.cif --model runs/file --ensemble nvt --temperature 500 --steps 10000
  hipnn md runs/md/last.extxyz --model runs/md17 --velocities keep --time 50 --run runs/nve
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from hipnn_pyg.cli import system
from hipnn_pyg.cli.run_folder import of_class
from hipnn_pyg.interfaces.dynamics import Simulator
from hipnn_pyg.interfaces.simulation import Report, Simulation
from hipnn_pyg.models.files import atomic_write
from hipnn_pyg.plots import energy_against_time


def add_options(options: ArgumentParser) -> None:
    """Options of ``hipnn md``."""
    system.add_options(options, run="runs/md")
    options.add_argument("--time", type=float | None, help="to simulate in all (ps); or --steps")
    options.add_argument("--steps", type=int | None, help="to do in all; or --time")
    options.add_argument("--resume", action="store_true", help="go on with the run in --run")
    options.add_class_arguments(Simulation)


def run(arguments: Namespace) -> None:
    """Simulate, report, draw."""
    settings: Simulation = of_class(Simulation, arguments.as_dict())
    steps = number_of_steps(arguments.steps, arguments.time, settings.timestep)
    atoms = system.load(arguments)
    about = {name: arguments[name] for name in ("structure", "index", "model", "precision")}
    simulator = Simulator(atoms, settings, arguments.run, arguments.resume, about=about)
    report = simulator.run(steps)
    folder = Path(arguments.run)
    finite = {key: v if math.isfinite(v) else None for key, v in report._asdict().items()}
    atomic_write({folder / "report.json": json.dumps(finite, indent=2).encode()})
    print(summary(report, settings))
    if simulator.drift.samples > 1:
        draw(simulator, settings, report, folder / "energy.png")
    print(f"results: {folder}; the last frame: {simulator.files.last}")


def number_of_steps(steps: int | None, time: float | None, timestep: float) -> int:
    """Steps to do in all.

    Args:
        steps: of ``--steps``.
        time: of ``--time`` in ps.
        timestep: in fs.

    Raises:
        ValueError: both or neither, or less than one step.
    """
    if (steps is None) == (time is None):
        raise ValueError("say how long: either --steps or --time (ps)")
    number = steps if steps is not None else round((time or 0.0) * 1e3 / timestep)
    if number < 1:
        raise ValueError(f"{number} steps are no simulation: give a longer --time or --steps")
    return number


def summary(report: Report, settings: Simulation) -> str:
    """What the command prints in the end."""
    lines = [
        f"{report.steps:,} steps, {report.time:.4g} ps, {report.temperature:.1f} K on average; "
        f"{report.steps_per_second:,.0f} steps/s, {report.ns_per_day:.3g} ns/day; "
        f"largest R {report.largest_r:.4g}"
    ]
    if settings.ensemble == "nve" and math.isfinite(report.fluctuation):
        lines.append(
            f"total energy: drift {report.drift:.5f} meV/atom/ps, fluctuation "
            f"{report.fluctuation:.4f} meV/atom (standard deviation about the line)"
        )
    return "\n".join(lines)


def draw(simulator: Simulator, settings: Simulation, report: Report, path: Path) -> None:
    """Energy and temperature against time, from the log."""
    nve = settings.ensemble == "nve"
    names = ("time_ps", "total_eV" if nve else "potential_eV", "temperature_K")
    rows = [[row[name] for name in names] for row in simulator.files.rows()]
    time, energy, temperature = np.array(rows).T
    figure = energy_against_time(
        time,
        1e3 * (energy - energy.mean()) / len(simulator.atoms),
        temperature,
        "total energy" if nve else "potential energy",
        report.drift if nve else None,
    )
    figure.savefig(path, dpi=200)
