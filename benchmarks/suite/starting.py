"""Time to the first training step, from the start of the process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from torch import Tensor

from hipnn_pyg import PackedMolecules
from suite import tasks
from suite.bench import Bench
from suite.rows import Goal, Row, Unavailable
from suite.settings import Settings


def first_step(bench: Bench) -> list[Row]:
    """Starting Python, imports, building, compiling and the step; kernels and torch.compile.

    Empty caches are those of a machine that runs the package for the first time.
    """
    size = bench.settings.batch_sizes[0]
    molecules = bench.molecules.subset(bench.batches(10 * size, 1, 0)[0])
    row = Row(f"first step, batch {size}", "s", "kernels, empty caches", goals=[Goal(60)])
    for label, name in (("kernels", "HIPNN"), ("torch.compile", "HIPNN compiled")):
        with tempfile.TemporaryDirectory() as folder:
            caches = {
                variable: str(Path(folder) / variable)
                for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HIPNN_CACHE")
            }
            arguments = (bench, caches, name, molecules, bench.batches(size, 1, 0)[0] % size)
            try:
                for state in ("empty", "full"):
                    row.samples[f"{label}, {state} caches"] = [_seconds(*arguments)]
            except Unavailable as reason:
                row.missing[label] = str(reason)
    return [row]


def _seconds(
    bench: Bench, caches: dict[str, str], name: str, molecules: PackedMolecules, batch: Tensor
) -> float:
    began = time.perf_counter()
    with bench.fresh(environment=caches) as worker:
        worker(step_once, name, molecules, bench.settings, batch)
        return time.perf_counter() - began


def step_once(name: str, molecules: PackedMolecules, settings: Settings, batch: Tensor) -> None:
    """Build an implementation and make one step."""
    tasks.set_up(name, molecules, settings)
    (prepared,) = tasks.prepare(name, [batch])
    tasks.built(name).step(prepared)
