"""Bit-equal weights from equal runs with deterministic algorithms; compilations are counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.train import Trainer, Training
from hipnn_pyg.train.graphs import compiled_graphs, recompiled

Parts = tuple[PackedMolecules, PackedMolecules]
Models = Callable[..., HIPNN]
Settings = Callable[..., Training]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """PyTorch refuses operations that may give other sums the next time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kernel", ["reference", "padded", "fused"])
def test_bit_equal_twice(
    kernel: str, deterministic: None, new_model: Models, parts: Parts, settings: Settings
) -> None:
    """As many threads as PyTorch likes; a model of its own, so nothing is shared by the runs."""

    def weights(seed: int) -> torch.Tensor:
        config = settings(seed=seed, epochs=2)
        trainer = Trainer(new_model(kernel=kernel), *parts, config, progress=False)
        assert trainer.objective.loss.kernel == kernel
        trainer.fit()
        return trainer.objective.vector.detach().clone()

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.allclose(first, weights(1), rtol=1e-4)  # control: another order of molecules


def test_deterministic_algorithms_are_asked_for(deterministic: None) -> None:
    """Control: in this test PyTorch does refuse what is not deterministic."""
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.empty(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]), accumulate=False)


def test_graphs_are_counted() -> None:
    """One graph for all sizes; one more for a size that it was told nothing about; none eager."""

    def twice(values: torch.Tensor) -> torch.Tensor:
        return values * 2

    compiled = torch.compile(twice, dynamic=False, backend="eager")
    before = compiled_graphs()
    twice(torch.ones(3))
    assert compiled_graphs() == before
    for size, graphs in ((3, 1), (3, 1), (4, 2)):
        compiled(torch.ones(size))
        assert compiled_graphs() - before == graphs


def compile_step(trainer: Trainer, dynamic: bool) -> None:
    """A step with a part that is compiled, for any size or for each (no code is generated)."""
    objective = trainer.objective
    sums: Any = torch.compile(
        lambda vector: vector.square().sum(), dynamic=dynamic, backend="eager"
    )

    def gradient(vector: Any, frozen: Any, batch: Any) -> Any:
        sums(batch.target)  # as many sizes as mini-batches have
        return objective.gradient(vector, frozen, batch)

    trainer.gradient = gradient


@pytest.mark.parametrize("dynamic, graphs", [(True, 1), (False, 2)])
def test_recompilations_are_reported(
    dynamic: bool, graphs: int, new_model: Models, parts: Parts, settings: Settings
) -> None:
    """90 molecules in batches of 20, the last of 10: two sizes, two static graphs."""
    config = settings(epochs=2, batch_size=20)
    trainer = Trainer(new_model(), *parts, config, progress=False)
    compile_step(trainer, dynamic)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit()
    said = [str(w.message) for w in caught if issubclass(w.category, HIPNNWarning)]
    assert said == ([recompiled(2)] if graphs == 2 else [])  # once, not in every epoch
    assert "compiled 2 times" in recompiled(2)
    assert [row["compiled_graphs"] for row in trainer.history] == [graphs, graphs]


def test_an_eager_run_compiles_nothing(new_model: Models, parts: Parts, settings: Settings) -> None:
    trainer = Trainer(new_model(), *parts, settings(epochs=1), progress=False)
    trainer.fit()
    assert trainer.history[0]["compiled_graphs"] == 0
