"""``hipnn train --ensemble``: each member's folder is that of the same model trained alone."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from hipnn_pyg.cli import main
from hipnn_pyg.cli.ensemble import report
from hipnn_pyg.data.splits import Split
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member

from .conftest import checkpoint, different

Training = Callable[..., list[str]]
OPTIONS = ("--epochs", "2", "--batch_size", "8", "--learning_rate", "0.01")
THREE = (*OPTIONS, "--ensemble", "3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def whole(runs: Path, training: Training) -> Path:
    """Three models, trained without interruption."""
    run = runs / "whole"
    if not run.exists():
        assert main(training(run, *THREE)) == 0
    return run


def differing(ours: Path, theirs: Path) -> list[str]:
    """What is not equal to the last bit in two checkpoints, times and random numbers apart."""
    states = [checkpoint(run) for run in (ours, theirs)]
    for state in states:
        del state["rng"]
    return different(*states)


def test_each_member_is_a_run_of_its_own(
    whole: Path, tmp_path: Path, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 2):
        alone, member = tmp_path / str(seed), whole / f"member-{seed}"
        assert main(training(alone, *OPTIONS, "--seed", str(seed))) == 0
        assert {path.name for path in member.iterdir()} == {path.name for path in alone.iterdir()}
        for name in ("config.yaml", "split.npz", "model.safetensors"):
            assert (member / name).read_bytes() == (alone / name).read_bytes()
        assert differing(member, alone) == []
    names = differing(whole / "member-0", whole / "member-2")  # control
    assert "/model/blocks.0.interaction.V" in names and "/model/reference.weight" in names
    # It may even go on alone.
    assert main(training(whole / "member-1", *OPTIONS, "--seed", "1", "--resume")) == 0
    assert differing(whole / "member-2", tmp_path / "2") == []
    assert "validation MAE" in capsys.readouterr().out


def test_one_split_for_all(tmp_path: Path, training: Training) -> None:
    short = (*OPTIONS, "--epochs", "1", "--seed", "4", "--ensemble", "2")
    splits, weights = {}, {}
    for name, options in (("one", ("--split_seed", "7")), ("each", ())):
        assert main(training(tmp_path / name, *short, *options)) == 0
        members = [tmp_path / name / f"member-{k}" for k in (0, 1)]
        splits[name] = [Split.load(member / "split.npz") for member in members]
        weights[name] = [(member / "model.safetensors").read_bytes() for member in members]
    assert [split.seed for split in splits["one"]] == [7, 7]
    assert [split.seed for split in splits["each"]] == [4, 5]  # control
    assert splits["one"][0].checksum == splits["one"][1].checksum
    assert splits["each"][0].checksum != splits["each"][1].checksum
    assert len({*weights["one"], *weights["each"]}) == 4
    alone = training(tmp_path / "alone", *OPTIONS, "--epochs", "1", "--seed", "5")
    assert main([*alone, "--split_seed", "7"]) == 0
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == weights["one"][1]


def test_every_command_takes_a_member(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, maes = Path(shutil.copytree(whole, tmp_path / "whole")), []
    for number in range(3):
        member = str(whole / f"member-{number}")
        assert main(["evaluate", member]) == 0
        maes.append(next(s for s in capsys.readouterr().out.splitlines() if "MAE (kcal" in s))
    assert len(set(maes)) == 3
    assert main(["plot", member]) == 0
    assert (whole / "member-2" / "plots" / "parity.png").is_file()
    assert main(["predict", "--model", member, "C"]) == 0
    for command in ("evaluate", "plot"):  # of one model each
        capsys.readouterr()
        assert main([command, str(whole)]) == 1
        assert f"holds an ensemble of 3: name one of its models, such as {whole / 'member-0'}" in (
            capsys.readouterr().err
        )


def test_what_it_says(
    tmp_path: Path, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(training(tmp_path / "run", *OPTIONS, "--ensemble", "2", "--epochs", "1")) == 0
    shown = capsys.readouterr()
    assert "2 models" in shown.out and "validation MAE (kcal/mol)" in shown.out
    assert f"next: hipnn evaluate {tmp_path / 'run' / 'member-0'}" in shown.out.replace("\n", "")
    assert "±" not in shown.out  # two are too few for an error bar
    assert "320/320" in shown.err and " molecules/s" in shown.err  # one bar for both models


@pytest.mark.parametrize("models", ["1", "2"])
def test_the_bar_seldom_writes_to_a_file(
    models: str, tmp_path: Path, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after every epoch, of which there may be thousands; the last line has the last error."""
    line = training(tmp_path / "run", *OPTIONS, "--ensemble", models, "--epochs", "8")
    assert main(line) == 0
    written = capsys.readouterr().err.split("\r")
    assert len(written) < 8 and "100%" in written[-1] and "validation MAE" in written[-1]


def test_error_bar_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """1, 2, 4: mean 7/3, sample variance 7/3, so the error bar is sqrt(7/9)."""
    members: list[Any] = [
        SimpleNamespace(
            best_row={"validation_mae": mae},
            best_epoch=3,
            epoch=5,
            metric_unit="eV",
            forces=False,
            stress=False,
            config=SimpleNamespace(seed=9),
        )
        for mae in (1.0, 2.0, 4.0)
    ]
    Console(width=100).print(report(members))
    assert "2.3333 ± 0.8819" in capsys.readouterr().out
    Console(width=100).print(report(members[:2]))
    out = capsys.readouterr().out
    assert "1.5000" in out and "±" not in out


def press_ctrl_c(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    turn, done = EnsembleTrainer._turn, [0]

    def count(self: EnsembleTrainer, front: list[Member]) -> Iterator[int]:
        for molecules in turn(self, front):
            done[0] += 1
            if done[0] == steps:
                os.kill(os.getpid(), signal.SIGINT)
            yield molecules

    monkeypatch.setattr(EnsembleTrainer, "_turn", count)


@pytest.mark.parametrize("lost", [None, 2], ids=["all_saved", "one_without_checkpoint"])
def test_a_stopped_ensemble_goes_on(
    lost: int | None,
    whole: Path,
    tmp_path: Path,
    training: Training,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 27)  # 20 steps an epoch: member 1 is in its first one
        assert main(training(run, *THREE)) == 130
    assert "go on with --resume" in capsys.readouterr().err
    assert differing(run / "member-0", whole / "member-0")  # control: not there yet
    if lost is not None:  # killed before the member's first checkpoint
        (run / f"member-{lost}" / "checkpoint.pt").unlink()
    assert main(training(run, *THREE, "--resume")) == 0
    for number in range(3):
        member = f"member-{number}"
        assert differing(run / member, whole / member) == []
        weights = [(folder / member / "model.safetensors").read_bytes() for folder in (run, whole)]
        assert weights[0] == weights[1]


def test_its_own_config_repeats_it(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = whole / "config.yaml"
    with pytest.raises(SystemExit) as exit:
        main(["train", "file", "--config", str(config), "--print_config"])
    assert exit.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["ensemble"] == 3
    assert "ensemble" not in yaml.safe_load((whole / "member-0" / "config.yaml").read_text())


@pytest.mark.parametrize(
    "options, message",
    [
        (THREE, "holds a run: go on with --resume"),
        (OPTIONS, "holds a run: go on with --resume"),  # nor does a single run go there
        ((*OPTIONS, "--ensemble", "4", "--resume"), "trained with ensemble = 3, not 4"),
        ((*OPTIONS, "--resume"), "trained with ensemble = 3, not 1"),
        ((*THREE, "--seed", "5", "--resume"), "trained with seed = 0, not 5"),
        ((*THREE, "--devices", "2"), "all models on one device"),
    ],
    ids=str,
)
def test_refusals(
    options: tuple[str, ...],
    message: str,
    whole: Path,
    training: Training,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    before = (whole / "config.yaml").read_bytes()
    assert main(training(whole, *options)) == 1
    assert message in capsys.readouterr().err
    assert (whole / "config.yaml").read_bytes() == before


def test_without_its_data_it_leaves_nothing(
    tmp_path: Path, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    line = training(tmp_path / "run", *THREE, "--path", str(tmp_path / "gone.extxyz"))
    assert main(line) == 1
    assert "gone.extxyz" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_nothing_to_resume(
    tmp_path: Path, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(training(tmp_path / "run", *THREE, "--resume")) == 1
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(training(tmp_path / "run", "--ensemble", "0"))
    assert exit.value.code == 2 and "ensemble" in capsys.readouterr().err
