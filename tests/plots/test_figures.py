"""The content of each figure: lines, labels, units and printed numbers."""

import numpy as np
import pytest

from hipnn_pyg.plots import (
    Curve,
    error_curves,
    learning_curves,
    order_energies,
    parity,
    sensitivities,
    sensitivities_by_layer,
)
from hipnn_pyg.plots.parity import MAX_SCATTER


def texts(ax):
    return "\n".join(text.get_text() for text in ax.texts)


def line(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


def test_learning_curves_hold_the_data_and_the_reference():
    mae, rate = [3.0, 1.0, 0.3], [1e-3, 1e-3, 5e-4]
    figure = learning_curves(
        [0, 5, 10],
        {"validation MAE": mae, "validation RMSE": [4.0, 2.0, 0.6]},
        unit="meV",
        learning_rate=rate,
        reference={"paper": 0.256},
    )
    errors, rates = figure.axes
    drawn = line(errors, "validation MAE")
    np.testing.assert_array_equal(drawn.get_xdata(), [0, 5, 10])
    np.testing.assert_array_equal(drawn.get_ydata(), mae)
    np.testing.assert_array_equal(rates.lines[0].get_ydata(), rate)
    np.testing.assert_array_equal(line(errors, "paper, 0.256").get_ydata(), 0.256)
    assert errors.get_ylabel() == "Error (meV)" and errors.get_yscale() == "log"
    assert rates.get_xlabel() == "Epoch" and "Learning rate" in rates.get_ylabel()
    low, high = errors.get_ylim()
    assert low < 0.256 and high > 4.0


def test_learning_curves_have_only_the_panels_asked_for():
    curves = {"MAE": [2.0, 1.0]}
    assert len(learning_curves([1, 2], curves).axes) == 1
    assert len(learning_curves([1, 2], curves, loss=[0.2, 0.1]).axes) == 2
    figure = learning_curves([1, 2], curves, loss=[0.2, 0.1], learning_rate=[0.1, 0.1])
    assert len(figure.axes) == 3
    assert "dimensionless" in figure.axes[1].get_ylabel()


@pytest.mark.parametrize("span", [1.001, 1.2, 3, 30, 1e5])
def test_learning_curve_ticks_are_distinct_numbers(span):
    figure = learning_curves([1, 2], {"MAE": [0.3 * span, 0.3]})
    figure.draw_without_rendering()
    ax = figure.axes[0]
    low, high = ax.get_ylim()
    ticks = [t.label1.get_text() for t in ax.yaxis.get_major_ticks() if low <= t.get_loc() <= high]
    assert len(ticks) >= 2 and len(set(ticks)) == len(ticks)
    assert all(float(tick) > 0 for tick in ticks)


def test_parity_prints_mae_and_rmse_in_the_unit():
    target = np.array([0.0, 10.0, 20.0, 30.0])
    error = np.array([1.0, -1.0, 3.0, -3.0])
    figure = parity(target, target + error, "kcal/mol", title="ethanol")
    top, bottom = figure.axes
    assert "MAE 2 kcal/mol" in texts(top) and "RMSE 2.24 kcal/mol" in texts(top)
    assert "N = 4" in texts(top)
    np.testing.assert_array_equal(top.lines[0].get_xdata(), target)
    np.testing.assert_array_equal(top.lines[0].get_ydata(), target + error)
    assert top.lines[1].get_slope() == 1
    assert top.get_xlabel().startswith("Target") and top.get_ylabel().startswith("Prediction")
    assert bottom.get_xlabel().startswith("Prediction − target")
    counts, edges, _ = parity(target, target + 2.0, "eV").axes[1].patches[0].get_data()
    assert edges[:-1][counts > 0].min() > 0  # too large is on the right
    labels = (top.get_xlabel(), top.get_ylabel(), bottom.get_xlabel())
    assert all("(kcal/mol)" in label for label in labels)
    assert figure.get_suptitle() == "ethanol"


def test_parity_histogram_counts_every_error_or_says_how_many_are_outside():
    rng = np.random.default_rng(0)
    error = rng.normal(size=1000)
    few = parity(np.zeros(50), error[:50], "eV").axes[1]
    assert few.patches[0].get_data().values.sum() == 50 and texts(few) == ""

    error[7] = 1e3
    many = parity(np.zeros(1000), error, "eV").axes[1]
    inside = int(many.patches[0].get_data().values.sum())
    assert 985 <= inside < 1000
    assert f"{1000 - inside} outside" in texts(many) and "largest 1e+03" in texts(many)
    both = parity(np.zeros(2000), np.concatenate([error, -error]), "eV").axes[1]
    assert f"{2 * (1000 - inside)} outside" in texts(both) and "largest 1e+03" in texts(both)
    below = parity(np.zeros(1000), -np.abs(error), "eV").axes[1]
    assert texts(below) == texts(many)


def test_parity_switches_to_hexagons_for_many_points():
    x = np.linspace(-1, 1, MAX_SCATTER + 1)
    hexagons = parity(x, x**3, "eV").axes[0]
    assert hexagons.collections[0].get_array().sum() == len(x)
    dots = parity(x[1:], x[1:] ** 3, "eV").axes[0]
    assert not dots.collections and len(dots.lines[0].get_xdata()) == MAX_SCATTER


def test_parity_of_a_perfect_or_constant_prediction():
    top, bottom = parity([2.0, 2.0], [2.0, 2.0], "eV").axes
    assert "MAE 0 eV" in texts(top)
    assert bottom.get_xlim() == (-1, 1)


def test_sensitivities_draws_each_function_under_the_cutoff():
    r = np.linspace(0.5, 9.0, 100)
    phi = np.where(r < 8, np.cos(np.pi * r / 16) ** 2, 0)
    s = phi[:, None] * np.exp(-((r[:, None] - np.array([2.0, 4.0, 6.0])) ** 2))
    ax = sensitivities(r, s, phi, r_cut=7.94, initial=0.5 * s).axes[0]
    before, after, cutoff, radius = ax.lines[:3], ax.lines[3:6], ax.lines[6], ax.lines[7]
    for k in range(3):
        np.testing.assert_array_equal(after[k].get_ydata(), s[:, k])
        np.testing.assert_array_equal(before[k].get_ydata(), 0.5 * s[:, k])
    np.testing.assert_array_equal(cutoff.get_ydata(), phi)
    assert cutoff.get_linestyle() == "--" and cutoff.get_color() == "black"
    assert {curve.get_color() for curve in after} == {"#0072B2"}
    assert list(radius.get_xdata()) == [7.94, 7.94] and "7.94 Å" in radius.get_label()
    assert ax.get_xlabel() == "Distance $r$ (Å)" and "dimensionless" in ax.get_ylabel()
    assert len(ax.get_legend().get_texts()) == 4

    bohr = sensitivities(r, s, phi, length_unit="Bohr").axes[0]
    assert bohr.get_xlabel() == "Distance $r$ (Bohr)" and len(bohr.lines) == 4


def test_sensitivities_by_layer_draws_each_layer_over_the_initial_ones():
    r = np.linspace(0.5, 8.0, 30)
    phi = np.cos(np.pi * r / 16) ** 2
    before = np.stack([phi, 0.5 * phi], axis=1)
    figure = sensitivities_by_layer(r, [0.9 * before, 0.8 * before, 0.7 * before], phi, before)
    assert len(figure.axes) == 3
    for ax, factor in zip(figure.axes, (0.9, 0.8, 0.7), strict=True):
        for k in range(2):
            np.testing.assert_array_equal(ax.lines[k].get_ydata(), before[:, k])
            np.testing.assert_array_equal(ax.lines[2 + k].get_ydata(), factor * before[:, k])
        np.testing.assert_array_equal(ax.lines[4].get_ydata(), phi)
    assert "interaction 3" in figure.axes[2].get_ylabel()
    assert figure.axes[2].get_xlabel() == "Distance $r$ (Å)" and not figure.axes[0].get_xlabel()


def test_orders_that_decay_exponentially_are_a_straight_line():
    figure = order_energies([1000.0, 100.0, 10.0], [50.0, 5.0, 0.5], unit="meV")
    ax = figure.axes[0]
    figure.draw_without_rendering()
    for drawn, values in zip(ax.lines, ([1000, 100, 10], [50, 5, 0.5]), strict=True):
        np.testing.assert_array_equal(drawn.get_ydata(), values)
        x, y = ax.transData.transform(drawn.get_xydata()).T
        np.testing.assert_allclose(np.diff(y, 2), 0, atol=1e-6)
        np.testing.assert_allclose(np.diff(x, 2), 0, atol=1e-6)
    assert texts(ax).split("\n") == ["1,000", "100", "10", "50", "5", "0.5"]
    assert "(meV)" in ax.get_ylabel()
    assert [t for t in ax.get_xticks() if 0 <= t <= 2] == [0, 1, 2]


def test_error_curves_hold_points_bars_and_levels():
    figure = error_curves(
        {
            "ours": Curve([1e3, 1e4, 1e5], [3.0, 1.0, 0.4], [0.3, 0.1, 0.04], marker="o"),
            "_end": Curve([2e5], [0.3], line=False, marker="s", continued=True),
            "other": Curve([1e3], [2.0]),
            "paper": Curve([1e4, 1e5], [0.9, 0.26], reference=True),
        },
        "Training molecules",
        "MAE (kcal/mol)",
        {"goal": 0.25},
    )
    ax = figure.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    ours, end, other, paper = ax.containers
    np.testing.assert_array_equal(ours.lines[0].get_xdata(), [1e3, 1e4, 1e5])
    (bars,) = ours.lines[2]
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [2.7, 3.3])
    colours = [container.lines[0].get_color() for container in (ours, end, other, paper)]
    assert colours[0] == colours[1] == "#0072B2" and colours[2] == "#D55E00"
    assert colours[3] == "0.45" and paper.lines[0].get_linestyle() == "--"
    assert end.lines[0].get_linestyle() == "None" and end.lines[0].get_marker() == "s"
    np.testing.assert_array_equal(line(ax, "goal, 0.25").get_ydata(), 0.25)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(shown) == {"goal, 0.25", "ours", "other", "paper"}


@pytest.mark.parametrize("span", [1.001, 1.5, 4, 40, 1e4])
def test_error_curve_ticks_are_distinct_plain_numbers(span):
    figure = error_curves({"a": Curve([20.0, 20.0 * span], [0.3 * span, 0.3])}, "x", "y")
    figure.draw_without_rendering()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = [t.label1.get_text() for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
        assert len(ticks) >= 2 and len(set(ticks)) == len(ticks)
        assert all("e" not in tick and float(tick.replace(",", "")) > 0 for tick in ticks)
