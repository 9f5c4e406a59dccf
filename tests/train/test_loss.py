"""The loss, Eqs. 12-18, against numbers worked out by hand and against slow NumPy."""

from __future__ import annotations

from collections.abc import Callable

import ase.build
import numpy as np
import pytest
import reference
import torch
from torch import Tensor
from torch_geometric.data import Data

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.graph import all_pairs
from hipnn_pyg.train import HIPNNLoss
from hipnn_pyg.train.loss import LossTerms, l2_norm

TARGETS = (-3.0, 2.5, -4.25)


def make_batch(targets: tuple[float, ...] = TARGETS) -> MoleculeBatch:
    """Water, methane and ammonia, distorted."""
    items = []
    for name, energy in zip(("H2O", "CH4", "NH3"), targets, strict=True):
        atoms = ase.build.molecule(name)
        atoms.rattle(0.05, seed=len(atoms))
        target = torch.tensor([energy], dtype=torch.float64)
        items.append(
            Data(z=torch.tensor(atoms.numbers), pos=torch.tensor(atoms.positions), energy=target)
        )
    packed = PackedMolecules.pack(items, ASE_ENERGY)
    return packed.gather(torch.arange(len(targets)))


def numpy_terms(model: HIPNN, batch: MoleculeBatch) -> reference.Array:
    """E_i^n from the reference implementation."""
    near = reference.neighbours(batch.pos.numpy(), batch.batch.tolist(), model.cutoff)
    return reference.atom_terms(batch.z.tolist(), near, reference.model_arrays(model))


def squares(*tensors: Tensor) -> float:
    return sum(float((reference.array(t) ** 2).sum()) for t in tensors)


def learned_weights(model: HIPNN) -> list[Tensor]:
    """w~, W, V, W~, M~ of the paper, spelled out."""
    weights = []
    for block in model.blocks:
        weights += [block.readout.weight, block.interaction.V]
        for layer in (block.interaction, *block.onsite):
            weights += [layer.W.weight, layer.residual.W.weight]
            weights += [] if layer.residual.M is None else [layer.residual.M.weight]
    return weights


def test_hand_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two molecules, three atoms, two orders: every number below fits on paper."""
    model = HIPNN(species=(1,), hidden_channels=1, num_onsite=0, sigma_e=2.0)
    terms = torch.tensor([[-4.0, 3.0, 0.0], [-1.0, 1.0, 1.0], [2.0, 0.0, 0.0]]).double()
    pos = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    # predictions: (-4 + 3 + 0) + (-1 + 1 + 1) = 0 and 2; errors: 0 - 3 = -3 and 2 - 1 = 1
    target = torch.tensor([3.0, 1.0]).double()
    batch = MoleculeBatch(
        torch.ones(3, dtype=torch.long), pos, torch.tensor([0, 0, 1]), torch.tensor([0, 2, 3]),
        2, 2, target,
    )  # fmt: skip
    monkeypatch.setattr(model, "atom_terms", lambda species, pairs: (terms, None))
    monkeypatch.setattr("hipnn_pyg.train.loss.l2_norm", lambda model: torch.tensor(50.0).double())
    loss, mae, rmse, l2, r = HIPNNLoss(model, lambda_l2=0.01, lambda_r=0.2)(batch)
    assert mae.item() == 2.0  # (3 + 1) / 2
    assert rmse.item() == pytest.approx(5**0.5, rel=1e-15)  # sqrt((9 + 1) / 2)
    # first molecule: 9/25 + 0/9 + 1/2 + 1/2 = 1.36; second: 0/4 + 0/0 = 0; mean 0.68
    assert r.item() == pytest.approx(0.68, rel=1e-15)
    assert l2.item() == 50.0
    # (2 + sqrt 5) / 2 + 0.01 * 50 + 0.2 * 0.68
    assert loss.item() == pytest.approx(1 + 5**0.5 / 2 + 0.5 + 0.136, rel=1e-15)


@pytest.mark.parametrize("hierarchical", [True, False])
def test_against_numpy(
    small_model: Callable[..., HIPNN],
    dtype: torch.dtype,
    tolerance: dict[str, float],
    hierarchical: bool,
) -> None:
    model = small_model(dtype, hierarchical=hierarchical)
    batch = make_batch()
    terms = numpy_terms(model, batch)
    molecule = batch.batch.tolist()
    energy = np.bincount(molecule, weights=terms.sum(1))
    error = energy - np.array(TARGETS)
    mae, rmse = np.abs(error).mean(), np.sqrt((error**2).mean())
    r = reference.nonhierarchicality(terms, molecule).mean()
    weights = learned_weights(model)
    if not hierarchical:
        weights.remove(next(w for w in weights if w is model.blocks[0].readout.weight))
    l2 = squares(*weights)
    loss = (mae + rmse) / model.sigma_e + 1e-3 * l2 + (0.3 * r if hierarchical else 0.0)

    got = HIPNNLoss(model, lambda_l2=1e-3, lambda_r=0.3)(batch)
    expected = [loss, mae, rmse, l2, r]
    for name, value, hand in zip(got._fields, got, expected, strict=True):
        assert value.item() == pytest.approx(hand, rel=50 * tolerance["rtol"]), name
    assert got.mae.dtype == got.rmse.dtype == got.r.dtype == torch.float64


def test_r_term_only_with_hierarchy(small_model: Callable[..., HIPNN]) -> None:
    batch = make_batch()
    for hierarchical in (True, False):
        model = small_model(hierarchical=hierarchical)
        without, with_r = (HIPNNLoss(model, 0.0, weight)(batch) for weight in (0.0, 0.5))
        difference = (with_r.loss - without.loss).item()
        expected = 0.5 * with_r.r.item() if hierarchical else 0.0
        assert difference == pytest.approx(expected, rel=1e-12)
        assert with_r.r.item() > 0.1


def test_a_column_of_targets_is_refused(small_model: Callable[..., HIPNN]) -> None:
    """It would be subtracted from all energies, each from each."""
    batch = make_batch()
    loss = HIPNNLoss(small_model())
    with pytest.raises(ValueError, match=r"\[G\], not \[3, 1\]"):
        loss(batch._replace(target=batch.target.unsqueeze(1)))
    assert bool(torch.isfinite(loss(batch).loss))  # control


def test_l2_counts_exactly_the_learned_weights(small_model: Callable[..., HIPNN]) -> None:
    """One coefficient changed: weights move the term, everything else leaves it alone."""
    model = small_model(num_interactions=3)
    counted = {id(weight) for weight in learned_weights(model)}
    assert len(counted) == 3 * 6 + 1  # w~, V, two (W, W~) per block, and M~ of the first
    before = l2_norm(model).item()
    assert before == pytest.approx(squares(*learned_weights(model)), rel=1e-12)
    for name, parameter in model.named_parameters():
        old = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] = 7.0
        moved = l2_norm(model).item() - before
        expected = 49.0 - old.view(-1)[0].item() ** 2 if id(parameter) in counted else 0.0
        assert moved == pytest.approx(expected, rel=1e-9, abs=1e-9), name
        with torch.no_grad():
            parameter.copy_(old)


def test_l2_gradient_reaches_weights_only(small_model: Callable[..., HIPNN]) -> None:
    model = small_model()
    l2_norm(model).backward()
    counted = {id(weight) for weight in learned_weights(model)}
    for name, parameter in model.named_parameters():
        if id(parameter) in counted:
            torch.testing.assert_close(parameter.grad, 2 * parameter.detach())
        else:
            assert parameter.grad is None, name


def test_w0_is_not_trained(small_model: Callable[..., HIPNN]) -> None:
    model = small_model()
    HIPNNLoss(model)(make_batch()).loss.backward()
    assert model.reference.weight.grad is None and model.reference.bias.grad is None
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_gradient_at_zero_error(small_model: Callable[..., HIPNN]) -> None:
    """RMSE is a norm and R a quotient: their gradients at 0 must be 0, not 0/0."""
    model = small_model(kernel="reference")
    model.set_e0(None, 1.7)
    batch = make_batch()
    pairs = all_pairs(
        "reference", batch.pos, batch.batch, batch.ptr, batch.max_atoms, batch.num_edges
    )
    terms, _ = model.atom_terms(model.species_index(batch.z), pairs)
    sums = terms.detach().new_zeros(3, terms.size(1)).index_add(0, batch.batch, terms.detach())
    exact = sums[:, 1:].sum(1)  # the very sum the loss forms, so that the error is exactly 0

    out = HIPNNLoss(model, 0.0, 0.0)(batch._replace(target=exact))
    out.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert out.rmse.item() == out.mae.item() == 0.0
    assert all(bool((g == 0).all()) for g in gradients)
    HIPNNLoss(model, 0.0, 0.0)(batch._replace(target=exact + 1)).loss.backward()
    assert any(bool((g != 0).any()) for g in gradients)  # control: an error gives a gradient


def test_gradient_where_all_energies_vanish(small_model: Callable[..., HIPNN]) -> None:
    model = small_model()
    model.set_e0(None, 1.7)
    with torch.no_grad():
        for block in model.blocks:
            block.readout.weight.zero_()
            block.readout.bias.zero_()
    out = HIPNNLoss(model)(make_batch((0.0, 0.0, 0.0)))
    out.loss.backward()
    assert out.r.item() == out.mae.item() == 0.0
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)


def test_energies_are_summed_in_float64(small_model: Callable[..., HIPNN]) -> None:
    """An E^0 of a million eV costs a float32 model nothing: the error is formed on E - E^0."""
    batch = make_batch()
    model = small_model(torch.float32, hierarchical=True)
    model.set_e0(None, 1.7)
    small = HIPNNLoss(model, 0.0, 0.0)(batch).mae.item()
    model.set_e0([-1.0e6, -2.0e6, -3.0e6, -4.0e6], 1.7)
    shift = torch.tensor([-6.0e6, -6.0e6, -6.0e6], dtype=torch.float64)  # H2O, CH4, NH3
    large = HIPNNLoss(model, 0.0, 0.0)(batch._replace(target=batch.target + shift)).mae.item()
    assert large == pytest.approx(small, abs=1e-8)


@pytest.mark.parametrize("square", [0.0, 7.0])
def test_slopes_are_the_derivatives_of_the_terms(
    square: float, small_model: Callable[..., HIPNN]
) -> None:
    model = small_model(sigma_e=2.5)
    loss = HIPNNLoss(model, lambda_r=0.3)
    sums = torch.tensor([0.5 * square, square, 1.3, 6.0], dtype=torch.float64, requires_grad=True)
    terms = loss.terms(sums, torch.zeros((), dtype=torch.float64))
    (expected,) = torch.autograd.grad(terms.loss, sums)
    terms = LossTerms(*(term.detach() for term in terms))
    torch.testing.assert_close(loss.slopes(terms, sums.detach()), expected[:3])
    # Control: another number of molecules has other derivatives.
    other = sums.detach() - torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert not torch.allclose(loss.slopes(terms, other), expected[:3])
