"""Sensitivity functions, Eq. 10."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import reference
import torch

from hipnn_pyg.nn import Sensitivity
from hipnn_pyg.units import Bohr


def paper_sensitivity(dtype: torch.dtype = torch.float64) -> Sensitivity:
    return Sensitivity(20, 1.7 * Bohr, 10 * Bohr, 15 * Bohr).to(dtype)


def test_equals_the_paper(dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    sensitivity = Sensitivity(4, 0.9, 5.0, 6.0).to(dtype)
    with torch.no_grad():  # every function has its own centre and width
        sensitivity.mu.copy_(torch.tensor([0.8, 1.3, 2.9, 4.4]))
        sensitivity.sigma.copy_(torch.tensor([3.0, 5.0, 7.0, 11.0]))
    r = torch.tensor([[0.7, 1.1, 2.0], [3.3, 5.9, 6.5]], dtype=dtype)
    expected = [
        [
            [
                reference.sensitivity(x.item(), mu.item(), sigma.item(), 6.0)
                for mu, sigma in zip(sensitivity.mu, sensitivity.sigma, strict=True)
            ]
            for x in row
        ]
        for row in r
    ]
    actual = sensitivity(r)
    assert actual.dtype == dtype and actual.shape == (2, 3, 4)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype), **tolerance)


def test_each_function_peaks_at_its_centre() -> None:
    sensitivity = paper_sensitivity()
    at_centres = sensitivity(sensitivity.mu.detach()).diagonal()
    envelope = [reference.cutoff(mu.item(), 15 * Bohr) for mu in sensitivity.mu]
    torch.testing.assert_close(at_centres, torch.tensor(envelope, dtype=torch.float64))


def test_initial_values_are_the_papers() -> None:
    """1 / mu evenly spaced from 1 / 1.7 to 1 / 10 Bohr, sigma = 2 N R_low = 68 Bohr."""
    sensitivity = paper_sensitivity(torch.float32)
    mu, sigma = sensitivity.mu.detach().double() / Bohr, sensitivity.sigma.detach().double() / Bohr
    torch.testing.assert_close(mu[[0, -1]], torch.tensor([1.7, 10.0], dtype=torch.float64))
    steps = (1 / mu).diff()
    torch.testing.assert_close(steps, steps.mean().expand(19), rtol=1e-4, atol=0)
    torch.testing.assert_close(sigma, torch.full((20,), 68.0, dtype=torch.float64))
    assert float(mu.diff().diff().abs().max()) > 0.1  # control: not evenly spaced in distance


def test_reset_restores_the_initial_values() -> None:
    sensitivity = paper_sensitivity(torch.float32)
    initial = sensitivity.mu.detach().clone()
    with torch.no_grad():
        sensitivity.mu.add_(1.0)
    assert not torch.equal(sensitivity.mu, initial)
    sensitivity.reset_parameters()
    assert torch.equal(sensitivity.mu, initial)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives_in_distance_centre_and_width(check: Callable) -> None:
    sensitivity = Sensitivity(3, 0.9, 4.0, 5.0).double()
    r = torch.tensor([0.8, 1.9, 3.7, 5.5], dtype=torch.float64, requires_grad=True)
    mu = sensitivity.mu.detach().clone().requires_grad_()
    sigma = sensitivity.sigma.detach().clone().requires_grad_()

    def function(r: torch.Tensor, mu: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        values = {"mu": mu, "sigma": sigma}
        return torch.func.functional_call(sensitivity, values, (r,))

    assert check(function, (r, mu, sigma))


def test_unused_places_give_zero_and_no_nan(dtype: torch.dtype) -> None:
    sensitivity = paper_sensitivity(dtype)
    r = torch.tensor([torch.inf, 15.1 * Bohr, 2.0], dtype=dtype, requires_grad=True)
    values = sensitivity(r)
    assert not bool(values[:2].any()) and bool((values[2] > 0).any())
    parameters = (r, sensitivity.mu, sensitivity.sigma)
    first = torch.autograd.grad(values.sum(), parameters, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
    for gradient in (*first, *second):
        assert bool(torch.isfinite(gradient).all())
    assert first[0][:2].tolist() == [0.0, 0.0] and first[0][2].item() != 0.0
