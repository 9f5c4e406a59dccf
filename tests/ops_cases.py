"""Edge patterns that the three sums must get right, and the one comparison with the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hipnn_pyg.ops import Pattern, edge_pattern, reference

SUMS = {"envsum": ("s", "z"), "sensesum": ("g", "z"), "featsum": ("g", "s")}
ACCURACY = {torch.float32: 2e-6, torch.float64: 1e-12}
"""Largest error allowed, relative to the sum of the terms' absolute values."""


def random_pattern(num_atoms: int, num_edges: int, seed: int = 0) -> Pattern:
    """Directed edges, some more than once, some from an atom to itself, in no order but i's."""
    generator = torch.Generator().manual_seed(seed)
    j, i = torch.randint(num_atoms, (2, num_edges), generator=generator)
    order = i.argsort(stable=True)
    return edge_pattern(j[order], i[order], num_atoms).with_order()


def molecules(*sizes: int) -> Pattern:
    """All pairs i != j inside each molecule."""
    parts, first = [], 0
    for n in sizes:
        parts.append((~torch.eye(n, dtype=torch.bool)).nonzero() + first)
        first += n
    i, j = torch.cat(parts).T.contiguous()
    return edge_pattern(j, i, first).with_order()


def pattern_of(edges: list[tuple[int, int]], num_atoms: int) -> Pattern:
    """From (j, i) in any order."""
    j, i = torch.tensor(sorted(edges, key=lambda edge: edge[1])).reshape(-1, 2).T.long()
    return edge_pattern(j.contiguous(), i.contiguous(), num_atoms).with_order()


def block() -> Pattern:
    """Atoms 3 to 5 receive, numbered from 0, and nine atoms send: one block of a larger list."""
    whole = random_pattern(9, 60)
    inside = (whole.i >= 3) & (whole.i < 6)
    part = edge_pattern(whole.j[inside], whole.i[inside] - 3, 9).with_order()
    return part._replace(row=part.row[:4])


CASES: dict[str, Callable[[], Pattern]] = {
    "molecules": lambda: molecules(5, 1, 4),
    "no edges": lambda: pattern_of([], 4),
    "no atoms": lambda: pattern_of([], 0),
    "atoms without edges": lambda: pattern_of([(5, 1), (1, 5), (5, 6)], 8),
    "random, directed": lambda: random_pattern(7, 40),
    "duplicated": lambda: pattern_of([(0, 1), (2, 1), (0, 1), (0, 1), (1, 0)] * 3, 3),
    "an atom and its images": lambda: pattern_of([(0, 0), (0, 0), (1, 0), (0, 1), (1, 1)], 2),
    "hub": lambda: pattern_of([(n % 5, 2) for n in range(71)] + [(2, n % 5) for n in range(19)], 5),
    "more senders than receivers": block,
}
SIZES = [(1, 1), (20, 80), (5, 3), (17, 33), (40, 130)]


def operands(
    pattern: Pattern, nu: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 1
) -> dict[str, Tensor]:
    """Random s ``[E, nu]``, z ``[num_senders, F]`` and g ``[num_receivers, nu, F]``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "s": (pattern.j.numel(), nu),
        "z": (pattern.num_senders, width),
        "g": (pattern.num_receivers, nu, width),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


@contextmanager
def nan_in_new_memory() -> Iterator[None]:
    """New tensors are full of NaN, so that an entry which a kernel does not write is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def error(kernels: Any, pattern: Pattern, tensors: dict[str, Tensor]) -> dict[str, float]:
    """Largest error of each sum, relative to the sum of its terms' absolute values.

    Infinite where the result has another shape or dtype, or is not finite.
    """
    worst = {}
    for name, needs in SUMS.items():
        arguments = [tensors[need] for need in needs]
        with nan_in_new_memory():
            result = getattr(kernels, name)(*arguments, pattern)
        exact = getattr(reference, name)(*(a.double() for a in arguments), pattern)
        size = getattr(reference, name)(*(a.double().abs() for a in arguments), pattern)
        if result.shape != exact.shape or result.dtype != arguments[0].dtype:
            worst[name] = math.inf
            continue
        off = (result.double() - exact).abs() / size.clamp(min=torch.finfo(torch.float64).tiny)
        worst[name] = float(off.nan_to_num(nan=math.inf).max()) if off.numel() else 0.0
    return worst


def assert_equal_reference(kernels: Any, pattern: Pattern, tensors: dict[str, Tensor]) -> None:
    """All three sums within :data:`ACCURACY` of the reference in float64."""
    found = error(kernels, pattern, tensors)
    limit = ACCURACY[tensors["s"].dtype]
    assert all(value <= limit for value in found.values()), f"{found}, above {limit}"
