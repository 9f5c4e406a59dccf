"""The compiled extensions against plain PyTorch; `make test-ops` runs these where they exist."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_geometric.typing
from torch_geometric.data import Batch

from hipnn_pyg import HIPNN, radius_graph
from hipnn_pyg.graph import edge_pairs
from hipnn_pyg.nn import EnvironmentSum

pytestmark = pytest.mark.ops


def test_torch_cluster_finds_the_same_neighbours(molecules: Batch, dtype: torch.dtype) -> None:
    pos = molecules.pos.to(dtype)
    for cutoff in (0.5, 1.2, 2.0, 50.0):
        expected = radius_graph(pos, cutoff, molecules.batch)
        found = radius_graph(pos, cutoff, molecules.batch, backend="torch_cluster")
        assert torch.equal(found, expected)


def test_torch_cluster_is_not_capped() -> None:
    grid = torch.cartesian_prod(*[1.2 * torch.arange(6, dtype=torch.float64)] * 3)
    noise = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)).double()
    pos = grid + 0.2 * noise
    found = radius_graph(pos, 4.0, backend="torch_cluster")
    assert int(torch.bincount(found[1]).max()) > 64
    assert torch.equal(found, radius_graph(pos, 4.0))


def test_model_gives_the_same_energies_and_forces(
    molecules: Batch, small_model: Callable[..., HIPNN]
) -> None:
    results = []
    for backend in ("torch", "torch_cluster"):
        model = small_model(backend=backend, kernel="reference")
        pos = molecules.pos.clone().requires_grad_()
        energy = model(molecules.z, pos, molecules.batch)
        results.append((energy.detach(), torch.autograd.grad(energy.sum(), pos)[0]))
    torch.testing.assert_close(*results)


def test_environment_sum_with_torch_scatter(molecules: Batch) -> None:
    """PyG aggregates with torch-scatter where it is installed: the same sums as index_add."""
    assert torch_geometric.typing.WITH_TORCH_SCATTER
    edges = edge_pairs(molecules.pos, radius_graph(molecules.pos, 3.0, molecules.batch))
    generator = torch.Generator().manual_seed(0)
    s = torch.rand(edges.j.numel(), 4, dtype=torch.float64, generator=generator)
    z = torch.rand(21, 3, dtype=torch.float64, generator=generator)
    expected = torch.zeros(21, 4, 3, dtype=torch.float64)
    expected.index_add_(0, edges.i, s.unsqueeze(2) * z[edges.j].unsqueeze(1))
    torch.testing.assert_close(EnvironmentSum()(s, z, edges), expected)
