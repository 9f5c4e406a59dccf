"""What the entries share: settings, molecules, and the processes that stand ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property

import torch
from torch import Tensor

from hipnn_pyg import PackedMolecules
from suite import processes, tasks
from suite.rows import Unavailable
from suite.settings import Settings
from suite.structures import qm9_molecules, random_molecules


class Bench:
    """One run of the suite.

    Args:
        settings: sizes and repeats.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._workers: dict[tuple[str, str], processes.Worker] = {}
        self._missing: dict[tuple[str, str], str] = {}

    @cached_property
    def molecules(self) -> PackedMolecules:
        """The molecules of steps and batches.

        Raises:
            Unavailable: QM9 cannot be had.
        """
        s = self.settings
        if s.synthetic:
            return random_molecules(s.molecules, s.seed)
        return qm9_molecules(s.root, s.molecules, s.seed)

    def batches(self, size: int, count: int, number: int) -> list[Tensor]:
        """``count`` random batches of molecules for round ``number``, the same for everybody."""
        generator = torch.Generator().manual_seed(1_000 * self.settings.seed + number)
        drawn = torch.randint(len(self.molecules), (count, size), generator=generator)
        return list(drawn)

    def fresh(
        self,
        memory_limit_gb: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> processes.Worker:
        """A new process; the caller closes it."""
        return processes.Worker(self.settings.threads, environment, memory_limit_gb)

    def team(
        self, names: Iterable[str], device: str = "cpu"
    ) -> tuple[dict[str, processes.Worker], dict[str, str]]:
        """Standing processes with the implementations set up, and why some are missing."""
        names, molecules = list(names), self.molecules
        known = {*self._workers, *self._missing}
        started = {name: self.fresh() for name in names if (name, device) not in known}
        for name, worker in started.items():
            try:
                worker(tasks.set_up, name, molecules, self.settings, device)
                self._workers[name, device] = worker
            except Unavailable as reason:
                self._missing[name, device] = str(reason)
                worker.close()
        there = {n: self._workers[n, device] for n in names if (n, device) in self._workers}
        return there, {n: self._missing[n, device] for n in names if n not in there}

    @contextmanager
    def apart(
        self,
        names: Iterable[str],
        set_up: Callable[[str, Settings], None],
        memory_limit_gb: float | None = None,
    ) -> Iterator[tuple[dict[str, processes.Worker], dict[str, str]]]:
        """Processes of one entry alone, and why some of the implementations are missing there.

        Args:
            names: of the implementations.
            set_up: called in each process first.
            memory_limit_gb: see :class:`~suite.processes.Worker`.
        """
        workers: dict[str, processes.Worker] = {}
        missing: dict[str, str] = {}
        with ExitStack() as running:
            for name in names:
                workers[name] = running.enter_context(self.fresh(memory_limit_gb))
                try:
                    workers[name](set_up, name, self.settings)
                except Unavailable as reason:
                    missing[name] = str(reason)
            yield workers, missing

    def close(self) -> None:
        """End the standing processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
