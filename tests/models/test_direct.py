"""All of the network and its first derivatives by the CPU kernels, against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch_geometric.data import Batch

from hipnn_pyg import HIPNN
from hipnn_pyg.models import direct

NETWORKS: dict[str, dict[str, Any]] = {
    "small": {},
    "three_orders": dict(num_interactions=3, num_onsite=0),
    "no_hierarchy": dict(hierarchical=False),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_terms_and_distance_slopes(
    network: str,
    molecules: Batch,
    small_model: Callable[..., HIPNN],
    dtype: torch.dtype,
    tolerance: dict[str, float],
) -> None:
    model = small_model(dtype, **NETWORKS[network])
    assert direct.serves(model)
    pos = molecules.pos.to(dtype)
    pairs = model.pairs(pos, molecules.batch)
    species = model.species_index(molecules.z)
    r = pairs.r.clone().requires_grad_()
    expected, _ = model.atom_terms(species, pairs._replace(r=r))
    weights = torch.linspace(0.5, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    (slope,) = torch.autograd.grad((weights * expected).sum(), r)

    terms, passes = direct.forward(model, species, pairs, learn=False)
    torch.testing.assert_close(terms, expected.detach(), **tolerance)
    found = direct.distance_slopes(model, passes, weights)
    torch.testing.assert_close(found, slope, **tolerance)
    # Control: other weights of the terms give another slope.
    other = direct.distance_slopes(model, passes, torch.ones_like(weights))
    assert float((other - slope).abs().max()) > 100 * tolerance["atol"]


@pytest.mark.parametrize("network", NETWORKS)
def test_gradient_of_distance_slopes(
    network: str,
    molecules: Batch,
    small_model: Callable[..., HIPNN],
    dtype: torch.dtype,
    tolerance: dict[str, float],
) -> None:
    """Of f(terms) + sum of a dE/dr, in all parameters, as autograd takes it."""
    model = small_model(dtype, **NETWORKS[network])
    pairs = model.pairs(molecules.pos.to(dtype), molecules.batch)
    species = model.species_index(molecules.z)
    r = pairs.r.clone().requires_grad_()
    along = torch.linspace(-1, 2, r.numel(), dtype=dtype)
    terms, _ = model.atom_terms(species, pairs._replace(r=r))
    dterms = torch.linspace(0.5, 2, terms.numel(), dtype=torch.float64).view_as(terms)
    (slope,) = torch.autograd.grad(terms.sum(), r, create_graph=True)
    learned = [p for p in model.parameters() if p.requires_grad]
    total = (dterms * terms).sum() + (along * slope).sum()
    pieces = torch.autograd.grad(total, learned, materialize_grads=True)
    expected = torch.cat([piece.flatten() for piece in pieces])

    _, passes = direct.forward(model, species, pairs, learn=True)
    gradient, slopes = direct.gradient_parts(model)
    found = []
    for share in (along, along, 0 * along):
        direct.force_backward(model, passes, share, dterms, slopes)
        found.append(gradient.clone())
    torch.testing.assert_close(found[0], expected, **tolerance)
    assert torch.equal(found[1], found[0])  # it is written, not added to
    # Controls: without distances that move it is the gradient of f, which is another one.
    direct.backward(model, passes, dterms, slopes)
    torch.testing.assert_close(found[2], gradient, **tolerance)
    assert float((gradient - expected).abs().max()) > 100 * tolerance["atol"]


def test_no_pairs_and_one_atom(small_model: Callable[..., HIPNN]) -> None:
    model = small_model()
    pos, batch = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    pairs, species = model.pairs(pos, batch), torch.tensor([1])
    terms, passes = direct.forward(model, species, pairs, learn=False)
    torch.testing.assert_close(terms, model.atom_terms(species, pairs)[0].detach())
    slope = direct.distance_slopes(model, passes, torch.ones_like(terms))
    assert slope.shape == (0,)
    _, passes = direct.forward(model, species, pairs, learn=True)
    (gradient, slopes), ones = direct.gradient_parts(model), torch.ones_like(terms)
    direct.force_backward(model, passes, slope, ones, slopes)
    forces = gradient.clone()
    direct.backward(model, passes, ones, slopes)
    torch.testing.assert_close(forces, gradient)  # nothing pulls: that of the energy
    assert bool(gradient.any())


@pytest.mark.parametrize("kernel", ["reference", "padded"])
def test_serves_the_kernels_only(kernel: str, small_model: Callable[..., HIPNN]) -> None:
    assert not direct.serves(small_model(kernel=kernel))
