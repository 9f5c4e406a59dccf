"""Compiled potentials: the gradient inside one graph, equal to eager, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
import torch._dynamo
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor
from torch._dynamo.utils import counters

from hipnn_pyg import HIPNN
from hipnn_pyg.models import compiled
from hipnn_pyg.models.compiled import compiled_gradient
from hipnn_pyg.models.hipnn import Kernel
from hipnn_pyg.models.potential import HIPNNPotential, Prediction

KERNELS = [name for name in get_args(Kernel) if name != "auto"]


def structures() -> list[Atoms]:
    """Molecules and crystals of different sizes."""
    crystal = bulk("NaCl", "rocksalt", 4.1)
    crystal.numbers[:] = (6, 8)
    items = [molecule("CH3CH2OH"), molecule("NH3"), crystal, crystal.repeat((2, 1, 2))]
    for atoms in items:
        atoms.rattle(0.1, seed=3)
    return items


def predict(potential: HIPNNPotential, atoms: Atoms) -> Prediction:
    cell = torch.tensor(atoms.cell.array) if atoms.pbc.any() else None
    return potential(torch.tensor(atoms.numbers), torch.tensor(atoms.positions), cell=cell)


def assert_equal_predictions(actual: Prediction, expected: Prediction) -> None:
    assert float(expected.forces.abs().max()) > 1e-2
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture
def no_code_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that torch.compile does but the last step, which takes half a minute."""
    compile_it = torch.compile

    def traced(function: Callable[..., Any], **options: Any) -> Any:
        assert options["fullgraph"], "a break in the graph would run eagerly"
        return compile_it(function, **options, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("kernel", KERNELS)
def test_crystals_equal_eager(
    small_model: Callable[..., HIPNN], no_code_generation: None, kernel: str
) -> None:
    """Other numbers of atoms and pairs do not trace anew, whatever sizes were equal at first."""
    model = small_model(num_interactions=1, num_onsite=0, kernel=kernel)
    potentials = HIPNNPotential(model, compile=True), HIPNNPotential(model)
    before = graphs()
    two, eight = structures()[2:]
    for atoms in two, eight, two.repeat((3, 1, 1)):
        assert_equal_predictions(*(predict(potential, atoms) for potential in potentials))
    assert graphs() == before + 1


def test_molecules_equal_eager(small_model: Callable[..., HIPNN], no_code_generation: None) -> None:
    """Down to isolated atoms."""
    model = small_model(num_interactions=1, num_onsite=0)
    potentials = HIPNNPotential(model, compile=True), HIPNNPotential(model)
    ethanol, ammonia = structures()[:2]
    before = graphs()
    for atoms in ammonia, ethanol, ethanol + ammonia:
        assert_equal_predictions(*(predict(potential, atoms) for potential in potentials))
    assert graphs() == before + 1
    apart = Atoms("OH", [[0, 0, 0], [9, 0, 0]])
    alone, expected = (predict(potential, apart) for potential in potentials)
    assert not bool(alone.forces.any())
    torch.testing.assert_close(alone.energy, expected.energy)


def test_compiled_code_equals_eager(small_model: Callable[..., HIPNN]) -> None:
    """A C++ compiler is part of the test environment: without one this test fails."""
    model = small_model(num_interactions=1, num_onsite=0)
    potentials = HIPNNPotential(model, compile=True), HIPNNPotential(model)
    for atoms in structures()[2:]:
        assert_equal_predictions(*(predict(potential, atoms) for potential in potentials))


def test_no_second_derivative(small_model: Callable[..., HIPNN]) -> None:
    potential = HIPNNPotential(small_model(), compile=True).train()
    with pytest.raises(RuntimeError, match="compile=False"):
        predict(potential, structures()[0])


def test_refused_by_an_older_pytorch(
    small_model: Callable[..., HIPNN], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "dynamo", object())
    with pytest.raises(RuntimeError, match="upgrade"):
        HIPNNPotential(small_model(), compile=True)


def square_slope(x: Tensor, keep: bool) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(x.square().sum(), x)[0].detach()


def graph_break(x: Tensor, keep: bool) -> Tensor:
    torch._dynamo.graph_break()
    return square_slope(x, keep)


def test_a_break_in_the_graph_is_refused(no_code_generation: None) -> None:
    x = torch.arange(3.0)
    assert compiled_gradient(square_slope)(x, False).tolist() == [0, 2, 4]
    with pytest.raises(RuntimeError, match="use compile=False"):
        compiled_gradient(graph_break)(x, False)


@pytest.mark.parametrize(
    "dtype, error, refused",
    [
        (torch.float64, 1e-7, False),
        (torch.float64, 1e-5, True),
        (torch.float32, 1e-4, False),
        (torch.float32, 1e-3, True),
    ],
)
def test_a_wrong_result_is_refused(
    dtype: torch.dtype, error: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounding of generated code, which the smaller errors stand for, is taken."""

    def broken(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return lambda *arguments: function(*arguments) * (1 + error)

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(RuntimeError, match="differs") if refused else nullcontext():
        compiled_gradient(square_slope)(torch.ones(3, dtype=dtype), False)
