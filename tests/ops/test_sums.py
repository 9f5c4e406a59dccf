"""The three sums as operators: the C++ kernels' values, and derivatives of both kernel sets."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import (
    CASES,
    SIZES,
    SUMS,
    assert_equal_reference,
    error,
    operands,
    pattern_of,
    random_pattern,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hipnn_pyg import ops
from hipnn_pyg.ops import Pattern, cpu, devices, reference, sums

Sum = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.parametrize("case", CASES)
def test_equal_reference_on_every_pattern(case: str, dtype: torch.dtype) -> None:
    pattern = CASES[case]()
    assert_equal_reference(cpu, pattern, operands(pattern, 5, 6, dtype))


@pytest.mark.parametrize("nu, width", [*SIZES, (0, 4), (4, 0), (16, 16), (21, 81), (33, 167)])
def test_equal_reference_at_every_size(nu: int, width: int, dtype: torch.dtype) -> None:
    pattern = random_pattern(9, 90)
    assert_equal_reference(cpu, pattern, operands(pattern, nu, width, dtype))


edge_lists = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40), st.just(n)
    )
)


@settings(max_examples=60, deadline=None)
@given(edge_lists, st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
def test_equal_reference_on_any_pattern(
    edges: tuple[list[tuple[int, int]], int], nu: int, width: int, seed: int
) -> None:
    pattern = pattern_of(*edges)
    assert_equal_reference(cpu, pattern, operands(pattern, nu, width, seed=seed))


def without(entries: Callable[[Pattern, Tensor], Tensor]) -> SimpleNamespace:
    """The C++ kernels, broken: the entries of ``[E, nu]`` that the function marks do not count."""

    def kept(s: Tensor, pattern: Pattern) -> Tensor:
        return s.masked_fill(entries(pattern, torch.ones_like(s, dtype=torch.bool)), 0)

    return SimpleNamespace(
        envsum=lambda s, z, pattern: cpu.envsum(kept(s, pattern), z, pattern),
        sensesum=lambda g, z, pattern: kept(cpu.sensesum(g, z, pattern), pattern),
        featsum=lambda g, s, pattern: cpu.featsum(g, kept(s, pattern), pattern),
    )


@pytest.mark.parametrize(
    "entries",
    [
        lambda pattern, all_: all_ & (pattern.i.diff(append=pattern.i[:1]) != 0)[:, None],
        lambda pattern, all_: all_ & (torch.arange(all_.size(1)) == all_.size(1) - 1),
    ],
    ids=["last edge of a row", "a sensitivity"],
)
def test_control_broken_kernels_are_caught(
    entries: Callable[[Pattern, Tensor], Tensor], dtype: torch.dtype
) -> None:
    pattern = random_pattern(7, 40)
    tensors = operands(pattern, 5, 6, dtype)
    assert all(value > 0.1 for value in error(without(entries), pattern, tensors).values())
    none = without(lambda pattern, all_: ~all_)
    assert_equal_reference(none, pattern, tensors)


@pytest.mark.parametrize("name", SUMS)
def test_same_bits_twice_and_on_any_number_of_threads(
    name: str, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    pattern = random_pattern(200, 4000)
    tensors = operands(pattern, 20, 12, dtype)
    arguments = [tensors[need] for need in SUMS[name]]
    results = []
    for number in (1, 1, 2, 3):
        threads(number)
        results.append(getattr(cpu, name)(*arguments, pattern))
    assert all(torch.equal(results[0], other) for other in results[1:])
    changed = getattr(cpu, name)(arguments[0] * (1 + 1e-6), arguments[1], pattern)  # control
    assert not torch.equal(results[0], changed)


# ---- derivatives, of the C++ and of the Triton kernels ----


@pytest.fixture(params=["C++", "Triton"])
def where(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> torch.device:
    """The operators run these kernels, on this device."""
    if request.param == "C++":
        return torch.device("cpu")
    triton_kernels: ModuleType = request.getfixturevalue("triton_kernels")
    monkeypatch.setattr(sums, "sum_kernels", lambda _: triton_kernels)
    return device


def odd_pattern(where: torch.device) -> Pattern:
    """Directed, with a duplicate, an atom's own image and an atom that receives nothing."""
    pattern = pattern_of([(0, 1), (2, 1), (0, 1), (2, 2)], 3)
    return Pattern(*(index.to(where) for index in pattern))


def prepared(
    name: str, where: torch.device, needed: tuple[bool, bool] = (True, True)
) -> tuple[Sum, list[Tensor]]:
    """A sum over the odd pattern, and its two operands."""
    places = odd_pattern(where)
    tensors = operands(places, 2, 3)
    arguments = [
        tensors[need].to(where).requires_grad_(wanted)
        for need, wanted in zip(SUMS[name], needed, strict=True)
    ]
    return lambda first, second: getattr(ops, name)(first, second, places), arguments


SUBSETS = [(True, True), (True, False), (False, True)]


@pytest.mark.parametrize("needed", SUBSETS, ids=["both", "first", "second"])
@pytest.mark.parametrize("name", SUMS)
def test_first_and_second_derivatives(
    name: str, needed: tuple[bool, bool], where: torch.device
) -> None:
    function, arguments = prepared(name, where, needed)
    fast = sums.sum_kernels(arguments[0]) is not cpu  # interpreted
    assert gradcheck(function, arguments, fast_mode=fast)
    assert gradgradcheck(function, arguments, fast_mode=fast)


@pytest.mark.parametrize("name", SUMS)
def test_third_derivative(name: str) -> None:
    function, arguments = prepared(name, torch.device("cpu"))

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*inputs).pow(3).sum(), inputs, create_graph=True)

    assert gradgradcheck(gradient, arguments, fast_mode=True)


def test_control_a_wrong_derivative_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(
        envsum=cpu.envsum,
        featsum=cpu.featsum,
        sensesum=lambda *inputs: 1.01 * cpu.sensesum(*inputs),
    )
    monkeypatch.setattr(sums, "sum_kernels", lambda _: wrong)
    function, arguments = prepared("envsum", torch.device("cpu"))
    assert not gradcheck(function, arguments, raise_exception=False)


@pytest.mark.parametrize(
    "needed, adjoints",
    [
        ((True, True), {"sensesum", "featsum"}),
        ((True, False), {"sensesum"}),
        ((False, True), {"featsum"}),
    ],
)
def test_only_gradients_that_are_needed_are_computed(
    needed: tuple[bool, bool], adjoints: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def spy(name: str) -> Callable[..., Tensor]:
        return lambda *inputs: called.append(name) or getattr(cpu, name)(*inputs)  # type: ignore

    monkeypatch.setattr(sums, "sum_kernels", lambda _: SimpleNamespace(**{n: spy(n) for n in SUMS}))
    function, arguments = prepared("envsum", torch.device("cpu"), needed)
    function(*arguments).sum().backward()
    assert (
        called[0] == "envsum" and set(called[1:]) == adjoints and len(called) == 1 + len(adjoints)
    )
    assert [a.grad is not None for a in arguments] == list(needed)


@pytest.mark.parametrize("name", SUMS)
def test_strided_and_expanded_operands_and_cotangents(name: str, where: torch.device) -> None:
    function, arguments = prepared(name, where)
    pattern = odd_pattern(where)
    changes = (lambda t: t.mT.contiguous().mT, lambda t: t[..., :1].expand_as(t))
    cotangents = (torch.ones_like, lambda t: torch.ones((), device=where).to(t).expand_as(t))
    for change, cotangent in itertools.product(changes, cotangents):
        inputs = [change(a.detach()).requires_grad_() for a in arguments]
        assert not any(a.is_contiguous() for a in inputs)
        ours = function(*inputs)
        exact = getattr(reference, name)(*inputs, pattern)
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(ours, inputs, cotangent(ours))
        wanted = torch.autograd.grad(exact, inputs, cotangent(exact))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SUMS)
def test_half_precision_is_the_reference(name: str, half: torch.dtype, kernels: ModuleType) -> None:
    """Which the kernels themselves refuse."""
    pattern = random_pattern(5, 23)
    tensors = operands(pattern, 4, 6, half)
    arguments = [tensors[need] for need in SUMS[name]]
    result = getattr(ops, name)(*arguments, pattern)
    assert torch.equal(result, getattr(reference, name)(*arguments, pattern))
    with pytest.raises(TypeError, match=f"{half}, the kernels take float32 or float64"):
        getattr(kernels, name)(*arguments, pattern)


@pytest.mark.parametrize("name", SUMS)
def test_opcheck(name: str) -> None:
    pattern = random_pattern(4, 9)
    tensors = operands(pattern, 2, 3)
    arguments = [tensors[need].requires_grad_() for need in SUMS[name]]
    result = torch.library.opcheck(getattr(torch.ops.hipnn, name).default, (*arguments, *pattern))
    assert set(result.values()) == {"SUCCESS"}


# ---- what the kernels refuse ----


@pytest.fixture(params=["C++", "Triton"])
def kernels(request: pytest.FixtureRequest, device: torch.device) -> Iterator[ModuleType]:
    """Both sets of kernels; both check their operands before they touch memory."""
    yield cpu if request.param == "C++" else request.getfixturevalue("triton_kernels")


def refused(
    kernels: ModuleType, error: type[Exception], message: str, **changes: Tensor | Pattern
) -> None:
    """Every sum that takes the changed operands raises the error."""
    pattern = random_pattern(4, 9)
    given = operands(pattern, 2, 3) | {"pattern": pattern} | changes
    taking = {n: needs for n, needs in SUMS.items() if {"pattern", *needs} & set(changes)}
    assert taking
    for name, needs in taking.items():
        with pytest.raises(error, match=message):
            getattr(kernels, name)(*(given[need] for need in needs), given["pattern"])


def test_dtypes_that_differ_are_refused(kernels: ModuleType) -> None:
    for name, tensor in operands(random_pattern(4, 9), 2, 3, torch.float32).items():
        refused(kernels, TypeError, "cast one", **{name: tensor})


@pytest.mark.parametrize("index", Pattern._fields)
def test_int32_indices_are_refused(kernels: ModuleType, index: str) -> None:
    pattern = random_pattern(4, 9)
    pattern = pattern._replace(**{index: getattr(pattern, index).int()})
    refused(kernels, TypeError, rf"pattern.{index} is torch.int32.*\.long\(\)", pattern=pattern)


@pytest.mark.parametrize(
    "change",
    [
        dict(z=torch.zeros(3, 3)),
        dict(z=torch.zeros(12)),
        dict(s=torch.zeros(8, 2)),
        dict(s=torch.zeros(9, 2, 1)),
        dict(g=torch.zeros(5, 2, 3)),
        dict(g=torch.zeros(4, 6)),
    ],
    ids=lambda change: "".join(f"{name}{list(t.shape)}" for name, t in change.items()),
)
def test_wrong_shapes_are_refused(kernels: ModuleType, change: dict[str, Tensor]) -> None:
    (name,) = change
    refused(kernels, ValueError, f"{name} has shape", **{name: change[name].double()})


def test_sizes_that_differ_between_operands_are_refused(kernels: ModuleType) -> None:
    pattern = random_pattern(4, 9)
    tensors, wide = operands(pattern, 2, 3), operands(pattern, 3, 4)
    with pytest.raises(ValueError, match=r"z has shape \[4, 4\].*F = 3"):
        kernels.sensesum(tensors["g"], wide["z"], pattern)
    with pytest.raises(ValueError, match=r"s has shape \[9, 3\].*nu = 2"):
        kernels.featsum(tensors["g"], wide["s"], pattern)


def test_another_device_is_refused(kernels: ModuleType) -> None:
    for name, tensor in operands(random_pattern(4, 9), 2, 3).items():
        refused(kernels, ValueError, "one device", **{name: tensor.to("meta")})


def test_strided_indices_give_the_right_numbers(kernels: ModuleType, device: torch.device) -> None:
    pattern = random_pattern(4, 9)
    strided = Pattern(*(torch.stack((index, index * 0), dim=1)[:, 0] for index in pattern))
    assert not strided.j.is_contiguous()
    assert_equal_reference(kernels, strided, operands(pattern, 2, 3))


def test_the_order_of_senders_is_made_when_needed(kernels: ModuleType) -> None:
    pattern = random_pattern(4, 9)
    empty = pattern._replace(order=pattern.order[:0], column=torch.zeros_like(pattern.column))
    assert_equal_reference(kernels, empty, operands(pattern, 2, 3))


def test_available_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.available("cpu") == ""
    assert "mps" in ops.available("mps")

    def missing(device: torch.device) -> ModuleType:
        raise ImportError("pip install triton")

    monkeypatch.setattr(devices, "layer_kernels", missing)
    assert ops.available.__wrapped__("cuda") == "pip install triton"


def test_a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever kernels are asked for first, the remedy is named."""
    for name in [name for name in sys.modules if name.startswith("hipnn_pyg.ops.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in ops.available.__wrapped__("cuda")
    for kernels in ("triton", "triton_molecules"):
        with pytest.raises(ImportError, match="the GPU kernels need Triton"):
            devices.of_triton(kernels)
