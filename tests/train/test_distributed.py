"""Two processes over gloo train the model that one process trains; they stop and end together.

Run as a script, this file is what the processes run: one launch goes through all the cases, because
starting processes costs more than training.
"""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from hipnn_pyg import HIPNN, PackedMolecules, load_model
from hipnn_pyg.cli import main
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.train import Trainer, Training, TrainingStopped
from hipnn_pyg.train.loss import HIPNNLoss
from hipnn_pyg.train.step import TrainingStep

TRAIN, VALIDATION = 37, 13
"""Batches of 9, 9, 9, 9 and 1: shares of 5 and 4, of 1 and 0; validation shares of 7 and 6."""
EARLY: dict[str, Any] = dict(
    recipe="paper", epochs=30, t_init=1, t_patience=1, learning_rate=0.1
)  # fmt: skip
"""A rate so high that the schedule soon ends the training."""
SECONDS = 300
"""Longest wait for a process, on a slow machine."""
Checkpoint = Callable[[Path], dict[str, Any]]
EqualRuns = Callable[[Path, Path], None]

pytestmark = pytest.mark.usefixtures("one_thread")


def molecules() -> tuple[PackedMolecules, PackedMolecules]:
    """Random clusters of H and O, float64; energy (eV) = -0.3 N - sum of exp(-r / 1 Å)."""
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(2, 6, (TRAIN + VALIDATION,), generator=draw)
    start = counts.cumsum(0) - counts
    total = int(counts.sum())
    grid = torch.arange(total, dtype=torch.float64)[:, None] * torch.tensor([0.9, 0.4, -0.3])
    pos = grid + 0.2 * torch.randn(total, 3, generator=draw, dtype=torch.float64)
    energies = [
        -0.3 * n - torch.exp(-torch.pdist(pos[s : s + n])).sum()
        for s, n in zip(start.tolist(), counts.tolist(), strict=True)
    ]
    z = torch.tensor([1, 8])[torch.randint(2, (total,), generator=draw)]
    packed = PackedMolecules(z, pos, counts, torch.stack(energies), start, ASE_ENERGY)
    packed.check()
    every = torch.arange(TRAIN + VALIDATION)
    return packed.subset(every[:TRAIN]), packed.subset(every[TRAIN:])


def new_trainer(
    folder: Path | None, processes: int, frozen: bool = False, **changes: Any
) -> Trainer:
    """Four epochs of five steps. Every process draws other weights: the first one's must win."""
    train, validation = molecules()
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
    model = HIPNN(
        species=(1, 8), hidden_channels=5, num_onsite=1, num_sensitivities=5, cutoff=4.0
    ).double()
    model.fit_e0(train, ASE_ENERGY)
    model.blocks[0].requires_grad_(not frozen)
    defaults: dict[str, Any] = dict(
        epochs=4, batch_size=9, learning_rate=3e-3, warmup_steps=2, average_every=2,
        lambda_l2=1e-2, lambda_r=0.1, device="cpu", compile="off", checkpoint_seconds=0.0,
    )  # fmt: skip
    config = Training(**{**defaults, **changes}, devices=processes)
    return Trainer(model, train, validation, config, folder, progress=False)


def call_at(trainer: Trainer, step: int, action: Any) -> None:
    """Call ``action`` during this step of the run."""
    after_step, done = trainer.schedule.after_step, [0]

    def count() -> None:
        after_step()
        done[0] += 1
        if done[0] == step:
            action()

    trainer.schedule.after_step = count  # type: ignore[method-assign]


# --- what each of the two processes does --------------------------------------------------------


def signal_myself(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def stopped(trainer: Trainer) -> dict[str, Any]:
    """How a run ended that could not go on."""
    try:
        trainer.fit()
    except TrainingStopped as error:
        return {
            "message": str(error), "interrupted": error.interrupted,
            "epoch": trainer.epoch, "step": trainer.step,
        }  # fmt: skip
    return {"message": "it was not stopped"}


def all_cases(out: Path) -> None:
    """Every case in turn; what came out goes to ``rank0.pt`` and ``rank1.pt``."""
    second = os.environ.get("LOCAL_RANK") == "1"
    trainer = new_trainer(out / "whole", 2)
    result: dict[str, Any] = {"rank": trainer.fabric.global_rank}

    def last(run: Trainer) -> dict[str, Any]:
        """What a run has come to, before its best model is loaded."""
        found: dict[str, Any] = {}
        finish = run.finish

        def look() -> HIPNN:
            found.update(vector=run.objective.vector.detach().clone(), history=run.history)
            found.update(best_epoch=run.best_epoch, rate=run.optimizer.param_groups[0]["lr"])
            return finish()

        run.finish = look  # type: ignore[method-assign]
        best = run.fit()
        return {**found, "best": {name: t.clone() for name, t in best.state_dict().items()}}

    result["whole"] = last(trainer)
    result["paper"] = last(new_trainer(out / "paper", 2, **EARLY))
    result["frozen"] = last(new_trainer(None, 2, frozen=True, epochs=1))

    interrupted = new_trainer(out / "interrupted", 2)
    if second:  # only one of the two is asked to stop
        call_at(interrupted, 7, lambda: signal_myself(signal.SIGTERM))
    result["interrupted"] = stopped(interrupted)

    poisoned = new_trainer(out / "poisoned", 2)
    poisoned.train.target[int(poisoned.batches()[2][1])] = float("nan")
    result["poisoned"] = stopped(poisoned)

    disagreeing = new_trainer(None, 2)
    if second:
        disagreeing.train.target[3] += 0.1
    try:
        disagreeing.fit()
    except ValueError as error:
        result["disagreeing"] = str(error)

    resumed = new_trainer(out / "from_one", 2)
    resumed.resume()
    result["resumed"] = last(resumed)
    torch.save(result, out / f"rank{trainer.fabric.global_rank}.pt")

    killed = new_trainer(out / "killed", 2)
    if second:
        call_at(killed, 12, lambda: signal_myself(signal.SIGKILL))
    result["killed"] = stopped(killed)
    torch.save(result, out / "rank0.pt")


# --- the tests ----------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """One thread, and nothing that another launcher left."""
    foreign = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in this process alone."""
    folder = tmp_path_factory.mktemp("one")
    new_trainer(folder, 1).fit()
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes put what came out."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two processes report."""
    begun = new_trainer(out / "from_one", 1)
    call_at(begun, 13, lambda: setattr(begun, "interrupted", True))
    assert stopped(begun)["step"] == 3
    process = subprocess.run(
        [sys.executable, __file__, str(out)],
        env=environment(), capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    first, second = (torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (first["rank"], second["rank"]) == (0, 1)
    return first, second


Two = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture
def assert_equal_runs(checkpoint: Checkpoint) -> EqualRuns:
    """Weights, average, moments of Adam, schedule, history, best epoch; and the model file."""

    def check(ours: Path, theirs: Path) -> None:
        exact = dict(rtol=1e-10, atol=1e-10)
        states = [checkpoint(folder) for folder in (ours, theirs)]
        assert states[0].pop("settings") == states[1].pop("settings")
        torch.testing.assert_close(*states, **exact)
        weights = [load_model(folder).state_dict() for folder in (ours, theirs)]
        torch.testing.assert_close(weights[0], weights[1], **exact)

    return check


def test_two_processes_equal_one(
    two: Two, out: Path, one: Path, assert_equal_runs: EqualRuns, checkpoint: Checkpoint
) -> None:
    """20 steps in float64: weights, train columns, validation errors, schedule, best epoch."""
    state = checkpoint(one)
    assert state["schedule"]["step"] == 20 and len(state["history"]) == 4
    assert_equal_runs(out / "whole", one)
    begun = new_trainer(None, 1).model.state_dict()
    moved = max(float((begun[name] - w).abs().max()) for name, w in state["model"].items())
    assert moved > 0.01  # control: training moved them


def test_the_processes_are_equal_to_the_last_bit(two: Two) -> None:
    for case in ("whole", "paper", "resumed"):
        first, second = two[0][case], two[1][case]
        for result in (first, second):
            for row in result["history"]:
                row["seconds"] = 0.0
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_frozen_layers_are_those_of_the_first_process(two: Two) -> None:
    alone = new_trainer(None, 1, frozen=True, epochs=1)
    best = alone.fit().state_dict()
    for result in two:
        torch.testing.assert_close(result["frozen"]["best"], best, rtol=1e-10, atol=1e-10)
    learned = new_trainer(None, 1, epochs=1).fit().state_dict()  # control: training moves them
    name = "blocks.0.interaction.V"
    assert not torch.allclose(learned[name], best[name], atol=1e-4)


def test_early_stopping_stops_both(
    two: Two, out: Path, assert_equal_runs: EqualRuns, tmp_path: Path
) -> None:
    alone = new_trainer(tmp_path, 1, **EARLY)
    alone.fit()
    assert alone.stopped and alone.epoch < 30
    assert_equal_runs(out / "paper", tmp_path)
    assert two[0]["paper"]["rate"] == two[1]["paper"]["rate"] < EARLY["learning_rate"]


def test_control_the_mean_of_the_shares_losses_is_another_loss() -> None:
    """What DDP gives to a loss with a root and means, if nothing is reduced before them."""
    trainer = new_trainer(None, 1)
    step = TrainingStep(HIPNNLoss(trainer.model, 1e-2, 0.1))
    index = trainer.batches()[0]

    def gradient(part: torch.Tensor) -> torch.Tensor:
        return step.gradient(step.vector, step.frozen, trainer.train.gather(part))[1]

    whole = gradient(index)
    mean = (gradient(index[0::2]) + gradient(index[1::2])) / 2
    assert (whole - mean).norm() > 1e-2 * whole.norm()


@pytest.fixture
def go_on_alone(out: Path, one: Path, assert_equal_runs: EqualRuns) -> Callable[[str, int], None]:
    """Resumed by one process, the run of two in a folder ends as the run of one."""

    def check(folder: str, steps_done: int) -> None:
        trainer = new_trainer(out / folder, 1)
        trainer.resume()
        assert trainer.epoch * trainer.steps_per_epoch + trainer.step == steps_done
        trainer.fit()
        assert_equal_runs(out / folder, one)

    return check


def test_sigterm_to_one_process_stops_both(
    two: Two, go_on_alone: Callable[[str, int], None]
) -> None:
    first, second = (result["interrupted"] for result in two)
    assert first == second and first["interrupted"]
    assert (first["epoch"], first["step"]) == (1, 3)  # asked in step 7, agreed in step 8
    assert "epoch 2 at step 3 of 5; go on with --resume" in first["message"]
    go_on_alone("interrupted", 8)


def test_two_processes_go_on_where_one_stopped(
    two: Two, out: Path, one: Path, assert_equal_runs: EqualRuns
) -> None:
    assert len(two[0]["resumed"]["history"]) == 4
    assert_equal_runs(out / "from_one", one)


def test_a_loss_that_is_not_finite_stops_both(two: Two, out: Path) -> None:
    first, second = (result["poisoned"] for result in two)
    assert first == second
    assert "loss of batch 2 of epoch 1 is not finite" in first["message"]
    state = torch.load(out / "poisoned" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["step"] == 2
    assert all(bool(weight.isfinite().all()) for weight in state["model"].values())


def test_different_molecules_are_refused(two: Two) -> None:
    for result in two:
        assert "do not agree on the training molecules" in result["disagreeing"]


def test_a_killed_worker_ends_the_run(two: Two, go_on_alone: Callable[[str, int], None]) -> None:
    killed = two[0]["killed"]
    assert "process 2 of 2" in killed["message"] and "SIGKILL" in killed["message"]
    assert "go on with --resume" in killed["message"] and not killed["interrupted"]
    assert "killed" not in two[1]
    go_on_alone("killed", 12)


def test_only_the_first_process_writes(two: Two, out: Path) -> None:
    logs = list((out / "whole" / "logs").rglob("events.*"))
    assert len(logs) == 1
    assert {path.name for path in (out / "whole").iterdir()} == {
        ".lock", "checkpoint.pt", "logs", "metrics.csv", "model.json", "model.safetensors",
    }  # fmt: skip
    assert len((out / "whole" / "metrics.csv").read_text().splitlines()) == 5
    assert two[0]["whole"]["history"]


def test_more_processes_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun without --devices: every process would train alone and write over the others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but .*--devices 1"):
        new_trainer(None, 1)


@pytest.mark.parametrize("change", [{"devices": 0}, {"num_nodes": 0}])
def test_impossible_numbers(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be at least 1, not 0"):
        Training(**change)  # type: ignore[arg-type]


# --- the command --------------------------------------------------------------------------------


def command(run: Path, structures: Path, *more: str) -> list[str]:
    """``hipnn train file``: 30 epochs of 6 steps."""
    options = {
        "path": structures, "run": run, "num_train": 48, "num_validation": 10, "epochs": 30,
        "batch_size": 8, "hidden_channels": 4, "num_onsite": 0, "num_sensitivities": 4,
        "cutoff": 4.0, "learning_rate": 0.02, "device": "cpu", "compile": "off",
        "checkpoint_seconds": 0,
    }  # fmt: skip
    return ["train", "file", *(f"--{name}={value}" for name, value in options.items()), *more]


def errors(run: Path) -> list[float]:
    """Validation errors of the epochs (kcal/mol)."""
    with open(run / "metrics.csv", newline="") as file:
        return [float(row["validation_mae"]) for row in csv.DictReader(file)]


def test_ctrl_c_and_another_number_of_processes(tmp_path: Path) -> None:
    """The console script starts two processes; Ctrl-C reaches both; one process goes on."""
    structures = tmp_path / "structures.extxyz"
    draw = np.random.default_rng(0)
    images = []
    for _ in range(60):
        atoms = ase.Atoms("OH2", draw.normal(scale=0.1, size=(3, 3)) + np.diag([0.0, 1.0, 1.2]))
        energy = -np.exp(-atoms.get_all_distances()[np.triu_indices(3, 1)]).sum()
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        images.append(atoms)
    ase.io.write(structures, images)

    script = str(Path(sysconfig.get_path("scripts")) / "hipnn")
    process = subprocess.Popen(
        [script, *command(tmp_path / "two", structures, "--devices=2")],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "two" / "metrics.csv").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and said == ""
    assert err.count("hipnn train:") == 1 and "go on with --resume" in err
    assert "Traceback" not in err
    assert 1 <= len(errors(tmp_path / "two")) < 30

    assert main(command(tmp_path / "two", structures, "--resume")) == 0
    assert main(command(tmp_path / "one", structures)) == 0
    whole = errors(tmp_path / "one")
    assert errors(tmp_path / "two") == pytest.approx(whole, rel=5e-3)  # float32
    assert whole[-1] < 0.5 * whole[0]  # control: much is learned


# --- the watch over processes, without PyTorch --------------------------------------------------

LAUNCH = importlib.util.find_spec("hipnn_pyg.train.launch")
LIGHT = """
import fcntl, importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("launch", sys.argv[1])
launch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launch)
launch.GRACE = 0.5
launch.end_with_parent()
if "LOCAL_RANK" not in os.environ:
    launch.Workers(2, {"WORLD_SIZE": "2"})
    print("parent", flush=True)
    time.sleep(60)  # as in a collective that never ends
if sys.argv[3] == "fail":
    sys.exit("CUDA out of memory")
if sys.argv[3] == "leave":
    sys.exit(0)
if sys.argv[3] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
beats = open(sys.argv[2], "w")
fcntl.flock(beats, fcntl.LOCK_EX)  # which ends with the process, whoever buries it
while True:
    print("beat", file=beats, flush=True)
    time.sleep(0.05)
"""


def light(tmp_path: Path, case: str) -> subprocess.Popen[str]:
    assert LAUNCH is not None and LAUNCH.origin is not None
    return subprocess.Popen(
        [sys.executable, "-c", LIGHT, LAUNCH.origin, str(tmp_path / "beats"), case],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "case, reason",
    [
        ("kill", "was killed by SIGKILL"),
        ("fail", "ended with status 1: CUDA out of memory"),
        ("leave", "ended before all processes had met"),
    ],
)
def test_a_process_that_waits_for_a_dead_one_is_ended(
    case: str, reason: str, tmp_path: Path
) -> None:
    _, err = (process := light(tmp_path, case)).communicate(timeout=30)
    assert process.returncode == 1
    assert "process 2 of 2" in err and reason in err and "go on from the last checkpoint" in err


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """The worker holds a lock on a file for as long as it lives."""
    process, beats = light(tmp_path, "wait"), tmp_path / "beats"
    deadline = time.monotonic() + 30

    def lives() -> bool:
        with open(beats) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    # Control: it has long looked for its parent, which lives, and goes on.
    while not beats.exists() or len(beats.read_text().split()) < 10:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    assert lives()
    process.kill()
    process.communicate(timeout=30)
    while lives():
        assert time.monotonic() < deadline
        time.sleep(0.05)


if __name__ == "__main__":
    all_cases(Path(sys.argv[1]))
