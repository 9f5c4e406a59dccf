"""The figure of error bars holds what it was given, and refuses what has no place on it."""

from __future__ import annotations

import io

import numpy as np
import pytest

from hipnn_pyg.plots import plot_error_bars

LEVELS = (0.5, 0.9, 0.95)
R = np.geomspace(0.1, 2, 30)
WIDTH = R[:, None] ** 0.5 * np.array([0.3, 1.0, 1.4])
QUARTILES = np.tile(LEVELS, (4, 1)) + 0.01 * np.arange(4)[:, None]
CRPS = {
    f"{kind}, {geometry}": (0.99 - 0.03 * k, 0.004)
    for k, kind in enumerate(("R", "spread", "both"))
    for geometry in ("given", "RDKit")
}


def figure(**changes):
    values = {
        "half_widths": {"geometry as given": (R, WIDTH), "RDKit geometry": (R, 8 * WIDTH)},
        "coverage": {"geometry as given": QUARTILES, "RDKit geometry": QUARTILES - 0.02},
        "num_test": {"geometry as given": 3600, "RDKit geometry": 900},
        "levels": LEVELS,
        "relative_crps": CRPS,
    }
    return plot_error_bars(**(values | changes))


def test_panels_hold_the_data():
    top, middle, bottom = figure().axes
    assert len(top.lines) == 6 and top.get_xscale() == top.get_yscale() == "log"
    labels = [line.get_label() for line in top.lines]
    assert labels[:2] == ["50 %, geometry as given", "90 %, geometry as given"]
    np.testing.assert_array_equal(top.lines[4].get_ydata(), 8 * WIDTH[:, 1])
    faces = [line.get_markerfacecolor() for line in (top.lines[0], top.lines[3])]
    dots = [line.get_markerfacecolor() for line in middle.lines if line.get_marker() == "o"]
    assert faces == [dots[0], dots[3]] == [dots[0], "none"]  # the legend is of both panels
    assert "10^" not in "".join(label.get_text() for label in top.get_yticklabels(which="both"))
    assert "(kcal/mol)" in top.get_ylabel() and "dimensionless" in top.get_xlabel()
    points = [line.get_ydata() for line in middle.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(points[0], [0, 1, 2, 3])
    np.testing.assert_allclose(points[3], [-2, -1, 0, 1])
    bars = [bar.lines[2][0].get_segments() for bar in middle.containers]
    lengths = np.array([[top[1] - bottom[1] for bottom, top in segments] for segments in bars])
    np.testing.assert_allclose(lengths[1], 4 * 100 * np.sqrt(0.09 / 900))  # 2 errors up and down
    np.testing.assert_allclose(lengths[4], 2 * lengths[1])  # a quarter of the molecules
    assert [*bottom.lines[0].get_xdata()] == [value for value, _ in CRPS.values()]
    (segments,) = (segments.get_segments() for segments in bottom.containers[0].lines[2])
    np.testing.assert_allclose([right[0] - left[0] for left, right in segments], 4 * 0.004)
    assert [*bottom.lines[-1].get_xdata()] == [1, 1] and max(bottom.get_xlim()) > 1
    texts = [text.get_text().strip() for text in bottom.texts]
    assert texts == [f"{value:.3f} ± 0.004" for value, _ in CRPS.values()]
    assert [text.get_position()[1] for text in bottom.texts] == [*bottom.lines[0].get_ydata()]
    names = [label.get_text() for label in bottom.get_yticklabels()]
    assert names == list(CRPS)


def test_figure_is_labelled_fits_a_column_and_no_text_overlaps():
    drawn = figure()
    drawn.savefig(io.BytesIO(), format="png")
    assert drawn.get_figwidth() == pytest.approx(3.37)
    labels = [label for ax in drawn.axes for label in (ax.xaxis.label, ax.yaxis.label)]
    assert all(label.get_text() for label in labels)
    boxes = [label.get_window_extent() for label in labels]
    boxes += [legend.get_window_extent() for legend in drawn.legends]
    names = drawn.axes[2].get_yticklabels()
    boxes += [text.get_window_extent() for text in (*drawn.axes[2].texts, *names)]
    width, height = drawn.canvas.get_width_height()
    for k, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:k])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"half_widths": {}}, "nothing to draw"),
        ({"relative_crps": {}}, "nothing to draw"),
        ({"half_widths": {"a": (R, WIDTH[:, :2])}}, r"half-widths of a.*\(30, 3\)"),
        ({"half_widths": {"a": (R, 0 * WIDTH)}}, "half-widths of a.*above 0"),
        ({"coverage": {"a": QUARTILES[:3]}}, r"coverage of a.*\(4, 3\)"),
        ({"relative_crps": {"R": (np.nan, 0)}}, "relative_crps.*finite"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        figure(**changes)
