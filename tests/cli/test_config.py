"""Settings from YAML files: overrides, refusals, and a run's own config.yaml given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hipnn_pyg.cli import main

Training = Callable[..., list[str]]


def settings_of(run: Path) -> dict[str, object]:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_config_file_with_overrides(molecule_file: Path, tmp_path: Path) -> None:
    config, run = tmp_path / "mine.yaml", tmp_path / "run"
    mine = {
        "path": str(molecule_file), "num_train": 60, "num_validation": 10, "epochs": 1,
        "hidden_channels": 4, "num_onsite": 0, "num_sensitivities": 4, "compile": "off",
        "device": "cpu", "recipe": "paper", "run": str(run),
    }  # fmt: skip
    config.write_text(yaml.safe_dump(mine))
    line = ["train", "file", "--config", str(config), "--hidden_channels", "3", "--seed", "5"]
    assert main(line) == 0
    used = settings_of(run)
    assert used["hidden_channels"] == 3 and used["seed"] == 5  # the command line wins
    assert used["recipe"] == "paper" and used["num_train"] == 60  # the file beats the default
    assert used["num_interactions"] == 2  # the default


def test_the_order_of_options_counts(
    molecule_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--config is read where it stands; what comes later wins."""
    config = tmp_path / "mine.yaml"
    config.write_text("seed: 3\n")
    for line, seed in (
        (["--seed", "9", "--config", str(config)], 3),
        (["--config", str(config), "--seed", "9"], 9),
    ):
        with pytest.raises(SystemExit) as exit:
            main(["train", "qm9", *line, "--print_config"])
        assert exit.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["seed"] == seed


@pytest.mark.parametrize("data, onsite, channels", [("qm9", 3, 80), ("md17", 0, 20)])
def test_print_config(
    data: str,
    onsite: int,
    channels: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["train", data, "--print_config"])
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(printed)
    assert settings["hidden_channels"] == channels and settings["num_onsite"] == onsite
    assert settings["cutoff"] == pytest.approx(15 * 0.529177210903, abs=1e-6)
    (tmp_path / "printed.yaml").write_text(printed)  # it can be given back
    with pytest.raises(SystemExit) as exit:
        main(["train", data, "--config", str(tmp_path / "printed.yaml"), "--print_config"])
    assert exit.value.code == 0 and yaml.safe_load(capsys.readouterr().out) == settings


@pytest.mark.parametrize(
    ("text", "channels", "onsite"),
    [
        ("forces: true\n", 64, 2),  # as --forces
        ("forces: true\nhidden_channels: 7\n", 7, 2),
        ("forces: false\n", 20, 0),  # Table III's model
        ("start: qm9-u0\n", 80, 3),  # as --start qm9-u0
        ("seed: 1\n", 20, 0),
    ],
)
def test_defaults_follow_what_a_file_chooses(
    text: str, channels: int, onsite: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit) as exit:
        main(["train", "md17", "--config", str(config), "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert exit.value.code == 0
    assert (settings["hidden_channels"], settings["num_onsite"]) == (channels, onsite)


@pytest.mark.parametrize("given", [["--recipe", "paper"], ["--recipe=paper"], []], ids=" ".join)
def test_with_forces_the_papers_recipe_validates_after_every_epoch(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its annealing needs that; the recipe fast does with every tenth."""
    config = tmp_path / "mine.yaml"
    config.write_text("seed: 1\n" if given else "recipe: paper\n")
    line = ["train", "md17", "--forces", "--config", str(config), *given, "--print_config"]
    for more, often in (([], 1), (["--recipe", "fast"], 10)):
        with pytest.raises(SystemExit) as exit:
            main([*line, *more])
        shown = capsys.readouterr().out
        assert exit.value.code == 0 and yaml.safe_load(shown)["validate_every"] == often


@pytest.mark.parametrize(
    "text, message",
    [
        ("hidden_chanels: 3\n", "hidden_chanels"),
        ("hidden_channels: many\n", "hidden_channels"),
        ("molecule: benzene\n", "molecule"),  # belongs to md17
        ("epochs: [1\n", "config"),
    ],
)
def test_bad_config_files(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit) as exit:
        main(["train", "qm9", "--config", str(config)])
    shown = capsys.readouterr().err
    complaint = shown[shown.index("error:") :].splitlines()[0]  # not the usage around it
    assert exit.value.code == 2 and message in complaint and "Traceback" not in shown


def test_a_runs_own_config_repeats_it(training: Training, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(training(first, "--epochs", "1", "--num_train", "60")) == 0
    line = ["train", "file", "--config", str(first / "config.yaml"), "--run", str(second)]
    assert main(line) == 0
    assert settings_of(second) == settings_of(first)
    weights = [(run / "model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]
    resumed = ["train", "file", "--config", str(first / "config.yaml"), "--run", str(first)]
    assert main([*resumed, "--resume"]) == 0
