"""How atoms move, their first velocities, and what came out: the data around a simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from ase import Atoms, units

PS = 1e3 * units.fs


class SimulationStopped(RuntimeError):
    """A simulation ended before its time: an interrupt, or a structure it must not go on from.

    Args:
        message: what happened, where the last frame is, what to do.
        interrupted: whether it was Ctrl-C or SIGTERM.
    """

    def __init__(self, message: str, interrupted: bool = False) -> None:
        super().__init__(message)
        self.interrupted = interrupted


@dataclass(frozen=True)
class Simulation:
    """How atoms move.

    Args:
        ensemble: "nve" (velocity Verlet) or "nvt" (Langevin).
        temperature: of the first velocities and of the thermostat (K).
        timestep: time step (fs).
        friction: nvt: of the thermostat (1/ps).
        velocities: "draw" from the Maxwell-Boltzmann distribution, without total momentum, or
            "keep" those of the structure file.
        seed: of velocities and thermostat.
        log_every: steps between rows of the log.
        save_every: steps between frames of the trajectory.
        max_r: stop where the non-hierarchicality R of the structure (Eq. 18) is larger; null for
            no limit.
        checkpoint_seconds: least time between checkpoints (s).

    Raises:
        ValueError: a setting that makes no simulation.
    """

    ensemble: Literal["nve", "nvt"] = "nve"
    temperature: float = 300.0
    timestep: float = 0.5
    friction: float = 2.0
    velocities: Literal["draw", "keep"] = "draw"
    seed: int = 0
    log_every: int = 10
    save_every: int = 100
    max_r: float | None = None
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("timestep", "friction", "log_every", "save_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 K, not {self.temperature}")
        for name, choices in (("ensemble", ("nve", "nvt")), ("velocities", ("draw", "keep"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")


class Report(NamedTuple):
    """What came out of a simulation.

    Attributes:
        steps: done in all.
        time: simulated (ps).
        temperature: mean (K).
        drift: slope of the total energy (meV/atom/ps): in an "nve" simulation what integrator and
            precision lose.
        fluctuation: standard deviation of the total energy about that line (meV/atom).
        largest_r: the largest R of a logged step.
        steps_per_second: speed.
        ns_per_day: speed.
    """

    steps: int
    time: float
    temperature: float
    drift: float
    fluctuation: float
    largest_r: float
    steps_per_second: float
    ns_per_day: float


def draw_velocities(atoms: Atoms, temperature: float, random: np.random.Generator) -> None:
    """Velocities of the Maxwell-Boltzmann distribution; free atoms without total momentum.

    Args:
        atoms: the structure; what its constraints fix stays at rest.
        temperature: in K.
        random: where they come from.
    """
    masses = atoms.get_masses()[:, None]
    momenta = random.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    if not atoms.constraints and len(atoms) > 1:
        momenta -= masses * momenta.sum(0) / masses.sum()
    atoms.set_momenta(momenta)


def temperature(atoms: Atoms, kinetic: float) -> float:
    """Kinetic temperature in K; how free atoms move together is no degree of freedom.

    Args:
        atoms: the structure.
        kinetic: kinetic energy in eV.
    """
    freedom = atoms.get_number_of_degrees_of_freedom()
    if not atoms.constraints and len(atoms) > 1:
        momentum = atoms.get_momenta().sum(0)
        kinetic -= float(momentum @ momentum) / (2 * atoms.get_masses().sum())
        freedom -= 3
    return 2 * kinetic / (freedom * units.kB) if freedom else 0.0
