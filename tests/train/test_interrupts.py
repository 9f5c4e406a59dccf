"""Ctrl-C and SIGTERM: the first is noted, the second ends the run; threads have no handlers."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from hipnn_pyg.train.interrupts import interrupts


def test_a_second_signal_ends_at_once() -> None:
    asked: list[int] = []
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), interrupts(lambda: asked.append(1)):
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [1]
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it went on")
    assert asked == [1]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_changes() -> None:
    found: list[object] = []

    def work() -> None:
        with interrupts(lambda: None):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
