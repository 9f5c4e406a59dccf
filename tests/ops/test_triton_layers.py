"""The layers' Triton kernels equal PyTorch's layers; off a GPU, Triton's interpreter runs them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from ops_cases import molecules, pattern_of, random_pattern
from torch import Tensor
from torch.nn.functional import softplus
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import hipnn_pyg.ops
from hipnn_pyg.nn.fused import layers
from hipnn_pyg.nn.precision import matrix_products
from hipnn_pyg.nn.sensitivity import sensitivities
from hipnn_pyg.ops import Pattern, reference
from hipnn_pyg.ops.operands import Weights, Where

OPS = Path(hipnn_pyg.ops.__file__).parent
CUTOFF = 4.0
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Relative to the largest element."""

Drawn = Callable[..., Tensor]


@pytest.fixture
def drawn(device: torch.device, dtype: torch.dtype) -> Drawn:
    return drawn_on(device, dtype)


def drawn_on(device: torch.device, dtype: torch.dtype) -> Drawn:
    """``drawn(*shape)``: random numbers, the same in each test; leaves of the derivatives."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int, low: float | None = None, width: float = 1.0) -> Tensor:
        if low is None:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            x = low + width * torch.rand(shape, generator=generator, dtype=torch.float64)
        return x.to(device, dtype).requires_grad_()

    return draw


def assert_equal(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None and found.shape == expected.shape and found.dtype == expected.dtype
    error = (found - expected).abs().max() if expected.numel() else torch.zeros(())
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    limit = TOLERANCE[expected.dtype] * scale
    assert float(error) <= limit, f"off by {float(error):.1e}, above {limit:.1e}"


def unwritten(*tensors: Tensor) -> list[Tensor | None]:
    """Room for derivatives; what stays unwritten is NaN."""
    return [torch.full_like(x, torch.nan).detach().contiguous() for x in tensors]


def detached(*tensors: Tensor) -> list[Tensor]:
    return [x.detach() for x in tensors]


PATTERNS: dict[str, Callable[[], Pattern]] = {
    "molecules": lambda: molecules(5, 1, 7),
    "directed": lambda: random_pattern(6, 50),
    "atoms without edges": lambda: pattern_of([(5, 1), (1, 5), (5, 6)], 8),
    "hub": lambda: pattern_of([(n % 5, 2) for n in range(71)] + [(2, n) for n in range(5)], 5),
    "no edges": lambda: pattern_of([], 4),
    "no atoms": lambda: pattern_of([], 0),
}
SIZES = [(5, 3, 6), (20, 5, 17), (3, 18, 18), (1, 1, 1)]
"""Sensitivities, features in and out."""


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("sizes", SIZES)
def test_interaction(
    name: str, sizes: tuple[int, int, int], layer_kernels: ModuleType, drawn: Drawn
) -> None:
    """Values and all first derivatives; distances on both sides of the cutoff, and at inf."""
    nu, width, out = sizes
    pattern = PATTERNS[name]()
    mu, sigma = drawn(nu, low=0.8, width=2.0), drawn(nu, low=3.0, width=5.0)
    pattern = Pattern(*(index.to(mu.device) for index in pattern))
    r = drawn(pattern.j.numel(), low=0.9, width=CUTOFF)
    z, V = drawn(pattern.num_senders, width), drawn(nu, width, out)
    e = reference.envsum(sensitivities(r, mu, sigma, CUTOFF), z, pattern)
    expected = e.flatten(1) @ V.flatten(0, 1)
    cotangent = drawn(*expected.shape).detach()
    slopes = torch.autograd.grad(expected, (r, mu, sigma, z, V), cotangent)

    where = Where(pattern, CUTOFF, *detached(r, mu, sigma))
    found, kept = layer_kernels.interact(where, *detached(z, V), True)
    assert_equal(found, expected.detach())
    room = unwritten(r, mu, sigma, z, V)
    layer_kernels.interact_backward(where, *detached(z, V), kept, cotangent, room)
    for one, other in zip(room, slopes, strict=True):
        assert_equal(one, other)
    (dr,) = unwritten(r)
    nobody = (None, None, None, None)
    layer_kernels.interact_backward(where, *detached(z, V), None, cotangent, (dr, *nobody))
    assert_equal(dr, slopes[0])


@pytest.mark.parametrize("width", [40, 64])
def test_features_go_back_in_passes(
    width: int, layer_kernels: ModuleType, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all columns at once would take too much memory."""
    inside = layer_kernels.interact.__globals__
    monkeypatch.setitem(inside, "WORKSPACE", 0)
    assert inside["_columns_at_once"](torch.empty(3, width), 71) == 32
    test_interaction("hub", (3, width, 2), layer_kernels, drawn)


def test_columns_at_once(layer_kernels: ModuleType) -> None:
    z = torch.empty(1, 80, device="meta")
    columns_at_once = layer_kernels.interact.__globals__["_columns_at_once"]
    assert [columns_at_once(z, edges) for edges in (0, 800_000, 1_000_000)] == [80, 80, 64]


def test_edges_at_infinity_are_none(layer_kernels: ModuleType, device: torch.device) -> None:
    pattern = Pattern(*(index.to(device) for index in molecules(3)))
    one = torch.ones(4, dtype=torch.float64, device=device)
    r = torch.tensor([1.0, torch.inf, CUTOFF] * 2, dtype=torch.float64, device=device)
    where = Where(pattern, CUTOFF, r, one, 2 * one)
    z, V = torch.ones(3, 2).to(r), torch.ones(4, 2, 3).to(r)
    found, kept = layer_kernels.interact(where, z, V, True)
    room = unwritten(r, one, one, z, V)
    layer_kernels.interact_backward(where, z, V, kept, torch.ones_like(found), room)
    assert all(x is not None and bool(x.isfinite().all()) for x in (found, *room))
    assert room[0] is not None and bool((room[0] == 0).tolist() == [False, True, True] * 2)


@pytest.mark.parametrize("models", [0, 3], ids=["one model", "three"])
@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (37, 330, 20), (16, 33, 150), (0, 5, 3), (4, 0, 3)])
def test_product(
    models: int,
    m: int,
    k: int,
    n: int,
    layer_kernels: ModuleType,
    drawn: Drawn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of matrices that lie in memory by rows or by columns; the sum as a whole or in parts."""
    product = layer_kernels.interact.__globals__["product"]
    lead = (models,) if models else ()
    a, b = detached(drawn(*lead, m, k), drawn(*lead, k, n))
    by_columns = (x.mT.contiguous().mT for x in (a, b))
    expected = a @ b
    for one, other in ((a, b), (a, b[..., :n]), (*by_columns,)):
        for part in (150, 32):
            monkeypatch.setitem(product.__globals__, "PART", part)
            assert_equal(product(one, other), expected)
            room = torch.full((*lead, m * n + 5), torch.nan).to(a)  # beside other gradients
            assert_equal(product(one, other, room[..., 2:-3].view(expected.shape)), expected)
            assert bool(room[..., :2].isnan().all()) and bool(room[..., -3:].isnan().all())


def test_lower_precision(layer_kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch allows its products, ours may do, the sums over neighbours not."""
    tiles = layer_kernels.dense.__globals__["products"].__globals__
    single, double = torch.ones(1), torch.ones(1, dtype=torch.float64)
    assert tiles["products"](single) == tiles["exact"](single) == "tf32x3"
    with matrix_products("tf32", "cuda"):
        assert tiles["products"](single) == "tf32" and tiles["exact"](single) == "tf32x3"
        assert tiles["products"](double) == tiles["exact"](double) == "ieee"
    assert tiles["products"](single) == "tf32x3"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert tiles["products"](single) == tiles["exact"](single) == "ieee"


def dense_weights(drawn: Drawn, width: int, out: int, num: int) -> list[Tensor | None]:
    """W, B, W~, B~, M~ of each layer."""
    found: list[Tensor | None] = []
    for n in range(num):
        into = out if n else width
        found += [drawn(out, into), drawn(out), drawn(out, out), drawn(out)]
        found.append(None if into == out else drawn(out, into))
    return [None if w is None else (w.detach() / w.size(-1) ** 0.5).requires_grad_() for w in found]


@pytest.mark.parametrize("widest", [128, 0], ids=["kernels", "wide"])
@pytest.mark.parametrize("atoms, width, out, num", [(37, 5, 17, 3), (18, 36, 36, 2), (3, 40, 4, 1)])
def test_dense_layers(
    widest: int,
    atoms: int,
    width: int,
    out: int,
    num: int,
    layer_kernels: ModuleType,
    drawn: Drawn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values and all first derivatives; weights side by side in memory, or anywhere."""
    inside = layer_kernels.dense.__globals__
    monkeypatch.setitem(inside, "WIDEST", widest)
    z, received = drawn(atoms, width), drawn(atoms, out)
    weights = dense_weights(drawn, width, out, num)
    present = [w for w in weights if w is not None]
    expected = layers(z, received, *weights)
    cotangent = drawn(atoms, out).detach()
    dz, dreceived, *slopes = torch.autograd.grad(expected, (z, received, *present), cotangent)
    together = torch.cat([slope.flatten() for slope in slopes])

    loose = Weights(None if w is None else w.detach() for w in weights)
    line = torch.cat([w.detach().flatten() for w in present])
    parts = iter(line.split([w.numel() for w in present]))
    joined = Weights(None if w is None else next(parts).view_as(w) for w in weights)
    assert inside["_joined"](joined)[0].data_ptr() == line.data_ptr()
    for own in (loose, joined):
        found, activations, between = layer_kernels.dense(*detached(z, received), own, True)
        assert_equal(found, expected.detach())
        bare, *kept = layer_kernels.dense(*detached(z, received), own, False)
        assert_equal(bare, found)
        assert kept == [None, None]
        assert bare.untyped_storage().nbytes() == bare.nbytes  # nor are the layers below
        third = received.detach() / 3  # what is received in parts is added
        in_parts = torch.stack((third, third, received.detach() - 2 * third))
        assert_equal(layer_kernels.dense(z.detach(), in_parts, own, True)[0], found)
        kept = (activations, between, cotangent)
        room, of_weights = unwritten(z, together)
        back = layer_kernels.dense_backward(z.detach(), own, *kept, room, of_weights)
        for one, other in ((room, dz), (back, dreceived), (of_weights, together)):
            assert_equal(one, other)
    assert_equal(layer_kernels.dense_backward(z.detach(), own, *kept, None, None), dreceived)
    monkeypatch.setitem(inside, "ATOMS_OF_A_PART", 16)
    (of_weights,) = unwritten(together)
    layer_kernels.dense_backward(z.detach(), own, *kept, None, of_weights)
    assert_equal(of_weights, together)


@pytest.mark.parametrize("widest", [128, 0], ids=["kernels", "wide"])
@pytest.mark.parametrize("level", [-18.0, -8.0, -2.5, -1.1, 0.0, 1.5, 5.0, 18.0, 25.0])
def test_slope_of_activations(
    level: float,
    widest: int,
    layer_kernels: ModuleType,
    drawn: Drawn,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where softplus is small its slope is as small: no digits are lost; far out it is 1."""
    monkeypatch.setitem(layer_kernels.dense.__globals__, "WIDEST", widest)
    received, W_residual = detached(drawn(5, 8, low=level), drawn(8, 8, low=0.0))
    none = torch.zeros_like(W_residual)
    weights = Weights((none, none[0], W_residual, none[0], None))
    _, *kept = layer_kernels.dense(torch.zeros_like(received), received, weights, True)
    gradient = torch.ones_like(received)
    slope = layer_kernels.dense_backward(none[:5], weights, *kept, gradient, None, None)
    before = received.double().requires_grad_()
    (rise,) = torch.autograd.grad(softplus(before).sum(), before)
    expected = rise * W_residual.double().sum(0)
    digits = {torch.float32: 3e-6, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(slope.double(), expected, rtol=digits, atol=0)


def of_two(*shapes: tuple[int, ...], drawn: Drawn) -> tuple[Tensor, list[Tensor]]:
    """Parameters of two models as ``[2, P]``, and the views of it."""
    line = torch.cat([drawn(2, math.prod(shape)).detach() for shape in shapes], 1)
    parts = line.split([math.prod(shape) for shape in shapes], 1)
    return line, [part.view(2, *shape) for part, shape in zip(parts, shapes, strict=True)]


@pytest.mark.parametrize("widest", [128, 0], ids=["kernels", "wide"])
@pytest.mark.parametrize("parts", [4096, 16])
def test_layers_of_two_models(
    parts: int,
    widest: int,
    layer_kernels: ModuleType,
    drawn: Drawn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one launch what each model has alone, gradients side by side in memory."""
    monkeypatch.setitem(layer_kernels.dense.__globals__, "ATOMS_OF_A_PART", parts)
    monkeypatch.setitem(layer_kernels.dense.__globals__, "WIDEST", widest)
    atoms, width, out = 32, 5, 17
    shapes = [(out, width), (out,), (out, out), (out,), (out, width)]
    line, weights = of_two(*shapes, (out,), (1,), drawn=drawn)
    *weights, w, b = weights
    z, received, gradient = detached(
        drawn(2 * atoms, width), drawn(2 * atoms, out), drawn(2 * atoms, out)
    )
    sigma_e = torch.tensor([3.7, 0.2], dtype=torch.float64, device=z.device)
    slope = torch.linspace(0.1, 1, 2 * atoms, dtype=torch.float64, device=z.device)

    def run(own: slice, *given: Tensor) -> list[Tensor]:
        *weights, w, b, sigma_e, room = given
        size = line.size(1) - out - 1
        own_z, own_gradient = z[own], gradient[own]
        result, *kept = layer_kernels.dense(own_z, received[own], Weights(weights), True)
        dz = torch.full_like(own_z, torch.nan)
        given_back = (*kept, own_gradient, dz, room[..., :size])
        back = layer_kernels.dense_backward(own_z, Weights(weights), *given_back)
        energy = layer_kernels.readout(result, w, b, sigma_e)
        ends = (room[..., size:-1], room[..., -1:])
        dresult = layer_kernels.readout_backward(result, w, slope[own], sigma_e, *ends)
        return [result, dz, back, energy, dresult, room.reshape(-1, line.size(1))]

    room = torch.full_like(line, torch.nan)
    together = run(slice(None), *weights, w, b, sigma_e, room)
    each = []
    for k, own in enumerate((slice(0, atoms), slice(atoms, None))):
        mine = [x[k].contiguous() for x in (*weights, w, b)]
        each.append(run(own, *mine, sigma_e[k], torch.full_like(line[k], torch.nan)))
    for found, expected in zip(together, zip(*each, strict=True), strict=True):
        assert_equal(found, torch.cat(expected))
        assert widest == 0 or torch.equal(found, torch.cat(expected))  # PyTorch's products round
    assert not torch.equal(each[0][-1], each[1][-1])  # control


def test_interactions_of_two_models(
    layer_kernels: ModuleType, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each receives alone, in float32 in parts that are to be added."""
    product = layer_kernels.interact.__globals__["product"].__globals__
    monkeypatch.setitem(product, "PART", 16)
    generator = torch.Generator().manual_seed(0)
    atoms, degree, nu, width, out = 16, 3, 5, 7, 4
    near = torch.randint(atoms, (atoms, degree), generator=generator).flatten()
    i = torch.arange(atoms).repeat_interleave(degree)
    row = torch.arange(atoms + 1) * degree
    edges = i.numel()

    one = [x.to(device) for x in (near, i, row)]
    two = [torch.cat((x, x + s)) for x, s in zip(one, (atoms, atoms, edges), strict=True)]
    none = row.new_empty(0)
    patterns = [Pattern(*of_models, none, none) for of_models in (one, two)]
    r = 1 + 5 * torch.rand(2, edges, generator=generator)
    z = torch.randn(2, atoms, width, generator=generator)
    mu, sigma = 0.2 + torch.rand(2, 2, nu, generator=generator)
    V = torch.randn(2, nu, width, out, generator=generator)
    r, z, mu, sigma, V = (x.to(device) for x in (r, z, mu, sigma, V))
    where = Where(patterns[1], 7.9, r.flatten(), mu, sigma)
    found, kept = layer_kernels.interact(where, z.flatten(0, 1), V, True)
    assert found.shape == (2, 2 * atoms, out)  # 35 terms in two parts
    for k in range(2):
        alone = Where(patterns[0], 7.9, r[k], mu[k], sigma[k])
        expected, own = layer_kernels.interact(alone, z[k], V[k], True)
        assert_equal(found.sum(0)[k * atoms : (k + 1) * atoms], expected)
        assert_equal(kept.environments[k * atoms : (k + 1) * atoms], own.environments)
    assert not torch.allclose(found[0], found.sum(0))  # control


def test_no_atoms(layer_kernels: ModuleType, drawn: Drawn) -> None:
    weights = Weights(None if w is None else w.detach() for w in dense_weights(drawn, 2, 3, 2))
    z, received = detached(drawn(0, 2), drawn(0, 3))
    found, *kept = layer_kernels.dense(z, received, weights, True)
    (slopes,) = unwritten(torch.cat([w.flatten() for w in weights if w is not None]))
    assert slopes is not None and found.shape == (0, 3)
    assert layer_kernels.dense_backward(z, weights, *kept, received, None, slopes).shape == (0, 3)
    assert not bool(slopes.any())
    w, one = detached(drawn(3), drawn(1))
    dw, db = unwritten(w, one)
    none = one.new_empty(0, dtype=torch.float64)
    layer_kernels.readout_backward(found, w, none, one.double()[0], dw, db)
    assert dw is not None and db is not None and not bool(dw.any()) and not bool(db.any())


@pytest.mark.parametrize("atoms, width", [(5, 3), (300, 17)])
def test_readout(atoms: int, width: int, layer_kernels: ModuleType, drawn: Drawn) -> None:
    z, w, b = drawn(atoms, width), drawn(width), drawn(1)
    sigma_e = torch.tensor(3.7, dtype=torch.float64, device=z.device)
    expected = (3.7 * (z * w).sum(1) + b).double()
    cotangent = torch.linspace(0.1, 1, atoms, dtype=torch.float64, device=z.device)
    slopes = torch.autograd.grad(expected, (z, w, b), cotangent)
    found = layer_kernels.readout(*detached(z, w, b), sigma_e)
    error = float((found - expected).abs().max() / expected.detach().abs().max())
    assert found.dtype == torch.float64 and error <= TOLERANCE[z.dtype]
    dw, db = unwritten(w, b)
    dz = layer_kernels.readout_backward(*detached(z, w), cotangent, sigma_e, dw, db)
    for one, other in zip((dz, dw, db), slopes, strict=True):
        assert_equal(one, other)
    again = layer_kernels.readout_backward(*detached(z, w), cotangent, sigma_e, None, None)
    assert torch.equal(dz, again)


def test_inputs(layer_kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    species = torch.tensor([2, 0, 1, 2, 2, -1], device=device)
    weight = torch.tensor([-1.0, 20.0, 300.0], dtype=torch.float64, device=device)
    z, energy = layer_kernels.inputs(species, weight, torch.ones(1).to(weight), dtype)
    assert torch.equal(z[:5], torch.eye(3, dtype=dtype, device=device)[species[:5]])
    assert torch.equal(energy[:5], weight[species[:5]] + 1)
    assert not bool(z[5].any()) and bool(energy[5].isnan())  # a foreign atom


def test_same_bits_twice(layer_kernels: ModuleType, drawn: Drawn) -> None:
    z, received = detached(drawn(40, 5), drawn(40, 9))
    weights = Weights(None if w is None else w.detach() for w in dense_weights(drawn, 5, 9, 2))
    once, again = (layer_kernels.dense(z, received, weights, True)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, layer_kernels.dense(z, received + 1e-3, weights, True)[0])


SPLIT = """
import triton
import triton.language as tl
from hipnn_pyg.ops.triton_tiles import _split

@triton.jit
def split(X, HIGH, REST, N: tl.constexpr):
    n = tl.arange(0, N)
    high, rest = _split(tl.load(X + n))
    tl.store(HIGH + n, high)
    tl.store(REST + n, rest)
"""


def test_numbers_are_split_for_the_tensor_cores(
    load_kernels: Callable[..., ModuleType], device: torch.device, tmp_path: Path
) -> None:
    """Two numbers of 11 bits: the second rounded towards 0, as the hardware does, costs a bit."""
    (tmp_path / "split.py").write_text(SPLIT)
    with pytest.MonkeyPatch.context() as patch:
        tiles = load_kernels(OPS / "triton_tiles.py")
        patch.setitem(sys.modules, "hipnn_pyg.ops.triton_tiles", tiles)
        kernel = load_kernels(tmp_path / "split.py").split
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, generator=generator) * torch.logspace(-30, 30, 1024)
    x = x.to(device)
    high, rest = torch.empty_like(x), torch.empty_like(x)
    kernel[(1,)](x, high, rest, 1024)
    cut = [(part.view(torch.int32) & -0x2000).view(torch.float32) for part in (high, rest)]
    assert torch.equal(cut[0], high) and torch.equal(high + rest, x)
    error = ((cut[0].double() + cut[1].double()) / x.double() - 1).abs()
    assert 0 < float(error.max()) < 2.0**-23
    assert float((high.double() / x.double() - 1).abs().max()) > 2.0**-13  # control


MUTANTS = {
    "the cutoff is not squared": ("(cosine * cosine)[None, :]", "cosine[None, :]"),
    "edges beyond the first few are lost": ("range(0, degree, EDGES)", "range(0, 1, EDGES)"),
    "the cutoff has no slope": ("t * gaussians * cut[:, None]", "t * gaussians * 0.0"),
    "mu and sigma change places": ("tl.store(part + NU, tl", "tl.store(part, tl"),
    "layers are swapped": ("OUTPUTS + layer * apart", "OUTPUTS + (layer - 1) * apart"),
    "a bias is lost": ("tl.reduce(biases, 1, _add)", "tl.reduce(biases, 1, _add) * 0.0"),
    "the second block of columns is the first": ("A + tl.arange(0, B)", "tl.arange(0, B)"),
    "the last atoms of a part are lost": ("live = k + n < count", "live = k + n < count - 1"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_control_broken_kernels_are_caught(
    mutant: str,
    load_layers: Callable[..., ModuleType],
    device: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right, wrong = MUTANTS[mutant]
    (file,) = (file for file in OPS.glob("triton_*.py") if right in file.read_text())
    broken = tmp_path / file.name
    broken.write_text(file.read_text().replace(right, wrong))
    kernels = load_layers(**{file.stem: broken})
    with pytest.raises(AssertionError, match=r"off by \S+, above"):
        for dtype in (torch.float64, torch.float32):
            drawn = drawn_on(device, dtype)
            test_interaction("hub", (5, 3, 6), kernels, drawn)
            test_dense_layers(128, 37, 5, 17, 3, kernels, drawn, monkeypatch)


def test_sizes_compile_nothing_anew(load_layers: Callable[..., ModuleType]) -> None:
    """A kernel is not compiled again for the first mini-batch of, say, a multiple of 16 atoms."""
    module = load_layers(interpret=False)
    seen = 0
    for name, constants in options().items():
        inside = (module.dense if name in DENSE else module.interact).__globals__
        function = inside["product"].__globals__[name] if name == "_product" else inside[name]
        for parameter in function.params:
            if parameter.name in inside["stack_of"].__globals__["SIZES"]:
                seen += 1
                assert parameter.do_not_specialize
            elif parameter.name not in constants:
                assert not parameter.do_not_specialize  # addresses: aligned, they are read at once
    assert seen >= 8


DENSE = ("_dense", "_dense_slopes", "_weight_slopes")


def options() -> dict[str, dict[str, Any]]:
    """Sizes of the paper's network for each kernel."""
    size = dict(IN=80, F=80, LAYERS=4, IN_A=64, IN_B=32, A=64, B=32, ROWS=16)
    edges = dict(CUTOFF=7.9, NU=20, F=80, NU_BLOCK=32)
    slopes = edges | dict(F_BLOCK=16, EDGES=16)
    return {
        "_environments": edges | dict(FIRST=64, SECOND=16, EDGES=16),
        "_edge_slopes": dict(FEATURES=80, LEARNED=True, DISTANCES=True, **slopes),
        "_dense": dict(KEEP=True, **size),
        "_dense_slopes": dict(WANTED=True, **size),
        "_product": dict(ROWS=64, DEPTH=16, FIRST=64, SECOND=16),
        "_weight_slopes": dict(IN=80, F=80, LAYERS=4, DOWN=16, ACROSS=32, ROWS=32),
    }


@pytest.mark.parametrize("number, products", [("fp32", "tf32x3"), ("fp64", "ieee")])
def test_compiles_for_a_gpu(
    number: str, products: str, load_layers: Callable[..., ModuleType]
) -> None:
    """For an H100. Three products of TF32 make one of float32; float64 stays what it is."""
    module = load_layers(interpret=False)
    for name, constants in options().items():
        inside = (module.dense if name in DENSE else module.interact).__globals__
        inside = inside["product"].__globals__ if name == "_product" else inside
        function = inside[name]
        if "PRODUCTS" in function.arg_names:
            constants = constants | {"PRODUCTS": products}
        types = dict.fromkeys(function.arg_names, f"*{number}")
        types |= dict.fromkeys(("ROW", "J"), "*i64")
        types |= {n: "i32" for n in function.arg_names if n.islower()}
        types |= dict.fromkeys(constants, "constexpr")
        made = triton.compile(
            ASTSource(function, {n: types[n] for n in function.arg_names}, constexprs=constants),
            target=GPUTarget("cuda", 90, 32),
            options=inside.get("OPTIONS", {}),
        )
        assert made.asm["cubin"]
        assert ("%atoms" in made.asm["ttir"]) == ("atoms" in function.arg_names)
        assert not re.search(r"muli .*%atoms.*: i32", made.asm["ttir"])  # places beyond 2^31
        assert ("tf32" in made.asm["ptx"]) == ("PRODUCTS" in constants and number == "fp32")
