"""Molecular dynamics in ASE, and of many molecules at once in TorchSim."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from hipnn_pyg.data.molecules import from_smiles, to_atoms
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.interfaces.simulation import draw_velocities
from suite import tasks
from suite.bench import Bench
from suite.processes import Worker
from suite.rows import Goal, Row, Unavailable, interleave
from suite.settings import Settings
from suite.structures import random_molecules, water_crystal

OURS = "HIPNN"
TORCH_SIM, ONE_BY_ONE = "TorchSim", "ASE, one by one"
TIMESTEP = 0.5
"""fs"""
FEW = 5
"""Steps after a search in which an atom of a box gets through the skin of the neighbour list."""
TEMPERATURE = 300.0
"""K"""

_running: dict[str, VelocityVerlet] = {}


@dataclass
class Batched:
    """Simulations of the same molecules: all in one state, and each by itself."""

    state: Any
    update: Callable[[Any], Any]
    steppers: Sequence[Callable[[int], object]]


_batched: dict[str, Batched] = {}


def md(bench: Bench) -> list[Row]:
    """NVE in ASE beside hippynn's calculator; many molecules at once beside one after the other."""
    settings = bench.settings
    names = [OURS, *(name for name in settings.peers if name.startswith("hippynn"))]
    with bench.apart(names, set_up) as (workers, missing):
        sizes = (0, *settings.dynamics)
        rows = [_in_ase(settings, size, workers, dict(missing)) for size in sizes]
        if OURS not in missing:
            rows += [_at_once(bench, workers[OURS], what) for what in ("dynamics", "relaxation")]
    return rows


def _in_ase(
    settings: Settings, size: int, workers: dict[str, Worker], missing: dict[str, str]
) -> Row:
    """Milliseconds per step of toluene (size 0) or of water in a periodic box."""
    steps = steps_of_turn(settings, size)
    rounds = settings.rounds if not size else settings.large_rounds if size < 5_000 else 1
    atoms, neighbors = 0, 0.0
    turns = {}
    for name, worker in workers.items():
        if name not in missing:
            atoms, neighbors = worker(load, name, size, settings)
            turns[name] = lambda number, w=worker, n=name: w(advance, n, steps)
    for take in turns.values():
        take(-1)  # compiles, fills caches
    samples, failed = interleave(turns, rounds)
    title = f"MD step, {atoms:,} atoms" + (" in a periodic box" if size else " (toluene)")
    peers = [name for name in workers if name != OURS]
    row = Row(title, "ms", OURS, samples, missing | failed, peers)
    row.goals = [Goal(2, peer) for peer in peers]
    row.note = f"{neighbors:.0f} neighbours per atom; "
    row.note += "one thread each" if not size else f"turns of {steps} steps"
    if size and 2 * steps < FEW:  # a turn and the one before
        row.note += ", too few for a new search for neighbours"
    return row


def steps_of_turn(settings: Settings, size: int) -> int:
    """In proportion fewer for more than 150 atoms, at least 2."""
    return max(2, settings.dynamics_steps * 150 // max(150, size))


def _at_once(bench: Bench, worker: Worker, what: str) -> Row:
    """Microseconds per molecule and step, in one batch and one molecule after the other."""
    settings = bench.settings
    number, steps = settings.dynamics_molecules, max(2, settings.dynamics_steps // 10)
    threads = settings.threads
    row = Row(f"{what} of {number} molecules at once", "µs per molecule and step", TORCH_SIM)
    row.peers, row.goals = [ONE_BY_ONE], [Goal(1, ONE_BY_ONE)]
    (index,) = bench.batches(number, 1, 0)
    batch = bench.molecules.gather(index)
    counts = (batch.ptr[1:] - batch.ptr[:-1]).tolist()
    parts = zip(batch.z.split(counts), batch.pos.double().split(counts), strict=True)
    structures = [Atoms(z.numpy(), pos.numpy()) for z, pos in parts]
    try:
        worker(load_many, structures, settings.seed, what)
    except Unavailable as reason:
        row.missing = {TORCH_SIM: str(reason)}
        return row
    turns = {
        name: lambda _, n=name: worker(advance_many, n, what, steps, threads) / number * 1e6
        for name in (TORCH_SIM, ONE_BY_ONE)
    }
    for take in turns.values():
        take(-1)
    row.samples, row.missing = interleave(turns, settings.large_rounds)
    row.note = "the same weights, step for step the same algorithm; ASE on one thread"
    return row


# -- inside a worker process ---------------------------------------------------------------------


def set_up(name: str, settings: Settings) -> None:
    """Build the implementation; its forces are so small that atoms fly freely and nothing melts."""
    tasks.set_up(name, random_molecules(64, settings.seed), settings)
    built = tasks.built(name)
    readouts = [block.readout for block in built.model.blocks] if name == OURS else []
    readouts = readouts or built.henergy.layers[1:]
    with torch.no_grad():
        for readout in readouts:
            readout.weight.mul_(1e-3)


def calculator(name: str) -> Any:
    """The implementation's ASE calculator, with its default skin; energies are in eV."""
    built = tasks.built(name)
    if name == OURS:
        return HIPNNCalculator(built.model)
    from hippynn.interfaces.ase_interface import HippynnCalculator

    return HippynnCalculator(built.energy_node, en_unit=1.0)


def load(name: str, size: int, settings: Settings) -> tuple[int, float]:
    """Start a simulation at 300 K.

    Args:
        name: of an implementation that was set up.
        size: atoms of the box at most; 0 for toluene, on one thread.
        settings: seed and threads.

    Returns:
        Atoms, and mean number of neighbours within the cutoff.
    """
    atoms = water_crystal(size, settings.seed)
    if not size:
        atoms = to_atoms(from_smiles("Cc1ccccc1", settings.seed))
    set_threads(settings.threads if size else 1)
    draw_velocities(atoms, TEMPERATURE, np.random.default_rng(settings.seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        atoms.calc = calculator(name)
    _running[name] = VelocityVerlet(atoms, TIMESTEP * units.fs)
    return len(atoms), _neighbors(atoms, settings.network.cutoff)


def advance(name: str, steps: int) -> float:
    """Milliseconds per step."""
    simulation = _running[name]
    return 1e3 * tasks.elapsed("cpu", lambda: simulation.run(steps)) / steps


def load_many(structures: Sequence[Atoms], seed: int, what: str) -> None:
    """Start the simulations of all molecules, batched and one by one, with the same velocities."""
    try:
        import torch_sim
        from torch_sim.integrators.nve import nve
        from torch_sim.optimizers import fire
        from torch_sim.units import UnitSystem

        from hipnn_pyg.interfaces.torch_sim import TorchSimModel
    except ImportError as error:
        raise Unavailable(f'{error}: pip install "hipnn_pyg[sim]"') from error
    model = tasks.built(OURS).model
    for number, atoms in enumerate(structures):
        draw_velocities(atoms, TEMPERATURE, np.random.default_rng(seed + number))
    state = torch_sim.io.atoms_to_state([*structures], torch.device("cpu"), torch.float64)
    potential = TorchSimModel(model)
    if what == "dynamics":
        step = torch.tensor(1e-3 * TIMESTEP * UnitSystem.metal.time, dtype=torch.float64)
        begin, update = nve(potential, dt=step, kT=torch.zeros((), dtype=torch.float64))
        state = begin(state)
        momenta = np.concatenate([atoms.get_momenta() for atoms in structures])
        state.momenta = torch.from_numpy(momenta)
    else:
        begin, update = fire(potential)
        state = begin(state)
    steppers: list[Callable[[int], object]] = []
    for atoms in structures:
        atoms.calc = HIPNNCalculator(model)
        if what == "dynamics":
            steppers.append(VelocityVerlet(atoms, TIMESTEP * units.fs).run)
        else:
            steppers.append(partial(FIRE(atoms, logfile=None).run, 0.0))  # never converged
    _batched[what] = Batched(state, update, steppers)


def advance_many(name: str, what: str, steps: int, threads: int) -> float:
    """Seconds per step of all molecules."""
    running = _batched[what]
    set_threads(threads if name == TORCH_SIM else 1)

    def batched() -> None:
        for _ in range(steps):
            running.state = running.update(running.state)

    def one_by_one() -> None:
        for step in running.steppers:
            step(steps)

    return tasks.elapsed("cpu", batched if name == TORCH_SIM else one_by_one) / steps


def set_threads(number: int) -> None:
    """Of PyTorch, our kernels and, where it is there, numba."""
    torch.set_num_threads(number)
    try:
        import numba
    except ImportError:
        return
    numba.set_num_threads(min(number, numba.config.NUMBA_NUM_THREADS))


def _neighbors(atoms: Atoms, cutoff: float) -> float:
    """Mean number of neighbours: of a box at its density, else counted."""
    if atoms.pbc.any():
        return len(atoms) / atoms.get_volume() * 4 / 3 * math.pi * cutoff**3
    r = atoms.get_all_distances()
    return float((r < cutoff).sum() / len(atoms) - 1)
