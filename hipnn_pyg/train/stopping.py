"""Training that ends before its time: interrupts, losses that are not finite, lost processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hipnn_pyg.train.processes import failure_elsewhere, watch


class TrainingStopped(RuntimeError):
    """Training ended before its time: an interrupt (resume it) or a loss that is not finite.

    Args:
        message: what happened and what to do.
        interrupted: whether it was Ctrl-C or SIGTERM.
    """

    def __init__(self, message: str, interrupted: bool = False) -> None:
        super().__init__(message)
        self.interrupted = interrupted


@contextmanager
def failures_elsewhere(save: Callable[[], None], where: Callable[[], str]) -> Iterator[None]:
    """Inside, the failure of another process of the run ends this one.

    Args:
        save: called first: a checkpoint, where that is possible.
        where: says where the training stopped, after that.

    Raises:
        TrainingStopped: why the other process ended.
    """
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
        save()
        stopped = TrainingStopped(f"{failure.reason}; {where()}")
        stopped.add_note(failure.log)
        raise stopped from error
    finally:
        watch(False)
