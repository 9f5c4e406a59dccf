"""A real run is stopped by Ctrl-C or killed, resumed, and ends as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hipnn_pyg.cli import main

from .conftest import checkpoint, different

STEPS_PER_EPOCH = 80
OPTIONS = ("--epochs", "3", "--batch_size", "2", "--warmup_steps", "20")


def wait_until_mid_epoch(process: subprocess.Popen[str], run: Path) -> None:
    """Return once a checkpoint lies well inside the second epoch."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "checkpoint.pt").exists():
            progress = checkpoint(run)["progress"]
            if progress["epoch"] == 1 and progress["step"] > 3:
                return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint in the second epoch: {process.communicate()}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def whole(runs: Path, training: Callable[..., list[str]]) -> Path:
    """The uninterrupted run."""
    if not (runs / "whole").exists():
        assert main(training(runs / "whole", *OPTIONS)) == 0
    return runs / "whole"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl_c"])
def test_stopped_run_goes_on(
    number: signal.Signals,
    whole: Path,
    tmp_path: Path,
    training: Callable[..., list[str]],
    hipnn: Callable[..., subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    # A checkpoint after every step: an epoch then lasts long enough to be stopped in its midst.
    process = hipnn(training(run, *OPTIONS, "--checkpoint_seconds", "0"))
    wait_until_mid_epoch(process, run)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "go on with --resume" in err and "Traceback" not in err
    else:
        assert process.returncode == -signal.SIGKILL
    left = checkpoint(run)
    assert left["progress"]["epoch"] == 1 and 0 < left["progress"]["step"] < STEPS_PER_EPOCH
    assert different(left["model"], checkpoint(whole)["model"])  # control: not there yet

    assert main(training(run, *OPTIONS, "--resume")) == 0
    assert "validation MAE" in capsys.readouterr().out
    assert different(checkpoint(run), checkpoint(whole)) == []
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, whole)]
    assert weights[0] == weights[1]


def test_a_run_killed_before_its_first_checkpoint_can_be_started_again(
    whole: Path,
    tmp_path: Path,
    training: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Compiling takes a minute before the first step: a kill there leaves only the settings."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "split.npz"):
        (run / name).write_bytes((whole / name).read_bytes())
    assert main(training(run, *OPTIONS, "--resume")) == 1
    assert "leave --resume out to start this run" in capsys.readouterr().err
    assert main(training(run, *OPTIONS)) == 0
    assert different(checkpoint(run), checkpoint(whole)) == []
