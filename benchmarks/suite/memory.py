"""Peak memory of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from hipnn_pyg import PackedMolecules
from suite import tasks
from suite.bench import Bench
from suite.implementations import OURS
from suite.processes import peak_growth
from suite.rows import Goal, Row, Unavailable
from suite.settings import Settings


def memory(bench: Bench) -> list[Row]:
    """By how much resident memory grows during a step, each implementation in a new process."""
    settings = bench.settings
    size = settings.batch_sizes[-1]
    names = (*OURS, *settings.peers)
    row = Row(f"peak memory of a training step, batch {size}", "MB", OURS[0])
    warm_up = [index for n in (16, 8) for index in bench.batches(max(2, size // n), 1, n)]
    batches = bench.batches(size, settings.memory_rounds, 0)
    for name in names:
        with bench.fresh() as worker:
            try:
                peaks = worker(peaks_of_steps, name, bench.molecules, settings, warm_up, batches)
                row.samples[name] = peaks
            except Unavailable as reason:
                row.missing[name] = str(reason)
    row.ours = next((name for name in OURS if name in row.samples), OURS[0])
    row.peers = [name for name in names if name != row.ours]
    row.goals = [Goal(1, "hippynn numba")]
    return [row]


def peaks_of_steps(
    name: str,
    molecules: PackedMolecules,
    settings: Settings,
    warm_up: Sequence[Tensor],
    batches: Sequence[Tensor],
) -> list[float]:
    """Growth in MB during a step on each batch, after steps on small ones.

    The small ones load libraries, compile and make Adam's moments; what they freed goes back to
    the system first.
    """
    tasks.set_up(name, molecules, settings)
    step = tasks.built(name).step
    for batch in tasks.prepare(name, warm_up):
        step(batch)
    prepared = tasks.prepare(name, batches)
    return [peak_growth(partial(step, batch)) / 1e6 for batch in prepared]
