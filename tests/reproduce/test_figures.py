"""Figures from records: what they say about R, the orders, sizes and times."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hipnn_pyg.data.sets import QM9Set
from hipnn_pyg.reproduce.curves import learning_curve, time_curve
from hipnn_pyg.reproduce.figures import fig_2, fig_3, orders, trained_sensitivities
from hipnn_pyg.reproduce.outputs import OUTPUTS
from hipnn_pyg.reproduce.records import Record
from hipnn_pyg.reproduce.rows import one_network, table_1
from hipnn_pyg.reproduce.tables import Found
from hipnn_pyg.train import Network, Training

Make = Callable[..., Record]
ROW = one_network(QM9Set())[0]


def test_fig_2_is_in_bohr() -> None:
    report = fig_2(Network())
    assert report.figure is not None
    ax = report.figure.axes[0]
    assert ax.get_xlabel() == "Distance $r$ (Bohr)" and len(ax.lines) == 22
    assert "1/1.7 to 1/10 1/Bohr, sigma = 68 Bohr, cutoff 15 Bohr" in report.text[0]
    assert report.data["mu_bohr"][0] == 1.7 and report.data["mu_bohr"][-1] == 10
    assert report.title.startswith("Fig. 2: the 20 ")


def test_fig_3_says_whether_larger_R_means_larger_error(make: Make) -> None:
    random = np.random.default_rng(0)
    R = 10 ** random.uniform(-2, 1, 4000)
    noise = random.exponential(size=R.size)
    for error, words in (
        (R**0.5 * noise, "Larger R means larger error, as in the paper."),
        (noise, "The interval holds 0"),
        (noise / R, "Larger R means smaller error, unlike in the paper."),
    ):
        report = fig_3(ROW, Found([make(R=R, error=error)]))
        assert words in " ".join(report.text)
    report = fig_3(ROW, Found([make(R=R, error=R * noise)]))
    spearman = report.data["spearman"]
    assert 0.6 < spearman["low"] < spearman["rho"] < spearman["high"] < 0.9
    share = np.mean(R >= 0.03)
    assert f"{100 * share:.1f} % of the molecules have R >= 0.03" in report.text[2]
    assert report.data["spearman_above_0.03"]["rho"] < spearman["rho"]  # a narrower range
    quarters = report.data["quarters"]
    assert [q["R_from"] < q["R_to"] for q in quarters] == [True] * 4
    assert np.all(np.diff([q["0.99"] for q in quarters]) > 0)
    assert quarters[0]["0.5"] == pytest.approx(
        np.median((R * noise)[R < np.quantile(R, 0.25)]), rel=0.01
    )


def test_fig_3_pools_the_splits_of_the_best_runs(make: Make) -> None:
    worse = make(training=Training(epochs=500), mae=9.0)
    better = [make(training=Training(seed=k)) for k in range(3)]
    report = fig_3(ROW, Found([worse, *better]))
    assert "over 6,000 test molecules" in report.text[1]
    assert "3 splits (seeds 0, 1, 2)" in report.text[0]
    assert report.figure is not None
    heights = report.figure.axes[0].patches[0].get_data().values
    assert heights.max() > 0 and len(heights) == pytest.approx(2 / 0.066, abs=2)


def test_too_few_molecules_for_fig_3(make: Make) -> None:
    report = fig_3(ROW, Found([make(R=np.linspace(0.1, 1, 20))]))
    assert report.figure is None and "widen bin_width" in report.text[1]


def test_orders(make: Make) -> None:
    report = orders(ROW, Found([make(), make(training=Training(seed=1))]))
    assert "the MAE falls by 5, 5 times" in report.text[1]
    assert report.table is not None
    assert list(report.table.rows[2]) == ["2", "6.500", "0.800"]
    flat = make(training=Training(seed=2), truncated_mae=[])
    assert "one order only" in orders(ROW, Found([flat])).text[0]


def test_sensitivities(make: Make) -> None:
    report = trained_sensitivities(ROW, Found([make()]))
    assert report.figure is not None and len(report.figure.axes) == 2
    first, second = (np.array([line.get_ydata() for line in ax.lines]) for ax in report.figure.axes)
    assert np.abs(first - second).max() > 0.1 and first.shape == (41, 800)
    np.testing.assert_array_equal(first[:20], second[:20])  # initial ones: the same in all layers


def test_learning_curve(make: Make) -> None:
    rows = table_1(QM9Set(), ["50000", "110426", "10000"])
    records = [make(row=row, mae=mae) for row, mae in zip(rows[:2], (0.5, 0.4), strict=True)]
    report = learning_curve(rows, Found(records))
    assert report.table is not None
    assert [row[0] for row in report.table.rows] == ["9,000", "49,000", "109,426"]
    assert report.table.rows[0][-1] == "not run" and report.table.rows[1][2].endswith("(+36.5)")
    assert [(line["num_train"], line["mae"]) for line in report.data] == [
        (49_000, {"value": 0.5, "bar": None}), (109_426, {"value": 0.4, "bar": None})
    ]  # fmt: skip
    assert report.figure is not None
    ax = report.figure.axes[0]
    ours = ax.containers[0].lines[0]
    np.testing.assert_array_equal(ours.get_xdata(), [49_000, 109_426])
    np.testing.assert_array_equal(ours.get_ydata(), [0.5, 0.4])
    assert [c.get_label() for c in ax.containers] == [
        "fast, 100 epochs", "printed in the paper", "SchNet (quoted there)"
    ]  # fmt: skip


def test_time_curve(make: Make) -> None:
    records = [make(training=Training(epochs=5), seconds=600.0, mae=0.9), make(mae=0.5)]
    report = time_curve(ROW, Found(records))
    assert report.table is not None and report.figure is not None
    assert [row[:3] for row in report.table.rows] == [
        ["fast, 5 epochs", "0.900", "10.0"], ["fast, 100 epochs", "0.500", "60.0"]
    ]  # fmt: skip
    lines = [container.lines[0] for container in report.figure.axes[0].containers]
    np.testing.assert_array_equal(lines[0].get_xdata(), [20.0, 40.0, 60.0])  # minutes
    np.testing.assert_array_equal(lines[0].get_ydata(), [2.0, 2.0, 1.0])  # the best so far
    np.testing.assert_array_equal(lines[1].get_xdata(), [10.0])
    (printed,) = (line for line in report.figure.axes[0].lines if "paper" in str(line.get_label()))
    np.testing.assert_array_equal(printed.get_ydata(), ROW.paper["mae"][0])
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    elsewhere = replace(records[1], hardware="a GPU")  # then the times need to say where
    rows = time_curve(ROW, Found([records[0], elsewhere])).table.rows  # type: ignore[union-attr]
    assert [row[0] for row in rows] == [
        "fast, 5 epochs (abacus, 2 beads)", "fast, 100 epochs (a GPU)"
    ]  # fmt: skip


def test_reports_are_written(make: Make, tmp_path: Path) -> None:
    found = Found([make()])
    for name, output in OUTPUTS.items():
        report = output.report(output.usual_rows(), found)
        assert report.name == name
        files = report.write(tmp_path / "out")
        assert {path.suffix for path in files} >= {".md", ".json"}
        json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert (tmp_path / "out" / f"{name}.md").read_text().startswith(f"## {report.title}\n")
