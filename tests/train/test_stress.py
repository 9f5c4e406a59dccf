"""Learning stress beside energies and forces: labels, the loss and its gradient, training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.units import GPa
from in_memory import InMemory
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from hipnn_pyg import HIPNN, HIPNNPotential, PackedLoader, PackedMolecules
from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.forces import ForceLabels
from hipnn_pyg.data.stress import StressLabels
from hipnn_pyg.data.targets import Target
from hipnn_pyg.train import Trainer, Training, predict_stress, stress_statistics
from hipnn_pyg.train.force_loss import ForceLossTerms, HIPNNForceLoss, force_scale, stress_scale
from hipnn_pyg.train.objective import loss_of
from hipnn_pyg.train.step import TrainingStep

TARGET = Target("energy", "eV", "energy")
FORCES, STRESS = ForceLabels("eV/Angstrom"), StressLabels("eV/Angstrom^3")
CUTOFF = 3.6
"""Å, of ``cell_model``."""
CRYSTAL, SLAB, MOLECULE = range(3)
Make = Callable[..., HIPNN]


@pytest.fixture
def structures(cell_model: Make) -> Callable[..., list[Data]]:
    """In turn a crystal smaller than the cutoff, a slab and a molecule; another model's labels.

    Every second cell is left-handed.
    """
    teacher = HIPNNPotential(cell_model(seed=5)).eval()

    def found(number: int, kinds: tuple[int, ...] = (CRYSTAL, SLAB, MOLECULE)) -> list[Data]:
        generator, items = torch.Generator().manual_seed(0), []
        for count in range(number):
            noise = 0.15 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
            pos = torch.tensor([[0.1, 0, 0], [1.3, 1.1, 0.2], [0.4, 1.9, 1.6]]).double() + noise
            data = Data(z=torch.tensor([1, 6, 8]), pos=pos)
            kind = kinds[count % len(kinds)]
            if kind != MOLECULE:
                vectors = 2.6 * torch.eye(3).double() + noise
                data.cell = vectors[[1, 0, 2] if count % 2 else [0, 1, 2]].unsqueeze(0)
                data.pbc = torch.tensor([[True, True, kind == CRYSTAL]])
            out = teacher(data)
            data.energy, data.force = out.energy[0], out.forces
            if out.stress is not None:
                data.stress = out.stress
            items.append(data)
        return items

    return found


def pack(items: list[Data], stress: StressLabels | None = STRESS) -> PackedMolecules:
    return PackedMolecules.pack(items, TARGET, forces=FORCES, stress=stress)


# -- labels ----------------------------------------------------------------------------------------


def test_packed_labels_follow_their_structures(structures: Callable[..., list[Data]]) -> None:
    items = structures(7)
    packed = pack(items)
    assert packed.stress is not None
    has = ~torch.isnan(packed.stress).flatten(1).any(1)
    assert has.tolist() == [number % 3 == CRYSTAL for number in range(7)]
    chosen = packed.subset(torch.tensor([6, 1, 3])).gather(torch.tensor([2, 0])).stress
    assert chosen is not None
    expected = torch.cat([items[3].stress, items[6].stress])
    torch.testing.assert_close(chosen, expected, rtol=1e-15, atol=0)
    (batch,) = PackedLoader(packed, 7)
    assert torch.equal(torch.nan_to_num(batch.stress), torch.nan_to_num(packed.stress))
    assert pack(items).sha256 == packed.sha256 != pack(items, None).sha256


def test_every_source_gives_the_same(structures: Callable[..., list[Data]]) -> None:
    items = structures(6, (CRYSTAL,))
    expected = pack(items).stress
    for source in (InMemory(items), list(DataLoader(items, 4))):
        found = pack(source).stress  # type: ignore[arg-type]
        assert found is not None and expected is not None and torch.equal(found, expected)


def test_units(structures: Callable[..., list[Data]]) -> None:
    items = structures(4)
    expected = pack(items).stress
    for data in items[::3]:
        data.stress = data.stress / GPa
    found = pack(items, StressLabels("GPa")).stress
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-7, atol=0)
    with pytest.raises(ValueError, match="unit of stress is 'bar'"):
        StressLabels("bar")
    with pytest.raises(ValueError, match="beside energies in 'unknown'"):
        PackedMolecules.pack(items, Target("e", "unknown", "energy"), stress=STRESS)


def test_bad_labels_are_named(structures: Callable[..., list[Data]]) -> None:
    def broken(number: int, stress: Tensor) -> list[Data]:
        items = structures(4)
        items[number].stress = stress
        return items

    good = structures(4)[3].stress
    partial, skew = good.clone(), good.clone()
    partial[0, 1, 2] = torch.nan
    skew[0, 0, 1] += 1
    for items, words in (
        (broken(3, partial), "structure 3 .* is not finite"),
        (broken(3, good * torch.inf), "structure 3 .* is not finite"),
        (broken(3, skew), "structure 3 .* is not symmetric"),
        (broken(1, good), "structure 1 .* not periodic in three directions"),
        (broken(2, good), "structure 2 .* not periodic in three directions"),
        (broken(3, good[0, 0]), r"shape \[1, 3, 3\], not \[3\]"),
    ):
        with pytest.raises(StructureError, match=words):
            pack(items)
    assert len(pack(broken(3, good))) == 4
    with pytest.raises(ValueError, match="packed without stress"):
        pack(pack(good_items := structures(2), None))  # type: ignore[arg-type]
    with pytest.raises(StructureError, match="of the 1 training structures none has stress"):
        stress_scale(pack(good_items).subset(torch.tensor([1])))


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["reference", "padded", "auto"])
def test_predictions_are_the_potentials(
    kernel: str, cell_model: Make, structures: Callable[..., list[Data]]
) -> None:
    model, items = cell_model(kernel=kernel), structures(7)
    potential = HIPNNPotential(model).eval()
    _, forces, stress = predict_stress(model, pack(items), batch_size=3)
    each = [potential(data) for data in items]
    torch.testing.assert_close(forces, torch.cat([one.forces for one in each]))
    for found, one in zip(stress, each, strict=True):
        if one.stress is None:
            assert bool(torch.isnan(found).all())
        else:
            torch.testing.assert_close(found, one.stress[0], rtol=1e-10, atol=1e-12)


def step_of(model: HIPNN, weight: float = 0.4, sigma_s: float | None = 0.02) -> TrainingStep:
    weights = dict(lambda_l2=1e-2, lambda_r=0.1, sigma_s=sigma_s, stress_weight=weight)
    return TrainingStep(HIPNNForceLoss(model, 0.3, **weights))  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", ["reference", "padded", "auto"])
def test_the_gradient_is_that_of_the_readable_layers(
    kernel: str, cell_model: Make, structures: Callable[..., list[Data]], same_gradient: Any
) -> None:
    batch = pack(structures(9)).with_edges(CUTOFF).gather(torch.tensor([4, 0, 8, 2, 3]))
    ours, readable = step_of(cell_model(kernel=kernel)), step_of(cell_model(kernel="reference"))
    assert (ours.direct is not None) == (kernel == "auto")
    terms, gradient = same_gradient(ours, readable, batch)
    scale = gradient.abs().max()

    bare = step_of(cell_model(kernel=kernel), sigma_s=None)  # control: stress enters the loss
    without, others = bare.gradient(bare.vector, bare.frozen, batch)
    assert float((others - gradient).abs().max() / scale) > 1e-3
    assert isinstance(terms, ForceLossTerms)
    added = 0.4 * (terms.stress_mae + terms.stress_rmse) / 0.02
    torch.testing.assert_close(terms.loss, without.loss + added)


def test_the_errors_are_those_of_the_potential(
    cell_model: Make, structures: Callable[..., list[Data]]
) -> None:
    items, model = structures(9), cell_model()
    labelled = [data for data in items if "stress" in data]
    out = HIPNNPotential(model).eval()
    error = torch.cat([out(data).stress - data.stress for data in labelled])
    step = step_of(model)
    batch = pack(items).with_edges(CUTOFF).gather(torch.arange(9))
    terms = step.gradient(step.vector, step.frozen, batch)[0]
    assert isinstance(terms, ForceLossTerms) and error.shape == (3, 3, 3)
    torch.testing.assert_close(terms.stress_mae, error.abs().mean())
    torch.testing.assert_close(terms.stress_rmse, error.square().mean().sqrt())


def test_parts_of_a_mini_batch_add_up(
    cell_model: Make, structures: Callable[..., list[Data]]
) -> None:
    """What several processes do, one of them without any stress."""
    packed, loss = pack(structures(9)).with_edges(CUTOFF), step_of(cell_model()).loss
    index = torch.arange(9)
    parts = [loss.sums(packed.gather(part)) for part in (index[index % 3 > 0], index[::3])]
    whole = loss.sums(packed.gather(index))
    assert whole.shape == (loss.num_sums,) and parts[0][9] == 0 and whole[9] == 27
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("static", [False, True], ids=["ordinary", "static"])
def test_the_settings_weigh_the_loss(
    static: bool, cell_model: Make, structures: Callable[..., list[Data]]
) -> None:
    """Of energies alone, with forces, and with stress; twice a weight counts its part twice."""
    packed, model = pack(structures(9)).with_edges(CUTOFF), cell_model()
    batch = packed.gather(torch.arange(9))
    weights = dict(lambda_l2=1e-3, lambda_r=0.1)
    weights |= dict(energy_weight=0.7, force_weight=1.9, stress_weight=2.3)

    def loss(forces: bool = True, stress: bool = True, **changed: float) -> Any:
        config = Training(**(weights | changed))  # type: ignore[arg-type]
        return loss_of(config, model, packed if forces else None, stress, static)(batch)

    terms = loss()
    parts = {
        "lambda_l2": terms.l2,
        "lambda_r": terms.r,
        "energy_weight": (terms.mae + terms.rmse) / model.sigma_e,
        "force_weight": (terms.force_mae + terms.force_rmse) / force_scale(packed),
        "stress_weight": (terms.stress_mae + terms.stress_rmse) / stress_scale(packed),
    }
    part = {name: weights[name] * value.item() for name, value in parts.items()}
    whole = sum(part.values())
    assert terms.loss.item() == pytest.approx(whole, rel=1e-12)
    for name, weight in weights.items():
        doubled = loss(**{name: 2 * weight}).loss.item()
        assert doubled - whole == pytest.approx(part[name], rel=1e-6, abs=0)
    without = whole - part["stress_weight"]
    assert loss(stress=False).loss.item() == pytest.approx(without, rel=1e-12)
    energies = part["energy_weight"] / 0.7 + part["lambda_l2"] + part["lambda_r"]
    assert loss(forces=False).loss.item() == pytest.approx(energies, rel=1e-12)


@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_a_mini_batch_without_stress(
    kernel: str, cell_model: Make, structures: Callable[..., list[Data]]
) -> None:
    batch = pack(structures(9)).with_edges(CUTOFF).gather(torch.tensor([1, 2, 5]))
    ours, bare = (
        step_of(cell_model(kernel=kernel)),
        step_of(cell_model(kernel=kernel), sigma_s=None),
    )
    found = ours.gradient(ours.vector, ours.frozen, batch)
    expected = bare.gradient(bare.vector, bare.frozen, batch)
    torch.testing.assert_close(tuple(found[0]), tuple(expected[0]))
    torch.testing.assert_close(found[1], expected[1])


# -- training --------------------------------------------------------------------------------------


def test_training_learns_and_goes_on(
    cell_model: Make, structures: Callable[..., list[Data]], tmp_path: Path
) -> None:
    """Stress is learned where it is among the labels; two pieces give the bits of one."""
    packed = pack(structures(60, (CRYSTAL, MOLECULE)))
    train, validation = packed.subset(torch.arange(40)), packed.subset(torch.arange(40, 60))

    def trainer(folder: Path | None, **changes: Any) -> Trainer:
        model = cell_model().float().fit_e0(train, TARGET, scale="residual")
        usual = dict(epochs=20, batch_size=5, energy_weight=0.1, learning_rate=1e-2)
        config = Training(seed=1, device="cpu", **(usual | changes))  # type: ignore[arg-type]
        return Trainer(model, train, validation, config, folder, progress=False)

    whole = trainer(tmp_path / "whole")
    model = whole.fit()
    assert validation.stress is not None
    spread = stress_statistics(torch.zeros_like(validation.stress), validation.stress, "eV").mae
    last = whole.history[-1]
    assert last["validation_stress_mae"] < 0.3 * spread
    _, _, stress = predict_stress(model, validation)
    found = stress_statistics(stress, validation.stress, "eV")
    assert found.unit == "GPa" and found.num == 10 * 9
    best = whole.best_row["validation_stress_mae"]
    assert found.mae == pytest.approx(best, rel=1e-4)

    half = trainer(tmp_path / "half")
    half.epochs = 8
    half.fit()
    rest = trainer(tmp_path / "half")
    rest.resume()
    for one, other in zip(rest.fit().parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)

    still = trainer(None, epochs=1, batch_size=40, learning_rate=1e-30)
    _, _, stress = predict_stress(still.fit(), train)
    mae = stress_statistics(stress, train.stress, "eV").mae
    assert still.history[0]["train_stress_mae"] == pytest.approx(mae, rel=1e-5)

    blind = trainer(None, stress_weight=0.0)  # control: the weight is what teaches it
    blind.fit()
    assert not blind.stress and "validation_stress_mae" not in blind.history[0]
    _, _, stress = predict_stress(blind.model, validation)
    assert stress_statistics(stress, validation.stress, "eV").mae > 1.3 * found.mae


def test_the_logged_error_is_over_the_mini_batches_with_stress(
    cell_model: Make, structures: Callable[..., list[Data]]
) -> None:
    """With practically no learning rate it is that of the fixed model, however few have any."""
    packed = pack(structures(12))
    train, validation = packed.subset(torch.arange(9)), packed.subset(torch.arange(9, 12))
    weights = dict(learning_rate=1e-30, recipe="paper", epochs=1)
    logged = []
    for size in (1, 9):  # three mini-batches of nine have stress, or all there are
        config = Training(batch_size=size, device="cpu", **weights)  # type: ignore[arg-type]
        trainer = Trainer(cell_model(), train, validation, config, progress=False)
        trainer.fit()
        logged.append(trainer.history[0]["train_stress_mae"])
    _, _, stress = predict_stress(cell_model(), train)
    assert train.stress is not None
    assert logged == pytest.approx([stress_statistics(stress, train.stress, "eV").mae] * 2)


def test_validation_needs_stress_too(
    cell_model: Make, structures: Callable[..., list[Data]]
) -> None:
    packed, config = pack(structures(9)), Training(device="cpu")
    crystals, others = packed.subset(torch.tensor([0, 3])), packed.subset(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="validation structures none"):
        Trainer(cell_model(), crystals, others, config, progress=False)
    without = replace(config, stress_weight=0.0)
    assert not Trainer(cell_model(), crystals, others, without, progress=False).stress
    with pytest.raises(StructureError, match="none has stress"):
        Trainer(cell_model(), others, crystals, config, progress=False)
