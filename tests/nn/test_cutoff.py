"""The cutoff function, Eq. 11."""

from __future__ import annotations

import pytest
import reference
import torch

from hipnn_pyg.nn import cosine_cutoff


def test_equals_the_paper(dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    r = torch.tensor([0.1, 1.0, 2.5, 4.9, 5.0, 5.1, 60.0], dtype=dtype)
    expected = torch.tensor([reference.cutoff(float(x), 5.0) for x in r], dtype=dtype)
    torch.testing.assert_close(cosine_cutoff(r, 5.0), expected, **tolerance)


def test_known_values() -> None:
    r = torch.tensor([0.0, 2.5, 5.0 / 3], dtype=torch.float64)
    expected = torch.tensor([1.0, 0.5, 0.75], dtype=torch.float64)
    torch.testing.assert_close(cosine_cutoff(r, 5.0), expected)


def test_exactly_zero_at_and_beyond_the_cutoff(dtype: torch.dtype) -> None:
    r = torch.tensor([5.0, 5.0001, 7.5, 10.0, 1e30, torch.inf], dtype=dtype)
    assert cosine_cutoff(r, 5.0).tolist() == [0.0] * 6
    assert float(cosine_cutoff(torch.tensor(4.99, dtype=dtype), 5.0)) > 0  # control


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives(order: int) -> None:
    r = torch.tensor([0.3, 1.7, 4.6, 5.2, 9.0], dtype=torch.float64, requires_grad=True)
    check = {1: torch.autograd.gradcheck, 2: torch.autograd.gradgradcheck}[order]
    assert check(lambda x: cosine_cutoff(x, 5.0), (r,))


def test_value_and_slope_vanish_at_the_cutoff() -> None:
    r = 5.0 - torch.tensor([1e-2, 1e-3, 1e-4], dtype=torch.float64)
    r.requires_grad_()
    value = cosine_cutoff(r, 5.0)
    (slope,) = torch.autograd.grad(value.sum(), r)
    curvature = (torch.pi / 10) ** 2
    torch.testing.assert_close(value, curvature * (5 - r) ** 2, rtol=1e-4, atol=0)
    torch.testing.assert_close(slope, -2 * curvature * (5 - r), rtol=1e-4, atol=0)


def test_no_nan_gradient_at_infinity() -> None:
    r = torch.tensor([torch.inf, 6.0, 5.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(cosine_cutoff(r, 5.0).sum(), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), r)
    assert slope.tolist() == [0.0] * 3 and curvature.tolist() == [0.0] * 3
