"""Learning from periodic structures: neighbours in all images, found once, for every path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_memory import InMemory
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg import HIPNN, HIPNNPotential, PackedMolecules, radius_graph_pbc
from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.forces import ForceLabels
from hipnn_pyg.data.packed import PackedLoader, edges_of
from hipnn_pyg.data.targets import Target
from hipnn_pyg.graph import edge_pairs
from hipnn_pyg.train import Trainer, Training, error_statistics, predict
from hipnn_pyg.train.direct import GPUGradient
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member
from hipnn_pyg.train.force_loss import HIPNNForceLoss
from hipnn_pyg.train.loss import HIPNNLoss
from hipnn_pyg.train.metrics import force_statistics, predict_forces
from hipnn_pyg.train.step import TrainingStep

TARGET = Target("pair energy", "eV", "energy")
FORCES = ForceLabels("eV/Angstrom", "force")
CUTOFF = 3.6
"""Å, of ``cell_model``."""
Make = Callable[..., HIPNN]


def labelled(z: Tensor, pos: Tensor, cell: Tensor | None, pbc: list[bool]) -> Data:
    """Energy and forces of a short-ranged pair potential, images included (eV, eV/Å)."""
    pos = pos.double().requires_grad_()
    (j, i), shift = radius_graph_pbc(pos, 5.0, cell, pbc)
    r = (pos[j] - pos[i] + shift).norm(dim=1)
    energy = (z[i] * z[j]).double().sqrt() @ torch.exp(-2 * r)
    (slope,) = torch.autograd.grad(energy, (pos,))
    data = Data(z=z, pos=pos.detach(), energy=energy.detach().reshape(1), force=-slope)
    if cell is not None:
        data.cell, data.pbc = cell.unsqueeze(0), torch.tensor([pbc])
    return data


def structures(number: int, seed: int = 0) -> list[Data]:
    """In turn a crystal whose cell is smaller than the cutoff, a skewed slab, and a molecule."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for count in range(number):
        noise = 0.15 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        pos = torch.tensor([[0.1, 0, 0], [1.3, 1.1, 0.2], [0.4, 1.9, 1.6]]).double() + noise
        cell = 2.6 * torch.eye(3).double() + noise
        if count % 3 == 1:
            cell[1, 0], cell[2] = 1.7, 0.0
        pbc = [count % 3 < 2, count % 3 < 2, count % 3 == 0]
        z = torch.tensor([1, 6, 8])[torch.randperm(3, generator=generator)][: 3 - count % 2]
        found.append(labelled(z, pos[: len(z)], cell if any(pbc) else None, pbc))
    return found


def pack(items: list[Data]) -> PackedMolecules:
    return PackedMolecules.pack(items, TARGET, forces=FORCES)


@pytest.mark.parametrize("kernel", ["reference", "padded", "auto"])
def test_predictions_are_the_potentials(kernel: str, cell_model: Make) -> None:
    model, items = cell_model(kernel=kernel), structures(7)
    potential = HIPNNPotential(model).eval()
    each = [potential(data, stress=False) for data in items]
    found, forces = predict_forces(model, pack(items), batch_size=3)
    energy = torch.cat([one.energy[:, 0] for one in each])
    torch.testing.assert_close(found.energy, energy, rtol=1e-12, atol=1e-12)
    expected = torch.cat([one.forces for one in each])
    torch.testing.assert_close(forces, expected, rtol=1e-10, atol=1e-12)
    bare = [Data(z=d.z, pos=d.pos, energy=d.energy, force=d.force) for d in items]
    moved = (predict(model, pack(bare)).energy - energy).abs()  # control: cells matter
    assert float(moved[0]) > 1e-4 and float(moved[1]) > 1e-4 and float(moved[2]) < 1e-12


@pytest.mark.parametrize("kernel", ["reference", "padded", "auto"])
@pytest.mark.parametrize("of_forces", [False, True])
def test_the_gradient_is_that_of_the_readable_layers(
    kernel: str, of_forces: bool, cell_model: Make, same_gradient: Callable
) -> None:
    def step(kernel: str) -> TrainingStep:
        model = cell_model(kernel=kernel)
        if of_forces:
            return TrainingStep(HIPNNForceLoss(model, 0.3, lambda_l2=1e-2, lambda_r=0.1))
        return TrainingStep(HIPNNLoss(model, lambda_l2=1e-2, lambda_r=0.1))

    batch = pack(structures(9)).with_edges(CUTOFF).gather(torch.tensor([4, 0, 8, 2, 3]))
    ours, readable = step(kernel), step("reference")
    assert (ours.direct is not None) == (kernel == "auto")
    same_gradient(ours, readable, batch)


def test_edges_are_those_of_the_search() -> None:
    packed = pack(structures(70))  # more than are searched in one go
    index = torch.tensor([66, 3, 3, 5, 64, 1])
    batch = packed.with_edges(CUTOFF).subset(torch.arange(69, -1, -1)).gather(69 - index)
    assert batch.cells is not None and batch.cells.edge_index is not None
    found = radius_graph_pbc(batch.pos, CUTOFF, *batch.cells[:2], batch.batch)
    assert torch.equal(batch.cells.edge_index, found[0])
    torch.testing.assert_close(batch.cells.shift, found[1])
    assert float(found[1].abs().max()) > 1
    again = packed.with_edges(CUTOFF)
    assert again.with_edges(CUTOFF) is again  # found once
    numbers = []
    for molecules in (again, again.with_edges(2.0)):
        assert molecules.cells is not None and molecules.cells.edges is not None
        numbers.append(len(molecules.cells.edges.j))
    assert numbers[0] > numbers[1] > 0


def test_an_atom_far_outside_its_cell() -> None:
    """Translations are kept as int16: as many cells as that away, and no further."""
    data = structures(1)[0]
    for cells, far in ((32_000, False), (-40_000, True)):
        moved = data.clone()
        moved.pos[0] += cells * moved.cell[0, 0]
        packed = pack([moved])
        if far:
            with pytest.raises(StructureError, match=r"0 to 0 .* 4000\d cells apart: wrap them"):
                packed.with_edges(CUTOFF)
            continue
        batch = packed.with_edges(CUTOFF).gather(torch.tensor([0]))
        pairs = edge_pairs(batch.pos, *edges_of(batch))
        assert float(pairs.r.max()) <= CUTOFF + 1e-3


def test_training_learns_and_goes_on(cell_model: Make, tmp_path: Path) -> None:
    """Trained in two pieces or one, with the same bits; errors are those of the potential."""
    packed = pack(structures(60))
    train, validation = packed.subset(torch.arange(45)), packed.subset(torch.arange(45, 60))

    def trainer(folder: Path, epochs: int = 40) -> Trainer:
        model = cell_model().float().fit_e0(train, TARGET, scale="residual")
        weights = dict(energy_weight=0.1, learning_rate=2e-2)
        config = Training(epochs=epochs, batch_size=5, seed=1, device="cpu", **weights)
        return Trainer(model, train, validation, config, folder, progress=False)

    whole = trainer(tmp_path / "whole")
    model = whole.fit()
    last, labels = whole.history[-1], validation.gather(torch.arange(15)).forces
    assert labels is not None
    spread = error_statistics(validation.target, validation.target.mean(), "eV").mae
    pull = force_statistics(torch.zeros_like(labels), labels, "eV").mae
    assert last["validation_mae"] < 0.2 * spread
    assert last["validation_force_mae"] < 0.3 * pull

    potential = HIPNNPotential(model).eval()
    each = [potential(data.to("cpu"), stress=False).energy for data in structures(60)[45:]]
    mae = error_statistics(torch.cat(each)[:, 0], validation.target, "eV").mae
    assert mae == pytest.approx(whole.best_mae, rel=1e-3)

    half = trainer(tmp_path / "half")
    half.epochs = 15
    half.fit()
    rest = trainer(tmp_path / "half")
    rest.resume()
    for one, other in zip(rest.fit().parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_plain_loops_get_the_cells(cell_model: Make) -> None:
    loader = PackedLoader(pack(structures(4)), 4)
    (batch,) = loader
    out = HIPNNPotential(cell_model()).eval()(batch, stress=False)
    expected = predict(cell_model(), pack(structures(4))).energy
    torch.testing.assert_close(out.energy[:, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("with_pbc", [True, False])
def test_data_sets_in_memory(with_pbc: bool, cell_model: Make) -> None:
    items = structures(12)[::3]  # crystals
    expected = predict(cell_model(), pack(items)).energy
    for data in () if with_pbc else items:
        del data.pbc
    found = predict(cell_model(), pack(InMemory(items))).energy  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


def test_bad_cells_are_named() -> None:
    good = structures(4)

    def broken(**changed: object) -> list[Data]:
        data = good[3].clone()
        for name, value in changed.items():
            if value is None:
                del data[name]
            else:
                data[name] = value
        return [*good[:3], data]

    thin = good[3].cell.clone()
    thin[0, 2] = torch.tensor([0.0, 0.0, 5e-4])
    flat = torch.ones(1, 3, 3).double()
    for changed, words in (
        (dict(cell=None), "structure 3 of the dataset has pbc"),
        (dict(cell=flat[:, :2]), r"structure 3 of the dataset has a cell of shape \[1, 2, 3\]"),
        (dict(pbc=torch.ones(1, 2).bool()), "structure 3 of the dataset has pbc of shape"),
        (dict(pbc=[True] * 3), "structure 3 of the dataset: pbc is a list: give it as a tensor"),
        (dict(cell=flat.numpy()), "structure 3 of the dataset: cell is a ndarray: give it"),
        (dict(cell=flat), "structure 3.*singular"),
        (dict(cell=thin), "molecule 3 of the dataset.*5.00e-04"),  # an atom and its own image
    ):
        with pytest.raises(StructureError, match=words):
            pack(broken(**changed))
    assert len(pack(good)) == 4
    boxed = good[2].clone()  # a molecule in a box that is not periodic
    boxed.cell, boxed.pbc = flat, torch.zeros(1, 3).bool()
    assert pack([boxed]).cells is None and pack(good[:1]).cells is not None


def test_what_is_not_built_says_so(cell_model: Make) -> None:
    packed = pack(structures(6))
    step = TrainingStep(HIPNNLoss(cell_model()))
    with pytest.raises(StructureError, match="with_edges"):
        step.gradient(step.vector, step.frozen, packed.gather(torch.arange(2)))
    energies = replace(packed, forces=None, force_labels=None)
    for option in ("capture", "compile"):
        config = Training(device="cpu", **{option: "on"})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"--{option} on does not take periodic structures"):
            Trainer(cell_model(), energies, energies, config, progress=False)
    members = [Member(cell_model(), energies, energies, Training(device="cpu"), progress=False)]
    with pytest.raises(ValueError, match="periodic structures"):
        EnsembleTrainer(members, batched=True)
    assert not EnsembleTrainer(members).batched


def test_captured_validation_is_of_molecules_without_cells(
    cell_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where molecules are learned and crystals validate."""

    class Captured:
        def __init__(self, molecules: PackedMolecules) -> None:
            raise AssertionError("captured")

    monkeypatch.setattr("hipnn_pyg.train.trainer.CapturedValidation", Captured)
    cell = 9 * torch.eye(3).double().unsqueeze(0)
    molecule = Data(z=torch.tensor([1, 8]), pos=torch.eye(2, 3).double(), energy=torch.ones(1))
    crystal = molecule.clone().update({"cell": cell, "pbc": torch.ones(1, 3).bool()})

    def validate(data: Data) -> float:
        train, packed = (PackedMolecules.pack(one, TARGET) for one in (molecule, data))
        config = Training(device="cpu", capture="on")
        trainer = Trainer(cell_model(), train, packed, config, progress=False)
        trainer.objective.direct = GPUGradient.__new__(GPUGradient)
        return trainer._validate(trainer.model).energy.mae

    assert validate(crystal) > 0
    with pytest.raises(AssertionError, match="captured"):  # control
        validate(molecule)
