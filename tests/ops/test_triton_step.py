"""The step's Triton kernels equal what PyTorch does; off a GPU, Triton's interpreter runs them."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from hipnn_pyg.graph.static import static_edges
from hipnn_pyg.nn import nonhierarchicality
from hipnn_pyg.train.loss import mean_and_root

COUNTS = (3, 1, 5, 2, 4, 1)
ORDER = ((4, 0, 2), (1, 5, 3), (2, -1, -1))
"""Mini-batches of three molecules; the last one has one."""


def molecules(device: torch.device) -> tuple[Tensor, ...]:
    """z, pos, counts, first atoms, energies."""
    generator = torch.Generator().manual_seed(2)
    counts = torch.tensor(COUNTS)
    z = torch.randint(1, 9, (sum(COUNTS),), generator=generator)
    pos = 3 * torch.rand(sum(COUNTS), 3, generator=generator)
    energies = torch.randn(len(COUNTS), generator=generator, dtype=torch.float64)
    return tuple(x.to(device) for x in (z, pos, counts, counts.cumsum(0) - counts, energies))


@pytest.mark.parametrize("step", range(3))
def test_draw(
    step: int, step_kernels: ModuleType, device: torch.device, dtype: torch.dtype
) -> None:
    """The molecules one after the other, and the pairs of the readable construction."""
    z, pos, _, start, energies = data = molecules(device)
    order = torch.tensor(ORDER, device=device).flatten()
    place = torch.tensor([step], device=device)
    atoms, edges = 16, 48
    loose = (z, pos.mT.contiguous().mT, *data[2:])  # in memory x of all atoms, then y, z
    drawn = step_kernels.draw(order, place, loose, 3, max(COUNTS), atoms, edges, dtype)

    mine = [molecule for molecule in ORDER[step] if molecule >= 0]
    index = torch.cat([torch.arange(COUNTS[m], device=device) + start[m] for m in mine])
    real = index.numel()
    sizes = [COUNTS[m] for m in mine] + [0] * (3 - len(mine))
    ptr = torch.tensor([0, *sizes]).cumsum(0).tolist()
    assert drawn.ptr.tolist() == [*ptr, real]
    assert drawn.batch.tolist() == [g for g, n in enumerate(sizes) for _ in range(n)] + [3] * (
        atoms - real
    )
    assert torch.equal(drawn.z[:real], z[index])
    assert torch.equal(drawn.pos[:real], pos[index].to(dtype)) and drawn.pos.dtype == dtype
    assert bool((drawn.z[real:] == z[start[mine[0]]]).all())
    padded = [float(energies[m]) for m in mine] + [0.0] * (3 - len(mine))
    assert drawn.target.tolist() == padded

    pairs = static_edges(drawn.pos, drawn.batch, drawn.ptr, edges)
    used = sum(n * (n - 1) for n in sizes)
    assert pairs.i is not None and pairs.pattern is not None
    assert torch.equal(drawn.pattern.j[:used], pairs.j[:used])
    assert torch.equal(drawn.pattern.i[:used], pairs.i[:used])
    assert torch.equal(drawn.pattern.order[:used], pairs.pattern.order[:used])
    torch.testing.assert_close(drawn.r[:used], pairs.r[:used])
    assert torch.equal(drawn.pattern.row[:real], pairs.pattern.row[:real])
    assert drawn.pattern.row[real:].tolist() == [used] * (atoms - real + 1)
    assert bool(torch.isinf(drawn.r[used:]).all())
    assert drawn.pattern.j[used:].tolist() == [atoms - 1] * (edges - used)
    assert drawn.pattern.order[used:].tolist() == list(range(used, edges))


def test_a_large_epoch(step_kernels: ModuleType, device: torch.device) -> None:
    """More molecules than a warp has threads, and more padding than one round fills."""
    counts = torch.ones(40, dtype=torch.long, device=device)
    pos = torch.rand(40, 3, device=device)
    data = (counts, pos, counts, torch.arange(40, device=device), torch.arange(40.0).double())
    data = tuple(x.to(device) for x in data)  # type: ignore[assignment]
    order = torch.arange(40, device=device)
    drawn = step_kernels.draw(order, order[:1], data, 40, 2, 60, 30, torch.float32)
    assert drawn.batch.tolist() == [*range(40), *[40] * 20]
    assert drawn.target.tolist() == list(range(40)) and not bool(drawn.pattern.row.any())


def terms_of(device: torch.device, atoms: int, orders: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    scale = 10.0 ** -torch.arange(orders + 1.0, dtype=torch.float64)
    terms = torch.randn(atoms, orders + 1, generator=generator, dtype=torch.float64) * scale
    terms[0] = 0.0  # neither energies nor slopes
    return terms.to(device)


@pytest.mark.parametrize("orders", [1, 2, 3])
@pytest.mark.parametrize("lambda_r", [0.0, 0.3])
def test_loss(orders: int, lambda_r: float, step_kernels: ModuleType, device: torch.device) -> None:
    """Eqs. 12-18 and their slopes by autograd; molecule 2 has no atoms, three atoms are padding."""
    batch = torch.tensor([0] * 3 + [1] * 40 + [3] * 2 + [4] * 3, device=device)
    ptr = torch.tensor([0, 3, 43, 43, 45, 45], device=device)
    terms = terms_of(device, batch.numel(), orders)
    target = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64, device=device)
    sigma_e = torch.tensor(2.5, dtype=torch.float64, device=device)
    vector = torch.linspace(-1, 1, 5000, device=device)
    mask = (torch.arange(5000, device=device) % 3 == 0).to(vector)
    found, slopes = step_kernels.loss(
        terms, ptr, batch, target, sigma_e, vector, mask, 1e-3, lambda_r
    )

    leaf = terms.clone().requires_grad_()
    energy = leaf.new_zeros(5, orders + 1).index_add(0, batch, leaf)[[0, 1, 3]]
    error = energy.sum(1) - target[[0, 1, 3]]
    r = nonhierarchicality(leaf, batch, 5)[[0, 1, 3]].mean()
    mae, rmse = mean_and_root(error.abs().sum(), error.square().sum(), torch.tensor(3.0))
    l2 = (mask * vector).double().square().sum()
    loss = (mae + rmse) / sigma_e + 1e-3 * l2 + lambda_r * r
    expected = torch.stack((loss, mae, rmse, l2, r)).detach()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # squares in float32
    torch.testing.assert_close(found[[1, 2, 4]], expected[[1, 2, 4]], rtol=1e-12, atol=0)
    (exact,) = torch.autograd.grad(loss, leaf)
    # E^0 enters the error's two sides: its slope is R's alone.
    exact[:, 0] -= exact_of_error(leaf, batch, target, sigma_e)
    torch.testing.assert_close(slopes[:45], exact[:45], rtol=1e-12, atol=1e-15)
    assert not bool(slopes[45:].any())


def exact_of_error(terms: Tensor, batch: Tensor, target: Tensor, sigma_e: Tensor) -> Tensor:
    """d (MAE + RMSE) / sigma_E / d E of each atom's molecule."""
    leaf = terms.detach().sum(1).requires_grad_()
    error = (leaf.new_zeros(5).index_add(0, batch, leaf)[:4] - target)[[0, 1, 3]]
    mae, rmse = mean_and_root(error.abs().sum(), error.square().sum(), torch.tensor(3.0))
    (slope,) = torch.autograd.grad((mae + rmse) / sigma_e, leaf)
    return slope


def test_no_error_has_no_slope(step_kernels: ModuleType, device: torch.device) -> None:
    """The root's infinite slope at 0 is taken as 0."""
    terms = torch.tensor([[1.0, 2.0]], dtype=torch.float64, device=device)
    ptr, batch = torch.tensor([0, 1], device=device), torch.tensor([0], device=device)
    one, vector = terms.new_ones(()), torch.zeros(3, device=device)
    found, slopes = step_kernels.loss(
        terms, ptr, batch, terms.sum(1), one, vector, vector, 0.0, 0.0
    )
    assert found.tolist() == [0.0, 0.0, 0.0, 0.0, 0.8] and not bool(slopes.any())


@pytest.mark.parametrize("averaged", [True, False])
def test_descent(
    averaged: bool, step_kernels: ModuleType, device: torch.device, dtype: torch.dtype
) -> None:
    """Five steps of torch.optim.Adam, rates and shares that change, and the L2 term's gradient."""
    generator = torch.Generator().manual_seed(4)
    size, lambda_l2 = 1500, 0.01
    start = torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)
    mask = (torch.arange(size, device=device) % 2).to(dtype)
    rates = torch.linspace(1e-2, 1e-3, 5, dtype=dtype, device=device)
    shares = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.1], dtype=dtype, device=device)
    leaf = nn.Parameter(start.clone())
    adam = torch.optim.Adam([leaf], betas=(0.8, 0.99), eps=1e-6)
    average = torch.zeros_like(start)

    vector, mine = start.clone(), torch.zeros_like(start)
    moments = (torch.zeros_like(start), torch.zeros_like(start), torch.zeros((), device=device))
    step = torch.zeros(1, dtype=torch.long, device=device)
    found = torch.zeros(5, dtype=torch.float64, device=device)
    totals, bad = torch.zeros(3, dtype=torch.float64, device=device), torch.tensor(-1).to(device)
    for number in range(5):
        gradient = torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)
        leaf.grad = gradient + 2 * lambda_l2 * mask * leaf.detach()
        adam.param_groups[0]["lr"] = float(rates[number])
        adam.step()
        average.lerp_(leaf.detach(), float(shares[number]))
        step_kernels.descend(
            *(vector, gradient, mask, moments, mine if averaged else None, rates, shares, step),
            *(lambda_l2, {"betas": (0.8, 0.99), "eps": 1e-6}),
        )
        step_kernels.count(found, totals, bad, step, moments[2])
    tolerance = dict(rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-6)
    torch.testing.assert_close(vector, leaf.detach(), **tolerance)
    expected = average if averaged else torch.zeros_like(average)
    torch.testing.assert_close(mine, expected, **tolerance)
    assert int(step) == 5 and float(moments[2]) == 5.0


def test_count(step_kernels: ModuleType, device: torch.device) -> None:
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    bad = torch.tensor(-1, device=device)
    step = torch.tensor([10], device=device)
    done = torch.tensor(3.0, device=device)
    for loss in (1.0, math.nan, math.inf):
        found = torch.tensor([loss, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64, device=device)
        step_kernels.count(found, totals, bad, step, done)
    assert int(step) == 13 and float(done) == 6.0
    assert int(bad) == 11  # the first of two
    assert totals[1:].tolist() == [6.0, 15.0] and not math.isfinite(float(totals[0]))
