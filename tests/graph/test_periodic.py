"""Periodic neighbour search: pairs and images equal ASE's, for any cell, in any batch."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from ase.geometry import cellpar_to_cell
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hipnn_pyg import StructureError, radius_graph
from hipnn_pyg.graph import columns, image_shift, periodic, radius_graph_pbc
from hipnn_pyg.graph.images import check_number_of_images
from hipnn_pyg.graph.lattice import read_lattice

Edge = tuple[int, int, int, int, int]

CELLS = {
    "cubic": [6.1, 6.1, 6.1, 90, 90, 90],
    "orthorhombic": [4.2, 7.3, 11.9, 90, 90, 90],
    "needle": [2.1, 2.3, 30.7, 90, 90, 90],
    "triclinic": [6.1, 7.3, 5.2, 71, 83, 112],
    "10 degrees": [6.1, 7.3, 12.2, 90, 90, 10],
    "10 degrees thrice": [9.1, 10.3, 11.2, 10, 10, 10],
    "170 degrees": [6.1, 7.3, 9.2, 85, 95, 170],
    "smaller than the cutoff": [1.41, 1.52, 1.63, 80, 100, 95],
}
PBC = list(itertools.product([False, True], repeat=3))
BACKENDS = ["torch", "vesin"]


def cell_of(name: str) -> Tensor:
    return torch.tensor(cellpar_to_cell(CELLS[name]))


def atoms_in(cell: Tensor, num_atoms: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Positions anywhere in the cell, or in ``spread`` cells to each side."""
    generator = torch.Generator().manual_seed(seed)
    fraction = torch.rand(num_atoms, 3, dtype=torch.float64, generator=generator)
    return (spread * (fraction - 0.5) + 0.5) @ cell


def by_ase(pos: Tensor, cutoff: float, cell: Tensor, pbc: object) -> list[Edge]:
    """(i, j, image) sorted; ASE counts r <= cutoff, which only ties tell from r < cutoff."""
    i, j, images = primitive_neighbor_list("ijS", pbc, cell.numpy(), pos.numpy(), cutoff)
    return sorted(zip(i.tolist(), j.tolist(), *images.T.tolist(), strict=True))


def by_us(pos: Tensor, cutoff: float, cell: Tensor | None, pbc: object, **options: object):
    """(i, j, image) in the order of the search."""
    edges, _, images = radius_graph_pbc(
        pos, cutoff, cell, torch.tensor(pbc), return_images=True, **options
    )
    return list(zip(edges[1].tolist(), edges[0].tolist(), *images.T.tolist(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CELLS)
def test_equals_ase_on_a_grid_of_cells(name: str, backend: str) -> None:
    cell = cell_of(name)
    pos = atoms_in(cell, 5)
    sizes = {}
    for pbc in PBC:
        expected = by_ase(pos, 4.3, cell, pbc)
        assert by_us(pos, 4.3, cell, pbc, backend=backend) == expected  # sorted by i, j, image
        assert by_us(pos, 4.3, -cell, pbc, backend=backend) == by_ase(pos, 4.3, -cell, pbc)
        sizes[pbc] = len(expected)
    assert sizes[True, True, True] > sizes[False, False, False]  # control: pbc counts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pbc", PBC)
def test_equals_ase_far_outside_the_cell(pbc: tuple[bool, ...], backend: str) -> None:
    for name in ("triclinic", "10 degrees"):
        cell = cell_of(name)
        pos = atoms_in(cell, 12)
        hops = torch.randint(-40, 40, pos.shape, generator=torch.Generator().manual_seed(1))
        away = pos + (hops * torch.tensor(pbc)).double() @ cell  # the same crystal
        expected = by_ase(away, 4.0, cell, pbc)
        assert by_us(away, 4.0, cell, pbc, backend=backend) == expected
        assert len(expected) == len(by_ase(pos, 4.0, cell, pbc))
        if backend == "vesin":  # whose grid fills empty space: seconds for the next lines
            continue
        free = pos + hops.double() @ cell  # moved along open directions too: another crystal
        assert by_us(free, 4.0, cell, pbc, backend=backend) == by_ase(free, 4.0, cell, pbc)


def test_left_handed_cells(dtype: torch.dtype) -> None:
    cell = cell_of("triclinic").to(dtype)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=dtype))
    pos = atoms_in(cell_of("triclinic"), 9).to(dtype)
    right = radius_graph_pbc(pos, 5.0, cell, return_images=True)
    left = radius_graph_pbc(pos @ mirror, 5.0, cell @ mirror, return_images=True)
    assert torch.det(cell) > 0 > torch.det(cell @ mirror)
    assert torch.equal(left[0], right[0]) and torch.equal(left[2], right[2])
    torch.testing.assert_close(left[1], right[1] @ mirror)


def test_cutoff_of_three_cells_sees_own_images() -> None:
    """One atom in a cubic cell: the neighbours are the lattice points in a sphere."""
    edge, cutoff = 1.7, 3.05 * 1.7
    cell = edge * torch.eye(3, dtype=torch.float64)
    edges, shift, images = radius_graph_pbc(torch.ones(1, 3), cutoff, cell, return_images=True)
    points = [n for n in itertools.product(range(-4, 5), repeat=3) if 0 < math.hypot(*n) < 3.05]
    assert images.tolist() == [list(n) for n in points]  # sorted, without the atom itself
    assert not edges.any() and shift.dtype == torch.float32
    torch.testing.assert_close(shift, edge * images.float())


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.tuples(*[st.floats(1.5, 12)] * 3),
    angles=st.tuples(*[st.floats(10, 170)] * 3),
    pbc=st.sampled_from(PBC),
    num_atoms=st.integers(1, 8),
    cutoff=st.floats(0.5, 6),
    spread=st.sampled_from([1.0, 7.0]),
    seed=st.integers(0, 2**20),
)
def test_equals_ase_on_random_cells(
    lengths: tuple[float, ...],
    angles: tuple[float, ...],
    pbc: tuple[bool, ...],
    num_atoms: int,
    cutoff: float,
    spread: float,
    seed: int,
) -> None:
    a, b, c = np.cos(np.radians(angles))
    volume = 1 - a * a - b * b - c * c + 2 * a * b * c
    if volume < 1e-3:  # no such cell, or almost flat
        angles = (90.0, 90.0, angles[2])
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    cell = torch.tensor(cellpar_to_cell([*lengths, *angles]) @ turn)
    pos = atoms_in(cell, num_atoms, seed, spread)
    shells = torch.linalg.vector_norm(cell, dim=1)[:, None] * torch.arange(1, 5) / cutoff
    cutoff += 1e-6 * float((shells - 1).abs().min() < 1e-9)  # no tie with an atom's own image
    assert by_us(pos, cutoff, cell, pbc) == by_ase(pos, cutoff, cell, pbc)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_equals_one_by_one(backend: str, dtype: torch.dtype) -> None:
    names, sizes, pbc = list(CELLS), [5, 1, 30, 2, 8, 3, 1, 4], torch.tensor(PBC)
    cell = torch.stack([cell_of(name) for name in names]).to(dtype)
    parts = [
        atoms_in(cell_of(name), n, n, 3.0).to(dtype) for name, n in zip(names, sizes, strict=True)
    ]
    batch = torch.arange(8).repeat_interleave(torch.tensor(sizes))
    options = dict(backend=backend, return_images=True)
    together = radius_graph_pbc(torch.cat(parts), 4.3, cell, pbc, batch, **options)
    first = torch.tensor([0, *sizes]).cumsum(0)
    alone = [radius_graph_pbc(parts[g], 4.3, cell[g], pbc[g], **options) for g in range(8)]
    assert torch.equal(together[0], torch.cat([a[0] + first[g] for g, a in enumerate(alone)], 1))
    for k in (1, 2):
        assert torch.equal(together[k], torch.cat([a[k] for a in alone]))
    assert torch.equal(together[1], image_shift(together[2], cell, batch[together[0][1]]))
    everywhere = radius_graph_pbc(torch.cat(parts), 4.3, cell, True, batch)  # control
    assert everywhere[0].size(1) > together[0].size(1)


def test_blocks_of_the_search_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of("triclinic")
    pos = atoms_in(cell, 20, spread=3.0)
    whole = radius_graph_pbc(pos, 4.0, cell, return_images=True)
    monkeypatch.setattr(columns, "block_size", lambda device: 100)
    assert all(map(torch.equal, radius_graph_pbc(pos, 4.0, cell, return_images=True), whole))


def test_every_edge_has_its_reverse_and_is_closer(dtype: torch.dtype) -> None:
    """r = |pos_j - pos_i + shift| < cutoff in the dtype itself; edges on the cutoff included."""
    cell = torch.eye(3, dtype=dtype) * 4.0
    grid = torch.cartesian_prod(*[torch.arange(4, dtype=dtype)] * 3)
    for pos in (grid, grid + 4.0 * torch.arange(64, dtype=dtype).unsqueeze(1)):
        edge_index, shift, images = radius_graph_pbc(pos, 2.0, cell, return_images=True)
        j, i = edge_index
        assert bool(((pos[j] - pos[i] + shift).norm(dim=1) < 2.0).all())
        assert torch.equal(torch.bincount(i), torch.full((64,), 6 + 12 + 8))  # 1, √2, √3, not 2
        keys = set(zip(i.tolist(), j.tolist(), *images.T.tolist(), strict=True))
        assert {(j, i, -a, -b, -c) for i, j, a, b, c in keys} == keys
    assert bool((images.abs().sum(1) > 50).any())  # control: the second crystal is unwrapped


def test_without_pbc_it_is_radius_graph(dtype: torch.dtype) -> None:
    pos = atoms_in(cell_of("cubic"), 60).to(dtype)
    batch = torch.arange(3).repeat_interleave(20)
    expected = radius_graph(pos, 3.0, batch)
    for cell in (None, torch.zeros(3, 3), cell_of("triclinic").expand(3, 3, 3)):
        edge_index, shift, images = radius_graph_pbc(
            pos, 3.0, cell, False, batch, return_images=True
        )
        assert torch.equal(edge_index, expected)
        assert not shift.any() and not images.any() and shift.dtype == dtype
    seen = radius_graph_pbc(pos, 3.0, cell_of("cubic"), True, batch)[0]  # control
    assert seen.size(1) > expected.size(1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slab_and_wire_need_no_vector_along_open_directions(backend: str) -> None:
    cell = cell_of("triclinic")
    pos = atoms_in(cell, 10)
    for pbc in ([True, True, False], [False, True, True], [False, False, True]):
        open_directions = ~torch.tensor(pbc)
        expected = by_us(pos, 4.0, cell, pbc, backend=backend)
        for filler in (0.0, 17.0):
            bare = cell.clone()
            bare[open_directions] = filler
            assert by_us(pos, 4.0, bare, pbc, backend=backend) == expected
    assert len(by_us(pos, 4.0, cell, [True] * 3, backend=backend)) > len(expected)  # control


def test_an_atom_crosses_the_cutoff_through_the_wall(dtype: torch.dtype) -> None:
    cell = 20.0 * torch.eye(3, dtype=dtype)
    for gap, expected in ((2.99, 2), (3.01, 0)):
        pos = torch.tensor([[0.5, 1, 1], [20.5 - gap, 1, 1]], dtype=dtype)
        edge_index, shift = radius_graph_pbc(pos, 3.0, cell)
        assert edge_index.size(1) == expected
        assert shift.tolist() == [[-20.0, 0, 0], [20.0, 0, 0]][:expected]
        assert radius_graph_pbc(pos, 3.0, cell, [False, True, True])[0].size(1) == 0  # control


def test_convention_of_shift_and_images(dtype: torch.dtype) -> None:
    cell = cell_of("10 degrees").to(dtype)
    pos = atoms_in(cell_of("10 degrees"), 7, spread=5.0).to(dtype)
    (j, i), shift, images = radius_graph_pbc(pos, 4.0, cell, return_images=True)
    assert images.dtype == torch.long
    torch.testing.assert_close(shift, images.to(dtype) @ cell)
    r = (pos[j] - pos[i] + shift).norm(dim=1)
    assert 0 < float(r.min()) and float(r.max()) < 4.0
    assert float((pos[j] - pos[i] - shift).norm(dim=1).max()) > 4.0  # control: the sign counts


def test_shift_follows_the_strain() -> None:
    """The docstring's strain, and a cell that requires a gradient, against finite differences."""
    cell, pos = cell_of("triclinic"), atoms_in(cell_of("triclinic"), 6, spread=3.0)
    edge_index, _, images = radius_graph_pbc(pos, 4.0, cell, return_images=True)
    j, i = edge_index

    def energy(strain: Tensor, with_cell: bool = True) -> Tensor:
        stretch = torch.eye(3, dtype=pos.dtype) + (strain + strain.T) / 2
        x, lattice = pos @ stretch, cell @ stretch if with_cell else cell
        return (x[j] - x[i] + images.to(pos.dtype) @ lattice).square().sum()

    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(energy(strain), strain)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for a, b in itertools.product(range(3), repeat=2):
        step = torch.zeros(3, 3, dtype=torch.float64)
        step[a, b] = 1e-4
        expected[a, b] = (energy(step) - energy(-step)) / 2e-4
    torch.testing.assert_close(slope, expected, rtol=1e-8, atol=1e-6)
    (without,) = torch.autograd.grad(energy(strain, False), strain)
    assert float((without - slope).abs().max()) > 1.0  # control: the cell is most of it

    matrix = cell.clone().requires_grad_()
    same_edges, shift = radius_graph_pbc(pos, 4.0, matrix)
    assert torch.equal(same_edges, edge_index)
    r = (pos[j] - pos[i] + shift).detach()
    (slope,) = torch.autograd.grad((pos[j] - pos[i] + shift).square().sum(), matrix)
    torch.testing.assert_close(slope, 2 * images.double().T @ r)
    assert not radius_graph_pbc(pos, 4.0, cell)[1].requires_grad  # control


def test_gradient_reaches_the_cells_of_a_batch() -> None:
    cell = torch.stack([cell_of("cubic"), cell_of("10 degrees")]).requires_grad_()
    pos = torch.cat([atoms_in(c.detach(), 4) for c in cell])
    batch = torch.arange(2).repeat_interleave(4)
    (_, i), shift, images = radius_graph_pbc(pos, 4.0, cell, True, batch, return_images=True)
    (slope,) = torch.autograd.grad(shift.sum(), cell)
    for g in range(2):
        expected = images[batch[i] == g].sum(0, dtype=torch.float64).unsqueeze(1).expand(3, 3)
        torch.testing.assert_close(slope[g], expected)
    with pytest.raises(ValueError, match=r"graph=batch\[edge_index\[1\]\]"):
        image_shift(images, cell)


def test_work_is_linear_in_a_large_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates per edge do not grow, and images only at the surface of the cell."""
    looked_at: list[int] = []
    points: list[int] = []
    expand, image_points = columns._expand, periodic.image_points

    def counting(start: Tensor, length: Tensor) -> Tensor:
        places = expand(start, length)
        looked_at.append(places.numel())
        return places

    def measuring(*args):
        result = image_points(*args)
        points.append(len(result[0].owner))
        return result

    monkeypatch.setattr(columns, "_expand", counting)
    monkeypatch.setattr(periodic, "image_points", measuring)
    for num_atoms in (500, 4000):
        looked_at.clear()
        cell = torch.eye(3, dtype=torch.float64) * (num_atoms / 0.1) ** (1 / 3)
        edges = radius_graph_pbc(atoms_in(cell, num_atoms), 4.0, cell)[0].size(1)
        assert sum(looked_at) < 2.5 * edges
        edge = float(cell[0, 0])
        assert points[-1] < 1.1 * num_atoms * (1 + 8 / edge) ** 3
    assert points[1] < 8 * 0.7 * points[0]


def test_molecule_in_a_large_box_needs_no_images() -> None:
    cell = 100.0 * torch.eye(3, dtype=torch.float64)
    pos = atoms_in(0.05 * cell, 20) + 40.0
    edge_index, shift = radius_graph_pbc(pos, 4.0, cell)
    assert torch.equal(edge_index, radius_graph(pos, 4.0)) and not shift.any()
    across, shift = radius_graph_pbc(pos - 42.0, 4.0, cell)  # control: over the corner, the same
    torch.testing.assert_close(across, edge_index)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_atoms_and_no_edges(backend: str, dtype: torch.dtype) -> None:
    cell = 9.0 * torch.eye(3, dtype=dtype)
    for pos, box in ((torch.zeros(0, 3), cell), (torch.ones(1, 3), cell), (torch.eye(3), None)):
        edge_index, shift, images = radius_graph_pbc(
            pos.to(dtype), 1.0, box, box is not None, backend=backend, return_images=True
        )
        assert edge_index.shape == (2, 0) and shift.shape == images.shape == (0, 3)
        assert shift.dtype == dtype and edge_index.dtype == images.dtype == torch.long
    assert radius_graph_pbc(torch.ones(1, 3), 9.1, cell, backend=backend)[0].size(1) == 6  # control
    nothing = radius_graph_pbc(torch.zeros(0, 3), 1.0, cell.expand(4, 3, 3), backend=backend)
    assert nothing[0].shape == (2, 0)


def spoilt(row: int, value: object) -> Tensor:
    cell = 5.0 * torch.eye(3, dtype=torch.float64)
    cell[row] = torch.as_tensor(value, dtype=torch.float64)
    return cell


@pytest.mark.parametrize(
    ("cell", "pbc", "message"),
    [
        (None, True, r"pbc is \[\[True.*no cell.*pbc=False"),
        (None, [False, True, False], "no cell"),
        (torch.zeros(3, 3), True, "structure 0.*vector 0 is zero"),
        (spoilt(2, 0.0), True, r"vector 2 is zero; .*pbc to False"),
        (spoilt(1, [5.0, 0, 0]), True, "singular.*limit 1e-06"),
        (spoilt(1, [5.0, 1e-7, 0]), [True, True, False], "singular"),
        (spoilt(0, math.nan), [False, True, True], "structure 0 is .*nan.*not finite"),
        (spoilt(0, math.inf), True, "not finite"),
        (torch.stack([spoilt(0, [5.0, 0, 0]), spoilt(0, 0.0)]), True, "structure 1"),
        (torch.eye(3).expand(3, 3, 3), True, r"cell.*\[2, 3, 3\].*\[3, 3, 3\]"),
        (torch.ones(3), True, r"cell.*shape \[3\]"),
        (torch.eye(3).long(), True, "cell.*int64"),
        (torch.eye(3), [[True] * 3] * 3, r"pbc.*\[2, 3\].*\[3, 3\]"),
        (torch.eye(3), torch.ones(3), "pbc.*float32"),
        (1e-4 * torch.eye(3), True, "images of atoms.*1e\\+05 times the height.*Å"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_cells_are_named(cell: Tensor | None, pbc: object, message: str, backend: str) -> None:
    pos, batch = torch.rand(4, 3, dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    with pytest.raises(StructureError, match=message):
        radius_graph_pbc(pos, 10.0, cell, pbc, batch, backend)  # type: ignore[arg-type]


def test_bad_positions_are_named() -> None:
    cell = torch.eye(3, dtype=torch.float64) * 5
    pos = atoms_in(cell, 3)
    with pytest.raises(StructureError, match="atom 1 .*nan"):
        radius_graph_pbc(pos * torch.tensor([[1.0], [math.nan], [1.0]]), 4.0, cell)
    with pytest.raises(ValueError, match="cutoff is -1"):
        radius_graph_pbc(pos, -1.0, cell)
    away = pos + 5.0 * 10**6 * torch.eye(3)
    with pytest.raises(StructureError, match=r"outside their cell.*float32.*wrap"):
        radius_graph_pbc(away.float(), 4.0, cell)
    assert len(by_us(away, 4.0, cell, [True] * 3)) == len(by_us(pos, 4.0, cell, [True] * 3))
    with pytest.raises(ValueError, match="'torch_cluster'.*torch.*vesin"):
        radius_graph_pbc(pos, 4.0, cell, backend="torch_cluster")


def test_distances_may_be_off_by_a_tenth_of_the_cutoff() -> None:
    """An atom so far outside that float32 knows distances to half the cutoff, or a twentieth."""
    cell = 5 * torch.eye(3, dtype=torch.float64)
    pos = atoms_in(cell, 3)
    expected = by_us(pos, 4.0, cell, True)
    for part in (0.05, 0.5):
        hops = round(part * 4.0 / (16 * torch.finfo(torch.float32).eps) / 5.0)
        away = pos + torch.tensor([5.0 * hops, 0, 0])
        assert by_us(away, 4.0, cell, True) == expected  # control: float64
        if part == 0.05:
            assert by_us(away.float(), 4.0, cell, True) == expected
        else:
            with pytest.raises(StructureError, match=r"float32 can be off by 2 Å.*0\.4 Å"):
                by_us(away.float(), 4.0, cell, True)


@pytest.mark.parametrize("edge, fit", [(0.05, True), (0.02, False)])
def test_more_images_than_memory_holds_are_refused(edge: float, fit: bool) -> None:
    """Before they are made: an atom with 401^3, or 1001^3."""
    pos, batch = torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)
    lattice = read_lattice(edge * torch.eye(3), True, 1, pos)
    if fit:
        check_number_of_images(10.0, lattice, batch)
    else:
        with pytest.raises(StructureError, match=r"1\.0e\+09 images of atoms \(limit 1\.3e\+08"):
            check_number_of_images(10.0, lattice, batch)


def test_missing_vesin_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vesin", None)
    cell = torch.eye(3) * 5
    with pytest.raises(ImportError, match=r"hipnn_pyg\[vesin\].*backend=\"torch\""):
        radius_graph_pbc(torch.eye(3), 4.0, cell, backend="vesin")
    assert radius_graph_pbc(torch.eye(3), 4.0, cell)[0].size(1) == 6  # control
