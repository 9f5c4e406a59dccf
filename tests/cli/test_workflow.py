"""Train, evaluate, plot and predict, one command after the other, on a file of structures."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from PIL import Image
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from torch_geometric.data import Data, InMemoryDataset

from hipnn_pyg import HIPNN, ModelFileError, load_model
from hipnn_pyg.cli import main
from hipnn_pyg.cli.inputs import Named, Refused, embedded, listed
from hipnn_pyg.cli.plot import (
    _errors,
    draw_learning,
    draw_parity,
    draw_quantiles,
    draw_sensitivities,
)
from hipnn_pyg.cli.predict import complaint
from hipnn_pyg.cli.prepare import _check_start
from hipnn_pyg.cli.run_folder import RunFolder
from hipnn_pyg.data.molecules import from_smiles
from hipnn_pyg.data.sets import FileSet
from hipnn_pyg.data.splits import Split, random_split
from hipnn_pyg.data.targets import MD17_ENERGY, QM9_TARGETS
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.nn import Sensitivity
from hipnn_pyg.ops import KernelUnavailableError
from hipnn_pyg.plots import ErrorQuantiles, error_quantiles, plot_error_quantiles
from hipnn_pyg.train import Network
from hipnn_pyg.units import convert

from .conftest import train_options, write_molecules

EV_IN_KCAL = 23.060547830619

Capture = pytest.CaptureFixture[str]
Training = Callable[..., list[str]]


def energies(model: Path, images: list[Atoms]) -> np.ndarray:
    """What the model says, straight from Python (eV)."""
    loaded = load_model(model)
    return np.array(
        [
            loaded.energy_terms(
                torch.tensor(atoms.numbers), torch.tensor(atoms.positions, dtype=torch.float32)
            ).energy.item()
            for atoms in images
        ]
    )


def one_line(capsys: Capture, command: str) -> str:
    """The error message: one line on stderr, nothing on stdout."""
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"hipnn {command}: ")
    assert shown.err.count("\n") == 1 and "Traceback" not in shown.err
    return shown.err


# --- train ------------------------------------------------------------------------------------


def test_training_starts_from_a_trained_model(
    trained: Path, training: Training, molecule_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    images = ase.io.read(molecule_file, index=":10")
    still = ("--epochs", "1", "--learning_rate", "1e-30", "--seed", "7", "--split_seed", "0")
    again, new, first = tmp_path / "again", tmp_path / "new", tmp_path / trained.name
    shutil.copytree(trained, first)
    assert main(training(again, *still, "--start", str(first))) == 0
    assert "another file" not in capsys.readouterr().err  # it is the same
    shutil.rmtree(first)  # a resumed run needs it no more
    assert main(training(new, *still)) == 0
    expected = energies(trained, images)
    np.testing.assert_allclose(energies(again, images), expected, rtol=0, atol=1e-5)
    assert np.abs(energies(new, images) - expected).max() > 1e-3  # control: random weights
    card = json.loads((again / "model.json").read_text())["started_from"]
    assert card["model"] == trained.name and card["training_seconds"] > 0
    third = tmp_path / "third"
    assert main(training(third, *still, "--start", str(again))) == 0
    origin = json.loads((third / "model.json").read_text())["started_from"]
    assert origin["model"] == "again" and origin["started_from"] == card
    more = (*still, "--num_train", "170", "--start", str(third))  # which hold the 160
    assert main(training(tmp_path / "more", *more)) == 0
    assert main([*training(again, *still), "--resume"]) == 0  # it knows where it began
    np.testing.assert_allclose(energies(again, images), expected, rtol=0, atol=1e-5)
    capsys.readouterr()
    for options, words in (
        (("--start", str(trained), "--hidden_channels", "9"), "hidden_channels = "),
        (("--start", str(trained), "--ensemble", "2"), "leave --ensemble out"),
        (("--start", "no-such-model"), "no-such-model"),
        (("--start", str(again), "--split_seed", "1"), "again learned another split"),
        (("--start", str(again), "--num_train", "150"), "--num_train 160 or more"),
    ):
        assert main(training(tmp_path / "bad", *options)) == 1
        assert words in one_line(capsys, "train")


def test_a_resumed_run_has_the_network_it_started_from(
    trained: Path, molecule_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    shutil.copytree(trained, first)
    line = ["train", "file", "--path", str(molecule_file), "--num_train", "160"]
    line += ["--num_validation", "20", "--device", "cpu", "--epochs", "1", "--run", str(run)]
    assert main([*line, "--start", str(first)]) == 0
    shutil.rmtree(first)
    assert main([*line, "--resume"]) == 0
    assert main([*line, "--start", str(first), "--resume"]) == 0
    assert main([*line, "--resume", "--hidden_channels", "9"]) == 1  # control: what is said counts
    assert "hidden_channels = 6, not 9" in capsys.readouterr().err


def test_a_start_must_know_the_species_of_the_test_set(
    trained: Path, molecule_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Training would go to its end, and only then its evaluation fail."""
    images = ase.io.read(molecule_file, index=":")
    place = int(random_split(len(images), 160, 20, 0).test[0])
    for name, status in (("CH3OH", 0), ("CH3Cl", 1)):  # the first is a control
        images[place] = molecule(name)
        images[place].calc = SinglePointCalculator(images[place], energy=-5.0)
        path = tmp_path / f"{name}.extxyz"
        ase.io.write(path, images)
        line = train_options(path, tmp_path / name, "--epochs", "1", "--start", str(trained))
        assert main(line) == status
        told = capsys.readouterr().err
        assert "warning: --start" in told and "learned from another file" in told
    assert "does not know Cl" in told


def test_a_start_with_energies_of_another_reference_is_warned_of(
    trained: Path, molecule_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Training would end far off and say nothing."""
    for shift in (0.0, 5.0):  # eV/atom; the first is a control
        images = ase.io.read(molecule_file, index=":")
        for atoms in images:
            energy = atoms.get_potential_energy() + shift * len(atoms)
            atoms.calc = SinglePointCalculator(atoms, energy=energy)
        path = tmp_path / f"{shift}.extxyz"
        ase.io.write(path, images)
        line = train_options(path, tmp_path / str(shift), "--epochs", "1", "--start", str(trained))
        assert main(line) == 0
        told = capsys.readouterr().err
        assert ("counts energies from another reference, shift" in told) == bool(shift)


def test_sensitivities_beyond_the_cutoff_are_warned_of(
    training: Training, tmp_path: Path, capsys: Capture
) -> None:
    for r_high in ("4.5", "4"):  # the second is a control
        options = ("--epochs", "1", "--cutoff", "4", "--r_high", r_high)
        assert main(training(tmp_path / r_high, *options)) == 0
        told = capsys.readouterr().err
        assert ("r_high = 4.5 Å is beyond cutoff = 4.0 Å" in told) == (r_high == "4.5")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        (
            {"split_sha256": "8, 5, 4"},
            "use its --split_seed 4, --num_validation 5 and --num_train 8",
        ),
        ({"split_sha256": "7, 5, 3", "split_seed": 3, "num_train": 7}, None),
        ({"split_sha256": "9, 5, 3", "split_seed": 3, "num_train": 9}, "--num_train 9 or more"),
        ({"split_sha256": "8, 4, 3", "split_seed": 3, "num_validation": 4}, "--num_validation 4"),
        ({"split_sha256": "of more", "split_seed": 3, "num_train": 7}, "train without it"),
        ({"split_sha256": "old", "num_train": None}, "train without it"),
        ({"dataset": "qm9-rdkit", "split_sha256": "other"}, "train without it"),
        ({"target": "zpve"}, "learned zpve, not U0_atom"),
        ({"energy_unit": "kcal/mol"}, "energies in kcal/mol, this data set in eV"),
        ({"dataset": "file", "split_sha256": "other", "target": "energy"}, None),
        ({"dataset": "md17", "molecule": "toluene", "split_sha256": "other"}, None),
    ],
    ids=str,
)
def test_a_model_that_knows_test_molecules_is_no_start(
    changes: dict[str, str], words: str | None
) -> None:
    """QM9 on RDKit's geometries has the same molecules, though its splits are never the same. A
    larger training set of the same seed holds the smaller one."""
    data = {"dataset": "qm9", "split_sha256": "one", "target": "U0_atom", "split_seed": 3}
    data |= {"num_train": 8, "num_validation": 5}
    card = {**data, "hyperparameters": asdict(Network()), "energy_unit": "eV", "split_seed": 4}
    card |= changes
    given = [card, Network(), QM9_TARGETS["U0_atom"], data, lambda *sizes: str(sizes)[1:-1]]
    if words is None:
        _check_start("a", *given)
    else:
        with pytest.raises(ValueError, match=words):
            _check_start("a", *given)
    # Nor does it forget them when it learns something else in between.
    given[0] = {
        **card,
        "dataset": "file",
        "energy_unit": "eV",
        "started_from": card | {"model": "b"},
    }
    if words is None or "split" not in str(changes):
        return
    with pytest.raises(ValueError, match="--start a began with b, which learned another split"):
        _check_start("a", *given)


def test_revised_frames_are_the_same_frames() -> None:
    network = asdict(Network())
    card = {"dataset": "md17", "molecule": "benzene", "split_sha256": "one", "target": "energy"}
    card |= {"hyperparameters": network, "energy_unit": "kcal/mol"}
    data = card | {"molecule": "toluene", "split_sha256": "other"}
    _check_start("a", card, Network(), MD17_ENERGY, data, lambda *_: "other")  # control
    with pytest.raises(ValueError, match="some molecules of this test or"):
        revised = data | {"molecule": "revised benzene"}
        _check_start("a", card, Network(), MD17_ENERGY, revised, lambda *_: "other")


def test_what_training_leaves(trained: Path, molecule_file: Path) -> None:
    names = {"config.yaml", "split.npz", "metrics.csv", "model.safetensors", "model.json"}
    assert names | {"checkpoint.pt", "logs"} <= {path.name for path in trained.iterdir()}
    split = Split.load(trained / "split.npz")
    assert split.sizes == {"train": 160, "validation": 20, "test": 20}
    with open(trained / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    maes = [float(row["validation_mae"]) for row in rows]
    assert len(rows) == 8 and min(maes) < 0.5 * maes[0]
    card = json.loads((trained / "model.json").read_text())
    assert card["energy_unit"] == "eV" and card["length_unit"] == "Angstrom"
    assert card["dataset"] == "file" and card["split_sha256"] == split.checksum
    assert card["validation_mae"] == min(maes) and card["validation_unit"] == "kcal/mol"
    assert str(molecule_file.parent) not in json.dumps(card)  # no path of this machine


def test_what_training_says(tmp_path: Path, training: Training, capsys: Capture) -> None:
    assert main(training(tmp_path / "run", "--epochs", "1")) == 0
    out = capsys.readouterr().out
    assert "validation MAE" in out and "kcal/mol in the best epoch, 1 of 1" in out
    assert f"next: hipnn evaluate {tmp_path / 'run'}\n" in out


def test_an_existing_run_is_not_overwritten(
    trained: Path, training: Training, capsys: Capture
) -> None:
    before = (trained / "checkpoint.pt").read_bytes()
    assert main(training(trained)) == 1
    assert "holds a run: go on with --resume, or choose another --run" in one_line(capsys, "train")
    assert (trained / "checkpoint.pt").read_bytes() == before


def test_ctrl_c_while_the_data_load(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def press(self: FileSet) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileSet, "load", press)
    try:
        status = main(training(tmp_path / "run"))
    except KeyboardInterrupt:  # it would end the test session
        pytest.fail("Ctrl-C came through as a traceback")
    assert status == 130 and "stopped" in one_line(capsys, "train")


def test_full_disk(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hipnn_pyg.models.files.os.fsync", no_space)
    assert main(training(tmp_path / "run")) == 1
    assert "No space left on device" in one_line(capsys, "train")


# --- resume: what is refused ------------------------------------------------------------------

SAME = ("--epochs", "8", "--batch_size", "8", "--learning_rate", "0.01", "--resume")


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def test_resume_of_a_finished_run(copy: Path, training: Training, capsys: Capture) -> None:
    assert main(training(copy, *SAME, "--checkpoint_seconds", "5")) == 0
    assert "of 8," in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, setting",
    [
        (("--hidden_channels", "7"), "hidden_channels = 6, not 7"),
        (("--epochs", "9"), "epochs = 8, not 9"),
        (("--seed", "1"), "seed = 0, not 1"),
        (("--num_train", "150"), "num_train = 160, not 150"),
    ],
)
def test_resume_with_other_settings(
    options: tuple[str, str], setting: str, copy: Path, training: Training, capsys: Capture
) -> None:
    assert main(training(copy, *SAME, *options)) == 1
    assert setting in one_line(capsys, "train")


def test_resume_of_a_run_from_before_a_setting_existed(
    training: Training, tmp_path: Path, capsys: Capture
) -> None:
    """Its energy scale was what the paper's is, whatever the recipe takes today."""
    line = training(tmp_path / "run", "--epochs", "1", "--num_train", "60")
    assert main([*line, "--energy_scale", "total"]) == 0
    config = tmp_path / "run" / "config.yaml"
    kept = config.read_text()
    config.write_text(kept.replace("energy_scale: total\n", ""))
    assert config.read_text() != kept
    assert main([*line, "--energy_scale", "total", "--resume"]) == 0
    capsys.readouterr()
    assert main([*line, "--resume"]) == 1  # control
    assert "trained with energy_scale = total, not residual" in one_line(capsys, "train")


def test_resume_with_another_file(
    copy: Path, tmp_path: Path, molecule_file: Path, training: Training, capsys: Capture
) -> None:
    """The path may change, the molecules may not: the split would be another one."""
    images = ase.io.read(molecule_file, index=":")
    ase.io.write(tmp_path / "same.extxyz", images)
    assert main(training(copy, *SAME, "--path", str(tmp_path / "same.extxyz"))) == 0
    capsys.readouterr()
    write_molecules(tmp_path / "more.extxyz", len(images) + 7)
    assert main(training(copy, *SAME, "--path", str(tmp_path / "more.extxyz"))) == 1
    assert "split" in one_line(capsys, "train")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("checkpoint.pt", b"PK\x03\x04 torn", "truncated or not a checkpoint"),
        ("checkpoint.pt", None, "nothing to resume"),
        ("config.yaml", None, "holds no run"),
        ("config.yaml", b"a: [1", "damaged"),
        ("config.yaml", b"epochs: 3", "damaged"),
    ],
)
def test_resume_of_a_damaged_run(
    name: str,
    content: bytes | None,
    message: str,
    copy: Path,
    training: Training,
    capsys: Capture,
) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    assert main(training(copy, *SAME)) == 1
    assert message in one_line(capsys, "train")


def test_sets_that_do_not_fit(tmp_path: Path, training: Training, capsys: Capture) -> None:
    assert main(training(tmp_path / "run", "--num_train", "190")) == 1
    assert "200" in one_line(capsys, "train")
    assert main(training(tmp_path / "run", "--num_validation", "0", "--r_high", "5")) == 1
    assert "num_validation" in one_line(capsys, "train")
    assert main(training(tmp_path / "run", "--path", "nowhere.extxyz")) == 1
    assert "nowhere.extxyz" in one_line(capsys, "train")


# --- evaluate and plot ------------------------------------------------------------------------


def test_evaluate_and_plot(trained: Path, molecule_file: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(trained)]) == 0
    printed = capsys.readouterr().out
    images = ase.io.read(molecule_file, index=":")
    test = [images[k] for k in Split.load(trained / "split.npz").test.tolist()]
    target = np.array([atoms.get_potential_energy() for atoms in test])
    error = (energies(trained, test) - target) * EV_IN_KCAL
    results = json.loads((trained / "results.json").read_text())
    assert results["part"] == "test" and results["unit"] == "kcal/mol" and results["num"] == 20
    assert results["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert results["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    assert results["above_1_kcal"] == pytest.approx(100 * (np.abs(error) > 1).mean())
    assert "test set, 20 molecules" in printed and "MAE (kcal/mol)" in printed
    assert f"{results['mae']:.3f}" in printed
    assert f"{results['mae'] / EV_IN_KCAL * 1000:.2f}" in printed  # meV
    assert results["paper"] == {}
    with np.load(trained / "predictions.npz") as stored:
        np.testing.assert_allclose(stored["target"], target, rtol=1e-9)
        np.testing.assert_allclose(stored["orders"].sum(1), stored["prediction"], rtol=1e-9)
        assert str(stored["unit"]) == "eV" and (stored["nonhierarchicality"] > 0).all()

    assert main(["plot", str(trained)]) == 0
    shown = capsys.readouterr()
    pictures = [Path(line) for line in shown.out.split()]
    assert "no quantiles.png" in shown.err and shown.err.count("\n") == 1  # 20 are too few
    assert {path.stem for path in pictures} == {"sensitivities", "learning", "parity"}
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.std() > 5 and min(pixels.shape) > 300  # not blank

    assert main(["evaluate", str(trained), "--part", "train"]) == 0
    assert main(["plot", str(trained)]) == 0
    assert str(trained / "plots" / "quantiles.png") in capsys.readouterr().out  # 160 suffice
    (trained / "plots" / "error_bars.png").touch()  # another command's
    assert main(["evaluate", str(trained), "--part", "validation"]) == 0
    assert main(["plot", str(trained)]) == 0  # the training molecules' picture does not stay
    assert not (trained / "plots" / "quantiles.png").exists()
    (trained / "plots" / "error_bars.png").unlink()
    card = json.loads((trained / "model.json").read_text())
    results = json.loads((trained / "results.json").read_text())
    assert results["mae"] == pytest.approx(card["validation_mae"], rel=1e-6)


def test_evaluate_a_model_of_before_a_size_was_a_setting(copy: Path) -> None:
    """As it is loaded: with the default."""
    card = json.loads((copy / "model.json").read_text())
    assert card["hyperparameters"].pop("hierarchical") is True
    (copy / "model.json").write_text(json.dumps(card))
    assert main(["evaluate", str(copy)]) == 0
    assert json.loads((copy / "results.json").read_text())["model"] == card


def test_the_papers_figures_stand_beside_those_of_the_test_set(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """And nothing beside those of other molecules, which is the control."""
    run, copy = tmp_path / "run", tmp_path / "copy.json"
    shutil.copytree(trained, run)
    figures = {"mae": "0.256 ± 0.003", "rmse": "0.527 ± 0.020", "above_1_kcal": "2.26 ± 0.07"}
    monkeypatch.setattr("hipnn_pyg.cli.evaluate.paper_figures", lambda *_: figures)
    for part, paper in (("test", figures), ("train", {})):
        assert main(["evaluate", str(run), "--part", part, "--json", str(copy)]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
        rows = [[cell.strip() for cell in line.split("│")[2:-1]] for line in lines]
        found = json.loads(copy.read_text())
        assert copy.read_text() == (run / "results.json").read_text() and found["paper"] == paper
        ours = [f"{found['mae']:.3f}", f"{found['rmse']:.3f}", f"{found['above_1_kcal']:.2f}"]
        ours += [f"{convert(found[name], 'kcal/mol', 'meV'):.2f}" for name in ("mae", "rmse")]
        theirs = [[value] for value in (*paper.values(), "-", "-")] if paper else [[]] * 5
        assert rows == [[one, *other] for one, other in zip(ours, theirs, strict=True)]
        labels = [str(line.get_label()) for line in draw_learning(RunFolder(run)).axes[0].lines]
        assert ("paper" in " ".join(labels)) == bool(paper)


def test_pictures_show_what_the_run_holds(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert main(["evaluate", str(run), "--part", "train"]) == 0
    folder, found = RunFolder(run), json.loads((run / "results.json").read_text())
    assert f"MAE {found['mae']:.3g} kcal/mol" in draw_parity(folder).axes[0].texts[0].get_text()
    drawn = [list(line.get_ydata()) for line in draw_learning(folder).axes[0].lines]
    for name in ("validation_mae", "validation_rmse"):
        assert [float(row[name]) for row in read_csv(run / "metrics.csv")] in drawn
    own = load_model(run).blocks[0].interaction.sensitivity
    assert isinstance(own, Sensitivity)
    new = Sensitivity(own.mu.numel(), own.r_low, own.r_high, own.cutoff)
    curves = [np.asarray(line.get_ydata()) for line in draw_sensitivities(folder).axes[0].lines]
    curves = [curve for curve in curves if len(curve) == 600]
    for functions in (own, new):
        for curve in functions(torch.linspace(0.5, own.cutoff, 600)).detach().numpy().T:
            assert any(np.allclose(curve, each) for each in curves)
    with np.load(run / "predictions.npz") as stored:
        error = convert(np.abs(stored["prediction"] - stored["target"]), "eV", "kcal/mol")
        expected = error_quantiles(stored["nonhierarchicality"], error)
    given: list[ErrorQuantiles] = []
    monkeypatch.setattr(
        "hipnn_pyg.cli.plot.plot_error_quantiles",
        lambda quantiles, **rest: (
            given.append(quantiles) or plot_error_quantiles(quantiles, **rest)
        ),
    )
    draw_quantiles(folder)
    for name in ("log10_R", "quantiles"):
        np.testing.assert_allclose(getattr(given[0], name), getattr(expected, name), rtol=1e-6)


def test_evaluate_with_the_data_elsewhere(
    trained: Path, molecule_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    moved = tmp_path / "moved.extxyz"
    shutil.copy(molecule_file, moved)
    assert main(["evaluate", str(trained), "--root", str(moved)]) == 0
    assert "20 molecules" in capsys.readouterr().out
    assert main(["evaluate", str(trained), "--root", str(tmp_path / "none.extxyz")]) == 1
    assert "none.extxyz" in one_line(capsys, "evaluate")


@pytest.mark.parametrize("command", ["evaluate", "json", "calibrate", "predict", "explain"])
def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    command: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    arguments, folder = {
        "evaluate": (["evaluate", str(trained)], trained),
        "json": (["evaluate", str(trained), "--json", f"{elsewhere}/r.json"], elsewhere),
        "calibrate": (["calibrate", str(trained)], trained),
        "predict": (["predict", "--model", str(trained), "O", "--output", f"{elsewhere}/e.csv"],
                    elsewhere),
        "explain": (["explain", "O", "--model", str(trained), "--output", f"{elsewhere}/e.html"],
                    elsewhere),
    }[command]  # fmt: skip

    def temporary_file(dir: Path) -> nullcontext[None]:
        if dir == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return nullcontext()

    def worked(*_: object, **__: object) -> None:
        raise AssertionError("it had begun")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", temporary_file)
        patch.setattr(HIPNN, "energy_terms", worked)
        assert main(arguments) == 1
    complaint = one_line(capsys, arguments[0])
    assert "could not be saved there (Read-only file system)" in complaint
    assert str(folder) in complaint


def test_a_split_of_molecules_that_are_no_longer_offered(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    load = FileSet.load
    monkeypatch.setattr(FileSet, "load", lambda s: (load(s)[0], load(s)[1][1:]))
    assert main(["evaluate", str(trained)]) == 1
    assert "no longer offers" in one_line(capsys, "evaluate")


def test_evaluate_without_test_molecules(
    tmp_path: Path, training: Training, capsys: Capture
) -> None:
    run = tmp_path / "run"
    assert main(training(run, "--epochs", "1", "--num_train", "180")) == 0
    assert f"next: hipnn evaluate {run} --part validation" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 1
    assert "test" in one_line(capsys, "evaluate")
    assert main(["evaluate", str(run), "--part", "validation"]) == 0


@pytest.mark.parametrize("command", ["evaluate", "plot"])
def test_a_folder_without_a_run(command: str, tmp_path: Path, capsys: Capture) -> None:
    assert main([command, str(tmp_path)]) == 1
    assert str(tmp_path) in one_line(capsys, command)


# --- predict ----------------------------------------------------------------------------------


@pytest.fixture
def xyz(tmp_path: Path) -> Path:
    path = tmp_path / "three.xyz"
    ase.io.write(path, [ase.build.molecule(name) for name in ("H2O", "CH4", "CH3OH")])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_predict_smiles(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["predict", "--model", str(trained), "CO", "N"]) == 0
    printed = capsys.readouterr().out
    assert "energy in eV" in printed and "CO" in printed
    data = [named.data for named in embedded(listed(["CO", "N"])) if isinstance(named, Named)]
    expected = [load_model(trained).energy_terms(d.z, d.pos).energy.item() for d in data]
    assert all(f"{energy:.4f}" in printed for energy in expected)
    assert expected[0] != pytest.approx(expected[1], rel=0.05)

    output = tmp_path / "out.csv"
    line = ["predict", "--model", str(trained), "CO", "N", "--output", str(output)]
    for unit, factor in (("eV", 1.0), ("kcal/mol", EV_IN_KCAL)):
        assert main([*line, "--unit", unit]) == 0
        assert capsys.readouterr().out == f"{output}\n"
        rows = read_csv(output)
        assert [row["name"] for row in rows] == ["CO", "N"]
        assert {row["unit"] for row in rows} == {unit}
        for row, energy in zip(rows, expected, strict=True):
            assert float(row["energy"]) == pytest.approx(energy * factor, rel=1e-6)
            orders = sum(float(row[f"E{n}"]) for n in range(3))
            assert orders == pytest.approx(float(row["energy"]), rel=1e-9)
            assert 0 < float(row["R"])
    assert float(rows[0]["R"]) != float(rows[1]["R"])
    found = []
    for seed in (0, 2):  # to RDKit 0 and 1 are the same
        line = ["predict", "--model", str(trained), "NCCO", "--output", str(output)]
        assert main([*line, "--seed", str(seed)]) == 0
        data = from_smiles("NCCO", seed)
        found.append(load_model(trained).energy_terms(data.z, data.pos).energy.item())
        assert float(read_csv(output)[0]["energy"]) == pytest.approx(found[-1], rel=1e-6)
    assert found[0] != pytest.approx(found[1], rel=1e-5)  # control


def test_a_terminal_gets_the_first_rows(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    library = tmp_path / "library.smi"
    for number, more in ((42, True), (40, False)):
        library.write_text("".join(f"C one{k}\n" for k in range(number)))
        assert main(["predict", "--model", str(trained), str(library)]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert len(re.findall(r"one\d+ ", printed)) == 40
        assert ("2 more rows: write them all with --output FILE.csv" in printed) == more
        assert ("more rows" in printed) == more


def test_so_many_reasons_are_listed() -> None:
    refused = [Refused(f"name{k}", f"reason {k}") for k in range(42)]
    told = complaint(refused, 50).splitlines()
    assert told == [
        "42 of 50 structures have no energy:",
        *(f"  reason {k}" for k in range(40)),
        "  and 2 more",
    ]
    assert complaint(refused[:40], 50).splitlines()[-1] == "  reason 39"  # control


def test_predict_file_to_extxyz(trained: Path, xyz: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.extxyz"
    line = ["predict", "--model", str(trained), str(xyz), "--output", str(output)]
    assert main([*line, "--unit", "kcal/mol"]) == 0
    before, after = ase.io.read(xyz, index=":"), ase.io.read(output, index=":")
    expected = energies(trained, before)
    for atoms, original, energy in zip(after, before, expected, strict=True):
        assert (atoms.numbers == original.numbers).all()
        np.testing.assert_allclose(atoms.positions, original.positions, atol=1e-6)
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-5)  # eV, always
        assert sum(atoms.info[f"E{n}"] for n in range(3)) == pytest.approx(energy, rel=1e-5)
    assert [atoms.info["name"] for atoms in after] == [f"{xyz}#{n}" for n in range(3)]

    assert main(["predict", "--model", str(trained), str(output), "--output",
                 str(tmp_path / "out.csv"), "--limit", "2"]) == 0  # fmt: skip
    rows = read_csv(tmp_path / "out.csv")
    assert [float(row["energy"]) for row in rows] == pytest.approx(expected[:2], rel=1e-5)


def test_predict_a_list_of_smiles(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    """What has no energy is named and has a row of its own; the others lose nothing by it."""
    library, output = tmp_path / "library.smi", tmp_path / "out.csv"
    library.write_text("CO methanol\n\nC1CC broken\nFC\nN\tammonia, dry\n")  # no F in training
    line = ["predict", "--model", str(trained), str(library), "--output", str(output)]
    assert main(line) == 1
    error = capsys.readouterr().err
    assert "2 of 4 structures have no energy" in error and "C1CC" in error
    assert "FC: atomic number 9" in error
    rows = read_csv(output)
    assert [row["name"] for row in rows] == ["methanol", "broken", "FC", "ammonia, dry"]
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    assert [bool(row["energy"]) for row in rows] == [True, False, False, True]
    assert main(["predict", "--model", str(trained), "CO", "N", "--output", str(output)]) == 0
    alone = read_csv(output)
    assert [row["energy"] for row in alone] == [rows[0]["energy"], rows[3]["energy"]]
    assert "error" not in alone[0]
    assert main([*line, "--limit", "1"]) == 0  # the others are not even read
    assert [row["name"] for row in read_csv(output)] == ["methanol"]
    library.write_text("C1CC broken\nFC\n")
    assert main(line) == 1  # and no energies of an earlier list stay
    assert [[*row] for row in read_csv(output)] == [["name", "error"]] * 2
    assert [row["name"] for row in read_csv(output)] == ["broken", "FC"]
    capsys.readouterr()
    library.write_text("\n")
    assert main(line) == 1
    assert "no structures were given" in capsys.readouterr().err


class Opened:
    """What runs code of its own when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


class Stored(InMemoryDataset):
    """A PyG data set of two molecules."""

    @property
    def processed_file_names(self) -> str:
        return "two.pt"

    def process(self) -> None:
        water, methane = ase.build.molecule("H2O"), ase.build.molecule("CH4")
        self.save(
            [
                Data(z=torch.tensor(a.numbers), pos=torch.tensor(a.positions).float())
                for a in (water, methane)
            ],
            self.processed_paths[0],
        )


def test_predict_a_pyg_data_set(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    Stored(str(tmp_path / "pyg"))
    get, taken = Stored.get, []
    monkeypatch.setattr(InMemoryDataset, "get", lambda s, n: taken.append(n) or get(s, n))
    assert len(listed([str(tmp_path / "pyg")], limit=1)) == 1
    assert set(taken) == {0}  # of a large data set the others would take a minute
    output = tmp_path / "out.csv"
    line = ["predict", "--model", str(trained), str(tmp_path / "pyg"), "--output", str(output)]
    assert main(line) == 0
    expected = energies(trained, [ase.build.molecule("H2O"), ase.build.molecule("CH4")])
    assert [float(row["energy"]) for row in read_csv(output)] == pytest.approx(expected, rel=1e-5)
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    bare = tmp_path / "pyg" / "processed" / "two.pt"
    kept = bare.read_bytes()
    data, slices, kind = torch.load(bare, weights_only=True)
    del data["z"], slices["z"]
    torch.save((data, slices, kind), bare)
    assert main(line) == 1
    assert "z is None: give it as a tensor" in capsys.readouterr().err
    bare.write_bytes(kept[:1000])
    assert main(line) == 1
    assert "two.pt is damaged, or holds more" in one_line(capsys, "predict")
    torch.save(Opened(tmp_path / "opened"), bare)
    assert main(line) == 1
    assert "two.pt is damaged, or holds more" in one_line(capsys, "predict")
    assert not (tmp_path / "opened").exists()
    torch.load(bare, weights_only=False)
    assert (tmp_path / "opened").exists()  # control: it would have run
    assert main(["predict", "--model", str(trained), str(tmp_path / "empty")]) == 1
    assert "0 files processed" in one_line(capsys, "predict")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["C1CC"], "C1CC"),
        (["O.O"], "fragments"),
        (["nosuch.foo"], "'nosuch.foo': parsing failed; nor is there a file of that name"),
        (["missing.xyz"], "missing.xyz does not exist"),
        (["FC"], "atomic number 9"),  # fluorine was not in the training data
        (["O", "--unit", "furlong"], "furlong"),
        (["O", "--output", "result.pdf"], "result.pdf must end in"),
        (["O", "--model", "nowhere"], "nowhere"),
    ],
)
def test_predict_refuses(
    arguments: list[str], message: str, trained: Path, capsys: Capture
) -> None:
    assert main(["predict", "--model", str(trained), *arguments]) == 1
    assert message in one_line(capsys, "predict")
    assert not Path("result.pdf").exists()


def test_without_a_compiler_everything_runs_in_plain_pytorch(
    trained: Path,
    training: Training,
    molecule_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    images = ase.io.read(molecule_file, index=":10")
    expected = energies(trained, images)
    for module in ("models.hipnn", "train.graphs"):
        monkeypatch.setattr(f"hipnn_pyg.{module}.available", lambda device: "no C++ compiler")
    model = load_model(trained)
    assert model.kernel_on(torch.device("cpu")) == "padded"
    np.testing.assert_allclose(energies(trained, images), expected, rtol=0, atol=1e-5)
    assert main(training(tmp_path / "run", "--epochs", "1", "--compile", "auto")) == 0
    assert "no C++ compiler: training runs in plain PyTorch" in capsys.readouterr().err
    assert main(["predict", "--model", str(trained), "CO"]) == 0
    model.kernel = "fused"
    with pytest.raises(KernelUnavailableError, match='no C\\+\\+ compiler: .* kernel="padded"'):
        model.kernel_on(torch.device("cpu"))


def test_what_was_evaluated_is_said(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    """Training molecules are not shown as the test set's, nor beside the paper's test errors."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert main(["evaluate", str(run), "--part", "train"]) == 0
    assert "train set, 160 molecules" in capsys.readouterr().out
    stored = json.loads((run / "results.json").read_text())
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert stored["paper"] == {} and stored["seconds"] == float(rows[-1]["seconds"])
    assert _errors(RunFolder(run)).title == "train set" and main(["plot", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert _errors(RunFolder(run)).title is None  # control
    before = (run / "model.json").read_text()
    shutil.rmtree(run / "plots")
    (run / "model.json").write_text(before.replace('"epoch": ', '"epoch": 1'))  # training went on
    assert main(["plot", str(run)]) == 0
    assert "earlier state of the model: run `hipnn evaluate`" in capsys.readouterr().err
    assert {path.stem for path in (run / "plots").iterdir()} == {"learning", "sensitivities"}
    (run / "model.json").write_text(before)
    assert main(["plot", str(run)]) == 0 and (run / "plots" / "parity.png").exists()
    whole = (run / "predictions.npz").read_bytes()
    for place in range(0, len(whole), 20):
        changed = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        (run / "predictions.npz").write_bytes(changed)
        with suppress(ModelFileError):
            _errors(RunFolder(run))
    (run / "predictions.npz").write_bytes(whole[:200])
    capsys.readouterr()
    assert main(["plot", str(run)]) == 1
    assert "predictions.npz is damaged" in capsys.readouterr().err


def test_a_finished_run_without_checkpoint_is_not_overwritten(
    trained: Path, training: Training, tmp_path: Path, capsys: Capture
) -> None:
    """As `hipnn reproduce` leaves them."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "checkpoint.pt").unlink()
    before = (run / "model.safetensors").read_bytes()
    assert main(training(run)) == 1
    assert "holds a run: go on with --resume, or choose another --run" in one_line(capsys, "train")
    options = ("--epochs", "8", "--batch_size", "8", "--learning_rate", "0.01")
    assert main([*training(run, *options), "--resume"]) == 1
    assert "is finished, its checkpoint gone: nothing to resume" in one_line(capsys, "train")
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "options, message",
    [
        (["--unit", "furlong"], "furlong"),
        (["--output", "result.pdf"], "must end in"),
        (["--output", "{file}/out.csv"], "file"),
    ],
    ids=["unit", "format", "folder"],
)
def test_predict_refuses_before_it_works(
    options: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """A long library is not embedded in vain."""
    file = tmp_path / "file"
    file.touch()
    line = ["predict", "--model", str(trained), "O"]
    assert main([*line, "--output", str(tmp_path / "new" / "folder" / "out.csv")]) == 0  # control
    assert (tmp_path / "new" / "folder" / "out.csv").is_file()
    monkeypatch.setattr("hipnn_pyg.cli.predict.listed", lambda *_, **__: pytest.fail("late"))
    capsys.readouterr()
    assert main([*line, *(option.format(file=file) for option in options)]) == 1
    assert message in one_line(capsys, "predict")


def test_debug_shows_where(trained: Path) -> None:
    with pytest.raises(ValueError, match="C1CC"):
        main(["--debug", "predict", "--model", str(trained), "C1CC"])


def test_a_crystal_has_an_energy_but_no_error_bar(tmp_path: Path, capsys: Capture) -> None:
    """The molecule beside it, control, has both; an image of it is within the cutoff."""
    crystal = ase.build.molecule("H2O", cell=[7, 7.5, 8], pbc=True)
    molecule = ase.build.molecule("H2O")
    path, output = tmp_path / "both.extxyz", tmp_path / "energies.extxyz"
    ase.io.write(path, [crystal, molecule])
    command = ["predict", "--model", "qm9-u0", str(path)]
    assert main([*command, "--output", str(output)]) == 0
    first, second = found = ase.io.read(output, index=":")
    for atoms, given in zip(found, (crystal, molecule), strict=True):
        given.calc = HIPNNCalculator("qm9-u0", i_know=True)
        assert atoms.get_potential_energy() == pytest.approx(given.get_potential_energy(), abs=1e-5)
        assert np.allclose(atoms.cell, given.cell) and (atoms.pbc == given.pbc).all()
    assert abs(first.get_potential_energy() - second.get_potential_energy()) > 1e-3
    assert first.info["geometry"] == "periodic structure" and "q90" not in first.info
    assert second.info["q90"] > 0
    capsys.readouterr()
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "periodic structure" in printed
    assert "no error bars: not calibrated for this, only for: geometry as given" in printed
    assert main(["explain", str(path), "--index", "0", "--model", "qm9-u0", "--text"]) == 1
    assert "is periodic, which the page does not show" in one_line(capsys, "explain")


# --- what must not pass in silence --------------------------------------------------------------


def test_another_file_of_the_same_name_is_refused(
    copy: Path, tmp_path: Path, molecule_file: Path, training: Training, capsys: Capture
) -> None:
    """The split is one of places in the file: other frames there may have been trained on."""
    images = ase.io.read(molecule_file, index=":")
    ase.io.write(tmp_path / "same.extxyz", images)
    ase.io.write(tmp_path / "turned.extxyz", images[::-1])
    assert main(["evaluate", str(copy), "--root", str(tmp_path / "same.extxyz")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(copy), "--root", str(tmp_path / "turned.extxyz")]) == 1
    assert "does not hold the structures" in one_line(capsys, "evaluate")
    energies = [atoms.get_potential_energy() for atoms in images]
    for atoms, energy in zip(images, energies, strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy + 0.1)
    ase.io.write(tmp_path / "shifted.extxyz", images)
    assert main(training(copy, *SAME, "--path", str(tmp_path / "shifted.extxyz"))) == 1
    assert "positions and labels" in one_line(capsys, "train")


def test_an_element_without_training_structures_is_named(tmp_path: Path, capsys: Capture) -> None:
    images = ase.io.read(write_molecules(tmp_path / "some.extxyz"), index=":")
    rare = molecule("CH3SH")
    rare.calc = SinglePointCalculator(rare, energy=-11_000.0)
    split = random_split(201, 160, 20, seed=0)
    for part, warns in ((split.test, True), (split.train, False)):
        frames = [*images]
        frames.insert(int(part[0]), rare)
        path = tmp_path / f"rare{warns}.extxyz"
        ase.io.write(path, frames)
        run = tmp_path / f"run{warns}"
        assert main(train_options(path, run, "--epochs", "1", "--batch_size", "32")) == 0
        assert ("S occurs in no training structure" in capsys.readouterr().err) == warns


def test_predict_prints_all_digits_and_names(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Neither a narrow terminal nor brackets in a SMILES take anything away."""
    monkeypatch.setenv("COLUMNS", "40")
    smiles = ["C1CC[NH]C1", "C" * 300 + "[O-]"]  # the second is an ion, and no file name
    assert main(["predict", "--model", str(trained), *smiles, "C", "--unit", "meV"]) == 1
    shown = capsys.readouterr()
    lines = [line.strip() for line in shown.out.splitlines()]
    rows = [line.split() for line in lines if line.startswith(("C1CC", "C "))]
    assert "1 of 3 structures" in shown.err or "structures have no energy" in shown.err
    assert all(re.fullmatch(r"-?\d+\.\d+", number) for row in rows for number in row[1:])
    assert {len(row) for row in rows} == {6}  # name, energy, E0, E1, E2, R
    assert "[NH]" in "".join(shown.out.split())


@pytest.mark.parametrize("smiles", ["CC[O-]", "C[NH3+]", "C[CH2]", "", "C C", "C\nO"])
def test_ions_and_radicals_have_no_energy(smiles: str, trained: Path, capsys: Capture) -> None:
    assert main(["predict", "--model", str(trained), smiles]) == 1
    assert "SMILES" in one_line(capsys, "predict")


def test_every_record_of_an_sdf_file(trained: Path, tmp_path: Path) -> None:
    images = [molecule(name) for name in ("CH3OH", "H2O", "CH3CH2OH")]
    for number, atoms in enumerate(images):
        ase.io.write(tmp_path / f"{number}.sdf", atoms, format="sdf")
    text = "".join((tmp_path / f"{number}.sdf").read_text() for number in range(3))
    (tmp_path / "all.sdf").write_text(text)
    output = tmp_path / "out.csv"
    command = ["predict", "--model", str(trained), str(tmp_path / "all.sdf")]
    assert main([*command, "--output", str(output)]) == 0
    found = [float(row["energy"]) for row in read_csv(output)]
    np.testing.assert_allclose(found, energies(trained, images), rtol=1e-4)
    ion = Chem.MolToMolBlock(Chem.MolFromSmiles("[OH-]")) + "$$$$\n"
    (tmp_path / "all.sdf").write_text(ion + text)  # one of four, named in its place
    assert main([*command, "--output", str(output)]) == 1
    first, *rest = read_csv(output)
    assert "charge -1" in first["error"] and not first["energy"]
    assert [float(row["energy"]) for row in rest] == found


def test_structures_with_names_keep_them(trained: Path, tmp_path: Path) -> None:
    """Titles of SDF records and names in extxyz, if all have one; else their numbers."""
    images = [molecule(name) for name in ("CH3OH", "H2O", "CH4")]
    records = [Chem.AddHs(Chem.MolFromSmiles(smiles)) for smiles in ("CO", "O", "C")]
    for atoms, mol, name in zip(images, records, ("methanol", "", "methane"), strict=True):
        atoms.info["name"] = name or "water"
        rdDistGeom.EmbedMolecule(mol, randomSeed=0)
        mol.SetProp("_Name", name)
    sdf, named, other = (tmp_path / name for name in ("a.sdf", "b.extxyz", "c.extxyz"))
    sdf.write_text("".join(Chem.MolToMolBlock(mol) + "$$$$\n" for mol in records))
    ase.io.write(named, images)
    del images[1].info["name"]
    ase.io.write(other, images)
    output = tmp_path / "out.csv"
    inputs = [str(path) for path in (sdf, named, other)]
    assert main(["predict", "--model", str(trained), *inputs, "--output", str(output)]) == 0
    found = [row["name"] for row in read_csv(output)]
    assert found[:3] == ["methanol", f"{sdf}#1", "methane"]
    assert found[3:6] == ["methanol", "water", "methane"]
    assert found[6:] == [f"{other}#{number}" for number in range(3)]


def test_names_survive_extxyz(trained: Path, tmp_path: Path) -> None:
    """ASE reads numbers, lists and truth values where names look like them."""
    names = ["C/C=C\\C", "ethanol", "00123", "1e5", "7 8", "F", "true", "x=", "C=C", 'a"b']
    names += ["_JSON 3"]
    library, output = tmp_path / "library.smi", tmp_path / "out.extxyz"
    library.write_text("".join(f"C {name}\n" for name in names))
    assert main(["predict", "--model", str(trained), str(library), "--output", str(output)]) == 0
    found = [atoms.info for atoms in ase.io.read(output, index=":")]
    assert [info["name"] for info in found] == names
    assert all(type(info["name"]) is str and info["R"] > 0 for info in found)
    assert "name=ethanol " in output.read_text()  # plain where that will do


def test_an_energy_that_is_no_number(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    path, output = tmp_path / "odd@1.extxyz", tmp_path / "out.csv"
    frame = "1\nProperties=species:S:1:pos:R:3 {}\nO 0 0 0\n"
    labels = ("energy=-2.0", "energy=abc", 'energy="1 2 3"', "")
    path.write_text("".join(map(frame.format, labels)))
    assert main(["predict", "--model", str(trained), str(path), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert "2 of 4 structures" in error and "structure 1: structure O: its energy is 'abc'" in error
    assert [bool(row["energy"]) for row in read_csv(output)] == [True, False, False, True]
    options = ("--num_train", "2", "--num_validation", "1")
    assert main(train_options(path, tmp_path / "run", *options)) == 1
    assert "odd@1.extxyz, structure 1" in one_line(capsys, "train")


def test_a_failed_write_leaves_the_old_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    output = tmp_path / "out.extxyz"
    line = ["predict", "--model", str(trained), "C", "--output", str(output)]
    assert main(line) == 0
    before = output.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main([*line, "--seed", "1"]) == 1
    assert "No space left" in capsys.readouterr().err and output.read_bytes() == before


def test_without_hierarchy_r_says_nothing(
    trained: Path, training: Training, tmp_path: Path, capsys: Capture
) -> None:
    flat = tmp_path / "flat"
    assert main(training(flat, "--epochs", "1", "--hierarchical", "false")) == 0
    for run, words, others in (
        (flat, "no hierarchy: R says nothing", "Eq. 18"),
        (trained, "R: non-hierarchicality, Eq. 18", "says nothing"),
    ):
        capsys.readouterr()
        assert main(["predict", "--model", str(run), "C"]) == 0
        shown = capsys.readouterr().out
        assert words in shown and others not in shown


def test_interrupted_before_it_begins(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hipnn_pyg.cli.parser", interrupted)
    assert main(["predict", "C"]) == 130
    assert capsys.readouterr().err == "hipnn: stopped\n"
