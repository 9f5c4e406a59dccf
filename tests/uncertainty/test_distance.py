"""Distances from the training data: the statistics, invariances, and what is far away."""

from __future__ import annotations

from collections.abc import Callable

import ase
import ase.build
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from hipnn_pyg import HIPNN, PackedMolecules, radius_graph
from hipnn_pyg.data.targets import Target
from hipnn_pyg.graph import radius_graph_pbc
from hipnn_pyg.models.neighborhood import neighborhood
from hipnn_pyg.uncertainty.distance import (
    RIDGE,
    FeatureStatistics,
    atom_features,
    recorded_features,
)
from hipnn_pyg.uncertainty.structures import bonds, rattled, rotated, stretched

Build = Callable[..., HIPNN]
NAMES = ("CH4", "NH3", "H2O", "CH3CH2OH", "CH3OH", "C2H6", "H2CO", "HCOOH")


def molecule(name: str, seed: int = 0, by: float = 0.03) -> Data:
    atoms = ase.build.molecule(name)
    data = Data(z=torch.tensor(atoms.numbers), pos=torch.tensor(atoms.positions))
    return rattled(data, by, seed)


def pack(structures: list[Data]) -> PackedMolecules:
    items = [Data(z=d.z, pos=d.pos, e=torch.zeros(1)) for d in structures]
    return PackedMolecules.pack(items, Target("e", "eV", "e"))


@pytest.fixture
def train() -> PackedMolecules:
    return pack([molecule(NAMES[k % len(NAMES)], k) for k in range(400)])


@pytest.fixture
def model(small_model: Build) -> HIPNN:
    return small_model(torch.float64)


def all_features(model: HIPNN, molecules: PackedMolecules) -> tuple[np.ndarray, np.ndarray]:
    parts = [(batch.z, features) for batch, features in atom_features(model, molecules, 64)]
    z, features = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return z, features


def test_recorded_features_are_the_models_own(model: HIPNN) -> None:
    data = molecule("CH3CH2OH")
    with recorded_features(model) as found:
        terms = model.energy_terms(data.z, data.pos)
    assert [tuple(f.shape) for f in found] == [(9, 6), (9, 6)]
    assert torch.equal(found[-1], terms.features) and not torch.equal(found[0], found[1])
    model.energy_terms(data.z, data.pos)
    assert len(found) == 2  # outside the with nothing is recorded
    first = model.blocks[0].readout(found[0], model.reference.sigma_e)
    torch.testing.assert_close(first.double(), terms.terms[:, 1])


def test_statistics_are_those_of_numpy(model: HIPNN, train: PackedMolecules) -> None:
    fitted = FeatureStatistics.fit(model, train)
    z, features = all_features(model, train)
    assert fitted.counts.tolist() == [int((z == number).sum()) for number in model.species]
    for s, number in enumerate(model.species):
        x = features[z == number]
        np.testing.assert_allclose(fitted.mean[s], x.mean(0), rtol=1e-10, atol=1e-12)
        covariance = np.cov(x.T)
        shrink = x.shape[1] / (len(x) + x.shape[1])
        diagonal = np.diag(np.diag(covariance))
        expected = (1 - shrink) * covariance + shrink * diagonal
        expected += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        inverse = (fitted.whitening[s] @ fitted.whitening[s].T).numpy()
        np.testing.assert_allclose(inverse @ expected, np.eye(len(expected)), atol=1e-6)
        d2 = np.einsum("ij,jk,ik->i", x - x.mean(0), np.linalg.inv(expected), x - x.mean(0))
        ours = fitted.atom_distances(torch.from_numpy(z), torch.from_numpy(features))
        np.testing.assert_allclose(ours[z == number], np.sqrt(d2 / x.shape[1]), rtol=1e-6)
        assert 0.1 < np.mean(d2 / x.shape[1]) <= 1


def test_molecules_have_the_distance_of_their_furthest_atom(
    model: HIPNN, train: PackedMolecules
) -> None:
    fitted = FeatureStatistics.fit(model, train)
    structures = [molecule(name, 999) for name in NAMES]
    together = fitted.distances(model, pack(structures))
    for data, distance in zip(structures, together, strict=True):
        z, features = all_features(model, pack([data]))
        atoms = fitted.atom_distances(torch.from_numpy(z), torch.from_numpy(features))
        assert float(distance) == pytest.approx(float(atoms.max()), rel=1e-12)


def test_a_potentials_neighbours_give_the_same_distances(
    model: HIPNN, train: PackedMolecules
) -> None:
    fitted = FeatureStatistics.fit(model, train)
    test = pack([molecule(name, 999) for name in NAMES])
    batch = test.gather(torch.arange(len(NAMES)))
    edge_index = radius_graph(batch.pos, model.cutoff + 1, batch.batch)  # longer ones are nothing
    near = neighborhood(model, batch.z, batch.pos, batch.batch, len(NAMES), edge_index)
    ours = fitted.distances_near(model, near, batch.pos)
    torch.testing.assert_close(ours, fitted.distances(model, test), rtol=1e-9, atol=0)
    moved = fitted.distances_near(model, near, 1.1 * batch.pos)
    torch.testing.assert_close(ours, fitted.distances_near(model, near, batch.pos + 1.0))
    assert float((moved - ours).abs().min()) > 1e-3  # control


def test_bonds_across_the_boundary_of_a_cell(model: HIPNN, train: PackedMolecules) -> None:
    """A crystal is where it was, however its atoms are moved into cells, and in a larger cell."""
    fitted = FeatureStatistics.fit(model, train)
    whole = ase.build.molecule("CH3OH", cell=[4.6, 4.4, 4.2], pbc=True)
    wrapped, moved = whole.copy(), whole.copy()
    moved.positions += [1.3, 0.3, -0.4]
    for atoms in (wrapped, moved):
        atoms.wrap()
        assert atoms.get_distance(0, 1) > 2 * whole.get_distance(0, 1)  # C and O, torn apart

    def distance(atoms: ase.Atoms, pbc: bool = True) -> float:
        z, pos = torch.tensor(atoms.numbers), torch.tensor(atoms.positions)
        edges, shift = radius_graph_pbc(pos, model.cutoff, torch.tensor(atoms.cell.array), pbc)
        near = neighborhood(model, z, pos, None, 1, edges, shift)
        return float(fitted.distances_near(model, near, pos))

    for same in (wrapped, moved, wrapped.repeat((2, 1, 1))):
        assert distance(same) == pytest.approx(distance(whole), rel=1e-9)
    assert distance(whole, pbc=False) != pytest.approx(distance(whole), rel=1e-2)  # control
    assert distance(wrapped, pbc=False) != pytest.approx(distance(whole), rel=1e-2)


def test_rotation_and_order_change_nothing_and_stretching_does(
    model: HIPNN, train: PackedMolecules
) -> None:
    fitted = FeatureStatistics.fit(model, train)
    structures = [molecule(name, 1000 + k) for k, name in enumerate(NAMES)]
    before = fitted.distances(model, pack(structures))
    turned = fitted.distances(model, pack([rotated(d, k) for k, d in enumerate(structures)]))
    torch.testing.assert_close(turned, before, rtol=1e-9, atol=0)
    order = [torch.randperm(len(d.z)) for d in structures]
    shuffled = [Data(z=d.z[p], pos=d.pos[p]) for d, p in zip(structures, order, strict=True)]
    torch.testing.assert_close(fitted.distances(model, pack(shuffled)), before, rtol=1e-9, atol=0)
    far = [stretched(d, 0.3, k) for k, d in enumerate(structures)]
    assert all(d is not None for d in far)
    after = fitted.distances(model, pack([d for d in far if d is not None]))
    assert bool((after > 1.3 * before).all()) and float((after / before).mean()) > 2


def test_species_without_training_atoms_are_infinitely_far(model: HIPNN) -> None:
    fitted = FeatureStatistics.fit(model, pack([molecule("CH4", k) for k in range(60)]))
    assert fitted.counts.tolist() == [240, 60, 0, 0]
    distances = fitted.distances(model, pack([molecule("CH4", 99), molecule("H2O", 99)]))
    assert float(distances[0]) < 4 and float(distances[1]) == torch.inf


def test_a_rare_species_has_a_finite_distance(model: HIPNN, train: PackedMolecules) -> None:
    """Fewer atoms than features: the covariance alone could not be inverted."""
    rare = pack([molecule("CH4", k) for k in range(60)] + [molecule("H2O", k) for k in range(3)])
    fitted = FeatureStatistics.fit(model, rare)
    assert int(fitted.counts[3]) == 3
    distances = fitted.distances(model, pack([molecule("H2O", 50), molecule("H2O", 50, by=0.3)]))
    assert bool(torch.isfinite(distances).all()) and float(distances[1]) > 2 * float(distances[0])


def test_one_training_atom_says_nothing(model: HIPNN) -> None:
    several = [molecule("CH4", k) for k in range(60)]
    for number, far in ((1, True), (2, False)):
        fitted = FeatureStatistics.fit(model, pack([*several, *[molecule("H2O")] * number]))
        distance = float(fitted.distances(model, pack([molecule("H2O")])))
        assert (distance == torch.inf) == far


@pytest.mark.parametrize("hidden_channels", [6, 40])
def test_training_atoms_that_are_all_alike(
    small_model: Build, dtype: torch.dtype, hidden_channels: int
) -> None:
    """As lone atoms: no covariance but rounding errors, and yet all others are far away."""
    model = small_model(dtype, hidden_channels=hidden_channels)
    alone = Data(z=torch.tensor([7]), pos=torch.zeros(1, 3))
    train = [molecule("CH4", k) for k in range(60)] + [alone] * 5 + [molecule("H2O")] * 7
    fitted = FeatureStatistics.fit(model, pack(train))
    known, other = [alone, molecule("H2O")], [molecule("NH3"), molecule("H2O", 1)]
    assert float(fitted.distances(model, pack(known)).max()) < 2
    assert float(fitted.distances(model, pack(other)).min()) > 50


def test_changed_structures_are_what_they_are_called() -> None:
    ethanol = molecule("CH3CH2OH")
    joined, before = bonds(ethanol), torch.cdist(ethanol.pos, ethanol.pos).numpy()
    assert joined.sum() == 2 * 8
    chosen = set()
    for seed, by in ((0, 0.3), (1, 0.3), (2, -0.15), (3, -0.15)):
        changed = stretched(ethanol, by, seed)
        assert changed is not None
        longer = torch.cdist(changed.pos, changed.pos).numpy()[joined] - before[joined]
        np.testing.assert_allclose(np.sort(np.abs(longer)), [0] * 14 + [abs(by)] * 2, atol=1e-9)
        assert longer.sum() == pytest.approx(2 * by)
        chosen.add(int(np.abs(longer).argmax()))
        turned = rotated(ethanol, seed)
        np.testing.assert_allclose(torch.cdist(turned.pos, turned.pos), before, atol=1e-9)
        handed = torch.linalg.det(ethanol.pos[1:4] - ethanol.pos[0])
        assert torch.linalg.det(turned.pos[1:4] - turned.pos[0]) == pytest.approx(
            float(handed)
        )  # no mirror
    assert len(chosen) > 1
    cloud = Data(z=torch.ones(3000, dtype=torch.int64), pos=torch.zeros(3000, 3))
    moved = rattled(cloud, 0.1).pos
    assert float(moved.std()) == pytest.approx(0.1, rel=0.03) and float(moved.abs().max()) > 0.3
