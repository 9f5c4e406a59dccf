"""On-site and interaction layers, residual transform and environment sum, Eqs. 5-9."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import reference
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from hipnn_pyg.graph import Pairs, edge_pairs, pad_pairs, radius_graph
from hipnn_pyg.nn import EnvironmentSum, Interaction, OnSite, Residual, Sensitivity

CUTOFF = 3.0
SIZES = [(4, 5), (5, 5), (5, 3)]  # M~ learned, the identity, learned


def randomised(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Biases too: 0 would hide their place."""
    torch.manual_seed(3)
    layer = layer.to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-1, 1)
            if name.endswith(("mu", "sigma")):
                parameter.mul_(torch.empty_like(parameter).uniform_(0.8, 1.2))
    return layer


def interaction(num_in: int, num_out: int, dtype: torch.dtype = torch.float64) -> Interaction:
    return randomised(Interaction(num_in, num_out, Sensitivity(4, 0.9, 4.0, CUTOFF)), dtype)


@pytest.fixture
def structure(molecules: Batch) -> tuple[Tensor, Tensor]:
    """(pos, batch) of water and ethanol, 12 atoms."""
    return molecules.pos[9:], molecules.batch[9:] - 2


@pytest.fixture(params=["edges", "padded"])
def pairs(request: pytest.FixtureRequest, structure: tuple[Tensor, Tensor]) -> Pairs:
    pos, batch = structure
    edges = edge_pairs(pos, radius_graph(pos, CUTOFF, batch))
    return edges if request.param == "edges" else pad_pairs(edges, len(pos))


@pytest.fixture
def near(structure: tuple[Tensor, Tensor]) -> reference.Neighbours:
    return reference.neighbours(structure[0].numpy(), structure[1].tolist(), CUTOFF)


def features(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(12, size, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("sizes", SIZES)
def test_onsite_equals_the_paper(
    sizes: tuple[int, int], dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    layer, z = randomised(OnSite(*sizes), dtype), features(sizes[0], dtype)
    expected = reference.onsite(reference.array(z), reference.layer_arrays(layer))
    actual = layer(z)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype), **tolerance)


@pytest.mark.parametrize("sizes", SIZES)
def test_interaction_equals_the_paper(
    sizes: tuple[int, int],
    pairs: Pairs,
    near: reference.Neighbours,
    dtype: torch.dtype,
    tolerance: dict[str, float],
) -> None:
    layer, z = interaction(*sizes, dtype), features(sizes[0], dtype)
    p = reference.layer_arrays(layer)
    expected = reference.interaction(reference.array(z), near, p, CUTOFF)
    actual = layer(z, pairs._replace(r=pairs.r.to(dtype)))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype), **tolerance)
    p["V"] = p["V"][:, :, ::-1]  # control: the reference sees a wrong index of V
    wrong = torch.tensor(reference.interaction(reference.array(z), near, p, CUTOFF), dtype=dtype)
    assert not torch.allclose(actual, wrong, rtol=1e-3, atol=1e-3)


def test_environment_sum_equals_the_paper(
    structure: tuple[Tensor, Tensor], near: reference.Neighbours
) -> None:
    pos, batch = structure
    z = features(3)
    edges = edge_pairs(pos, radius_graph(pos, CUTOFF, batch))
    s = torch.rand(edges.j.numel(), 4, dtype=torch.float64, generator=torch.Generator())
    of_atom = [s[edges.i == i].numpy() for i in range(len(pos))]
    of_atom = [[row[k] for k in range(len(row))] for row in of_atom]
    expected = torch.tensor(reference.environment_sum(of_atom, z.numpy(), near))
    torch.testing.assert_close(EnvironmentSum()(s, z, edges), expected)
    torch.testing.assert_close(EnvironmentSum()(*padded(s, z, edges)), expected)


def padded(s: Tensor, z: Tensor, edges: Pairs) -> tuple[Tensor, Tensor, Pairs]:
    """The same sum in the other layout, built by a loop of its own."""
    rows = [(edges.i == i).nonzero().flatten() for i in range(len(z))]
    width = max(map(len, rows))
    table = s.new_zeros(len(z), width, s.size(1))
    j = torch.zeros(len(z), width, dtype=torch.long)
    for i, row in enumerate(rows):
        table[i, : len(row)], j[i, : len(row)] = s[row], edges.j[row]
    return table, z, Pairs(j, None, torch.full(j.shape, torch.nan))


def test_environment_sum_has_no_parameters() -> None:
    assert not list(EnvironmentSum().parameters()) and not EnvironmentSum().state_dict()
    assert interaction(4, 5).state_dict()  # control


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_environment_sum_derivatives(pairs: Pairs, check: Callable) -> None:
    s = torch.rand(*pairs.r.shape, 2, dtype=torch.float64, requires_grad=True)
    z = features(2).requires_grad_()
    assert check(lambda s, z: EnvironmentSum()(s, z, pairs), (s, z), fast_mode=True)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_interaction_derivatives(
    structure: tuple[Tensor, Tensor], pairs: Pairs, check: Callable
) -> None:
    """In positions and in every parameter, through both layouts."""
    layer, z = interaction(2, 3), features(2).requires_grad_()
    pos, batch = structure
    pos = pos.clone().requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(z: Tensor, pos: Tensor, *values: Tensor) -> Tensor:
        current = edge_pairs(pos, radius_graph(pos, CUTOFF, batch))
        current = pad_pairs(current, len(pos)) if pairs.i is None else current
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, state, (z, current))

    assert check(function, (z, pos, *values), fast_mode=True)


def test_self_term_and_neighbours_are_separate(pairs: Pairs) -> None:
    """With V = 0 only an atom's own features count; with V they do not suffice."""
    layer, z = interaction(3, 3), features(3)
    other = z.clone()
    other[5] += 1.0
    with_neighbours = (layer(other, pairs) - layer(z, pairs)).abs().sum(1) > 1e-9
    with torch.no_grad():
        layer.V.zero_()
    alone = (layer(other, pairs) - layer(z, pairs)).abs().sum(1) > 1e-9
    assert alone.nonzero().flatten().tolist() == [5]
    assert int(with_neighbours.sum()) > 1


def test_residual_identity_exactly_where_sizes_agree() -> None:
    assert Residual(5, 5).M is None
    assert Residual(4, 5).M.weight.shape == (5, 4) and Residual(4, 5).M.bias is None
    layer, z = Residual(5, 5), features(5, torch.float32)
    with torch.no_grad():
        layer.W.weight.zero_()
    assert torch.equal(layer(torch.randn(12, 5), z), z)


def test_each_layer_owns_its_sensitivities() -> None:
    first, second = interaction(2, 3), interaction(3, 3)
    assert torch.equal(first.sensitivity.mu, second.sensitivity.mu)
    with torch.no_grad():
        first.sensitivity.mu.add_(1.0)
    assert not torch.equal(first.sensitivity.mu, second.sensitivity.mu)
