"""The molecules' Triton kernels equal the readable code; off a GPU, an interpreter runs them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import hipnn_pyg.ops
from hipnn_pyg import HIPNN
from hipnn_pyg.graph import molecule_edges, molecule_sizes, pairs
from hipnn_pyg.models import direct, hipnn
from hipnn_pyg.nn import molecule_sums, readout

FILE = Path(hipnn_pyg.ops.__file__).with_name("triton_molecules.py")

CASES = {
    "one atom": [1],
    "one molecule": [5],
    "several": [3, 1, 70, 2],
    "without atoms": [0, 4, 0, 0, 3, 0],
    "many": [2, 1, 3] * 70,
}
"""Atoms of the molecules."""


@pytest.fixture(params=CASES, ids=[name.replace(" ", "-") for name in CASES])
def counts(request: pytest.FixtureRequest, device: torch.device) -> Tensor:
    return torch.tensor(CASES[request.param], device=device)


def batch_of(counts: Tensor) -> Tensor:
    """Molecule of each atom."""
    return torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts)


def positions(num: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(num)
    return (5 * torch.rand(num, 3, generator=generator, dtype=torch.float64)).to(device, dtype)


def test_sizes(counts: Tensor, molecule_kernels: ModuleType) -> None:
    batch = batch_of(counts)
    ptr, largest, edges = molecule_kernels.sizes(batch, counts.numel())
    expected, *numbers = molecule_sizes(batch, batch, counts.numel())
    assert torch.equal(ptr, expected) and [largest, edges] == numbers
    assert ptr.tolist() == [0, *counts.cumsum(0).tolist()]


def test_molecule_edges(
    counts: Tensor, molecule_kernels: ModuleType, device: torch.device, dtype: torch.dtype
) -> None:
    """Edges, their order by receiver and by sender, and distances, of the readable construction."""
    batch = batch_of(counts)
    ptr, largest, edges = molecule_sizes(batch, batch, counts.numel())
    pos = positions(batch.numel(), device, dtype)
    pattern, r = molecule_kernels.molecule_edges(pos, ptr, largest, edges)
    expected = molecule_edges(pos.clone().requires_grad_(), batch, ptr, edges)
    assert expected.pattern is not None
    for found, right in zip(pattern, expected.pattern, strict=True):
        assert torch.equal(found, right)
    torch.testing.assert_close(r, expected.r.detach())
    by_columns = pos.mT.contiguous().mT  # in memory x of all atoms, then y, z
    again = molecule_kernels.molecule_edges(by_columns, ptr, largest + 3, edges)
    assert torch.equal(again[1], r) and torch.equal(again[0].j, pattern.j)


@pytest.mark.parametrize("orders", [1, 3])
def test_molecule_sums(
    orders: int, counts: Tensor, molecule_kernels: ModuleType, device: torch.device
) -> None:
    """Total energies and R; 0 where both energies of an atom vanish, and without atoms."""
    batch = batch_of(counts)
    terms = positions(batch.numel() * (orders + 1), device, torch.float64)[:, 0].view(
        -1, orders + 1
    )
    terms[::2, :2] = 0
    found = molecule_kernels.molecule_sums(terms, batch, counts.numel())
    for one, other in zip(found, molecule_sums(terms, batch, counts.numel()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    assert bool((found[0][counts == 0] == 0).all()) and bool((found[1][counts == 0] == 0).all())
    order = torch.arange(batch.numel(), device=device)
    if int((counts > 0).sum()) > 1:  # control: an atom changes places with one of another molecule
        order[[1, -1]] = order[[-1, 1]]
    swapped = molecule_kernels.molecule_sums(terms[order].contiguous(), batch, counts.numel())
    moved = batch[order != order.sort().values].tolist()
    for one, other in zip(swapped, found, strict=True):
        assert (one != other).flatten().nonzero().flatten().tolist() == moved


@pytest.fixture
def without_derivatives(
    layer_kernels: ModuleType,
    molecule_kernels: ModuleType,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], list[str]]:
    """Call it, and energies run by the Triton kernels, which are written down as they are called:
    off a GPU it is made to look like one."""
    called: list[str] = []
    if device.type == "cuda":
        molecule_kernels = importlib.import_module("hipnn_pyg.ops.triton_molecules")

    def switch() -> list[str]:
        for name in ("sizes", "molecule_edges", "molecule_sums"):
            own = getattr(molecule_kernels, name)

            def noted(*given: object, name: str = name, own: Callable = own) -> object:
                called.append(name)
                return own(*given)

            monkeypatch.setattr(molecule_kernels, name, noted)
        values = direct.values

        def noted_values(*given: object) -> object:
            called.append("values")
            return values(*given)

        monkeypatch.setattr(direct, "values", noted_values)
        for module in (pairs, hipnn, readout) if device.type == "cpu" else ():
            monkeypatch.setattr(module, "molecule_kernels", lambda _: molecule_kernels)
        if device.type == "cpu":
            monkeypatch.setattr(direct, "layer_kernels", lambda _: layer_kernels)
            monkeypatch.setattr(direct, "_scale", lambda model: model.reference.sigma_e)
        return called

    return switch


def test_energies_without_derivatives(
    device: torch.device, dtype: torch.dtype, without_derivatives: Callable[[], list[str]]
) -> None:
    """A model's energies, orders, R and features where nobody asks for gradients."""
    torch.manual_seed(3)
    model = HIPNN((1, 6, 8), 12, num_onsite=1, num_sensitivities=5, e0=(-1, -2, -3), sigma_e=2.0)
    model = model.to(device, dtype).eval()
    counts = torch.tensor([4, 1, 6], device=device)
    batch = batch_of(counts)
    z = torch.tensor([1, 6, 8], device=device).repeat(4)[: batch.numel()]
    pos = positions(batch.numel(), device, dtype)
    model.kernel = "reference"
    expected = model.energy_terms(z, pos, batch)
    model.kernel = "fused"
    called = without_derivatives()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    every = ["sizes", "molecule_edges", "values", "molecule_sums"]
    for num_graphs in (None, 3):
        called.clear()
        with torch.no_grad():
            found = model.energy_terms(z, pos, batch, num_graphs=num_graphs)
        assert called == every
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=tolerance, atol=tolerance)
    called.clear()
    with torch.no_grad():
        edge_index = torch.stack(model.pairs(pos, batch)[:2])
        found = model.energy_terms(z, pos, batch, edge_index=edge_index)
    assert called[-2:] == every[-2:]
    torch.testing.assert_close(
        found.energy, expected.energy.detach(), rtol=tolerance, atol=tolerance
    )
    called.clear()
    handle = model.blocks[0].interaction.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model.energy_terms(z, pos, batch)
    assert "values" not in called  # a layer with a hook is called
    handle.remove()
    model.kernel = "reference"
    called.clear()
    with torch.no_grad():
        model.energy_terms(z, pos, batch)
    assert called == []  # control: the specification stays what it is


COMPARISONS: dict[str, Callable[[Tensor, ModuleType, torch.device], None]] = {
    "sizes": lambda counts, kernels, device: test_sizes(counts, kernels),
    "pairs": lambda counts, kernels, device: test_molecule_edges(
        counts, kernels, device, torch.float64
    ),
    "sums": lambda counts, kernels, device: test_molecule_sums(3, counts, kernels, device),
}
MUTANTS = {
    "molecules begin one atom late": (
        "sizes",
        "low = tl.where(before, middle + 1, low)",
        "low = middle",
    ),
    "the way back is not shifted": ("pairs", "+ i - (x < i).to(tl.int64)", "+ i"),
    "the last row has no end": ("pairs", "tl.store(ROW + first + count,", "tl.store(ROW,"),
    "R has the wrong order below": ("sums", "            lower = upper\n", ""),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_control_broken_kernels_are_caught(
    mutant: str,
    load_kernels: Callable[..., ModuleType],
    device: torch.device,
    tmp_path: Path,
) -> None:
    """By the comparison of what they compute."""
    what, right, wrong = MUTANTS[mutant]
    source = FILE.read_text()
    assert right in source
    broken = tmp_path / "broken.py"
    broken.write_text(source.replace(right, wrong))
    kernels = load_kernels(broken)
    counts = torch.tensor([3, 1, 7, 2], device=device)
    with pytest.raises(AssertionError, match="equal|not close"):
        COMPARISONS[what](counts, kernels, device)


def test_compiles_for_a_gpu(load_kernels: Callable[..., ModuleType]) -> None:
    """For an H100."""
    module = load_kernels(FILE, interpret=False)
    constants = {
        "_sizes": dict(BLOCK=128),
        "_first_edges": dict(BLOCK=128),
        "_molecule_edges": dict(BLOCK=32),
        "_molecule_sums": dict(ORDERS=2, ATOMS=32),
    }
    pointers = dict(POS="*fp32", R="*fp32", TERMS="*fp64", ENERGY="*fp64")
    for name, fixed in constants.items():
        function = getattr(module, name)
        types = {n: "i32" if n.islower() else pointers.get(n, "*i64") for n in function.arg_names}
        if name == "_molecule_sums":
            types["R"] = "*fp64"
        types |= dict.fromkeys(fixed, "constexpr")
        source = ASTSource(function, types, constexprs=fixed)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert made.asm["cubin"]
