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


def test_no_pairs_and_one_atom(small_model: Callable[..., HIPNN]) -> None:
    model = small_model()
    pos, batch = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    pairs, species = model.pairs(pos, batch), torch.tensor([1])
    terms, passes = direct.forward(model, species, pairs, learn=False)
    torch.testing.assert_close(terms, model.atom_terms(species, pairs)[0].detach())
    assert direct.distance_slopes(model, passes, torch.ones_like(terms)).shape == (0,)


@pytest.mark.parametrize("kernel", ["reference", "padded"])
def test_serves_the_kernels_only(kernel: str, small_model: Callable[..., HIPNN]) -> None:
    assert not direct.serves(small_model(kernel=kernel))
