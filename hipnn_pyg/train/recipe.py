"""The two recipes: a schedule of the learning rate and, for one, an average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.train.config import Training
from hipnn_pyg.train.schedule import PlateauAnnealing, Schedule, WarmupCosine


def recipe(
    config: Training, model: HIPNN, optimizer: Optimizer, total_steps: int
) -> tuple[Schedule, WeightAverage | None]:
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
    return schedule, WeightAverage(model, c.average_decay)


class WeightAverage(AveragedModel):
    """:func:`running_average` of a model's learned parameters, held as one vector.

    Args:
        model: what is averaged.
        decay: see :func:`running_average`.

    Attributes:
        vector: the averaged parameters, of which those of ``module`` are views, ``[P]``.
    """

    def __init__(self, model: HIPNN, decay: float) -> None:
        super().__init__(model)
        self.take_in, self.vector = running_average(decay), flattened(self.module)

    @torch.no_grad()
    def update(self, vector: Tensor) -> None:
        """Take in the present parameters, ``[P]``."""
        if self.n_averaged:
            self.take_in([self.vector], [vector], self.n_averaged)
        else:
            self.vector.copy_(vector)
        self.n_averaged += 1


def running_average(decay: float) -> Any:
    """Exponential average for ``AveragedModel``, shorter while there is little to average.

    Args:
        decay: of the old average per update; (1 + n) / (10 + n) while that is smaller.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        torch._foreach_lerp_(averaged, current, float(newest_share(torch.as_tensor(count), decay)))

    return update


def newest_share(count: Tensor, decay: float) -> Tensor:
    """Share of the present parameters in the average after an update, float64.

    Args:
        count: updates done before.
        decay: see :func:`running_average`.
    """
    count = count.double()
    return 1 - ((1 + count) / (10 + count)).clamp(max=decay)


def shares(steps: range, every: int, count: int, decay: float) -> Tensor:
    """The share of each step in the average: 0 where it is not updated, 1 in the first update.

    Args:
        steps: numbers of the steps within the epoch, from 0.
        every: steps between two updates.
        count: updates done before.
        decay: see :func:`running_average`.

    Returns:
        Float64, of the length of ``steps``.
    """
    due = (torch.arange(steps.start, steps.stop) + 1) % every == 0
    before = count + due.cumsum(0) - due.long()
    newest = newest_share(before, decay)
    return torch.where(due, torch.where(before > 0, newest, 1.0), 0.0)


def flattened(module: nn.Module) -> Tensor:
    """Make the learned parameters of a module views of one vector, which is returned, ``[P]``.

    Args:
        module: its parameters keep names, shapes and values, in the order of the vector.
    """
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    vector = torch.cat([parameter.detach().flatten() for parameter in learned])
    parts = vector.split([parameter.numel() for parameter in learned])
    for parameter, part in zip(learned, parts, strict=True):
        parameter.data = part.view(parameter.shape)
    return vector
