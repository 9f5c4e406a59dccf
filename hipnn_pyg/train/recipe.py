"""The two recipes: a schedule of the learning rate and, for one, an average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.train.config import Training
from hipnn_pyg.train.schedule import PlateauAnnealing, Schedule, WarmupCosine


def recipe(
    config: Training, model: HIPNN, optimizer: Optimizer, total_steps: int
) -> tuple[Schedule, AveragedModel | None]:
    """The schedule, and the average of the weights if there is one.

    Args:
        config: settings.
        model: what is averaged.
        optimizer: its learning rate is changed in place.
        total_steps: of the run.
    """
    c = config
    if c.recipe == "paper":
        return PlateauAnnealing(optimizer, c.t_init, c.t_patience, c.decay), None
    schedule = WarmupCosine(optimizer, c.learning_rate, c.warmup_steps, total_steps)
    return schedule, AveragedModel(model, multi_avg_fn=running_average(c.average_decay))


def running_average(decay: float) -> Any:
    """Exponential average for ``AveragedModel``, shorter while there is little to average.

    Args:
        decay: of the old average per update; (1 + n) / (10 + n) while that is smaller.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update
