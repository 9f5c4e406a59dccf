"""Forces of any model called as (z, pos, batch): PyG's SchNet in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn.models import SchNet

from hipnn_pyg import HIPNN, RadiusGraph, StructureError
from hipnn_pyg.models.forces import Forces
from hipnn_pyg.models.potential import HIPNNPotential


def schnet() -> SchNet:
    torch.manual_seed(0)
    return SchNet(8, 8, 2, 8, interaction_graph=RadiusGraph(4.0)).double().eval()


def numerical_forces(model: nn.Module, batch: Batch, step: float = 1e-3) -> Tensor:
    """Five-point derivatives of the energy of a single structure."""
    slopes = torch.zeros_like(batch.pos)
    for place in range(batch.pos.numel()):
        for k, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
            pos = batch.pos.clone()
            pos.view(-1)[place] += k * step
            energy = model(batch.z, pos, torch.zeros_like(batch.z)).detach().sum()
            slopes.view(-1)[place] -= weight / step * energy
    return slopes


def test_schnet_with_forces(molecules: Batch) -> None:
    model = schnet()
    energy, forces = Forces(model)(molecules.z, molecules.pos, molecules.batch)
    assert energy.shape == (4, 1) and not energy.requires_grad and not forces.requires_grad
    torch.testing.assert_close(energy, model(molecules.z, molecules.pos, molecules.batch).detach())
    water = molecules[2]
    numerical = numerical_forces(model, water)
    actual = Forces(model)(water).forces
    torch.testing.assert_close(actual, forces[molecules.batch == 2])
    error = float((actual - numerical).abs().max() / numerical.abs().max())
    control = float((1.001 * actual - numerical).abs().max() / numerical.abs().max())
    assert error < 1e-6 < control


def test_of_several_results_the_first_is_the_energy(molecules: Batch) -> None:
    """PyG's ViSNet returns the energy and None."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = schnet()

        def forward(self, *structure: Tensor) -> tuple[Tensor, None]:
            return self.model(*structure), None

    expected = Forces(schnet())(molecules)
    energy, forces = Forces(Two())(molecules)
    assert torch.equal(energy, expected.energy) and torch.equal(forces, expected.forces)
    assert float(forces.abs().max()) > 1e-3  # control


def test_hipnn_gives_what_its_potential_gives(
    small_model: Callable[..., HIPNN], molecules: Batch
) -> None:
    model = small_model()
    energy, forces = Forces(model)(molecules)
    expected = HIPNNPotential(model)(molecules)
    torch.testing.assert_close(energy, expected.energy)
    torch.testing.assert_close(forces, expected.forces, rtol=1e-11, atol=1e-11)


def test_schnet_learns_from_forces(molecules: Batch) -> None:
    """The loss on forces reaches every parameter but the ones that no force depends on."""
    model = schnet().train()
    potential = Forces(model)
    assert potential.training
    energy, forces = potential(molecules)
    (energy.square().sum() + forces.square().sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    frozen = potential(molecules, create_graph=False)
    assert not frozen.forces.requires_grad
    torch.testing.assert_close(frozen.forces, forces.detach())


class Constant(nn.Module):
    """A model whose energy knows no positions."""

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor | None = None) -> Tensor:
        batch = torch.zeros_like(z) if batch is None else batch
        return pos.new_zeros(int(batch.max()) + 1, 1).index_add(0, batch, z.to(pos)[:, None])


def test_no_path_to_positions_is_an_error_unless_atoms_are_alone(molecules: Batch) -> None:
    with pytest.raises(RuntimeError, match="does not depend on positions"):
        Forces(Constant())(molecules)
    single = torch.tensor([1, 8]), torch.zeros(2, 3), torch.tensor([0, 1])
    energy, forces = Forces(Constant())(*single)
    assert energy.tolist() == [[1], [8]] and not bool(forces.any())
    energy, forces = Forces(Constant())(torch.tensor([8]), torch.zeros(1, 3))
    assert energy.tolist() == [[8]] and not bool(forces.any())
    with pytest.raises(RuntimeError, match="does not depend"):  # control: two atoms of one
        Forces(Constant())(torch.tensor([1, 8]), torch.tensor([[0.0, 0, 0], [0, 0, 1]]))


def test_bad_positions_stop(molecules: Batch) -> None:
    molecules.pos[3, 0] = torch.nan
    with pytest.raises(StructureError, match="atom 3"):
        Forces(schnet())(molecules)


@pytest.mark.parametrize("training", [False, True])
def test_in_inference_mode(molecules: Batch, training: bool) -> None:
    """Lightning tests and predicts in it."""
    expected = Forces(schnet())(molecules)
    model = Forces(schnet()).train(training)
    with torch.inference_mode():
        inside = Batch.from_data_list(
            [Data(z=d.z, pos=d.pos + 0) for d in molecules.to_data_list()]
        )
        energy, forces = model(inside)
    torch.testing.assert_close(energy, expected.energy)
    torch.testing.assert_close(forces, expected.forces)


@pytest.mark.parametrize("wrap", [Forces, HIPNNPotential])
def test_parts_set_apart_stay_so(
    small_model: Callable[..., HIPNN], wrap: Callable[[HIPNN], nn.Module]
) -> None:
    """A frozen block in evaluation mode of a model that trains."""
    model = small_model().train()
    model.blocks[0].eval()
    wrapped = wrap(model)
    assert wrapped.training and model.training and model.blocks[1].training
    assert not any(part.training for part in model.blocks[0].modules())
    assert all(part.training for part in wrapped.train().modules())  # control


def test_a_graph_in_inference_mode_if_asked_for(molecules: Batch) -> None:
    model = Forces(schnet())
    given = (molecules.z, molecules.pos, molecules.batch)
    with torch.inference_mode():
        kept, plain = (model(*given, create_graph=keep) for keep in (True, None))
    assert kept.forces.requires_grad and not plain.forces.requires_grad
    torch.testing.assert_close(kept.forces.detach(), plain.forces)


def test_structures_it_cannot_see_stop(molecules: Batch) -> None:
    """A cell, an empty structure at the end, no positions."""
    water, model = molecules[2], Forces(schnet())
    periodic = Data(z=water.z, pos=water.pos, cell=9 * torch.eye(3).unsqueeze(0), pbc=True)
    with pytest.raises(StructureError, match="HIPNNPotential"):
        model(periodic)
    del periodic.pbc
    with pytest.raises(StructureError, match="HIPNNPotential"):
        model(periodic)
    periodic.pbc = False
    torch.testing.assert_close(model(periodic).forces, model(water).forces)
    with pytest.raises(StructureError, match="molecule 1 of the batch has no atoms"):
        model(Batch.from_data_list([water, Data(z=water.z[:0], pos=water.pos[:0])]))
    with pytest.raises(StructureError, match="pos is None"):
        model(Data(z=water.z))


@pytest.mark.parametrize(
    "wrap, names",
    [
        *((wrap, names) for wrap in (Forces, HIPNNPotential) for names in ("pos", "batch")),
        *((HIPNNPotential, names) for names in ("cell", "pbc", "pos cell")),
    ],
)
def test_what_a_data_holds_is_not_given_beside_it(
    wrap: Callable[[HIPNN], nn.Module],
    names: str,
    small_model: Callable[..., HIPNN],
    molecules: Batch,
) -> None:
    model, water = wrap(small_model()), molecules[2]
    zeros = torch.zeros_like(water.z)
    values = dict(pos=water.pos, batch=zeros, cell=3 * torch.eye(3).double(), pbc=True)
    given = {name: values[name] for name in names.split()}
    said = names.replace(" ", " and ")
    with pytest.raises(ValueError, match=rf"^{said} given beside a Data.*: set data\.{names[:3]}"):
        model(water, **given)
    if "cell" in names:  # control: it means something
        other = model(**dict(z=water.z, pos=water.pos) | given)
        assert not torch.allclose(other.energy, model(water).energy)


def test_one_structure_without_a_batch(molecules: Batch) -> None:
    """PyG's ViSNet needs to be told that all atoms belong to it."""
    seen = []

    class Asked(nn.Module):
        def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
            seen.append(batch)
            return pos.square().sum().view(1, 1)

    water = molecules[2]
    forces = Forces(Asked())(water.z, water.pos).forces
    assert seen[0].tolist() == [0, 0, 0]
    torch.testing.assert_close(forces, -2 * water.pos)
