"""Denormal numbers are flushed on every thread or on none, by every kernel that has threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops_cases import molecules
from torch import Tensor

from hipnn_pyg import HIPNN
from hipnn_pyg.models import direct
from hipnn_pyg.ops import cpu
from hipnn_pyg.ops.network import Parameters, Structures
from hipnn_pyg.ops.operands import Kept, Weights, Where

TINY, SMALL = 1e-30, 1e-10  # whose product float32 holds as a denormal number only
ATOMS, WIDTH, NU = 360, 8, 3
PATTERN = molecules(*[9] * 40)


def full(*shape: int, value: float = 1.0) -> Tensor:
    return torch.full(shape, value)


def near() -> Where:
    """All neighbours at a distance of 2 Å."""
    r, mu = full(PATTERN.j.numel(), value=2.0), full(NU, value=2.0)
    return Where(PATTERN, 5.0, r, mu, mu)


FEATURES = full(ATOMS, WIDTH, value=SMALL)
V = full(NU, WIDTH, WIDTH, value=TINY)
ALONG = full(PATTERN.j.numel())


def sent() -> Kept:
    kept = cpu.interact(near(), FEATURES, V, True)[1]
    assert kept is not None
    return kept


def interact_backward() -> Tensor:
    dz = torch.empty_like(FEATURES)
    slopes = (None, None, None, dz, None)
    cpu.interact_backward(near(), FEATURES, V, None, FEATURES, slopes)
    return dz


def interact_tangent_backward() -> Tensor:
    kept, dz = sent(), torch.empty(2, ATOMS, WIDTH)
    changed = cpu.interact_tangent(near(), ALONG, FEATURES, None, V, kept)[1]
    slopes = (torch.empty(NU), torch.empty(NU), torch.empty_like(V))
    gradients = full(2, ATOMS, WIDTH, value=SMALL)
    given = (near(), ALONG, (FEATURES, None), V, kept, changed, gradients)
    cpu.interact_tangent_backward(*given, dz, slopes)
    return dz


def flat_layer() -> Weights:
    """Of a small activation, softplus(-23), and tiny weights."""
    zeros = torch.zeros(WIDTH, WIDTH)
    tiny = full(WIDTH, WIDTH, value=TINY)
    return Weights((zeros, full(WIDTH, value=-23.0), tiny, zeros[0].clone(), None))


def passed() -> tuple[Tensor, Weights, Tensor, Tensor]:
    """Features 0, the layer, and what it keeps of them."""
    z, weights = torch.zeros(ATOMS, WIDTH), flat_layer()
    _, activations, between = cpu.dense(z, z, weights, True)
    assert activations is not None and between is not None
    return z, weights, activations, between


def dense_backward() -> Tensor:
    z, weights, activations, between = passed()
    return cpu.dense_backward(z, weights, activations, between, torch.ones_like(z), None, None)


def dense_tangent() -> Tensor:
    z, weights, activations, _ = passed()
    return cpu.dense_tangent(None, torch.ones_like(z), weights, activations)[0]


def dense_tangent_backward() -> Tensor:
    z, weights, activations, between = passed()
    _, changed, between_dot = cpu.dense_tangent(None, torch.ones_like(z), weights, activations)
    dweights = torch.empty(2 * WIDTH * (WIDTH + 1))
    inside = (weights, (activations, changed), (between, between_dot), full(2, ATOMS, WIDTH))
    return cpu.dense_tangent_backward((z, None), *inside, None, dweights)


def molecule_edges() -> Tensor:
    """Atoms that are 1e-20 Å apart, of which a square is tiny."""
    pos = SMALL**2 * torch.arange(ATOMS).repeat(3, 1).T
    return cpu.molecule_edges(pos, torch.arange(0, ATOMS + 1, 9), PATTERN.j.numel())[1]


def penalise() -> Tensor:
    ones = full(20_000)
    return cpu.penalise(0 * ones, TINY * ones, ones, SMALL)[0]


def adam() -> Tensor:
    vector, mean, square = torch.zeros(3, 20_000)
    state = (mean, square, torch.zeros(()))
    cpu.adam(vector, full(20_000, value=2e-38), state, (1e-3, 0.9, 0.999, 1e-8))
    return mean


def learn(model: HIPNN, target: float) -> tuple[Tensor, direct.Slopes]:
    """The mean absolute error of 40 molecules of two atoms, and the gradient of their loss."""
    gradient, slopes = direct.gradient_parts(model)
    pos = torch.tensor([[0.0, 0, 0], [2.0, 0, 0]]).repeat(40, 1)
    z, ptr = torch.ones(80, dtype=torch.long), torch.arange(0, 81, 2)
    zeros = torch.zeros_like(gradient)
    parameters = Parameters(gradient, zeros, zeros, torch.empty_like(gradient))
    whole = direct.network(direct.block_weights(model), slopes)
    targets = torch.full((40,), target, dtype=torch.float64)
    found = direct.learn(model, whole, Structures(z, ptr, pos), targets, parameters, 0.0, 0.0)
    return found[1], slopes[0]


def network(bias: float, residual: float, interaction: float) -> HIPNN:
    """One order, with weights that are the same throughout."""
    model = HIPNN((1,), WIDTH, 1, 0, NU, cutoff=5.0)
    layer = model.blocks[0].interaction
    values = {layer.W.bias: bias, layer.residual.W.weight: residual, layer.V: interaction}
    values |= {model.blocks[0].readout.weight: 1.0}
    with torch.no_grad():
        for weight in (layer.W.weight, layer.residual.M.weight):
            weight.zero_()
        for weight, value in values.items():
            weight.fill_(value)
    return model


def learn_forward() -> Tensor:
    """The energies are those of :func:`flat_layer`."""
    return learn(network(-23.0, TINY, 0.0), 0.0)[0]


def learn_backward() -> Tensor:
    """What a thread finds tiny it multiplies by sigma: the gradient in mu is no denormal number."""
    model = network(0.0, 0.1, 2e-38)
    functions = model.blocks[0].interaction.sensitivity
    with torch.no_grad():
        functions.sigma.fill_(1e3)
        functions.mu.fill_(1 / (1 / 2 - 1e-3))  # one deviation off
    dmu = learn(model, -1.0)[1].mu
    assert dmu is not None
    return dmu


def sums(name: str) -> Callable[[], Tensor]:
    edges, environments = (PATTERN.j.numel(), 20), (ATOMS, 20, 80)
    operands = {
        "envsum": (full(*edges, value=TINY), full(ATOMS, 80, value=SMALL)),
        "sensesum": (full(*environments, value=TINY), full(ATOMS, 80, value=SMALL)),
        "featsum": (full(*environments, value=TINY), full(*edges, value=SMALL)),
    }
    return lambda: getattr(cpu, name)(*operands[name], PATTERN)


KERNELS: dict[str, Callable[[], Tensor]] = {
    "interact": lambda: cpu.interact(near(), FEATURES, V, False)[0],
    "interact_backward": interact_backward,
    "interact_tangent": lambda: cpu.interact_tangent(near(), ALONG, FEATURES, None, V, sent())[0],
    "interact_tangent_backward": interact_tangent_backward,
    "dense": lambda: cpu.dense(*torch.zeros(2, ATOMS, WIDTH), flat_layer(), False)[0],
    "dense_backward": dense_backward,
    "dense_tangent": dense_tangent,
    "dense_tangent_backward": dense_tangent_backward,
    "molecule_edges": molecule_edges,
    "penalise": penalise,
    "adam": adam,
    "learn, forward": learn_forward,
    "learn, backward": learn_backward,
    **{name: sums(name) for name in ("envsum", "sensesum", "featsum")},
}


@pytest.mark.parametrize("name", KERNELS)
def test_denormals_are_flushed_on_every_thread_or_on_none(
    name: str, threads: Callable[[int], None]
) -> None:
    threads(2)
    kernel = KERNELS[name]
    kept = kernel()  # starts the threads, before the flag is set
    assert torch.set_flush_denormal(True)  # x86 and ARM can
    flushed = [kernel() for _ in range(5)]
    torch.set_flush_denormal(False)
    assert bool((kept != 0).all())
    assert not any(bool(result.any()) for result in flushed)
