"""``hipnn reproduce``: trains what is missing, goes on with what was cut off, prints records."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch

from hipnn_pyg.cli import main
from hipnn_pyg.cli.run_folder import RESUME_MAY_CHANGE, RunFolder
from hipnn_pyg.data.md17 import MD17
from hipnn_pyg.data.unavailable import DatasetUnavailableError
from hipnn_pyg.reproduce.outputs import OUTPUTS
from hipnn_pyg.reproduce.records import NO_RESULT, read_records
from hipnn_pyg.train.trainer import Trainer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of printed tables on one line."""
    monkeypatch.setenv("COLUMNS", "500")


SIZES = ["--num_train", "70", "--num_validation", "15"]
SMALL = ["--compile", "off", "--device", "cpu", "--epochs", "2", "--batch_size", "10"]


@pytest.fixture
def table_2(qm9_root: Path) -> Callable[..., list[str]]:
    """``table_2(results, *options)``: the command line of a small Table II."""

    def line(results: Path, *more: str) -> list[str]:
        places = ["--results", str(results), "--root", str(qm9_root)]
        return ["reproduce", "table2", *places, *SIZES, *SMALL, *more]

    return line


@pytest.fixture(scope="module")
def done(qm9_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one row, two seeds; the tests copy them before they change anything."""
    results = tmp_path_factory.mktemp("done")
    places = ["--results", str(results), "--root", str(qm9_root)]
    line = ["reproduce", "table2", *places, *SIZES, *SMALL, "--rows", "5", "--splits", "2"]
    assert main(line) == 0
    return results


def cells(capsys: Capture) -> str:
    """What was printed, every table row on one line."""
    return " ".join(capsys.readouterr().out.split())


def test_the_same_settings_are_no_result_in_both_places() -> None:
    """But for the path of a file: a run may go on where it has moved to, and a record keeps its
    name."""
    assert NO_RESULT == RESUME_MAY_CHANGE - {"path"}


def test_what_is_missing_is_run_and_what_is_there_is_not(
    done: Path, tmp_path: Path, table_2: Callable[..., list[str]], capsys: Capture
) -> None:
    results = Path(shutil.copytree(done, tmp_path / "results"))
    records = results / "records"
    before = {path.name: path.read_bytes() for path in records.iterdir()}
    assert len(before) == 4  # JSON and npz of two seeds
    assert main(table_2(results, "--rows", "5", "4", "--splits", "2")) == 0
    shown = cells(capsys)
    assert "5, seed 0" not in shown and "5, seed 1" not in shown
    assert shown.index("4, seed 0: training") < shown.index("4, seed 1: training")
    assert {name: (records / name).read_bytes() for name in before} == before
    settings = [record.settings for record in read_records(records)]
    assert [(s["hidden_channels"], s["seed"]) for s in settings] == [(4, 0), (4, 1), (5, 0), (5, 1)]
    # Whatever is a different experiment is run, too.
    assert main(table_2(results, "--rows", "5", "--learning_rate", "0.002")) == 0
    assert "5, seed 0: training" in cells(capsys)
    assert len(read_records(records)) == 5


def test_the_first_split_of_all_rows_comes_first(
    tmp_path: Path, table_2: Callable[..., list[str]], capsys: Capture
) -> None:
    assert main(table_2(tmp_path, "--rows", "3", "2", "--splits", "2", "--epochs", "1")) == 0
    shown = capsys.readouterr().out
    order = [line for line in shown.splitlines() if ": training in" in line]
    assert [line.split(":")[0] for line in order] == [
        "3, seed 0", "2, seed 0", "3, seed 1", "2, seed 1"
    ]  # fmt: skip


def test_what_a_record_holds(done: Path) -> None:
    record = read_records(done / "records")[0]
    arrays = record.arrays()
    assert record.num == 15 and record.part == "test" and record.epochs == 2
    assert np.abs(arrays["error"]).mean() == pytest.approx(record.mae, rel=1e-5)
    assert np.sqrt((arrays["error"] ** 2).mean()) == pytest.approx(record.rmse, rel=1e-5)
    assert 100 * (np.abs(arrays["error"]) > 1).mean() == pytest.approx(record.above_1_kcal)
    assert record.truncated_mae[-1] == pytest.approx(record.mae)
    assert len(record.mean_abs_order) == 3 and len(record.sensitivities) == 2
    assert (arrays["nonhierarchicality"] > 0).all() and len(arrays["validation_mae"]) == 2
    assert arrays["seconds"][-1] == pytest.approx(record.seconds, abs=0.1)
    text = "".join(path.read_text() for path in (done / "records").glob("*.json"))
    assert str(done.parent) not in text and "root" not in text  # no path of this machine
    for folder in done.glob("runs/*/*"):  # a finished run keeps its model and no more to resume
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "config.yaml", "metrics.csv"} <= names
        assert not {"checkpoint.pt", "logs", "predictions.npz"} & names


def test_from_results_prints_the_same_without_a_run_folder(
    done: Path, tmp_path: Path, table_2: Callable[..., list[str]], capsys: Capture
) -> None:
    results = Path(shutil.copytree(done, tmp_path / "results"))
    line = table_2(results, "--rows", "5", "80-no-hierarchy", "--from-results")
    assert main(line) == 0
    shown = cells(capsys)
    shutil.rmtree(results / "runs")
    before = sorted(path.stat().st_mtime_ns for path in results.rglob("*"))
    assert main(line) == 0
    assert cells(capsys) == shown
    assert sorted(path.stat().st_mtime_ns for path in results.rglob("*")) == before  # only printed
    mae = np.mean([record.mae for record in read_records(results / "records")])
    assert (
        f"{mae:.3f}" in shown and "fast, 2 epochs, batch_size = 10; 2 splits (seeds 0, 1);" in shown
    )
    assert "(no hierarchy)" in shown and "not run" in shown
    # control: another number in a record is another number in the table
    path = next((results / "records").glob("*.json"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "mae": content["mae"] + 2.0}))
    assert main(line) == 0
    changed = cells(capsys)
    assert f"{mae + 1.0:.3f}" in changed and f"{mae:.3f}" not in changed


def test_a_narrow_terminal_takes_nothing_away(
    done: Path,
    tmp_path: Path,
    table_2: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    results = Path(shutil.copytree(done, tmp_path / "results"))
    records = read_records(results / "records")
    (lost,) = (results / "records").glob("*seed-1.json")
    lost.unlink()
    assert main(table_2(results, "--rows", "5", "--splits", "2")) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"5, seed 1: {lost}" in shown and str(results / "table2-own.md") in shown
    lines = [line for line in shown if line.startswith("│")]
    mae = np.mean([record.mae for record in records])
    assert any(line.startswith("│ 5 ") and f" {mae:.3f} " in line for line in lines)
    assert len({len(line) for line in lines}) == 1 and "…" not in "".join(lines)


def test_damaged_records_are_named(
    done: Path, tmp_path: Path, table_2: Callable[..., list[str]], capsys: Capture
) -> None:
    results = Path(shutil.copytree(done, tmp_path / "results"))
    path = next((results / "records").glob("*.json"))
    for text in ("{", "{}", '{"format": "something else"}'):
        path.write_text(text)
        assert main(table_2(results, "--from-results")) == 1
        shown = capsys.readouterr().err
        assert str(path) in shown and "damaged" in shown and shown.count("\n") == 1


# --- cut off and gone on with -----------------------------------------------------------------

LONG = ("--rows", "5", "--epochs", "3", "--batch_size", "2", "--warmup_steps", "5")


@pytest.fixture(scope="module")
def whole(qm9_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run that was not stopped."""
    results = tmp_path_factory.mktemp("whole")
    places = ["--results", str(results), "--root", str(qm9_root)]
    assert main(["reproduce", "table2", *places, *SIZES, *SMALL, *LONG]) == 0
    return results


def wait_for_a_checkpoint(process: subprocess.Popen[str], runs: Path) -> Path:
    """The run folder, once a checkpoint lies in the second epoch."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for path in runs.glob("*/*/checkpoint.pt"):
            progress = torch.load(path, weights_only=True)["progress"]
            if progress["epoch"] == 1 and progress["step"] > 3:
                return path.parent
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint in the second epoch: {process.communicate()}")


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``ctrl_c(line)``: the command's status where Ctrl-C is pressed after the first epoch."""

    def press(line: list[str]) -> int:
        whole_epoch = Trainer.end_epoch

        def end_epoch(self: Trainer) -> None:
            whole_epoch(self)
            signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "end_epoch", end_epoch)
            return main(line)

    return press


@pytest.mark.parametrize("how", ["kill", "ctrl_c"])
def test_a_run_that_was_cut_off_goes_on_elsewhere(
    how: str,
    whole: Path,
    tmp_path: Path,
    qm9_root: Path,
    table_2: Callable[..., list[str]],
    hipnn: Callable[..., subprocess.Popen[str]],
    ctrl_c: Callable[..., int],
    capsys: Capture,
) -> None:
    results = tmp_path / "here"
    if how == "kill":
        # A checkpoint after every step: an epoch then lasts long enough to be stopped in its midst.
        process = hipnn(table_2(results, *LONG, "--checkpoint_seconds", "0"))
        wait_for_a_checkpoint(process, results / "runs")
        process.kill()
        process.communicate(timeout=30)
    else:
        assert ctrl_c(table_2(results, *LONG)) == 130
        error = capsys.readouterr().err
        assert "hipnn reproduce: stopped in epoch 2" in error and "--resume" not in error
        assert "the same command goes on" in error and "Traceback" not in error
    assert not (results / "records").exists()

    assert main(table_2(results, *LONG, "--from-results")) == 0
    shown = cells(capsys)
    assert "not finished: fast, seed 0, epoch 1 of 3, validation MAE" in shown
    assert "not run" not in shown

    # what git keeps, on another machine
    ignored = (results / "runs" / ".gitignore").read_text().split()
    clone = tmp_path / "there"
    shutil.copytree(results, clone, ignore=shutil.ignore_patterns(*(i.strip("/") for i in ignored)))
    shutil.rmtree(results)
    data = Path(shutil.copytree(qm9_root, tmp_path / "data"))
    line = table_2(clone, *LONG)
    line[line.index(str(qm9_root))] = str(data)
    assert main(line) == 0
    assert f"5, seed 0: going on in {clone / 'runs'}" in cells(capsys)
    ours, theirs = (read_records(path / "records")[0] for path in (clone, whole))
    assert ours.mae == theirs.mae and ours.settings == theirs.settings
    np.testing.assert_array_equal(ours.arrays()["error"], theirs.arrays()["error"])


def test_an_ensemble_that_was_cut_off_goes_on(
    done: Path,
    tmp_path: Path,
    table_2: Callable[..., list[str]],
    ctrl_c: Callable[..., int],
    capsys: Capture,
) -> None:
    line = table_2(tmp_path, "--rows", "5", "--splits", "2")
    assert ctrl_c([*line, "--together"]) == 130
    shown = capsys.readouterr().err
    assert "the same command goes on" in shown and "--resume" not in shown
    assert main([*line, "--from-results"]) == 0
    assert cells(capsys).count("not finished: fast, seed") == 2
    assert main(line) == 0  # an ensemble goes on as one, asked to or not
    shown = cells(capsys)
    assert "5, seed 0: going on in" in shown and "training in" not in shown
    assert shown.count("going on") == 1  # both at once
    ours, theirs = (read_records(path / "records") for path in (tmp_path, done))
    assert [record.mae for record in ours] == [record.mae for record in theirs]


def test_a_run_finished_but_not_recorded_is_only_recorded(
    done: Path, tmp_path: Path, table_2: Callable[..., list[str]], capsys: Capture
) -> None:
    results = Path(shutil.copytree(done, tmp_path / "results"))
    before = read_records(results / "records")
    shutil.rmtree(results / "records")
    assert main(table_2(results, "--rows", "5", "--splits", "2")) == 0
    assert "training" not in capsys.readouterr().out.partition("Table II")[0]
    after = read_records(results / "records")
    assert [record.mae for record in after] == [record.mae for record in before]
    assert [record.epochs for record in after] == [2, 2]


def test_a_setting_that_did_not_exist_yet_has_its_default(
    done: Path, tmp_path: Path, table_2: Callable[..., list[str]], capsys: Capture
) -> None:
    """Neither a record nor a run folder from before a setting existed is done again."""
    results = Path(shutil.copytree(done, tmp_path / "results"))
    for path in (results / "records").glob("*seed-0.json"):
        content = json.loads(path.read_text())
        del content["settings"]["lambda_r"]
        path.write_text(json.dumps(content))
    for path in (results / "records").glob("*seed-1*"):
        path.unlink()
    (folder,) = results.glob("runs/*/seed-1")
    text = RunFolder(folder).config.read_text()
    RunFolder(folder).config.write_text(text.replace("lambda_r: 0.01\n", ""))
    assert main(table_2(results, "--rows", "5", "--splits", "2")) == 0
    assert "training in" not in capsys.readouterr().out
    assert len(read_records(results / "records")) == 2
    assert main(table_2(results, "--rows", "5", "--lambda_r", "0.02")) == 0  # control
    assert "training in" in capsys.readouterr().out


# --- several at once, other outputs -----------------------------------------------------------


def test_together_gives_the_records_of_one_by_one(
    done: Path, tmp_path: Path, table_2: Callable[..., list[str]], capsys: Capture
) -> None:
    assert main(table_2(tmp_path, "--rows", "5", "--splits", "2", "--together")) == 0
    assert "5, seeds 0 to 1: training in" in cells(capsys)
    ours, theirs = (read_records(path / "records") for path in (tmp_path, done))
    assert [record.settings for record in ours] == [record.settings for record in theirs]
    assert [record.mae for record in ours] == [record.mae for record in theirs]
    assert len(list(tmp_path.glob("runs/*/seeds-0-1/member-*/model.json"))) == 2
    assert not list(tmp_path.glob("runs/**/checkpoint.pt"))
    assert main(table_2(tmp_path, "--rows", "5", "--splits", "3", "--together")) == 0
    shown = cells(capsys)
    assert "5, seed 2: training" in shown and "seeds" not in shown.partition("Table II")[0]
    mae = [record.mae for record in read_records(tmp_path / "records")]
    bar = np.std(mae, ddof=1) / np.sqrt(3)
    assert f"{np.mean(mae):.3f} ± {bar:.3f}" in shown


def test_ablation_is_judged_by_validation(qm9_root: Path, tmp_path: Path, capsys: Capture) -> None:
    line = ["reproduce", "ablation", "--results", str(tmp_path), "--root", str(qm9_root)]
    line += [*SIZES, *SMALL, "--features", "5"]
    vary = ["--vary", "lambda_r=0", "--vary", "learning_rate=2e-3 batch_size=5"]
    assert main([*line, *vary]) == 0
    shown = cells(capsys)
    for text in ("nothing", "lambda_r = 0", "batch_size = 5, learning_rate = 0.002"):
        assert f"│ {text} │" in shown
    listed = json.loads((tmp_path / "ablation-own.json").read_text())
    rows = {json.dumps(row["changed"]): row for row in listed}
    assert rows.keys() == {"{}", '{"lambda_r": 0.0}', '{"batch_size": 5, "learning_rate": 0.002}'}
    records = {record.settings["lambda_r"]: record for record in read_records(tmp_path / "records")}
    assert {record.part for record in records.values()} == {"validation"}
    assert records[0.0].num == 15
    row, base = rows['{"lambda_r": 0.0}'], rows["{}"]
    assert row["mae"]["value"] == records[0.0].mae != base["mae"]["value"]
    percent = 100 * (row["mae"]["value"] / base["mae"]["value"] - 1)
    assert row["against_unchanged_percent"] == pytest.approx(percent, abs=0.01)
    best = records[0.0].arrays()["validation_mae"].min()
    assert records[0.0].mae == pytest.approx(best, rel=1e-5)
    # Runs judged by validation are in no table of test errors.
    table = ["reproduce", "table2", *line[2:6], *SIZES, "--rows", "5", "--from-results"]
    assert main(table) == 0
    assert "not run" in cells(capsys)


@pytest.mark.parametrize(
    "variation, message",
    [("lambda_q=0", "lambda_q"), ("lambda_r", "NAME=VALUE"), ("lambda_r=much", "lambda_r"),
     ("seed=1", "seed")],
)  # fmt: skip
def test_bad_variations(
    variation: str, message: str, qm9_root: Path, tmp_path: Path, capsys: Capture
) -> None:
    line = ["reproduce", "ablation", "--results", str(tmp_path), "--root", str(qm9_root), *SIZES]
    assert main([*line, *SMALL, "--features", "5", "--vary", variation]) == 1
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not read_records(tmp_path / "records")  # found out before anything is trained


def test_figures_from_runs(qm9_root: Path, tmp_path: Path, capsys: Capture) -> None:
    places = ["--results", str(tmp_path), "--root", str(qm9_root)]
    line = [*places, *SIZES, *SMALL, "--features", "5", "--seeds", "3"]
    assert main(["reproduce", "orders", *line, "--num_interactions", "3"]) == 0
    (record,) = read_records(tmp_path / "records")
    assert record.settings["num_interactions"] == 3 and record.seed == 3
    orders = json.loads((tmp_path / "orders-own.json").read_text())
    assert orders["truncated_mae"] == record.truncated_mae and len(record.truncated_mae) == 4
    assert main(["reproduce", "sensitivities", *line]) == 0  # trains the one with 2 interactions
    assert main(["reproduce", "time-curve", *line]) == 0  # trains nothing
    assert main(["reproduce", "fig3", *line]) == 0
    assert len(read_records(tmp_path / "records")) == 2
    shown = cells(capsys)
    assert "hold 15 molecules" in shown or "fullest bin holds" in shown  # too few for Fig. 3
    sizes = [*places, *SMALL, "--num_validation", "15", "--rows", "85", "45"]
    assert main(["reproduce", "learning-curve", *sizes]) == 0
    trained_on = [
        row["num_train"] for row in json.loads((tmp_path / "learning-curve-own.json").read_text())
    ]
    assert trained_on == [30, 70]
    names = ("orders-own", "sensitivities-own", "time-curve-own", "learning-curve-own")
    for name in names:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert f"]({name}.png)" in (tmp_path / f"{name}.md").read_text()


@pytest.mark.parametrize("together", [[], ["--together"]], ids=" ".join)
def test_table_3_names_the_trajectories_that_are_not_there(
    together: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    tried = []

    def download(self: MD17) -> None:
        tried.append(self.name)
        raise DatasetUnavailableError("MD17 'toluene' could not be downloaded")

    monkeypatch.setattr(MD17, "download", download)
    root = tmp_path / "md17" / "benzene" / "raw"
    root.mkdir(parents=True)
    random, atoms = np.random.default_rng(0), ase.build.molecule("C6H6")
    moved = random.normal(scale=0.05, size=(120, 12, 3))
    energies = -146_530.0 + 20 * np.square(moved).sum((1, 2))
    np.savez(root / "md17_benzene2017.npz", z=atoms.numbers.astype(np.uint8),
             R=atoms.positions + moved, E=energies[:, None], F=np.zeros((120, 12, 3)))  # fmt: skip
    line = ["reproduce", "table3", "--results", str(tmp_path), "--root", str(tmp_path / "md17")]
    line += ["--rows", "toluene", "benzene", "--num_train", "60", "--num_validation", "30", *SMALL]
    assert main([*line, "--splits", "2", *together]) == 0
    shown = cells(capsys)
    assert shown.count("toluene: not run: MD17 'toluene' could not be downloaded") == 1
    assert tried == ["toluene"] and not list(tmp_path.glob("runs/*toluene*"))
    records = read_records(tmp_path / "records")
    assert [record.seed for record in records] == [0, 1]
    for record in records:
        assert record.settings["molecule"] == "benzene" and record.settings["num_onsite"] == 0
    mae = np.mean([record.mae for record in records])
    assert f"{mae:.3f}" in shown and records[0].num == 30


def test_a_data_set_that_is_not_there_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Whatever the settings and seeds are."""

    def load_qm9(*_: object) -> None:
        raise DatasetUnavailableError("QM9 could not be downloaded")

    monkeypatch.setattr("hipnn_pyg.data.sets.load_qm9", load_qm9)
    line = ["reproduce", "ablation", "--results", str(tmp_path), *SIZES, *SMALL, "--splits", "2"]
    assert main([*line, "--vary", "lambda_r=0", "--vary", "batch_size=5"]) == 0
    assert cells(capsys).count("not run: QM9 could not be downloaded") == 1


def test_collect_and_all(done: Path, tmp_path: Path, qm9_root: Path, capsys: Capture) -> None:
    """A run of ``hipnn train`` gets a record; the full-size tables print beside it."""
    run, results = tmp_path / "run", Path(shutil.copytree(done, tmp_path / "results"))
    line = ["train", "qm9", "--root", str(qm9_root), "--run", str(run), *SIZES, *SMALL]
    assert main([*line, "--hidden_channels", "6", "--num_onsite", "1"]) == 0
    assert main(["reproduce", "collect", str(run), "--results", str(results)]) == 0
    name = "qm9-85-f6-fast-2-num_onsite=1-num_validation=15-batch_size=10-seed-0"
    assert (results / "records" / f"{name}.json").exists()
    capsys.readouterr()
    assert main(["reproduce", "all", "--from-results", "--results", str(results)]) == 0
    shown = cells(capsys)
    for title in ("Table I:", "Table II:", "Table III:", "Fig. 2", "Fig. 3", "Learning curve"):
        assert title in shown
    assert "0.256 ± 0.003" in shown and "fast" not in shown  # 70 molecules are no row of the paper
    assert shown.count("The paper's figures are means over 8 splits") == 1
    for heading in ("Orders of the energy", "Sensitivities before and after", "Error against the"):
        assert shown.partition(heading)[2].partition(", 80 features")[2].split()[:2] == [
            "not",
            "run",
        ]
    pictures = {path.name for path in results.glob("*.png")}
    assert "fig2.png" in pictures
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text(RunFolder(run).config.read_text())
    assert main(["reproduce", "collect", str(unfinished), "--results", str(results)]) == 1
    assert "is not finished (epoch 0 of 2)" in capsys.readouterr().err
    (unfinished / "config.yaml").write_text(RunFolder(run).config.read_text() + "ensemble: 2\n")
    assert main(["reproduce", "collect", str(unfinished), "--results", str(results)]) == 1
    assert "is an ensemble, whose members have a record each" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, options",
    [
        ("", [*OUTPUTS, "collect", "all", "--from-results"]),
        ("table1", ["--rows", "110426", "--splits", "--seeds", "--together", "--epochs"]),
        ("table2", ["--rows", "--features", "--num_train", "--recipe", "--root", "--lambda_r"]),
        ("table3", ["--rows", "--root", "default: 2000", "--from-results"]),
        ("fig2", ["--results"]),
        ("fig3", ["--features", "--num_interactions", "--splits"]),
        ("ablation", ["--vary", "lambda_r=0", "default: 5000", "default: 4"]),
        ("collect", ["folders", "--root", "--results", "--runs"]),
    ],
)
def test_help(command: str, options: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["reproduce", *command.split(), "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0 and [name for name in options if name not in shown] == []


@pytest.mark.parametrize(
    "line, status, message",
    [
        ("reproduce", 2, "table1,table2,table3"),
        ("reproduce table9", 2, "table9"),
        ("reproduce table2 --rows eighty", 1, "'eighty' is not N_feature"),
        ("reproduce table1 --rows 900", 1, "leaves nothing to train on"),
        ("reproduce table2 --splits 0", 2, "splits"),
        ("reproduce table2 --molecule benzene", 2, "molecule"),
    ],
)
def test_mistakes(
    line: str, status: int, message: str, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    try:
        got = main(line.split())
    except SystemExit as exit:
        got = int(exit.code or 0)
    shown = capsys.readouterr().err
    assert got == status and message in shown and "Traceback" not in shown
    assert not list(tmp_path.iterdir())
