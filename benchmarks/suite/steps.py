"""Training steps and inference on batches of molecules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hipnn_pyg import radius_graph
from suite import floors, tasks
from suite.bench import Bench
from suite.implementations import CAPTURED, OURS
from suite.rows import Goal, Row, interleave
from suite.structures import SPECIES

SLOW = ("SchNet", "SchNetPack")
"""Those that have turns in some rounds only."""


def train_step(bench: Bench) -> list[Row]:
    """Forward, loss, backward and Adam, with the pairs found inside the step."""
    goals = (Goal(2.5, "hippynn numba"), Goal(20, "SchNet"), Goal(1, "SchNetPack"))
    names = (*OURS, *bench.settings.peers)
    return [
        compare(bench, "step", f"training step, batch {size}", size, names, goals)
        for size in bench.settings.batch_sizes
    ]


def inference(bench: Bench) -> list[Row]:
    """Energies without gradients, with the pairs found inside."""
    names = ("HIPNN", *bench.settings.peers)
    size = bench.settings.batch_sizes[-1]
    goals = (Goal(2.5, "hippynn numba"), Goal(1, "SchNetPack"))
    return [compare(bench, "energies", f"energies, batch {size}", size, names, goals)]


def compare(
    bench: Bench,
    action: str,
    title: str,
    size: int,
    names: Sequence[str],
    goals: Sequence[Goal],
    device: str = "cpu",
) -> Row:
    """Time ``step`` or ``energies`` of all implementations in turns, on the same batches."""
    settings = bench.settings
    team, missing = bench.team(names, device)
    count = 1 + max(2, settings.molecules_per_turn // size)

    def turn_of(name: str, worker: Any) -> Any:
        return lambda number: worker(tasks.turn, name, action, bench.batches(size, count, number))

    turns = {name: turn_of(name, worker) for name, worker in team.items()}
    for take in turns.values():
        take(-1)  # compiles, fills caches
    samples, failed = interleave(turns, settings.rounds, SLOW, settings.seldom)
    mine = (CAPTURED, *OURS)
    ours = next((name for name in names if name in mine and name in samples), names[0])
    return Row(
        title,
        "ms",
        ours,
        samples,
        missing | failed,
        [name for name in names if name != ours],
        arithmetic_floor(bench, size, action == "step", device),
        goals,
        molecules=size,
    )


def arithmetic_floor(
    bench: Bench, size: int, training: bool, device: str
) -> tuple[float, str] | None:
    """Multiply-adds of a batch at the rate of V's contraction on this machine, in ms."""
    team, _ = bench.team(["HIPNN"], device)
    if not team:
        return None
    count = max(1, bench.settings.molecules_per_turn // size)
    batches = [bench.molecules.gather(index) for index in bench.batches(size, count, 0)]
    cutoff, network = bench.settings.network.cutoff, bench.settings.network
    pairs = sum(radius_graph(b.pos, cutoff, b.batch).size(1) for b in batches) / len(batches)
    atoms = sum(b.z.numel() for b in batches) / len(batches)
    width = network.hidden_channels
    rate = team["HIPNN"](
        floors.multiply_add_rate, round(atoms), network.num_sensitivities * width, width, device
    )
    work = floors.multiply_adds(atoms, pairs, len(SPECIES), network, training)
    return 1e3 * work / rate, f"{work:.3g} multiply-adds at {rate:.3g} per second"
