"""Compositions, the least-squares E^0 and sigma_E."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from hipnn_pyg import PackedMolecules, StructureError, Target
from hipnn_pyg.data.statistics import composition, fit_reference_energies

ENERGY = Target("energy", "eV", "energy")
FORMULAS = [[1, 1, 8], [6, 1, 1, 1, 1], [8], [6, 8, 8]]


def molecules(energies: list[float], formulas: list[list[int]] = FORMULAS) -> list[Data]:
    return [
        Data(
            z=torch.tensor(numbers),
            pos=torch.eye(8)[: len(numbers), :3] + torch.arange(len(numbers)).view(-1, 1),
            energy=torch.tensor([energy], dtype=torch.float64),
        )
        for numbers, energy in zip(formulas, energies, strict=True)
    ]


def test_composition_counts_atoms_in_the_order_of_species(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = PackedMolecules.pack(molecules([1.0, 2.0, 3.0, 4.0]), ENERGY)
    monkeypatch.setattr(PackedMolecules, "gather", None)  # elements alone are looked at
    counts = composition(packed, (8, 1, 6))
    assert counts.dtype == torch.float64
    assert counts.tolist() == [[1, 2, 0], [0, 4, 1], [1, 0, 0], [2, 0, 1]]
    part = packed.subset(torch.tensor([3, 0]))
    assert composition(part, (1, 6, 8)).tolist() == [[0, 1, 2], [2, 0, 1]]


def test_foreign_species_are_named() -> None:
    packed = PackedMolecules.pack(molecules([1.0, 2.0, 3.0, 4.0]), ENERGY)
    with pytest.raises(StructureError, match="atomic number 6"):
        composition(packed, (1, 8))


def test_exact_energies_are_recovered_and_sigma_by_hand() -> None:
    e0 = {1: -13.5872227808, 6: -1029.4889999, 8: -2042.61112359}
    energies = [sum(e0[number] for number in numbers) for numbers in FORMULAS]
    weight, sigma_e = fit_reference_energies(molecules(energies), ENERGY, (1, 6, 8))
    np.testing.assert_allclose(weight.numpy(), list(e0.values()), rtol=1e-12)
    mean = sum(energies) / 4
    by_hand = (sum((energy - mean) ** 2 for energy in energies) / 4) ** 0.5
    assert weight.dtype == torch.float64 and sigma_e == pytest.approx(by_hand, rel=1e-12)


def test_least_squares_leaves_an_orthogonal_rest() -> None:
    energies = [3.0, -1.0, 2.0, 7.0, 4.0]
    data = molecules(energies, [*FORMULAS, [1, 8]])
    weight, _ = fit_reference_energies(data, ENERGY, (1, 6, 8))
    counts = composition(PackedMolecules.pack(data, ENERGY), (1, 6, 8))
    rest = torch.tensor(energies, dtype=torch.float64) - counts @ weight
    assert float(rest.norm()) > 0.1
    assert float((counts.T @ rest).abs().max()) < 1e-12


def test_undetermined_energies_have_least_norm() -> None:
    energies = [5.0, 7.0, 6.0]
    data = molecules(energies, [[1, 1, 8]] * 3)
    weight, sigma_e = fit_reference_energies(data, ENERGY, (1, 6, 8))
    torch.testing.assert_close(weight, 6.0 * torch.tensor([2.0, 0, 1]).double() / 5)
    assert sigma_e == pytest.approx((2 / 3) ** 0.5)


def test_sigma_does_not_know_the_zero_of_energy() -> None:
    """Large absolute energies: in float64 their spread keeps its digits."""
    spread = [0.0, 0.001, 0.002, 0.003]
    shifted = [energy - 97_000.0 for energy in spread]
    (_, near), (_, far) = (
        fit_reference_energies(molecules(energies), ENERGY, (1, 6, 8))
        for energies in (spread, shifted)
    )
    assert near == pytest.approx(far, rel=1e-6)


def test_equal_energies_give_no_scale() -> None:
    with pytest.raises(StructureError, match=r"sigma_E.*4 target energies, is 0"):
        fit_reference_energies(molecules([1.0] * 4), ENERGY, (1, 6, 8))


def test_residual_scale_is_what_least_squares_leaves() -> None:
    data = molecules([3.0, -1.0, 2.0, 7.0, 4.0], [*FORMULAS, [1, 8]])
    weight, total = fit_reference_energies(data, ENERGY, (1, 6, 8))
    same, residual = fit_reference_energies(data, ENERGY, (1, 6, 8), scale="residual")
    packed = PackedMolecules.pack(data, ENERGY)
    left = packed.target - composition(packed, (1, 6, 8)) @ weight
    assert torch.equal(same, weight)
    assert residual == pytest.approx(float(left.std(correction=0)), rel=1e-12)
    assert 0 < residual < total


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_sums_over_atoms_leave_no_residual(unit: float) -> None:
    """Whatever the unit of energy."""
    formulas = [*FORMULAS, [1, 8]]
    energies = [unit * sum(numbers) for numbers in formulas]
    with pytest.raises(StructureError, match=r'E - E\^0 over 5 molecules.*scale="total"'):
        fit_reference_energies(molecules(energies, formulas), ENERGY, (1, 6, 8), scale="residual")
    energies[0] *= 1.01  # control
    data = molecules(energies, formulas)
    _, residual = fit_reference_energies(data, ENERGY, (1, 6, 8), scale="residual")
    assert residual > 1e-3 * unit
