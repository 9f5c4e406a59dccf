"""How well a simulation conserves its energy: a straight line through energy against time."""

from __future__ import annotations

import math


class EnergyDrift:
    r"""Least squares of :math:`E(t) \approx a + b t`, one sample after the other.

    The sums are taken about the running means (Welford), so that total energies of -1e5 eV lose no
    digits, and nothing grows with the number of samples.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.mean_time = self.mean_energy = 0.0
        self._tt = self._te = self._ee = 0.0

    def add(self, time: float, energy: float) -> None:
        """Take one sample.

        Args:
            time: in ps.
            energy: total energy in eV.
        """
        self.samples += 1
        dt, de = time - self.mean_time, energy - self.mean_energy
        self.mean_time += dt / self.samples
        self.mean_energy += de / self.samples
        self._tt += dt * (time - self.mean_time)
        self._te += dt * (energy - self.mean_energy)
        self._ee += de * (energy - self.mean_energy)

    @property
    def slope(self) -> float:
        """b in eV/ps; NaN before the second sample."""
        return self._te / self._tt if self._tt > 0 else math.nan

    @property
    def fluctuation(self) -> float:
        """Standard deviation of the energy about the line in eV; NaN before the third sample."""
        if self.samples < 3:
            return math.nan
        residual = self._ee - self.slope * self._te
        return math.sqrt(max(residual, 0.0) / (self.samples - 2))
