"""Energies as one CUDA graph are the model's; off a GPU the graph runs again what it recorded."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

import hipnn_pyg.ops
from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.targets import Target
from hipnn_pyg.models import CapturedEnergies, captured, direct
from hipnn_pyg.models.self_check import self_check
from hipnn_pyg.nn.precision import matrix_products
from hipnn_pyg.train import validation

SPECIES = (1, 6, 8)


class Rerun:
    """Stands in for a CUDA graph."""

    made: list[Rerun]

    def __init__(self, run: Callable[[], tuple[Tensor, ...]]) -> None:
        self.run, self.result, self.replays = run, run(), 0
        self.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        for kept, new in zip(self.result, self.run(), strict=True):
            kept.copy_(new)


@pytest.fixture
def recorded(
    layer_kernels: ModuleType,
    step_kernels: ModuleType,
    molecule_kernels: ModuleType,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> list[Any]:
    """What was recorded so far; off a GPU it is made to look like one."""
    Rerun.made = []
    record = captured.record

    def rerun(run: Callable[[], Any], *_: Any, **__: Any) -> Any:
        graph = Rerun(run)
        return graph, graph.result

    def noted(run: Callable[[], Any], *given: Any, **options: Any) -> Any:
        graph, result = record(run, *given, **options)
        Rerun.made.append(graph)
        return graph, result

    monkeypatch.setattr(captured, "record", noted if device.type == "cuda" else rerun)
    if device.type == "cpu":
        self_check("fused", "cpu")  # of the kernels that a CPU has
        monkeypatch.setattr(captured, "molecule_kernels", lambda _: molecule_kernels)
        monkeypatch.setattr(direct, "layer_kernels", lambda _: layer_kernels)
        monkeypatch.setattr(direct, "_scale", lambda model: model.reference.sigma_e)
        monkeypatch.setattr(hipnn_pyg.ops, "triton_step", step_kernels, raising=False)
        monkeypatch.setattr(hipnn_pyg.ops, "triton_molecules", molecule_kernels, raising=False)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    return Rerun.made


@pytest.fixture
def model(device: torch.device) -> HIPNN:
    """In float64."""
    torch.manual_seed(0)
    model = HIPNN(SPECIES, 9, num_onsite=1, num_sensitivities=5).double()
    model.set_e0([-1.0, -2.0, -3.0], 4.0)
    return model.to(device)


def molecules(counts: list[int], seed: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """z, positions in Å (float64) and molecule of each atom: shaken chains."""
    generator = torch.Generator().manual_seed(seed)
    number = sum(counts)
    pos = 0.2 * torch.rand(number, 3, generator=generator, dtype=torch.float64)
    pos[:, 0] += 1.2 * torch.cat([torch.arange(count) for count in counts])
    z = torch.tensor(SPECIES)[torch.randint(3, (number,), generator=generator)]
    batch = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return z.to(device), pos.to(device), batch.to(device)


def test_energies_are_the_models(model: HIPNN, recorded: list[Any], device: torch.device) -> None:
    """Of batches that share a graph, of larger and of smaller ones, and of one molecule."""
    energies = CapturedEnergies(model)
    for seed, counts in enumerate([[5, 3, 6], [6, 6, 2], [2, 1], [6] * 9, [4, 6, 5], [1]]):
        z, pos, batch = molecules(counts, seed, device)
        with torch.no_grad():
            expected = model(z, pos, batch)
        found = energies(z, pos, batch, len(counts))
        assert found.shape == (len(counts), 1) and found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        moved = energies(z, pos * 1.1, batch)  # control; the result above stays
        assert float((moved - found).abs().max()) > 1e-6 or counts == [1]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert 2 <= len(recorded) < 6
    z, pos, _ = molecules([4], 9, device)
    torch.testing.assert_close(energies(z, pos), model(z, pos), rtol=1e-12, atol=1e-12)
    assert energies(z, pos.float()).dtype == torch.float32


def test_weights_may_change_and_move(
    model: HIPNN, recorded: list[Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by others in their place. Graphs of weights that have moved leave nothing behind."""
    made, stream = [], torch.cuda.Stream

    def noted() -> Any:
        made.append(stream())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Stream", noted)
    energies, given = CapturedEnergies(model), molecules([5, 4], 0, device)
    first = energies(*given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    changed = energies(*given)
    assert len(recorded) == 1 and float((changed - first).abs().max()) > 1e-4
    torch.testing.assert_close(changed, model(*given), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        weight = model.blocks[1].readout.weight
        weight.data = 2 * weight
    torch.testing.assert_close(energies(*given), model(*given), rtol=1e-12, atol=1e-12)
    assert len(recorded) == 2
    assert len(made) == 2  # those of another GPU would not do
    larger = molecules([5] * 9, 1, device)
    torch.testing.assert_close(energies(*larger), model(*larger), rtol=1e-12, atol=1e-12)
    assert len(recorded) == 3 and len(made) == 2  # control
    others = {name: 1.2 * value for name, value in model.state_dict().items()}
    model.load_state_dict(others, assign=True)
    torch.testing.assert_close(energies(*given), model(*given), rtol=1e-12, atol=1e-12)
    model.blocks[0].readout.bias = nn.Parameter(model.blocks[0].readout.bias.detach() + 1)
    replaced = energies(*given)
    torch.testing.assert_close(replaced, model(*given), rtol=1e-12, atol=1e-12)
    assert float((replaced - first).abs().max()) > 1e-1


def test_a_graph_keeps_what_it_reads(
    model: HIPNN, recorded: list[Any], device: torch.device
) -> None:
    """The index of species, too: the model may get another by moving there and back."""
    energies, given = CapturedEnergies(model), molecules([5, 4], 0, device)
    energies(*given)
    index = weakref.ref(model._species_index)
    model._species_index = model._species_index.clone()
    assert index() is not None
    torch.testing.assert_close(energies(*given), model(*given), rtol=1e-12, atol=1e-12)
    assert len(recorded) == 1
    del energies, recorded[:]
    gc.collect()
    assert index() is None  # control


def test_validation_by_graphs_is_ordinary_validation(
    model: HIPNN, recorded: list[Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts, after the weights have changed, and of another model; flags stay as they are."""
    monkeypatch.setattr(validation, "MOLECULES_AT_ONCE", 3)
    z, pos, batch = molecules([4, 2, 6, 3, 5, 5, 1], 0, device)
    targets = torch.randn(7, dtype=torch.float64)
    items = [
        Data(z=z[batch == g].cpu(), pos=pos[batch == g].cpu(), energy=targets[g : g + 1])
        for g in range(7)
    ]
    packed = PackedMolecules.pack(items, Target("energy", "eV", "energy")).to(device)
    judge = validation.CapturedValidation(packed)
    seen = []
    for judged, factor in ((model, 1.0), (model, 1.1), (copy.deepcopy(model), 1.2)):
        with torch.no_grad():
            judged.blocks[0].readout.weight.mul_(factor)
        found, graphs = judge.sums(judged), len(recorded)
        torch.testing.assert_close(found, validation.validation_sums(judged, packed, False))
        assert torch.equal(judge.sums(judged), found) and len(recorded) == graphs
        assert judged.validate and all(p.requires_grad for p in judged.blocks.parameters())
        seen.append(float(found[0]))
    assert len(set(seen)) == 3 and recorded  # control: the weights matter


def test_bad_input_is_refused(model: HIPNN, recorded: list[Any], device: torch.device) -> None:
    """By the model's own checks; without them it is not looked at."""
    energies, (z, pos, batch) = CapturedEnergies(model), molecules([3, 3], 0, device)
    unknown, close = z.clone(), pos.clone()
    unknown[1], close[1] = 9, close[0]
    for bad, message in (
        ((unknown, pos, batch), "atomic number 9"),
        ((z, close, batch), "Å apart"),
        ((z, pos * torch.nan, batch), "not finite"),
    ):
        with pytest.raises(StructureError, match=message):
            energies(*bad)
    energies(z, pos, batch)
    assert recorded


def test_settings_count_as_they_are_in_each_call(
    model: HIPNN, recorded: list[Any], device: torch.device
) -> None:
    """Lower precision has graphs of its own, another kernel none."""
    energies, (z, pos, batch) = CapturedEnergies(model.float()), molecules([5, 4], 0, device)
    given = (z, pos.float(), batch)
    energies(*given)
    for _ in range(2):
        with matrix_products("tf32", "cuda"):
            energies(*given)
        energies(*given)
        assert len(recorded) == 2
    replays = [graph.replays for graph in recorded] if device.type == "cpu" else []
    assert replays in ([3, 2], [])
    model.kernel = "reference"
    torch.testing.assert_close(energies(*given), model(*given))
    assert replays == ([graph.replays for graph in recorded] if device.type == "cpu" else [])


def test_what_kernels_do_not_take_is_the_models(
    model: HIPNN, recorded: list[Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large molecules, many atoms, layers of one's own."""
    given = molecules([5, 4], 0, device)
    with monkeypatch.context() as patch:
        patch.setattr(captured, "MOST_ATOMS", 8)
        torch.testing.assert_close(CapturedEnergies(model)(*given), model(*given))
        patch.undo()
        patch.setattr(captured, "SEARCH_BEYOND", 4)
        torch.testing.assert_close(CapturedEnergies(model)(*given), model(*given))
    assert not recorded
    model.blocks[0].register_forward_hook(lambda _, __, result: (2 * result[0], result[1]))
    torch.testing.assert_close(CapturedEnergies(model)(*given), model(*given))
    assert not recorded
