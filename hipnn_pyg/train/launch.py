"""The processes of a run on one machine: one per device, started, watched and ended together.

Each further process runs the same command again with ``LOCAL_RANK`` in its environment, as under
torchrun; Lightning Fabric then connects them. A watch of our own, because a process that waits in a
collective for one that has died may wait for ever, and must not end without a word.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, NamedTuple

GRACE = 10.0
"""Seconds that a process gets to stop by itself after another has failed."""
_POLL = 0.2
_PARENT = "HIPNN_PARENT_PROCESS"


def first_process() -> bool:
    """Whether this process, by its environment, is the one that prints and writes files."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def started_processes() -> int:
    """How many processes torchrun, srun or :class:`Workers` started this one among."""
    names = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    return max(int(os.environ.get(name) or 1) for name in names)


class Failure(NamedTuple):
    """Why another process ended.

    Attributes:
        reason: one line.
        log: what the process wrote to stderr.
    """

    reason: str
    log: str


class Workers:
    """The other processes on this machine, started by this one.

    Args:
        num: processes on this machine, this one included.
        environment: what torch.distributed asks of the environment, ``LOCAL_RANK`` excepted.

    Attributes:
        watching: while true, the failure of a worker ends this process, too, after :data:`GRACE`
            seconds; to be false whenever this process needs no other to go on.
        connected: whether all have met; a worker that ends before, has failed.
    """

    def __init__(self, num: int, environment: dict[str, str]) -> None:
        os.environ.update(environment, LOCAL_RANK="0")
        self.watching, self.connected = True, False
        self._failed = threading.Event()
        self._logs: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(1, num)]
        self._workers = [
            subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env={**os.environ, "LOCAL_RANK": str(rank), _PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            for rank, log in enumerate(self._logs, start=1)
        ]
        atexit.register(self._end)
        threading.Thread(target=self._watch, name="watch workers", daemon=True).start()

    def failure(self, seconds: float) -> Failure | None:
        """What happened to the first worker that failed; None if none does so soon.

        Args:
            seconds: to wait for a failure.
        """
        if not self._failed.wait(seconds):
            return None
        ended = [n for n, worker in enumerate(self._workers) if worker.returncode is not None]
        number = next((n for n in ended if self._workers[n].returncode), ended[0])
        worker, log = self._workers[number], self._logs[number]
        log.seek(0)
        text = log.read().decode(errors="replace").strip()
        code = worker.returncode
        if code == 0:
            how = (
                "ended before all processes had met: several devices need a script or the hipnn "
                "command, which each process can run, not standard input"
            )
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            last = text.splitlines()[-1] if text else "no message"
            how = f"ended with status {code}: {re.sub(r'^.rank[0-9]+.: ', '', last)}"
        name = f"process {number + 2} of {len(self._workers) + 1} (PID {worker.pid})"
        return Failure(f"{name} {how}", text)

    def _watch(self) -> None:
        """Wait for a worker that fails; if this process does not stop then, end it."""
        while True:
            time.sleep(_POLL)
            codes = [worker.poll() for worker in self._workers]
            if any(codes) or (0 in codes and not self.connected):
                break
            if None not in codes:
                return
        self._failed.set()
        waited = 0.0
        while waited < GRACE:
            time.sleep(_POLL)
            waited = waited + _POLL if self.watching else 0.0
        failure = self.failure(0)
        assert failure is not None
        message = f"training stopped: {failure.reason}; go on from the last checkpoint"
        print(message, file=sys.stderr, flush=True)
        self._kill()
        os._exit(1)

    def _end(self) -> None:
        """At the end of this process: the workers have nothing left to do."""
        self.watching = False
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline and None in [worker.poll() for worker in self._workers]:
            time.sleep(0.02)
        self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()


def end_with_parent() -> None:
    """In a worker: end as soon as the process that started it is gone."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_POLL)
        os._exit(1)

    threading.Thread(target=watch, name="watch parent", daemon=True).start()
