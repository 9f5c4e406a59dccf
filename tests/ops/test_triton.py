"""The Triton kernels equal the reference; off a GPU, Triton's interpreter runs them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from ops_cases import (
    ACCURACY,
    CASES,
    SIZES,
    SUMS,
    assert_equal_reference,
    error,
    operands,
    random_pattern,
)
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import hipnn_pyg.ops
from hipnn_pyg.ops import Pattern, reference

SOURCE = Path(hipnn_pyg.ops.__file__).with_name("triton.py")


def moved(
    device: torch.device, pattern: Pattern, tensors: dict[str, Tensor]
) -> tuple[Pattern, dict[str, Tensor]]:
    places = Pattern(*(index.to(device) for index in pattern))
    return places, {name: tensor.to(device) for name, tensor in tensors.items()}


@pytest.mark.parametrize("case", CASES)
def test_equal_reference_on_every_pattern(
    triton_kernels: ModuleType, device: torch.device, case: str, dtype: torch.dtype
) -> None:
    pattern = CASES[case]()
    tensors = operands(pattern, nu=5, width=6, dtype=dtype)
    assert_equal_reference(triton_kernels, *moved(device, pattern, tensors))


@pytest.mark.parametrize("nu, width", SIZES)
def test_equal_reference_at_every_size(
    triton_kernels: ModuleType, device: torch.device, nu: int, width: int, dtype: torch.dtype
) -> None:
    pattern = random_pattern(5, 23)
    tensors = operands(pattern, nu, width, dtype)
    assert_equal_reference(triton_kernels, *moved(device, pattern, tensors))


@pytest.mark.parametrize("nu, width", [(0, 4), (4, 0)])
def test_empty_sums_are_zero(
    triton_kernels: ModuleType, device: torch.device, nu: int, width: int
) -> None:
    pattern = random_pattern(4, 9)
    assert_equal_reference(triton_kernels, *moved(device, pattern, operands(pattern, nu, width)))


def test_featsum_in_passes(
    triton_kernels: ModuleType, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = random_pattern(5, 23)
    tensors = operands(pattern, nu=3, width=37)
    monkeypatch.setattr(triton_kernels, "WORKSPACE", 0)
    assert triton_kernels._columns_at_once(tensors["s"], 37) == 16  # three passes: 16, 16, 5
    assert_equal_reference(triton_kernels, *moved(device, pattern, tensors))


def test_featsum_uses_no_more_memory_than_allowed(triton_kernels: ModuleType) -> None:
    few, many = torch.empty(1000, 20, device="meta"), torch.empty(20_000_000, 20, device="meta")
    assert triton_kernels._columns_at_once(few, 80) == 80
    assert triton_kernels._columns_at_once(many, 80) == 16
    columns = triton_kernels._columns_at_once(torch.empty(1_500_000, 20, device="meta"), 80)
    assert columns == 32 and 1_500_000 * columns * 4 <= triton_kernels.WORKSPACE


@pytest.mark.parametrize("name", SUMS)
def test_same_bits_twice(
    triton_kernels: ModuleType, device: torch.device, name: str, dtype: torch.dtype
) -> None:
    pattern = random_pattern(5, 60)
    pattern, tensors = moved(device, pattern, operands(pattern, 5, 6, dtype))
    arguments = [tensors[need] for need in SUMS[name]]
    once, again = (getattr(triton_kernels, name)(*arguments, pattern) for _ in range(2))
    assert torch.equal(once, again)
    other = getattr(triton_kernels, name)(arguments[0] * (1 + 1e-6), *arguments[1:], pattern)
    assert not torch.equal(once, other)


@pytest.mark.parametrize("name", SUMS)
def test_strided_and_expanded_operands(
    triton_kernels: ModuleType, device: torch.device, name: str
) -> None:
    pattern = random_pattern(5, 23)
    pattern, tensors = moved(device, pattern, operands(pattern, 4, 6))
    exact = getattr(reference, name)
    for change in (lambda t: t.mT.contiguous().mT, lambda t: t[..., :1].expand_as(t)):
        arguments = [change(tensors[need]) for need in SUMS[name]]
        assert not any(argument.is_contiguous() for argument in arguments)
        result = getattr(triton_kernels, name)(*arguments, pattern)
        torch.testing.assert_close(result, exact(*arguments, pattern), rtol=1e-12, atol=1e-12)


MUTANTS = {
    "the last edge of a row is lost": ("(ROW + i + 1) - first", "(ROW + i + 1) - first - 1"),
    "every edge reads the same sender": ("j[:, None] * F", "(j - j)[:, None] * F"),
    "a sensitivity is lost": ("nu < NU", "nu < NU - 1"),
    "a feature is lost": ("b < F)", "b < F - 1)"),
    "only the first block of senders is read": ("J + first + k + x", "J + first + x"),
    "only the first block of sensitivities is read": ("s_at + k * NU", "s_at"),
}
CAUGHT = {"a feature is lost": {"envsum", "sensesum"}}
CAUGHT["every edge reads the same sender"] = {"envsum", "sensesum"}
CAUGHT["only the first block of senders is read"] = {"envsum", "sensesum"}
CAUGHT["only the first block of sensitivities is read"] = {"envsum", "featsum"}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_control_broken_kernels_are_caught(
    load_kernels: Callable[..., ModuleType], device: torch.device, tmp_path: Path, mutant: str
) -> None:
    source, (right, wrong) = SOURCE.read_text(), MUTANTS[mutant]
    assert right in source
    file = tmp_path / "broken.py"
    file.write_text(source.replace(right, wrong))
    pattern = random_pattern(3, 80)
    found = error(load_kernels(file), *moved(device, pattern, operands(pattern, 5, 6)))
    caught = {name for name, value in found.items() if not value <= ACCURACY[torch.float64]}
    assert caught == CAUGHT.get(mutant, set(SUMS))


KERNELS = {
    "_envsum": dict(NU=20, F=80, NU_BLOCK=32, F_BLOCK=32, EDGES=16),
    "_sensesum": dict(NU=20, F=80, NU_BLOCK=32, F_BLOCK=16, EDGES=16, PARTS=2),
    "_edge_features": dict(NU=20, F=80, WIDTH=80, NU_BLOCK=32, F_BLOCK=32, EDGES=16),
    "_by_sender": dict(F=80, WIDTH=80, F_BLOCK=128, EDGES=8),
}


def ptx(module: ModuleType, kernel: str, number: str) -> str:
    """A kernel compiled for an H100; neither a GPU nor a driver is needed."""
    function, constants = getattr(module, kernel), KERNELS[kernel]
    types = {name: f"*{number}" for name in function.arg_names} | {"start": "i32", "each": "i32"}
    types |= dict.fromkeys(("ROW", "J", "ORDER", "COLUMN"), "*i64")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in function.arg_names}
    made = triton.compile(
        ASTSource(function, signature, constexprs=constants),
        target=GPUTarget("cuda", 90, 32),
        options=module.OPTIONS,
    )
    assert made.asm["cubin"]
    return made.asm["ptx"]


@pytest.mark.parametrize("number", ["fp32", "fp64"])
def test_compiles_for_a_gpu_without_tf32(
    load_kernels: Callable[..., ModuleType], number: str
) -> None:
    module = load_kernels(SOURCE, interpret=False)
    for kernel in KERNELS:
        assert "tf32" not in ptx(module, kernel, number)


def test_control_tf32_would_be_seen(
    load_kernels: Callable[..., ModuleType], tmp_path: Path
) -> None:
    file = tmp_path / "tf32.py"
    file.write_text(SOURCE.read_text().replace('"ieee"', '"tf32"'))
    assert "tf32" in ptx(load_kernels(file, interpret=False), "_envsum", "fp32")


def test_the_interpreter_stays_inside(triton_kernels: ModuleType, device: torch.device) -> None:
    def state() -> list[Any]:
        places = (tl, tl.core, tl.math, tl.tensor)
        names = [{name: id(value) for name, value in vars(place).items()} for place in places]
        return [os.environ.get("TRITON_INTERPRET"), *names]

    before, pattern = state(), random_pattern(3, 5)
    assert_equal_reference(triton_kernels, *moved(device, pattern, operands(pattern, 2, 2)))
    assert state() == before
