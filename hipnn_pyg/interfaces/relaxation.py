"""Relaxation of positions, and of the cell if wanted, with ASE's optimisers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.optimize import Optimizer
from tqdm import tqdm

from hipnn_pyg.checks import StructureError
from hipnn_pyg.interfaces.simulation import SimulationStopped
from hipnn_pyg.interfaces.simulation_files import frame, refuse_results
from hipnn_pyg.train.interrupts import interrupts
from hipnn_pyg.units import GPa

OPTIMIZERS: dict[str, type[Optimizer]] = {"LBFGS": LBFGS, "BFGS": BFGS, "FIRE": FIRE}


@dataclass(frozen=True)
class Relaxation:
    """How to find a minimum.

    Args:
        optimizer: "LBFGS", "BFGS" or "FIRE", ASE's.
        fmax: largest force on an atom in the end (eV/Å); with ``cell`` also what its filter makes
            of the stress.
        steps: most steps.
        cell: relax the cell too (FrechetCellFilter).
        pressure: with ``cell``: external pressure (GPa).
        max_r: stop where the non-hierarchicality R of the structure (Eq. 18) is larger; null for
            no limit.

    Raises:
        ValueError: a setting that makes no relaxation.
    """

    optimizer: Literal["LBFGS", "BFGS", "FIRE"] = "LBFGS"
    fmax: float = 0.01
    steps: int = 1_000
    cell: bool = False
    pressure: float = 0.0
    max_r: float | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {[*OPTIMIZERS]}, not {self.optimizer!r}")
        if not 0 < self.fmax < math.inf or self.steps < 1:
            raise ValueError(
                f"fmax must be positive (eV/Å) and steps at least 1, not {self.fmax}, {self.steps}"
            )
        if self.pressure and not self.cell:
            raise ValueError(
                f"pressure = {self.pressure} GPa acts on the cell: relax it too (--cell true)"
            )


class Relaxed(NamedTuple):
    """Where a relaxation ended.

    Attributes:
        converged: whether the largest force is below the limit.
        steps: done.
        energy: in eV.
        largest_force: on an atom in eV/Å.
        nonhierarchicality: R.
    """

    converged: bool
    steps: int
    energy: float
    largest_force: float
    nonhierarchicality: float


def relax(atoms: Atoms, settings: Relaxation, folder: str | Path, progress: bool = True) -> Relaxed:
    """Relax a structure; ``trajectory.extxyz``, ``relax.log`` and ``last.extxyz`` go to a folder.

    Args:
        atoms: structure whose calculator is a
            :class:`~hipnn_pyg.interfaces.ase.HIPNNCalculator`; it is relaxed in place.
        settings: how.
        folder: of the results.
        progress: show a progress bar.

    Returns:
        Where it ended, converged or not.

    Raises:
        FileExistsError: the folder holds results.
        SimulationStopped: Ctrl-C or SIGTERM; atoms that collide, energies that are not finite, or
            an R above ``max_r``. ``last.extxyz`` holds the last structure.
        StructureError: the model cannot take the structure as it is given; nothing is written.
        ValueError: the cell of a structure that is not periodic in all directions.
    """
    folder = Path(folder)
    last = folder / "last.extxyz"
    refuse_results(folder)
    moving: Any = _with_cell(atoms, settings) if settings.cell else atoms
    atoms.get_potential_energy()  # refuses, before there are files, what the model cannot take
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = OPTIMIZERS[settings.optimizer](moving, logfile=str(folder / "relax.log"))
    now = (False, math.inf)
    bar = tqdm(total=settings.steps, unit="step", disable=not progress)
    try:
        with open(folder / "trajectory.extxyz", "w") as trajectory:
            for now in _steps(optimizer, atoms, settings):
                ase.io.write(trajectory, frame(atoms), format="extxyz")
                bar.update(optimizer.nsteps - bar.n)
                bar.set_postfix_str(f"largest force {now[1]:.3g} eV/Å", refresh=False)
    except StructureError as error:
        raise SimulationStopped(
            f"after step {optimizer.nsteps}: {error}. The structure is in {last}"
        ) from error
    finally:
        bar.close()
        ase.io.write(last, frame(atoms), format="extxyz")
    energy, r = atoms.get_potential_energy(), atoms.calc.results["nonhierarchicality"]
    return Relaxed(now[0], optimizer.nsteps, energy, now[1], r)


def _with_cell(atoms: Atoms, settings: Relaxation) -> FrechetCellFilter:
    if not atoms.pbc.all():
        raise ValueError(
            "relaxing the cell needs periodicity in all three directions, not pbc "
            f"{atoms.pbc.tolist()}: leave --cell out"
        )
    return FrechetCellFilter(atoms, scalar_pressure=settings.pressure * GPa)


def _steps(
    optimizer: Optimizer, atoms: Atoms, settings: Relaxation
) -> Iterator[tuple[bool, float]]:
    """ASE's optimiser, step by step: whether it is done, the largest force on an atom in eV/Å."""
    asked: list[bool] = []
    with interrupts(lambda: asked.append(True)):
        for converged in optimizer.irun(fmax=settings.fmax, steps=settings.steps):
            yield bool(converged), float(np.linalg.norm(atoms.get_forces(), axis=1).max())
            r = atoms.calc.results["nonhierarchicality"]
            if settings.max_r is not None and r > settings.max_r:
                raise StructureError(f"R is {r:.4g}, above the limit {settings.max_r:g}")
            if asked:
                raise SimulationStopped(f"stopped after step {optimizer.nsteps}", True)
