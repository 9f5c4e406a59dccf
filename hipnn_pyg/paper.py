"""Figures printed in the paper (J. Chem. Phys. 148, 241715, 2018), in kcal/mol.

The same numbers, with their source, are in ``datasets/paper/``.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A row of Table II: mean over 8 splits and error bar (sample standard deviation / sqrt 8)."""

    mae: tuple[float, float]
    rmse: tuple[float, float]
    above_1_kcal: tuple[float, float]


TABLE_1 = {110_426: (0.256, 0.003), 100_000: (0.261, 0.002), 50_000: (0.354, 0.004)}
"""QM9 MAE of the 80-feature model against N_train + N_validate."""

TABLE_2 = {
    (5, True): Published((1.177, 0.014), (1.851, 0.019), (42.18, 0.58)),
    (10, True): Published((0.653, 0.007), (1.077, 0.015), (18.95, 0.37)),
    (20, True): Published((0.398, 0.005), (0.706, 0.025), (6.60, 0.16)),
    (40, True): Published((0.274, 0.003), (0.539, 0.014), (2.65, 0.06)),
    (60, True): Published((0.261, 0.004), (0.552, 0.024), (2.37, 0.09)),
    (80, True): Published((0.256, 0.003), (0.527, 0.020), (2.26, 0.07)),
    (60, False): Published((0.278, 0.008), (0.522, 0.013), (2.75, 0.21)),
    (80, False): Published((0.293, 0.008), (0.539, 0.013), (3.10, 0.21)),
}
"""QM9, N_train + N_validate = 110,426: by (N_feature, hierarchical)."""

TABLE_3 = {
    "benzene": (0.162, 0.002),
    "malonaldehyde": (0.970, 0.019),
    "salicylic acid": (1.444, 0.024),
    "toluene": (0.880, 0.019),
}
"""MD17 MAE, 1,000 training frames, energies only."""
