"""A training step by the Triton kernels alone: ordinary training's numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

import hipnn_pyg.ops
from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.data.targets import Target
from hipnn_pyg.models import direct
from hipnn_pyg.models.self_check import self_check
from hipnn_pyg.train import Trainer, Training, TrainingStopped
from hipnn_pyg.train import step as training_step
from hipnn_pyg.train.captured_stack import StackedBatches, stacks
from hipnn_pyg.train.direct import GPUGradient
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member
from hipnn_pyg.train.static import StaticBatches
from hipnn_pyg.train.validation import CapturedValidation

T = TypeVar("T", bound=Trainer)
TARGET = Target("energy", "eV", "energy")


def molecules(number: int, seed: int, largest: int = 6) -> PackedMolecules:
    """Zigzag chains of 2 to 6 atoms with random energies."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for count in torch.randint(2, largest + 1, (number,), generator=generator).tolist():
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
        self_check("fused", "cpu")  # of the kernels that a CPU has
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


def new_trainer(
    kind: type[T],
    where: str,
    data: Sequence[PackedMolecules],
    folder: Path | None = None,
    **options: Any,
) -> T:
    """Of molecules to train on and to validate with; not yet run."""
    torch.manual_seed(0)
    sizes = dict(num_onsite=1, num_sensitivities=5, hierarchical=options.pop("hierarchical", True))
    model = HIPNN((1, 6, 8), 9, **sizes).fit_e0(data[0], TARGET).double()
    defaults = dict(batch_size=4, epochs=1, warmup_steps=2, average_every=2, lambda_l2=1e-3)
    config = Training(device=where, **{**defaults, **options})
    return kind(model, *data, config, folder, progress=False)


def trained(where: str, **options: Any) -> Trainer:
    """An epoch of mini-batches of 4, 4 and 1."""
    trainer = new_trainer(Trainer, where, (molecules(9, 1), molecules(4, 2)), **options)
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
    assert_same_training(ours, theirs)
    other = trained("cpu", **options, seed=1)  # control: another order of molecules
    assert float((parameters(other) - parameters(theirs)).abs().max()) > 1e-4


def test_a_validation_that_cannot_be_captured_is_an_ordinary_one(
    by_kernels: Callable[[], None], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one warning; asked for by name, it stops the run."""

    def fail(self: CapturedValidation, model: HIPNN) -> Tensor:
        raise torch.OutOfMemoryError("no memory for a graph")

    data = (molecules(4, 1), molecules(4, 2))  # an epoch is one step

    def new(where: str, **options: Any) -> Trainer:
        return new_trainer(Trainer, where, data, epochs=2, **options)

    theirs = new("cpu")
    theirs.fit()
    by_kernels()
    monkeypatch.setattr(CapturedValidation, "sums", fail)
    ours = new(device.type, capture="on")
    ours.config = replace(ours.config, capture="auto")
    with pytest.warns(HIPNNWarning, match="validation could not be captured.*no memory") as seen:
        ours.fit()
    assert len([w for w in seen if "validation" in str(w.message)]) == 1
    assert_same_training(ours, theirs)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        new(device.type, capture="on").fit()


def assert_same_training(ours: Trainer, theirs: Trainer) -> None:
    """Weights, averages and every figure of the log."""
    tolerance = dict(rtol=0, atol=1e-12)
    torch.testing.assert_close(parameters(ours), parameters(theirs), **tolerance)
    if ours.average is not None and theirs.average is not None:
        averages = (ours.average.vector.detach().cpu(), theirs.average.vector.detach())
        torch.testing.assert_close(*averages, **tolerance)
    assert len(ours.history) == len(theirs.history)
    for one, other in zip(ours.history, theirs.history, strict=True):
        for name in ("train_loss", "train_mae", "train_r", "learning_rate"):
            assert one[name] == pytest.approx(other[name], rel=1e-10)
        # Validation computes distances as the molecules are given, in float32.
        assert one["validation_mae"] == pytest.approx(other["validation_mae"], rel=1e-7)


# -- several models --------------------------------------------------------------------------------


def member(kind: type[T], where: str, seed: int, folder: Path | None = None, **options: Any) -> T:
    """A model with molecules of its own, 5 in mini-batches of 3 and 2, on the device already."""
    data = [molecules(n, s, largest=3).to(torch.device(where)) for n, s in ((5, seed), (2, 0))]
    options = {"batch_size": 3, "seed": seed, "average_every": 1, **options}
    return new_trainer(kind, where, data, folder, **options)


@pytest.fixture
def stacked(
    device: torch.device, by_kernels: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., EnsembleTrainer]:
    """``stacked(options of each member)``: captured steps in one launch, off a GPU interpreted."""
    by_kernels()
    monkeypatch.setattr(Member, "alone", True)  # else members on a CPU take no captured steps

    def build(*members: dict[str, Any]) -> EnsembleTrainer:
        made = [member(Member, device.type, **options, capture="on") for options in members]
        trainer = EnsembleTrainer(made, progress=False)
        assert trainer.stacked and not trainer.batched
        return trainer

    return build


def alone(**options: Any) -> Trainer:
    """The same model, by ordinary steps."""
    trainer = member(Trainer, "cpu", **options)
    trainer.fit()
    return trainer


def test_a_stack_trains_each_model_as_alone(stacked: Callable[..., EnsembleTrainer]) -> None:
    """One launch for three models, whose molecules, sizes of mini-batches, E^0 and rates differ."""
    members = [{"seed": 1}, {"seed": 2, "learning_rate": 2e-3}, {"seed": 3}]
    theirs = [alone(**options) for options in members]
    ours = stacked(*members)
    ours.fit()
    for one, other in zip(ours.members, theirs, strict=True):
        assert one.captured is None  # no step of its own
        assert_same_training(one, other)
    for first, second in ((0, 1), (1, 2)):  # control
        difference = parameters(theirs[first]) - parameters(theirs[second])
        assert float(difference.abs().max()) > 1e-3
    assert len({float(trainer.model.sigma_e) for trainer in theirs}) == 3


def test_a_model_leaves_a_stack(stacked: Callable[..., EnsembleTrainer]) -> None:
    options = dict(recipe="paper", hierarchical=False)
    members = [{"seed": 1, **options}, {"seed": 2, "epochs": 2, **options}]
    ours = stacked(*members)
    ours.fit()
    for one, given in zip(ours.members, members, strict=True):
        assert_same_training(one, alone(**given))
    assert [len(one.history) for one in ours.members] == [1, 2]


def test_a_stack_goes_on_where_it_was(
    stacked: Callable[..., EnsembleTrainer], tmp_path: Path
) -> None:
    """Stopped within an epoch, a checkpoint at every step; one model lost it and catches up."""
    members = [{"seed": n, "folder": tmp_path / str(n), "checkpoint_seconds": 0.0} for n in (1, 2)]
    first = stacked(*members)
    take = first._take_step

    def once(front: list[Member]) -> int:
        first.interrupted = True
        return take(front)

    first._take_step = once  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="2 of 2 models"):
        first.fit()
    shutil.rmtree(tmp_path / "2")
    second = stacked(*members)
    with torch.no_grad():
        second.members[0].objective.vector.mul_(1.5)  # all of it must come from the checkpoint
    second.resume()
    assert [one.place for one in second.members] == [(0, 1), (0, 0)]
    second.fit()
    for one, seed in zip(second.members, (1, 2), strict=True):
        assert_same_training(one, alone(seed=seed))


def test_a_stack_that_resumes_forgets_what_it_held(
    stacked: Callable[..., EnsembleTrainer], tmp_path: Path
) -> None:
    """As in a notebook, where a cell ended in an error within an epoch."""
    members = [{"seed": n, "folder": tmp_path / str(n), "checkpoint_seconds": 1e9} for n in (1, 2)]
    ours = stacked(*members)
    for one in ours.members:
        one.start()
        one._save()
    take = ours._take_step

    def fail(front: list[Member]) -> list[int]:
        take(front)
        raise RuntimeError("of something else")

    ours._take_step = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="of something else"):
        ours.fit()
    ours._take_step = take  # type: ignore[method-assign]
    assert [one.place for one in ours.members] == [(0, 1), (0, 1)]
    ours.resume()
    assert [one.place for one in ours.members] == [(0, 0), (0, 0)]
    ours.fit()
    for one, seed in zip(ours.members, (1, 2), strict=True):
        assert_same_training(one, alone(seed=seed))


def test_a_model_of_a_stack_that_fails_is_named(stacked: Callable[..., EnsembleTrainer]) -> None:
    """The other one is trained to the end, as if it had been alone."""
    ours = stacked({"seed": 1}, {"seed": 2})
    bad = ours.members[0]
    bad.train.target[int(bad.next_batch()[0])] = torch.nan
    with pytest.raises(TrainingStopped, match="member 0: the loss of batch 0 of epoch 1"):
        ours.fit()
    assert_same_training(ours.members[1], alone(seed=2))


def test_atoms_that_models_share_are_kept_once() -> None:
    """Two splits of one data set, and one of another."""
    all, others = molecules(6, 1), molecules(3, 2)
    parts = [all.subset(torch.tensor([5, 0, 2])), all.subset(torch.tensor([1, 5])), others]
    joined = StackedBatches(parts, 2, 1, torch.float64).molecules
    assert joined.z.numel() == all.z.numel() + others.z.numel()
    place = 0
    for part in parts:
        for molecule in range(len(part)):
            one, same = part.gather(torch.tensor([molecule])), joined.gather(torch.tensor([place]))
            assert torch.equal(one.z, same.z) and torch.equal(one.pos, same.pos)
            assert torch.equal(one.target, same.target)
            place += 1
    assert len(joined) == place


def test_models_with_other_numbers_of_molecules_are_not_stacked(
    stacked: Callable[..., EnsembleTrainer],
) -> None:
    members = stacked({"seed": 1}, {"seed": 2}).members
    where = members[0].device.type
    assert stacks(members)  # control
    assert not stacks([members[0], member(Member, where, 2, capture="on", batch_size=2)])
    assert not stacks([member(Member, where, 1, capture="off"), members[1]])
    assert not stacks([member(Member, where, 1, capture="on", recipe="paper"), members[1]])


def test_models_with_other_frozen_weights_are_not_stacked(
    stacked: Callable[..., EnsembleTrainer],
) -> None:
    """Without hierarchy the readout of the first block is 0, and is not learned."""
    members = stacked(*({"seed": seed, "hierarchical": False} for seed in (1, 2))).members
    assert stacks(members)  # control
    with torch.no_grad():
        members[1].model.blocks[0].readout.weight.fill_(0.1)
    assert not stacks(members)


def test_a_stack_whose_epochs_are_one_step_writes_checkpoints(
    stacked: Callable[..., EnsembleTrainer], tmp_path: Path
) -> None:
    members: list[dict[str, Any]] = [
        {"seed": n, "folder": tmp_path / str(n), "checkpoint_seconds": s, "batch_size": 5}
        for n, s in ((1, 0.0), (2, 1e9))
    ]
    ours = stacked(*[{**options, "epochs": 2} for options in members])
    take, seen = ours._take_step, []

    def watched(front: list[Member]) -> list[int]:
        sizes = take(front)
        seen.append([(tmp_path / name / "checkpoint.pt").exists() for name in "12"])
        return sizes

    ours._take_step = watched  # type: ignore[method-assign]
    ours.fit()
    assert seen[0][0] and seen[-1] == [True, True] and len(seen) == 2
