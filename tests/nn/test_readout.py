"""Readouts (Eq. 4), the frozen zeroth order, and the non-hierarchicality R (Eq. 18)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import reference
import torch
from torch import nn

from hipnn_pyg.nn import EnergyReadout, ReferenceEnergy, nonhierarchicality

E0 = [-13.587222780835477, -1029.4889999999999, -5.0e4]
"""Energies that float32 cannot hold."""


def reference_energy() -> ReferenceEnergy:
    layer = ReferenceEnergy(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(E0, dtype=torch.float64))
        layer.sigma_e.fill_(0.1)
    return layer


def test_readout_equals_the_paper(dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    readout = EnergyReadout(4, order=1).to(dtype)
    with torch.no_grad():
        readout.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 0.5]))
        readout.bias.fill_(0.25)
    z = torch.tensor([[1.0, 1.0, 1.0, 2.0], [0.0, 1.0, 0.0, 0.0]], dtype=dtype)
    sigma_e = torch.tensor(10.0, dtype=torch.float64)
    # sigma_E w~ . z + b: the bias is not scaled
    expected = torch.tensor([10 * 3.0 + 0.25, 10 * -2.0 + 0.25], dtype=dtype)
    actual = readout(z, sigma_e)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, **tolerance)


def test_reference_energy_is_one_energy_per_species() -> None:
    energies = reference_energy()(torch.tensor([2, 0, 0, 1]))
    assert energies.dtype == torch.float64
    assert energies.tolist() == [E0[2], E0[0], E0[0], E0[1]]


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.float(),
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float32),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.type(torch.float32),
        lambda m: m.half().double(),
        copy.deepcopy,
        lambda m: copy.deepcopy(m).float(),
    ],
    ids=["float", "half", "bfloat16", "to", "to_device", "type", "there_and_back", "copy", "both"],
)
def test_reference_energy_survives_every_cast_bit_by_bit(cast: Callable) -> None:
    model = nn.ModuleDict({"reference": reference_energy(), "other": nn.Linear(2, 2)})
    converted = cast(model)["reference"]
    assert converted.weight.dtype == converted.bias.dtype == torch.float64
    assert converted.sigma_e.dtype == torch.float64
    assert converted.weight.tolist() == E0 and float(converted.sigma_e) == 0.1
    assert not converted.weight.requires_grad and not converted.bias.requires_grad


def test_control_other_layers_are_cast() -> None:
    model = nn.ModuleDict({"reference": reference_energy(), "other": nn.Linear(2, 2)}).half()
    assert model["other"].weight.dtype == torch.float16
    assert model["reference"].weight.dtype == torch.float64
    moved = model.to("meta")["reference"]  # moves between devices are followed
    assert moved.weight.device.type == "meta" and moved.weight.dtype == torch.float64


def test_nonhierarchicality_by_hand(dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    terms = torch.tensor(
        [[1.0, 2.0, 2.0], [-3.0, 1.0, 0.0], [0.0, 0.0, 5.0], [2.0, -2.0, 6.0]], dtype=dtype
    )
    batch = torch.tensor([0, 0, 1, 2])
    # molecule 0: 4/5 + 4/8 + 1/10 + 0/1; molecule 1: 0/0 -> 0, + 25/25; molecule 2: 4/8 + 36/40
    expected = torch.tensor([1.4, 1.0, 1.4], dtype=dtype)
    actual = nonhierarchicality(terms, batch, 3)
    torch.testing.assert_close(actual, expected, **tolerance)
    by_loop = reference.nonhierarchicality(terms.double().numpy(), batch.tolist())
    torch.testing.assert_close(actual, torch.tensor(by_loop, dtype=dtype), **tolerance)


def test_nonhierarchicality_does_not_know_the_unit() -> None:
    terms = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = torch.tensor([0, 0, 1, 1, 1, 2])
    first, other = (nonhierarchicality(scale * terms, batch, 3) for scale in (1.0, 23.06))
    torch.testing.assert_close(first, other)
    bent = nonhierarchicality(terms * torch.tensor([1.0, 2, 1, 1]), batch, 3)  # control
    assert not torch.allclose(first, bent)


def test_nonhierarchicality_bounds() -> None:
    terms = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batch = torch.zeros(5, dtype=torch.long)
    assert 0 < float(nonhierarchicality(terms, batch, 1)) < 5 * 2
    hierarchical = terms * torch.tensor([1.0, 1e-4, 1e-8])
    assert float(nonhierarchicality(hierarchical, batch, 1)) < 1e-3


def test_nonhierarchicality_gradients() -> None:
    terms = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    terms.requires_grad_()
    batch = torch.tensor([0, 1, 1, 1])
    assert torch.autograd.gradcheck(lambda t: nonhierarchicality(t, batch, 2), (terms,))
    assert torch.autograd.gradgradcheck(lambda t: nonhierarchicality(t, batch, 2), (terms,))


def test_nonhierarchicality_of_zero_energies_is_finite(dtype: torch.dtype) -> None:
    terms = torch.zeros(2, 3, dtype=dtype)
    terms[1, 0] = 1.0
    terms.requires_grad_()
    result = nonhierarchicality(terms, torch.tensor([0, 1]), 2)
    (gradient,) = torch.autograd.grad(result.sum(), terms)
    assert result.tolist() == [0.0, 0.0] and not bool(gradient.any())
