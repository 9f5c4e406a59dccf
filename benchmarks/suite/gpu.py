"""Everything that is measured on a GPU, in entries of a minute or two each."""

from __future__ import annotations

import torch

from suite import tasks
from suite.bench import Bench
from suite.implementations import CAPTURED, OURS
from suite.precision import errors_on
from suite.rows import Goal, Row, Unavailable
from suite.steps import compare
from suite.training import QM9_STEPS, ensemble_row, epoch_row

PEERS = ("hippynn triton", "SchNet")


def gpu_batch_30(bench: Bench) -> list[Row]:
    """Captured steps and energies of small batches beside hippynn's Triton kernels and SchNet."""
    return _batch(bench, bench.settings.gpu_batch_sizes[0], 5.0, [Goal(1e3 / QM9_STEPS)])


def gpu_batch_1024(bench: Bench) -> list[Row]:
    """Captured steps and energies of large batches beside hippynn's Triton kernels and SchNet."""
    return _batch(bench, bench.settings.gpu_batch_sizes[1], 2.0, [])


def gpu_epoch(bench: Bench) -> list[Row]:
    """An epoch of QM9 by the trainer on the GPU, with all that belongs to it."""
    _needed()
    return [epoch_row(bench, "cuda", bench.settings.gpu_trainer_steps, Goal(1.0))]


def gpu_ensemble(bench: Bench) -> list[Row]:
    """An epoch of eight models at once on the GPU beside one of one model."""
    _needed()
    return [ensemble_row(bench, "cuda", "one model", "one", Goal(0.4, "one model"))]


def gpu_precision(bench: Bench) -> list[Row]:
    """Errors of energies and forces in float32, TF32 and bf16 against float64 on the GPU."""
    _needed()
    return errors_on(bench, "cuda")


def _needed() -> None:
    if not torch.cuda.is_available():
        raise Unavailable(
            f"no GPU: this PyTorch ({torch.__version__}) sees none; run it on a machine with an "
            "NVIDIA GPU and a CUDA build of PyTorch"
        )


def _batch(bench: Bench, size: int, least: float, of_epoch: list[Goal]) -> list[Row]:
    """Steps, their kernels, and energies of one batch size.

    Args:
        bench: the suite.
        size: molecules of a batch.
        least: hippynn's time over ours that should be reached.
        of_epoch: what follows for a step from the goal of an epoch.
    """
    _needed()
    names = (CAPTURED, *OURS[::-1], *PEERS)
    goals = [Goal(least, PEERS[0])]
    return [
        compare(
            bench, "step", f"GPU training step, batch {size}", size, names, goals + of_epoch, "cuda"
        ),
        kernel_count(bench, size, names, "cuda"),
        compare(bench, "energies", f"GPU energies, batch {size}", size, names, goals, "cuda"),
    ]


def kernel_count(bench: Bench, size: int, names: tuple[str, ...], device: str) -> Row:
    """Kernels that a training step launches, or replays from its graph."""
    team, missing = bench.team(names, device)
    (batch,) = bench.batches(size, 1, 0)
    samples = {
        name: [float(worker(tasks.kernels_per_step, name, batch))] for name, worker in team.items()
    }
    title = f"GPU kernels per training step, batch {size}"
    return Row(title, "kernels", names[0], samples, missing)  # type: ignore[arg-type]
