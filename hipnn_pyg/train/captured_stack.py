"""The captured steps of K models in the launches of one: their numbers lie one after the other.

At small mini-batches a launch takes its time whatever it computes: eight models take 2.6 times as
long as one on an H200. What is joined are the kernels' launches, not the models: each has its own
parameters, mini-batch, learning rate and average.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.train.capture import CapturedStep, StepState, gradient_of, rates_and_shares
from hipnn_pyg.train.direct import GPUGradient
from hipnn_pyg.train.loss import HIPNNLoss
from hipnn_pyg.train.static import StaticBatches

if TYPE_CHECKING:
    from hipnn_pyg.train.trainer import Trainer


def stacks(trainers: Sequence[Trainer]) -> bool:
    """Whether a :class:`CapturedStack` takes these trainers, whose networks are equal.

    Of what is not learned, only E^0 and sigma_E may differ.

    Args:
        trainers: the models.
    """
    shapes = {(t.config.batch_size, len(t.train)) for t in trainers}
    by_kernels = isinstance(gradient_of(trainers[0].objective), GPUGradient)
    averaged = {t.average is not None for t in trainers}
    alike = all(
        torch.equal(tensor, trainer.objective.frozen[name])
        for name, tensor in trainers[0].objective.frozen.items()
        for trainer in trainers
        if "reference" not in name
    )
    one_shape = len(shapes) == len(averaged) == 1
    return trainers[0].captures and by_kernels and one_shape and alike


class StackedBatches(StaticBatches):
    """The mini-batches of K models, one of each in every step. Only the kernels draw them.

    Args:
        parts: each model's molecules, on one device.
        batch_size: molecules of a mini-batch, G.
        steps: mini-batches of an epoch.
        dtype: of the distances that are drawn.
    """

    def __init__(
        self, parts: Sequence[PackedMolecules], batch_size: int, steps: int, dtype: torch.dtype
    ) -> None:
        super().__init__(_joined(parts), min(batch_size, len(parts[0])), steps, dtype)
        self.order = self.order.new_zeros(len(parts), self.order.numel())
        self.first = [0, *accumulate(map(len, parts))][:-1]

    def begin_all(self, orders: Sequence[Tensor], step: int) -> None:
        """Write the mini-batches of an epoch.

        Args:
            orders: molecules of each model in the order of its mini-batches.
            step: the one to begin with.
        """
        for mine, own, first in zip(self.order, orders, self.first, strict=True):
            self._write(mine, own + first)
        self._size(step)


class CapturedStack(CapturedStep):
    """One step of each of K trainers at once.

    Between :meth:`load` and :meth:`store` the stack, and not the trainers, has what steps change.

    Args:
        trainers: that :func:`stacks` takes, all at the same step of the same epoch.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        first, self.trainers = trainers[0], list(trainers)
        states = zip(*(StepState.of(trainer).tensors for trainer in trainers), strict=True)
        state = StepState(*map(torch.stack, states))
        loss = _stacked_loss([trainer.objective.loss for trainer in trainers])
        for name, view in first.objective.views(state.vector).items():
            loss.get_parameter(name).data = view
        self.all_batches = StackedBatches(
            [trainer.train for trainer in trainers],
            first.config.batch_size,
            first.steps_per_epoch,
            state.vector.dtype,
        )
        gradient = GPUGradient(loss, state.vector, first.objective.penalised)
        super().__init__(gradient, state, first.optimizer.param_groups[0], self.all_batches)
        self.loaded = False

    @torch.no_grad()
    def load(self) -> None:
        """Take what the steps left in the trainers' epoch will need and change."""
        for mine, *theirs in self._shared():
            torch.stack(theirs, out=mine)
        step = self.trainers[0].step
        self.all_batches.begin_all([t.order() for t in self.trainers], step)
        rates, shares = zip(*map(rates_and_shares, self.trainers), strict=True)
        self._begin(step, torch.stack(rates), torch.stack(shares))
        self.loaded = True

    @torch.no_grad()
    def store(self) -> None:
        """Give the trainers what is theirs; without :meth:`load`, nothing."""
        for mine, *theirs in self._shared() if self.loaded else ():
            for row, own in zip(mine, theirs, strict=True):
                own.copy_(row)
        self.loaded = False

    def _shared(self) -> list[tuple[Tensor, ...]]:
        """Each tensor that steps change, stacked, and those of the trainers."""
        states = [StepState.of(trainer).tensors for trainer in self.trainers]
        return [*zip(self.state.tensors, *states, strict=True)]


def _stacked_loss(losses: Sequence[HIPNNLoss]) -> HIPNNLoss:
    """A loss whose model has E^0 and sigma_E of all, as :mod:`hipnn_pyg.models.direct` takes it."""
    joined = copy.deepcopy(losses[0])
    reference, references = joined.model.reference, [loss.model.reference for loss in losses]
    reference.weight.data = torch.stack([own.weight.detach() for own in references])
    reference.bias.data = torch.stack([own.bias.detach() for own in references])
    reference.sigma_e = torch.stack([own.sigma_e for own in references])
    return joined


def _joined(parts: Sequence[PackedMolecules]) -> PackedMolecules:
    """The molecules of all parts, one part after the other; atoms that they share once."""
    stored = {part.pos.data_ptr(): part for part in parts}
    atoms = dict(zip(stored, [0, *accumulate(p.z.size(0) for p in stored.values())], strict=False))
    return replace(
        parts[0],
        z=torch.cat([part.z for part in stored.values()]),
        pos=torch.cat([part.pos for part in stored.values()]),
        counts=torch.cat([part.counts for part in parts]),
        target=torch.cat([part.target for part in parts]),
        start=torch.cat([part.start + atoms[part.pos.data_ptr()] for part in parts]),
        forces=None,
        force_labels=None,
    )
