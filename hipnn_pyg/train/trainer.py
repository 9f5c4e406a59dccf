"""The training loop (Secs. II.E.2 and II.F), on Lightning Fabric."""

from __future__ import annotations

import copy
import csv
import io
import math
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import Logger, TensorBoardLogger
from torch import Tensor
from torch.optim import Adam
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from hipnn_pyg.checks import check_species
from hipnn_pyg.data.packed import PackedMolecules, partition
from hipnn_pyg.models.files import atomic_write, load_model, save_model
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.train.checkpoint import load_checkpoint, restore_rng, save_checkpoint
from hipnn_pyg.train.config import Training
from hipnn_pyg.train.loss import HIPNNLoss
from hipnn_pyg.train.metrics import error_statistics, predict
from hipnn_pyg.train.schedule import PlateauAnnealing, Schedule, WarmupCosine
from hipnn_pyg.units import ENERGY_UNITS

COMPILE_PAYS_AFTER = 5_000
"""Steps from which ``compile="auto"`` compiles: about a minute once, against 10 ms a step."""


class TrainingStopped(RuntimeError):
    """Training ended before its time: an interrupt (resume it) or a loss that is not finite.

    Args:
        message: what happened and what to do.
        interrupted: whether it was Ctrl-C or SIGTERM.
    """

    def __init__(self, message: str, interrupted: bool = False) -> None:
        super().__init__(message)
        self.interrupted = interrupted


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
        self.progress = progress
        loggers: list[Logger] = (
            [] if self.folder is None else [TensorBoardLogger(self.folder, name="logs")]
        )
        accelerator = "auto" if config.device == "auto" else config.device
        self.fabric = Fabric(accelerator=accelerator, devices=1, loggers=loggers)
        self.device = self.fabric.device
        # The Gaussians' far tails are denormal numbers, slow on a CPU. Worker threads inherit this
        # from the thread that starts them, so scripts do best to call it before anything else.
        torch.set_flush_denormal(True)

        self.model = model.to(self.device).train()
        self.train, self.validation = train.to(self.device), validation.to(self.device)
        self.epochs = config.epochs
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        total_steps = self.epochs * self.steps_per_epoch
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = Adam(learned, lr=config.learning_rate, betas=(0.9, 0.999), fused=True)
        self.schedule, self.average = self._recipe(optimizer, total_steps)
        loss = HIPNNLoss(model, config.lambda_l2, config.lambda_r)
        self.compiled = self._compile_wanted(total_steps)
        step = torch.compile(loss, dynamic=True) if self.compiled else loss
        self.loss, self.optimizer = self.fabric.setup(cast(HIPNNLoss, step), optimizer)

        self.epoch = 0  # epochs done
        self.step = 0  # steps done in this epoch
        self.seconds = 0.0  # spent training, over all restarts
        self.metric_unit = "kcal/mol" if train.spec.unit in ENERGY_UNITS else train.spec.unit
        self.best_mae = math.inf
        self.best_epoch = 0
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)  # this epoch's
        self.best_state = copy.deepcopy(model.state_dict())
        self.history: list[dict[str, float]] = []
        self.first_bad = torch.tensor(-1, device=self.device)  # first step whose loss is not finite
        self.interrupted = False
        self.stopped = False  # by the schedule

    # -- the loop ------------------------------------------------------------------------------

    def fit(self) -> HIPNN:
        """Train (on); returns the model with the best validation MAE, in evaluation mode.

        Raises:
            TrainingStopped: on Ctrl-C or SIGTERM, after a checkpoint; on a loss that is not finite.
        """
        if self.compiled and self.progress:
            tqdm.write("compiling the training step (up to a minute, cached between runs)")
        self._counted_at = time.monotonic()
        with self._bar() as bar, self._interrupts():
            while self.epoch < self.epochs and not self.stopped:
                for index in self._batches()[self.step :]:
                    out = self.loss(self.train.gather(index))
                    self.fabric.backward(out.loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    self.schedule.after_step()
                    self.step += 1
                    if self.average is not None and self.step % self.config.average_every == 0:
                        self.average.update_parameters(self.model)
                    self.totals += torch.stack((out.loss, out.mae, out.r)).detach()
                    self._watch(out.loss.detach())
                    bar.update(index.numel())
                    self._checkpoint_if_due()
                self._end_of_epoch(bar)
        self._save()
        self.model.load_state_dict(self.best_state)
        return self.model.eval()

    def _batches(self) -> tuple[Tensor, ...]:
        """The mini-batches of the present epoch, a new random partition each time."""
        config = self.config
        return partition(len(self.train), config.batch_size, True, config.seed, self.epoch)

    def _end_of_epoch(self, bar: tqdm) -> None:
        """Validate, log, keep the best, step the schedule, which may stop the training."""
        self._raise_if_bad()
        self._count_time()
        means = (self.totals / self.step).tolist()
        self.totals.zero_()
        judged = self.model if self.average is None else cast(HIPNN, self.average.module)
        prediction = predict(judged, self.validation).energy
        statistics = error_statistics(prediction, self.validation.target, self.train.spec.unit)
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
        }
        self.history.append(row)
        self.fabric.log_dict(row, step=self.epoch)
        bar.set_postfix_str(f"validation MAE {statistics.mae:.3f} {statistics.unit}")
        self.stopped = self.schedule.after_epoch(improved)
        if improved:
            self.best_mae, self.best_epoch = statistics.mae, self.epoch
            self.best_state = copy.deepcopy(judged.state_dict())
            if self.folder is not None:
                provenance = {
                    "epoch": self.epoch,
                    "validation_mae": statistics.mae,
                    "training_seconds": round(self.seconds, 1),
                }
                units = {"validation_unit": statistics.unit, "target": self.train.spec.name}
                save_model(judged, self.folder, **{**self.provenance, **provenance, **units})

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
        molecules = self._batches()[step].tolist()
        raise TrainingStopped(
            f"the loss of batch {step} of epoch {self.epoch + 1} is not finite (training molecules "
            f"{molecules[:5]} ...); the last checkpoint is intact: resume with a lower "
            "learning_rate in a new run, or look at those molecules"
        )

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run between two steps; a second one at once."""

        def ask(number: int, frame: object) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        try:
            previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: no handlers there
            yield
            return
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    # -- checkpoints ---------------------------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        if self.interrupted:
            self._raise_if_bad()
            self._save()
            raise TrainingStopped(
                f"stopped in epoch {self.epoch + 1} at step {self.step} of {self.steps_per_epoch}"
                + ("" if self.folder is None else "; go on with --resume"),
                interrupted=True,
            )
        if self.folder is not None and time.monotonic() - self._saved_at > (
            self.config.checkpoint_seconds
        ):
            self._raise_if_bad()
            self._save()

    _saved_at = -math.inf
    _counted_at = 0.0

    def _save(self) -> None:
        if self.folder is None:
            return
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
        self._write_metrics()
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

    def _write_metrics(self) -> None:
        assert self.folder is not None
        if self.history:
            text = io.StringIO()
            writer = csv.DictWriter(text, self.history[0])
            writer.writeheader()
            writer.writerows(self.history)
            atomic_write({self.folder / "metrics.csv": text.getvalue().encode()})

    # -- small decisions -----------------------------------------------------------------------

    def _recipe(self, optimizer: Adam, total_steps: int) -> tuple[Schedule, AveragedModel | None]:
        """The schedule of the learning rate, and the average of the weights if there is one."""
        c = self.config
        if c.recipe == "paper":
            return PlateauAnnealing(optimizer, c.t_init, c.t_patience, c.decay), None
        schedule = WarmupCosine(optimizer, c.learning_rate, c.warmup_steps, total_steps)
        return schedule, AveragedModel(self.model, multi_avg_fn=running_average(c.average_decay))

    def _compile_wanted(self, total_steps: int) -> bool:
        """Whether to compile the step: asked for, or long enough to pay and possible."""
        if self.config.compile == "off":
            return False
        if self.config.compile == "auto" and total_steps < COMPILE_PAYS_AFTER:
            return False
        possible = self.device.type == "cuda" or shutil.which("g++") or shutil.which("clang++")
        if not possible:
            warnings.warn(
                "no C++ compiler found: training runs eagerly, about half as fast", stacklevel=3
            )
        return bool(possible)

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
