"""Train K models in one process, each exactly as it would be alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.nn.precision import matrix_products
from hipnn_pyg.train.bar import progress_bar
from hipnn_pyg.train.captured_stack import CapturedStack, stacks
from hipnn_pyg.train.graphs import compiled_graphs, mostly_large, not_captured, recompiled
from hipnn_pyg.train.interrupts import interrupts
from hipnn_pyg.train.loss import LossTerms
from hipnn_pyg.train.stack import StackedGradient, adam_steps, gather_padded, stacked_gradient
from hipnn_pyg.train.trainer import Trainer, TrainingStopped


class Member(Trainer):
    """One model of an ensemble: a :class:`Trainer` that takes its steps when it is asked to.

    It has its own molecules, seed, E^0 and sigma_E, schedule, weight average, best model and
    folder, which is that of an ordinary run. Arguments as for :class:`Trainer`.
    """

    alone = False
    time_share = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._drawn: dict[int, Tensor] = {}  # orders by epoch

    @property
    def place(self) -> tuple[int, int]:
        """Epochs done, and steps done in the present one."""
        return self.epoch, self.step

    def next_batch(self) -> Tensor:
        """The next mini-batch: molecules of ``train``, ``[G]``."""
        first = self.step * self.config.batch_size
        return self.order()[first : first + self.config.batch_size]

    def next_size(self) -> int:
        """Molecules of the next mini-batch."""
        return min(len(self.train) - self.step * self.config.batch_size, self.config.batch_size)

    def advance(self, terms: LossTerms) -> None:
        """Update the weights along ``objective.vector.grad``; at its end, close the epoch."""
        self.update(terms)
        self.settle()

    def settle(self) -> None:
        """Close an epoch without steps left, and the training after the last epoch."""
        if self.step == self.steps_per_epoch:
            self.end_epoch()
        if self.finished:
            self.finish()

    def save(self) -> None:
        """Write a checkpoint now."""
        self._raise_if_bad()
        self._save()

    def order(self, ahead: int = 0) -> Tensor:
        """The training molecules in the order of an epoch, drawn once."""
        epoch = self.epoch + ahead
        if epoch not in self._drawn:
            later = {n: order for n, order in self._drawn.items() if n >= self.epoch}
            self._drawn = {**later, epoch: super().order(ahead)}
        return self._drawn[epoch]

    def take_time(self, share: float) -> None:
        """From now on this part of the time that passes is its own."""
        self._count_time()
        self.time_share = share


class EnsembleTrainer:
    """Train several models of one network, each to the numbers it would reach alone.

    On a CPU the members take turns, an epoch each; a compiled step is compiled once for all. On a
    GPU, which a small step does not fill, all take a captured step at once in the launches of one
    (:mod:`hipnn_pyg.train.captured_stack`). Steps that are not captured are taken together too
    (:mod:`hipnn_pyg.train.stack`). A member that stops early leaves, one that lags behind after a
    restart catches up.

    Args:
        members: the models, with equal networks, loss weights and devices.
        batched: steps together; "auto" for on a GPU, unless they are captured, or forces,
            periodic structures or mostly large ones learned.
        progress: show one progress bar for all.

    Raises:
        ValueError: there are no members, they differ in more than data, seed and schedule, or
            forces or periodic structures are to be learned in batched steps.
    """

    def __init__(
        self,
        members: Sequence[Member],
        batched: bool | Literal["auto"] = "auto",
        progress: bool = True,
    ) -> None:
        self.members = list(members)
        if not self.members:
            raise ValueError("an ensemble needs at least one member")
        first = self.members[0]
        unfit = first.forces or first.train.cells is not None
        large = any(mostly_large(member.train) for member in self.members)
        alone = first.device.type != "cuda" or unfit or first.captures or large
        self.batched = not alone if batched == "auto" else batched
        if self.batched and unfit:
            raise ValueError(
                "batched steps learn neither forces nor periodic structures: train the members in "
                "turn"
            )
        _check_alike(self.members, self.batched)
        self.stacked = not self.batched and stacks(self.members)
        self._stack: CapturedStack | None = None
        self.progress = progress
        self.interrupted = False
        self.graphs = 0  # compilations of the batched step
        self.failures: dict[int, TrainingStopped] = {}
        for member in self.members if first.compiled else ():
            member.gradient = first.gradient  # one compilation for all
        self._frozen: tuple[list[Member], dict[str, Tensor]] = ([], {})

    def resume(self) -> None:
        """Go on from the members' checkpoints; a member without one starts at the beginning.

        Raises:
            ModelFileError: a checkpoint is damaged or of another configuration.
        """
        self._stack = None  # it holds what the members had
        for number, member in enumerate(self.members):
            if member.has_checkpoint:
                member.resume()
                self.failures.pop(number, None)

    def fit(self) -> list[HIPNN]:
        """Train (on); returns each member's model with the best validation error.

        Raises:
            BlockingIOError: another training runs in a member's folder.
            FileExistsError: a member's folder holds another run.
            TrainingStopped: on Ctrl-C or SIGTERM, after a checkpoint of every member; at the end,
                if a member's loss was not finite (the others are trained all the same).
        """
        if self.members[0].compiled and self.progress:
            tqdm.write("compiling the training step (up to a minute, cached between runs)")
        with ExitStack() as stack, self._bar() as bar, interrupts(self._ask_to_stop):
            for member in self.members:
                stack.enter_context(member.claimed())
                member.start()
            self._each(self.members, Member.settle)
            while front := self._front():
                with _clock(front):
                    for done in self._turn(front):
                        bar.update(done)
                        if self.interrupted and self.live:
                            self._stop()
                self._show(bar)
        if self.graphs > 1:
            warnings.warn(recompiled(self.graphs), HIPNNWarning, stacklevel=2)
        if self.failures:
            number, failure = next(iter(self.failures.items()))
            others = len(self.members) - len(self.failures)
            raise TrainingStopped(f"member {number}: {failure} ({others} others are trained)")
        return [member.model for member in self.members]

    # -- steps ---------------------------------------------------------------------------------

    @property
    def together(self) -> bool:
        """Whether members take each step at once, not an epoch each in turn."""
        return self.batched or self.stacked

    @property
    def live(self) -> list[Member]:
        """Members with steps to take."""
        return [
            member
            for number, member in enumerate(self.members)
            if not member.finished and number not in self.failures
        ]

    def _front(self) -> list[Member]:
        """Members whose turn it is: of those furthest behind one, or all together."""
        live = self.live
        if self.together:
            least = min((member.place for member in live), default=None)
            return [member for member in live if member.place == least]
        return [min(live, key=lambda member: member.epoch)] if live else []

    def _turn(self, front: list[Member]) -> Iterator[int]:
        """Steps until an epoch ends, members have caught up with others or one fails; gives the
        molecules of each."""
        if not self.together:
            yield from self._rest_of_epoch(*front)
            return
        waiting, failed = {member.place for member in self.live}, len(self.failures)
        while self.together:
            yield self._take_step(front)
            if not front[0].step or front[0].place in waiting or len(self.failures) > failed:
                return

    def _rest_of_epoch(self, member: Member) -> Iterator[int]:
        """One member's own steps."""
        try:
            yield from member.rest_of_epoch()
            member.settle()
        except TrainingStopped as failure:
            self.failures[self.members.index(member)] = failure

    def _take_step(self, front: list[Member]) -> int:
        """One step of all of these members at once; returns how many molecules they saw."""
        if self.stacked:
            return self._take_captured_step(front)
        indices = [member.next_batch() for member in front]
        for member, terms in zip(front, self._gradients(front, indices), strict=True):
            self._each([member], Member.advance, terms)
        return sum(index.numel() for index in indices)

    def _take_captured_step(self, front: list[Member]) -> int:
        """The same in the launches of one; none if they cannot be captured."""
        stack = self._stack_of(front)
        if stack is None:
            return 0
        molecules = sum(member.next_size() for member in front)
        stack()
        for member in front:
            member.count_captured()
        if front[0].step == front[0].steps_per_epoch:
            for member in front:
                member.order(1)  # of the next epoch, while the GPU is busy
            stack.store()
            self._each(front, Member.settle)
            live = self.live
            self._each([m for m in front if m in live and m.checkpoint_due], Member.save)
        elif any(member.checkpoint_due for member in front):
            stack.store()
            self._each(front, Member.save)
        return molecules

    def _each(self, members: list[Member], act: Callable[..., None], *arguments: Any) -> None:
        """Let members act; who fails leaves."""
        for member in members:
            try:
                act(member, *arguments)
            except TrainingStopped as failure:
                self.failures[self.members.index(member)] = failure

    def _stack_of(self, front: list[Member]) -> CapturedStack | None:
        """The captured step of these members, ready for their next one; None if it fails."""
        stack = self._stack
        if stack is not None and stack.loaded and stack.trainers == front:
            return stack
        try:
            with front[0].computing():
                if stack is None or stack.trainers != front:
                    self._put_down()
                    self._stack = stack = CapturedStack(front)
                stack.load()
                return stack
        except RuntimeError as error:
            if front[0].config.capture == "on":
                raise
            warnings.warn(not_captured(error), HIPNNWarning, stacklevel=2)
            self.stacked, self._stack = False, None
            for member in self.members:
                member.captures = False
            return None

    def _put_down(self) -> None:
        """Members have what is theirs."""
        if self._stack is not None:
            self._stack.store()

    def _gradients(self, front: list[Member], indices: list[Tensor]) -> list[LossTerms]:
        """Losses; the gradients are left for the optimizers, or the steps taken already."""
        if len(front) == 1:
            return [m.gradient_of(index) for m, index in zip(front, indices, strict=True)]
        vectors: list[Tensor] = [member.objective.vector for member in front]
        batch = gather_padded([member.train for member in front], indices)
        graphs = compiled_graphs()
        with matrix_products(front[0].config.precision, front[0].device):
            terms, gradients = self._of_all(torch.stack(vectors), self._frozen_of(front), batch)
        self.graphs += compiled_graphs() - graphs
        for vector, gradient in zip(vectors, gradients.unbind(), strict=True):
            vector.grad = gradient
        adam_steps([member.optimizer for member in front])
        rows = zip(*(term.unbind() for term in terms), strict=True)
        return [LossTerms(*row) for row in rows]

    @cached_property
    def _of_all(self) -> StackedGradient:
        """The batched step; where steps are not batched, nobody asks for it."""
        return stacked_gradient(self.members[0].objective, self.members[0].compiled)

    def _frozen_of(self, front: list[Member]) -> dict[str, Tensor]:
        """What is not learned, stacked anew only when a member leaves."""
        if self._frozen[0] != front:
            names = front[0].frozen
            self._frozen = (front, {n: torch.stack([m.frozen[n] for m in front]) for n in names})
        return self._frozen[1]

    # -- what surrounds them -------------------------------------------------------------------

    def _ask_to_stop(self) -> None:
        self.interrupted = True

    def _stop(self) -> None:
        """Save every member that is under way, and end."""
        self._put_down()
        self._each(self.live, Member.save)
        self.interrupted = False  # fit() may be called again
        epochs = [member.epoch for member in self.members]
        raise TrainingStopped(
            f"stopped with {len(self.live)} of {len(epochs)} models in training, {min(epochs)} to "
            f"{max(epochs)} epochs done"
            + ("" if self.members[0].folder is None else "; go on with --resume"),
            interrupted=True,
        )

    def _molecules(self) -> tuple[int, int]:
        """Training molecules to see in all (none for who has stopped early), and seen."""
        total = seen = 0
        for member in self.members:
            size, ended = len(member.train), member not in self.live
            total += size * (member.epoch if ended else member.epochs)
            seen += size * member.epoch + member.step * member.config.batch_size
        return total, seen

    def _bar(self) -> tqdm:
        return progress_bar(*self._molecules(), f"{len(self.members)} models", self.progress)

    def _show(self, bar: tqdm) -> None:
        """After an epoch: mean validation error, and no molecules for who has stopped early."""
        bar.total = self._molecules()[0]
        maes = [member.best_mae for member in self.members if member.best_epoch]
        if maes:
            mean, unit = sum(maes) / len(maes), self.members[0].metric_unit
            about = f"{len(self.live)} in training, validation MAE {mean:.3f} {unit}"
            bar.set_postfix_str(about, refresh=False)


@contextmanager
def _clock(front: Sequence[Member]) -> Iterator[None]:
    """The time that passes inside belongs to these members, in equal parts."""
    for member in front:
        member.take_time(1 / len(front))
    try:
        yield
    finally:
        for member in front:
            member.take_time(0.0)


def _check_alike(members: Sequence[Member], batched: bool) -> None:
    """What one step for all takes for granted."""
    first = members[0]
    for number, member in enumerate(members):
        pairs = {
            "network": (member.model.hyperparameters, first.model.hyperparameters),
            "kernel": (member.model.kernel, first.model.kernel),
            "precision": (member.objective.vector.dtype, first.objective.vector.dtype),
            "precision of products": (member.config.precision, first.config.precision),
            "device": (member.device, first.device),
            "lambda_l2": (member.config.lambda_l2, first.config.lambda_l2),
            "lambda_r": (member.config.lambda_r, first.config.lambda_r),
            "choice between energies and forces": (member.forces, first.forces),
            "choice to learn stress": (member.stress, first.stress),
            "set of frozen parameters": ([*member.frozen], [*first.frozen]),
            "energy_weight": (member.config.energy_weight, first.config.energy_weight),
            "force_weight": (member.config.force_weight, first.config.force_weight),
            "stress_weight": (member.config.stress_weight, first.config.stress_weight),
        }
        if batched:
            pairs["batch_size"] = (member.config.batch_size, first.config.batch_size)
            pairs["number of training molecules"] = (len(member.train), len(first.train))
        for name, (its, ours) in pairs.items():
            if its != ours:
                raise ValueError(
                    f"member {number} of the ensemble has another {name} ({its}) than member 0 "
                    f"({ours}): train it alone"
                )
