"""The step that a GPU captures: ordinary training's numbers, whatever the padding, no host in it.

A stand-in for CUDA graphs records the step's operations on the CPU and replays them at the same
addresses, as a graph does: a number or a shape that Python took from the data stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.data.forces import ASE_FORCES
from hipnn_pyg.data.packed import MoleculeBatch, PackedLoader, random_order
from hipnn_pyg.graph import molecule_edges
from hipnn_pyg.graph.static import static_edges
from hipnn_pyg.train import PlateauAnnealing, Trainer, Training, TrainingStopped, WarmupCosine
from hipnn_pyg.train.capture import CapturedStep
from hipnn_pyg.train.graphs import capture_wanted
from hipnn_pyg.train.recipe import running_average, shares
from hipnn_pyg.train.static import (
    Capacity,
    StaticBatches,
    StaticForceLoss,
    StaticLoss,
    capacities,
)

Parts = tuple[PackedMolecules, PackedMolecules]
Models = Callable[..., HIPNN]
Settings = Callable[..., Training]
KERNELS = ("reference", "padded", "fused")
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2")


@pytest.fixture
def parts(parts: Parts) -> Parts:
    """89 molecules to train on: the last of ten mini-batches has 8 of 9."""
    return parts[0].subset(torch.arange(89)), parts[1]


def with_forces(part: PackedMolecules) -> PackedMolecules:
    """The same molecules with force labels that belong to no energy."""
    forces = torch.sin(1e3 * part.pos.double())
    return replace(part, forces=forces, force_labels=ASE_FORCES)


@pytest.fixture
def train(new_model: Models, parts: Parts, settings: Settings) -> Callable[..., Trainer]:
    """``train(capture, kernel, forces, **settings)``: a trainer in float64, not yet run."""

    def build(
        capture: str,
        kernel: str = "fused",
        forces: bool = False,
        folder: Path | None = None,
        network: dict[str, int] | None = None,
        **changes: Any,
    ) -> Trainer:
        changes = {"epochs": 4, "average_every": 3, "t_init": 1, "t_patience": 1, **changes}
        config = settings(capture=capture, warmup_steps=3, **changes)
        model = new_model(kernel=kernel, **(network or {})).double()
        own = map(with_forces, parts) if forces else parts
        return Trainer(model, *own, config, folder, progress=False)

    return build


def assert_equal_runs(ours: Trainer, theirs: Trainer, tolerance: float = 1e-10) -> None:
    """Weights, averages, best model and every figure of every epoch."""
    close = dict(rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.objective.vector, theirs.objective.vector, **close)
    torch.testing.assert_close(ours.best_state, theirs.best_state, **close)
    assert (ours.average is None) == (theirs.average is None)
    if ours.average is not None and theirs.average is not None:
        states = (ours.average.state_dict(), theirs.average.state_dict())
        torch.testing.assert_close(*states, **close)
        assert int(ours.average.n_averaged) > 10
    assert len(ours.history) == len(theirs.history)
    for one, other in zip(ours.history, theirs.history, strict=True):
        for name in one.keys() - {"seconds", "compiled_graphs"}:
            assert one[name] == pytest.approx(other[name], rel=1e-9), name


# -- a CUDA graph on the CPU -----------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    """Notes every operation with its operands and results; the host may not look at any number."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in FORBIDDEN, f"{name} waits for the device, or has a shape made of data"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @property
    def shapes(self) -> list[tuple[str, list[torch.Size]]]:
        """Operations and the shapes of their results."""
        return [(str(f), [t.shape for t in tensors(result)]) for f, _, _, result in self.calls]


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Graph:
    """Stands in for ``torch.cuda.CUDAGraph``: replays what a :class:`Recorder` noted."""

    made: ClassVar[list[Graph]] = []

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.replays = 0
        Graph.made.append(self)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.recorder.calls:
            for old, new in zip(tensors(result), tensors(func(*args, **kwargs)), strict=True):
                old.detach().copy_(new)  # results stay where they were


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Steps are captured and replayed on the CPU; the graphs that were made."""

    @contextmanager
    def record(graph: Graph, stream: Any, pool: Any) -> Iterator[None]:
        """Recording a CUDA graph runs nothing: what the step changed is put back."""
        changed = Graph.step._changed()  # type: ignore[attr-defined]
        before = [tensor.clone() for tensor in changed]
        with graph.recorder:
            yield
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)

    make = CapturedStep.__init__

    def graphed(self: CapturedStep, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self.graphed = True
        Graph.step = self  # type: ignore[attr-defined]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "CUDAGraph": Graph,
        "graph": record,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(CapturedStep, "__init__", graphed)
    Graph.made = []
    return Graph.made


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers in PyTorch around the kernels of the sums, as on a GPU."""
    monkeypatch.setattr("hipnn_pyg.ops.takes", lambda x: False)


# -- the numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
@pytest.mark.parametrize("recipe", ["paper", "fast"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_static_step_is_the_ordinary_step(
    recipe: str, kernel: str, forces: bool, train: Callable[..., Trainer]
) -> None:
    """40 steps, the last one of each epoch smaller, learning rates and averages that change."""
    ours, theirs = (train(capture, kernel, forces, recipe=recipe) for capture in ("on", "off"))
    ours.fit()
    theirs.fit()
    assert ours.captured is not None and theirs.captured is None
    assert ours.epoch * ours.steps_per_epoch == 40
    assert ("train_force_mae" in ours.history[-1]) == forces
    assert_equal_runs(ours, theirs)
    other = train("on", kernel, forces, recipe=recipe, seed=1)  # control: in another order
    other.fit()
    vectors = [trainer.objective.vector for trainer in (ours, other)]
    assert not torch.allclose(*vectors, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe, forces", [("paper", False), ("fast", False), ("fast", True)])
@pytest.mark.parametrize("kernel", ["padded", "fused"])
def test_replays_are_the_ordinary_steps(
    recipe: str,
    kernel: str,
    forces: bool,
    like_a_gpu: None,
    graphs: list[Graph],
    train: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two capacities, each captured once, when it is first needed."""
    monkeypatch.setattr("hipnn_pyg.train.static.SPREADS", (0.5,))
    monkeypatch.setattr("hipnn_pyg.train.static.ROUND", 1)
    ours, theirs = (train(capture, kernel, forces, recipe=recipe) for capture in ("on", "off"))
    theirs.fit()
    assert not graphs
    ours.fit()
    assert_equal_runs(ours, theirs)
    usual, large = graphs
    assert usual.replays + large.replays == 40 and usual.replays > large.replays > 2


@pytest.mark.parametrize("kernel", ["padded", "fused"])
def test_forces_are_learned_on_a_gpu_as_on_a_cpu(
    kernel: str, train: Callable[..., Trainer]
) -> None:
    """By graphs of a GPU where there is one, else by the same step as it is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours = train("on", kernel, forces=True, device=device)
    theirs = train("off", kernel, forces=True)
    for trainer in (ours, theirs):
        trainer.fit()
    assert ours.captured is not None and ours.captured.graphed == (device == "cuda")
    vectors = [trainer.objective.vector.detach().cpu() for trainer in (ours, theirs)]
    torch.testing.assert_close(*vectors, rtol=1e-7, atol=1e-8)  # a GPU's sums are atomic
    for one, other in zip(ours.history, theirs.history, strict=True):
        for name in ("train_loss", "train_force_mae", "validation_force_mae"):
            assert one[name] == pytest.approx(other[name], rel=1e-8)


def test_a_number_that_python_keeps_shows_in_replays(
    like_a_gpu: None,
    graphs: list[Graph],
    train: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control for the test above: a mini-batch that is drawn outside of the graph stays."""
    ours, theirs = train("on"), train("off")
    theirs.fit()
    draw, first = StaticBatches.draw, []

    def draw_once(self: StaticBatches, capacity: Capacity) -> MoleculeBatch:
        first.append(first[0] if first else draw(self, capacity))
        return first[0]

    monkeypatch.setattr(StaticBatches, "draw", draw_once)
    ours.fit()
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_runs(ours, theirs, 1e-4)


@pytest.mark.parametrize("when", ["in the warm-up", "in the graph"])
def test_a_step_that_cannot_be_captured(
    when: str,
    graphs: list[Graph],
    train: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ordinary steps, with a warning and the same numbers; an error where capture was asked for."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen a stream is capturing")

    if when == "in the graph":
        monkeypatch.setattr(torch.cuda, "graph", fail)
    else:
        monkeypatch.setattr(CapturedStep, "_log", fail)
    with pytest.raises(RuntimeError, match="not permitted"):
        train("on", recipe="fast").fit()
    theirs = train("off", recipe="fast")
    theirs.fit()
    monkeypatch.setattr("hipnn_pyg.train.trainer.capture_wanted", lambda *_: True)
    ours = train("auto", recipe="fast")
    with pytest.warns(HIPNNWarning, match=r"not be captured \(RuntimeError: operation not perm"):
        ours.fit()
    assert ours.captured is None
    assert_equal_runs(ours, theirs)


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
def test_ordinary_mini_batches_still_have_a_gradient(
    forces: bool, train: Callable[..., Trainer]
) -> None:
    ours, theirs = (train(capture, forces=forces) for capture in ("on", "off"))
    index = ours.batches()[3]
    assert isinstance(ours.objective.loss, StaticForceLoss if forces else StaticLoss)
    for trainer in (ours, theirs):
        trainer.gradient_of(index)
    gradients = [trainer.objective.vector.grad for trainer in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


# -- what a graph cannot hold ----------------------------------------------------------------------


def operations(trainer: Trainer) -> list[list[tuple[str, list[torch.Size]]]]:
    """Those of each step of an epoch, with the shapes of their results."""
    trainer.start()
    trainer.begin_epoch()
    assert trainer.captured is not None
    found = []
    for _ in trainer.batches():
        with Recorder() as recorder:
            trainer.captured()
        found.append(recorder.shapes)
    return found


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_step_is_the_same_list_of_operations(
    kernel: str, forces: bool, like_a_gpu: None, train: Callable[..., Trainer]
) -> None:
    """Same operations and shapes for all mini-batches, the smaller last too; no look at data."""
    steps = operations(train("on", kernel, forces))
    assert len(steps) == 10 and len(steps[0]) > 100
    assert all(step == steps[0] for step in steps)


@pytest.mark.parametrize("look", ["item", "bool", "nonzero", "shape"])
def test_a_look_at_the_data_is_caught(
    look: str,
    like_a_gpu: None,
    train: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control for the test above."""
    draw = StaticBatches.draw

    def peep(self: StaticBatches, capacity: Capacity) -> MoleculeBatch:
        batch = draw(self, capacity)
        if look == "item":
            batch.pos.sum().item()
        elif look == "bool":
            assert batch.ptr[-1] > 0
        elif look == "nonzero":
            batch.pos.nonzero()
        else:
            batch.pos[batch.batch < self.batch_size]
        return batch

    monkeypatch.setattr(StaticBatches, "draw", peep)
    if look == "shape":  # no operation that is forbidden, but of another size in each step
        steps = operations(train("on"))
        assert any(step != steps[0] for step in steps)
        return
    with pytest.raises(AssertionError, match="waits for the device"):
        operations(train("on"))


# -- padding ---------------------------------------------------------------------------------------


def static_batches(molecules: PackedMolecules, size: int = 9) -> StaticBatches:
    forces = molecules.forces is not None
    batches = StaticBatches(molecules, size, -(-len(molecules) // size), forces=forces)
    batches.begin(random_order(len(molecules), 0, 0))
    return batches


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("step", [0, 9], ids=["whole", "smaller"])
def test_the_content_of_padding_does_not_matter(
    step: int, kernel: str, forces: bool, new_model: Models, parts: Parts
) -> None:
    """Garbage there changes not a bit of loss and gradient; a real atom that moves does."""
    model = new_model(kernel=kernel).double()
    with torch.no_grad():  # all orders count, as after training
        for block in model.blocks:
            block.readout.weight.uniform_(-1, 1)
    loss = StaticForceLoss(model, 0.7) if forces else StaticLoss(model)
    batches = static_batches(with_forces(parts[0]) if forces else parts[0])
    batches.step.fill_(step)
    batch = batches.draw(batches.capacities[-1])
    padding = batch.batch == 9
    assert int(padding.sum()) > 3

    def gradient(**changes: Tensor) -> tuple[Tensor, Tensor]:
        terms = loss(batch._replace(**changes))
        learned = [p for p in model.parameters() if p.requires_grad]
        parts = torch.autograd.grad(terms.loss, learned)
        return terms.loss.detach(), torch.cat([part.flatten() for part in parts])

    plain = gradient()
    assert all(bool(torch.isfinite(part).all()) for part in plain)
    mask = padding.unsqueeze(1)
    for garbage in (0.0, 1e30, torch.nan):
        pos = torch.where(mask, garbage, batch.pos)
        other = gradient(pos=pos, z=torch.where(padding, 8, batch.z))
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    moved = batch.pos.clone()
    moved[0] += torch.tensor([0.1, 0.2, 0.3])
    changed = gradient(pos=moved)
    assert all(not torch.allclose(a, b, rtol=1e-5) for a, b in zip(plain, changed, strict=True))


def test_no_gradient_is_lost_where_the_errors_vanish(new_model: Models, parts: Parts) -> None:
    """The root of a mean square of 0 has the gradient 0, not NaN."""
    model = new_model().double()
    batches = static_batches(parts[0])
    batch = batches.draw(batches.capacities[-1])
    whole = parts[0].gather(PackedLoader(parts[0], 9, shuffle=True).partition(0)[0])
    with torch.no_grad():
        energy = model.energy_terms(whole.z, whole.pos.double(), whole.batch).energy[:, 0]
    terms = StaticLoss(model)(batch._replace(target=energy))
    assert float(terms.rmse.detach()) < 1e-12
    learned = [p for p in model.parameters() if p.requires_grad]
    for part in torch.autograd.grad(terms.loss, learned):
        assert bool(torch.isfinite(part).all())


def test_drawn_mini_batches_are_gathered_ones(parts: Parts) -> None:
    """In front the very molecules of the ordinary mini-batch; then nothing but padding."""
    train = with_forces(parts[0])
    batches = static_batches(train)
    for number, index in enumerate(PackedLoader(train, 9, shuffle=True).partition(0)):
        drawn, gathered = batches.draw(batches.capacity_of(number)), train.gather(index)
        atoms, size = gathered.z.numel(), index.numel()
        for name in ("z", "pos", "batch", "forces"):
            assert torch.equal(getattr(drawn, name)[:atoms], getattr(gathered, name))
        assert drawn.forces is not None and not bool(drawn.forces[atoms:].any())
        assert torch.equal(drawn.ptr[: size + 1], gathered.ptr)
        assert torch.equal(drawn.target[:size], gathered.target)
        assert bool((drawn.batch[atoms:] == 9).all()) and drawn.z.numel() > atoms
        assert drawn.ptr[size:].eq(atoms).all() and drawn.target[size:].eq(0).all()
        batches.step += 1


@pytest.mark.parametrize("extra", [0, 1, 7, 400])
@pytest.mark.parametrize("padding", [1, 2, 11])
def test_static_edges(extra: int, padding: int, parts: Parts) -> None:
    """The pairs of the molecules in their order; each further edge joins padding to itself."""
    batch = parts[0].gather(torch.tensor([0, 3, 4, 1, 2]))  # methane, hydrogen, OH ...
    expected = molecule_edges(batch.pos.requires_grad_(), batch.batch, batch.ptr, batch.num_edges)
    atoms, edges = batch.z.numel(), batch.num_edges
    pos = torch.cat((batch.pos.detach(), torch.full((padding, 3), torch.nan)))
    graph = torch.cat((batch.batch, torch.full((padding,), 5)))
    ptr = torch.cat((batch.ptr, batch.ptr[-1:]))
    pairs = static_edges(pos, graph, ptr, edges + extra)
    ours, theirs = pairs.pattern, expected.pattern
    assert ours is not None and theirs is not None and pairs.i is not None
    for name in ("j", "i", "order"):
        assert torch.equal(getattr(ours, name)[:edges], getattr(theirs, name))
    assert torch.equal(ours.row[: atoms + 1], theirs.row)
    assert torch.equal(pairs.r[:edges], expected.r.detach())
    assert pairs.r[edges:].isposinf().all() and int(ours.row[-1]) == edges + extra
    assert bool((pairs.i[edges:] >= atoms).all()) and torch.equal(pairs.i[edges:], pairs.j[edges:])
    assert bool((pairs.i.diff() >= 0).all())
    assert torch.equal(ours.row, torch.searchsorted(pairs.i, torch.arange(atoms + padding + 1)))
    assert torch.equal(pairs.j[ours.order], pairs.j.sort().values)
    degree = ours.row.diff()[atoms:]
    assert int(degree.max()) == -(-extra // padding)  # shared out evenly: no long row


# -- capacities ------------------------------------------------------------------------------------


def test_capacities_take_every_mini_batch() -> None:
    """Molecules of 1 to 29 atoms: most random mini-batches fit into the first, nearly all into the
    second."""
    generator = torch.Generator().manual_seed(0)
    counts = (18 + 3 * torch.randn(20_000, generator=generator)).round().long().clamp(1, 29)
    usual, roomy, largest = capacities(counts, 30)
    batches = torch.stack([counts[i] for i in random_order(20_000, 0, 0).split(30)[:-1]])
    atoms, edges = batches.sum(1), (batches * (batches - 1)).sum(1)
    for room, least in ((usual, 0.95), (roomy, 0.99)):
        fits = (atoms < room.atoms) & (edges <= room.edges)
        assert least < float(fits.double().mean())
    assert usual < roomy and usual.edges < 1.2 * float(edges.double().mean())
    top = counts.topk(30).values
    assert int(top.sum()) < largest.atoms <= int(top.sum()) + 32
    assert int((top * (top - 1)).sum()) <= largest.edges


def test_one_capacity_where_all_molecules_are_equal() -> None:
    """A trajectory: no second graph, hardly any padding."""
    (only,) = capacities(torch.full((1000,), 12), 30)
    assert 360 < only.atoms <= 392 and 3960 <= only.edges <= 3992


# -- tables ----------------------------------------------------------------------------------------


def test_rates_are_those_the_schedule_will_set() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=0.5)
    cosine = WarmupCosine(optimizer, 1e-3, warmup_steps=5, total_steps=60)
    for _ in range(7):
        cosine.after_step()
    ahead = cosine.rates(20).tolist()
    for rate in ahead:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-14)
        cosine.after_step()
    assert len(set(ahead)) == 20
    plateau = PlateauAnnealing(optimizer)
    assert plateau.rates(3).tolist() == [optimizer.param_groups[0]["lr"]] * 3


@pytest.mark.parametrize("count", [0, 1, 40])
def test_shares_are_those_of_the_running_average(count: int) -> None:
    """As ``AveragedModel`` updates: the first takes the parameters as they are."""
    model = torch.nn.Linear(1, 1, bias=False)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=running_average(0.7))
    average.n_averaged.fill_(count)
    value = float(average.module.weight.detach())
    for step, share in zip(range(4, 14), shares(range(4, 14), 3, count, 0.7).tolist(), strict=True):
        with torch.no_grad():
            model.weight.fill_(step)
        if (step + 1) % 3 == 0:
            average.update_parameters(model)
        value += share * (step - value)
        assert float(average.module.weight.detach()) == pytest.approx(value, rel=1e-5)


# -- in the trainer --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, steps", [("fast", 1), ("fast", 13), ("fast", 20), ("paper", 13)])
def test_resumed_bit_for_bit(
    recipe: str,
    steps: int,
    graphs: list[Graph],
    like_a_gpu: None,
    train: Callable[..., Trainer],
    interrupt_after: Callable[[Trainer, int], None],
    tmp_path: Path,
) -> None:
    """Interrupted in the first step, mid-epoch, at an epoch's end; with graphs."""
    whole = train("on", recipe=recipe, epochs=3, folder=tmp_path / "whole")
    whole.fit()
    first = train("on", recipe=recipe, epochs=3, folder=tmp_path / "run")
    interrupt_after(first, steps)
    with pytest.raises(TrainingStopped, match="go on with --resume"):
        first.fit()
    second = train("on", recipe=recipe, epochs=3, folder=tmp_path / "run")
    second.resume()
    assert 10 * second.epoch + second.step == steps
    second.fit()
    assert torch.equal(second.objective.vector, whole.objective.vector)
    for row in (ours := second.history[-1], theirs := whole.history[-1]):
        del row["seconds"]
    assert ours == theirs
    files = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert files[0] == files[1]


def test_a_run_may_change_between_captured_and_ordinary_steps(
    train: Callable[..., Trainer],
    interrupt_after: Callable[[Trainer, int], None],
    tmp_path: Path,
) -> None:
    whole = train("off", recipe="fast")
    whole.fit()
    for number, (before, after) in enumerate((("on", "off"), ("off", "on"))):
        first = train(before, recipe="fast", folder=tmp_path / str(number))
        interrupt_after(first, 17)
        with pytest.raises(TrainingStopped):
            first.fit()
        second = train(after, recipe="fast", folder=tmp_path / str(number))
        second.resume()
        second.fit()
        assert_equal_runs(second, whole)


def test_a_loss_that_is_not_finite_is_reported(
    new_model: Models, parts: Parts, settings: Settings, tmp_path: Path
) -> None:
    """At the end of the epoch, validated or not, by the batch; the checkpoint is that of before."""
    train, validation = parts
    index = PackedLoader(train, 9, shuffle=True).partition(1)[3]
    config = settings(capture="on", checkpoint_seconds=1e9, validate_every=3)
    trainer = Trainer(new_model(), train, validation, config, tmp_path, progress=False)
    ended = trainer.end_epoch

    def poison() -> None:
        ended()
        trainer.train.target[int(index[2])] = torch.nan

    trainer.end_epoch = poison  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="batch 3 of epoch 2 is not finite"):
        trainer.fit()
    assert trainer.epoch == 1 and trainer.step == 10
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(bool(weight.isfinite().all()) for weight in kept["model"].values())


def test_where_steps_are_captured() -> None:
    """On a GPU by itself, in one process; elsewhere only where it is asked for."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    auto, on, off = (Training(capture=capture) for capture in ("auto", "on", "off"))
    assert capture_wanted(auto, cuda, 1) and not capture_wanted(auto, cpu, 1)
    assert capture_wanted(on, cuda, 1) and capture_wanted(on, cpu, 1)
    assert not capture_wanted(off, cuda, 1)
    assert not capture_wanted(auto, cuda, 2)
    assert not capture_wanted(Training(compile="on"), cuda, 1)
    with pytest.raises(ValueError, match="exclude each other"):
        capture_wanted(Training(compile="on", capture="on"), cuda, 1)
    with pytest.raises(ValueError, match="one process, not 2"):
        capture_wanted(on, cuda, 2)


def test_members_learn_forces_as_trainers_alone(
    train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernels, which there is nothing to compile for; in bf16 by autograd."""
    asked = []
    monkeypatch.setattr(
        "hipnn_pyg.train.trainer.compile_wanted", lambda *given: asked.append(given[2])
    )
    for alone in (True, False):
        monkeypatch.setattr(Trainer, "alone", alone)
        trainer = train("off", kernel="auto", forces=True)
        assert not trainer.compiled and trainer.objective.direct is not None
    assert train("off", "auto", forces=True, precision="bf16").objective.direct is None
    assert asked == ["fused", "fused", "padded"]


@pytest.mark.parametrize("forces", [False, True], ids=["energies", "forces"])
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_long_runs_on_forces_are_compiled_instead(
    long: bool, forces: bool, train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By themselves, as on a GPU; ``capture="on"`` captures all."""
    where = "hipnn_pyg.train.trainer."
    monkeypatch.setattr(where + "capture_wanted", lambda *_: True)
    monkeypatch.setattr(where + "compile_wanted", lambda *given: long and given[4])
    trainer = train("auto", forces=forces)
    assert trainer.compiled == (long and forces) and trainer.captures != trainer.compiled
    assert train("on", forces=forces).captures


@pytest.mark.parametrize("capture", ["on", "off"])
def test_the_precision_of_products_reaches_the_step(
    capture: str, new_model: Models, parts: Parts, settings: Settings
) -> None:
    """One epoch in bf16 is nearly that in float32, and its settings end with the step."""

    def weights(precision: str) -> Tensor:
        config = settings(capture=capture, precision=precision, epochs=1)
        trainer = Trainer(new_model(), *parts, config, progress=False)
        trainer.fit()
        assert torch.get_float32_matmul_precision() == "highest"
        return trainer.objective.vector.detach()

    plain = weights("float32")
    assert torch.equal(plain, weights("float32"))
    assert 1e-6 < float((weights("bf16") - plain).abs().max()) < 1e-2
