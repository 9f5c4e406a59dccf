"""Error quantiles against R: values on known distributions, the bins, and what is left out."""

from itertools import pairwise

import numpy as np
import pytest

from hipnn_pyg.plots import error_quantiles, plot_error_quantiles

N = 200_000
P = (0.5, 0.75, 0.9, 0.95, 0.99)


def sample():
    rng = np.random.default_rng(1)
    return 10 ** rng.uniform(-2, 0, N), rng.exponential(size=N)


def test_quantiles_are_flat_where_the_error_ignores_R_and_rise_where_it_does_not():
    R, noise = sample()
    exact = -np.log1p(-np.array(P))  # quantiles of the unit exponential distribution

    flat = error_quantiles(R, 0.3 * noise, P, min_count=200)
    np.testing.assert_allclose(
        flat.quantiles, np.tile(0.3 * exact, (len(flat.log10_R), 1)), rtol=0.15
    )
    np.testing.assert_allclose(flat.quantiles.mean(axis=0), 0.3 * exact, rtol=0.01)

    rising = error_quantiles(R, R * noise, P, min_count=200)
    inner = slice(1, -1)  # the end bins are only partly filled
    expected = 10 ** rising.log10_R[inner, None] * exact
    np.testing.assert_allclose(rising.quantiles[inner], expected, rtol=0.15)
    slope = np.polyfit(rising.log10_R[inner], np.log10(rising.quantiles[inner]), 1)[0]
    np.testing.assert_allclose(slope, 1, atol=0.05)
    assert np.abs(np.polyfit(flat.log10_R, np.log10(flat.quantiles), 1)[0]).max() < 0.05


def test_each_bin_agrees_with_numpy():
    R, noise = sample()
    result = error_quantiles(R[:5000], noise[:5000], p=(0.2, 0.9), bin_width=0.25)
    for centre, values in zip(result.log10_R, result.quantiles, strict=True):
        inside = np.abs(np.log10(R[:5000]) - centre) < 0.125
        expected = np.quantile(noise[:5000][inside], (0.2, 0.9), method="weibull")
        np.testing.assert_allclose(values, expected)


def test_small_bins_promise_no_more_than_they_can():
    """Of n molecules p (n + 1) - 1 lie below on average, and of fewer than p / (1 - p) too few."""
    rng, below = np.random.default_rng(2), []
    for _ in range(2000):
        error = rng.exponential(size=20)
        found = error_quantiles(np.ones(20), error, p=(0.5, 0.9, 0.95, 0.99))
        assert np.isnan(found.quantiles[0]).tolist() == [False, False, False, True]
        below.append(-np.expm1(-found.quantiles[0, :3]))  # the share of all that lies below
    np.testing.assert_allclose(np.mean(below, axis=0), [0.5, 0.9, 0.95], atol=0.01)
    enough = error_quantiles(np.ones(99), rng.exponential(size=99), p=(0.99,))  # control
    assert np.isfinite(enough.quantiles).all()
    assert plot_error_quantiles(found).axes[0].lines[0].get_label() == "p = 0.5"


def test_fraction_below_the_quantile_is_p():
    R, noise = sample()
    result = error_quantiles(R, noise)
    index = np.searchsorted(result.bin_edges, np.log10(R)) - 1
    for k, p in enumerate(result.p):
        assert np.mean(noise < result.quantiles[index, k]) == pytest.approx(p, abs=2e-3)


def test_bins_are_of_the_stated_width_and_shared_by_different_test_sets():
    R, noise = sample()
    a = error_quantiles(R[:1000], noise[:1000])
    b = error_quantiles(3 * R[1000:3000], noise[1000:3000])
    for result in (a, b):
        np.testing.assert_allclose(np.diff(result.bin_edges), 0.066)
        whole = result.bin_edges / 0.066
        np.testing.assert_allclose(whole, np.round(whole), atol=1e-9)


def test_what_is_left_out_is_counted():
    R = np.concatenate([np.full(50, 0.1), np.full(9, 1.0), np.full(10, 10.0), np.zeros(4)])
    error = np.concatenate([np.full(50, 1.0), np.full(9, 2.0), np.full(10, 3.0), np.full(4, 9.0)])
    result = error_quantiles(R, error)
    np.testing.assert_array_equal(result.quantiles[:, 0], [1, 3])
    np.testing.assert_allclose(result.log10_R, [-1, 1], atol=0.066)
    assert (result.num_sparse, result.num_zero) == (9, 4)
    assert result.counts.sum() + result.num_zero == len(R)
    assert result.counts[result.kept].tolist() == [50, 10]
    assert np.isnan(result.quantiles).tolist() == [[False] * 4 + [True], [False] * 3 + [True] * 2]

    everything = error_quantiles(R[:-4], error[:-4], min_count=1)
    np.testing.assert_array_equal(everything.quantiles[:, 0], [1, 2, 3])
    assert (everything.num_sparse, everything.num_zero) == (0, 0)

    note = "Molecules in no line: 9 in bins of fewer than 10, 4 with R = 0"
    assert plot_error_quantiles(result).get_supxlabel() == note
    assert plot_error_quantiles(everything).get_supxlabel() == ""


def test_plot_draws_a_line_per_probability_over_the_histogram():
    result = error_quantiles(*sample())
    figure = plot_error_quantiles(result, unit="meV")
    ax = figure.axes[0]
    assert [line.get_label() for line in ax.lines] == [f"p = {p:g}" for p in P]
    for k, line in enumerate(ax.lines):
        np.testing.assert_allclose(line.get_xdata(), 10**result.log10_R)
        np.testing.assert_array_equal(line.get_ydata(), result.quantiles[:, k])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "(meV)" in ax.get_ylabel() and "dimensionless" in ax.get_xlabel()

    histogram = ax.patches[0]
    heights, edges, _ = histogram.get_data()
    np.testing.assert_allclose(heights / heights.max(), result.counts / result.counts.max())
    np.testing.assert_allclose(np.log10(edges), result.bin_edges, atol=1e-12)
    assert histogram.get_zorder() < min(line.get_zorder() for line in ax.lines)
    figure.draw_without_rendering()  # scaled to the panel, not to the errors
    filled, panel = histogram.get_window_extent(), ax.get_window_extent()
    assert filled.y0 == pytest.approx(panel.y0)
    assert filled.height == pytest.approx(0.9 * panel.height)


def test_the_title_stands_below_the_legend_and_ticks_apart():
    R, error = sample()
    figure = plot_error_quantiles(
        error_quantiles(0.5 * R ** (1 / 6), error), title="validation set"
    )
    figure.draw_without_rendering()
    ax = figure.axes[0]
    title, legend = ax.title.get_window_extent(), figure.legends[0].get_window_extent()
    assert ax.get_title() == "validation set" and title.y1 <= legend.y0
    assert np.diff(np.log10(ax.get_xlim())) < 1  # about one decade of R
    shown = [label for label in ax.get_xticklabels(which="both") if label.get_text()]
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.x0)
    assert len(boxes) >= 2 and all(a.x1 <= b.x0 for a, b in pairwise(boxes))
