"""Energy and temperature of a simulation: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from hipnn_pyg.plots import energy_against_time

TIME = np.linspace(0.0, 5.0, 50)
ENERGY = np.sin(9 * TIME)
TEMPERATURE = 300 + 20 * np.cos(7 * TIME)


def lines(figure: Figure) -> list[list[np.ndarray]]:
    return [[np.column_stack(line.get_data()) for line in ax.lines] for ax in figure.axes]


def test_energy_temperature_and_drift() -> None:
    figure = energy_against_time(TIME, ENERGY, TEMPERATURE, drift=0.2)
    (energy, drift), (temperature,) = lines(figure)
    np.testing.assert_array_equal(energy, np.column_stack((TIME, ENERGY)))
    np.testing.assert_array_equal(temperature, np.column_stack((TIME, TEMPERATURE)))
    assert np.ptp(drift[:, 1]) == pytest.approx(0.2 * 5) and drift[:, 1].mean() == pytest.approx(0)
    above, below = figure.axes
    assert "Total energy" in above.get_ylabel() and "meV/atom" in above.get_ylabel()
    assert below.get_xlabel() == "Time (ps)" and below.get_ylabel() == "Temperature (K)"
    assert "0.2 meV/atom/ps" in above.get_legend().get_texts()[0].get_text()


def test_without_drift_there_is_no_line() -> None:
    figure = energy_against_time(TIME, ENERGY, TEMPERATURE, "potential energy")
    assert [len(panel) for panel in lines(figure)] == [1, 1]
    assert "Potential energy" in figure.axes[0].get_ylabel() and not figure.axes[0].get_legend()


@pytest.mark.parametrize(
    "time, energy, temperature, message",
    [
        (TIME[:3], ENERGY, TEMPERATURE, "energy has shape"),
        (TIME, ENERGY, TEMPERATURE[1:], "temperature has shape"),
        (TIME, ENERGY * np.nan, TEMPERATURE, "finite"),
        (TIME, ENERGY, -TEMPERATURE, "at least 0"),
        ([], [], [], "empty"),
    ],
)
def test_bad_arrays_stop(
    time: np.ndarray, energy: np.ndarray, temperature: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        energy_against_time(time, energy, temperature)
