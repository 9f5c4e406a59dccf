"""The compiled layers against the readable ones: values, first and second derivatives."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ops_cases import ACCURACY
from torch import Tensor

from hipnn_pyg import HIPNN, ops
from hipnn_pyg.graph.pairs import molecule_edges
from hipnn_pyg.nn import Interaction, OnSite, Sensitivity, fused_layers
from hipnn_pyg.nn.fused import layers
from hipnn_pyg.nn.sensitivity import sensitivities
from hipnn_pyg.ops import Pattern, cpu, edge_pattern
from hipnn_pyg.ops.operands import Weights

CUTOFF = 4.0
SIZES = [(3, 5, 7), (20, 5, 16), (20, 33, 20), (1, 1, 1), (17, 16, 81)]
"""(nu, in, out): full registers and every kind of remainder."""


def edges(atoms: int, number: int, seed: int = 0) -> tuple[Pattern, Tensor]:
    """Random directed edges with duplicates, atoms without any, some beyond the cutoff."""
    generator = torch.Generator().manual_seed(seed)
    i = torch.randint(0, max(1, atoms - 2), (number,), generator=generator).sort().values
    j = torch.randint(0, atoms, (number,), generator=generator)
    r = 0.8 + 4.0 * torch.rand(number, generator=generator, dtype=torch.float64)
    return edge_pattern(j, i, atoms), r


def interaction_inputs(nu: int, wide: int, out: int, atoms: int, r: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    mu = 1 / torch.linspace(1.1, 0.2, nu, dtype=torch.float64)
    sigma = torch.full((nu,), 5.0, dtype=torch.float64)
    z = torch.randn(atoms, wide, dtype=torch.float64)
    V = torch.randn(nu, wide, out, dtype=torch.float64)
    return [r, mu, sigma, z, V]


def readable_of(pattern: Pattern) -> Callable[..., Tensor]:
    def readable(r: Tensor, mu: Tensor, sigma: Tensor, z: Tensor, V: Tensor) -> Tensor:
        s = sensitivities(r, mu, sigma, CUTOFF)
        return ops.reference.envsum(s, z, pattern).flatten(1) @ V.flatten(0, 1)

    return readable


def assert_same(
    fast: Callable[..., Tensor],
    slow: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
) -> None:
    """Equal values and gradients in every input, relative to the largest number of each."""
    limit = 10 * ACCURACY[dtype]  # sums of sums, and of terms that cancel
    results = []
    for function in (fast, slow):
        own = [x.to(dtype).clone().requires_grad_() for x in inputs]
        value = function(*own)
        torch.manual_seed(2)
        cotangent = torch.randn(value.shape, dtype=torch.float64).to(dtype)
        results.append([value, *torch.autograd.grad(value, own, cotangent)])
    for actual, expected in zip(*results, strict=True):
        scale = max(float(expected.abs().max()), 1e-30) if expected.numel() else 1.0
        torch.testing.assert_close(actual, expected, rtol=0, atol=limit * scale)


@pytest.mark.parametrize("nu, wide, out", SIZES)
@pytest.mark.parametrize("atoms, number", [(1, 0), (6, 20), (131, 700), (1_701, 3_000)])
def test_interact(
    nu: int, wide: int, out: int, atoms: int, number: int, dtype: torch.dtype
) -> None:
    """Of many atoms, too: more than one sum of V's gradient takes."""
    pattern, r = edges(atoms, number)
    readable = readable_of(pattern)

    def fast(*inputs: Tensor) -> Tensor:
        return ops.interact(*inputs, pattern, CUTOFF, readable)

    assert_same(fast, readable, interaction_inputs(nu, wide, out, atoms, r), dtype)


@pytest.mark.parametrize("nu", [3, 20, 33])
@pytest.mark.parametrize("sigma", [40.0, -40.0, 300.0])
def test_what_a_function_does_not_reach_is_skipped(
    nu: int, sigma: float, dtype: torch.dtype
) -> None:
    """Narrow functions, in any order, reach few of an atom's edges, which are in any order, too."""
    pattern, r = edges(31, 700)
    readable = readable_of(pattern)
    inputs = interaction_inputs(nu, 16, 20, 31, r)
    widths = torch.linspace(0.5, 1.5, nu, dtype=torch.float64) * sigma
    inputs[1:3] = inputs[1][torch.randperm(nu)], widths
    s = sensitivities(*inputs[:3], CUTOFF)
    unreached = float((s < 1e-14).double().mean())
    assert 0.3 < unreached < 0.99  # control: some are, some are not

    def fast(*inputs: Tensor) -> Tensor:
        return ops.interact(*inputs, pattern, CUTOFF, readable)

    assert_same(fast, readable, inputs, dtype)


@pytest.mark.parametrize("nu, place", [(20, 3), (6, 5), (6, 0)])
@pytest.mark.parametrize("which", [1, 2], ids=["mu", "sigma"])
def test_a_function_that_is_no_number_is_seen(
    which: int, nu: int, place: int, dtype: torch.dtype
) -> None:
    pattern, r = edges(6, 60)
    inputs = [x.to(dtype) for x in interaction_inputs(nu, 5, 8, 6, r)]
    readable = readable_of(pattern)
    assert bool(ops.interact(*inputs, pattern, CUTOFF, readable).isfinite().all())
    inputs[which][place] = torch.nan
    assert not bool(ops.interact(*inputs, pattern, CUTOFF, readable).isfinite().any(1)[0])


def dense_weights(wide: int, out: int, depth: int) -> list[Tensor | None]:
    torch.manual_seed(3)
    weights: list[Tensor | None] = []
    for layer in range(depth):
        n = out if layer else wide
        shapes = [(out, n), (out,), (out, out), (out,), (out, n)]
        weights += [torch.randn(shape, dtype=torch.float64) / out**0.5 for shape in shapes]
        if n == out:
            weights[-1] = None
    return weights


@pytest.mark.parametrize("wide, out, depth", [(5, 16, 4), (16, 16, 3), (7, 33, 1), (1, 1, 2)])
@pytest.mark.parametrize("atoms", [0, 1, 4, 131])
def test_dense(wide: int, out: int, depth: int, atoms: int, dtype: torch.dtype) -> None:
    weights = dense_weights(wide, out, depth)
    present = [n for n, weight in enumerate(weights) if weight is not None]
    z = torch.randn(atoms, wide, dtype=torch.float64)
    received = 30 * torch.randn(atoms, out, dtype=torch.float64)  # softplus far out on both sides

    def filled(given: Sequence[Tensor]) -> list[Tensor | None]:
        whole: list[Tensor | None] = [None] * len(weights)
        for place, weight in zip(present, given, strict=True):
            whole[place] = weight
        return whole

    def fast(z: Tensor, received: Tensor, *given: Tensor) -> Tensor:
        return ops.dense(z, received, filled(given), layers)

    def slow(z: Tensor, received: Tensor, *given: Tensor) -> Tensor:
        return layers(z, received, *filled(given))

    given = [weights[n] for n in present]
    assert_same(fast, slow, [z, received, *given], dtype)  # type: ignore[list-item]


LESS = ["-mno-avx512f", "-mno-avx"] if platform.machine() in ("x86_64", "AMD64") else ["-O2"]
"""Options without which the compiler fills narrower, fewer registers than this machine may have."""


@pytest.fixture(scope="module", params=LESS)
def other_registers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Folder of the kernels as an older processor would have them, which run meanwhile."""

    def forget() -> None:
        ops.cpu.library.cache_clear()

    cache = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.cpu, "FLAGS", [*ops.cpu.FLAGS, request.param])
        patch.setenv("HIPNN_CACHE", str(cache))
        forget()
        yield cache
    forget()


@pytest.mark.parametrize("nu, wide, out", SIZES)
def test_every_kind_of_register(
    nu: int, wide: int, out: int, other_registers: Path, dtype: torch.dtype
) -> None:
    library = Path(ops.cpu.library()._name)
    assert library.parent == other_registers  # these kernels are compared, not the machine's own
    test_interact(nu, wide, out, 131, 700, dtype)
    test_dense(wide, out, 2, 131, dtype)


def make_layers(dtype: torch.dtype = torch.float64) -> tuple[Interaction, list[OnSite]]:
    torch.manual_seed(0)
    interaction = Interaction(3, 4, Sensitivity(5, 0.9, 3.0, CUTOFF)).to(dtype)
    return interaction, [OnSite(4, 4).to(dtype) for _ in range(2)]


def test_features_that_lie_column_by_column(dtype: torch.dtype) -> None:
    """Their gradient does, too, as the kernels write it: row by row."""
    pattern, r = edges(6, 60)
    inputs = [x.to(dtype) for x in interaction_inputs(7, 5, 8, 6, r)]
    turned = inputs[3].t().contiguous().t()
    assert not turned.is_contiguous()
    slopes = []
    for z in (inputs[3], turned):
        z = z.requires_grad_()
        sent = ops.interact(*inputs[:3], z, inputs[4], pattern, CUTOFF, readable_of(pattern))
        weights = [w if w is None else w.to(dtype) for w in dense_weights(5, 8, 2)]
        result = ops.dense(z, sent, weights, layers)
        slopes.append(torch.autograd.grad(result.square().sum(), z)[0])
    torch.testing.assert_close(*slopes)


def test_operands_that_kernels_would_misread(dtype: torch.dtype) -> None:
    """Of another dtype or shape: they read memory by address."""
    other = torch.float32 if dtype == torch.float64 else torch.float64
    pattern, r = edges(6, 60)
    names = ("r", "mu", "sigma", "z", "V")
    inputs = dict(zip(names, (x.to(dtype) for x in interaction_inputs(7, 5, 8, 6, r)), strict=True))
    ends: dict[str, Any] = dict(pattern=pattern, cutoff=CUTOFF, readable=readable_of(pattern))
    assert ops.interact(**inputs, **ends).shape == (6, 8)  # control
    for name in names:
        if name != "z":
            with pytest.raises(TypeError, match=f"interact: {name} is {other} and z {dtype}"):
                ops.interact(**inputs | {name: inputs[name].to(other)}, **ends)
        shorter = inputs | {name: inputs[name][:-1]}
        with pytest.raises(ValueError, match=r"interact: \w+ has shape \[.*\], not \["):
            ops.interact(**shorter, **ends)

    weights = [None if w is None else w.to(dtype) for w in dense_weights(5, 8, 2)]
    z, received = inputs["z"], torch.randn(6, 8, dtype=dtype)
    assert ops.dense(z, received, weights, layers).shape == (6, 8)  # control
    for place, name in enumerate(("W", "B", "W~", "B~", "M~")):
        for x, error in (
            (weights[place].to(other), TypeError),
            (weights[place][1:].clone(), ValueError),
            (None, TypeError),
        ):
            changed = [*weights[:place], x, *weights[place + 1 :]]
            with pytest.raises(error, match=f"dense: {name} "):
                ops.dense(z, received, changed, layers)
    for bad, error in ((received.to(other), TypeError), (received[1:], ValueError)):
        with pytest.raises(error, match="dense: received "):
            ops.dense(z, bad, weights, layers)


def test_first_and_second_derivatives() -> None:
    """gradcheck and gradgradcheck of a whole block in positions and features."""
    interaction, onsite = make_layers()
    batch, ptr = torch.zeros(4, dtype=torch.long), torch.tensor([0, 4])
    pos = torch.tensor(
        [[0.0, 0, 0], [1.1, 0.1, 0], [0.2, 1.3, 0.1], [1.0, 1.2, 1.4]], dtype=torch.float64
    ).requires_grad_()
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def fused(pos: Tensor, z: Tensor) -> Tensor:
        return fused_layers(interaction, onsite, z, molecule_edges(pos, batch, ptr, 12, True))

    def readable(pos: Tensor, z: Tensor) -> Tensor:
        pairs = molecule_edges(pos, batch, ptr, 12)._replace(pattern=None)
        out = interaction(z, pairs)
        for layer in onsite:
            out = layer(out)
        return out

    torch.testing.assert_close(fused(pos, z), readable(pos, z), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(fused, (pos, z))
    assert torch.autograd.gradgradcheck(fused, (pos, z))


def test_training_on_forces_reaches_every_weight() -> None:
    """The gradient of a force in the weights equals that of the readable layers."""
    interaction, onsite = make_layers()
    batch, ptr = torch.zeros(3, dtype=torch.long), torch.tensor([0, 3])
    z = torch.eye(3, dtype=torch.float64)
    weights = [*interaction.parameters(), *(p for layer in onsite for p in layer.parameters())]
    results = []
    for fast in (True, False):
        pos = torch.tensor([[0.0, 0, 0], [1.1, 0, 0], [0.2, 1.3, 0]], dtype=torch.float64)
        pairs = molecule_edges(pos.requires_grad_(), batch, ptr, 6, True)
        if fast:
            out = fused_layers(interaction, onsite, z, pairs)
        else:
            out = interaction(z, pairs._replace(pattern=None))
            for layer in onsite:
                out = layer(out)
        force = torch.autograd.grad(out.square().sum(), pos, create_graph=True)[0]
        results.append(torch.autograd.grad(force.square().sum(), weights, allow_unused=True))
    for actual, expected in zip(*results, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_control_a_broken_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, r = edges(6, 20)
    readable = readable_of(pattern)
    inputs = interaction_inputs(3, 5, 7, 6, r)
    right = ops.cpu.interact

    def wrong(where: ops.cpu.Where, *rest: Any) -> tuple[Tensor, ops.cpu.Kept | None]:
        return right(where._replace(cutoff=where.cutoff * 0.999), *rest)

    monkeypatch.setattr(ops.cpu, "interact", wrong)
    with pytest.raises(AssertionError, match="not close"):
        assert_same(
            lambda *x: ops.interact(*x, pattern, CUTOFF, readable), readable, inputs, torch.float64
        )


def test_weights_are_read_as_wide_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the features do not change and so have no width: no further than they go."""
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ops.cpu, "call", lambda *arguments: given.append(arguments))
    weights = Weights(dense_weights(5, 16, 2))
    kept = torch.zeros(2, 3, 16, dtype=torch.float64)
    for z_dot in (None, torch.zeros(3, 5, dtype=torch.float64)):
        ops.cpu.dense_tangent(z_dot, kept[0], weights, kept)
    assert [call[-4:] for call in given] == [(3, 5, 16, 2)] * 2  # atoms, in, out, layers


def test_the_same_bits_twice(dtype: torch.dtype) -> None:
    pattern, r = edges(131, 700)
    inputs = [x.to(dtype).requires_grad_() for x in interaction_inputs(20, 16, 16, 131, r)]
    runs = []
    for _ in range(2):
        out = ops.interact(*inputs, pattern, CUTOFF, readable_of(pattern))
        runs.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_molecule_edges_are_the_same_list(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pos = torch.randn(9, 3, dtype=dtype)
    ptr = torch.tensor([0, 4, 5, 9])
    batch = torch.arange(3).repeat_interleave(ptr.diff())
    fast, slow = (molecule_edges(pos, batch, ptr, 24, kernels) for kernels in (True, False))
    torch.testing.assert_close(fast.r, slow.r)
    assert torch.equal(fast.j, slow.j) and torch.equal(fast.i, slow.i)
    assert fast.pattern is not None and slow.pattern is not None
    assert torch.equal(fast.pattern.row, slow.pattern.row)
    ordered = fast.pattern.with_order()
    assert torch.equal(fast.j[ordered.order], fast.j.sort().values)


def test_order_in_closed_form() -> None:
    """With gradients the reverse edges are known without sorting."""
    torch.manual_seed(0)
    pos = torch.randn(9, 3).requires_grad_()
    ptr = torch.tensor([0, 4, 5, 9])
    batch = torch.arange(3).repeat_interleave(ptr.diff())
    pattern = molecule_edges(pos, batch, ptr, 24, True).pattern
    assert pattern is not None
    sorted_ = pattern._replace(order=pattern.order[:0]).with_order()
    assert torch.equal(pattern.order, sorted_.order)
    assert torch.equal(pattern.column, sorted_.column)


def test_nothing_is_kept_where_no_gradient_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients environments, sensitivities and activations would double the memory."""
    kept: list[tuple[str, bool]] = []

    def spy(name: str) -> Callable[..., Any]:
        real = getattr(cpu, name)
        return lambda *arguments: (kept.append((name, arguments[-1])), real(*arguments))[1]

    for name in ("interact", "dense"):
        monkeypatch.setattr(cpu, name, spy(name))
    model = HIPNN((1, 8), hidden_channels=4, num_onsite=1).double()
    z, pos = torch.tensor([1, 8, 1]), torch.eye(3, dtype=torch.float64)
    energy = model(z, pos)
    assert kept == [("interact", True), ("dense", True)] * 2
    kept.clear()
    with torch.no_grad():
        assert torch.equal(model(z, pos), energy)
    assert kept == [("interact", False), ("dense", False)] * 2


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_gradients_that_nobody_wants_are_not_computed(
    wanted: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the features or in weights, which may be fixed; that of what was received is the same."""
    given: list[tuple[bool, bool]] = []
    backward = cpu.dense_backward

    def spy(*arguments: Any) -> Tensor:
        given.append((arguments[-2] is not None, arguments[-1] is not None))
        return backward(*arguments)

    monkeypatch.setattr(cpu, "dense_backward", spy)
    weights, inputs = dense_weights(5, 16, 2), torch.randn(3, 21, dtype=torch.float64)
    slopes = []
    for need_z, need_weights in ((True, True), wanted):
        z, received = (x.clone() for x in inputs.split((5, 16), 1))
        own = [w if w is None else w.clone().requires_grad_(need_weights) for w in weights]
        ops.dense(z.requires_grad_(need_z), received.requires_grad_(), own, layers).sum().backward()
        slopes.append([x if x is None else x.grad for x in (received, z, *own)])
    assert given == [(True, True), wanted]
    every, some = slopes
    assert (some[1] is not None, some[2] is not None) == wanted
    for found, expected in zip(some, every, strict=True):
        assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize("dtype, digits", [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("level", [-18.0, -8.0, -2.5, -1.1, 0.0, 1.5, 5.0, 18.0, 25.0])
def test_slope_of_activations(dtype: torch.dtype, digits: float, level: float) -> None:
    """Where softplus is small its slope is as small: no digits are lost; far out it is 1."""
    torch.manual_seed(0)
    weights: list[Tensor | None] = [torch.zeros(8, 8), torch.full((8,), level)]
    weights += [torch.rand(8, 8), torch.zeros(8), None]
    weights = [None if w is None else w.to(dtype) for w in weights]
    z, received = torch.zeros(5, 8, dtype=dtype), torch.rand(5, 8, dtype=dtype).requires_grad_()
    (slope,) = torch.autograd.grad(ops.dense(z, received, weights, layers).sum(), received)
    exact = [None if w is None else w.double() for w in weights]
    given = received.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(layers(z.double(), given, *exact).sum(), given)
    torch.testing.assert_close(slope.double(), expected, rtol=digits, atol=0)


def test_an_activation_that_is_no_number_is_seen(dtype: torch.dtype) -> None:
    weights = [None if w is None else w.to(dtype) for w in dense_weights(5, 16, 2)]
    received = torch.randn(3, 16, dtype=dtype)
    received[1, 7] = torch.nan
    given = received.requires_grad_()
    result = ops.dense(torch.randn(3, 5, dtype=dtype), given, weights, layers)
    (slope,) = torch.autograd.grad(result.sum(), given)
    for found in (result, slope):
        assert found.isfinite().all(1).tolist() == [True, False, True]
