"""One long-lived process per implementation: nobody's idle threads or settings disturb the others.

While one process works, the others block on a pipe.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from suite.rows import Unavailable


class Worker:
    """A process that runs functions on command and keeps what they leave in their modules.

    Args:
        threads: of OpenMP, numba and PyTorch.
        environment: further variables, set before anything is imported there.
        memory_limit_gb: memory it may allocate; beyond it, calls raise :class:`Unavailable`.
    """

    def __init__(
        self,
        threads: int,
        environment: Mapping[str, str] | None = None,
        memory_limit_gb: float | None = None,
    ) -> None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        self._limit = memory_limit_gb
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        with _environment({**dict.fromkeys(names, str(threads)), **(environment or {})}):
            self._ready = self._pool.submit(_settle, threads, memory_limit_gb)  # it starts now

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)`` in the process; its exceptions come back too."""
        limit = f" at {self._limit:g} GB" if self._limit else ""
        try:
            self._ready.result()
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            perhaps = f", perhaps out of memory{limit}" if limit else ""
            raise Unavailable(f"the process died{perhaps}") from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                raise Unavailable(f"out of memory{limit}") from error
            raise

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _settle(threads: int, memory_limit_gb: float | None) -> None:
    """The settings that every implementation gets, before any thread of it exists."""
    torch.set_flush_denormal(True)  # threads inherit it from the one that starts them
    torch.set_num_threads(threads)
    if memory_limit_gb:
        limit = int(memory_limit_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes started inside the block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# -- memory of the own process -------------------------------------------------------------------


def trim() -> None:
    """Give freed memory back to the system, as far as the C library can."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_growth(action: Callable[[], object]) -> int:
    """By how many bytes resident memory grows at most while ``action`` runs, at least a page: less
    cannot be told.

    Linux resets the high-water mark on request. Elsewhere the mark of the whole life of the
    process is compared before and after: too small if the process was larger before.
    """
    trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        action()
        return max(_status("VmHWM") - before, resource.getpagesize())
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        action()
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
        return max(growth, resource.getpagesize())


def _status(name: str) -> int:
    """A line of ``/proc/self/status`` in bytes."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name))
