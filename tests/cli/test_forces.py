"""``hipnn train ... --forces`` and ``hipnn evaluate``, from the command line to the model card."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa
from torch_geometric.datasets import MD17

from hipnn_pyg import radius_graph_pbc
from hipnn_pyg.cli import main, parser
from hipnn_pyg.cli.plot import draw_components, draw_learning
from hipnn_pyg.cli.run_folder import RunFolder
from hipnn_pyg.cli.train import FORCES
from hipnn_pyg.interfaces.ase import HIPNNCalculator, check_is_potential
from hipnn_pyg.models.files import read_card

Capture = pytest.CaptureFixture[str]
TINY = (
    "--hidden_channels 5 --num_onsite 0 --num_sensitivities 5 --cutoff 5 --device cpu "
    "--compile off --batch_size 10 --learning_rate 0.01 --validate_every 1"
).split()


def write_file(path: Path, start: Atoms, number: int = 80) -> Path:
    """Rattled copies with energies (eV) = -10 - sum over pairs of 3 exp(-r / 1 Å), forces and, in
    crystals, stress."""
    images = []
    for count in range(number):
        atoms = start.copy()
        atoms.rattle(0.1, seed=count)
        pos = torch.tensor(atoms.positions).requires_grad_()
        strain = torch.zeros(3, 3).double().requires_grad_()
        (j, i), shift = radius_graph_pbc(pos, 12.0, torch.tensor(atoms.cell.array), atoms.pbc)
        r_ij = (pos[j] - pos[i] + shift) @ (torch.eye(3) + strain)
        r = torch.linalg.vector_norm(r_ij, dim=1)
        energy = -10.0 - 1.5 * torch.exp(-r).sum()  # each pair is there twice
        slope, virial = torch.autograd.grad(energy, (pos, strain))
        labels = {"energy": float(energy.detach()), "forces": -slope.numpy()}
        if atoms.pbc.all():
            stress = virial.numpy() / atoms.get_volume()
            labels["stress"] = full_3x3_to_voigt_6_stress(stress)
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
    return path


@pytest.fixture(scope="module")
def water(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("water") / "water.extxyz", ase.build.molecule("H2O"))


@pytest.fixture(scope="module")
def crystal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its cell is smaller than the cutoff."""
    start = ase.build.bulk("LiH", "cesiumchloride", a=2.5)
    return write_file(tmp_path_factory.mktemp("crystal") / "crystal.extxyz", start)


@pytest.fixture(params=["water", "crystal"])
def file(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def file_options(path: Path, run: Path, *more: str) -> list[str]:
    return [
        *("train", "file", "--path", str(path), "--num_train", "50", "--num_validation", "15"),
        *("--run", str(run), "--epochs", "8", *TINY, *more),
    ]


def place_md17(root: Path, name: str, data_dir: Path | None) -> None:
    """A trajectory where PyG looks for it: the real file, or 300 frames of the same form."""
    revised, file = name.startswith("revised"), MD17.file_names[name]
    folder = root / ("raw/rmd17/npz_data" if revised else f"{name}/raw")
    folder.mkdir(parents=True)
    if data_dir is not None:
        shutil.copy(data_dir / ("rmd17" if revised else "md17") / file, folder)
        return
    random, keys = np.random.default_rng(0), ["z", "R", "E", "F"]
    if revised:
        keys = ["nuclear_charges", "coords", "energies", "forces"]
    ring = np.exp(1j * np.arange(6) * np.pi / 3)
    still = np.concatenate([1.39 * ring, 2.48 * ring])
    still = np.stack([still.real, still.imag, 0 * still.real], axis=1)
    moved = random.normal(scale=0.05, size=(300, 12, 3))
    energies = -146_000 + 100 * (moved**2).sum((1, 2))
    values = [np.array([6] * 6 + [1] * 6), still + moved, energies, -200 * moved]
    np.savez(folder / file, **dict(zip(keys, values, strict=True)))


# -- training and testing --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["benzene", "revised benzene"])
def test_md17(name: str, tmp_path: Path, data_dir: Path | None, capsys: Capture) -> None:
    place_md17(tmp_path / "md17", name, data_dir)
    run = tmp_path / "run"
    options = [
        *("train", "md17", "--root", str(tmp_path / "md17"), "--molecule", name, "--forces"),
        *("--num_train", "100", "--num_validation", "50", "--epochs", "3", "--run", str(run)),
    ]
    assert main([*options, *TINY]) == 0
    assert "of forces" in capsys.readouterr().out
    card = read_card(run)
    assert card["trained_on_forces"] is True
    check_is_potential(card)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    best = rows[card["epoch"] - 1]
    assert float(best["validation_force_mae"]) == card["validation_force_mae"]
    assert all(float(row["train_force_mae"]) > 0 for row in rows)

    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())
    assert "force MAE (kcal/mol/Å)" in printed and f"{results['forces']['mae']:.3f}" in printed
    assert results["forces"]["unit"] == "kcal/mol/Å" and results["paper"] == {}
    assert results["forces"]["num"] == 36 * results["num"]
    assert 0 < results["forces"]["mae"] <= results["forces"]["rmse"]


def test_energies_alone_can_be_tested_on_forces(
    tmp_path: Path, data_dir: Path | None, capsys: Capture
) -> None:
    place_md17(tmp_path / "md17", "benzene", data_dir)
    run = tmp_path / "run"
    options = [
        *("train", "md17", "--root", str(tmp_path / "md17"), "--num_train", "100"),
        *("--num_validation", "50", "--epochs", "1", "--run", str(run), *TINY),
    ]
    assert main(options) == 0
    card = read_card(run)
    assert card["trained_on_forces"] is False
    check_is_potential(card)
    assert main(["evaluate", str(run)]) == 0
    assert "force" not in capsys.readouterr().out
    assert "forces" not in json.loads((run / "results.json").read_text())
    assert main(["evaluate", str(run), "--forces"]) == 0
    assert "force RMSE" in capsys.readouterr().out
    assert json.loads((run / "results.json").read_text())["forces"]["mae"] > 0

    forces = [*options, "--forces", "--batch_size", "10", "--start", str(run)]
    forces[forces.index("--run") + 1] = str(tmp_path / "forces")
    assert main([*forces, "--seed", "1"]) == 1  # control: frames that were learned are no test
    assert "another split of these structures" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "forces", ignore_errors=True)
    assert main(forces) == 0


def test_file(file: Path, tmp_path: Path, capsys: Capture) -> None:
    """Forces in eV/Å are learned, and the calculator gives them back."""
    with_forces, without = tmp_path / "forces", tmp_path / "energies"
    assert main(file_options(file, with_forces, "--forces")) == 0
    assert main(file_options(file, without)) == 0
    for run in (with_forces, without):
        assert main(["evaluate", str(run), "--forces"]) == 0
    capsys.readouterr()
    errors = [
        json.loads((run / "results.json").read_text())["forces"]["mae"]
        for run in (with_forces, without)
    ]
    assert errors[0] < 0.7 * errors[1]  # control: learned from energies alone
    card = read_card(with_forces)
    assert card["trained_on_forces"] is True
    assert main(["calibrate", str(with_forces), "--num_calibration", "8"]) == 1
    why = "learned periodic structures" if file.stem == "crystal" else "39 molecules or more"
    assert why in capsys.readouterr().err

    test = torch.from_numpy(np.load(with_forces / "split.npz")["test"])
    difference = []
    for number in test.tolist():
        atoms = ase.io.read(file, index=number)
        labels = atoms.get_forces()
        atoms.calc = HIPNNCalculator(with_forces)
        difference.append(np.abs(atoms.get_forces() - labels).mean())
    assert np.mean(difference) * 23.060548 == pytest.approx(errors[0], rel=1e-4)


def test_other_labels_are_of_the_same_structures(
    file: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Energies first, then forces, or the other way: on another split some were learned."""
    crystals = ("--stress",) if file.stem == "crystal" else ()
    kinds: list[tuple[str, ...]] = [("--epochs", "1"), ("--epochs", "1", "--forces", *crystals)]
    for number, (first, then) in enumerate((kinds, kinds[::-1])):
        runs = [tmp_path / f"{name}{number}" for name in ("first", "same", "other")]
        assert main(file_options(file, runs[0], *first)) == 0
        then = (*then, "--start", str(runs[0]))
        assert main(file_options(file, runs[1], *then)) == 0  # control: the same split
        capsys.readouterr()
        assert main(file_options(file, runs[2], *then, "--seed", "1")) == 1
        assert "learned another split of these structures" in capsys.readouterr().err


def test_stress(crystal: Path, tmp_path: Path, capsys: Capture) -> None:
    """Learned in eV/Å^3, tested in GPa; the calculator gives it back, with ASE's sign and order."""
    run, blind = tmp_path / "stress", tmp_path / "forces"
    weight = ("--stress_weight", "10", "--epochs", "30")
    assert main(file_options(crystal, run, "--forces", "--stress", *weight)) == 0
    assert "of stress" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    found = json.loads((run / "results.json").read_text())["stress"]
    assert found["unit"] == "GPa" and found["num"] == 15 * 9
    printed = capsys.readouterr().out
    assert "stress MAE (GPa)" in printed and f"{found['mae']:.3f}" in printed
    card = read_card(run)
    assert card["trained_on_stress"] is True and card["validation_stress_unit"] == "GPa"
    assert main(file_options(crystal, blind, "--forces")) == 0
    assert read_card(blind)["trained_on_stress"] is False

    def error(run: Path) -> float:
        found = []
        for number in np.load(run / "split.npz")["test"].tolist():
            atoms = ase.io.read(crystal, index=number)
            label = atoms.get_stress(voigt=False)
            atoms.calc = HIPNNCalculator(run)
            found.append(np.abs(atoms.get_stress(voigt=False) - label).mean())
        return float(np.mean(found)) / GPa

    assert error(run) == pytest.approx(found["mae"], rel=1e-4)
    assert main(["plot", str(run)]) == 0
    assert {"forces", "stress", "parity"} <= {path.stem for path in (run / "plots").iterdir()}
    results = json.loads((run / "results.json").read_text())
    for name, unit in (("forces", "kcal/mol/Å"), ("stress", "GPa")):
        axes = draw_components(RunFolder(run), name).axes[0]
        assert axes.get_xlabel() == f"Target ({unit})"
        assert f"MAE {results[name]['mae']:.3g} {unit}" in axes.texts[0].get_text()
    labels = [axes.get_ylabel() for axes in draw_learning(RunFolder(run)).axes]
    assert labels[:3] == ["Error (kcal/mol)", "Error (kcal/mol/Å)", "Error (GPa)"]
    assert error(run) < 0.2 * error(blind)  # control: forces alone do not tell the pressure


def test_one_validation_is_drawn(water: Path, tmp_path: Path) -> None:
    """At the last epoch, where the learning rate is 0, which no logarithmic axis has."""
    run = tmp_path / "run"
    assert main(file_options(water, run, "--forces", "--epochs", "1")) == 0
    assert main(["plot", str(run)]) == 0
    assert (run / "plots" / "learning.png").stat().st_size > 0
    assert len(draw_learning(RunFolder(run)).axes) == 3  # energies, forces, loss


def test_ensemble(water: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    assert main(file_options(water, run, "--forces", "--ensemble", "3", "--epochs", "1")) == 0
    assert "forces" in capsys.readouterr().out
    maes = {read_card(run / f"member-{k}")["validation_force_mae"] for k in range(3)}
    assert len(maes) == 3


def test_two_processes_train_what_one_does(
    file: Path, tmp_path: Path, hipnn: Callable[[Sequence[str]], Any]
) -> None:
    """Each has its share of every mini-batch; sums, sigma_F and forces are those of all."""
    learned = ["--forces", "--epochs", "2"]
    columns = ["train_loss", "train_force_mae", "validation_mae", "validation_force_mae"]
    if file.stem == "crystal":
        learned.append("--stress")
        columns += ["train_stress_mae", "validation_stress_mae"]
    assert main(file_options(file, tmp_path / "one", *learned)) == 0
    options = file_options(file, tmp_path / "two", *learned, "--devices", "2")
    process = hipnn(options)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    one, two = (
        list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("one", "two")
    )
    for ours, theirs in zip(two, one, strict=True):
        for name in columns:
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3), name


# -- settings --------------------------------------------------------------------------------------


def test_forces_have_their_own_defaults(water: Path, tmp_path: Path) -> None:
    """--forces changes defaults, wherever it stands, and no option that is given."""
    short = ["--epochs", "1", "--compile", "off", "--num_train", "4", "--num_validation", "4"]
    start = ["train", "file", "--path", str(water), *short]
    small = ["--hidden_channels", "4", "--num_onsite", "0"]

    def settings(name: str, *options: str) -> dict[str, Any]:
        assert main([*start, "--run", str(tmp_path / name), *options]) == 0
        return yaml.safe_load((tmp_path / name / "config.yaml").read_text())

    plain, forces = settings("plain", *small), settings("forces", "--forces", *small)
    behind = settings("behind", *small, "--batch_size", "30", "--forces")
    assert plain["forces"] is False and forces["forces"] is True
    assert forces["batch_size"] == FORCES["batch_size"] != plain["batch_size"] == 30
    assert forces["hidden_channels"] == plain["hidden_channels"] == 4
    assert behind == {**forces, "batch_size": 30}
    again = settings("again", "--config", str(tmp_path / "forces" / "config.yaml"))
    assert again == forces


DOCUMENTED = {
    "hidden_channels": "(.+) features",
    "num_interactions": "(.+) interactions",
    "num_onsite": "(.+) on-site layers",
    "num_sensitivities": "(.+) sensitivities",
    "batch_size": "mini-batches of (.+)",
    "learning_rate": "learning rate (.+)",
    "lambda_r": "λ_R (.+)",
    "energy_weight": "an energy weight of (.+)",
    "epochs": "(.+) epochs",
    "validate_every": "a validation after every (.+)",
}
"""How docs/training.md says what ``--forces`` changes."""


def number(text: str) -> float:
    """1,000 or 2·10⁻³."""
    text = text.replace(",", "").replace("·10", "e").replace("10⁻", "1e⁻")
    return float(text.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))


@pytest.mark.parametrize(
    "data", ["md17", "file --path my.xyz --num_train 9 --num_validation 1"], ids=["md17", "file"]
)
def test_the_documentation_says_what_forces_change(data: str) -> None:
    """All of it, and nothing else."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (sentence,) = re.findall(r"`--forces` (\d+ features.*?)\. ", " ".join(text.split()))
    parts = re.split(", | and ", sentence)
    said = {
        name: number(found[1])
        for name, form in DOCUMENTED.items()
        for part in parts
        if (found := re.fullmatch(form, part))
    }
    assert len(said) == len(parts)
    plain, forces = (
        parser().parse_args(["train", *data.split(), *more])["train"][data.split()[0]].as_dict()
        for more in ((), ("--forces",))
    )
    changed = {name: value for name, value in forces.items() if value != plain[name]}
    assert changed.pop("forces") is True
    assert changed == said


def test_runs_from_before_there_were_forces(water: Path, tmp_path: Path, capsys: Capture) -> None:
    """Their configurations lack the new settings, which then have the values they had."""
    run, new = tmp_path / "run", ("forces", "energy_weight", "force_weight", "validate_every")
    new += ("stress", "stress_weight")
    assert main(file_options(water, run)) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    old = {name: value for name, value in config.items() if name not in new}
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    assert main(["evaluate", str(run)]) == 0
    assert main([*file_options(water, run), "--resume"]) == 0
    assert main([*file_options(water, run, "--force_weight", "2.0"), "--resume"]) == 1
    assert "trained with force_weight = 1.0, not 2.0" in capsys.readouterr().err


def test_what_cannot_be(water: Path, tmp_path: Path, capsys: Capture) -> None:
    bare = ase.io.read(water, index=":")
    bare[7].calc = SinglePointCalculator(bare[7], energy=-14.0)
    ase.io.write(tmp_path / "bare.extxyz", bare, format="extxyz")
    for options, message in (
        (file_options(tmp_path / "bare.extxyz", tmp_path / "a", "--forces"), "no force to learn"),
        (file_options(water, tmp_path / "c", "--force_weight", "-1"), "force_weight must be at"),
        (file_options(water, tmp_path / "d", "--forces", "--stress"), "no structure periodic in"),
        (file_options(water, tmp_path / "e", "--stress"), "give --forces with --stress"),
    ):
        assert main(options) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "qm9", "--forces"])
