"""Records: written and read back, damaged, named; the committed ones agree with their arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipnn_pyg.data.sets import MD17Set, QM9Set
from hipnn_pyg.models.files import ModelFileError
from hipnn_pyg.reproduce.names import record_name, run_name
from hipnn_pyg.reproduce.outputs import OUTPUTS
from hipnn_pyg.reproduce.records import Record, completed, read_record, read_records, readable_json
from hipnn_pyg.reproduce.rows import table_1, table_2, table_3
from hipnn_pyg.reproduce.tables import Found
from hipnn_pyg.train import Training

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted((RESULTS / "records").glob("*.json"))
Make = Callable[..., Record]


def test_a_record_comes_back_as_it_was(make: Make) -> None:
    record = make()
    path = record.arrays_path.with_suffix(".json")
    assert read_record(path) == record and read_records(path.parent) == [record]
    assert json.loads(path.read_text())["settings"]["lambda_r"] == 0.01
    arrays = record.arrays()
    assert arrays["error"].dtype == np.float64 and arrays["error"].size == record.num
    assert np.abs(arrays["error"]).mean() == pytest.approx(record.mae, rel=1e-6)
    assert record.arrays_path.stat().st_size < 8.5 * record.num + 2000
    record.arrays_path.write_bytes(b"PK")
    with pytest.raises(ModelFileError, match="is damaged"):
        record.arrays()


def test_lists_of_numbers_stand_on_one_line() -> None:
    content = {"a": [1.5, 2], "b": [{"mu": [1, 2]}], "c": "x [\n y", "d": []}
    text = readable_json(content)
    assert json.loads(text) == content and '"a": [ 1.5, 2 ]' in text and '"mu": [ 1, 2 ]' in text


def test_settings_of_older_runs() -> None:
    old = {"dataset": "qm9", "num_train": 5, "epochs": 3, "root": "x", "device": "cpu"}
    settings = completed(old)
    assert settings["energy_scale"] == "total"  # not what the fast recipe does today
    assert settings["lambda_r"] == 0.01 and settings["hidden_channels"] == 80
    assert settings["num_train"] == 5 and settings["epochs"] == 3
    assert not {"root", "source", "device", "compile"} & settings.keys()


@pytest.mark.parametrize(
    "settings, name",
    [
        (table_2(QM9Set(), ["80"])[0].settings, "qm9-110426-f80-fast-100"),
        (table_2(QM9Set(), ["60-no-hierarchy"])[0].settings,
         "qm9-110426-f60-no-hierarchy-fast-100"),
        (table_1(QM9Set(num_validation=500), ["5000"])[0].settings,
         "qm9-5000-f80-fast-100-num_validation=500"),
        (table_3(MD17Set(), ["revised benzene"])[0].settings,
         "md17-revised-benzene-1000-f20-fast-100"),
        ({**table_2(QM9Set(), ["80"])[0].settings, "start": "runs/first/of all"},
         "qm9-110426-f80-fast-100-start=of all"),
    ],
)  # fmt: skip
def test_names(settings: dict[str, object], name: str) -> None:
    assert run_name({**settings, **vars(Training().resolved())}) == name


def test_names_tell_different_settings_apart(make: Make) -> None:
    record = make()
    name = "qm9-110426-f80-fast-100-seed-0"
    assert record.arrays_path.stem == name
    assert make(mae=0.1).arrays_path.stem == name  # the same run, evaluated again
    assert make(part="validation").arrays_path.stem == f"{name}-validation"
    unknown = replace(record, settings={**record.settings, "of_tomorrow": 1})
    assert record_name(unknown, [record]) == "qm9-110426-f80-fast-100-of_tomorrow=1-seed-0"
    elsewhere = replace(record, settings={**record.settings, "num_onsite": 3.0000001})
    assert record_name(elsewhere, [record]) != name
    taken = replace(elsewhere, arrays_path=record.arrays_path)  # renamed by hand, say
    assert record_name(record, [taken]) == f"{name}-2"
    changed = make(training=Training(lambda_r=0.0, epochs=7)).arrays_path.stem
    assert changed == "qm9-110426-f80-fast-7-lambda_r=0-seed-0"


def test_committed_records_agree_with_their_arrays() -> None:
    assert COMMITTED
    for path in COMMITTED:
        record = read_record(path)
        error = record.arrays()["error"]
        assert error.size == record.num, path
        assert np.abs(error).mean() == pytest.approx(record.mae, rel=1e-5), path
        assert np.sqrt(np.square(error).mean()) == pytest.approx(record.rmse, rel=1e-5), path
        assert path.stat().st_size < 20_000 and record.arrays_path.stat().st_size < 1_000_000
    # control: the test sees a number that was changed
    assert np.abs(error).mean() != pytest.approx(record.mae + 1e-3, rel=1e-5)


def test_committed_reports_are_those_of_the_committed_records() -> None:
    """If not: ``hipnn reproduce collect``."""
    found = Found(read_records(RESULTS / "records"))
    for name, output in OUTPUTS.items():
        report = output.report(output.usual_rows(found.records), found)
        assert (RESULTS / f"{name}.md").read_text() == report.markdown()
        assert (RESULTS / f"{name}.png").exists() == (report.figure is not None)
        assert json.loads((RESULTS / f"{name}.json").read_text()) == nearly(report.data)


def nearly(data: Any) -> Any:
    """The same with numbers that need not agree in the last digits."""
    if isinstance(data, dict):
        return {key: nearly(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [nearly(value) for value in data]
    return pytest.approx(data, rel=1e-6) if isinstance(data, float) else data
