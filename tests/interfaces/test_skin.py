"""Verlet lists: complete while they hold, searched again exactly when they may not be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from hipnn_pyg import StructureError
from hipnn_pyg.graph import radius_graph, radius_graph_pbc
from hipnn_pyg.interfaces.skin import VerletList

CUTOFF, SKIN = 3.0, 0.5


def crystal() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", 4.1).repeat((2, 2, 1))
    atoms.rattle(0.1, seed=1)
    return atoms


def cluster() -> Atoms:
    atoms = crystal().repeat((1, 1, 2))
    atoms.pbc = False
    return atoms


def near(atoms: Atoms, edge_index: torch.Tensor, shift: torch.Tensor | None) -> set[tuple]:
    """The pairs of a list that are within the cutoff now: j, i and image."""
    shift = torch.zeros(edge_index.size(1), 3) if shift is None else shift
    j, i = edge_index.numpy()
    r = np.linalg.norm(atoms.positions[j] - atoms.positions[i] + shift.numpy(), axis=1)
    images = np.rint(shift.numpy() @ np.linalg.inv(atoms.cell.array)).astype(int)
    return {tuple(row.tolist()) for row in np.column_stack((j, i, images))[r < CUTOFF]}


def fresh(atoms: Atoms) -> set[tuple]:
    pos = torch.tensor(atoms.positions)
    if not atoms.pbc.any():
        return near(atoms, radius_graph(pos, CUTOFF), None)
    return near(atoms, *radius_graph_pbc(pos, CUTOFF, torch.tensor(atoms.cell.array))[:2])


@pytest.mark.parametrize("make", [crystal, cluster])
def test_every_pair_is_in_the_list_while_it_holds(make: Callable[[], Atoms]) -> None:
    """A random walk with steps of all sizes and an occasional wrap."""
    atoms = make()
    generator = np.random.default_rng(0)
    neighbors = VerletList(CUTOFF, SKIN)
    missed = reused = 0
    neighbors.update(atoms)
    assert neighbors.edges is not None
    first = neighbors.edges
    for step in range(200):
        atoms.positions += generator.normal(0, 0.03, (len(atoms), 3))
        if step % 50 == 49:
            atoms.wrap()
        reused += not neighbors.update(atoms)
        edges = neighbors.edges
        assert near(atoms, edges.edge_index, edges.shift) == fresh(atoms)
        missed += near(atoms, first.edge_index, first.shift) != fresh(atoms)
    assert 50 < reused < 190 and neighbors.searches == 201 - reused
    assert missed > 10  # control: the first list alone would not do


def test_the_limit_is_half_the_skin() -> None:
    """Exactly, for any atom and direction, from where the atoms were at the last search."""
    atoms = crystal()
    neighbors = VerletList(CUTOFF, SKIN)
    assert neighbors.update(atoms) and not neighbors.update(atoms)
    start = atoms.positions.copy()
    direction = np.array([2.0, -1.0, 2.0]) / 3
    for atom in 0, 7:
        atoms.positions[:] = start
        atoms.positions[atom] += (0.5 - 1e-9) * SKIN * direction
        assert neighbors.holds(atoms)
        atoms.positions[atom] += 2e-9 * SKIN * direction
        assert not neighbors.holds(atoms)
    atoms.positions[:] = start - 0.49 * SKIN * direction
    assert not neighbors.update(atoms)
    atoms.positions -= 0.02 * SKIN * direction  # the second step counts from the search
    assert neighbors.update(atoms) and not neighbors.update(atoms)


def test_without_skin_every_move_is_a_search() -> None:
    atoms = crystal()
    neighbors = VerletList(CUTOFF, 0.0)
    for _ in range(3):
        atoms.positions[0, 0] += 1e-12
        assert neighbors.update(atoms)
    assert neighbors.searches == 3


def wrap(atoms: Atoms) -> None:
    atoms.positions[3] += atoms.cell[0]


def species(atoms: Atoms) -> None:
    atoms.numbers[0] = 8


def strain(atoms: Atoms) -> None:
    atoms.cell[2, 2] += 1e-9


def boundary(atoms: Atoms) -> None:
    atoms.pbc[1] = False


def fewer(atoms: Atoms) -> None:
    del atoms[2]


@pytest.mark.parametrize("change", [wrap, species, strain, boundary, fewer])
def test_what_else_is_a_search(change: Callable[[Atoms], None]) -> None:
    atoms = crystal()
    neighbors = VerletList(CUTOFF, SKIN)
    neighbors.update(atoms)
    assert neighbors.holds(atoms)
    change(atoms)
    assert neighbors.update(atoms)
    assert neighbors.holds(atoms)


def test_bad_input_stops() -> None:
    for skin in -0.1, float("nan"), float("inf"):
        with pytest.raises(ValueError, match="skin"):
            VerletList(CUTOFF, skin)
    atoms = crystal()
    neighbors = VerletList(CUTOFF, SKIN)
    neighbors.update(atoms)
    atoms.positions[5, 2] = np.nan
    with pytest.raises(StructureError, match="atom 5"):
        neighbors.update(atoms)
    assert not neighbors.holds(crystal())  # nothing is kept after a failure
