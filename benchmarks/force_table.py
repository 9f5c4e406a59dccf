"""The table of energies and forces on MD17, from the files in ``results/forces/``.

A file is what ``hipnn evaluate RUN --forces --json FILE`` wrote, or what ``examples/07_forces.py
--json results/forces`` did. Its name does not matter: molecule, seed and model stand in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hipnn_pyg.reproduce.groups import mean
from hipnn_pyg.reproduce.report import Table
from hipnn_pyg.reproduce.tables import number

MOLECULES = ("benzene", "malonaldehyde", "toluene")
METHODS = {
    "energies": "HIP-NN, energies only",
    "forces": "HIP-NN with forces",
    "longer": "HIP-NN with forces, longer",
    "SchNet": "SchNet with forces",
}
PUBLISHED = {"benzene": (0.08, 0.31), "malonaldehyde": (0.13, 0.66), "toluene": (0.12, 0.57)}
"""SchNet, 1,000 frames with forces: MAE of energies (kcal/mol) and forces (kcal/mol/Å), Schütt et
al., J. Chem. Phys. 148, 241722 (2018)."""
SHORT = 30
"""Minutes of training up to which HIP-NN stands beside SchNet; what took longer stands apart."""
QUANTITIES = ("energy (kcal/mol)", "forces (kcal/mol/Å)")
NOT_RUN = "not run"


class Run(NamedTuple):
    """Test errors of one model on one split.

    Attributes:
        method: a key of :data:`METHODS`, or another that the table does not show.
        molecule: name of the trajectory.
        seed: of the split.
        errors: MAE of energies and of force components.
        minutes: of training, at least.
        trained: date, machine and versions.
        sensitivities: N_sensitivity of HIP-NN, else 0.
        whole: whether the minutes are all there were: of some stages only those up to the best
            epoch are known.
    """

    method: str
    molecule: str
    seed: int
    errors: tuple[float, float]
    minutes: float
    trained: str
    sensitivities: int = 0
    whole: bool = True


def read_run(path: Path) -> Run:
    """One result file of either kind.

    Raises:
        ValueError: forces were not tested, or not on the test set.
    """
    result: dict[str, Any] = json.loads(path.read_text())
    if "method" in result:
        errors = (result["mae"], result["force_mae"])
        method = "SchNet" if result["method"].startswith("SchNet") else "HIP-NN, plain loop"
        seconds, trained_on, sensitivities, whole = result["seconds"], result, 0, True
    else:
        if "forces" not in result or result["part"] != "test":
            raise ValueError(f"{path} has no test of forces: hipnn evaluate RUN --forces --json")
        model = result["model"]
        errors = (result["mae"], result["forces"]["mae"])
        seconds = result.get("seconds", model["training_seconds"])
        whole = "seconds" in result and "started_from" not in model
        stage = model
        while stage := stage.get("started_from", {}):
            seconds += stage.get("training_seconds", 0)
        method = "forces" if seconds <= 60 * SHORT else "longer"
        method = method if model["trained_on_forces"] else "energies"
        trained_on = model["trained_on"]
        sensitivities = model["hyperparameters"]["num_sensitivities"]
        result = model
    where = f"{trained_on['machine']}, torch {trained_on['torch']}, {trained_on['date']}"
    place = (method, result["molecule"], result["seed"])
    return Run(*place, errors, seconds / 60, where, sensitivities, whole)


def estimate(values: Sequence[float]) -> str:
    """Mean over the splits, from three on with its error bar."""
    return number(mean(values), 3) if values else NOT_RUN


def forces(folder: Path) -> str:
    """The table in Markdown, with a note on how it was made.

    Args:
        folder: of the result files.
    """
    runs = [read_run(path) for path in sorted(folder.glob("*.json"))]
    counted = Counter((run.method, run.molecule, run.seed) for run in runs)
    if twice := [run for run, times in counted.items() if times > 1]:
        raise ValueError(f"{folder} has two results of {twice[0]}: keep one, or train other seeds")
    rows, notes = [], []
    for molecule in MOLECULES:
        mine = [run for run in runs if run.molecule == molecule]
        for k, quantity in enumerate(QUANTITIES):
            cells = [
                estimate([run.errors[k] for run in mine if run.method == method])
                for method in METHODS
            ]
            published = f"{PUBLISHED[molecule][k]:.2f}"
            rows.append([molecule if k == 0 else "", quantity, *cells, published])
    for method, name in METHODS.items():
        those = [run for run in runs if run.method == method and run.molecule in MOLECULES]
        if those:
            minutes = sorted({round(run.minutes) for run in those})
            span = " to ".join(map(str, dict.fromkeys((minutes[0], minutes[-1]))))
            seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in those}))
            of_each = {run.molecule: run.sensitivities for run in those if run.sensitivities}
            sizes = ", ".join(f"{molecule} {size}" for molecule, size in of_each.items())
            sizes = f"; sensitivities: {sizes}" if len(set(of_each.values())) > 1 else ""
            least = "" if all(run.whole for run in those) else "at least "
            places = "; ".join(dict.fromkeys(run.trained for run in those))
            notes.append(
                f"{name}: {least}{span} minutes of training; seeds {seeds}{sizes}; {places}."
            )
    headings = ["trajectory", "MAE of", *METHODS.values(), "SchNet, published"]
    table = Table(headings, rows, wide=("MAE of",)).markdown()
    return "\n\n".join([table, *notes])
