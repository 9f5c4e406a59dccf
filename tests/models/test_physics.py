"""The physics every energy model must obey: HIP-NN in both layouts, and models that break it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from hipnn_pyg import HIPNN
from hipnn_pyg.testing import (
    assert_extensive,
    assert_gradient,
    assert_invariant,
    assert_smooth_cutoff,
)

KERNELS = ["fused", "padded", "reference"]
Build = Callable[..., HIPNN]


def pair_energy(
    of_distance: Callable[[Tensor], Tensor],
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A model E = sum over pairs of a function of their distance."""

    def energy(z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        i, j = torch.triu_indices(len(z), len(z), 1)
        i, j = (index[batch[i] == batch[j]] for index in (i, j))
        pairs = of_distance((pos[i] - pos[j]).norm(dim=1))
        return pos.new_zeros(int(batch.max()) + 1).index_add(0, batch[i], pairs)

    return energy


@pytest.mark.parametrize("kernel", KERNELS)
def test_hipnn_is_invariant(
    small_model: Build, molecules: Batch, kernel: str, dtype: torch.dtype
) -> None:
    model = small_model(dtype, kernel=kernel)
    assert_invariant(model, molecules.z, molecules.pos.to(dtype), molecules.batch)


@pytest.mark.parametrize("kernel", KERNELS)
def test_hipnn_is_extensive(small_model: Build, molecules: Batch, kernel: str) -> None:
    model = small_model(kernel=kernel)
    assert_extensive(model, molecules.z, molecules.pos, molecules.batch, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_hipnn_forces_are_the_gradient(small_model: Build, molecules: Batch, kernel: str) -> None:
    model = small_model(kernel=kernel)
    assert_gradient(model, molecules.z, molecules.pos, molecules.batch)
    water = molecules.z[9:12], molecules.pos[9:12], torch.zeros(3, dtype=torch.long)
    assert_gradient(model, *water, second=True)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cutoff", [3.0, 7.9])
def test_hipnn_is_smooth_at_the_cutoff(small_model: Build, kernel: str, cutoff: float) -> None:
    assert_smooth_cutoff(small_model(kernel=kernel, cutoff=cutoff), cutoff, species=(1, 8))


@pytest.mark.parametrize("kernel", KERNELS)
def test_crowded_structure_is_invariant(small_model: Build, kernel: str) -> None:
    """More than 64 neighbours per atom: a cap would keep other ones after a rotation."""
    grid = torch.cartesian_prod(*[1.2 * torch.arange(6, dtype=torch.float64)] * 3)
    generator = torch.Generator().manual_seed(0)
    pos = grid + 0.2 * torch.rand(grid.shape, dtype=torch.float64, generator=generator)
    z = torch.tensor([1, 6, 7, 8]).repeat(54)
    model = small_model(kernel=kernel, cutoff=4.0, hidden_channels=4)
    batch = torch.zeros(216, dtype=torch.long)
    pairs = model.pairs(pos, batch)
    degree = (pairs.r < 4.0).sum(1) if pairs.i is None else torch.bincount(pairs.i)
    assert int(degree.max()) > 64
    assert_invariant(model, z, pos, batch)


def test_derivatives_of_parameters(small_model: Build, molecules: Batch) -> None:
    """Energies, and forces as in force training, differentiate correctly in every parameter."""
    model = small_model(hidden_channels=2, num_sensitivities=2)
    z, pos, batch = molecules.z[:5], molecules.pos[:5], molecules.batch[:5]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def energy_and_forces(*values: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip(trained, values, strict=True))
        at = pos.clone().requires_grad_()
        energy = torch.func.functional_call(model, state, (z, at, batch))
        return energy, -torch.autograd.grad(energy.sum(), at, create_graph=True)[0]

    assert torch.autograd.gradcheck(energy_and_forces, tuple(trained.values()), fast_mode=True)


# -- controls: each assertion catches a model that breaks its law ------------------------------

harmonic = pair_energy(lambda r: (r - 1).square())


def test_a_sound_model_passes(molecules: Batch) -> None:
    structure = molecules.z, molecules.pos, molecules.batch
    assert_invariant(harmonic, *structure)
    assert_gradient(harmonic, *structure, second=True)
    assert_extensive(pair_energy(lambda r: torch.exp(-r)), *structure)
    smooth = pair_energy(lambda r: torch.where(r < 3, (3 - r).square(), 0.0))
    assert_smooth_cutoff(smooth, 3.0)


def per_molecule(values: Tensor, batch: Tensor) -> Tensor:
    return values.new_zeros(int(batch.max()) + 1).index_add(0, batch, values)


def volume(z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
    """Of the first four atoms, signed: blind to all but reflection (and order)."""
    a, b, c, d = pos[:4] - pos[:4].mean(0)
    return torch.dot(torch.linalg.cross(b - a, c - a), d - a).reshape(1)


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (lambda z, pos, batch: per_molecule(pos[:, 0], batch), "translation"),
        (
            lambda z, pos, batch: per_molecule(
                (pos[:, 0] - per_molecule(pos[:, 0], batch)[batch] / batch.bincount()[batch]).abs(),
                batch,
            ),
            "rotation",
        ),
        (volume, "reflection"),
        (
            lambda z, pos, batch: per_molecule(
                torch.arange(len(z)) * (pos - pos[0]).norm(dim=1), batch
            ),
            "permutation",
        ),
        (lambda z, pos, batch: harmonic(z, pos, batch) * len(z), "batching"),
    ],
    ids=["translation", "rotation", "reflection", "permutation", "batching"],
)
def test_broken_invariance_is_caught(broken: Callable, law: str, molecules: Batch) -> None:
    one = law in ("reflection", "permutation")
    structure = [molecules.z, molecules.pos, molecules.batch]
    structure = [values[12:] for values in structure] if one else structure
    structure[2] = structure[2] - structure[2].min()
    with pytest.raises(AssertionError, match=f"changes under {law}"):
        assert_invariant(broken, *structure)


def test_non_extensive_energy_is_caught(molecules: Batch) -> None:
    def mean(z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        return harmonic(z, pos, batch) / torch.bincount(batch)

    with pytest.raises(AssertionError, match="sum of their energies"):
        assert_extensive(mean, molecules.z, molecules.pos, molecules.batch)


def test_wrong_derivatives_are_caught(molecules: Batch) -> None:
    structure = molecules.z, molecules.pos, molecules.batch
    half_detached = pair_energy(lambda r: r * r.detach())  # right value, half the force
    with pytest.raises(AssertionError, match="wrong derivative"):
        assert_gradient(half_detached, *structure)
    with pytest.raises(AssertionError, match="wrong derivative"):
        assert_gradient(pair_energy(lambda r: r.detach()), *structure)

    class FirstOrder(torch.autograd.Function):  # right force, second derivative lost
        @staticmethod
        def forward(ctx: object, r: Tensor) -> Tensor:
            ctx.slope = 2 * r.detach()
            return r.square()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return grad * ctx.slope

    first_order = pair_energy(FirstOrder.apply)
    assert_gradient(first_order, *structure)
    with pytest.raises(AssertionError, match="wrong derivative"):
        assert_gradient(first_order, *structure, second=True)


def test_single_precision_is_refused(molecules: Batch) -> None:
    with pytest.raises(ValueError, match="float64"):
        assert_gradient(harmonic, molecules.z, molecules.pos.float(), molecules.batch)


@pytest.mark.parametrize(
    ("of_distance", "message"),
    [
        (lambda r: torch.where(r < 3, 3 - r, 0.0), "force jumps"),
        (lambda r: torch.where(r < 3, 1 + (3 - r).square(), 0.0), "energy jumps"),
        (lambda r: (4 - r).square(), "still interact"),
        (lambda r: 0 * r, "nothing was tested"),
        (lambda r: r.detach(), "no forces"),
    ],
)
def test_rough_cutoff_is_caught(of_distance: Callable, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_smooth_cutoff(pair_energy(of_distance), 3.0)
