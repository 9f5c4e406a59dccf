"""A whole training step as one CUDA graph: at small batches, launching kernels is all it costs.

Everything that differs between two steps is read from the device: the mini-batch, the learning
rate, the share of the weight average. On a CPU the same function runs step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.adam import adam

from hipnn_pyg.data.packed import MoleculeBatch, partition
from hipnn_pyg.train.direct import GPUGradient
from hipnn_pyg.train.loss import LossTerms
from hipnn_pyg.train.recipe import shares
from hipnn_pyg.train.static import Capacity, StaticBatches
from hipnn_pyg.train.step import TrainingStep

if TYPE_CHECKING:
    from hipnn_pyg.train.trainer import Trainer

WARM_UP = 3
"""Steps before a capture: kernels are compiled and libraries set up, which cannot be captured."""


class CapturedStep:
    """Draw the mini-batch, loss, gradient, Adam, weight average and logged sums in one go.

    Args:
        objective: the step, with a :class:`~hipnn_pyg.train.static.StaticLoss`.
        optimizer: fused Adam of ``objective.vector``; of its settings the learning rate is not
            read, see :meth:`begin`.
        batches: the mini-batches.
        average: averaged parameters, ``[P]``, or None.
        totals: sums of loss, MAE and R over steps, float64, ``[3]``; the caller's.
        first_bad: number of the first step whose loss was not finite, or -1, int64, ``[]``.

    Attributes:
        graphed: whether steps are captured and replayed (on a GPU) or simply run.
    """

    def __init__(
        self,
        objective: TrainingStep,
        optimizer: Adam,
        batches: StaticBatches,
        average: Tensor | None,
        totals: Tensor,
        first_bad: Tensor,
    ) -> None:
        self.objective, self.frozen = objective, objective.frozen
        self.batches, self.average = batches, average
        self.totals, self.first_bad = totals, first_bad
        self.vector = objective.vector
        self.settings = optimizer.param_groups[0]
        self.moments = _adam_state(optimizer, self.vector)
        # On a GPU fused Adam reads its learning rate as float32, whatever the parameters are.
        plain = self.vector.is_cuda and not isinstance(objective.direct, GPUGradient)
        dtype = torch.float32 if plain else self.vector.dtype
        steps = batches.order.numel() // batches.batch_size
        self.rates = torch.zeros(steps, dtype=dtype, device=self.vector.device)
        self.shares = torch.zeros(steps, dtype=self.vector.dtype, device=self.vector.device)
        self.graphed = self.vector.is_cuda
        self._stream: torch.cuda.Stream | None = None
        self.done = 0
        self._graphs: dict[Capacity, torch.cuda.CUDAGraph] = {}

    def begin(
        self,
        batches: Sequence[Tensor],
        step: int,
        rates: Sequence[float],
        shares: Sequence[float],
    ) -> None:
        """Write what the steps of an epoch will read; capture the graphs that it needs.

        Args:
            batches: all mini-batches of the epoch, see :meth:`StaticBatches.begin`.
            step: the one to begin with; those before it are done.
            rates: learning rates of the steps from ``step`` on.
            shares: of the new parameters in the average after each of these steps; 0 leaves it.
        """
        self.batches.begin(batches, step)
        self.rates[step:].copy_(torch.tensor(rates, dtype=torch.float64))
        self.shares[step:].copy_(torch.tensor(shares, dtype=torch.float64))
        self.done = step
        for number, capacity in enumerate(self.batches.capacities if self.graphed else ()):
            if number in self.batches.needed[step:] and capacity not in self._graphs:
                self.batches.step.fill_(self.batches.needed.index(number, step))
                self._graphs[capacity] = self._capture(capacity)
        self.batches.step.fill_(step)

    def __call__(self) -> None:
        """The next step of the epoch. Nothing waits for it."""
        capacity = self.batches.capacity_of(self.done)
        self.done += 1
        if self.graphed:
            self._graphs[capacity].replay()
        else:
            self.step(capacity)

    def step(self, capacity: Capacity) -> None:
        """One step; tensors in place, and nothing that the host would have to wait for.

        Args:
            capacity: of the mini-batch: the only thing that Python knows of it.
        """
        batch = self.batches.draw(capacity)
        if isinstance(self.objective.direct, GPUGradient):
            self._by_kernels(self.objective.direct, batch)
            return
        terms, gradient = self.objective.gradient(self.vector, self.frozen, batch)
        with torch.no_grad():
            self._descend(gradient)
            self._log(terms)
            self.batches.step += 1

    def _by_kernels(self, gradient: GPUGradient, batch: MoleculeBatch) -> None:
        """The rest of the step in few launches."""
        from hipnn_pyg.ops import triton_step  # needs Triton

        found = gradient.without_l2(batch)
        number, weight = self.batches.step, gradient.loss.lambda_l2
        triton_step.descend(
            self.vector.detach(),
            gradient.gradient,
            gradient.penalised,
            self.moments,
            self.average,
            self.rates,
            self.shares,
            number,
            weight,
            self.settings,
        )
        triton_step.count(found, self.totals, self.first_bad, number, self.moments[2])

    def _descend(self, gradient: Tensor) -> None:
        """Adam and the weight average."""
        number = self.batches.step
        settings, (moment, square, steps) = self.settings, self.moments
        adam(
            [self.vector],
            [gradient],
            [moment],
            [square],
            [],
            [steps],
            fused=True,
            foreach=False,
            capturable=True,
            amsgrad=False,
            beta1=settings["betas"][0],
            beta2=settings["betas"][1],
            lr=self.rates[number],
            weight_decay=settings["weight_decay"],
            eps=settings["eps"],
            maximize=False,
        )
        if self.average is not None:
            self.average.lerp_(self.vector, self.shares[number])

    def _log(self, terms: LossTerms) -> None:
        """Sums of the epoch, and where it went wrong."""
        self.totals += torch.stack((terms.loss, terms.mae, terms.r))
        bad = ~torch.isfinite(terms.loss) & (self.first_bad < 0)
        self.first_bad.copy_(torch.where(bad, self.batches.step[0], self.first_bad))

    # -- graphs --------------------------------------------------------------------------------

    def _changed(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        average = [] if self.average is None else [self.average]
        counters = [self.totals, self.first_bad, self.batches.step]
        return [self.vector.detach(), *self.moments, *average, *counters]

    def _capture(self, capacity: Capacity) -> torch.cuda.CUDAGraph:
        """Record a step on a mini-batch that fits; what the warm-up changes is put back."""
        with torch.cuda.device_of(self.vector):
            saved = [tensor.clone() for tensor in self._changed()]
            # Libraries keep a workspace for each stream: graphs captured in one stream cannot run
            # side by side.
            stream = self._stream = self._stream or torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    try:
                        self.step(capacity)
                    finally:
                        for tensor, value in zip(self._changed(), saved, strict=True):
                            tensor.copy_(value)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                self.step(capacity)
        return graph


def captured_step(trainer: Trainer) -> CapturedStep:
    """The step of a trainer, which holds the tensors that it changes.

    Args:
        trainer: ready to start.
    """
    return CapturedStep(
        trainer.objective,
        trainer.optimizer,
        StaticBatches(
            trainer.train,
            trainer.config.batch_size,
            trainer.steps_per_epoch,
            trainer.objective.vector.dtype,
        ),
        None if trainer.average is None else trainer.average.vector,
        trainer.totals,
        trainer.first_bad,
    )


def begin_captured(trainer: Trainer, step: CapturedStep) -> None:
    """:meth:`CapturedStep.begin` with what the trainer's present epoch will need.

    Args:
        trainer: at the beginning of an epoch, or in its midst after a restart.
        step: its captured step.
    """
    left, config = range(trainer.step, trainer.steps_per_epoch), trainer.config
    count = 0 if trainer.average is None else int(trainer.average.n_averaged)
    step.begin(
        partition(len(trainer.train), config.batch_size, True, config.seed, trainer.epoch),
        trainer.step,
        trainer.schedule.rates(len(left)),
        shares(left, config.average_every, count, config.average_decay),
    )


def _adam_state(optimizer: Adam, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both moments and the number of steps, as the optimizer itself makes them."""
    state = optimizer.state[vector]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=vector.device)
        state["exp_avg"] = torch.zeros_like(vector, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(vector, requires_grad=False)
    return state["exp_avg"], state["exp_avg_sq"], state["step"]
