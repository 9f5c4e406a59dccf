"""The two layouts of pairs hold the same pairs; directions and shifts mean what they say."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch

from hipnn_pyg.graph import (
    Pairs,
    edge_distances,
    edge_pairs,
    molecule_pairs,
    pad_pairs,
    radius_graph,
)


def pair_set(pairs: Pairs, cutoff: float) -> dict[tuple[int, int], float]:
    """{(j, i): r} within the cutoff."""
    if pairs.i is None:
        i = torch.arange(len(pairs.r)).unsqueeze(1).expand_as(pairs.r)
    else:
        i = pairs.i
    within = pairs.r < cutoff
    keys = zip(pairs.j[within].tolist(), i[within].tolist(), strict=True)
    return dict(zip(keys, pairs.r[within].tolist(), strict=True))


def test_distance_direction_and_shift() -> None:
    pos = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]], dtype=torch.float64)
    edge_index = torch.tensor([[1, 0], [0, 1]])  # j = 1 to i = 0, then back
    shift = torch.tensor([[2.0, 0, 0], [-2.0, 0, 0]], dtype=torch.float64)
    assert edge_distances(pos, edge_index).tolist() == [1.0, 1.0]
    assert edge_distances(pos, edge_index, shift).tolist() == [3.0, 3.0]
    assert edge_distances(pos, edge_index, -shift).tolist() == [1.0, 1.0]  # control: |1 - 2|
    assert edge_distances(pos, edge_index, -1.5 * shift).tolist() == [2.0, 2.0]


def test_layouts_hold_the_same_pairs(molecules: Batch, dtype: torch.dtype) -> None:
    pos = molecules.pos.to(dtype)
    edges = edge_pairs(pos, radius_graph(pos, 2.5, molecules.batch))
    padded = pad_pairs(edges, len(pos))
    everything = molecule_pairs(pos, molecules.batch, molecules.ptr, 9)
    expected = pair_set(edges, 2.5)
    assert padded.i is None and everything.i is None and edges.i is not None
    assert everything.j.shape == (21, 8)
    assert pair_set(padded, 2.5) == pytest.approx(expected)
    assert pair_set(everything, 2.5) == pytest.approx(expected)
    assert len(pair_set(everything, torch.inf)) > len(expected)  # control: beyond the cutoff too


def test_edges_are_sorted_by_receiver_with_their_shifts(molecules: Batch) -> None:
    edge_index = radius_graph(molecules.pos, 2.5, molecules.batch)
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(edge_index.size(1), 3, dtype=torch.float64, generator=generator)
    expected = edge_pairs(molecules.pos, edge_index, shift)
    order = torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(0))
    actual = edge_pairs(molecules.pos, edge_index[:, order], shift[order])
    assert bool((actual.i.diff() >= 0).all())
    assert pair_set(actual, torch.inf) == pytest.approx(pair_set(expected, torch.inf))
    unshifted = edge_pairs(molecules.pos, edge_index[:, order])  # control
    assert pair_set(unshifted, torch.inf) != pytest.approx(pair_set(expected, torch.inf))


def test_unused_places_are_infinitely_far(molecules: Batch) -> None:
    everything = molecule_pairs(molecules.pos, molecules.batch, molecules.ptr, 9)
    used = torch.isfinite(everything.r)
    assert used.sum(1).tolist() == [4] * 5 + [3] * 4 + [2] * 3 + [8] * 9
    larger = molecule_pairs(molecules.pos, molecules.batch, molecules.ptr, 30)
    assert larger.j.shape == (21, 29)
    assert pair_set(larger, torch.inf) == pair_set(everything, torch.inf)
    assert 0 <= int(larger.j.min()) and int(larger.j.max()) < 21


def test_atoms_without_neighbours() -> None:
    pos = torch.tensor([[0.0, 0, 0], [50.0, 0, 0], [50.0, 0, 1.0]])
    edges = edge_pairs(pos, radius_graph(pos, 3.0))
    assert pad_pairs(edges, 3).r.tolist() == [[torch.inf], [1.0], [1.0]]
    alone = torch.arange(3), torch.arange(4)
    assert molecule_pairs(pos, *alone, 1).r.shape == (3, 0)
    assert pad_pairs(edge_pairs(pos, radius_graph(pos, 3.0, alone[0])), 3).r.shape == (3, 0)


def test_first_and_second_derivatives_are_finite(molecules: Batch) -> None:
    """Unused places must not leak NaN: the norm has none at 0, the root an infinite one."""
    pos = molecules.pos.requires_grad_()
    r = molecule_pairs(pos, molecules.batch, molecules.ptr, 12).r
    (first,) = torch.autograd.grad((1 / r).sum(), pos, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), pos)
    for gradient in (first, second):
        assert bool(torch.isfinite(gradient).all()) and bool(gradient.any())
