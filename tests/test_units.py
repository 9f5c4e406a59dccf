"""Units: CODATA 2018 values, round trips, and agreement with the constants PyG's QM9 uses."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.datasets import qm9

from hipnn_pyg import units
from hipnn_pyg.units import convert, reported

METHANE_U0 = -40.47893  # Hartree, the first molecule of QM9


def test_constants_are_codata_2018() -> None:
    assert units.Hartree == pytest.approx(27.211386245988, abs=1e-9)
    assert units.Bohr == pytest.approx(0.529177210903, abs=1e-11)
    # 4184 J / (e N_A): all three exact since 2019
    assert units.kcal_per_mol == pytest.approx(4184 / (1.602176634e-19 * 6.02214076e23), rel=1e-12)
    assert units.kcal_per_mol == pytest.approx(4.184 * units.kJ_per_mol, rel=1e-12)
    assert (units.eV, units.meV, units.Angstrom, units.nm) == (1.0, 1e-3, 1.0, 10.0)


@pytest.mark.parametrize(
    ("unit", "value"),
    [("eV", -1101.48778), ("kcal/mol", -25400.9119), ("meV", -1101487.78), ("kJ/mol", -106277.416)],
)
def test_methane_energy_round_trip(unit: str, value: float) -> None:
    there = convert(METHANE_U0, "Hartree", unit)
    assert there == pytest.approx(value, rel=2e-8)
    assert convert(there, unit, "Hartree") == pytest.approx(METHANE_U0, rel=1e-15)
    # control: another unit on the way back is another energy
    other = "eV" if unit != "eV" else "kcal/mol"
    assert convert(there, other, "Hartree") != pytest.approx(METHANE_U0, rel=1e-3)


def test_conversions_chain() -> None:
    names = list(units.ENERGY_UNITS)
    value = METHANE_U0
    for start, end in zip(["Hartree", *names], [*names, "Hartree"], strict=True):
        value = convert(value, start, end)
    assert value == pytest.approx(METHANE_U0, rel=1e-14)


def test_energies_are_reported_in_kcal_per_mol_and_all_else_as_it_is() -> None:
    for unit in units.ENERGY_UNITS:
        assert reported(unit) == (convert(1.0, unit, "kcal/mol"), "kcal/mol")
    assert reported("Debye") == (1.0, "Debye")


def test_agrees_with_pyg_qm9_constants() -> None:
    assert qm9.HAR2EV == pytest.approx(units.Hartree, rel=1e-11)
    # PyG rounds kcal/mol to seven digits: 6e-7 relative, 0.01 meV on an atomisation energy
    assert qm9.KCALMOL2EV == pytest.approx(units.kcal_per_mol, rel=1e-6)
    assert qm9.KCALMOL2EV != pytest.approx(units.kcal_per_mol, rel=1e-7)


def test_lengths_and_tensors() -> None:
    assert convert(1.0, "nm", "Angstrom") == pytest.approx(10.0)
    assert convert(1.0, "Bohr", "Angstrom") == units.Bohr
    energies = torch.tensor([1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(convert(energies, "eV", "meV"), energies * 1000)
    assert convert(energies.float(), "eV", "meV").dtype == torch.float32


@pytest.mark.parametrize(("start", "end"), [("eV", "Bohr"), ("ev", "meV"), ("kcal", "eV")])
def test_wrong_units_raise(start: str, end: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot convert '{start}' to '{end}'.*kcal/mol"):
        convert(1.0, start, end)
