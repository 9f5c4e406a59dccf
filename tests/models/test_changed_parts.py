"""Models that users changed: what they put in is called, whatever the kernel."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import MeanAggregation

from hipnn_pyg import HIPNN, HIPNNPotential
from hipnn_pyg.graph import Pairs
from hipnn_pyg.models import direct
from hipnn_pyg.nn import EnergyReadout, EnvironmentSum, Interaction, OnSite, Sensitivity
from hipnn_pyg.nn.residual import Linear

Build = Callable[..., HIPNN]
Change = Callable[[HIPNN], object]


class Silu(OnSite):
    """Another activation function."""

    def forward(self, z: Tensor) -> Tensor:
        return self.residual(nn.functional.silu(self.W(z)), z)


class Doubled(nn.Module):
    """Stands for an adapter: it has the weights of the map that it wraps."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = inner.weight, inner.bias

    def forward(self, z: Tensor) -> Tensor:
        return 2 * nn.functional.linear(z, self.weight, self.bias)


def shift_by_one(module: nn.Module, given: object, result: Tensor) -> Tensor:
    return result + 1


def put_silu(model: HIPNN) -> None:
    layer = Silu(6, 6).to(model.blocks[1].onsite[0].W.weight.dtype)
    layer.load_state_dict(model.blocks[1].onsite[0].state_dict())
    model.blocks[1].onsite[0] = layer


def put_forward(model: HIPNN) -> None:
    layer = model.blocks[0].onsite[0]
    layer.forward = types.MethodType(lambda self, z: z + 1, layer)


def put_narrow_layers(model: HIPNN, width: int) -> None:
    layers = model.blocks[0].onsite
    layers.append(OnSite(6, width).double())
    layers.append(OnSite(width, 6).double())


def put_biases(model: HIPNN) -> None:
    """A learned M~ with biases, where a layer is built with the identity."""
    M = Linear(6, 6).double()
    nn.init.ones_(M.bias)
    model.blocks[0].onsite[0].residual.M = M


def put_mean(model: HIPNN) -> None:
    model.blocks[1].interaction.environment_sum.aggr_module = MeanAggregation()


class Squared(EnvironmentSum):
    def message(self, s: Tensor, z_j: Tensor) -> Tensor:
        return super().message(s, z_j).square()


def put_sum(model: HIPNN) -> None:
    model.blocks[0].interaction.environment_sum = Squared()


def put_message(model: HIPNN) -> None:
    layer = model.blocks[1].interaction.environment_sum
    layer.message = lambda s, z_j: 2 * s.unsqueeze(2) * z_j.unsqueeze(1)  # type: ignore[assignment]


def put_received(model: HIPNN) -> None:
    layer = model.blocks[0].interaction
    own = layer.received
    layer.received = lambda z, pairs: 2 * own(z, pairs)  # type: ignore[method-assign]


def message_hook(model: HIPNN) -> None:
    model.blocks[0].interaction.environment_sum.register_message_forward_hook(
        lambda module, given, messages: 2 * messages
    )


def put_tensor(module: nn.Module, name: str) -> None:
    """A plain tensor for a parameter, as replicas on several GPUs and fast weights have it."""
    value = 1.1 * module.get_parameter(name).detach()
    delattr(module, name)
    setattr(module, name, value)


class Coded(Tensor):
    """Reads as twice what lies in memory: quantised and distributed weights are no plain memory."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        with torch._C.DisableTorchFunctionSubclass():
            read = [2 * x if isinstance(x, cls) else x for x in args]
            return function(*read, **(kwargs or {}))


def put_coded(module: nn.Module, name: str) -> None:
    module._parameters[name] = module.get_parameter(name).detach().as_subclass(Coded)  # type: ignore[assignment]


CHANGES: dict[str, Change] = {
    "coded weight": lambda m: put_coded(m.blocks[0].onsite[0].W, "weight"),
    "coded V": lambda m: put_coded(m.blocks[0].interaction, "V"),
    "coded readout": lambda m: put_coded(m.blocks[1].readout, "weight"),
    "plain weight": lambda m: put_tensor(m.blocks[0].onsite[0].W, "weight"),
    "plain V": lambda m: put_tensor(m.blocks[0].interaction, "V"),
    "plain mu": lambda m: put_tensor(m.blocks[1].interaction.sensitivity, "mu"),
    "plain readout": lambda m: put_tensor(m.blocks[1].readout, "weight"),
    "wider layers": lambda m: put_narrow_layers(m, 9),
    "narrower layers": lambda m: put_narrow_layers(m, 2),
    "no bias": lambda m: setattr(m.blocks[1].onsite[0].W, "bias", None),
    "no bias of the residual": lambda m: setattr(m.blocks[1].onsite[0].residual.W, "bias", None),
    "M with a bias": put_biases,
    "hook of messages": message_hook,
    "another aggregation": put_mean,
    "hook of the aggregation": lambda m: m.blocks[
        0
    ].interaction.environment_sum.aggr_module.register_forward_hook(lambda a, given, e: 2 * e),
    "own message": put_message,
    "own messages": put_sum,
    "own received": put_received,
    "hook of a layer": lambda m: m.blocks[1].onsite[0].register_forward_hook(shift_by_one),
    "hook of a map": lambda m: m.blocks[0].interaction.W.register_forward_hook(shift_by_one),
    "hook of sensitivities": lambda m: m.blocks[0].interaction.sensitivity.register_forward_hook(
        lambda module, given, s: 2 * s
    ),
    "hook before": lambda m: m.blocks[1].onsite.register_forward_pre_hook(lambda _, z: z[0] + 1),
    "hook of a readout": lambda m: m.blocks[0].readout.register_forward_hook(shift_by_one),
    "subclass": put_silu,
    "adapter": lambda m: setattr(m.blocks[1].onsite[0], "W", Doubled(m.blocks[1].onsite[0].W)),
    "another layer": lambda m: m.blocks[0].onsite.append(nn.LayerNorm(6, dtype=torch.float64)),
    "own forward": put_forward,
    "spectral norm": lambda m: nn.utils.spectral_norm(m.blocks[0].interaction.W),
}


def energies(model: HIPNN, molecules: Batch) -> Tensor:
    return model(molecules.z, molecules.pos, molecules.batch).detach()


@pytest.mark.parametrize("change", CHANGES)
def test_changed_layers_are_called(change: str, small_model: Build, molecules: Batch) -> None:
    models = [small_model(kernel=kernel) for kernel in ("fused", "padded", "reference")]
    fused, padded, plain = models
    for model in models:  # with biases that are missed
        for layer in model.modules():
            if isinstance(layer, Linear) and layer.bias is not None:
                nn.init.constant_(layer.bias, 0.3)
    before = energies(fused, molecules)
    assert direct.serves(fused)
    for model in models:
        torch.manual_seed(3)
        CHANGES[change](model)
    assert not direct.serves(fused)
    expected = energies(plain, molecules)
    for model in (fused, padded):
        torch.testing.assert_close(energies(model, molecules), expected)
    predicted = HIPNNPotential(fused)(molecules.z, molecules.pos, molecules.batch)
    torch.testing.assert_close(predicted.energy, expected)
    slopes = HIPNNPotential(plain)(molecules.z, molecules.pos, molecules.batch).forces
    torch.testing.assert_close(predicted.forces, slopes)
    assert float((expected - before).abs().max()) > 1e-3  # control


def test_a_removed_hook_gives_the_kernels_back(small_model: Build, molecules: Batch) -> None:
    model = small_model(kernel="fused")
    before = energies(model, molecules)
    handle = model.blocks[0].onsite[0].register_forward_hook(shift_by_one)
    assert not direct.serves(model)
    handle.remove()
    assert direct.serves(model)
    torch.testing.assert_close(energies(model, molecules), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook"])
def test_a_backward_hook_of_a_layer_is_called(
    kind: str, small_model: Build, molecules: Batch
) -> None:
    """With the same gradient, whatever the kernel; once it is removed, the kernels serve again."""
    seen: list[Tensor] = []
    for kernel in ("fused", "padded"):
        model = small_model(kernel=kernel)
        register = getattr(model.blocks[0].onsite[0], f"register_{kind}")
        handle = register(lambda layer, *gradients: seen.append(gradients[-1][0]))
        assert not direct.serves(model)
        model(molecules.z, molecules.pos, molecules.batch).sum().backward()
        handle.remove()
        assert direct.serves(model) == (kernel == "fused")
        model(molecules.z, molecules.pos, molecules.batch).sum().backward()
    assert len(seen) == 2 and bool(seen[0].any())
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
def test_edges_may_be_masked(kernel: str, small_model: Build, molecules: Batch) -> None:
    """As PyG's explainers do it: one number for each edge, those beyond the cutoff too."""
    model, methane = small_model(kernel=kernel), molecules[0]
    atoms = torch.arange(len(methane.z))
    j, i = torch.cartesian_prod(atoms, atoms).t()  # sorted by sender, as PyG sorts
    edge_index = torch.stack((j, i))[:, i != j]
    given = (methane.z, methane.pos, None, edge_index)
    before = model(*given)
    mask = torch.ones(edge_index.size(1), dtype=torch.float64, requires_grad=True)
    set_masks(model, mask, edge_index, apply_sigmoid=False)
    torch.testing.assert_close(model(*given), before)
    (slope,) = torch.autograd.grad(model(*given).sum(), mask)
    far = (methane.pos[edge_index[0]] - methane.pos[edge_index[1]]).norm(dim=1) >= model.cutoff
    assert float(slope.abs().max()) > 1e-3 and bool((slope[far] == 0).all())
    with torch.no_grad():  # without its message an edge might as well be left out
        mask[2] = 0
    masked = model(*given)
    clear_masks(model)
    torch.testing.assert_close(model(*given), before)
    rest = torch.arange(edge_index.size(1)) != 2
    torch.testing.assert_close(masked, model(*given[:3], edge_index[:, rest]))
    assert float((masked - before).detach().abs()) > 1e-3  # control


def test_a_hook_of_all_modules_is_called(small_model: Build, molecules: Batch) -> None:
    model = small_model(kernel="fused")
    before = energies(model, molecules)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        torch.testing.assert_close(energies(model, molecules), before)
    finally:
        handle.remove()
    assert model.blocks[0].onsite[0].W in seen
    torch.testing.assert_close(energies(model, molecules), before, rtol=0, atol=0)


def test_backward_hooks_of_all_modules_are_called(small_model: Build, molecules: Batch) -> None:
    """As loggers of gradients set them: as often by the kernels' model as by the other."""
    seen: list[nn.Module] = []
    counts = []
    for kernel in ("fused", "padded"):
        model = small_model(kernel=kernel)
        seen.clear()
        handle = nn.modules.module.register_module_full_backward_hook(lambda m, *_: seen.append(m))
        try:
            pos = molecules.pos.clone().requires_grad_()
            model(molecules.z, pos, molecules.batch).sum().backward()
        finally:
            handle.remove()
        assert model.blocks[0].onsite[0].W in seen
        counts.append(len(seen))
    assert counts[0] == counts[1]


def put_long_block(model: HIPNN) -> None:
    """Its first layer takes as many features as no other gives."""
    model.blocks[1].interaction = Interaction(5, 6, Sensitivity(5, 0.9, 2.5, 3.0)).double()


MISFITS: dict[str, Change] = {
    "readout": lambda m: setattr(m.blocks[1], "readout", EnergyReadout(9, 2).double()),
    "block": put_long_block,
    "sensitivities": lambda m: setattr(
        m.blocks[1].interaction, "sensitivity", Sensitivity(4, 0.9, 2.5, 3.0).double()
    ),
}


@pytest.mark.parametrize("change", MISFITS)
def test_parts_that_do_not_fit_are_refused(
    change: str, small_model: Build, molecules: Batch
) -> None:
    """PyTorch says what does not fit; a kernel would read what lies behind."""
    model = small_model(kernel="fused")
    energies(model, molecules)  # control
    MISFITS[change](model)
    assert not direct.serves(model)
    for call in (model, HIPNNPotential(model)):
        with pytest.raises(RuntimeError, match="shape|size"):
            call(molecules.z, molecules.pos, molecules.batch)


class Raised(HIPNN):
    """Every atom has one unit of energy more."""

    def atom_terms(self, species: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        terms, features = super().atom_terms(species, pairs)
        return terms + torch.tensor([1.0, 0.0, 0.0]), features


def test_a_subclass_of_the_model_is_called(small_model: Build, molecules: Batch) -> None:
    model = small_model(kernel="fused")
    raised = Raised(**model.hyperparameters, kernel="fused").double().eval()
    raised.load_state_dict(model.state_dict())
    predicted = HIPNNPotential(raised)(molecules.z, molecules.pos, molecules.batch).energy
    torch.testing.assert_close(predicted, energies(raised, molecules))
    atoms = torch.bincount(molecules.batch).unsqueeze(1)
    torch.testing.assert_close(predicted, energies(model, molecules) + atoms)


@pytest.mark.parametrize("name", ["blocks.1.onsite.0", "blocks.0.interaction.W"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_mixed_dtypes_are_refused(
    name: str, kind: torch.dtype, small_model: Build, molecules: Batch
) -> None:
    """Kernels read memory by address: of another dtype it would be another number."""
    other = torch.float64 if kind == torch.float32 else torch.float32
    model = small_model(kind, kernel="fused")
    model.get_submodule(name).to(other)
    with pytest.raises((RuntimeError, TypeError), match="dtype|float"):
        energies(model, molecules)
    with pytest.raises((RuntimeError, TypeError), match="dtype|float"):
        HIPNNPotential(model)(molecules.z, molecules.pos, molecules.batch)


def test_a_readout_of_another_dtype(small_model: Build, molecules: Batch) -> None:
    model = small_model(torch.float32, kernel="fused")
    expected = energies(model, molecules)
    model.blocks[0].readout.double()
    torch.testing.assert_close(energies(model, molecules), expected, rtol=1e-5, atol=1e-5)
    predicted = HIPNNPotential(model)(molecules.z, molecules.pos, molecules.batch)
    torch.testing.assert_close(predicted.energy, expected, rtol=1e-5, atol=1e-5)


def test_weights_with_gaps_in_memory(small_model: Build, molecules: Batch) -> None:
    model = small_model(kernel="fused")
    expected = energies(model, molecules)
    for linear in (model.blocks[0].onsite[0].W, model.blocks[1].interaction.W):
        linear.weight.data = linear.weight.data.t().contiguous().t()
        assert not linear.weight.is_contiguous()
    torch.testing.assert_close(energies(model, molecules), expected)


# -- settings ----------------------------------------------------------------------------------


def test_what_makes_the_model_cannot_be_changed(small_model: Build) -> None:
    model = small_model()
    for name, value in (("cutoff", 4.0), ("species", (1,)), ("hierarchical", False)):
        with pytest.raises(AttributeError, match=name):
            setattr(model, name, value)
    with pytest.raises(ValueError, match="padded"):
        model.kernel = "Padded"  # type: ignore[assignment]
    model.kernel = "padded"
    assert model.kernel == "padded" and model.cutoff == 3.0


# -- transforms --------------------------------------------------------------------------------


def drawn(like: Tensor) -> Tensor:
    """Random numbers, the same in each test."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=like.dtype)


def test_traced(small_model: Build, molecules: Batch) -> None:
    model = small_model(kernel="auto")
    water = molecules[2]
    traced = torch.jit.trace(model, (water.z, water.pos))
    moved = water.pos + 0.05 * drawn(water.pos)
    torch.testing.assert_close(traced(water.z, moved), model(water.z, moved))
    assert float((traced(water.z, moved) - model(water.z, water.pos)).abs()) > 1e-4  # control
    larger = molecules[1]  # a trace keeps no number of atoms
    assert len(larger.z) > len(water.z)
    torch.testing.assert_close(traced(larger.z, larger.pos), model(larger.z, larger.pos))
    padded = torch.jit.trace(small_model(kernel="padded"), (water.z, water.pos))
    torch.testing.assert_close(padded(larger.z, larger.pos), model(larger.z, larger.pos))
    with pytest.raises(RuntimeError, match='kernel="reference"'):
        torch.jit.trace(small_model(kernel="fused"), (water.z, water.pos))


def test_a_trace_keeps_no_number_of_molecules(small_model: Build, molecules: Batch) -> None:
    model = small_model(kernel="auto")
    some = Batch.from_data_list(molecules.to_data_list()[1:3])
    traced = torch.jit.trace(model, (some.z, some.pos, some.batch))
    for batch in (Batch.from_data_list([molecules[2]]), molecules):
        found = traced(batch.z, batch.pos, batch.batch)
        assert found.shape == (batch.num_graphs, 1)
        torch.testing.assert_close(found, model(batch.z, batch.pos, batch.batch))


def test_many_positions_of_a_molecule(small_model: Build, molecules: Batch) -> None:
    """vmap over positions, over elements too, and over their slopes."""
    model, water = small_model(kernel="auto"), molecules[2]
    pos = torch.stack([water.pos, water.pos + 0.05 * drawn(water.pos)])
    expected = torch.cat([model(water.z, one) for one in pos])
    assert float((expected[0] - expected[1]).abs()) > 1e-4  # control

    def energy(pos: Tensor) -> Tensor:
        return model(water.z, pos).sum()

    with pytest.raises(RuntimeError, match="set model.validate = False"):
        torch.vmap(energy)(pos)
    with pytest.raises(RuntimeError, match="set model.validate = False"):
        torch.vmap(torch.func.grad(energy))(pos)
    model.validate = False
    torch.testing.assert_close(torch.vmap(energy)(pos), expected.squeeze(1))
    torch.testing.assert_close(torch.vmap(model)(water.z.expand(2, -1), pos).squeeze(1), expected)
    slopes = torch.vmap(torch.func.grad(energy))(pos)
    one_by_one = [-HIPNNPotential(model)(water.z, one).forces for one in pos]
    torch.testing.assert_close(slopes, torch.stack(one_by_one))


def test_function_transforms(small_model: Build, molecules: Batch) -> None:
    model, water = small_model(kernel="auto"), molecules[2]
    expected = -HIPNNPotential(model)(water.z, water.pos).forces

    def energy(pos: Tensor) -> Tensor:
        return model(water.z, pos).sum()

    torch.testing.assert_close(torch.func.grad(energy)(water.pos).detach(), expected)
    along = drawn(water.pos)
    _, slope = torch.func.jvp(energy, (water.pos,), (along,))
    torch.testing.assert_close(slope.detach(), (along * expected).sum())
    hessian = torch.func.hessian(energy)(water.pos)
    slow = torch.autograd.functional.hessian(energy, water.pos)
    torch.testing.assert_close(hessian.detach(), slow.detach())
    with pytest.raises(RuntimeError, match='kernel="padded"'):
        torch.autograd.functional.hessian(energy, water.pos, vectorize=True)
    model.kernel = "padded"
    fast = torch.autograd.functional.hessian(energy, water.pos, vectorize=True)
    torch.testing.assert_close(fast.detach(), slow.detach())


def test_forward_derivatives(small_model: Build, molecules: Batch) -> None:
    from torch.autograd import forward_ad

    model, water = small_model(kernel="auto"), molecules[2]
    along = drawn(water.pos)
    expected = -(along * HIPNNPotential(model)(water.z, water.pos).forces).sum()
    with forward_ad.dual_level():
        energy = model(water.z, forward_ad.make_dual(water.pos, along))
        slope = forward_ad.unpack_dual(energy).tangent
    torch.testing.assert_close(slope.sum().detach(), expected)
