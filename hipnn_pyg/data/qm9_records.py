"""The QM9 records that the ``qm9pack`` wheel carries, parsed as whole columns; no internet."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers

NUM_QM9 = 133_885
"""Molecules of QM9 (gdb9) before any is excluded; their 1-based index runs to this number."""

PROPERTIES: dict[str, str] = {
    "A": "RotA_GHz",
    "B": "RotB_GHz",
    "C": "RotC_GHz",
    "mu": "Dipole_debye",
    "alpha": "Polarizability_bohr3",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "gap": "HOMO_LUMO_gap_au",
    "r2": "R2_bohr2",
    "zpve": "ZPVE_au",
    "u0": "InternalEnergy_0K_au",
    "u298": "InternalEnergy_298K_au",
    "h298": "Enthalphy_298K_au",
    "g298": "GibbsFreeEnergy_298K_au",
    "cv": "Heatcapacity_Cv_cal_mol_K",
}
"""The 15 properties of a record: name in ``gdb9.sdf.csv`` -> column of the wheel."""

FREE_ATOM_ENERGIES: dict[str, tuple[float, float, float, float]] = {
    "H": (-0.500273, -0.498857, -0.497912, -0.510927),
    "C": (-37.846772, -37.845355, -37.844411, -37.861317),
    "N": (-54.583861, -54.582445, -54.581501, -54.598897),
    "O": (-75.064579, -75.063163, -75.062219, -75.079532),
    "F": (-99.718730, -99.717314, -99.716370, -99.733544),
}
"""Free atoms, U(0 K), U, H and G at 298.15 K in Hartree (``datasets/qm9/free_atoms.txt``)."""


@dataclass(frozen=True)
class QM9Records:
    """M molecules with N atoms in all, packed: molecule ``m`` owns atoms ``ptr[m]:ptr[m + 1]``."""

    index: np.ndarray
    """1-based gdb9 index, ascending, [M] int64."""
    smiles: list[str]
    """The SMILES of GDB-17, without stereo or explicit hydrogens, M strings."""
    ptr: np.ndarray
    """First atom of every molecule, then N, [M + 1] int64."""
    z: np.ndarray
    """Atomic numbers, [N] int64."""
    pos: np.ndarray
    """Positions in Å as recorded (10 decimals), [N, 3] float64."""
    properties: np.ndarray
    """The columns of :data:`PROPERTIES` in the record's units (Hartree, GHz, ...), [M, 15]."""

    def atomization_energies(self) -> np.ndarray:
        r"""U0, U, H and G minus the free atoms', :math:`E - \sum_i E^{atom}_i`.

        Returns:
            Hartree, [M, 4] float64, negative for a bound molecule.
        """
        free = np.zeros((max(atomic_numbers[s] for s in FREE_ATOM_ENERGIES) + 1, 4))
        for symbol, energies in FREE_ATOM_ENERGIES.items():
            free[atomic_numbers[symbol]] = energies
        first = list(PROPERTIES).index("u0")
        atoms = np.add.reduceat(free[self.z], self.ptr[:-1], axis=0)
        return self.properties[:, first : first + 4] - atoms


def qm9pack_files() -> list[Path]:
    """The CSV parts inside the installed ``qm9pack`` wheel, which is never imported.

    Its ``__init__`` needs ``pkg_resources``, which current setuptools no longer carries.

    Raises:
        ModuleNotFoundError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            'QM9 without a download needs qm9pack: pip install "hipnn_pyg[data]"', name="qm9pack"
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = sorted(folder.glob("qm9_part*.csv"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no qm9_part*.csv; reinstall it: pip install --force-reinstall "
            "qm9pack==1.0.3"
        )
    return files


def read_qm9pack() -> QM9Records:
    """Read every record of the ``qm9pack`` wheel (seconds; all numbers in float64).

    Returns:
        The 130,831 molecules that QM9's own consistency check kept, in ascending index.

    Raises:
        ModuleNotFoundError: ``qm9pack`` or pandas is not installed.
        ValueError: a column holds something that is not a number or not an element.
    """
    table = _read_table(qm9pack_files()).sort_values("Index", kind="stable")
    ptr = np.concatenate([[0], np.cumsum(table["N_atoms"].to_numpy(np.int64))])
    pos = _parse_numbers("".join(table["XYZ_Ang"]), 3 * int(ptr[-1])).reshape(-1, 3)
    z = _parse_elements("".join(table["Elements"]), int(ptr[-1]))
    properties = table[list(PROPERTIES.values())].to_numpy(np.float64)
    if not np.isfinite(properties).all():
        raise ValueError("qm9pack holds a property that is not a number; reinstall the wheel")
    index = table["Index"].to_numpy(np.int64)
    return QM9Records(index, table["SMILES"].tolist(), ptr, z, pos, properties)


def _read_table(files: list[Path]) -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise ModuleNotFoundError(
            'reading qm9pack needs pandas: pip install "hipnn_pyg[data]"', name="pandas"
        ) from error
    columns = ["Index", "SMILES", "N_atoms", "Elements", "XYZ_Ang", *PROPERTIES.values()]
    return pd.concat([pd.read_csv(file, usecols=columns) for file in files], ignore_index=True)


def _parse_numbers(text: str, count: int) -> np.ndarray:
    """Parse joined lists such as ``[[0.,1.5],[2.E-6,3.]][[...`` to ``count`` float64 numbers.

    ``*^`` is Mathematica's exponent mark, which the wheel's ``E`` could have been.
    """
    flat = text.replace("][", ",").replace("[", "").replace("]", "").replace("*^", "e")
    unknown = re.search(r"[^0-9.,eE+\-\s]", flat)
    if unknown:
        raise ValueError(f"{unknown.group()!r} in a list of coordinates is not part of a number")
    values = np.fromstring(flat, sep=",", dtype=np.float64)
    if len(values) != count:
        raise ValueError(f"found {len(values)} coordinates where the atom counts say {count}")
    return values


def _parse_elements(text: str, count: int) -> np.ndarray:
    """Parse joined lists such as ``['C','H']['O',...`` to ``count`` atomic numbers."""
    letters = np.frombuffer(re.sub(r"[\[\]', ]", "", text).encode(), dtype=np.uint8)
    lookup = np.zeros(256, dtype=np.int64)
    for symbol in FREE_ATOM_ENERGIES:
        lookup[ord(symbol)] = atomic_numbers[symbol]
    z = lookup[letters]
    if len(z) != count or not z.all():
        raise ValueError(
            f"found {len(z)} element letters, {int((z == 0).sum())} of them not H, C, N, O or F, "
            f"where the atom counts say {count}"
        )
    return z
