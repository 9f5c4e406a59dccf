"""Neighbour search: all pairs within the cutoff, by any backend, without a cap."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import reference
import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric.data import Batch

from hipnn_pyg import RadiusGraph, radius_graph
from hipnn_pyg.graph import BACKENDS, neighbors


def crowd(edge: int = 6, spacing: float = 1.2) -> Tensor:
    """216 atoms on a shaken grid: more than 64 neighbours each within 4 Å."""
    grid = torch.cartesian_prod(*[spacing * torch.arange(edge, dtype=torch.float64)] * 3)
    return grid + 0.2 * torch.rand(
        grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def by_loops(pos: Tensor, batch: Tensor, cutoff: float) -> list[list[int]]:
    near = reference.neighbours(pos.numpy(), batch.tolist(), cutoff)
    return [[j, i] for i, row in enumerate(near) for j, _ in row]


@pytest.mark.parametrize("cutoff", [0.5, 1.2, 2.0, 50.0])
def test_equals_the_double_loop(molecules: Batch, cutoff: float, dtype: torch.dtype) -> None:
    edge_index = radius_graph(molecules.pos.to(dtype), cutoff, molecules.batch)
    expected = by_loops(molecules.pos, molecules.batch, cutoff)
    assert edge_index.dtype == torch.long
    assert edge_index.T.tolist() == expected  # in order: by receiver, then by sender
    assert bool(expected) == (cutoff > 1)  # control: the cutoff matters


def test_every_direction_is_there(molecules: Batch) -> None:
    pairs = set(map(tuple, radius_graph(molecules.pos, 2.0, molecules.batch).T.tolist()))
    assert pairs and {(i, j) for j, i in pairs} == pairs
    assert not any(i == j for i, j in pairs)


def test_molecules_do_not_see_each_other(molecules: Batch) -> None:
    """They overlap in space: only the batch vector keeps them apart."""
    apart = radius_graph(molecules.pos, 2.0, molecules.batch)
    assert torch.equal(molecules.batch[apart[0]], molecules.batch[apart[1]])
    merged = radius_graph(molecules.pos + 0.01, 2.0)
    assert merged.size(1) > apart.size(1)


def test_no_cap_on_neighbours() -> None:
    pos = crowd()
    edge_index = radius_graph(pos, 4.0)
    degree = torch.bincount(edge_index[1])
    assert int(degree.max()) > 64 and int(degree.min()) > 16
    expected = torch.cdist(pos, pos) < 4.0
    assert torch.equal(degree, expected.sum(1) - 1)


def test_blocks_of_the_search_agree(molecules: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = radius_graph(molecules.pos, 2.0, molecules.batch)
    monkeypatch.setattr(neighbors, "_BLOCK", 20)  # two atoms at a time
    assert torch.equal(radius_graph(molecules.pos, 2.0, molecules.batch), whole)


def test_nothing_to_find() -> None:
    none, single = torch.empty(0, 3), torch.zeros(1, 3)
    for pos, batch in ((none, None), (single, None), (single, torch.tensor([0]))):
        assert radius_graph(pos, 5.0, batch).shape == (2, 0)
    assert radius_graph(torch.zeros(3, 3), 5.0, torch.arange(3)).shape == (2, 0)
    assert radius_graph(torch.eye(3), 5.0).shape == (2, 6)  # control


def test_gradient_reaches_positions_through_the_module(molecules: Batch) -> None:
    pos = molecules.pos.requires_grad_()
    edge_index, distances = RadiusGraph(2.0)(pos, molecules.batch)
    assert torch.equal(edge_index, radius_graph(pos, 2.0, molecules.batch))
    expected = (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=1)
    torch.testing.assert_close(distances, expected)
    assert bool(torch.autograd.grad(distances.square().sum(), pos)[0].any())


def test_unknown_backend_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'scipy'.*pyg_lib.*torch.*torch_cluster"):
        radius_graph(torch.eye(3), 2.0, backend="scipy")


@pytest.mark.parametrize(
    ("backend", "remedy"), [("torch_cluster", r"hipnn_pyg\[ops\]"), ("pyg_lib", "pyg-lib >= 0.6")]
)
def test_missing_backend_names_the_remedy(
    backend: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(ImportError, match=remedy):
        radius_graph(torch.eye(3), 2.0, backend=backend)
    assert radius_graph(torch.eye(3), 2.0).size(1) == 6  # control: the default needs neither


@pytest.mark.parametrize("backend", ["torch_cluster", "pyg_lib"])
def test_extensions_are_called_without_cap_and_sorted(
    backend: str, molecules: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What we ask of an extension, held by a stand-in (the real ones: test_ops.py)."""
    asked = {}

    def stand_in(pos: Tensor, r: float, batch: Tensor, max_num_neighbors: int = 32) -> Tensor:
        asked["cap"] = max_num_neighbors
        found = BACKENDS["torch"](pos, r, batch)
        shuffled = torch.randperm(found.size(1), generator=torch.Generator().manual_seed(0))
        return found[:, shuffled]

    module = ModuleType(backend)
    module.radius_graph = stand_in
    monkeypatch.setitem(sys.modules, backend, module)
    monkeypatch.setattr(torch_geometric.nn, "radius_graph", stand_in)
    found = radius_graph(molecules.pos, 2.0, molecules.batch, backend)
    assert torch.equal(found, radius_graph(molecules.pos, 2.0, molecules.batch))
    assert asked["cap"] >= 9 - 1
    radius_graph(crowd(), 4.0, backend=backend)
    assert asked["cap"] >= 216 - 1
