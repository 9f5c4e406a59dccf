r"""What surrounds the network in a training step, as Triton kernels: draw, loss, Adam.

On a GPU small mini-batches cost what the launches of their kernels cost, so that each of these does
in one or a few launches what would be dozens of PyTorch's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.standard import _sum_combine as _add

from hipnn_pyg.ops.pattern import Pattern
from hipnn_pyg.ops.triton_molecules import ATOMS, edges_of_atom, sums_of_orders
from hipnn_pyg.ops.triton_tiles import kernel

# -- drawing a mini-batch --------------------------------------------------------------------------


class Drawn(NamedTuple):
    """A mini-batch of fixed shape. A atoms, E edges, G molecules.

    Of K models one after the other: K A atoms, K E edges, ``ptr [K, G + 2]``, ``target [K, G]``,
    and ``pattern.row [K (A + 1)]``, in which the end of a model's last row has its own place.

    Attributes:
        z: atomic numbers, ``[A]``.
        pos: positions in Å, ``[A, 3]``.
        batch: molecule of each atom, G for padding, ``[A]``.
        ptr: first atom of each molecule, the number of atoms, and that again, ``[G + 2]``.
        target: energies, 0 where there is no molecule, float64, ``[G]``.
        pattern: the edges; padding atoms have none, and what is left over joins the last one to
            itself, in nobody's row.
        r: distances in Å, inf where an edge is left over, ``[E]``.
    """

    z: Tensor
    pos: Tensor
    batch: Tensor
    ptr: Tensor
    target: Tensor
    pattern: Pattern
    r: Tensor


@triton.jit
def _choose(
    ORDER: tl.tensor,
    STEP: tl.tensor,
    COUNTS: tl.tensor,
    TARGETS: tl.tensor,
    PTR: tl.tensor,
    EDGES: tl.tensor,
    TARGET: tl.tensor,
    atoms: tl.tensor,
    edges: tl.tensor,
    steps: tl.tensor,
    G: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Where the molecules of a model's mini-batch begin, and their edges; their energies."""
    model = tl.program_id(0).to(tl.int64)
    ORDER += (model * steps + tl.load(STEP)) * G
    PTR += model * (G + 2)
    EDGES += model * (G + 1)
    g = tl.arange(0, BLOCK)
    molecule = tl.load(ORDER + g, mask=g < G, other=-1)
    there = molecule >= 0
    count = tl.load(COUNTS + molecule, mask=there, other=0)
    atom = tl.full((BLOCK,), 0, tl.int64) + model * atoms
    edge = tl.full((BLOCK,), 0, tl.int64) + model * edges
    last = atom + tl.associative_scan(count, 0, _add)
    tl.store(PTR + 1 + g, last, mask=g < G)
    tl.store(EDGES + 1 + g, edge + tl.associative_scan(count * (count - 1), 0, _add), mask=g < G)
    energy = tl.load(TARGETS + molecule, mask=there, other=0.0)
    tl.store(TARGET + model * G + g, energy, mask=g < G)
    tl.store(PTR + g, atom, mask=g == 0)
    tl.store(EDGES + g, edge, mask=g == 0)
    tl.store(PTR + 2 + g, last, mask=g == G - 1)


@triton.jit
def _pad(
    number: tl.tensor,
    first: tl.tensor,
    edge: tl.tensor,
    i: tl.tensor,
    Z: tl.tensor,
    POS: tl.tensor,
    BATCH: tl.tensor,
    ROW: tl.tensor,
    J: tl.tensor,
    I: tl.tensor,  # noqa: E741
    REVERSE: tl.tensor,
    R: tl.tensor,
    atoms: tl.tensor,
    edges: tl.tensor,
    G: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The atoms and edges that a model has room for behind its molecules: program i of BLOCK."""
    x = tl.arange(0, BLOCK)
    for k in range(first + i * BLOCK, atoms, BLOCK * BLOCK):
        atom = k + x
        there = atom < atoms
        tl.store(Z + atom, tl.full((BLOCK,), 0, Z.dtype.element_ty) + number, mask=there)
        for c in tl.static_range(3):
            nowhere = tl.full((BLOCK,), 0, POS.dtype.element_ty)
            tl.store(POS + atom * 3 + c, nowhere, mask=there)
        tl.store(BATCH + atom, tl.full((BLOCK,), G, tl.int64), mask=there)
        tl.store(ROW + atom, tl.full((BLOCK,), 0, tl.int64) + edge, mask=there)
    if i == 0:
        tl.store(ROW + atoms, edge)
    for k in range(edge + i * BLOCK, edges, BLOCK * BLOCK):
        place = k + x
        there = place < edges
        last = tl.full((BLOCK,), 0, tl.int64) + atoms - 1
        tl.store(J + place, last, mask=there)
        tl.store(I + place, last, mask=there)
        tl.store(REVERSE + place, place, mask=there)
        tl.store(R + place, tl.full((BLOCK,), float("inf"), R.dtype.element_ty), mask=there)


@triton.jit
def _fill(
    ORDER: tl.tensor,
    STEP: tl.tensor,
    START: tl.tensor,
    Z_ALL: tl.tensor,
    POS_ALL: tl.tensor,
    PTR: tl.tensor,
    FIRST_EDGE: tl.tensor,
    Z: tl.tensor,
    POS: tl.tensor,
    BATCH: tl.tensor,
    ROW: tl.tensor,
    J: tl.tensor,
    I: tl.tensor,  # noqa: E741
    REVERSE: tl.tensor,
    R: tl.tensor,
    atoms: tl.tensor,
    edges: tl.tensor,
    steps: tl.tensor,
    G: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One atom of one molecule and its edges; a model's last molecule is its padding."""
    g = tl.program_id(0)
    i = tl.program_id(1)
    model = tl.program_id(2).to(tl.int64)
    ORDER += (model * steps + tl.load(STEP)) * G
    PTR += model * (G + 2)
    FIRST_EDGE += model * (G + 1)
    ROW += model  # behind the ends of the rows of those before
    atoms *= model + 1
    edges *= model + 1
    ptr = tl.load(PTR + g)
    edge = tl.load(FIRST_EDGE + g)
    if g < G:
        count = tl.load(PTR + g + 1) - ptr
        if i < count:
            source = tl.load(START + tl.load(ORDER + g))
            atom = ptr + i
            tl.store(Z + atom, tl.load(Z_ALL + source + i))
            tl.store(BATCH + atom, g.to(tl.int64))
            for c in tl.static_range(3):
                own = tl.load(POS_ALL + (source + i) * 3 + c).to(POS.dtype.element_ty)
                tl.store(POS + atom * 3 + c, own)
            mine = POS_ALL + source * 3
            edges_of_atom(mine, ptr, edge, count, i, ROW, J, I, REVERSE, R, BLOCK)
    else:
        number = tl.load(Z_ALL + tl.load(START + tl.load(ORDER)))  # of a species that is known
        _pad(number, ptr, edge, i, Z, POS, BATCH, ROW, J, I, REVERSE, R, atoms, edges, G, BLOCK)


def draw(
    order: Tensor,
    step: Tensor,
    molecules: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    batch_size: int,
    max_atoms: int,
    atoms: int,
    edges: int,
    dtype: torch.dtype,
) -> Drawn:
    """A mini-batch and all its pairs; nothing that the host would have to wait for.

    Args:
        order: molecules of the mini-batches, one after the other, -1 for none, ``[steps * G]``, or
            ``[K, steps * G]`` of K models.
        step: number of the mini-batch, ``[1]``.
        molecules: z ``[M]``, pos ``[M, 3]``, and of each molecule number of atoms, first atom,
            energy (float64).
        batch_size: G.
        max_atoms: of the largest molecule.
        atoms: A, more than the mini-batch has.
        edges: E, at least as many as it has.
        dtype: of positions and distances.
    """
    z_all, pos_all, counts, start, energies = (x.contiguous() for x in molecules)
    lead, steps = order.shape[:-1], order.size(-1) // batch_size
    models = math.prod(lead)
    all_atoms, all_edges = models * atoms, models * edges
    parts = (all_edges, all_edges, all_edges, all_atoms, all_atoms + models)
    index = torch.empty(sum(parts), dtype=torch.long, device=order.device)
    j, i, reverse, batch, row = index.split(parts)
    real = torch.empty(all_edges + 3 * all_atoms, dtype=dtype, device=order.device)
    r, pos = real[:all_edges], real[all_edges:].view(all_atoms, 3)
    ptr, first_edge = (index.new_empty(*lead, batch_size + more) for more in (2, 1))
    target = torch.empty(*lead, batch_size, dtype=torch.float64, device=order.device)
    z = z_all.new_empty(all_atoms)
    block = triton.next_power_of_2(max_atoms)
    with torch.cuda.device_of(order):
        _choose[(models,)](
            *(order, step, counts, energies, ptr, first_edge, target, atoms, edges, steps),
            *(batch_size, triton.next_power_of_2(batch_size)),
            num_warps=4,
        )
        _fill[(batch_size + 1, block, models)](
            *(order, step, start, z_all, pos_all, ptr, first_edge, z, pos, batch, row),
            *(j, i, reverse, r, atoms, edges, steps, batch_size, block),
            num_warps=1,
        )
    return Drawn(z, pos, batch, ptr, target, Pattern(j, i, row, reverse, row), r)


# -- loss ------------------------------------------------------------------------------------------


@triton.jit
def _errors(
    TERMS: tl.tensor,
    PTR: tl.tensor,
    TARGET: tl.tensor,
    ERROR: tl.tensor,
    R: tl.tensor,
    ptr_stride: tl.tensor,
    ORDERS: tl.constexpr,
    ATOMS: tl.constexpr,
) -> None:
    """Of one molecule: (E - E^0) - (target - E^0), and R (Eq. 18)."""
    model = tl.program_id(1)
    g = model * tl.num_programs(0) + tl.program_id(0)
    PTR += model * ptr_stride
    first, last = tl.load(PTR + tl.program_id(0)), tl.load(PTR + tl.program_id(0) + 1)
    zeroth, others, ratios = sums_of_orders(TERMS, first, last, ORDERS, ATOMS)
    tl.store(ERROR + g, others - (tl.load(TARGET + g) - zeroth))
    tl.store(R + g, ratios)


@triton.jit
def _square_sums(
    VECTOR: tl.tensor, MASK: tl.tensor, SUMS: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Sum of squares where the mask is 1, a part for each program."""
    model = tl.program_id(1).to(tl.int64)
    VECTOR += model * size
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(VECTOR + x, mask=x < size, other=0) * tl.load(MASK + x, mask=x < size, other=0)
    to = SUMS + model * tl.num_programs(0) + tl.program_id(0)
    tl.store(to, tl.reduce(v * v, 0, _add).to(tl.float64))


@triton.jit
def _loss(
    ERROR: tl.tensor,
    R: tl.tensor,
    PTR: tl.tensor,
    SQUARES: tl.tensor,
    SIGMA_E: tl.tensor,
    FOUND: tl.tensor,
    SLOPES: tl.tensor,
    parts: tl.tensor,
    ptr_stride: tl.tensor,
    LAMBDA_L2: tl.constexpr,
    LAMBDA_R: tl.constexpr,
    G: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Eqs. 12-18 from the molecules' errors, and the loss's slopes in abs(e), e^2 and R."""
    model = tl.program_id(0)
    ERROR += model * G
    R += model * G
    PTR += model * ptr_stride
    SQUARES += model * parts
    FOUND += model * 5
    SLOPES += model * 3
    x = tl.arange(0, BLOCK)
    absolute = tl.full((BLOCK,), 0, tl.float64)
    square = tl.full((BLOCK,), 0, tl.float64)
    ratio = tl.full((BLOCK,), 0, tl.float64)
    number = tl.full((BLOCK,), 0, tl.float64)
    l2 = tl.full((BLOCK,), 0, tl.float64)
    for k in range(0, G, BLOCK):
        there = k + x < G
        ends = tl.load(PTR + k + x + 1, mask=there, other=0)
        there = ends > tl.load(PTR + k + x, mask=there, other=0)
        error = tl.load(ERROR + k + x, mask=there, other=0)
        absolute += tl.abs(error)
        square += error * error
        ratio += tl.load(R + k + x, mask=there, other=0)
        number += there.to(tl.float64)
    for k in range(0, parts, BLOCK):
        l2 += tl.load(SQUARES + k + x, mask=k + x < parts, other=0)
    count = tl.reduce(number, 0, _add)
    mae = tl.reduce(absolute, 0, _add) / count
    rmse = tl.sqrt(tl.reduce(square, 0, _add) / count)
    r = tl.reduce(ratio, 0, _add) / count
    penalty = tl.reduce(l2, 0, _add)
    scale = tl.load(SIGMA_E + model)
    loss = (mae + rmse) / scale + penalty * LAMBDA_L2 + r * LAMBDA_R
    tl.store(FOUND, loss)
    tl.store(FOUND + 1, mae)
    tl.store(FOUND + 2, rmse)
    tl.store(FOUND + 3, penalty)
    tl.store(FOUND + 4, r)
    tl.store(SLOPES, 1.0 / (count * scale))
    # The root's slope at 0 is infinite; it is taken as 0.
    root = tl.where(rmse > 0, rmse, 1.0)
    tl.store(SLOPES + 1, tl.where(rmse > 0, 0.5 / (root * count * scale), 0.0))
    tl.store(SLOPES + 2, tl.full((), LAMBDA_R, tl.float64) / count)


@kernel
def _term_slopes(
    TERMS: tl.tensor,
    BATCH: tl.tensor,
    ERROR: tl.tensor,
    SLOPES: tl.tensor,
    DTERMS: tl.tensor,
    atoms: tl.tensor,
    each: tl.tensor,
    G: tl.constexpr,
    ORDERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The loss's slopes in E_i^n: 0 for padding."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    molecule = tl.load(BATCH + i, mask=i < atoms, other=G)
    live = molecule < G
    model = i // each
    error = tl.load(ERROR + model * G + molecule, mask=live, other=0)
    slope = SLOPES + model * 3
    of_absolute = tl.load(slope, mask=live, other=0)
    of_square = tl.load(slope + 1, mask=live, other=0)
    of_r = tl.load(slope + 2, mask=live, other=0)
    sign = (error > 0).to(tl.float64) - (error < 0).to(tl.float64)
    of_error = of_absolute * sign + 2.0 * of_square * error
    lower = tl.load(TERMS + i * (ORDERS + 1), mask=live, other=0)
    below = tl.full((BLOCK,), 0, tl.float64)  # E^0 enters the error on both sides
    for n in tl.static_range(1, ORDERS + 1):
        upper = tl.load(TERMS + i * (ORDERS + 1) + n, mask=live, other=0)
        total = upper * upper + lower * lower
        total = tl.where(total > 0, total, 1.0)
        common = 2.0 * of_r * upper * lower / (total * total)
        tl.store(DTERMS + (n - 1) * atoms + i, below - common * upper, mask=i < atoms)
        below = tl.where(live, of_error, 0.0) + common * lower
        lower = upper
    tl.store(DTERMS + ORDERS * atoms + i, below, mask=i < atoms)


def loss(
    terms: Tensor,
    ptr: Tensor,
    batch: Tensor,
    target: Tensor,
    sigma_e: Tensor,
    vector: Tensor,
    penalised: Tensor,
    lambda_l2: float,
    lambda_r: float,
) -> tuple[Tensor, Tensor]:
    """The loss (Eqs. 12-18) and its slopes in the terms.

    Of K models with N/K of the atoms each, one after the other, what follows but N and the mask has
    a leading dimension K.

    Args:
        terms: E_i^n, float64, ``[N, orders + 1]``.
        ptr: first atom of each molecule and, last, the number of atoms, ``[G + 1]`` or longer.
        batch: molecule of each atom, G or more for padding, ``[N]``.
        target: energies, float64, ``[G]``; molecules without atoms do not count.
        sigma_e: float64, ``[]``.
        vector: the parameters, ``[P]``.
        penalised: 1 where they enter the L2 term, else 0, ``[P]``.
        lambda_l2: weight of the L2 term.
        lambda_r: weight of R.

    Returns:
        Loss, MAE, RMSE, L2 term and R, ``[5]``, and the slopes ``[N, orders + 1]``, float64.
    """
    terms, target, ptr = terms.contiguous(), target.contiguous(), ptr.contiguous()
    size, (atoms, orders) = target.size(-1), (terms.size(0), terms.size(1) - 1)
    block, many, models, apart = 1024, 2048, sigma_e.numel(), ptr.size(-1)
    parts = triton.cdiv(vector.size(-1), many)
    sizes = [models * n for n in (size, size, parts, 5, 3)]
    error, r, squares, found, slopes = terms.new_empty(sum(sizes)).split(sizes)
    dterms = terms.new_empty(orders + 1, atoms)
    with torch.cuda.device_of(terms):
        _errors[(size, models)](terms, ptr, target, error, r, apart, orders, ATOMS, num_warps=1)
        _square_sums[(parts, models)](
            vector, penalised, squares, vector.size(-1), many, num_warps=4
        )
        _loss[(models,)](
            *(error, r, ptr, squares, sigma_e, found, slopes, parts, apart),
            *(lambda_l2, lambda_r, size, min(block, max(32, triton.next_power_of_2(size)))),
            num_warps=4,
        )
        _term_slopes[(triton.cdiv(atoms, 128),)](
            *(terms, batch, error, slopes, dterms, atoms, atoms // models, size, orders, 128),
            num_warps=4,
        )
    return found.view(*sigma_e.shape, 5), dterms.t()


# -- descent ---------------------------------------------------------------------------------------


@triton.jit
def _descend(
    VECTOR: tl.tensor,
    GRADIENT: tl.tensor,
    MASK: tl.tensor,
    MOMENT: tl.tensor,
    SQUARE: tl.tensor,
    AVERAGE: tl.tensor,
    RATES: tl.tensor,
    SHARES: tl.tensor,
    STEP: tl.tensor,
    DONE: tl.tensor,
    size: tl.tensor,
    steps: tl.tensor,
    DECAY: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    AVERAGED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Adam (Kingma and Ba) with the L2 term's gradient, and the average of the weights."""
    model = tl.program_id(1).to(tl.int64)
    y = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = y < size
    x = model * size + y
    number = model * steps + tl.load(STEP)
    rate = tl.load(RATES + number).to(tl.float64)
    done = tl.load(DONE + model).to(tl.float64) + 1.0
    correct1 = 1.0 - tl.exp(done * LOG_BETA1)
    correct2 = 1.0 - tl.exp(done * LOG_BETA2)
    v = tl.load(VECTOR + x, mask=live, other=0)
    g = tl.load(GRADIENT + x, mask=live, other=0)
    g += v * tl.load(MASK + y, mask=live, other=0) * (2.0 * DECAY)
    m = tl.load(MOMENT + x, mask=live, other=0)
    m += (g - m) * (1.0 - BETA1)
    s = tl.load(SQUARE + x, mask=live, other=0)
    s = s * BETA2 + g * g * (1.0 - BETA2)
    step = (rate / correct1).to(v.dtype)
    root = tl.sqrt(s) / tl.sqrt(correct2).to(v.dtype)
    v -= step * m / (root + EPS)
    tl.store(VECTOR + x, v, mask=live)
    tl.store(MOMENT + x, m, mask=live)
    tl.store(SQUARE + x, s, mask=live)
    if AVERAGED:
        share = tl.load(SHARES + number)
        if share > 0:  # most steps leave the average alone
            a = tl.load(AVERAGE + x, mask=live, other=0)
            a += (v - a) * share
            tl.store(AVERAGE + x, a, mask=live)


@triton.jit
def _count(
    FOUND: tl.tensor,
    TOTALS: tl.tensor,
    FIRST_BAD: tl.tensor,
    STEP: tl.tensor,
    DONE: tl.tensor,
    models: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Sums for the log, the first step that went wrong, one more step done."""
    m = tl.arange(0, BLOCK)
    live = m < models
    number = tl.load(STEP)
    for k in tl.static_range(3):  # loss, MAE, R
        value = tl.load(FOUND + m * 5 + k + k // 2 * 2, mask=live, other=0)
        total = tl.load(TOTALS + m * 3 + k, mask=live, other=0)
        tl.store(TOTALS + m * 3 + k, total + value, mask=live)
    loss = tl.load(FOUND + m * 5, mask=live, other=0)
    bad = tl.load(FIRST_BAD + m, mask=live, other=0)
    finite = tl.abs(loss) < float("inf")
    tl.store(FIRST_BAD + m, tl.where((bad < 0) & (finite == 0), number, bad), mask=live)
    tl.store(DONE + m, tl.load(DONE + m, mask=live, other=0) + 1, mask=live)
    tl.store(STEP, number + 1)


def descend(
    vector: Tensor,
    gradient: Tensor,
    penalised: Tensor,
    moments: tuple[Tensor, Tensor, Tensor],
    average: Tensor | None,
    rates: Tensor,
    shares: Tensor,
    step: Tensor,
    lambda_l2: float,
    settings: dict[str, Any],
) -> None:
    """One step of Adam, in place; what :func:`count` counts is left as it was.

    Of K models, all but the mask, ``step`` and numbers have a leading dimension K.

    Args:
        vector: parameters, ``[P]``.
        gradient: of the loss without its L2 term, ``[P]``.
        penalised: 1 where parameters enter the L2 term, else 0, ``[P]``.
        moments: Adam's moments ``[P]`` and the number of steps done, float32, ``[]``.
        average: averaged parameters, ``[P]``, or None.
        rates: learning rates of the steps, ``[steps]``.
        shares: of the new parameters in the average after each step, ``[steps]``.
        step: number of this one, ``[1]``.
        lambda_l2: weight of the L2 term.
        settings: Adam's ``betas`` and ``eps``.
    """
    moment, square, done = moments
    (beta1, beta2), eps = settings["betas"], settings["eps"]
    with torch.cuda.device_of(vector):
        _descend[(triton.cdiv(vector.size(-1), 1024), done.numel())](
            *(vector, gradient, penalised, moment, square, vector if average is None else average),
            *(rates, shares, step, done, vector.size(-1), rates.size(-1), lambda_l2),
            *(beta1, beta2, math.log(beta1), math.log(beta2), eps, average is not None, 1024),
            num_warps=4,
        )


def count(found: Tensor, totals: Tensor, first_bad: Tensor, step: Tensor, done: Tensor) -> None:
    """Add up what the log needs, and count the step, in place.

    Of K models, all but ``step`` have a leading dimension K.

    Args:
        found: of :func:`loss`, ``[5]``.
        totals: sums of loss, MAE and R, float64, ``[3]``.
        first_bad: number of the first step whose loss was not finite, or -1, int64, ``[]``.
        step: number of the step, ``[1]``.
        done: steps that Adam has done, float32, ``[]``.
    """
    with torch.cuda.device_of(found):
        _count[(1,)](
            *(found, totals, first_bad, step, done, done.numel()),
            max(32, triton.next_power_of_2(done.numel())),
            num_warps=1,
        )
