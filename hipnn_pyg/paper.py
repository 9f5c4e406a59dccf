"""Figures printed in the paper (J. Chem. Phys. 148, 241715, 2018), energies in kcal/mol.

The same numbers, with their source, are in ``datasets/paper/``. A pair is a mean over
:data:`NUM_SPLITS` random splits and its error bar, the sample standard deviation over the root of
their number.
"""

from __future__ import annotations

from typing import NamedTuple

Estimate = tuple[float, float]
"""Mean and error bar."""

NUM_SPLITS = 8
SIGMA_E = 238.0
"""Standard deviation of the energies of QM9 (Sec. III.A)."""


class Published(NamedTuple):
    """A row of Table II."""

    mae: Estimate
    rmse: Estimate
    above_1_kcal: Estimate
    """Errors above 1 kcal/mol (%)."""
    parameters: str
    """Number of parameters, as printed."""


TABLE_1 = {110_426: (0.256, 0.003), 100_000: (0.261, 0.002), 50_000: (0.354, 0.004)}
"""QM9 MAE of the 80-feature model against N_train + N_validate."""

TABLE_1_OTHERS = {
    110_426: {"SchNet": 0.31, "MPNN": 0.42, "HDAD+KRR": 0.58},
    100_000: {"SchNet": 0.34, "DTNN": 0.84},
    50_000: {"MTM": 0.41, "SchNet": 0.49, "DTNN": 0.94},
}
"""QM9 MAE of other models as Table I quotes it."""

TABLE_2 = {
    (5, True): Published((1.177, 0.014), (1.851, 0.019), (42.18, 0.58), "1.6k"),
    (10, True): Published((0.653, 0.007), (1.077, 0.015), (18.95, 0.37), "4.9k"),
    (20, True): Published((0.398, 0.005), (0.706, 0.025), (6.60, 0.16), "17k"),
    (40, True): Published((0.274, 0.003), (0.539, 0.014), (2.65, 0.06), "61k"),
    (60, True): Published((0.261, 0.004), (0.552, 0.024), (2.37, 0.09), "134k"),
    (80, True): Published((0.256, 0.003), (0.527, 0.020), (2.26, 0.07), "234k"),
    (60, False): Published((0.278, 0.008), (0.522, 0.013), (2.75, 0.21), "134k"),
    (80, False): Published((0.293, 0.008), (0.539, 0.013), (3.10, 0.21), "234k"),
}
"""QM9, N_train + N_validate = 110,426: by (N_feature, hierarchical)."""

TABLE_3 = {
    "benzene": (0.162, 0.002),
    "malonaldehyde": (0.970, 0.019),
    "salicylic acid": (1.444, 0.024),
    "toluene": (0.880, 0.019),
}
"""MD17 MAE, 1,000 training frames, energies only."""

TABLE_3_50K = {
    "benzene": (0.064, 0.002),
    "malonaldehyde": (0.094, 0.001),
    "salicylic acid": (0.195, 0.002),
    "toluene": (0.144, 0.004),
}
"""MD17 MAE, 50,000 training frames, energies only (40 features, 3 on-site layers)."""

TABLE_3_OTHERS: dict[tuple[int, str], dict[str, dict[str, float]]] = {
    (1_000, "energies"): {
        "benzene": {"SchNet": 1.19},
        "malonaldehyde": {"SchNet": 2.03},
        "salicylic acid": {"SchNet": 3.27},
        "toluene": {"SchNet": 2.95},
    },
    (1_000, "energies and forces"): {
        "benzene": {"SchNet": 0.08, "GDML": 0.07},
        "malonaldehyde": {"SchNet": 0.13, "GDML": 0.16},
        "salicylic acid": {"SchNet": 0.20, "GDML": 0.12},
        "toluene": {"SchNet": 0.12, "GDML": 0.12},
    },
    (50_000, "energies"): {
        "benzene": {"SchNet": 0.08, "DTNN": 0.04},
        "malonaldehyde": {"SchNet": 0.13, "DTNN": 0.19},
        "salicylic acid": {"SchNet": 0.25, "DTNN": 0.41},
        "toluene": {"SchNet": 0.16, "DTNN": 0.18},
    },
    (50_000, "energies and forces"): {
        "benzene": {"SchNet": 0.07},
        "malonaldehyde": {"SchNet": 0.08},
        "salicylic acid": {"SchNet": 0.10},
        "toluene": {"SchNet": 0.09},
    },
}
"""MD17 MAE of other models as Table III quotes it: by (training frames, trained on)."""

FIG_3_BIN_WIDTH = 0.066
"""Width of a bin in log10 R (Sec. III.A)."""

FIG_3_RISES_FROM = 3e-2
"""R from which on larger R means larger error quantiles, "the vast majority" (Sec. III.A)."""
