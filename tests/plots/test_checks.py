"""What every plot does with bad input, and what none of them may do to the caller's session."""

import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from hipnn_pyg.plots import (
    Curve,
    error_curves,
    error_quantiles,
    learning_curves,
    order_energies,
    parity,
    plot_error_quantiles,
    sensitivities,
    sensitivities_by_layer,
)
from hipnn_pyg.plots.arrays import finite_array

R = np.linspace(0.5, 8.0, 50)
PHI = np.cos(np.pi * R / 16) ** 2
S = np.stack([PHI, 0.5 * PHI], axis=1)

FIGURES = {
    "learning": lambda: learning_curves(
        [1, 2, 3], {"MAE": [3.0, 2.0, 1.0]}, learning_rate=[1e-3] * 3, loss=[0.3, 0.2, 0.1]
    ),
    "parity": lambda: parity([1.0, 2.0], [1.1, 1.9], "eV"),
    "sensitivities": lambda: sensitivities(R, S, PHI, r_cut=8.0, title="layer 1"),
    "quantiles": lambda: plot_error_quantiles(
        error_quantiles(np.full(40, 0.1), np.linspace(0.1, 1, 40))
    ),
    "layers": lambda: sensitivities_by_layer(R, [S, 0.9 * S], PHI, S),
    "orders": lambda: order_energies([1755.0, 16.0, 6.5], [20.0, 4.0, 0.8]),
    "curves": lambda: error_curves(
        {"fast, 100 epochs": Curve([1, 9], [1.0, 0.5], [0.1, 0.1]), "_end": Curve([9], [0.4])},
        "Training molecules",
        "MAE (eV)",
        {"paper": 0.256},
    ),
    "long labels": lambda: error_curves(
        {
            f"fast, {n} epochs, learning_rate = 0.002, batch_size = 60": Curve([n], [n])
            for n in (1, 10, 100)
        },
        "Minutes of training",
        "MAE (kcal/mol)",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_saved_and_leaves_no_global_state(name):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        stream = io.BytesIO()
        figure.savefig(stream, format=kind)
        assert stream.getvalue().startswith(magic)
        assert len(stream.getvalue()) > 5_000
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_is_labelled_and_fits_one_column(name):
    figure = FIGURES[name]()
    assert figure.get_figwidth() == pytest.approx(3.37)
    assert all(ax.get_ylabel() for ax in figure.axes)
    assert figure.axes[-1].get_xlabel()


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_other_text_or_leaves_the_figure(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    labels = [label for ax in figure.axes for label in (ax.xaxis.label, ax.yaxis.label)]
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    width, height = figure.canvas.get_width_height()
    for k, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:k])


BAD = {
    "lengths": (lambda: learning_curves([1, 2, 3], {"MAE": [1.0, 2.0]}), r"MAE.*\(2,\).*\(3\)"),
    "no curve": (lambda: learning_curves([1, 2], {}), "curves is empty"),
    "log of 0": (lambda: learning_curves([1, 2], {"MAE": [1.0, 0.0]}), r"\[1\] = 0 .*above 0"),
    "reference": (
        lambda: learning_curves([1], {"MAE": [1.0]}, reference={"paper": -1.0}),
        r"reference\['paper'\].*above 0",
    ),
    "rate": (lambda: learning_curves([1], {"a": [1.0]}, learning_rate=[np.nan]), "learning_rate"),
    "broadcast": (lambda: parity(np.ones((3, 1)), np.ones(3), "eV"), r"\(3,\).*\(3, 1\)"),
    "nan": (lambda: parity([1.0, 2.0], [1.0, np.nan], "eV"), r"prediction\[1\] = nan.*finite"),
    "empty": (lambda: parity([], [], "eV"), "target is empty"),
    "s transposed": (lambda: sensitivities(R, S.T, PHI), r"s has shape \(2, 50\)"),
    "cutoff": (lambda: sensitivities(R, S, PHI[1:]), "cutoff_values has shape"),
    "initial": (lambda: sensitivities(R, S, PHI, initial=S[:, :1]), "initial has shape"),
    "signed error": (lambda: error_quantiles([0.1, 0.2], [0.1, -0.1]), "abs_error.*at least 0"),
    "negative R": (lambda: error_quantiles([-0.1, 0.2], [0.1, 0.1]), r"R\[0\] = -0.1.*at least 0"),
    "infinite R": (lambda: error_quantiles([np.inf, 0.2], [0.1, 0.1]), r"R\[0\] = inf.*finite"),
    "R all 0": (lambda: error_quantiles(np.zeros(20), np.ones(20)), "all 20 values of R are 0"),
    "p = 1": (lambda: error_quantiles([1.0], [1.0], p=(0.5, 1.0)), "p = 1.*below 1"),
    "too few": (lambda: error_quantiles(np.ones(9), np.ones(9)), "9 molecules.*min_count"),
    "no layer": (lambda: sensitivities_by_layer(R, [], PHI, S), "trained is empty"),
    "layer": (lambda: sensitivities_by_layer(R, [S, S.T], PHI, S), r"trained\[1\] has shape"),
    "orders": (lambda: order_energies([2.0, 1.0], [1.0]), "truncated_mae has shape"),
    "exact": (lambda: order_energies([2.0, 1.0], [1.0, 0.0]), r"truncated_mae\[1\] = 0.*above 0"),
    "nothing": (lambda: error_curves({}, "x", "y"), "curves is empty"),
    "minutes": (lambda: error_curves({"a": Curve([0.0], [1.0])}, "x", "y"), "x of 'a'.*above 0"),
    "bars": (lambda: error_curves({"a": Curve([1.0], [1.0], [-1.0])}, "x", "y"), "bar of 'a'"),
    "level": (
        lambda: error_curves({"a": Curve([1.0], [1.0])}, "x", "y", {"paper": 0.0}),
        r"levels\['paper'\]",
    ),
    "zero error": (
        lambda: plot_error_quantiles(error_quantiles(np.ones(20), np.zeros(20))),
        "quantiles.*above 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_finite_array_passes_good_input_through():
    np.testing.assert_array_equal(finite_array("x", torch.arange(3), (3,), at_least=0), [0, 1, 2])
    assert finite_array("x", 2, ()).dtype == np.float64
