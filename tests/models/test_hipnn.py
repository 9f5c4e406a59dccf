"""HIPNN as a whole: the paper's energy, its parameter counts, precision, layouts, own edges."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from ops_cases import ACCURACY
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch

from hipnn_pyg import (
    HIPNN,
    HIPNNWarning,
    StructureError,
    load_model,
    radius_graph,
    save_model,
)

Build = Callable[..., HIPNN]


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_interactions": 1, "num_onsite": 0},
        {"num_interactions": 3},
        {"num_onsite": 2, "hidden_channels": 4},  # as many features as species: M~ = 1
        {"hierarchical": False},
    ],
    ids=["default", "one", "three", "identity", "no_hierarchy"],
)
def test_equals_the_paper(
    small_model: Build,
    molecules: Batch,
    kernel: str,
    options: dict,
    dtype: torch.dtype,
    tolerance: dict[str, float],
) -> None:
    model = small_model(dtype, kernel=kernel, **options)
    result = model.energy_terms(molecules.z, molecules.pos.to(dtype), molecules.batch)
    molecule = molecules.batch.tolist()
    near = reference.neighbours(molecules.pos.numpy(), molecule, 3.0)
    terms = reference.atom_terms(molecules.z.tolist(), near, reference.model_arrays(model))
    close = {name: 5 * value for name, value in tolerance.items()}
    torch.testing.assert_close(result.terms, torch.tensor(terms), **close)
    energy = [sum(terms[i].sum() for i in range(21) if molecule[i] == m) for m in range(4)]
    torch.testing.assert_close(
        result.energy, torch.tensor(energy, dtype=torch.float64).unsqueeze(1), **close
    )
    r = torch.tensor(reference.nonhierarchicality(terms, molecule))
    torch.testing.assert_close(result.nonhierarchicality, r, **close)
    assert result.features.shape == (21, model.hyperparameters["hidden_channels"])


@pytest.mark.parametrize(
    ("hidden_channels", "num_onsite", "species", "count"),
    [
        (5, 3, (1, 6, 7, 8, 9), 1_578),
        (10, 3, (1, 6, 7, 8, 9), 4_868),
        (20, 3, (1, 6, 7, 8, 9), 16_648),
        (40, 3, (1, 6, 7, 8, 9), 61_208),
        (60, 3, (1, 6, 7, 8, 9), 133_768),
        (80, 3, (1, 6, 7, 8, 9), 234_328),
        (20, 0, (1, 6), 10_285),
        (40, 3, (1, 6, 8), 59_446),
    ],
)
def test_parameter_counts_of_the_paper(
    hidden_channels: int, num_onsite: int, species: tuple[int, ...], count: int
) -> None:
    model = HIPNN(species, hidden_channels, num_onsite=num_onsite)
    assert model.num_parameters == count == sum(p.numel() for p in model.parameters())


def test_defaults_are_the_papers_qm9_model() -> None:
    assert HIPNN().num_parameters == 234_328 and HIPNN().species == (1, 6, 7, 8, 9)


def test_kernels_agree_in_energy_forces_and_gradients(
    small_model: Build, molecules: Batch, dtype: torch.dtype
) -> None:
    """To rounding, relative to the largest number of each."""
    results = []
    for kernel in ("fused", "padded", "reference"):
        model = small_model(dtype, kernel=kernel)
        pos = molecules.pos.to(dtype).requires_grad_()
        energy = model(molecules.z, pos, molecules.batch)
        forces = torch.autograd.grad(energy.sum(), pos, create_graph=True)[0]
        trained = [p for p in model.parameters() if p.requires_grad]
        loss = energy.square().mean() + forces.square().mean()
        results.append([energy, forces, *torch.autograd.grad(loss, trained)])
    for fused, padded, plain in zip(*results, strict=True):
        limit = 5 * ACCURACY[dtype] * float(plain.abs().max())
        torch.testing.assert_close(padded, plain, rtol=0, atol=limit)
        torch.testing.assert_close(fused, plain, rtol=0, atol=limit)


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
def test_lengths_may_be_whole_numbers(
    small_model: Build, molecules: Batch, kernel: str, dtype: torch.dtype
) -> None:
    """An integer is no other length than the float of the same value, in no kernel."""
    pos = molecules.pos.to(dtype).requires_grad_()
    energies, forces = [], []
    for cutoff in (3, 3.0, 3.5):
        model = small_model(dtype, cutoff=cutoff, kernel=kernel)
        model.set_e0(None, sigma_e=int(cutoff))
        energies.append(model(molecules.z, pos, molecules.batch))
        forces += torch.autograd.grad(energies[-1].sum(), pos)
    assert torch.equal(energies[0], energies[1]) and torch.equal(forces[0], forces[1])
    assert not torch.allclose(energies[1], energies[2], rtol=1e-4)  # control


def test_large_molecules_leave_the_all_pairs_path(
    small_model: Build, molecules: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = (molecules.z, molecules.pos, molecules.batch)
    for kernel in ("fused", "padded"):
        model = small_model(cutoff=2.0, kernel=kernel)
        with monkeypatch.context() as patch:
            everything, expected = model.pairs(*inputs[1:]).r.shape[-1], model(*inputs)
            patch.setattr("hipnn_pyg.models.hipnn.SEARCH_BEYOND", 8)
            assert model.pairs(*inputs[1:]).r.shape[-1] < everything
            torch.testing.assert_close(model(*inputs), expected)


# -- precision ---------------------------------------------------------------------------------


def test_energy_terms_are_float64_and_the_drop_in_call_follows_pos(
    small_model: Build, molecules: Batch
) -> None:
    model = small_model(torch.float32)
    result = model.energy_terms(molecules.z, molecules.pos.float(), molecules.batch)
    assert result.energy.dtype == result.terms.dtype == torch.float64
    assert result.nonhierarchicality.dtype == torch.float64
    assert result.features.dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        energy = model(molecules.z, molecules.pos.to(dtype), molecules.batch)
        assert energy.dtype == dtype and energy.shape == (4, 1)


def test_large_reference_energies_lose_nothing_in_single_precision(
    small_model: Build, molecules: Batch
) -> None:
    """E^0 of about 40,000: float32 has steps of 0.004 there, the float64 sums have none."""
    model = small_model(torch.float32)
    inputs = molecules.z, molecules.pos.float(), molecules.batch
    small = model.energy_terms(*inputs).terms[:, 1:].sum().item()
    e0 = {1: -13.5872227808, 6: -1029.4889999, 7: -1485.30251237, 8: -2042.61112359}
    model.set_e0(e0, model.sigma_e)
    total = model.energy_terms(*inputs).energy.sum().item()
    constant = sum(e0[number] for number in molecules.z.tolist())
    assert total == pytest.approx(constant + small, abs=1e-9)
    assert model(*inputs).sum().item() != pytest.approx(constant + small, abs=1e-9)


@pytest.mark.parametrize("cast", ["float", "half", "double", "bfloat16"])
def test_e0_stays_float64(small_model: Build, cast: str) -> None:
    model = small_model(torch.float32)
    model.set_e0([0.1, 0.2, 0.3, 0.7], sigma_e=1 / 3)
    changed = getattr(copy.deepcopy(model), cast)()
    assert changed.reference.weight.dtype == torch.float64
    assert changed.reference.weight.tolist() == [0.1, 0.2, 0.3, 0.7] and changed.sigma_e == 1 / 3
    assert changed.blocks[0].interaction.V.dtype == getattr(torch.zeros(1), cast)().dtype


def test_half_precision_is_near(small_model: Build, molecules: Batch) -> None:
    inputs = molecules.z, molecules.pos, molecules.batch
    exact, rough = small_model()(*inputs), small_model().bfloat16()(*inputs)
    assert rough.dtype == torch.float64
    assert 0 < float((exact - rough).detach().abs().max()) < 0.1 * float(exact.detach().abs().max())


# -- the user's own edges ----------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
def test_shift_undoes_a_wrapped_position(small_model: Build, molecules: Batch, kernel: str) -> None:
    """An atom displaced by a lattice vector, with shifts that say so, changes nothing."""
    model = small_model(kernel=kernel)
    z, pos, batch = molecules.z, molecules.pos, molecules.batch
    vector = torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    edge_index = radius_graph(pos, 3.0, batch)
    order = torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(0))
    edge_index = edge_index[:, order]
    images = torch.zeros(len(z), dtype=torch.float64)
    images[[0, 10, 15]] = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    wrapped = pos + images.unsqueeze(1) * vector
    shift = (images[edge_index[1]] - images[edge_index[0]]).unsqueeze(1) * vector
    expected = model(z, pos, batch)
    torch.testing.assert_close(model(z, wrapped, batch, edge_index, shift), expected)
    for wrong in (-shift, None):  # controls: the sign, and no shift
        assert not torch.allclose(model(z, wrapped, batch, edge_index, wrong), expected)


def test_an_atom_may_see_its_own_image(small_model: Build) -> None:
    """A crystal of one atom, periodic in one direction: as the middle of a chain."""
    model = small_model(num_interactions=1)
    z, pos, edges = torch.tensor([8]), torch.zeros(1, 3, dtype=torch.float64), torch.zeros(2, 2)
    shift = torch.tensor([[2.0, 0, 0], [-2.0, 0, 0]], dtype=torch.float64)
    crystal = model.energy_terms(z, pos, None, edges.long(), shift).terms[0]
    chain = torch.zeros(5, 3, dtype=torch.float64)
    chain[:, 0] = 2.0 * torch.arange(5)
    terms = model.energy_terms(z.expand(5), chain).terms
    torch.testing.assert_close(crystal, terms[2])
    assert not torch.allclose(crystal, terms[0])  # control: the end has one neighbour


# -- no hierarchy, single atoms, training state ------------------------------------------------


def test_no_hierarchy_keeps_only_the_last_order(small_model: Build, molecules: Batch) -> None:
    model = small_model(hierarchical=False, num_interactions=3)
    terms = model.energy_terms(molecules.z, molecules.pos, molecules.batch).terms
    assert not bool(terms[:, :3].any()) and bool(terms[:, 3].all())
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [
        "reference.weight",
        "reference.bias",
        *(f"blocks.{n}.readout.{name}" for n in (0, 1) for name in ("weight", "bias")),
    ]
    assert bool(small_model().energy_terms(molecules.z, molecules.pos, molecules.batch).terms.all())
    with pytest.raises(ValueError, match="hierarchical=False"):
        model.set_e0([1.0, 2.0, 3.0, 4.0], sigma_e=1.0)
    for changed, kept in ((model, [False, False, True]), (small_model(), [True, True])):
        changed.reset_parameters()
        assert [bool(block.readout.weight.any()) for block in changed.blocks] == kept


def test_weights_drawn_anew() -> None:
    """The seed decides, whatever they were; E^0 and sigma_E stay."""
    drawn, biases = [], ("bias", "mu", "sigma")
    for seed, e0 in ((1, [-1.0, -2.0]), (2, [-3.0, -4.0])):
        torch.manual_seed(seed)
        model = HIPNN((1, 8), 4, num_onsite=1, e0=e0, sigma_e=0.5)
        fresh = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name in fresh:
                model.get_parameter(name).add_(1.0)
        torch.manual_seed(3)
        model.reset_parameters()
        assert model.reference.weight.tolist() == e0 and model.sigma_e == 0.5
        drawn.append({name: model.get_parameter(name).detach() for name in fresh})
        for name, value in drawn[-1].items():
            assert torch.equal(value, fresh[name]) == name.endswith(biases), name
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())


def test_every_trained_parameter_gets_a_gradient(small_model: Build, molecules: Batch) -> None:
    for options in ({}, {"hierarchical": False}):
        model = small_model(**options)
        model(molecules.z, molecules.pos, molecules.batch).square().sum().backward()
        for name, parameter in model.named_parameters():
            has_gradient = parameter.grad is not None and bool(parameter.grad.any())
            assert has_gradient == parameter.requires_grad, name


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
def test_single_and_isolated_atoms(small_model: Build, kernel: str) -> None:
    model = small_model(kernel=kernel)
    z = torch.tensor([1, 8, 1, 8])
    pos = torch.tensor([[0.0, 0, 0], [0, 0, 0], [20.0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    pos.requires_grad_()
    alone = model(z, pos, torch.arange(4))  # nobody has a neighbour
    isolated = model(z[1:3], pos[1:3])  # one molecule, atoms out of reach
    assert bool(torch.isfinite(alone).all()) and bool((alone != 0).all())
    torch.testing.assert_close(isolated[0], alone[1] + alone[2])
    torch.testing.assert_close(alone[1], alone[3])
    (gradient,) = torch.autograd.grad(alone.sum() + isolated.sum(), pos)
    assert gradient.abs().max() == 0
    mixed = model(z[[0, 1, 2]], pos[[0, 1, 2]] / 20, torch.tensor([0, 1, 1]))  # control
    torch.testing.assert_close(mixed[0], alone[0])
    assert not torch.allclose(mixed[1], alone[1] + alone[2])


def test_batch_is_optional_for_one_molecule(small_model: Build, molecules: Batch) -> None:
    model, z, pos = small_model(), molecules.z[:5], molecules.pos[:5]
    torch.testing.assert_close(model(z, pos), model(z, pos, torch.zeros(5, dtype=torch.long)))
    assert model(z, pos).shape == (1, 1)


@pytest.mark.parametrize("integer", [torch.int64, torch.int32, torch.uint8])
def test_any_integer_type_of_atomic_numbers(
    small_model: Build, molecules: Batch, integer: torch.dtype
) -> None:
    model = small_model()
    expected = model(molecules.z, molecules.pos, molecules.batch)
    actual = model(molecules.z.to(integer), molecules.pos, molecules.batch)
    assert torch.equal(actual, expected)


def test_order_of_species_is_the_order_of_the_one_hot(small_model: Build) -> None:
    first, other = small_model(species=(1, 8)), small_model(species=(8, 1))
    z = torch.tensor([8, 1, 2, 0, 99, -1])
    assert first.species_index(z).tolist() == [1, 0, -1, -1, -1, -1]
    assert other.species_index(torch.tensor([8, 1])).tolist() == [0, 1]


def test_the_index_of_species_stays_where_it_is_read(small_model: Build) -> None:
    """A cast moves nothing; what a recorded graph reads must not go. Another device has its own."""
    model = small_model()
    index = model._species_index
    assert model.float()._species_index is index and model.cpu()._species_index is index
    assert copy.deepcopy(model)._species_index is not index
    moved = model.to("meta")._species_index  # control
    assert moved is not index and moved.device.type == "meta"


def test_e0_by_atomic_number_or_in_order() -> None:
    by_number = HIPNN((1, 8), 4, e0={8: -2.0, 1: -1.0, 6: -9.0}, sigma_e=0.5)
    in_order = HIPNN((1, 8), 4, e0=[-1.0, -2.0], sigma_e=0.5)
    assert by_number.reference.weight.tolist() == in_order.reference.weight.tolist() == [-1.0, -2.0]
    assert by_number.sigma_e == 0.5 and not by_number.reference.weight.requires_grad


def test_unfitted_training_warns_exactly_once(molecules: Batch) -> None:
    model = HIPNN((1, 6, 7, 8), 4)
    inputs = molecules.z, molecules.pos.float(), molecules.batch
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.eval()(*inputs)
        assert not caught  # predicting does not warn
        for _ in range(3):
            model.train()(*inputs)
    assert [warning.category for warning in caught] == [HIPNNWarning]
    assert "fit_e0" in str(caught[0].message)
    assert bool(torch.isfinite(model.energy_terms(*inputs).nonhierarchicality).all())
    with warnings.catch_warnings():  # control: a fitted model is silent
        warnings.simplefilter("error")
        HIPNN((1, 6, 7, 8), 4, e0=[-1.0, -2, -3, -4], sigma_e=0.3).train()(*inputs)


# -- bad constructor arguments and calls -------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"species": ()}, "species"),
        ({"species": (1, 1)}, "different atomic numbers"),
        ({"species": (0, 1)}, "different atomic numbers >= 1"),
        ({"hidden_channels": 0}, "hidden_channels must be at least 1, not 0"),
        ({"num_interactions": 0}, "num_interactions must be at least 1"),
        ({"num_onsite": -1}, "num_onsite must be at least 0"),
        ({"num_sensitivities": 0}, "num_sensitivities must be at least 1"),
        ({"r_low": 0.0}, "0 < r_low < r_high"),
        ({"r_low": 3.0, "r_high": 2.0}, "0 < r_low < r_high"),
        ({"cutoff": 0.0}, "0 < cutoff"),
        ({"cutoff": float("inf")}, "cutoff=inf"),
        ({"cutoff": float("nan")}, "cutoff=nan"),
        ({"kernel": "dense"}, "kernel must be one of .*, not 'dense'"),
        ({"backend": "scipy"}, "backend must be one of"),
        ({"e0": [1.0]}, "5 finite energies"),
        ({"e0": [1.0, 2, 3, 4, float("nan")]}, "5 finite energies"),
        ({"e0": {1: 1.0}}, "no energy for atomic number 6"),
        ({"sigma_e": 0.0}, "sigma_e must be positive and finite, not 0.0"),
        ({"sigma_e": float("nan")}, "sigma_e must be positive"),
        ({"hierarchical": False, "e0": [1.0] * 5}, "hierarchical=False"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HIPNN(**({"hidden_channels": 2} | options))


def test_shift_without_edges(small_model: Build, molecules: Batch) -> None:
    shift = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="shift belongs to edge_index"):
        small_model()(molecules.z, molecules.pos, molecules.batch, shift=shift)


def test_extra_repr_tells_species_and_unit() -> None:
    text = repr(HIPNN((1, 8), 2, energy_unit="eV"))
    assert "species=(1, 8)" in text and "cutoff=7.938 Å" in text and "unit=eV" in text


def energies_without_checks(model: HIPNN, inputs: tuple[Tensor, ...]) -> Tensor:
    model.validate = False
    return model(*inputs)


def test_validate_only_checks(small_model: Build, molecules: Batch) -> None:
    model, inputs = small_model(), (molecules.z, molecules.pos, molecules.batch)
    assert torch.equal(model(*inputs), energies_without_checks(model, inputs))


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
@pytest.mark.parametrize("foreign", [9, 0, -1, 100])
def test_foreign_atoms_have_no_energy(
    small_model: Build, molecules: Batch, kernel: str, foreign: int
) -> None:
    """Where nobody checks, either: their molecule's energy is no number, the others' stay."""
    model = small_model(kernel=kernel, validate=False)
    expected = model(molecules.z, molecules.pos, molecules.batch)
    z = molecules.z.clone()
    z[6] = foreign
    assert int(molecules.batch[6]) == 1
    found = model.energy_terms(z, molecules.pos, molecules.batch)
    assert found.energy.isnan().flatten().tolist() == [False, True, False, False]
    assert torch.equal(found.energy[[0, 2, 3]], expected[[0, 2, 3]])
    assert found.terms.isnan().any(1).nonzero().flatten().tolist() == [6]
    plain = small_model(kernel="reference", validate=False)
    terms = plain.energy_terms(z, molecules.pos, molecules.batch).terms
    torch.testing.assert_close(found.terms, terms, rtol=1e-10, atol=1e-10, equal_nan=True)
    model.validate = True  # control
    with pytest.raises(StructureError, match="atom 6"):
        model(z, molecules.pos, molecules.batch)


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
def test_edges_in_any_form(small_model: Build, molecules: Batch, kernel: str) -> None:
    """In any order, columns of a transposed list, shorter integers, PyG's EdgeIndex: the result of
    the built-in search."""
    model = small_model(kernel=kernel)
    z, pos, batch = molecules.z, molecules.pos, molecules.batch
    edge_index = radius_graph(pos, model.cutoff, batch)
    expected = model(z, pos, batch)
    backwards = edge_index.flip(1)
    order = torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(0))
    forms = [
        edge_index,
        edge_index[:, order],
        backwards,
        backwards.t().contiguous().t(),
        edge_index.int(),
        edge_index.to(torch.uint8),
    ]
    forms += [EdgeIndex(edge_index), EdgeIndex(backwards)]
    for form in forms:
        torch.testing.assert_close(model(z, pos, batch, form), expected)
    for kind in (torch.int32, torch.int16, torch.uint8):
        torch.testing.assert_close(model(z, pos, batch.to(kind), edge_index), expected)
    fewer = model(z, pos, batch, edge_index[:, 2:])
    assert float((fewer - expected).abs().max()) > 1e-3  # control
    with pytest.raises(StructureError, match="integers"):
        model(z, pos, batch, edge_index.bool())


def test_sizes_of_any_kind_of_number(tmp_path: Path) -> None:
    """NumPy's and PyTorch's numbers too: the model can be saved."""
    sizes = {"hidden_channels": np.int64(4), "num_onsite": np.int32(1)}
    model = HIPNN((1, 6), **sizes, cutoff=np.float32(5), hierarchical=np.bool_(True))
    save_model(model, tmp_path)
    assert load_model(tmp_path).hyperparameters == model.hyperparameters
    assert HIPNN(cutoff=torch.tensor(5.0)).cutoff == 5.0
    with pytest.raises(TypeError, match="integer"):
        HIPNN(hidden_channels=64.0)  # type: ignore[arg-type]


def test_energies_of_half_precision_positions_are_float32(small_model: Build) -> None:
    """Total energies are beyond what half precision can hold."""
    model = small_model(torch.float32)
    model.set_e0([-9e4] * len(model.species), sigma_e=1.0)
    energy = model(torch.tensor([1, 1]), torch.tensor([[0.0, 0, 0], [0.75, 0, 0]]).half())
    assert energy.dtype == torch.float32 and float(energy) == pytest.approx(-1.8e5, rel=1e-3)
