"""Ctrl-C and SIGTERM as a request that the training loop grants between two steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts(ask: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM call ``ask``; a second one raises at once.

    Outside the main thread, where Python allows no handlers, nothing changes.

    Args:
        ask: notes the request.

    Raises:
        KeyboardInterrupt: on the second signal.
    """
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        ask()

    try:
        previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
