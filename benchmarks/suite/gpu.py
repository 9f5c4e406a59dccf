"""Everything that is measured on a GPU: steps, epochs, energies, kernels, ensembles."""

from __future__ import annotations

import torch

from suite import tasks
from suite.bench import Bench
from suite.implementations import CAPTURED, OURS
from suite.rows import Goal, Row, Unavailable
from suite.steps import compare
from suite.training import QM9_STEPS, ensemble_row, epoch_row

PEERS = ("hippynn triton", "SchNet")
LEAST_RATIOS = (5.0, 2.0)
"""hippynn's time over ours that small and large batches should reach."""


def gpu(bench: Bench) -> list[Row]:
    """Captured steps, epochs and energies on the GPU beside hippynn's Triton kernels and SchNet."""
    if not torch.cuda.is_available():
        raise Unavailable(
            f"no GPU: this PyTorch ({torch.__version__}) sees none; run it on a machine with an "
            "NVIDIA GPU and a CUDA build of PyTorch"
        )
    steps, energies = (CAPTURED, *OURS[::-1], *PEERS), (*OURS[::-1], *PEERS)
    rows = []
    for size, least in zip(bench.settings.gpu_batch_sizes, LEAST_RATIOS, strict=True):
        goals = [Goal(least, PEERS[0])]
        of_epoch = [] if rows else [Goal(1e3 / QM9_STEPS)]  # an epoch in 1 s
        title = f"GPU training step, batch {size}"
        rows.append(compare(bench, "step", title, size, steps, goals + of_epoch, "cuda"))
        rows.append(kernel_count(bench, size, steps, "cuda"))
        title = f"GPU energies, batch {size}"
        rows.append(compare(bench, "energies", title, size, energies, goals, "cuda"))
    rows.append(epoch_row(bench, "cuda", bench.settings.gpu_trainer_steps, Goal(1.0)))
    rows.append(ensemble_row(bench, "cuda", "one model", "one", Goal(0.4, "one model")))
    return rows


def kernel_count(bench: Bench, size: int, names: tuple[str, ...], device: str) -> Row:
    """Kernels that a training step launches, or replays from its graph."""
    team, missing = bench.team(names, device)
    (batch,) = bench.batches(size, 1, 0)
    samples = {
        name: [float(worker(tasks.kernels_per_step, name, batch))] for name, worker in team.items()
    }
    title = f"GPU kernels per training step, batch {size}"
    return Row(title, "kernels", names[0], samples, missing)  # type: ignore[arg-type]
