"""A training step by the Triton kernels alone: ordinary training's numbers."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

import hipnn_pyg.ops
from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.data.targets import Target
from hipnn_pyg.models import direct
from hipnn_pyg.train import Trainer, Training
from hipnn_pyg.train import step as training_step
from hipnn_pyg.train.direct import GPUGradient
from hipnn_pyg.train.static import StaticBatches

TARGET = Target("energy", "eV", "energy")


def molecules(number: int, seed: int) -> PackedMolecules:
    """Zigzag chains of 2 to 6 atoms with random energies."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for count in torch.randint(2, 7, (number,), generator=generator).tolist():
        pos = 0.2 * torch.rand(count, 3, generator=generator)
        pos[:, 0] += 1.2 * torch.arange(count)
        z = torch.tensor([1, 6, 8])[torch.randint(3, (count,), generator=generator)]
        energy = torch.randn(1, generator=generator, dtype=torch.float64) - count
        items.append(Data(z=z, pos=pos, energy=energy))
    return PackedMolecules.pack(items, TARGET, validate=False)


@pytest.fixture
def by_kernels(
    layer_kernels: ModuleType,
    step_kernels: ModuleType,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], Any]:
    """Call it, and steps run by the Triton kernels: off a GPU it is made to look like one."""

    def switch() -> None:
        if device.type == "cuda":
            return
        monkeypatch.setattr(direct, "layer_kernels", lambda _: layer_kernels)
        monkeypatch.setattr(direct, "_scale", lambda model: model.reference.sigma_e)
        monkeypatch.setattr(hipnn_pyg.ops, "triton_step", step_kernels, raising=False)
        monkeypatch.setattr(
            training_step,
            "direct_gradient",
            lambda *given: GPUGradient(*given) if GPUGradient.serves(given[0]) else None,
        )
        make = StaticBatches.__init__

        def drawn(self: StaticBatches, *arguments: Any, **options: Any) -> None:
            make(self, *arguments, **options)
            self.by_kernels = True

        monkeypatch.setattr(StaticBatches, "__init__", drawn)

    return switch


def trained(where: str, **options: Any) -> Trainer:
    """An epoch of mini-batches of 4, 4 and 1."""
    train, validation = molecules(9, 1), molecules(4, 2)
    torch.manual_seed(0)
    sizes = dict(num_onsite=1, num_sensitivities=5, hierarchical=options.pop("hierarchical", True))
    model = HIPNN((1, 6, 8), 9, **sizes).fit_e0(train, TARGET).double()
    config = Training(
        batch_size=4, epochs=1, warmup_steps=2, average_every=2, device=where, lambda_l2=1e-3,
        **options,
    )  # fmt: skip
    trainer = Trainer(model, train, validation, config, progress=False)
    trainer.fit()
    return trainer


def parameters(trainer: Trainer) -> Tensor:
    return trainer.objective.vector.detach().cpu()


@pytest.mark.parametrize(
    "capture, recipe, hierarchical", [("on", "fast", True), ("off", "paper", False)]
)
def test_the_step_by_kernels_is_the_ordinary_step(
    capture: str,
    recipe: str,
    hierarchical: bool,
    device: torch.device,
    by_kernels: Callable[[], None],
) -> None:
    """Weights, averages and every figure of the log, the mini-batches drawn by kernels too."""
    options = dict(capture=capture, recipe=recipe, hierarchical=hierarchical)
    theirs = trained("cpu", **options)
    by_kernels()
    ours = trained(device.type, **options)
    assert isinstance(ours.objective.direct, GPUGradient)
    assert (ours.captured is None) == (capture == "off")
    assert not isinstance(theirs.objective.direct, GPUGradient)
    tolerance = dict(rtol=0, atol=1e-12)
    torch.testing.assert_close(parameters(ours), parameters(theirs), **tolerance)
    if ours.average is not None and theirs.average is not None:
        averages = (ours.average.vector.detach().cpu(), theirs.average.vector.detach())
        torch.testing.assert_close(*averages, **tolerance)
    for one, other in zip(ours.history, theirs.history, strict=True):
        for name in ("train_loss", "train_mae", "train_r", "learning_rate"):
            assert one[name] == pytest.approx(other[name], rel=1e-10)
    other = trained("cpu", **options, seed=1)  # control: another order of molecules
    assert float((parameters(other) - parameters(theirs)).abs().max()) > 1e-4
