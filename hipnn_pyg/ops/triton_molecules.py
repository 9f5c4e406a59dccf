"""Molecules as Triton kernels: where they begin, all pairs inside them, sums over their atoms.

On a GPU few molecules cost what launches cost: each of these does in one or two what would be
dozens of PyTorch's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.standard import _elementwise_max as _max
from triton.language.standard import _sum_combine as _add

from hipnn_pyg.ops.pattern import Pattern
from hipnn_pyg.ops.triton_tiles import kernel, products

__all__ = ["molecule_edges", "molecule_sums", "products", "sizes"]

ATOMS = 32
"""Atoms of a molecule that are read at a time."""
MOLECULES = 128
"""Molecules that are counted at a time."""


@triton.jit
def _begin(BATCH, g, atoms, steps):  # type: ignore[no-untyped-def]
    """The first atom that belongs to molecule g or to a later one, by bisection."""
    low = g * 0
    high = low + atoms
    for _ in range(steps):
        middle = (low + high) // 2
        searched = low < high
        before = searched & (tl.load(BATCH + middle, mask=searched, other=0) < g)
        high = tl.where(searched & (before == 0), middle, high)
        low = tl.where(before, middle + 1, low)
    return low


@kernel
def _sizes(
    BATCH: tl.tensor,
    PTR: tl.tensor,
    FOUND: tl.tensor,
    atoms: tl.tensor,
    graphs: tl.tensor,
    steps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """First atom of each molecule; atoms of the largest one, and number of pairs."""
    largest = tl.full((BLOCK,), 0, tl.int64)
    edges = tl.full((BLOCK,), 0, tl.int64)
    for k in range(0, graphs + 1, BLOCK):
        g = (k + tl.arange(0, BLOCK)).to(tl.int64)
        first = _begin(BATCH, g, atoms, steps)
        count = _begin(BATCH, g + 1, atoms, steps) - first
        tl.store(PTR + g, first, mask=g <= graphs)
        largest = tl.maximum(largest, count)
        edges += count * (count - 1)
    tl.store(FOUND, tl.reduce(largest, 0, _max))
    tl.store(FOUND + 1, tl.reduce(edges, 0, _add))


@kernel
def _first_edges(
    PTR: tl.tensor, FIRST_EDGE: tl.tensor, graphs: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """The number of pairs in the molecules before each."""
    before = tl.full((), 0, tl.int64)
    for k in range(0, graphs, BLOCK):
        g = k + tl.arange(0, BLOCK)
        there = g < graphs
        count = tl.load(PTR + g + 1, mask=there, other=0) - tl.load(PTR + g, mask=there, other=0)
        own = count * (count - 1)
        tl.store(FIRST_EDGE + g, before + tl.associative_scan(own, 0, _add) - own, mask=there)
        before += tl.reduce(own, 0, _add)


@triton.jit
def edges_of_atom(
    POS: tl.tensor,
    first: tl.tensor,
    edge: tl.tensor,
    count: tl.tensor,
    i: tl.tensor,
    ROW: tl.tensor,
    J: tl.tensor,
    I: tl.tensor,  # noqa: E741
    REVERSE: tl.tensor,
    R: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Atom i of a molecule and its edges, one to every other atom.

    Args:
        POS: positions of the molecule's atoms.
        first: number of its first atom.
        edge: number of its first edge.
        count: its atoms.
        i: place of the atom in the molecule.
        ROW: first edge of each atom.
        J: sending atom of each edge.
        I: receiving atom of each edge.
        REVERSE: each edge's number in the opposite direction.
        R: distances, whose dtype is computed in.
        BLOCK: atoms that are read at a time.
    """
    a = tl.load(POS + i * 3).to(R.dtype.element_ty)
    b = tl.load(POS + i * 3 + 1).to(R.dtype.element_ty)
    c = tl.load(POS + i * 3 + 2).to(R.dtype.element_ty)
    row = edge + i * (count - 1)
    tl.store(ROW + first + i, row)
    for k in range(0, count.to(tl.int32), BLOCK):
        x = k + tl.arange(0, BLOCK)
        other = (x < count) & (x != i)
        da = tl.load(POS + x * 3, mask=other, other=0).to(R.dtype.element_ty) - a
        db = tl.load(POS + x * 3 + 1, mask=other, other=0).to(R.dtype.element_ty) - b
        dc = tl.load(POS + x * 3 + 2, mask=other, other=0).to(R.dtype.element_ty) - c
        place = row + x - (x > i).to(tl.int64)
        tl.store(J + place, first + x, mask=other)
        tl.store(I + place, tl.full((BLOCK,), 0, tl.int64) + first + i, mask=other)
        # Atom i stands in the row of x at its own place among the partners of x.
        tl.store(REVERSE + place, edge + x * (count - 1) + i - (x < i).to(tl.int64), mask=other)
        tl.store(R + place, tl.sqrt(da * da + db * db + dc * dc), mask=other)


@kernel
def _molecule_edges(
    POS: tl.tensor,
    PTR: tl.tensor,
    FIRST_EDGE: tl.tensor,
    ROW: tl.tensor,
    J: tl.tensor,
    I: tl.tensor,  # noqa: E741
    REVERSE: tl.tensor,
    R: tl.tensor,
    edges: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One atom of one molecule, with its edges."""
    g = tl.program_id(0)
    i = tl.program_id(1)
    first = tl.load(PTR + g)
    count = tl.load(PTR + g + 1) - first
    edge = tl.load(FIRST_EDGE + g)
    if i < count:
        own = POS + first * 3
        edges_of_atom(own, first, edge, count, i, ROW, J, I, REVERSE, R, BLOCK)
    if (i == 0) & (g == tl.num_programs(0) - 1):
        tl.store(ROW + first + count, tl.full((), 0, tl.int64) + edges)


@triton.jit
def sums_of_orders(TERMS, first, last, ORDERS: tl.constexpr, ATOMS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of atoms ``first`` to ``last`` - 1: sums of E_i^0 and of the other E_i^n, and R (Eq. 18)."""
    x = tl.arange(0, ATOMS)
    zeroth = tl.full((ATOMS,), 0, tl.float64)
    others = tl.full((ATOMS,), 0, tl.float64)
    ratios = tl.full((ATOMS,), 0, tl.float64)
    for k in range(first, last, ATOMS):
        live = k + x < last
        lower = tl.load(TERMS + (k + x) * (ORDERS + 1), mask=live, other=0)
        zeroth += lower
        for n in tl.static_range(1, ORDERS + 1):
            upper = tl.load(TERMS + (k + x) * (ORDERS + 1) + n, mask=live, other=0)
            others += upper
            total = upper * upper + lower * lower
            ratios += upper * upper / tl.where(total > 0, total, 1.0)
            lower = upper
    return tl.reduce(zeroth, 0, _add), tl.reduce(others, 0, _add), tl.reduce(ratios, 0, _add)


@kernel
def _molecule_sums(
    TERMS: tl.tensor,
    BATCH: tl.tensor,
    ENERGY: tl.tensor,
    R: tl.tensor,
    atoms: tl.tensor,
    steps: tl.tensor,
    ORDERS: tl.constexpr,
    ATOMS: tl.constexpr,
) -> None:
    """Energy and R of one molecule."""
    g = tl.program_id(0).to(tl.int64)
    first, last = _begin(BATCH, g, atoms, steps), _begin(BATCH, g + 1, atoms, steps)
    zeroth, others, ratios = sums_of_orders(TERMS, first, last, ORDERS, ATOMS)
    tl.store(ENERGY + g, zeroth + others)
    tl.store(R + g, ratios)


def sizes(batch: Tensor, num_graphs: int) -> tuple[Tensor, int, int]:
    """Where molecules begin; the host waits for the two numbers.

    Args:
        batch: molecule of each atom, sorted, int64, ``[N]``.
        num_graphs: G.

    Returns:
        First atom of each molecule and, last, N, ``[G + 1]``; atoms of the largest molecule; sum of
        n (n - 1).
    """
    batch = batch.long().contiguous()
    ptr = batch.new_empty(num_graphs + 1)
    found, atoms = batch.new_empty(2), batch.numel()
    with torch.cuda.device_of(batch):
        _sizes[(1,)](batch, ptr, found, atoms, num_graphs, atoms.bit_length(), MOLECULES)
    largest, edges = found.tolist()
    return ptr, largest, edges


def molecule_edges(
    pos: Tensor, ptr: Tensor, max_atoms: int, num_edges: int
) -> tuple[Pattern, Tensor]:
    """All pairs inside each molecule, as :func:`hipnn_pyg.graph.pairs.molecule_edges`.

    Args:
        pos: positions in Å, ``[N, 3]``.
        ptr: first atom of each molecule and, last, N, ``[G + 1]``.
        max_atoms: of the largest molecule.
        num_edges: sum of n (n - 1).

    Returns:
        The edges, and their distances ``[E]``, of which nothing knows the derivatives.
    """
    pos, ptr, graphs = pos.detach().contiguous(), ptr.contiguous(), ptr.numel() - 1
    j, i, reverse = ptr.new_empty(3, num_edges)
    row, first_edge = ptr.new_zeros(pos.size(0) + 1), ptr.new_empty(graphs)
    r = pos.new_empty(num_edges)
    if pos.size(0):
        block = max(16, min(64, triton.next_power_of_2(max_atoms)))
        with torch.cuda.device_of(pos):
            _first_edges[(1,)](ptr, first_edge, graphs, MOLECULES)
            _molecule_edges[(graphs, max_atoms)](
                *(pos, ptr, first_edge, row, j, i, reverse, r, num_edges, block), num_warps=1
            )
    return Pattern(j, i, row, reverse, row), r


def molecule_sums(terms: Tensor, batch: Tensor, num_graphs: int) -> tuple[Tensor, Tensor]:
    """Total energies and R (Eq. 18).

    Args:
        terms: E_i^n, float64, ``[N, orders + 1]``.
        batch: molecule of each atom, sorted, int64, ``[N]``.
        num_graphs: G.

    Returns:
        Both float64, ``[G]``.
    """
    terms, batch = terms.contiguous(), batch.contiguous()
    energy, r = terms.new_empty(2, num_graphs)
    atoms, orders = terms.size(0), terms.size(1) - 1
    with torch.cuda.device_of(terms):
        _molecule_sums[(num_graphs,)](
            *(terms, batch, energy, r, atoms, atoms.bit_length(), orders, ATOMS), num_warps=1
        )
    return energy, r
