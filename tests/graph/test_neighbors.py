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

from hipnn_pyg import RadiusGraph, StructureError, radius_graph
from hipnn_pyg.graph import BACKENDS, columns, neighbors


def crowd(edge: int = 6, spacing: float = 1.2) -> Tensor:
    """216 atoms on a shaken grid: more than 64 neighbours each within 4 Å."""
    grid = torch.cartesian_prod(*[spacing * torch.arange(edge, dtype=torch.float64)] * 3)
    return grid + 0.2 * torch.rand(
        grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def cloud(num_atoms: int, seed: int = 0, density: float = 0.1) -> Tensor:
    """Atoms anywhere in a cube at the density of a liquid, 0.1 per Å^3."""
    edge = (num_atoms / density) ** (1 / 3)
    generator = torch.Generator().manual_seed(seed)
    return edge * torch.rand(num_atoms, 3, dtype=torch.float64, generator=generator)


CLUSTERS = {
    "liquid": cloud(700),
    "plane": cloud(500) * torch.tensor([3.0, 3.0, 0.0]),
    "standing plane": cloud(500) * torch.tensor([0.0, 3.0, 3.0]),
    "line": cloud(400) * torch.tensor([20.0, 0.0, 0.0]),
    "diagonal": cloud(400)[:, :1] * torch.tensor([9.0, 9.0, 9.0]),
    "fragments 1e4 Å apart": torch.cat((cloud(200), cloud(200, 1) + 1e4, cloud(200, 2) - 1e4)),
    "far from the origin": cloud(300) + torch.tensor([1e5, -1e5, 3e4]),
    "all in one cell": 0.5 * cloud(300) / cloud(300).max(),
    "coincident on cell borders": torch.cartesian_prod(
        *[2.0 * torch.arange(7).double()] * 3
    ).repeat(2, 1),
    "one place": torch.zeros(400, 3, dtype=torch.float64),
}
"""Shapes that a grid of cells could get wrong; distances of some are exactly the cutoff, 4 Å."""


def both_ways(
    pos: Tensor, cutoff: float, batch: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """The edges by sorted columns and by all pairs."""
    found = []
    for limit in (0, 10**9):
        monkeypatch.setattr(neighbors, "ALL_PAIRS_LIMIT", limit)
        found.append(radius_graph(pos, cutoff, batch))
    return found[0], found[1]


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


@pytest.mark.parametrize("limit", [0, 300], ids=["columns", "all pairs"])
def test_blocks_of_the_search_agree(
    molecules: Batch, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "ALL_PAIRS_LIMIT", limit)
    whole = radius_graph(molecules.pos, 2.0, molecules.batch)
    for module in (neighbors, columns):
        monkeypatch.setattr(module, "block_size", lambda device: 20)  # two atoms at a time
    assert torch.equal(radius_graph(molecules.pos, 2.0, molecules.batch), whole)


@pytest.mark.parametrize("shape", CLUSTERS)
def test_columns_find_what_all_pairs_find(
    shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pos = CLUSTERS[shape].to(dtype)
    for cutoff in (0.9, 4.0, 11.0):
        columns, everything = both_ways(pos, cutoff, None, monkeypatch)
        assert torch.equal(columns, everything)  # in the same order
    assert columns.size(1) > 0
    moved = pos.clone()
    moved[0] += 50.0  # control: an atom leaves
    assert not torch.equal(both_ways(moved, 11.0, None, monkeypatch)[0], columns)


def test_columns_of_a_batch_do_not_mix(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large and small molecules that overlap in space, some with one atom."""
    sizes = [400, 1, 5, 350, 2, 1, 30]
    parts = [cloud(n, seed=n).to(dtype) for n in sizes]
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    for cutoff in (50.0, 5.0):  # all of a molecule in one column, or not
        columns, everything = both_ways(torch.cat(parts), cutoff, batch, monkeypatch)
        assert torch.equal(columns, everything)
    alone = [radius_graph(part, 5.0) for part in parts]
    first = torch.tensor([0, *sizes]).cumsum(0)[:-1]
    shifted = [edges + start for edges, start in zip(alone, first, strict=True)]
    assert torch.equal(columns, torch.cat(shifted, 1))
    merged = both_ways(torch.cat(parts), 5.0, None, monkeypatch)[0]  # control
    assert merged.size(1) > columns.size(1)


def test_large_molecules_take_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work grows as the number of atoms, and a block holds a bounded number of candidates."""
    looked_at: list[int] = []
    expand = columns._expand

    def counting(start: Tensor, length: Tensor) -> Tensor:
        places = expand(start, length)
        looked_at.append(places.numel())
        return places

    monkeypatch.setattr(columns, "_expand", counting)
    work, edges = [], []
    for num_atoms in (200, 1000, 8000):
        looked_at.clear()
        edges.append(radius_graph(cloud(num_atoms), 4.0).size(1))
        work.append(sum(looked_at))
    limit = columns.block_size(torch.device("cpu"))
    assert work[0] == 0  # small: all pairs
    assert work[2] < 3 * edges[2] and work[2] < 12 * work[1]  # all pairs would be 64 times
    assert len(looked_at) > 1 and max(looked_at) < 1.1 * limit


def test_an_atom_crosses_the_cutoff(dtype: torch.dtype) -> None:
    """r < cutoff, strictly, by either search."""
    for others in (0, 400):
        far = cloud(others).to(dtype) + 100.0
        for distance, expected in ((2.999, 2), (3.0, 0), (3.001, 0)):
            pair = torch.tensor([[0.0, 0, 0], [0, distance, 0]], dtype=dtype)
            near = radius_graph(torch.cat((pair, far)), 3.0)
            assert int((near[1] < 2).sum()) == expected


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
    with pytest.raises(ValueError, match=r"'scipy'.*pyg_lib.*torch.*torch_cluster.*vesin"):
        radius_graph(torch.eye(3), 2.0, backend="scipy")


@pytest.mark.parametrize(
    ("backend", "remedy"),
    [
        ("torch_cluster", r"hipnn_pyg\[ops\]"),
        ("pyg_lib", "pyg-lib >= 0.6"),
        ("vesin", r"hipnn_pyg\[vesin\]"),
    ],
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


def test_vesin_finds_the_same(molecules: Batch, dtype: torch.dtype) -> None:
    for cutoff in (0.5, 2.0, 50.0):
        expected = radius_graph(molecules.pos.to(dtype), cutoff, molecules.batch)
        found = radius_graph(molecules.pos.to(dtype), cutoff, molecules.batch, backend="vesin")
        assert torch.equal(found, expected)
    for shape in ("liquid", "one place", "fragments 1e4 Å apart"):
        pos = CLUSTERS[shape].to(dtype)
        assert torch.equal(radius_graph(pos, 4.0, backend="vesin"), radius_graph(pos, 4.0))


@pytest.mark.parametrize("num_atoms", [3, 500])
def test_bad_input_is_named(num_atoms: int) -> None:
    pos = cloud(num_atoms)
    batch = torch.zeros(num_atoms, dtype=torch.long)
    assert radius_graph(pos, 5.0, batch.int()).dtype == torch.long  # control: any integers
    for value in (float("nan"), float("inf")):
        broken = pos.clone()
        broken[1, 2] = value
        with pytest.raises(StructureError, match=f"atom 1 .*{value}.*not finite"):
            radius_graph(broken, 5.0)
    for cutoff in (0.0, -2.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"cutoff is {cutoff} Å.*positive"):
            radius_graph(pos, cutoff)
    batch[0] = 1
    with pytest.raises(StructureError, match="not sorted"):
        radius_graph(pos, 5.0, batch)
    for wrong in (batch[1:], batch.double()):
        with pytest.raises(StructureError, match=rf"batch.*\[{num_atoms}\]"):
            radius_graph(pos, 5.0, wrong)
    with pytest.raises(StructureError, match="begins with -1"):
        radius_graph(pos, 5.0, torch.zeros_like(batch) - 1)
    with pytest.raises(StructureError, match="batch is a list"):
        radius_graph(pos, 5.0, [0] * num_atoms)
    with pytest.raises(StructureError, match="pos is a ndarray"):
        radius_graph(pos.numpy(), 5.0)
    for bad in (pos[:, :2], pos[0], pos.long()):
        with pytest.raises(StructureError, match=r"\[N, 3\]"):
            radius_graph(bad, 5.0)
