"""Energies of one large structure: time and memory per atom against its size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hipnn_pyg import radius_graph
from suite import floors, tasks
from suite.bench import Bench
from suite.processes import Worker, peak_growth, trim
from suite.rows import Goal, Row, Unavailable, interleave
from suite.settings import Settings
from suite.structures import SPECIES, random_molecules, water_box

OURS = "HIPNN"

_structure: dict[str, Tensor] = {}


def large(bench: Bench) -> list[Row]:
    """Water boxes of growing size; both HIP-NNs get the pairs that our search found."""
    settings = bench.settings
    names = [OURS, *(name for name in settings.peers if name.startswith("hippynn"))]
    with bench.apart(names, set_up, settings.memory_limit_gb) as (workers, missing):
        return [row for size in settings.large for row in _rows(settings, size, workers, missing)]


def _rows(
    settings: Settings, size: int, workers: dict[str, Worker], missing: dict[str, str]
) -> list[Row]:
    """Time, memory and search at one size; who fails is missing from then on."""
    atoms = size // 3 * 3
    found: dict[str, dict[str, float]] = {}
    for name, worker in workers.items():
        if name not in missing:
            try:
                found[name] = worker(load, name, atoms, settings)
            except Unavailable as reason:
                missing[name] = str(reason)
    turns: dict[str, Any] = {
        name: lambda number, name=name: workers[name](energy_time, name) / atoms * 1e6
        for name in found
    }
    samples, failed = interleave(turns, settings.large_rounds if atoms < 30_000 else 1)
    missing.update(failed)
    peers = [name for name in workers if name != OURS]
    time = Row(f"energy of {atoms:,} atoms", "µs/atom", OURS, samples, dict(missing), peers)
    time.goals = [Goal(2, peer) for peer in peers]
    bytes_per_atom: dict[str, list[float | None]] = {
        n: [f["peak"] / atoms] for n, f in found.items()
    }
    title = f"memory of {atoms:,} atoms"
    memory = Row(title, "bytes/atom", OURS, bytes_per_atom, dict(missing), peers)
    memory.goals = [Goal(1, peer) for peer in peers]
    search = Row(f"neighbour search, {atoms:,} atoms", "µs/atom", "search")
    rows = [time, memory, search]
    if OURS in found:
        pairs, seconds = found[OURS]["pairs"], found[OURS]["search"]
        search.samples = {"search": [seconds / atoms * 1e6]}
        network, width = settings.network, settings.network.hidden_channels
        rate = workers[OURS](
            floors.multiply_add_rate, min(atoms, 4096), network.num_sensitivities * width, width
        )
        work = floors.multiply_adds(atoms, pairs, len(SPECIES), network, training=False)
        time.floor = work / rate / atoms * 1e6, f"{work:.3g} multiply-adds at {rate:.3g} per second"
        time.note = f"{pairs / atoms:.0f} neighbours per atom"
    for row in rows:
        row.size = atoms
    return rows


# -- inside a worker process ---------------------------------------------------------------------


def set_up(name: str, settings: Settings) -> None:
    """Build the implementation and warm it up on a small box."""
    tasks.set_up(name, random_molecules(64, settings.seed), settings)
    load(name, 150, settings)


def load(name: str, num_atoms: int, settings: Settings) -> dict[str, float]:
    """Make a box and its pairs.

    Returns:
        ``search`` in seconds, number of directed ``pairs``, and ``peak``: by how many bytes memory
        grows during the first energy.
    """
    _structure.clear()
    z, pos = water_box(num_atoms, settings.seed)
    _structure.update(z=z, pos=pos)

    def search() -> None:
        _structure["edge_index"] = radius_graph(pos, settings.network.cutoff)

    seconds = tasks.elapsed("cpu", search)
    peak = peak_growth(lambda: _energy(name))
    return {"search": seconds, "pairs": float(_structure["edge_index"].size(1)), "peak": peak}


def energy_time(name: str) -> float:
    """Seconds of one energy."""
    seconds = tasks.elapsed("cpu", lambda: _energy(name))
    trim()
    return seconds


@torch.no_grad()
def _energy(name: str) -> Tensor:
    return tasks.built(name).energy_from_pairs(**_structure)
