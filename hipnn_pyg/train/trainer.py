"""The training loop (Secs. II.E.2 and II.F), on Lightning Fabric."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from hipnn_pyg.checks import HIPNNWarning, check_species
from hipnn_pyg.data.packed import PackedMolecules, random_order
from hipnn_pyg.data.stress import StressLabels
from hipnn_pyg.models.files import ModelFileError, load_model, write_model
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.self_check import self_check
from hipnn_pyg.nn.precision import matrix_products
from hipnn_pyg.train.adam import VectorAdam
from hipnn_pyg.train.bar import progress_bar
from hipnn_pyg.train.capture import CapturedStep, captured_step, rates_and_shares
from hipnn_pyg.train.checkpoint import (
    best_model,
    check_settings,
    claimed,
    load_checkpoint,
    restore_rng,
    restore_run,
    run_state,
    save_checkpoint,
    settings_of,
    write_history,
)
from hipnn_pyg.train.config import Training
from hipnn_pyg.train.direct import GPUGradient
from hipnn_pyg.train.force_loss import force_kernel
from hipnn_pyg.train.graphs import (
    capture_wanted,
    compile_wanted,
    compiled_graphs,
    mostly_large,
    not_captured,
    recompiled,
)
from hipnn_pyg.train.interrupts import interrupts
from hipnn_pyg.train.loss import LossTerms
from hipnn_pyg.train.objective import loss_of
from hipnn_pyg.train.processes import check_agreement, connect, sum_over_processes, watch
from hipnn_pyg.train.recipe import recipe
from hipnn_pyg.train.sharded import ShardedStep
from hipnn_pyg.train.step import Gradient, TrainingStep, compiled_gradient
from hipnn_pyg.train.stopping import TrainingStopped, failures_elsewhere
from hipnn_pyg.train.validation import (
    CapturedValidation,
    Validation,
    score,
    summed_validation,
    validation_sums,
)
from hipnn_pyg.units import reported

BEST_SECONDS = 5.0
"""Least time between two writings of the best model; checkpoints and the end write it anyway."""
LOOK_EVERY = 20
"""Steps between looks at whether another process was asked to stop: each waits for the GPU."""


class Trainer:
    """Train a model on packed molecules; keep the parameters with the best validation error.

    That is the energies' MAE or, where forces or stress are learned, the geometric mean with
    theirs (:func:`hipnn_pyg.train.validation.score`).

    Args:
        model: with E^0 and sigma_E set (``fit_e0``); moved to the device and trained in place, in
            the unit of ``train``.
        train: training molecules.
        validation: validation molecules, for early stopping and the choice of the best model.
        config: settings. Forces are learned where ``train`` has force labels and
            ``force_weight`` is not 0, stress where it has stress labels beside them and
            ``stress_weight`` is not 0.
        folder: run folder for checkpoint, model files, ``metrics.csv`` and TensorBoard logs, whose
            errors, of training and validation, are in kcal/mol (in the target's unit if that is
            no energy), kcal/mol/Å and GPa; None keeps everything in memory.
        provenance: kept in the model file (data set, split ...).
        progress: show a progress bar.

    Raises:
        StructureError: species that the model does not know.
        ValueError: no molecules, validation molecules without the forces or stress to be learned,
            or energies in another unit than the model's.
    """

    alone = True
    """Whether it is no member of an ensemble."""
    time_share = 1.0
    """Part of the time that passes which is its own."""

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
        self.forces = train.forces is not None and config.force_weight != 0
        self.stress = self.forces and train.stress is not None and config.stress_weight != 0
        _check(model, train, validation, self.forces, self.stress)
        model.energy_unit = train.spec.unit
        self.folder = None if folder is None else Path(folder)
        self.begun = False  # whether the run in the folder is this one
        self.provenance = provenance or {}
        self.fabric = connect(config, self.folder)
        self.device = self.fabric.device
        self.progress = progress and self.fabric.is_global_zero
        self.writes = self.folder is not None and self.fabric.is_global_zero
        # The Gaussians' far tails are denormal numbers, slow on a CPU. Worker threads inherit this
        # from the thread that starts them, so scripts do best to call it before anything else.
        torch.set_flush_denormal(True)

        self.model = model.to(self.device).train()
        self.train = train.to(self.device).with_edges(model.cutoff)
        self.validation = validation.to(self.device).with_edges(model.cutoff)
        self.epochs = config.epochs
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.average_every = min(config.average_every, self.steps_per_epoch)
        total_steps = self.epochs * self.steps_per_epoch
        self.epoch = 0  # epochs done
        self.step = 0  # steps done in this epoch
        self.seconds = 0.0  # spent training, over all restarts
        self._counted_at = 0.0  # until the clock starts
        self._saved_at = self._best_written = -math.inf
        self._choose_path(total_steps)
        self.captured: CapturedStep | None = None
        with self._failures():
            self._set_up_step()
        self.optimizer = VectorAdam(self.objective.vector, config.learning_rate)
        self.schedule, self.average = recipe(config, model, self.optimizer, total_steps)

        self.settings = settings_of(self)
        _, self.metric_unit = reported(train.spec.unit)
        self.best_mae = math.inf
        self.best_epoch = 0
        logged = 3 + self.forces + 2 * self.stress
        self.totals = torch.zeros(logged, dtype=torch.float64, device=self.device)  # since a row
        self.best_state = _snapshot(model)
        self._unwritten: dict[str, Any] | None = None  # what the best model's file will say of it
        self.last: Validation | None = None
        self._judge: CapturedValidation | None = None
        self._judged_by_graphs = True
        self.history: list[dict[str, float]] = []
        self.first_bad = torch.tensor(-1, device=self.device)  # first step whose loss is not finite
        self.interrupted = False
        self.stopped = False  # by the schedule
        self.graphs = 0  # compilations of the step, in this process
        self._graphs_reported = 1

    def _choose_path(self, total_steps: int) -> None:
        """How steps are computed: by which kernel, captured, compiled or neither."""
        config, device, periodic = self.config, self.device, self.train.cells is not None
        processes, large = self.fabric.world_size, mostly_large(self.train)
        kernel = self.model.kernel_on(device)
        direct = device.type == "cpu" and config.precision != "bf16"
        if self.forces and not direct:
            kernel = force_kernel(self.model, device)
        self_check(kernel, device, config.self_check)
        self.captures = (self.alone or device.type == "cuda") and capture_wanted(
            config, device, processes, periodic, large
        )
        compile = (config, device, kernel, total_steps, self.forces, periodic, processes, large)
        if self.captures and self.forces and config.capture == "auto":
            self.captures = not compile_wanted(*compile)  # it has fewer kernels
        self.compiled = not self.captures and compile_wanted(*compile)

    # -- the loop ------------------------------------------------------------------------------

    def fit(self) -> HIPNN:
        """Train (on); returns the model with the best validation error, in evaluation mode.

        Raises:
            BlockingIOError: another training runs in the folder.
            FileExistsError: the folder holds another run.
            TrainingStopped: on Ctrl-C or SIGTERM, after a checkpoint; on a loss that is not finite
                (without a folder the model then has its best weights, if there are any); when
                another process of the run has failed.
        """
        with self.claimed():
            with self._bar() as bar, interrupts(self._ask_to_stop), self._failures():
                self.start()
                while not self.finished:
                    for molecules in self.rest_of_epoch():
                        bar.update(molecules)
                    bar.set_postfix_str(f"validation MAE {self.last or '-'}", refresh=False)
            return self.finish()

    def claimed(self) -> AbstractContextManager[None]:
        """Inside, no other training writes to the folder."""
        return claimed(self.folder if self.writes else None)

    def start(self) -> None:
        """Before the first step (after :meth:`resume`): the clock starts.

        Raises:
            FileExistsError: the folder holds another run.
        """
        if not self.begun and self.has_checkpoint:
            raise FileExistsError(
                f"{self.folder} holds a run: call resume() to go on with it, or choose another "
                "folder"
            )
        self.begun = True
        self.model._warn_if_unfitted()  # only now: a checkpoint would have brought E^0
        self.model.card = {}  # what a file said of it holds no longer
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

    def rest_of_epoch(self) -> Iterator[int]:
        """Take the steps left in the present epoch and close it; gives the molecules of each."""
        self.begin_epoch()
        for index in self.batches():
            self.take_step(index)
            yield index.numel()
        self.end_epoch()

    def batches(self) -> tuple[Tensor, ...]:
        """The mini-batches left in the present epoch: molecules of ``train``, each ``[G]``."""
        return self.partition()[self.step :]

    def begin_epoch(self) -> None:
        """Bring what captured steps read to the device; go on without them if they fail there."""
        if not self.captures:
            return
        try:
            with self.computing():
                self.captured = self.captured or captured_step(self)
                self.captured.begin(self.order(), self.step, *rates_and_shares(self))
        except RuntimeError as error:
            if self.config.capture == "on":
                raise
            self.captured, self.captures = None, False
            warnings.warn(not_captured(error), HIPNNWarning, stacklevel=2)

    def take_step(self, index: Tensor) -> None:
        """One step of :meth:`fit`, on the next mini-batch.

        Args:
            index: molecules of the mini-batch, ``[G]``.
        """
        if self.captured is None:
            self.update(self.gradient_of(index))
            return
        with self.computing():
            self.captured()
        self.count_captured()
        self._checkpoint_if_due()

    def count_captured(self) -> None:
        """Count a step that was captured, and so has changed the weights and their average."""
        self._count_step()
        if self.average is not None and self.step % self.average_every == 0:
            self.average.n_averaged += 1

    def gradient_of(self, index: Tensor) -> LossTerms:
        """The loss of a mini-batch; its gradient is left in ``objective.vector.grad``.

        Args:
            index: molecules of the whole mini-batch, over all processes, ``[G]``.
        """
        vector = self.objective.vector
        with self.computing():
            if self.sharded is None:
                terms, vector.grad = self.gradient(vector, self.frozen, self.train.gather(index))
                return terms
            vector.grad = None
            self.sharded.asked = self.interrupted
            part = self._share(index)
            terms = self.wrapped(self.train.gather(part) if part.numel() else None)
            self.fabric.backward(terms.loss)
            return type(terms)(*(term.detach() for term in terms))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, products have the precision asked for, and compilations are counted."""
        graphs = compiled_graphs()
        if self.config.precision == "float32":
            yield  # sooner: this is asked in every step
        else:
            with matrix_products(self.config.precision, self.device):
                yield
        self.graphs += compiled_graphs() - graphs

    def update(self, terms: LossTerms) -> None:
        """One step of the optimizer along ``objective.vector.grad``, and what goes with it.

        Args:
            terms: of the mini-batch.
        """
        self.optimizer.update()
        self._count_step()
        if self.average is not None and self.step % self.average_every == 0:
            self.average.update(self.objective.vector)
        self.totals += torch.stack(terms.logged[: self.totals.numel()])
        self._watch(terms.loss)
        self._checkpoint_if_due()

    def _count_step(self) -> None:
        self.schedule.after_step()
        self.step += 1

    def end_epoch(self) -> None:
        """Validate if it is time, log, keep the best, step the schedule, which may stop."""
        self._raise_if_bad()
        self._count_time()
        epoch = self.epoch + 1
        if epoch % self.config.validate_every and epoch < self.epochs:
            self.epoch, self.step = epoch, 0
            return
        judged = self.model if self.average is None else cast(HIPNN, self.average.module)
        self.last = self._validate(judged)  # where this fails, a resumed run does it again
        self._raise_if_bad()
        self.epoch, self.step = epoch, 0
        epochs = self.epoch - int(self.history[-1]["epoch"] if self.history else 0)
        row = {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **self._train_columns(epochs * self.steps_per_epoch),
            **self.last.row,
            "compiled_graphs": self.graphs,
        }
        improved = score(row, self.config) < score(self.best_row, self.config)
        self.history.append(row)
        self._report_graphs()
        self.fabric.log_dict(row, step=self.epoch)
        self.stopped = self.schedule.after_epoch(improved)
        if improved:
            self.best_mae, self.best_epoch = self.last.energy.mae, self.epoch
            self.best_state = _snapshot(judged)
            self._unwritten = {**self.provenance, **best_model(self, self.last)}
            if time.monotonic() - self._best_written > BEST_SECONDS:
                self._write_best()

    def _train_columns(self, steps: int) -> dict[str, float]:
        """Means over the steps since the last row, in the units of the validation errors; that of
        stress over the mini-batches that have any."""
        unit = self.train.spec.unit
        energy, _ = reported(unit)
        stress = 1 / StressLabels("GPa").factor(unit) if self.stress else 1.0
        names = ("train_loss", "train_mae", "train_r", "train_force_mae", "train_stress_mae")
        factors = (1.0, energy, 1.0, energy, stress)
        sums = self.totals.tolist()
        counts = [steps, steps, steps, steps, *(max(1.0, number) for number in sums[5:])]
        self.totals.zero_()
        columns = zip(names, sums, counts, factors, strict=False)
        return {name: total / count * factor for name, total, count, factor in columns}

    @property
    def best_row(self) -> dict[str, float]:
        """The row of the history that the best model has; {} before there is one."""
        return next((row for row in self.history if row["epoch"] == self.best_epoch), {})

    def finish(self) -> HIPNN:
        """After the last epoch: a checkpoint, and the model with the best validation error."""
        self._save()
        self.model.load_state_dict(self.best_state)
        return self.model.eval()

    def order(self, ahead: int = 0) -> Tensor:
        """The training molecules in the order of the present epoch or one that many ahead."""
        return random_order(len(self.train), self.config.seed, self.epoch + ahead)

    def partition(self) -> tuple[Tensor, ...]:
        """All mini-batches of the present epoch."""
        return self.order().split(self.config.batch_size)

    def _share(self, index: Tensor) -> Tensor:
        """This process's part of an index."""
        return index[self.fabric.global_rank :: self.fabric.world_size]

    def _validate(self, judged: HIPNN) -> Validation:
        """Errors over the validation molecules, each predicted by one process."""
        if (
            self.captures
            and self._judged_by_graphs
            and self.validation.cells is None
            and isinstance(self.objective.direct, GPUGradient)
        ):
            try:
                self._judge = self._judge or CapturedValidation(self.validation)
                return summed_validation(self._judge.sums(judged), self.train.spec.unit)
            except RuntimeError as error:  # no memory for graphs, say
                if self.config.capture == "on":
                    raise
                warnings.warn(not_captured(error, "validation"), HIPNNWarning, stacklevel=3)
                self._judge, self._judged_by_graphs = None, False
        mine = self.validation
        if self.sharded is not None:
            mine = mine.subset(self._share(torch.arange(len(mine))))
        sums = validation_sums(judged, mine, self.forces, self.stress)
        if self.sharded is not None:
            sums = sum_over_processes(sums, self.device)
        return summed_validation(sums, self.train.spec.unit)

    # -- what can go wrong ---------------------------------------------------------------------

    def _watch(self, loss: Tensor) -> None:
        """Remember the first step whose loss is not finite, without leaving the device."""
        if self.device.type == "cpu" and math.isfinite(loss):
            return
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, self.step - 1, self.first_bad)
        if self.device.type == "cpu":
            self._raise_if_bad()

    def _raise_if_bad(self) -> None:
        step, what = int(self.first_bad), ""
        if step >= 0:
            molecules = self.partition()[step].tolist()
            what = (
                f"the loss of batch {step} of epoch {self.epoch + 1} is not finite (look at "
                f"training molecules {molecules[:5]} ...)"
            )
        elif self.last is not None and not all(map(math.isfinite, self.last.row.values())):
            what = f"the validation error after epoch {self.epoch + 1} is not finite"
        if not what:
            return
        self._write_best()
        kept = "; the last checkpoint is intact" if self.has_checkpoint else ""
        start = " (hipnn train --start RUN begins with this one's best weights)"
        if not self.best_epoch:
            start = ""
        elif self.folder is None:
            self.model.load_state_dict(self.best_state)
            kept = f"; the model has the weights of epoch {self.best_epoch}, the best ones"
            start = ""
        raise TrainingStopped(f"{what}{kept}: begin a new run with a lower learning_rate{start}")

    def _ask_to_stop(self) -> None:
        self.interrupted = True

    def _failures(self) -> AbstractContextManager[None]:
        """The failure of another process ends the run, with a checkpoint where that is possible."""
        return failures_elsewhere(self._save_after_failure, self._where)

    def _save_after_failure(self) -> None:
        if self.device.type == "cpu" and self._counted_at:  # a GPU may hold half a step
            self._save()

    def _stop_wanted(self) -> bool:
        if self.sharded is None:
            return self.interrupted
        return self.sharded.stop_agreed(
            look=self.step % LOOK_EVERY == 0 or self.step == self.steps_per_epoch
        )

    def _where(self) -> str:
        at = f"stopped in epoch {self.epoch + 1} at step {self.step} of {self.steps_per_epoch}"
        return f"{at}; go on with --resume" if self.has_checkpoint else at

    # -- checkpoints ---------------------------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        if self._stop_wanted():
            watch(False)
            self._raise_if_bad()
            self._save()
            self.interrupted = False  # fit() may be called again
            if self.sharded is not None:
                self.sharded.asked = False
            raise TrainingStopped(self._where(), interrupted=True)
        if self.checkpoint_due:
            if self.sharded is None:  # else all processes raise together, at the end of the epoch
                self._raise_if_bad()
            if self.first_bad < 0:
                self._save()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is one in the run folder."""
        return self.folder is not None and (self.folder / "checkpoint.pt").exists()

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last one is older than it should be."""
        return self.writes and time.monotonic() - self._saved_at > self.config.checkpoint_seconds

    def _save(self) -> None:
        if not self.writes:
            return
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_best()
        self._count_time()
        save_checkpoint(self.folder / "checkpoint.pt", run_state(self))
        write_history(self.folder / "metrics.csv", self.history)
        self._saved_at = time.monotonic()

    def _count_time(self) -> None:
        now = time.monotonic()
        self.seconds += (now - self._counted_at) * self.time_share
        self._counted_at = now

    def resume(self) -> None:
        """Go on from the checkpoint in the run folder.

        Raises:
            ModelFileError: there is none, or it is damaged or of another configuration.
            OSError: it cannot be read.
        """
        assert self.folder is not None
        path = self.folder / "checkpoint.pt"
        state = load_checkpoint(path)
        check_settings(path, state, self)
        restore_run(self, state)
        self.first_bad.fill_(-1)
        self.last, self.interrupted, self.begun = None, False, True
        self._unwritten = None
        self.captured = None  # it holds the optimizer's old state
        if self.best_epoch:
            self._restore_best(self.folder)
        restore_rng(state["rng"])

    def _restore_best(self, folder: Path) -> None:
        """The best model so far; where its file is damaged, the best of what follows is kept."""
        try:
            self.best_state = load_model(folder, self.device).state_dict()
        except ModelFileError as error:
            if self.finished:
                raise
            warnings.warn(
                f"{error}. Training goes on; the best model of the epochs after {self.epoch} will "
                "be kept",
                HIPNNWarning,
                stacklevel=3,
            )
            self.best_mae, self.best_epoch = math.inf, 0

    def _write_best(self) -> None:
        """Write the best model so far, if its file is of an older one."""
        if self._unwritten is None or self.folder is None or not self.writes:
            return
        write_model(self.model, self.best_state, self.folder, self._unwritten)
        self._unwritten, self._best_written = None, time.monotonic()

    # -- small decisions -----------------------------------------------------------------------

    def _set_up_step(self) -> None:
        """What gives loss and gradient: one graph, or a DDP module where there are processes."""
        forces = self.train if self.forces else None
        loss = loss_of(self.config, self.model, forces, self.stress, self.captures)
        self.objective = TrainingStep(loss)
        if self.config.precision == "bf16":
            self.objective.direct = None  # whose products are its own
        self.frozen = self.objective.frozen
        self.gradient: Gradient = self.objective.gradient
        self.sharded: ShardedStep | None = None
        if self.fabric.world_size > 1:
            self.sharded = ShardedStep(self.objective, self.compiled)
            self.wrapped = self.fabric.setup_module(self.sharded)
        elif self.compiled:
            self.gradient = compiled_gradient(self.objective.gradient)

    def _report_graphs(self) -> None:
        """One line whenever the step was compiled more often than once."""
        if self.graphs > self._graphs_reported:
            self._graphs_reported = self.graphs
            warnings.warn(recompiled(self.graphs), HIPNNWarning, stacklevel=4)

    def _bar(self) -> tqdm:
        size = len(self.train)
        done = self.epoch * size + self.step * self.config.batch_size
        return progress_bar(self.epochs * size, done, f"{self.epochs} epochs", self.progress)


@torch.no_grad()
def _snapshot(model: HIPNN) -> dict[str, Tensor]:
    """A copy of all weights, as ``state_dict()`` gives them."""
    state = model.state_dict()
    for name, tensor in state.items():
        state[name] = tensor.clone()
    return state


def _check(
    model: HIPNN, train: PackedMolecules, validation: PackedMolecules, forces: bool, stress: bool
) -> None:
    """Stop before molecules that are missing, unknown to the model, or without what is learned."""
    for name, molecules in (("train", train), ("validation", validation)):
        if not len(molecules):
            raise ValueError(f"there are no {name} molecules: make num_{name} at least 1")
        z = molecules.atomic_numbers().to(model.reference.sigma_e.device)
        check_species(z, model.species_index(z) >= 0, model.species)
        if model.energy_unit not in (molecules.spec.unit, "unknown"):
            raise ValueError(
                f"the model gives energies in {model.energy_unit}, the {name} molecules have them "
                f"in {molecules.spec.unit}: call model.fit_e0(train)"
            )
    if forces and validation.forces is None:
        raise ValueError("training molecules have forces, validation molecules none: pack both")
    if stress and (validation.stress is None or bool(torch.isnan(validation.stress).all())):
        raise ValueError(
            "training structures have stress, validation structures none: take more of them, or "
            "stress_weight=0"
        )
