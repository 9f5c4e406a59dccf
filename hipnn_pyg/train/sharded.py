"""A training step whose mini-batch is spread over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.func import functional_call

from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms
from hipnn_pyg.train.step import TrainingStep


class _Sum(torch.autograd.Function):
    """Sum over all processes of values that each process then uses in the same way."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * dist.get_world_size()


class _Sums(nn.Module):
    """:meth:`HIPNNLoss.sums` as a module, for ``functional_call``, with the loss's names."""

    def __init__(self, loss: HIPNNLoss) -> None:
        super().__init__()
        object.__setattr__(self, "loss", loss)
        self.loss: HIPNNLoss
        self.model = loss.model

    def forward(self, batch: MoleculeBatch) -> Tensor:
        return self.loss.sums(batch)


class ShardedStep(nn.Module):
    r"""A training step whose mini-batch is spread over W processes: what DDP wraps.

    The sums S over the molecules of each process (errors, squares, R, count) are added up before
    root and division, so that every process has the loss L(S) of the whole mini-batch. DDP takes
    the mean of the gradients. Hence the cotangent of a process's own sums is
    :math:`W\, \partial L / \partial S`, and the L2 term, equal on all, counts once.

    The flag of a process that was asked to stop travels with the sums.

    Args:
        step: the step; its ``vector`` becomes this module's only parameter.
        compile: compile the network's part, forward and backward.

    Attributes:
        asked: whether this process was asked to stop.
    """

    def __init__(self, step: TrainingStep, compile: bool) -> None:
        super().__init__()
        object.__setattr__(self, "step", step)  # no submodule: DDP is to see the vector alone
        self.step: TrainingStep
        self.vector = step.vector
        self.asked = False
        self._stop: Tensor = torch.tensor(0.0)
        for frozen in step.frozen.values():
            dist.broadcast(frozen, 0)
        module = _Sums(step.loss)

        def sums(vector: Tensor, frozen: dict[str, Tensor], part: MoleculeBatch) -> Tensor:
            parameters = {**step.views(vector), **frozen}
            return cast(Tensor, functional_call(module, parameters, (part,)))

        self._sums: Callable[[Tensor, dict[str, Tensor], MoleculeBatch], Tensor] = (
            torch.compile(sums, dynamic=True, fullgraph=True) if compile else sums
        )

    def forward(self, part: MoleculeBatch | None) -> LossTerms:
        """The loss of the whole mini-batch.

        Args:
            part: this process's molecules; None if it has none.
        """
        if part is None:
            sums = self.vector.new_zeros(self.step.loss.num_sums, dtype=torch.float64)
        else:
            sums = self._sums(self.vector, self.step.frozen, part)
        total = _Sum.apply(torch.cat((sums, sums.new_full((1,), self.asked))))
        self._stop = total[-1].detach()
        l2 = (self.step.penalised * self.vector.square()).sum()
        return self.step.loss.terms(total[:-1], l2)

    def stop_agreed(self, look: bool) -> bool:
        """Whether any process was asked to stop: the same answer on all of them.

        Args:
            look: on a GPU, whether to wait for it and see.
        """
        return (look or not self._stop.is_cuda) and bool(self._stop > 0)
