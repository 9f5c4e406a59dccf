"""A whole training step as one CUDA graph: at small batches, launching kernels is all it costs.

Everything that differs between two steps is read from the device: the mini-batch, the learning
rate, the share of the weight average. On a CPU the same function runs step by step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.adam import adam

from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.ops.cuda_graph import record
from hipnn_pyg.train.direct import GPUGradient
from hipnn_pyg.train.loss import LossTerms
from hipnn_pyg.train.recipe import shares
from hipnn_pyg.train.static import Capacity, StaticBatches
from hipnn_pyg.train.step import TrainingStep

if TYPE_CHECKING:
    from hipnn_pyg.train.trainer import Trainer


class StepState(NamedTuple):
    """Every tensor that a step changes, apart from its number.

    Attributes:
        vector: learned parameters, ``[P]``.
        moment: Adam's first moment, ``[P]``.
        square: its second moment, ``[P]``.
        done: steps that Adam has done, float32, ``[]``.
        totals: sums of loss, MAE, R and, where forces are learned, their MAE over steps, float64,
            ``[3]`` or ``[4]``.
        first_bad: number of the first step whose loss was not finite, or -1, int64, ``[]``.
        average: averaged parameters, ``[P]``, or None.
    """

    vector: Tensor
    moment: Tensor
    square: Tensor
    done: Tensor
    totals: Tensor
    first_bad: Tensor
    average: Tensor | None = None

    @classmethod
    def of(cls, trainer: Trainer) -> StepState:
        """The tensors of a trainer themselves."""
        average = None if trainer.average is None else trainer.average.vector
        vector, optimizer = trainer.objective.vector, trainer.optimizer
        adam_state = adam_state_of(optimizer, vector)
        return cls(vector.detach(), *adam_state, trainer.totals, trainer.first_bad, average)

    @property
    def tensors(self) -> list[Tensor]:
        """Those that there are."""
        return [tensor for tensor in self if tensor is not None]


class CapturedStep:
    """Draw the mini-batch, loss, gradient, Adam, weight average and logged sums in one go.

    Args:
        gradient: of a :class:`~hipnn_pyg.train.static.StaticLoss` or ``StaticForceLoss`` at
            ``state.vector``: by the GPU's kernels alone, or the step that autograd goes through.
        state: what the steps change.
        settings: of Adam; its learning rate is not read, see :meth:`begin`.
        batches: the mini-batches.

    Attributes:
        graphed: whether steps are captured and replayed (on a GPU) or simply run.
    """

    def __init__(
        self,
        gradient: TrainingStep | GPUGradient,
        state: StepState,
        settings: dict[str, Any],
        batches: StaticBatches,
    ) -> None:
        self.gradient, self.state = gradient, state
        self.settings, self.batches = settings, batches
        vector = state.vector
        # On a GPU fused Adam reads its learning rate as float32, whatever the parameters are.
        plain = vector.is_cuda and not isinstance(gradient, GPUGradient)
        dtype = torch.float32 if plain else vector.dtype
        size = (*vector.shape[:-1], batches.order.size(-1) // batches.batch_size)
        self.rates = torch.zeros(size, dtype=dtype, device=vector.device)
        self.shares = torch.zeros(size, dtype=vector.dtype, device=vector.device)
        self.graphed = vector.is_cuda
        self._stream: torch.cuda.Stream | None = None
        self.done = 0
        self._graphs: dict[Capacity, torch.cuda.CUDAGraph] = {}

    def begin(
        self,
        order: Tensor,
        step: int,
        rates: Tensor,
        shares: Tensor,
    ) -> None:
        """Write what the steps of an epoch will read; capture the graphs that it needs.

        Args:
            order: the molecules of the epoch, see :meth:`StaticBatches.begin`.
            step: the one to begin with; those before it are done.
            rates: learning rates of the steps from ``step`` on.
            shares: of the new parameters in the average after each of these steps; 0 leaves it.
        """
        self.batches.begin(order, step)
        self._begin(step, rates, shares)

    def _begin(self, step: int, rates: Tensor, shares: Tensor) -> None:
        """The same once the mini-batches are written."""
        self.rates[..., step:].copy_(rates)
        self.shares[..., step:].copy_(shares)
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
        if isinstance(self.gradient, GPUGradient):
            self._by_kernels(self.gradient, batch)
            return
        step = self.gradient
        terms, gradient = step.gradient(step.vector, step.frozen, batch)
        with torch.no_grad():
            self._descend(gradient)
            self._log(terms)
            self.batches.step += 1

    def _by_kernels(self, gradient: GPUGradient, batch: MoleculeBatch) -> None:
        """The rest of the step in few launches."""
        from hipnn_pyg.ops import triton_step  # needs Triton

        found = gradient.without_l2(batch)
        number, weight, state = self.batches.step, gradient.loss.lambda_l2, self.state
        triton_step.descend(
            state.vector,
            gradient.gradient,
            gradient.penalised,
            (state.moment, state.square, state.done),
            state.average,
            self.rates,
            self.shares,
            number,
            weight,
            self.settings,
        )
        triton_step.count(found, state.totals, state.first_bad, number, state.done)

    def _descend(self, gradient: Tensor) -> None:
        """Adam and the weight average."""
        number, settings, state = self.batches.step, self.settings, self.state
        adam(
            [state.vector],
            [gradient],
            [state.moment],
            [state.square],
            [],
            [state.done],
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
        if state.average is not None:
            state.average.lerp_(state.vector, self.shares[number])

    def _log(self, terms: LossTerms) -> None:
        """Sums of the epoch, and where it went wrong."""
        totals, first_bad = self.state.totals, self.state.first_bad
        totals.add_(torch.stack(terms.logged[: totals.numel()]))
        bad = ~torch.isfinite(terms.loss) & (first_bad < 0)
        first_bad.copy_(torch.where(bad, self.batches.step[0], first_bad))

    # -- graphs --------------------------------------------------------------------------------

    def _changed(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        return [*self.state.tensors, self.batches.step]

    def _capture(self, capacity: Capacity) -> torch.cuda.CUDAGraph:
        """Record a step on a mini-batch that fits; what the warm-up changes is put back."""
        saved = [tensor.clone() for tensor in self._changed()]

        def passing() -> None:
            try:
                self.step(capacity)
            finally:
                for tensor, value in zip(self._changed(), saved, strict=True):
                    tensor.copy_(value)

        with torch.cuda.device_of(self.state.vector):
            # One stream for all graphs: libraries keep a workspace for each stream.
            self._stream = self._stream or torch.cuda.Stream()
            graph, _ = record(lambda: self.step(capacity), self._stream, passing)
        return graph


def captured_step(trainer: Trainer) -> CapturedStep:
    """The step of a trainer, which holds the tensors that it changes.

    Args:
        trainer: ready to start.
    """
    objective, size = trainer.objective, trainer.config.batch_size
    dtype = objective.vector.dtype
    return CapturedStep(
        gradient_of(objective),
        StepState.of(trainer),
        trainer.optimizer.param_groups[0],
        StaticBatches(trainer.train, size, trainer.steps_per_epoch, dtype, trainer.forces),
    )


def gradient_of(objective: TrainingStep) -> TrainingStep | GPUGradient:
    """The gradient that a captured step takes: that of the GPU's kernels, if the step has one.

    Args:
        objective: the step.
    """
    return objective.direct if isinstance(objective.direct, GPUGradient) else objective


def rates_and_shares(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Learning rates of the steps left in the epoch, and the shares in the average after them.

    Args:
        trainer: at the beginning of an epoch, or in its midst after a restart.
    """
    left = range(trainer.step, trainer.steps_per_epoch)
    count = 0 if trainer.average is None else int(trainer.average.n_averaged)
    rates = trainer.schedule.rates(len(left))
    return rates, shares(left, trainer.average_every, count, trainer.config.average_decay)


def adam_state_of(optimizer: Adam, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both moments and the number of steps, as the optimizer itself makes them."""
    state = optimizer.state[vector]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=vector.device)
        state["exp_avg"] = torch.zeros_like(vector, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(vector, requires_grad=False)
    return state["exp_avg"], state["exp_avg_sq"], state["step"]
