"""Data sets that cannot be downloaded: one readable error, and no download that hangs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


class DatasetUnavailableError(RuntimeError):
    """A data set is neither on disk nor downloadable. The message says what to put where."""


@contextmanager
def download_timeout(seconds: float = 5.0) -> Iterator[None]:
    """Give every socket opened inside the block a timeout, so a dead network fails fast.

    The limit is on one silent wait (connecting, or the next bytes), not on a whole download,
    so large files on a working network still arrive.

    Args:
        seconds: the longest wait without any answer, in seconds.
    """
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
