"""The training loop (Secs. II.E.2 and II.F), on Lightning Fabric."""

from __future__ import annotations

import copy
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.loggers import Logger, TensorBoardLogger
from torch import Tensor
from torch.optim import Adam
from tqdm import tqdm

from hipnn_pyg.checks import HIPNNWarning, check_species
from hipnn_pyg.data.packed import PackedMolecules, partition
from hipnn_pyg.models.files import load_model, save_model
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.self_check import self_check
from hipnn_pyg.train.checkpoint import (
    load_checkpoint,
    restore_rng,
    save_checkpoint,
    write_history,
)
from hipnn_pyg.train.config import Training
from hipnn_pyg.train.graphs import compile_wanted, compiled_graphs, recompiled
from hipnn_pyg.train.interrupts import interrupts
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms
from hipnn_pyg.train.metrics import ErrorStatistics, predict, statistics_sums, summed_statistics
from hipnn_pyg.train.processes import (
    check_agreement,
    connect,
    failure_elsewhere,
    sum_over_processes,
    watch,
)
from hipnn_pyg.train.recipe import recipe, running_average
from hipnn_pyg.train.sharded import ShardedStep
from hipnn_pyg.train.step import Gradient, TrainingStep, compiled_gradient
from hipnn_pyg.units import ENERGY_UNITS

__all__ = ["Trainer", "TrainingStopped", "running_average"]

LOOK_EVERY = 20
"""Steps between looks at whether another process was asked to stop: each waits for the GPU."""


class TrainingStopped(RuntimeError):
    """Training ended before its time: an interrupt (resume it) or a loss that is not finite.

    Args:
        message: what happened and what to do.
        interrupted: whether it was Ctrl-C or SIGTERM.
    """

    def __init__(self, message: str, interrupted: bool = False) -> None:
        super().__init__(message)
        self.interrupted = interrupted


class Trainer:
    """Train a model on packed molecules; keep the parameters with the best validation MAE.

    Args:
        model: with E^0 and sigma_E set (``fit_e0``); moved to the device and trained in place.
        train: training molecules.
        validation: validation molecules, for early stopping and the choice of the best model.
        config: settings.
        folder: run folder for checkpoint, model files, ``metrics.csv`` and TensorBoard logs;
            None keeps everything in memory.
        provenance: kept in the model file (data set, split ...).
        progress: show a progress bar.

    Raises:
        StructureError: species that the model does not know.
    """

    def __init__(
        self,
        model: HIPNN,
        train: PackedMolecules,
        validation: PackedMolecules,
        config: Training | None = None,
        folder: str | Path | None = None,
        provenance: dict[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        self.config = config = (config or Training()).resolved()
        assert config.epochs is not None
        for name, molecules in (("train", train), ("validation", validation)):
            if not len(molecules):
                raise ValueError(f"there are no {name} molecules: make num_{name} at least 1")
            check_species(molecules.z, model.species_index(molecules.z) >= 0, model.species)
        self.folder = None if folder is None else Path(folder)
        self.provenance = provenance or {}
        loggers: list[Logger] = (
            [] if self.folder is None else [TensorBoardLogger(self.folder, name="logs")]
        )
        self.fabric = connect(config, loggers)
        self.device = self.fabric.device
        self.progress = progress and self.fabric.is_global_zero
        self.writes = self.folder is not None and self.fabric.is_global_zero
        # The Gaussians' far tails are denormal numbers, slow on a CPU. Worker threads inherit this
        # from the thread that starts them, so scripts do best to call it before anything else.
        torch.set_flush_denormal(True)

        self.model = model.to(self.device).train()
        self.train, self.validation = train.to(self.device), validation.to(self.device)
        self.epochs = config.epochs
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        total_steps = self.epochs * self.steps_per_epoch
        self.epoch = 0  # epochs done
        self.step = 0  # steps done in this epoch
        self.seconds = 0.0  # spent training, over all restarts
        kernel = model.kernel_on(self.device)
        self_check(kernel, self.device, config.self_check)
        self.compiled = compile_wanted(config, self.device, kernel, total_steps)
        with self._failures():
            self._set_up_step()
        weights = [self.objective.vector]
        self.optimizer = Adam(weights, lr=config.learning_rate, betas=(0.9, 0.999), fused=True)
        self.schedule, self.average = recipe(config, model, self.optimizer, total_steps)

        self.metric_unit = "kcal/mol" if train.spec.unit in ENERGY_UNITS else train.spec.unit
        self.best_mae = math.inf
        self.best_epoch = 0
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)  # this epoch's
        self.best_state = copy.deepcopy(model.state_dict())
        self.history: list[dict[str, float]] = []
        self.first_bad = torch.tensor(-1, device=self.device)  # first step whose loss is not finite
        self.interrupted = False
        self.stopped = False  # by the schedule
        self.graphs = 0  # compilations of the step, in this process

    # -- the loop ------------------------------------------------------------------------------

    def fit(self) -> HIPNN:
        """Train (on); returns the model with the best validation MAE, in evaluation mode.

        Raises:
            TrainingStopped: on Ctrl-C or SIGTERM, after a checkpoint; on a loss that is not finite;
                when another process of the run has failed.
        """
        with self._bar() as bar, interrupts(self._ask_to_stop), self._failures():
            self.start()
            while not self.finished:
                for index in self.batches():
                    self.update(self.gradient_of(index))
                    bar.update(index.numel())
                self.end_epoch()
                bar.set_postfix_str(f"validation MAE {self.last_mae:.3f} {self.metric_unit}")
        return self.finish()

    def start(self) -> None:
        """Before the first step (after :meth:`resume`): the clock starts."""
        self._counted_at = time.monotonic()
        if self.sharded is not None:
            done = self.epoch * self.steps_per_epoch + self.step
            check_agreement(self.train, self.validation, self.objective.vector, done)
        if self.compiled and self.progress:
            tqdm.write("compiling the training step (up to a minute, cached between runs)")

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the schedule has ended the training."""
        return self.epoch >= self.epochs or self.stopped

    def batches(self) -> tuple[Tensor, ...]:
        """The mini-batches left in the present epoch: molecules of ``train``, each ``[G]``."""
        return self._partition()[self.step :]

    def gradient_of(self, index: Tensor) -> LossTerms:
        """The loss of a mini-batch; its gradient is left in ``objective.vector.grad``.

        Args:
            index: molecules of the whole mini-batch, over all processes, ``[G]``.
        """
        vector, graphs = self.objective.vector, compiled_graphs()
        if self.sharded is None:
            terms, vector.grad = self.gradient(vector, self.frozen, self.train.gather(index))
        else:
            vector.grad = None
            self.sharded.asked = self.interrupted
            part = self._share(index)
            terms = self.wrapped(self.train.gather(part) if part.numel() else None)
            self.fabric.backward(terms.loss)
            terms = LossTerms(*(term.detach() for term in terms))
        self.graphs += compiled_graphs() - graphs
        return terms

    def update(self, terms: LossTerms) -> None:
        """One step of the optimizer along ``objective.vector.grad``, and what goes with it.

        Args:
            terms: of the mini-batch.
        """
        self.optimizer.step()
        self.schedule.after_step()
        self.step += 1
        if self.average is not None and self.step % self.config.average_every == 0:
            self.average.update_parameters(self.model)
        self.totals += torch.stack((terms.loss, terms.mae, terms.r))
        self._watch(terms.loss)
        self._checkpoint_if_due()

    def end_epoch(self) -> None:
        """Validate, log, keep the best, step the schedule, which may stop the training."""
        self._raise_if_bad()
        self._count_time()
        judged = self.model if self.average is None else cast(HIPNN, self.average.module)
        statistics = self._validate(judged)
        means = (self.totals / self.step).tolist()
        self.totals.zero_()
        improved = statistics.mae < self.best_mae
        self.epoch, self.step = self.epoch + 1, 0
        row = {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": means[0],
            "train_mae": means[1],
            "train_r": means[2],
            "validation_mae": statistics.mae,
            "validation_rmse": statistics.rmse,
            "compiled_graphs": self.graphs,
        }
        self.history.append(row)
        self._report_graphs()
        self.fabric.log_dict(row, step=self.epoch)
        self.last_mae = statistics.mae
        self.stopped = self.schedule.after_epoch(improved)
        if improved:
            self.best_mae, self.best_epoch = statistics.mae, self.epoch
            self.best_state = copy.deepcopy(judged.state_dict())
            self._save_best(judged, statistics)

    def finish(self) -> HIPNN:
        """After the last epoch: a checkpoint, and the model with the best validation MAE."""
        self._save()
        self.model.load_state_dict(self.best_state)
        return self.model.eval()

    def _partition(self) -> tuple[Tensor, ...]:
        """All mini-batches of the present epoch, a new random partition each time."""
        config = self.config
        return partition(len(self.train), config.batch_size, True, config.seed, self.epoch)

    def _share(self, index: Tensor) -> Tensor:
        """This process's part of an index."""
        return index[self.fabric.global_rank :: self.fabric.world_size]

    def _validate(self, judged: HIPNN) -> ErrorStatistics:
        """Errors over the validation molecules, each predicted by one process."""
        unit, sums = self.train.spec.unit, torch.zeros(4, dtype=torch.float64)
        part = self._share(torch.arange(len(self.validation)))
        if part.numel():
            mine = self.validation if self.sharded is None else self.validation.subset(part)
            sums = statistics_sums(predict(judged, mine).energy, mine.target, unit)
        if self.sharded is not None:
            sums = sum_over_processes(sums, self.device)
        return summed_statistics(sums, unit)

    # -- what can go wrong ---------------------------------------------------------------------

    def _watch(self, loss: Tensor) -> None:
        """Remember the first step whose loss is not finite, without leaving the device."""
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, self.step - 1, self.first_bad)
        if self.device.type == "cpu":
            self._raise_if_bad()

    def _raise_if_bad(self) -> None:
        step = int(self.first_bad)
        if step < 0:
            return
        molecules = self._partition()[step].tolist()
        raise TrainingStopped(
            f"the loss of batch {step} of epoch {self.epoch + 1} is not finite (training molecules "
            f"{molecules[:5]} ...); the last checkpoint is intact: resume with a lower "
            "learning_rate in a new run, or look at those molecules"
        )

    def _ask_to_stop(self) -> None:
        self.interrupted = True

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """The failure of another process ends the run, with a checkpoint where that is possible."""
        watch(True)
        try:
            yield
        except TrainingStopped:
            raise
        except RuntimeError as error:
            failure = failure_elsewhere(error)
            if failure is None:
                raise
            watch(False)
            if self.device.type == "cpu" and self._counted_at:  # a GPU may hold half a step
                self._save()
            stopped = TrainingStopped(f"{failure.reason}; {self._where()}")
            stopped.add_note(failure.log)
            raise stopped from error
        finally:
            watch(False)

    def _stop_wanted(self) -> bool:
        if self.sharded is None:
            return self.interrupted
        return self.sharded.stop_agreed(
            look=self.step % LOOK_EVERY == 0 or self.step == self.steps_per_epoch
        )

    def _where(self) -> str:
        at = f"stopped in epoch {self.epoch + 1} at step {self.step} of {self.steps_per_epoch}"
        kept = self.folder is not None and (self.folder / "checkpoint.pt").exists()
        return f"{at}; go on with --resume" if kept else at

    # -- checkpoints ---------------------------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        if self._stop_wanted():
            watch(False)
            self._raise_if_bad()
            self._save()
            raise TrainingStopped(self._where(), interrupted=True)
        if self.writes and time.monotonic() - self._saved_at > self.config.checkpoint_seconds:
            self._raise_if_bad()
            self._save()

    _saved_at = -math.inf
    _counted_at = 0.0
    _graphs_reported = 1
    last_mae = math.nan

    def _save(self) -> None:
        if not self.writes:
            return
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._count_time()
        state = {
            "totals": self.totals,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": {name: getattr(self, name) for name in self._progress_names},
            "history": self.history,
        }
        save_checkpoint(self.folder / "checkpoint.pt", state)
        write_history(self.folder / "metrics.csv", self.history)
        self._saved_at = time.monotonic()

    def _count_time(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._counted_at
        self._counted_at = now

    _progress_names = ("epoch", "step", "seconds", "best_mae", "best_epoch", "stopped")

    def resume(self) -> None:
        """Go on from the checkpoint in the run folder.

        Raises:
            ModelFileError: there is none, or it is damaged or of another configuration.
        """
        assert self.folder is not None
        state = load_checkpoint(self.folder / "checkpoint.pt", self.device)
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for name in self._progress_names:
            setattr(self, name, state["progress"][name])
        self.history = state["history"]
        self.totals = state["totals"]
        if self.best_epoch:
            self.best_state = load_model(self.folder, self.device).state_dict()
        restore_rng(state["rng"])

    def _save_best(self, judged: HIPNN, statistics: ErrorStatistics) -> None:
        if not self.writes:
            return
        assert self.folder is not None
        provenance = {
            "epoch": self.epoch,
            "validation_mae": statistics.mae,
            "training_seconds": round(self.seconds, 1),
            "validation_unit": statistics.unit,
            "target": self.train.spec.name,
        }
        save_model(judged, self.folder, **{**self.provenance, **provenance})

    # -- small decisions -----------------------------------------------------------------------

    def _set_up_step(self) -> None:
        """What gives loss and gradient: one graph, or a DDP module where there are processes."""
        config = self.config
        self.objective = TrainingStep(HIPNNLoss(self.model, config.lambda_l2, config.lambda_r))
        self.frozen = self.objective.frozen
        self.gradient: Gradient = self.objective.gradient
        self.sharded: ShardedStep | None = None
        if self.fabric.world_size > 1:
            self.sharded = ShardedStep(self.objective, self.compiled)
            self.wrapped = self.fabric.setup_module(self.sharded)
        elif self.compiled:
            self.gradient = compiled_gradient(self.objective)

    def _report_graphs(self) -> None:
        """One line whenever the step was compiled more often than once."""
        if self.graphs > self._graphs_reported:
            self._graphs_reported = self.graphs
            warnings.warn(recompiled(self.graphs), HIPNNWarning, stacklevel=4)

    def _bar(self) -> tqdm:
        size = len(self.train)
        return tqdm(
            total=self.epochs * size,
            initial=self.epoch * size + self.step * self.config.batch_size,
            unit="mol",
            unit_scale=True,
            desc=f"{self.epochs} epochs",
            smoothing=0.05,
            disable=not self.progress,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )
