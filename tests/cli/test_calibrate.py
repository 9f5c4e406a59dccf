"""``hipnn calibrate``, ``predict`` with error bars, ``ship`` and the models of the package."""

from __future__ import annotations

import csv
import json
import re
import shlex
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
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from hipnn_pyg import (
    HIPNN,
    ModelFileError,
    PackedMolecules,
    StructureError,
    load_model,
    save_model,
)
from hipnn_pyg.cli import calibrate, main, parser
from hipnn_pyg.cli.model_card import command as command_of
from hipnn_pyg.cli.model_card import model_card
from hipnn_pyg.cli.run_folder import RESUME_MAY_CHANGE, RunFolder
from hipnn_pyg.data.embedded import Embedded
from hipnn_pyg.data.molecules import from_smiles
from hipnn_pyg.data.qm9 import QM9Pack
from hipnn_pyg.data.sets import QM9Set, split
from hipnn_pyg.data.splits import Split
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.models import files, pretrained, pretrained_models
from hipnn_pyg.models.files import member_folders, read_card
from hipnn_pyg.train import Network, Training
from hipnn_pyg.uncertainty import CalibratedModel, FeatureStatistics
from hipnn_pyg.uncertainty.scores import auc
from hipnn_pyg.uncertainty.structures import drugs, stretched
from hipnn_pyg.units import convert

from .conftest import SMILES, train_options, write_molecules

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_molecules(tmp_path_factory.mktemp("many") / "many.extxyz", 400)


@pytest.fixture(scope="session")
def uncalibrated(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 300 test molecules."""
    run = tmp_path_factory.mktemp("calibrated") / "run"
    options = ("--num_train", "80", "--epochs", "12", "--batch_size", "8")
    assert main(train_options(many, run, *options, "--learning_rate", "0.01")) == 0
    return run


def with_smiles(members: list[Path], *rest: object) -> calibrate.Halves:
    """What QM9 would give: names, and a SMILES of every molecule."""
    halves = TAKE(members, *rest)  # type: ignore[arg-type]
    number = len(halves.molecules)
    names = [f"named_{k}" for k in range(number)]
    return halves._replace(smiles=[SMILES[k % 4] for k in range(number)], names=names)


TAKE = calibrate.take_halves
OPTIONS = ("--num_calibration", "160", "--num_smiles", "60")


@pytest.fixture(scope="session")
def calibrated(uncalibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(uncalibrated, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "take_halves", with_smiles)
        patch.setattr("hipnn_pyg.uncertainty.assess.drugs", lambda: drugs()[4:8])
        assert main(["calibrate", str(run), *OPTIONS]) == 0
    return run


def one_line(capsys: Capture, command: str) -> str:
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"hipnn {command}: ")
    assert shown.err.count("\n") == 1 and "Traceback" not in shown.err
    return shown.err


# --- calibrate ---------------------------------------------------------------------------------


def test_calibration_and_test_molecules_are_apart(calibrated: Path) -> None:
    report = json.loads((calibrated / "calibration.json").read_text())
    halves = TAKE([calibrated], 160, 0, None)
    run = Split.load(calibrated / "split.npz")
    parts = [set(part.tolist()) for part in (halves.calibration, halves.test)]
    assert parts[0] | parts[1] == set(run.test.tolist()) and not parts[0] & parts[1]
    assert [len(part) for part in parts] == [160, 140]
    assert report["calibration_split_sha256"] == halves.checksum
    other = TAKE([calibrated], 160, 1, None)
    assert not torch.equal(other.calibration, halves.calibration)  # control


def test_qm9_gives_names_and_smiles_as_it_is_loaded(
    qm9_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to know what was learned, once on its own geometries."""
    chosen, folder = QM9Set(str(qm9_root), num_train=45, num_validation=10), RunFolder(tmp_path)
    packed, kept = chosen.load()
    folder.write_config(chosen, Network(), Training())
    split(chosen, len(packed), kept, 0).save(folder.split)
    loaded: list[Path] = []

    class Counted(QM9Pack):
        def __init__(self, root: Path) -> None:
            loaded.append(root)
            super().__init__(root)

    monkeypatch.setattr("hipnn_pyg.data.qm9.QM9Pack", Counted)
    halves = TAKE([tmp_path], 40, 0, None)
    assert loaded == [qm9_root] * 2
    assert halves.names == [f"gdb_{k + 1}" for k in range(100)]
    assert halves.smiles == [*SMILES] * 25
    assert torch.equal(halves.molecules.pos, packed.pos) and len(halves.calibration) == 40


def test_report_is_what_the_test_molecules_say(calibrated: Path, many: Path) -> None:
    report = json.loads((calibrated / "calibration.json").read_text())
    halves = TAKE([calibrated], 160, 0, None)
    images = ase.io.read(many, index=":")
    chosen = [images[k] for k in halves.test.tolist()]
    data = [Data(z=torch.tensor(a.numbers), pos=torch.tensor(a.positions).float()) for a in chosen]
    out = CalibratedModel.load(calibrated).predict(data, "given")
    error = np.abs(out.energy.numpy() - [a.get_potential_energy() for a in chosen])
    given = report["geometries"]["given"]
    assert report["unit"] == "kcal/mol"
    mae = convert(float(error.mean()), "eV", "kcal/mol")
    assert given["statistics"]["mae"] == pytest.approx(mae, rel=1e-4)
    assert out.judgement is not None
    width = out.judgement.half_width.numpy()
    np.testing.assert_allclose(given["coverage"], (error[:, None] <= width).mean(0), atol=0.008)
    np.testing.assert_allclose(
        given["mean_half_width"], convert(width.mean(0), "eV", "kcal/mol"), rtol=1e-4
    )
    np.testing.assert_allclose(given["coverage"], given["levels"], atol=0.12)
    classes = {row["class"]: row for row in report["classes"]}
    assert classes["12+ heavy atoms"]["geometry"] == "rdkit"
    order = torch.randperm(140, generator=torch.Generator().manual_seed(0)).tolist()
    first, rest = ([data[k] for k in part] for part in (order[:70], order[70:]))
    seen = CalibratedModel.load(calibrated).predict(rest, "given")
    for name, by in (("unchanged (control)", 0.0), ("one bond − 0.15 Å", -0.15)):
        changed = [stretched(one, by, k) for k, one in enumerate(first)]
        found = CalibratedModel.load(calibrated).predict([d for d in changed if d], "given")
        for key, usual, theirs in (
            ("auc", seen.judgement.distance, found.judgement.distance),
            ("auc_of_R", seen.seen.nonhierarchicality, found.seen.nonhierarchicality),
        ):
            expected = auc(usual.double().numpy(), theirs.double().numpy()).auc
            assert classes[name][key] == pytest.approx(expected, abs=2e-3)
    assert classes["unchanged (control)"]["auc"] == pytest.approx(0.5, abs=0.12)
    rotated = classes["rotated (control)"]["auc"]
    assert rotated == pytest.approx(classes["unchanged (control)"]["auc"], abs=0.005)
    assert classes["one bond + 0.3 Å"]["auc"] > 0.75
    assert report["comparison"].keys() == {"given", "rdkit"} == report["geometries"].keys()
    for rows in report["comparison"].values():
        assert [row["kind"] for row in rows] == ["constant", "R"]
        assert [row["crps_relative"] for row in rows] == [1, 1]  # too few for two bins of R
        assert rows[0]["mean_half_width_90"] == rows[1]["mean_half_width_90"]
    width_90 = report["comparison"]["given"][0]["mean_half_width_90"]
    assert width_90 == pytest.approx(given["mean_half_width"][1], rel=1e-6)
    constant = report["comparison"]["given"][0]["crps"]  # of an exponential's constant width, say
    assert 0.3 * mae < constant < mae
    assert (calibrated / "plots" / "error_bars.png").read_bytes().startswith(b"\x89PNG")


def test_what_calibrate_prints(calibrated: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    shutil.copytree(calibrated, run)
    assert main(["calibrate", str(run), "--num_calibration", "160"]) == 0  # no SMILES this time
    out = capsys.readouterr().out
    for phrase in ("50 %", "90 %", "95 %", "quartile 4 of R", "CRPS", "AUC", "one bond"):
        assert phrase in out
    assert "kcal/mol" in out and "RDKit" not in out
    line = ["calibrate", str(run), "--num_calibration", "160"]
    assert main([*line, "--seed", "1", "--num_smiles", "0"]) == 0
    report = json.loads((run / "calibration.json").read_text())
    assert report["calibration_split_sha256"] == TAKE([run], 160, 1, None).checksum
    assert main([*line, "--root", str(tmp_path / "none.extxyz")]) == 1
    assert "none.extxyz" in one_line_of(capsys)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--num_calibration", "300"], "num_calibration = 300 is not possible"),
        (["--num_calibration", "0"], "39 molecules or more calibrate, 4 or more test"),
        (["--num_calibration", "297"], "and the run's test set has 300"),
        (["--num_calibration", "38"], "num_calibration = 38"),
    ],
)
def test_too_few_molecules(
    options: list[str], message: str, uncalibrated: Path, capsys: Capture
) -> None:
    assert main(["calibrate", str(uncalibrated), *options]) == 1
    assert message in one_line(capsys, "calibrate")
    assert not (uncalibrated / "error_bars.json").exists()


def test_as_many_smiles_as_asked_for() -> None:
    for number, most in ((41, 20), (41, 41), (41, 50), (20_000, 10_000), (10_397, 10_000)):
        some = calibrate._some(torch.arange(number), most)
        assert len(some) == min(number, most) and len(some.unique()) == len(some)
        assert some.diff().max() - some.diff().min() <= 1  # evenly, from the first to the last
        assert some[0] == 0 and some[-1] >= number - 1 - number / len(some)
    assert len(calibrate._some(torch.arange(41), 0)) == 0


def test_features_are_those_of_the_training_molecules(calibrated: Path) -> None:
    """Distances of the calibration molecules would be too small if they had made the features."""
    halves, (model,) = TAKE([calibrated], 160, 0, None), CalibratedModel.load(calibrated).models
    bars = CalibratedModel.load(calibrated).error_bars
    assert bars is not None
    learned = Split.load(calibrated / "split.npz").train
    expected = FeatureStatistics.fit(model, halves.molecules.subset(learned))
    torch.testing.assert_close(bars.statistics.mean, expected.mean, rtol=1e-6, atol=1e-6)
    other = FeatureStatistics.fit(model, halves.molecules.subset(halves.calibration))  # control
    assert not torch.allclose(bars.statistics.mean, other.mean, rtol=1e-3, atol=1e-3)


def test_too_few_smiles_that_rdkit_can_make(
    uncalibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Whatever RDKit fails at, the work done for geometries as given is kept."""

    def few(smiles: list[str], molecules: PackedMolecules, index: torch.Tensor, **_: Any) -> Any:
        return Embedded(molecules.subset(index[:38]), index[:38], len(index) - 38)

    run = Path(shutil.copytree(uncalibrated, tmp_path / "run"))
    monkeypatch.setattr(calibrate, "take_halves", with_smiles)
    monkeypatch.setattr(calibrate, "embed", few)
    assert main(["calibrate", str(run), "--num_calibration", "160"]) == 0
    assert "no error bars for RDKit's geometries: of 38 molecules" in capsys.readouterr().err
    bars = CalibratedModel.load(run).error_bars
    assert bars is not None and [*bars.calibrations] == ["given"]
    report = json.loads((run / "calibration.json").read_text())
    assert report["rdkit_failed"] == 160 - 38 + 140 - 38


def test_too_few_smiles(
    uncalibrated: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(calibrate, "take_halves", with_smiles)
    options = ["--num_calibration", "41", "--num_smiles"]
    assert main(["calibrate", str(uncalibrated), *options, "38"]) == 1
    assert "num_smiles = 38 is not enough: 39 or more" in one_line(capsys, "calibrate")
    assert main(["calibrate", str(uncalibrated), *options, "0"]) == 0  # control
    with pytest.raises(SystemExit):
        main(["calibrate", str(uncalibrated), *options, "-1"])
    assert "--num_smiles" in capsys.readouterr().err
    (uncalibrated / "error_bars.json").unlink()


@pytest.mark.parametrize("number", ["39", "296"])
def test_just_enough_molecules(number: str, uncalibrated: Path, tmp_path: Path) -> None:
    """Control: one more or fewer is refused."""
    run = Path(shutil.copytree(uncalibrated, tmp_path / "run"))
    assert main(["calibrate", str(run), "--num_calibration", number]) == 0
    assert (run / "error_bars.json").exists()


def test_an_ensemble_is_calibrated_on_what_no_member_saw(
    many: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    options = ("--num_train", "100", "--epochs", "2", "--batch_size", "16", "--ensemble", "3")
    assert main(train_options(many, run, *options)) == 0
    assert main(["calibrate", str(run), "--num_calibration", "399"]) == 1
    assert "trained on one split share more" in one_line_of(capsys)
    one_split = tmp_path / "one_split"
    for k in range(2):  # of one split already: there is nothing more to share
        shutil.copytree(run / "member-0", one_split / f"member-{k}")
    assert main(["calibrate", str(one_split), "--num_calibration", "999"]) == 1
    assert "999 is not possible" in (told := one_line_of(capsys)) and "share more" not in told
    assert main(["calibrate", str(run), "--num_calibration", "47"]) == 1
    assert "48 molecules or more calibrate" in one_line_of(capsys)
    assert main(["calibrate", str(run), "--num_calibration", "48"]) == 0  # control
    assert main(["calibrate", str(run), "--num_calibration", "80"]) == 0
    seen: set[int] = set()
    for k in range(3):
        split = Split.load(run / f"member-{k}" / "split.npz")
        seen |= {*split.train.tolist(), *split.validation.tolist()}
    halves = TAKE(member_folders(run), 80, 0, None)
    assert not seen & {*halves.calibration.tolist(), *halves.test.tolist()}
    report = json.loads((run / "calibration.json").read_text())
    kinds = [row["kind"] for row in report["comparison"]["given"]]
    assert kinds == ["constant", "R", "ensemble", "R and ensemble"]
    capsys.readouterr()
    assert main(["predict", "--model", str(run), "CO"]) == 0
    printed = capsys.readouterr().out
    assert "spread" in printed and "±" not in printed  # RDKit geometries were not calibrated
    xyz = tmp_path / "methanol.xyz"
    ase.io.write(xyz, ase.build.molecule("CH3OH"))
    for unit in ("eV", "kcal/mol"):
        output = ["--unit", unit, "--output", str(tmp_path / f"{unit[:2]}.csv")]
        assert main(["predict", "--model", str(run), str(xyz), *output]) == 0
    (in_ev,), (in_kcal,) = rows_of(tmp_path / "eV.csv"), rows_of(tmp_path / "kc.csv")
    energies = {"energy", "q50", "q90", "q95", "spread", "E0", "E1", "E2"}
    assert energies <= in_ev.keys()
    for name, value in in_ev.items():
        if name in energies:
            expected = convert(float(value), "eV", "kcal/mol")
            assert float(in_kcal[name]) == pytest.approx(expected, rel=1e-6), name
        else:  # control
            assert in_kcal[name] == (value if name != "unit" else "kcal/mol")


def test_members_of_one_split_share_their_test_molecules(
    many: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Trained apart into one folder; more of them calibrate than three splits would share."""
    run = tmp_path / "run"
    for k in (0, 1):
        options = ("--num_train", "100", "--epochs", f"{k + 1}", "--seed", str(k))
        member = run / f"member-{k}"
        assert main(train_options(many, member, *options, "--split_seed", "3")) == 0
        assert main(train_options(many, member, *options, "--split_seed", "3", "--resume")) == 0
        assert main(train_options(many, member, *options, "--resume")) == 1
        assert "trained with split_seed = 3, not None" in one_line_of(capsys)
    splits = [Split.load(folder / "split.npz") for folder in member_folders(run)]
    assert splits[0].checksum == splits[1].checksum and splits[0].seed == 3
    assert len({files.weights_sha256(folder) for folder in member_folders(run)}) == 2  # control
    number = len(splits[0].test) - 30
    assert main(["calibrate", str(run), "--num_calibration", str(number)]) == 0

    assert main(["ship", str(run), "two", "--output", str(tmp_path)]) == 0
    card = (tmp_path / "two" / "card.md").read_text()
    for k in (0, 1):
        training = f"--epochs {k + 1} --energy_scale residual"
        training += f"{' --seed 1' if k else ''} --split_seed 3`: recipe fast, best epoch "
        assert training in card, card
    assert f"seed 3, SHA-256 {splits[0].checksum}" in card and "an ensemble of 2" in card
    assert len(CalibratedModel.load(tmp_path / "two").models) == 2


def test_members_must_learn_and_predict_the_same(
    many: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Another data set: some knew the others' test molecules. Another network: no mean of orders.
    Other elements: refused likewise, naming both."""
    other, run = write_molecules(tmp_path / "other.extxyz", 400), tmp_path / "run"
    options = ("--num_train", "100", "--epochs", "1", "--split_seed", "3")
    assert main(train_options(many, run / "member-0", *options)) == 0
    assert main(train_options(other, run / "member-1", *options, "--seed", "1")) == 0
    assert main(["predict", "--model", str(run), "C"]) == 0  # control: not forbidden
    assert main(["calibrate", str(run), "--num_calibration", "60"]) == 1
    message = one_line_of(capsys)
    assert "must learn one data set" in message and "other.extxyz" in message
    orders = ("--num_interactions", "1", "--run", str(run / "member-2"))
    assert main(train_options(many, run, *options, *orders)) == 0
    for command in (["predict", "--model", str(run), "C"], ["explain", "C", "--model", str(run)]):
        assert main([*command, "--output", str(tmp_path / "out.html")]) == 1
        message = one_line_of(capsys)
        assert "member-2 has 1: models that are averaged must share it" in message
        assert "num_interactions = 2" in message
    card = json.loads((run / "member-1" / "model.json").read_text())
    (run / "member-1" / "model.json").write_text(json.dumps(card | {"target": "zpve"}))
    with pytest.raises(ModelFileError, match="target = energy, .*member-1 has zpve"):
        HIPNNCalculator([run / "member-0", run / "member-1"], i_know=True)
    HIPNNCalculator([run / "member-0", run / "member-2"], i_know=True)  # control: energies only


def test_a_file_that_changed_between_members_is_another_data_set(
    uncalibrated: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The places that one split sets aside hold molecules that the other member learned."""
    for k in (0, 1):
        shutil.copytree(uncalibrated, tmp_path / f"member-{k}")
    command = ["calibrate", str(tmp_path), "--num_calibration", "999"]
    assert main(command) == 1 and "999 is not possible" in one_line_of(capsys)  # control
    card = tmp_path / "member-1" / "model.json"
    values = json.loads(card.read_text())
    card.write_text(json.dumps(values | {"geometries_sha256": "turned"}))
    assert main(command) == 1
    message = one_line_of(capsys)
    assert "must learn one data set" in message and "many.extxyz (SHA-256 turned)" in message


def test_batches_are_taken_apart(calibrated: Path) -> None:
    """A Batch, Data with ``batch``, a DataLoader or a list: the same molecules."""
    model = CalibratedModel.load(calibrated)
    items = [from_smiles(smiles) for smiles in ("CO", "N", "C")]
    expected = model.predict(items, "rdkit")
    assert len(expected.energy) == 3
    batch = Batch.from_data_list(items)
    loose = Data(z=batch.z, pos=batch.pos, batch=batch.batch)
    for given in (batch, loose, [items[0], Batch.from_data_list(items[1:])], DataLoader(items, 2)):
        out = model.predict(given, "rdkit")
        assert torch.equal(out.energy, expected.energy) and torch.equal(out.q90, expected.q90)
    order = torch.tensor([1, 0]).repeat_interleave(torch.tensor([6, 12]))
    loose.batch = order[: len(batch.z)]
    with pytest.raises(StructureError, match="batch is not sorted"):
        model.predict(loose, "rdkit")


def one_line_of(capsys: Capture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


# --- predict -----------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_predict_prints_the_error_bar_that_applies(
    calibrated: Path, tmp_path: Path, capsys: Capture
) -> None:
    xyz, output = tmp_path / "methanol.xyz", tmp_path / "out.csv"
    ase.io.write(xyz, ase.build.molecule("CH3OH"))
    command = ["predict", "--model", str(calibrated), "CO", str(xyz)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "RDKit geometry" in printed and "geometry as given" in printed
    of_smiles, of_file = sorted(printed.split("energy in")[1:], key=lambda t: "given" in t)
    assert "force field" in of_file and "force field" not in of_smiles
    model = CalibratedModel.load(calibrated)
    embedded = model.predict(from_smiles("CO"), "rdkit")
    assert f"{float(embedded.energy):.4f} ± {float(embedded.q90):.4f}" in printed
    assert "errors" in printed and "grow" not in printed  # one bin of R: not known
    told = Path(shutil.copytree(calibrated, tmp_path / "told"))
    card = json.loads((told / "error_bars.json").read_text())
    for grow, words in ((True, "errors grow with it"), (False, "errors do not grow with it")):
        for values in card["calibrations"].values():
            values["intervals"]["errors_grow"] = grow
        (told / "error_bars.json").write_text(json.dumps(card))
        assert main(["predict", "--model", str(told), *command[3:]]) == 0
        assert " ".join(capsys.readouterr().out.split()).count(words) == 2

    assert main([*command, "--output", str(output), "--unit", "kcal/mol"]) == 0
    smiles, file = rows_of(output)
    assert smiles["geometry"] == "RDKit geometry" and file["geometry"] == "geometry as given"
    assert embedded.judgement is not None
    for level, width in zip(("q50", "q90", "q95"), embedded.judgement.half_width[0], strict=True):
        expected = convert(float(width), "eV", "kcal/mol")
        assert float(smiles[level]) == pytest.approx(expected, rel=1e-6)
    assert float(smiles["q50"]) < float(smiles["q90"]) <= float(smiles["q95"])
    given = model.predict(from_smiles("CO"), "given")
    assert float(given.q90) != pytest.approx(float(embedded.q90), rel=1e-3)


def test_predict_flags_what_is_unlike_the_training_data(calibrated: Path, tmp_path: Path) -> None:
    aspirin = "CC(=O)Oc1ccccc1C(=O)O"
    output = tmp_path / "out.extxyz"
    command = ["predict", "--model", str(calibrated), "C", aspirin, "--output", str(output)]
    assert main([*command, "--unit", "kcal/mol"]) == 0
    usual, unlike = ase.io.read(output, index=":")
    assert unlike.info["unlike_training"] and not usual.info["unlike_training"]
    assert usual.info["geometry"] == "RDKit geometry" and "unit" not in usual.info
    out = CalibratedModel.load(calibrated).predict(from_smiles("C"), "rdkit")
    assert usual.info["q90"] == pytest.approx(float(out.q90), rel=1e-4)  # eV, always
    assert usual.info["R"] == pytest.approx(float(out.seen.nonhierarchicality), rel=1e-4)


def test_without_calibration_no_error_bar_is_printed(
    uncalibrated: Path, calibrated: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["predict", "--model", str(uncalibrated), "CO"]) == 0
    printed = capsys.readouterr().out
    assert "±" not in printed and "no error bars: not calibrated (hipnn calibrate" in printed
    loose = ["predict", "--model", str(calibrated), "CO", "--optimize", "false"]
    assert main(loose) == 0
    printed = capsys.readouterr().out
    assert "RDKit geometry, not relaxed" in printed and "±" not in printed
    assert "no error bars: not calibrated for this, only for:" in " ".join(printed.split())
    assert main(loose[:-2]) == 0  # control
    printed = capsys.readouterr().out
    assert "±" in printed and "no error bars" not in printed
    output = tmp_path / "out.csv"
    assert main([*loose, "--output", str(output)]) == 0
    assert "q90" not in rows_of(output)[0]


# --- ship and from_pretrained ------------------------------------------------------------------


@pytest.fixture(scope="session")
def shipped(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as it would come with the package."""
    output = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hipnn_pyg.cli.ship.take_halves", with_smiles)
        assert main(["ship", str(calibrated), "tiny-model", "--output", str(output)]) == 0
    return output


@pytest.fixture
def with_tiny(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "PRETRAINED", shipped)


@pytest.fixture(params=["tiny-model", *pretrained_models()])
def folder(request: pytest.FixtureRequest, shipped: Path) -> Path:
    """Every model that comes with the package, and the tiny one."""
    tiny = request.param == "tiny-model"
    return shipped / "tiny-model" if tiny else pretrained.PRETRAINED / request.param


def test_what_comes_with_the_package() -> None:
    assert pretrained_models() == ["qm9-u0", "qm9-u0-ensemble", "qm9-u0-rdkit"]


def structures(stored: dict[str, np.ndarray], scale: float = 1.0) -> list[Data]:
    cuts = np.cumsum(stored["counts"])[:-1]
    return [
        Data(z=torch.tensor(z.astype(np.int64)), pos=torch.tensor(pos) * scale)
        for z, pos in zip(np.split(stored["z"], cuts), np.split(stored["pos"], cuts), strict=True)
    ]


def test_every_named_prediction_is_reproduced(folder: Path) -> None:
    stored = dict(np.load(folder / "predictions.npz"))
    expected = convert(stored["energy"], str(stored["unit"]), "kcal/mol")
    model = CalibratedModel.load(folder)
    out = model.predict(structures(stored), "given")
    ours = convert(out.energy.numpy(), model.energy_unit, "kcal/mol")
    assert np.abs(ours - expected).max() < 1e-3
    np.testing.assert_allclose(out.q90, stored["q90"], rtol=1e-3)
    assert out.unlike_training is not None
    assert (out.unlike_training.numpy() != stored["unlike_training"]).sum() <= 1  # on the edge
    moved = model.predict(structures(stored, scale=1.002), "given").energy.numpy()  # control
    assert (np.abs(convert(moved, model.energy_unit, "kcal/mol") - expected) > 1e-3).mean() > 0.95


def test_folder_holds_what_a_user_needs(folder: Path) -> None:
    stored = np.load(folder / "predictions.npz")
    names, number = stored["name"].tolist(), len(stored["name"])
    assert len(set(names)) == number and number in (140, 200)
    inside = np.unpackbits(stored["test_set"])
    report = json.loads((folder / "calibration.json").read_text())
    assert inside.sum() == report["num_test"] and inside[stored["index"]].all()
    error = convert(np.abs(stored["energy"] - stored["target"]), str(stored["unit"]), "kcal/mol")
    mae = report["geometries"]["given"]["statistics"]["mae"]
    assert error.mean() == pytest.approx(mae, rel=0.35)
    card = (folder / "card.md").read_text()
    for heading in ("Made by", "Split", "On the test set", "unlike the training data", "Not for"):
        assert f"## {heading}" in card or f"## Structures {heading}" in card
    model = json.loads((folder / "model.json").read_text())
    assert model["split_sha256"] in card and "hipnn train" in card
    assert f"{mae:.3f}" in card and report["calibration_split_sha256"] in card


@pytest.mark.parametrize(
    "options",
    [
        ("md17", "--molecule", "revised benzene", "--forces", "--epochs", "7"),
        ("md17", "--hidden_channels", "80", "--num_onsite", "3", "--hierarchical", "false"),
        ("md17", "--forces", "--num_interactions", "2", "--learning_rate", "1e-3"),
        ("file", "--path", "a b.xyz", "--num_train", "9", "--num_validation", "1"),
        ("qm9", "--recipe", "paper", "--split_seed", "3"),
    ],
)
def test_the_command_on_a_card_trains_the_same(options: tuple[str, ...]) -> None:
    def settings(arguments: Sequence[str]) -> dict[str, Any]:
        chosen = parser().parse_args(["train", *arguments])["train"]
        return {"dataset": chosen["dataset"], **chosen[chosen["dataset"]].as_dict()}

    wanted = settings(options)
    kept = {k: v for k, v in wanted.items() if k not in ("run", "resume", "config", "ensemble")}
    words = shlex.split(command_of({k: v for k, v in kept.items() if k != "start"}))
    assert words[:2] == ["hipnn", "train"] and len(words) < 14  # defaults are left out
    path = ["--path", wanted["path"]] if "path" in wanted else []  # of a machine: it is left out
    again = settings([*words[2:], *path])
    ignored = RESUME_MAY_CHANGE | {"config"}
    assert {k: v for k, v in again.items() if k not in ignored} == {
        k: v for k, v in wanted.items() if k not in ignored
    }


@pytest.mark.parametrize("name", pretrained_models())
def test_cards_are_what_is_written_now(name: str) -> None:
    """From the files beside them and the commands that they name."""
    folder = pretrained.PRETRAINED / name
    text, settings = (folder / "card.md").read_text(), []
    for line in re.findall(r"`hipnn train ([^`]*)`", text):
        dataset, *words = shlex.split(line)
        pairs = zip(words[::2], words[1::2], strict=True)
        settings.append({"dataset": dataset, **{k[2:]: yaml.safe_load(v) for k, v in pairs}})
    cards = [read_card(member) for member in member_folders(folder)]
    report = json.loads((folder / "calibration.json").read_text())
    assert model_card(name, cards, settings, report) == text


def test_from_pretrained(with_tiny: None, shipped: Path) -> None:
    assert pretrained_models() == ["tiny-model"]
    model, expected = HIPNN.from_pretrained("tiny-model"), load_model(shipped / "tiny-model")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert not model.training
    with pytest.raises(ModelFileError, match=r"no model 'big'.*choose from \['tiny-model'\]"):
        HIPNN.from_pretrained("big")


def test_predict_with_a_model_of_the_package(
    with_tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--model", "tiny-model", "CO", "N"]) == 0
    printed = capsys.readouterr().out
    energy = CalibratedModel.load("tiny-model").predict(from_smiles("CO"), "rdkit").energy
    assert f"{float(energy):.4f} ±" in printed and "RDKit geometry" in printed
    assert main(["predict", "--model", "big", "CO"]) == 1
    assert "big does not exist" in (line := one_line(capsys, "predict")) and "tiny-model" in line


def test_without_models_the_message_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "PRETRAINED", tmp_path / "none")
    assert pretrained_models() == []
    with pytest.raises(ModelFileError, match="it has none; train one"):
        HIPNN.from_pretrained("qm9-u0")


def test_ship_refuses(
    uncalibrated: Path, calibrated: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = ["--output", str(tmp_path / "out")]
    assert main(["ship", str(uncalibrated), "a", *output]) == 1
    assert "has no error bars: run `hipnn calibrate" in one_line(capsys, "ship")
    assert main(["ship", str(calibrated), "../a b", *output]) == 1
    assert "is no model name" in one_line(capsys, "ship")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "there").mkdir(parents=True)
    assert main(["ship", str(calibrated), "there", *output]) == 1
    assert "out/there exists: delete it first" in one_line(capsys, "ship")
    assert not any((tmp_path / "out" / "there").iterdir())


def test_members_of_a_folder(
    small_model: Callable[..., HIPNN], tmp_path: Path, capsys: Capture
) -> None:
    """A run's own model, an ensemble's members, or both as in the package; 10 comes after 2."""
    with pytest.raises(ModelFileError, match="does not exist"):
        member_folders(tmp_path)
    for k in (10, 2, 0):
        save_model(small_model(torch.float32), tmp_path / f"member-{k}")
    names = [path.name for path in member_folders(tmp_path)]
    assert names == ["member-0", "member-2", "member-10"]
    save_model(small_model(torch.float32), tmp_path)
    assert member_folders(tmp_path / "model.json")[0] == tmp_path
    assert len(member_folders(tmp_path)) == 4
    same = {files.weights_sha256(path) for path in member_folders(tmp_path)}
    other = save_model(small_model(torch.float32, hidden_channels=7), tmp_path / "other")
    assert len(same) == 1 and files.weights_sha256(other) not in same
