"""Every help page exits 0 and names its options; mistakes end in one line, not a traceback."""

from __future__ import annotations

import pytest
import torch

import hipnn_pyg
from hipnn_pyg.cli import main

SET = ["--num_train", "--num_validation"]
NETWORK = [
    "--hidden_channels", "--num_interactions", "--num_onsite", "--num_sensitivities", "--r_low",
    "--r_high", "--cutoff", "--hierarchical",
]  # fmt: skip
TRAINING = [
    "--recipe", "--epochs", "--batch_size", "--learning_rate", "--lambda_l2", "--lambda_r",
    "--t_init", "--t_patience", "--decay", "--warmup_steps", "--average_decay", "--average_every",
    "--seed", "--device", "--compile", "--checkpoint_seconds",
]  # fmt: skip
SYSTEM = ["structure", "--model", "--index", "--run", "--min_distance", "--skin", "--i-know"]
RUN = ["--config", "--print_config", "--run", "--resume"]
SIMULATION = [
    "--time", "--steps", "--resume", "--ensemble", "--temperature", "--timestep", "--friction",
    "--velocities", "--seed", "--log_every", "--save_every", "--max_r", "--checkpoint_seconds",
]  # fmt: skip
PAGES = {
    "": ["data", "train", "evaluate", "predict", "explain", "plot", "--debug"],
    "data": ["qm9", "qm9-raw", "md17"],
    "data qm9": ["--root", "--source"],
    "data qm9-raw": ["root"],
    "data md17": ["--root", "--molecule"],
    "train": ["qm9", "md17", "file", "--resume"],
    "train qm9": [*RUN, "--root", "--source", "--target", *SET, *NETWORK, *TRAINING],
    "train md17": [*RUN, "--root", "--molecule", *SET, *NETWORK, *TRAINING],
    "train file": [*RUN, "--path", *SET, *NETWORK, *TRAINING],
    "evaluate": ["run", "--part", "--root", "--device"],
    "calibrate": ["run", "--num_calibration", "--num_smiles", "--seed", "--root", "--device"],
    "ship": ["run", "name", "--output", "--root"],
    "explain": ["input", "--model", "--output", "--text", "--index", "--unit", "--seed"],
    "predict": ["--model", "inputs", "--output", "--unit", "--seed", "--limit", "--device"],
    "relax": [*SYSTEM, "--optimizer", "--fmax", "--steps", "--cell", "--pressure", "--max_r"],
    "md": [*SYSTEM, *SIMULATION],
    "plot": ["run"],
}


@pytest.mark.parametrize("command", PAGES, ids=lambda command: command or "hipnn")
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*command.split(), "--help"])
    shown = capsys.readouterr()
    assert exit.value.code == 0 and shown.err == ""
    assert [name for name in PAGES[command] if name not in shown.out] == []


def test_units_and_sources_stand_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "qm9", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for phrase in ("(Å)", "(eV)", "N_feature", "Eq. 16", "default: 109426", "default: 80"):
        assert phrase in text


@pytest.mark.parametrize(
    "line, message",
    [
        ("", 'expected "command"'),
        ("fly", "fly"),
        ("train", "{qm9,qm9-rdkit,md17,file}"),
        ("train file --num_train 3 --num_validation 1", "path"),
        ("train qm9 --hidden_chanels 3", "hidden_chanels"),
        ("train qm9 --epochs many", "epochs"),
        ("train qm9 --recipe slow", "recipe"),
        ("evaluate", "run"),
        ("predict CCO", "model"),
    ],
)
def test_wrong_command_lines(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(line.split())
    shown = capsys.readouterr()
    complaint = shown.err[shown.err.index("error:") :].splitlines()[0]  # not the usage around it
    assert exit.value.code == 2 and message in complaint
    assert shown.out == "" and "Traceback" not in shown.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    version = f"hipnn {hipnn_pyg.__version__}, torch {torch.__version__}"
    assert capsys.readouterr().out.strip() == version


def test_commands_flush_denormal_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = torch.tensor([1e-40])
    assert float(tiny * 1.0) > 0.0  # control
    assert main(["evaluate", "nowhere"]) == 1
    assert float(tiny * 1.0) == 0.0 and "nowhere" in capsys.readouterr().err
