"""The tables: means, error bars, differences in error bars, and what was not run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hipnn_pyg.data.sets import MD17Set, QM9Set
from hipnn_pyg.paper import TABLE_1, TABLE_2, TABLE_3
from hipnn_pyg.reproduce.outputs import OUTPUTS
from hipnn_pyg.reproduce.records import Record
from hipnn_pyg.reproduce.rows import Row, one_network, table_1, table_2, table_3
from hipnn_pyg.reproduce.tables import Found, Unfinished
from hipnn_pyg.train import Training

Make = Callable[..., Record]


def rows_of(markdown: str) -> dict[str, list[str]]:
    """First cell -> cells, of the table in a Markdown text."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row for row in cells}


def report(name: str, *records: Record, rows: list[Row] | None = None) -> str:
    output = OUTPUTS[name]
    return output.report(output.usual_rows() if rows is None else rows, Found(records)).markdown()


def test_rows_are_the_papers() -> None:
    two = table_2(QM9Set())
    assert [(r.network.hidden_channels, r.network.hierarchical) for r in two] == list(TABLE_2)
    for row in two:
        published = TABLE_2[row.network.hidden_channels, row.network.hierarchical]
        assert row.paper["mae"] == published.mae and row.paper["rmse"] == published.rmse
        assert row.molecules.num_train == 109_426 and row.network.num_onsite == 3
    one = table_1(QM9Set())
    assert [row.molecules.num_train for row in one] == [109_426, 99_000, 49_000]
    assert {int(row.key): row.paper["mae"] for row in one} == TABLE_1
    three = table_3(MD17Set())
    assert {row.key: row.paper["mae"] for row in three} == TABLE_3
    assert [row.molecules.molecule for row in three] == list(TABLE_3)  # type: ignore[union-attr]
    assert {(r.network.hidden_channels, r.network.num_onsite) for r in three} == {(20, 0)}


@pytest.mark.parametrize(
    "row",
    [
        table_2(QM9Set(num_train=50_000), ["80"])[0],
        table_2(QM9Set(), ["30"])[0],
        table_2(QM9Set(), ["40-no-hierarchy"])[0],
        table_1(QM9Set(), ["10000"])[0],
        table_1(QM9Set(num_validation=2_000), ["110426"])[0],
        table_3(MD17Set(num_train=500), ["benzene"])[0],
        table_3(MD17Set(num_validation=500), ["benzene"])[0],
        table_3(MD17Set(), ["revised benzene"])[0],
        table_3(MD17Set(forces=True), ["benzene"])[0],
        one_network(QM9Set(), 80, 3)[0],
    ],
)
def test_other_experiments_have_no_figures_of_the_paper(row: Row) -> None:
    assert row.paper == {}


def test_everything_not_run_says_so() -> None:
    for name in ("table1", "table2", "table3"):
        rows = rows_of(report(name))
        assert {row[-1] for row in rows.values()} == {"not run"}
        assert all(row[1] == "-" for row in rows.values())
    assert rows_of(report("table2"))["60 (no hierarchy)"][2] == "0.278 ± 0.008"
    for name in ("fig3", "orders", "sensitivities", "time-curve", "ablation"):
        assert "not run" in report(name) and ".png" not in report(name)


def test_difference_is_in_units_of_the_papers_error_bar(make: Make) -> None:
    record = make(mae=0.262, rmse=0.507, above_1_kcal=2.26)
    row = rows_of(report("table2", record))["80"]
    assert row[1:7] == [
        "0.262", "0.256 ± 0.003 (+2.0)", "0.507", "0.527 ± 0.020 (-1.0)", "2.26",
        "2.26 ± 0.07 (+0.0)",
    ]  # fmt: skip
    assert row[-1] == "fast, 100 epochs; 1 split (seed 0); 3,600 s; abacus, 2 beads; 2026-01-31"
    changed = rows_of(report("table2", replace(record, mae=0.265)))["80"]  # control
    assert changed[1:3] == ["0.265", "0.256 ± 0.003 (+3.0)"] and changed[3:] == row[3:]
    # Table I has the same experiment, Table III another.
    assert rows_of(report("table1", record))["110,426"][1] == "0.262"
    assert rows_of(report("table1", record))["50,000"][-1] == "not run"


def test_splits_have_a_mean_and_from_three_on_an_error_bar(make: Make) -> None:
    maes = [0.30, 0.26, 0.28, 0.27]
    records = [make(training=Training(seed=k), mae=mae) for k, mae in enumerate(maes)]
    bar = np.std(maes, ddof=1) / 2
    row = rows_of(report("table2", *records))["80"]
    assert row[1] == f"{np.mean(maes):.3f} ± {bar:.3f}"
    assert "4 splits (seeds 0, 1, 2, 3)" in row[-1]
    assert rows_of(report("table2", *records[:2]))["80"][1] == "0.280"
    data = OUTPUTS["table2"].report(table_2(QM9Set(), ["80"]), Found(records)).data[0]
    assert data["runs"][0]["mae"]["bar"] == pytest.approx(bar)
    assert data["runs"][0]["mae"]["difference_in_error_bars"] == pytest.approx(7.17, abs=0.01)


def test_models_on_one_split_have_no_error_bar_over_splits(make: Make) -> None:
    maes = [0.30, 0.26, 0.28]
    trainings = [Training(seed=k, split_seed=0) for k in range(3)]
    records = [make(training=each, mae=mae) for each, mae in zip(trainings, maes, strict=True)]
    row = rows_of(report("table2", *records))["80"]
    assert row[1] == "0.280" and "3 models on 1 split (seeds 0, 1, 2)" in row[-1]


def test_runs_on_other_data_are_not_averaged(make: Make) -> None:
    """Their test sets are of other sizes, all settings the same."""
    sizes = [2000, 2000, 2000, 999, 999]
    records = [make(training=Training(seed=k), mae=0.3, num=num) for k, num in enumerate(sizes)]
    text = report("table2", *records)
    assert "3 splits (seeds 0, 1, 2)" in text and "2 splits (seeds 3, 4)" in text


def test_other_settings_are_rows_of_their_own(make: Make) -> None:
    usual, other = make(mae=0.3), make(training=Training(learning_rate=2e-3), mae=0.2)
    paper = make(training=Training(recipe="paper"), mae=0.25, epochs=734)
    text = report("table2", usual, other, paper)
    lines = [line for line in text.splitlines() if line.startswith("| 80 |")]
    assert [line.split("|")[2].strip() for line in lines] == ["0.200", "0.250", "0.300"]
    assert "fast, 100 epochs, learning_rate = 0.002; 1 split" in lines[0]
    assert "paper, 734 epochs; 1 split" in lines[1] and "fast, 100 epochs; 1" in lines[2]
    close = make(training=Training(learning_rate=2.0000001e-3))  # whose row must not look the same
    assert "learning_rate = 0.0020000001;" in report("table2", other, close)


def test_ablations_are_compared_seed_by_seed(make: Make) -> None:
    """The seeds differ by more than the settings."""
    (row,) = OUTPUTS["ablation"].usual_rows()

    def run(seed: int, mae: float, **changed: float) -> Record:
        training = Training(seed=seed, **changed)  # type: ignore[arg-type]
        return make(row, training=training, part="validation", mae=mae)

    usual = [run(0, 0.3), run(1, 0.5)]
    others = [run(1, 0.55, lambda_r=0), run(2, 0.4, lambda_l2=0)]
    rows = rows_of(report("ablation", *usual, *others))
    assert rows["nothing"][1:3] == ["0.4000", "-"]
    assert rows["lambda_r = 0"][2] == "+10.0"
    assert rows["lambda_l2 = 0"][2] == "-"  # no seed that both have


def test_unfinished_runs_say_where_they_stand(make: Make) -> None:
    settings = make().settings
    found = Found([], [Unfinished(settings, 34, 100, 0.5123), Unfinished(settings, 0, 100, None)])
    output = OUTPUTS["table2"]
    text = output.report(table_2(QM9Set(), ["80"]), found).markdown()
    assert "not finished: fast, seed 0, epoch 34 of 100, validation MAE 0.512" in text
    assert "epoch 0 of 100 |" in text and "not run" not in text


def test_a_target_without_chemical_accuracy(make: Make) -> None:
    assert rows_of(report("table2", make(above_1_kcal=None)))["80"][5] == "-"


def test_other_sizes_and_networks_are_listed_once_they_were_run(make: Make) -> None:
    tenth, thirty = table_1(QM9Set(), ["10000"])[0], table_2(QM9Set(), ["30"])[0]
    small = table_2(QM9Set(num_train=50), ["7"])[0]  # of no use in the paper's table
    records = [make(row=row) for row in (tenth, thirty, small)]
    keys = {
        name: [row.key for row in output.usual_rows(records)] for name, output in OUTPUTS.items()
    }
    assert keys["table1"] == ["110426", "100000", "50000"]
    assert keys["learning-curve"] == [*keys["table1"], "10000"]
    assert keys["table2"][8:] == ["30"] and keys["table3"] == list(TABLE_3)
    assert [row.key for row in OUTPUTS["learning-curve"].usual_rows()] == keys["table1"]
