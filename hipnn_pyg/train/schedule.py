"""Learning-rate schedules of the two recipes."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer


class Schedule(Protocol):
    """What the training loop asks of a schedule."""

    def after_step(self) -> None:
        """Called after every optimiser step."""

    def after_epoch(self, improved: bool) -> bool:
        """Called after every validation; True ends the training."""

    def rates(self, steps: int) -> Tensor:
        """Learning rates of the next steps of the epoch, float64."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``."""


class PlateauAnnealing:
    """The paper's annealing and early stopping (Sec. II.E.2).

    The rate is constant for ``t_init`` epochs. Afterwards, whenever the best validation error is
    ``t_patience`` epochs old (or the last lowering is), the rate is multiplied by ``decay``.
    Training ends when that happens twice without a new best in between.

    Args:
        optimizer: its learning rate is changed in place.
        t_init: epochs before annealing may begin.
        t_patience: epochs to wait.
        decay: factor.
    """

    def __init__(
        self, optimizer: Optimizer, t_init: int = 100, t_patience: int = 50, decay: float = 0.5
    ) -> None:
        self.optimizer = optimizer
        self.t_init, self.t_patience, self.decay = t_init, t_patience, decay
        self.epoch = 0
        self.waited = 0
        self.lowered = 0

    def after_step(self) -> None:
        """Nothing: the rate changes between epochs only."""

    def rates(self, steps: int) -> Tensor:
        """The same for all of them."""
        return torch.full((steps,), self.optimizer.param_groups[0]["lr"], dtype=torch.float64)

    def after_epoch(self, improved: bool) -> bool:
        """Count the epoch; lower the rate or stop where the rule says so."""
        self.epoch += 1
        self.waited = 0 if improved else self.waited + 1
        if improved:
            self.lowered = 0
        if self.epoch < self.t_init or self.waited < self.t_patience:
            return False
        self.waited = 0
        self.lowered += 1
        for group in self.optimizer.param_groups:
            group["lr"] *= self.decay
        return self.lowered == 2

    def state_dict(self) -> dict[str, Any]:
        """The three counters (the rate itself is the optimiser's)."""
        return {"epoch": self.epoch, "waited": self.waited, "lowered": self.lowered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters."""
        self.epoch, self.waited, self.lowered = state["epoch"], state["waited"], state["lowered"]


class WarmupCosine:
    """Linear warm-up, then half a cosine down to 0 at the last step.

    Args:
        optimizer: its learning rate is changed in place.
        peak: highest learning rate.
        warmup_steps: steps of warm-up (at most a tenth of all steps).
        total_steps: all steps of the run.
    """

    def __init__(
        self, optimizer: Optimizer, peak: float, warmup_steps: int, total_steps: int
    ) -> None:
        self.optimizer = optimizer
        self.peak = peak
        self.warmup_steps = min(warmup_steps, total_steps // 10)
        self.total_steps = total_steps
        self.step = 0
        self._apply()

    def factor(self, step: int) -> float:
        """Learning rate of a step over its peak."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * self.factor(self.step)

    def after_step(self) -> None:
        """Set the next step's rate."""
        self.step += 1
        self._apply()

    def rates(self, steps: int) -> Tensor:
        """What the next calls of :meth:`after_step` would set, the present rate first."""
        step = torch.arange(self.step, self.step + steps, dtype=torch.float64)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        cosine = 0.5 * (1 + torch.cos(math.pi * progress.clamp(max=1.0)))
        rising = (step + 1) / (self.warmup_steps + 1)
        return self.peak * torch.where(step < self.warmup_steps, rising, cosine)

    def after_epoch(self, improved: bool) -> bool:
        """Never stops early."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """The number of steps done."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of steps done."""
        self.step = state["step"]
        self._apply()
