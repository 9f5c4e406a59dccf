"""E^0 and sigma_E of a model from whatever holds the training molecules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from in_memory import InMemory
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from hipnn_pyg import HIPNN, PackedLoader, PackedMolecules, StructureError, Target
from hipnn_pyg.data.targets import MD17_ENERGY

SPECIES = (1, 6, 7, 8)
ENERGY = Target("energy", "eV", "energy")


def molecule(counts: list[int], energy: float) -> Data:
    z = torch.tensor(SPECIES).repeat_interleave(torch.tensor(counts))
    pos = 1.3 * torch.arange(3.0 * len(z)).view(-1, 3)
    return Data(z=z, pos=pos, energy=torch.tensor([energy], dtype=torch.float64))


@pytest.fixture
def items() -> list[Data]:
    """30 molecules of random composition, total energies of thousands of eV."""
    random = np.random.default_rng(0)
    compositions = random.integers(1, 6, (30, 4))
    energies = compositions @ [-13.6, -1029.5, -1485.3, -2042.6] + random.normal(0, 3, 30)
    return [
        molecule(counts.tolist(), float(energy))
        for counts, energy in zip(compositions, energies, strict=True)
    ]


def least_squares(items: list[Data]) -> tuple[np.ndarray, float]:
    """NumPy's answer, in float64."""
    counts = [[int((item.z == number).sum()) for number in SPECIES] for item in items]
    energies = np.array([float(item.energy) for item in items])
    weight = np.linalg.lstsq(np.array(counts, dtype=float), energies, rcond=None)[0]
    return weight, float(np.std(energies))


@pytest.mark.parametrize(
    "source",
    [
        lambda items: items,
        InMemory,
        lambda items: InMemory(items, transform=lambda data: data),
        lambda items: DataLoader(items, batch_size=7, shuffle=True),
        lambda items: DataLoader(InMemory(items), batch_size=7),
        lambda items: InMemory(items).shuffle(),
        lambda items: torch.utils.data.Subset(InMemory(items), range(30)),
        lambda items: PackedMolecules.pack(items, ENERGY),
        lambda items: PackedLoader(PackedMolecules.pack(items, ENERGY), 7, shuffle=True),
    ],
    ids=[
        *("list", "memory", "transform", "loader", "memory_loader", "shuffled", "subset"),
        *("packed", "packed_loader"),
    ],
)
def test_equals_least_squares_from_any_source(items: list[Data], source: Callable) -> None:
    model = HIPNN(SPECIES, 4)
    assert model.fit_e0(source(items), ENERGY) is model
    weight, sigma_e = least_squares(items)
    np.testing.assert_allclose(model.reference.weight.numpy(), weight, rtol=1e-9)
    assert model.sigma_e == pytest.approx(sigma_e, rel=1e-12)
    assert model.reference.weight.dtype == torch.float64 and model.energy_unit == "eV"
    assert not model.reference.weight.requires_grad and model.reference.bias.item() == 0.0


def test_packed_molecules_know_their_target(items: list[Data]) -> None:
    """The unit of the model is theirs, whatever it is; another one is refused."""
    packed = {target.unit: PackedMolecules.pack(items, target) for target in (ENERGY, MD17_ENERGY)}
    assert packed.keys() == {"eV", "kcal/mol"}
    for unit, molecules in packed.items():
        for source in (molecules, PackedLoader(molecules, 7)):
            assert HIPNN(SPECIES, 4).fit_e0(source).energy_unit == unit
    with pytest.raises(ValueError, match=r"packed with Target\(.*'eV'.*, not .*'kcal/mol'"):
        HIPNN(SPECIES, 4).fit_e0(packed["eV"], MD17_ENERGY)


def test_only_the_given_molecules_count(items: list[Data]) -> None:
    dataset = InMemory(items)
    model = HIPNN(SPECIES, 4).fit_e0(dataset[:12], ENERGY)
    weight, sigma_e = least_squares(items[:12])
    np.testing.assert_allclose(model.reference.weight.numpy(), weight, rtol=1e-9)
    assert model.sigma_e == pytest.approx(sigma_e)
    assert not np.allclose(weight, least_squares(items)[0], rtol=1e-9)  # control


def test_single_composition_takes_the_least_norm() -> None:
    """As in MD17: every frame is C2H6O, and w^0 is proportional to the counts."""
    energies = np.random.default_rng(1).normal(-97_000.0, 5.0, 20)
    counts = np.array([6.0, 2.0, 0.0, 1.0])
    frames = [molecule([6, 2, 0, 1], energy) for energy in energies]
    model = HIPNN(SPECIES, 4).fit_e0(frames, "energy")
    expected = counts * energies.mean() / (counts @ counts)
    np.testing.assert_allclose(model.reference.weight.numpy(), expected, rtol=1e-12, atol=1e-9)
    assert model.sigma_e == pytest.approx(energies.std())
    assert model.energy_unit == "unknown"  # "energy" is kcal/mol in MD17 alone


def test_absent_species_gets_zero(items: list[Data]) -> None:
    model = HIPNN((*SPECIES, 9), 4).fit_e0(items, ENERGY)
    np.testing.assert_allclose(model.reference.weight[:4].numpy(), least_squares(items)[0])
    assert abs(model.reference.weight[4].item()) < 1e-6


def test_fit_and_scale_enter_the_energies(items: list[Data]) -> None:
    """Order 0 is the fit, the higher orders are proportional to sigma_E."""
    torch.manual_seed(0)
    model = HIPNN(SPECIES, 4).eval()
    data = next(iter(DataLoader(items, batch_size=30)))
    before = model.energy_terms(data.z, data.pos, data.batch).terms.detach()
    after = model.fit_e0(items, ENERGY).energy_terms(data.z, data.pos, data.batch).terms
    after = after.detach()
    order_0 = torch.zeros(30, dtype=torch.float64).index_add(0, data.batch, after[:, 0])
    residual = (order_0 - data.energy).abs()
    assert float(residual.max()) < 10 < 1e-2 * model.sigma_e  # the noise has a width of 3
    assert not bool(before[:, 0].any())
    torch.testing.assert_close(after[:, 1:], model.sigma_e * before[:, 1:], rtol=1e-5, atol=1e-5)


def test_without_hierarchy_only_the_scale_is_set(items: list[Data]) -> None:
    model = HIPNN(SPECIES, 4, hierarchical=False).fit_e0(items, ENERGY)
    assert not bool(model.reference.weight.any())
    assert model.sigma_e == pytest.approx(least_squares(items)[1])


def test_qm9_column_by_name(items: list[Data]) -> None:
    for item in items:
        item.y = torch.zeros(1, 19, dtype=torch.float64)
        item.y[0, 12] = item.energy
    model = HIPNN(SPECIES, 4).fit_e0(items, "U0_atom")
    np.testing.assert_allclose(model.reference.weight.numpy(), least_squares(items)[0], rtol=1e-9)
    assert model.energy_unit == "eV"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda items: [], StructureError, "holds no molecules"),
        (lambda items: items[:1], StructureError, "sigma_E.*1 target energies, is 0"),
        (lambda items: [*items, molecule([0, 1, 0, 0], np.nan)], StructureError, "30 is nan"),
        (lambda items: [*items, molecule([0, 1, 0, 0], np.inf)], StructureError, "30 is inf"),
        (
            lambda items: [*items, Data(z=torch.tensor([1, 1]), pos=torch.eye(3)[:2])],
            KeyError,
            "energy",
        ),
    ],
    ids=["none", "one", "nan", "inf", "no_target"],
)
def test_bad_training_sets(
    items: list[Data], change: Callable, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        HIPNN(SPECIES, 4).fit_e0(change(items), ENERGY)


def test_foreign_species_is_named(items: list[Data]) -> None:
    with pytest.raises(StructureError, match=r"atomic number 8 .*\(1, 6, 7\)"):
        HIPNN((1, 6, 7), 4).fit_e0(items, ENERGY)


def test_residual_scale_needs_a_hierarchy(items: list[Data]) -> None:
    """Without one E^0 is 0, and E - E^0 is E."""
    total = least_squares(items)[1]
    scales = [
        HIPNN(SPECIES, 4, hierarchical=hierarchical).fit_e0(items, ENERGY, "residual").sigma_e
        for hierarchical in (True, False)
    ]
    assert scales[0] < 0.01 * total and scales[1] == pytest.approx(total)
