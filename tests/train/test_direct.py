"""The chain rule written out gives what autograd gives, for the loss and for every parameter."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from torch import nn

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.nn import Interaction, Sensitivity
from hipnn_pyg.ops import network
from hipnn_pyg.train.direct import DirectGradient
from hipnn_pyg.train.loss import HIPNNLoss
from hipnn_pyg.train.step import TrainingStep

NETWORKS: dict[str, dict[str, Any]] = {
    "paper": {},
    "one_order": dict(num_interactions=1),
    "three_orders": dict(num_interactions=3),
    "no_onsite": dict(num_onsite=0),
    "wide": dict(hidden_channels=21, num_sensitivities=17),
    "no_hierarchy": dict(hierarchical=False),
}
Parts = tuple[PackedMolecules, PackedMolecules]


def step_of(model: HIPNN, lambda_r: float = 0.1) -> TrainingStep:
    return TrainingStep(HIPNNLoss(model, lambda_l2=1e-2, lambda_r=lambda_r))


def by_autograd(step: TrainingStep, batch: Any) -> tuple[Any, torch.Tensor]:
    """Of a copy of the vector, which is not the step's own."""
    return step.gradient(step.vector.detach().clone(), step.frozen, batch)


def assert_autograds(
    step: TrainingStep, batch: Any, found: tuple[Any, torch.Tensor], tolerance: dict[str, float]
) -> None:
    """The loss and its gradient are what autograd gives."""
    (terms, gradient), (expected, slopes) = found, by_autograd(step, batch)
    torch.testing.assert_close(tuple(terms), tuple(expected), **tolerance)
    scale = slopes.abs().max()
    torch.testing.assert_close(gradient / scale, slopes / scale, **tolerance)


@pytest.mark.parametrize("network", NETWORKS)
def test_equals_autograd(
    network: str,
    parts: Parts,
    new_model: Callable[..., HIPNN],
    dtype: torch.dtype,
    tolerance: dict[str, float],
) -> None:
    step = step_of(new_model(**NETWORKS[network]).to(dtype))
    assert step.direct is not None
    with torch.no_grad():
        step.vector += 0.1 * torch.randn_like(step.vector)  # zero biases would hide errors
    for index in (torch.arange(20), torch.tensor([3]), torch.arange(40, 47)):
        batch = parts[0].gather(index)
        terms, gradient = step.gradient(step.vector, step.frozen, batch)
        assert_autograds(step, batch, (terms, gradient), tolerance)
        if index.numel() > 1:  # control: no parameter is forgotten
            assert all(bool(part.any()) for part in step.views(gradient).values())


def test_molecules_are_shared_by_threads(
    threads: Callable[[int], None],
    parts: Parts,
    new_model: Callable[..., HIPNN],
    dtype: torch.dtype,
    tolerance: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every thread takes molecules of its own, in several groups: the same gradient as layer by
    layer, and the same bits twice."""
    threads(3)
    step = step_of(new_model().to(dtype))
    index = torch.arange(600) % len(parts[0])
    large, small = parts[0].gather(index), parts[0].gather(index[:30])
    assert large.pos.size(0) > 2 * 800  # atoms of a group
    found = {}
    for order in ((small, large), (large, small)):  # memory grows, or is too large
        for batch in order:
            terms, gradient = step.gradient(step.vector, step.frozen, batch)
            terms_before, before = found.setdefault(batch.pos.size(0), (terms, gradient))
            assert torch.equal(before, gradient) and terms_before == terms
    monkeypatch.setattr(DirectGradient, "_by_molecules", None)  # control: it was not this one
    with pytest.raises(TypeError, match="not callable"):
        step.gradient(step.vector, step.frozen, large)
    for batch in (large, small):
        assert_autograds(step, batch, found[batch.pos.size(0)], tolerance)


def test_few_molecules_are_shared_layer_by_layer(
    threads: Callable[[int], None],
    parts: Parts,
    new_model: Callable[..., HIPNN],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a thread's share would be a molecule or none."""
    threads(3)
    step = step_of(new_model())
    asked: list[str] = []
    for name in ("_by_layers", "_by_molecules"):
        own = getattr(DirectGradient, name)
        monkeypatch.setattr(
            DirectGradient, name, lambda *a, own=own, name=name: asked.append(name) or own(*a)
        )
    for count in (3, 60):
        step.gradient(step.vector, step.frozen, parts[0].gather(torch.arange(count)))
    assert asked == ["_by_layers", "_by_molecules"]


def test_follows_the_parameters(parts: Parts, new_model: Callable[..., HIPNN]) -> None:
    """It reads the parameters where they are, and writes all of the gradient each time."""
    step, batch = step_of(new_model().double()), parts[0].gather(torch.arange(9))
    _, first = step.gradient(step.vector, step.frozen, batch)
    with torch.no_grad():
        step.vector *= 1.1
    _, moved = step.gradient(step.vector, step.frozen, batch)
    assert float((moved - first).abs().max()) > 1e-3 * float(first.abs().max())
    with torch.no_grad():
        step.vector /= 1.1
    _, back = step.gradient(step.vector, step.frozen, batch)
    torch.testing.assert_close(back, first, rtol=1e-10, atol=1e-12)


def test_the_penalties_count(parts: Parts, new_model: Callable[..., HIPNN]) -> None:
    batch = parts[0].gather(torch.arange(9))
    gradients = []
    for lambda_r in (0.0, 0.1):
        step = step_of(new_model().double(), lambda_r)
        gradients.append(step.gradient(step.vector, step.frozen, batch)[1])
    assert float((gradients[0] - gradients[1]).abs().max()) > 1e-3


def test_serves_only_whole_layers_with_kernels(new_model: Callable[..., HIPNN]) -> None:
    assert step_of(new_model(kernel="padded")).direct is None
    frozen = new_model()
    frozen.blocks[1].interaction.V.requires_grad_(False)
    assert step_of(frozen).direct is None


@pytest.mark.parametrize("molecules", [20, 60], ids=["by layers", "by molecules"])
def test_parameters_that_move(
    molecules: int, parts: Parts, new_model: Callable[..., HIPNN]
) -> None:
    """``share_memory`` gives them new addresses, as sending a model to another process does."""
    steps = [step_of(new_model(kernel=kernel).double()) for kernel in ("fused", "reference")]
    batch = parts[0].gather(torch.arange(molecules))
    for step in steps:
        step.gradient(step.vector, step.frozen, batch)
    before = steps[0].vector.data_ptr()
    steps[0].loss.model.share_memory()
    assert steps[0].vector.data_ptr() != before
    found = []
    for step in steps:
        with torch.no_grad():
            step.vector.mul_(1.3)
        terms, gradient = step.gradient(step.vector, step.frozen, batch)
        found.append((terms.loss, gradient))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_labels_as_they_come(parts: Parts, new_model: Callable[..., HIPNN]) -> None:
    """Energies in float32 or with gaps, int32 places: the kernels read memory by address."""
    step = step_of(new_model(kernel="fused").float())
    assert step.direct is not None
    for index in (torch.arange(20), torch.arange(60)):
        batch = parts[0].gather(index)
        target = batch.target.float()  # rounded, whatever they are stored as
        expected = step.gradient(step.vector, step.frozen, batch._replace(target=target.double()))
        for changed in (
            {"target": target},
            {"target": torch.stack((target, target), 1)[:, 0]},
            {"target": target, "ptr": batch.ptr.int()},
            {"target": target, "z": torch.stack((batch.z, batch.z), 1)[:, 0]},
        ):
            found = step.gradient(step.vector, step.frozen, batch._replace(**changed))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def share_sensitivities(m: HIPNN) -> None:
    m.blocks[1].interaction.sensitivity = m.blocks[0].interaction.sensitivity


def put_other_sensitivities(m: HIPNN) -> None:
    m.blocks[1].interaction = Interaction(6, 6, Sensitivity(4, 0.9, 4.0, 5.0)).double()


CHANGES: dict[str, Callable[[HIPNN], object]] = {
    "fewer layers above": lambda m: m.blocks[1].onsite.pop(0),
    "fewer layers below": lambda m: m.blocks[0].onsite.pop(0),
    "other sensitivities": put_other_sensitivities,
    "shared sensitivities": share_sensitivities,
    "shared readout": lambda m: setattr(m.blocks[1], "readout", m.blocks[0].readout),
    "shared layer": lambda m: m.blocks[0].onsite.append(m.blocks[0].onsite[0]),
    "shared weight": lambda m: setattr(
        m.blocks[1].onsite[0].W, "weight", m.blocks[0].onsite[0].W.weight
    ),
    "frozen weight of a readout": lambda m: m.blocks[1].readout.weight.requires_grad_(False),
    "frozen bias of a readout": lambda m: m.blocks[1].readout.bias.requires_grad_(False),
    "learned E^0": lambda m: m.requires_grad_(True),
    "float32 E^0": lambda m: setattr(
        m.reference, "weight", nn.Parameter(m.reference.weight.float(), requires_grad=False)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_models_are_left_to_autograd(
    change: str, parts: Parts, new_model: Callable[..., HIPNN]
) -> None:
    """The loss and the gradient of the readable layers."""
    batch, found = parts[0].gather(torch.arange(20)), []
    for kernel in ("auto", "reference"):
        model = new_model(kernel=kernel).double()
        torch.manual_seed(1)
        CHANGES[change](model)
        with torch.no_grad():
            for parameter in model.blocks.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        step = step_of(model)
        assert step.direct is None
        terms, gradient = step.gradient(step.vector, step.frozen, batch)
        assert bool(gradient.any())
        found.append((tuple(terms), gradient))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_exact_energies_give_no_error_gradient(
    parts: Parts, new_model: Callable[..., HIPNN]
) -> None:
    """RMSE is a norm and R a quotient: their gradients at 0 are 0, not 0/0."""
    model = new_model().double()
    with torch.no_grad():
        for block in model.blocks:
            block.readout.weight.zero_()
    model.set_e0([0.0] * 4, 1.0)
    batch = parts[0].gather(torch.arange(9))
    batch = batch._replace(target=torch.zeros_like(batch.target))
    step = TrainingStep(HIPNNLoss(model, lambda_l2=0.0, lambda_r=0.1))
    terms, gradient = step.gradient(step.vector, step.frozen, batch)
    assert float(terms.loss) == 0 and not bool(gradient.any())
    wrong = batch._replace(target=torch.ones_like(batch.target))
    assert bool(step.gradient(step.vector, step.frozen, wrong)[1].any())  # control


def test_models_share_memory_and_give_it_back(
    parts: Parts, new_model: Callable[..., HIPNN], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several models in turns get what each gets alone."""
    monkeypatch.setattr(network, "_shared", WeakValueDictionary())
    batch = parts[0].gather(torch.arange(40))
    alone = []
    for seed in (0, 1):
        step = step_of(new_model(seed).double())
        alone.append(step.gradient(step.vector, step.frozen, batch)[1])
        del step
    gc.collect()
    assert "memory" not in network._shared
    steps = [step_of(new_model(seed).double()) for seed in (0, 1)]
    for _ in range(2):
        for step, expected in zip(steps, alone, strict=True):
            assert torch.equal(step.gradient(step.vector, step.frozen, batch)[1], expected)
    assert not torch.equal(*alone)  # control
    assert network._shared["memory"].bytes.numel() > 0
