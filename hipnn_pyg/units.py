"""Units: eV and Å inside; constants and conversions come from ``ase.units`` (CODATA 2018).

Each constant is its value in eV (energies), Å (lengths) or eV/Å^3 (stress). Time and
Boltzmann's constant in simulations are those of ``ase.units`` itself (CODATA 2014), as in ASE's
integrators.
"""

from __future__ import annotations

from typing import TypeVar

from ase.units import create_units

_codata = create_units("2018")

eV: float = _codata["eV"]
meV: float = 1e-3 * eV
Hartree: float = _codata["Hartree"]
kcal_per_mol: float = _codata["kcal"] / _codata["mol"]
kJ_per_mol: float = _codata["kJ"] / _codata["mol"]
Angstrom: float = _codata["Angstrom"]
Bohr: float = _codata["Bohr"]
nm: float = _codata["nm"]
GPa: float = _codata["GPa"]

ENERGY_UNITS = {
    "eV": eV,
    "meV": meV,
    "Hartree": Hartree,
    "kcal/mol": kcal_per_mol,
    "kJ/mol": kJ_per_mol,
}
LENGTH_UNITS = {"Angstrom": Angstrom, "Bohr": Bohr, "nm": nm}

T = TypeVar("T")  # a float, an array or a tensor


def convert(value: T, from_unit: str, to_unit: str) -> T:
    """Convert an energy or a length between two named units.

    Args:
        value: number, array or tensor in ``from_unit``.
        from_unit: a key of :data:`ENERGY_UNITS` or :data:`LENGTH_UNITS`.
        to_unit: a key of the same table.

    Returns:
        ``value`` in ``to_unit``.

    Raises:
        ValueError: a unit is unknown, or one is an energy and the other a length.
    """
    for table in (ENERGY_UNITS, LENGTH_UNITS):
        if from_unit in table and to_unit in table:
            return value * (table[from_unit] / table[to_unit])  # type: ignore[operator, return-value]
    raise ValueError(
        f"cannot convert {from_unit!r} to {to_unit!r}: choose both from {sorted(ENERGY_UNITS)} "
        f"or both from {sorted(LENGTH_UNITS)}"
    )


def reported(unit: str) -> tuple[float, str]:
    """What errors are reported in: kcal/mol if the unit is an energy, else the unit itself.

    Args:
        unit: of a target.

    Returns:
        The factor to it, and its name.
    """
    if unit not in ENERGY_UNITS:
        return 1.0, unit
    return convert(1.0, unit, "kcal/mol"), "kcal/mol"
