"""HIPNN where PyG's SchNet stands: the same script, the same loop, one line changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.build
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SchNet

from hipnn_pyg import (
    HIPNN,
    HIPNNWarning,
    PackedLoader,
    PackedMolecules,
    RadiusGraph,
    StructureError,
    Target,
)

SCHNET_LINE = """model = SchNet(
    hidden_channels=16, num_filters=16, num_interactions=2, num_gaussians=20, cutoff=5.0,
    interaction_graph=RadiusGraph(5.0),
)"""

HIPNN_LINE = "model = HIPNN(species=(1, 6, 7, 8), hidden_channels=16, num_onsite=1)"

SCRIPT = f"""
import torch
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SchNet
from hipnn_pyg import HIPNN, RadiusGraph

torch.manual_seed(0)
{SCHNET_LINE}
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
loader = DataLoader(dataset, batch_size=8, shuffle=True)
losses = []
for epoch in range(15):
    total = 0.0
    for data in loader:
        optimizer.zero_grad()
        prediction = model(data.z, data.pos, data.batch)
        loss = torch.nn.functional.mse_loss(prediction.view(-1), data.y)
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * data.num_graphs
    losses.append(total / len(dataset))
"""


def pair_energy(pos: Tensor) -> Tensor:
    """Something to learn: a smooth sum over pairs."""
    return (torch.exp(-torch.nn.functional.pdist(pos)).sum() - 2.0).reshape(1)


@pytest.fixture
def dataset() -> list[Data]:
    """24 shaken molecules of four kinds."""
    items = []
    for number in range(24):
        atoms = ase.build.molecule(("CH4", "NH3", "H2O", "CH3OH")[number % 4])
        atoms.rattle(0.1, seed=number)
        pos = torch.tensor(atoms.positions).float()
        items.append(Data(z=torch.tensor(atoms.numbers), pos=pos, y=pair_energy(pos)))
    return items


def run_script(script: str, dataset: list[Data]) -> dict[str, Any]:
    scope: dict[str, Any] = {"dataset": dataset}
    exec(compile(script, "train.py", "exec"), scope)
    return scope


def test_only_the_constructor_line_changes(dataset: list[Data]) -> None:
    """A plain SchNet training script runs with HIPNN: the loss falls for both, one warning."""
    assert SCRIPT.count(SCHNET_LINE) == 1
    for script in (SCRIPT, SCRIPT.replace(SCHNET_LINE, HIPNN_LINE)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", HIPNNWarning)
            result = run_script(script, dataset)
        losses, model = result["losses"], result["model"]
        assert losses[-1] < 0.2 * losses[0], losses
        ours = [warning for warning in caught if warning.category is HIPNNWarning]
        if isinstance(model, SchNet):
            assert not ours
        else:
            assert len(ours) == 1 and "fit_e0" in str(ours[0].message)
            data = result["data"]
            terms = model.energy_terms(data.z, data.pos, data.batch)
            assert bool(torch.isfinite(terms.nonhierarchicality).all())


def models() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    schnet = SchNet(8, 8, 1, 8, cutoff=5.0, interaction_graph=RadiusGraph(5.0))
    return [schnet, HIPNN((1, 6, 7, 8), 8, num_onsite=0)]


def test_same_call_same_shape(dataset: list[Data], dtype: torch.dtype) -> None:
    for data in DataLoader(dataset, batch_size=5):
        for model in models():
            energy = model.to(dtype).eval()(data.z, data.pos.to(dtype), data.batch)
            assert energy.shape == (data.num_graphs, 1) and energy.dtype == dtype
            single = model(data[0].z, data[0].pos.to(dtype))  # batch is optional in both
            torch.testing.assert_close(single[0], energy[0], rtol=1e-4, atol=1e-4)


def test_same_numbers_from_both_loaders(dataset: list[Data]) -> None:
    packed = PackedMolecules.pack(dataset, Target("energy", "eV", "y"))
    for model in models():
        model.eval()
        ours, theirs = PackedLoader(packed, 7), DataLoader(dataset, batch_size=7)
        for first, second in zip(ours, theirs, strict=True):
            expected = model(second.z, second.pos, second.batch)
            torch.testing.assert_close(model(first.z, first.pos, first.batch), expected)


def test_a_compiled_model_keeps_its_kernels(
    dataset: list[Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and inside another function; control: atom_terms by itself is compiled."""
    data = next(iter(DataLoader(dataset, batch_size=6)))
    _, model = models()
    atom_terms, compiled = HIPNN.atom_terms, []

    def terms(*given: Any) -> tuple[Tensor, Tensor]:
        compiled.append(torch.compiler.is_compiling())
        return atom_terms(*given)

    monkeypatch.setattr(HIPNN, "atom_terms", terms)
    results = []
    for call in (
        model,
        torch.compile(model, backend=CompileCounter()),
        torch.compile(lambda *given: 2 * model(*given) / 2, backend=CompileCounter()),
    ):
        energy = call(data.z, data.pos, data.batch)
        slopes = torch.autograd.grad(energy.square().sum(), model.blocks.parameters())
        results.append((energy, *slopes))
    assert compiled == [False] * 3
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
    given = model.species_index(data.z), model.pairs(data.pos, data.batch)
    torch.compile(model.atom_terms, backend=CompileCounter())(*given)
    assert compiled[-1] is True


def test_forces_by_one_gradient(dataset: list[Data]) -> None:
    data = next(iter(DataLoader(dataset, batch_size=4)))
    for model in models():
        pos = data.pos.clone().requires_grad_()
        energy = model.eval()(data.z, pos, data.batch)
        forces = -torch.autograd.grad(energy.sum(), pos)[0]
        assert forces.shape == pos.shape and bool(forces.any())
        net = torch.zeros(4, 3).index_add(0, data.batch, forces)
        torch.testing.assert_close(net, torch.zeros(4, 3), rtol=0, atol=1e-5)  # Newton's third law


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_of_a_model_that_means_something_else_are_refused(
    wrapped: bool, tmp_path: Path
) -> None:
    """Neither the order of the species nor the cutoff changes the shape of a weight."""

    def build(species: tuple[int, ...] = (1, 6, 8), cutoff: float = 4.0) -> torch.nn.Module:
        model = HIPNN(species, 8, num_onsite=1, cutoff=cutoff)
        return torch.nn.ModuleDict({"energy": model}) if wrapped else model

    torch.save(build().state_dict(), tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    with pytest.raises(RuntimeError, match=r"species=\(1, 6, 8\), not \(8, 6, 1\): build"):
        build(species=(8, 6, 1)).load_state_dict(weights)
    with pytest.raises(RuntimeError, match=r"cutoff=4 Å, not 5: build .*cutoff=4\.0"):
        build(cutoff=5.0).load_state_dict(weights, strict=False)
    same = build()
    same.load_state_dict(weights)
    bare = build(species=(8, 6, 1))
    bare.load_state_dict(dict(weights))  # tensors alone say nothing of what they mean
    for model in (same, bare):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, weights[name])


def water_and_more() -> tuple[Tensor, Tensor, Tensor]:
    """Two molecules with all elements of the default model but fluorine."""
    found = [ase.build.molecule(name) for name in ("CH3OH", "NH3")]
    z = torch.cat([torch.tensor(atoms.numbers) for atoms in found])
    pos = torch.cat([torch.tensor(atoms.positions) for atoms in found])
    return z, pos, torch.tensor([0] * 6 + [1] * 4)


def trained() -> HIPNN:
    model = HIPNN(hidden_channels=8, num_onsite=1, e0=(-1, -2, -3, -4, -5)).double().eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.readout.weight)
    return model


def averaged(model: HIPNN) -> torch.nn.Module:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    return average


def emptied(model: HIPNN) -> HIPNN:
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    return empty


def built_empty(model: HIPNN, assign: bool) -> HIPNN:
    """Built without memory, as large models are, then filled with weights that are at hand."""
    with torch.device("meta"):
        empty = HIPNN(hidden_channels=8, num_onsite=1, e0=(1, 2, 3, 4, 5))
    if not assign:
        empty = empty.double().to_empty(device="cpu")
    empty.load_state_dict(model.state_dict(), assign=assign)
    return empty


@pytest.mark.parametrize(
    "treat",
    [
        averaged,
        emptied,
        lambda model: built_empty(model, False),
        lambda model: built_empty(model, True),
        lambda model: model.type(torch.float64),
        copy.deepcopy,
    ],
    ids=["average", "empty", "built empty", "assigned", "type", "copy"],
)
def test_elements_stay_what_they_are(treat: Callable[[HIPNN], torch.nn.Module]) -> None:
    """Whatever is done to parameters and buffers: averages in floating point, casts, new memory."""
    model, given = trained(), water_and_more()
    expected = model(*given)
    torch.testing.assert_close(treat(model)(*given), expected, rtol=1e-9, atol=1e-9)
    assert float((model(given[0].flip(0), *given[1:]) - expected).abs().max()) > 0.1  # control


@pytest.mark.parametrize("training", [False, True])
def test_models_stacked_by_torch(training: bool) -> None:
    """PyTorch's recipe for ensembles: vmap over stacked parameters."""
    models, given = [trained().train(training) for _ in range(3)], water_and_more()
    parameters, buffers = torch.func.stack_module_state(models)
    bare = copy.deepcopy(models[0]).to("meta")
    bare.kernel = "padded"

    def energies(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(bare, (parameters, buffers), given)

    found = torch.vmap(energies)(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([model(*given) for model in models]))


def test_what_is_no_tensor_is_named() -> None:
    model = HIPNN(hidden_channels=4, num_onsite=0)
    for given, message in (
        (([6, 1], torch.eye(3)[:2]), "z is a list: give it as a tensor"),
        ((torch.tensor([6, 1]), None), "pos is None"),
        ((torch.tensor([6, 1]), torch.eye(3)[:2], [0, 0]), "batch is a list"),
    ):
        with pytest.raises(StructureError, match=message):
            model(*given)
    with pytest.raises(TypeError, match="species must be a sequence of atomic numbers, not 128"):
        HIPNN(128, 128, 6, 50, 10.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"sequence of atomic numbers, not \['C', 'H'\]"):
        HIPNN(["C", "H"])  # type: ignore[list-item]
