"""HIP-NN in TorchSim: its own validation, the same numbers as ASE, batched dynamics."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_sim
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet
from torch_geometric.data import Data
from torch_sim.integrators.nve import nve
from torch_sim.models.interface import validate_model_outputs
from torch_sim.optimizers import fire, frechet_cell_fire
from torch_sim.units import UnitSystem

from hipnn_pyg import HIPNN, StructureError, save_model
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.interfaces.loading import NotAPotentialError
from hipnn_pyg.interfaces.torch_sim import TorchSimModel
from hipnn_pyg.models.potential import HIPNNPotential
from hipnn_pyg.models.self_check import SelfCheckError
from hipnn_pyg.units import kcal_per_mol

Build = Callable[..., HIPNN]
TIME = float(UnitSystem.metal.time)  # of 1 ps


@pytest.fixture
def model(small_model: Build) -> HIPNN:
    return small_model(energy_unit="eV")


def molecules() -> list[Atoms]:
    found = [molecule(name) for name in ("CH3CH2OH", "H2O", "CH4", "NH3", "O")]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.05, seed=seed)
    return found


def crystals() -> list[Atoms]:
    """One smaller than the cutoff; one skewed; one of a left-handed cell."""
    small = bulk("NaCl", "rocksalt", 4.1)
    small.numbers[:] = (6, 8)
    skewed = small.repeat((1, 2, 1))
    skewed.set_cell(skewed.cell.array @ [[1, 0.3, 0], [0, 1, 0], [0.1, 0, 1]], scale_atoms=True)
    left = skewed.copy()
    left.set_cell(left.cell.array[[1, 0, 2]])
    for seed, atoms in enumerate((small, skewed, left)):
        atoms.rattle(0.1, seed=seed)
    return [small, skewed, left]


def state(atoms: list[Atoms]) -> torch_sim.SimState:
    return torch_sim.io.atoms_to_state(atoms, torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("make", [HIPNNCalculator, TorchSimModel])
def test_kernels_are_checked_where_potentials_are_made(
    make: Callable[..., object], model: HIPNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(kernel: str, device: torch.device | str) -> None:
        raise SelfCheckError(f"{kernel} on {device} differs")

    monkeypatch.setattr("hipnn_pyg.interfaces.loading.self_check", differs)
    kernel = model.kernel_on(torch.device("cpu"))
    with pytest.raises(SelfCheckError, match=f"{kernel} on cpu differs"):
        make(model)


def test_torch_sims_own_validation(small_model: Build) -> None:
    for dtype in torch.float32, torch.float64:
        known = small_model(species=(14, 26), energy_unit="eV", cutoff=5.0)
        model = TorchSimModel(known, dtype=dtype, compute_stress=dtype == torch.float64)
        validate_model_outputs(model, torch.device("cpu"), dtype)
        assert model.compute_stress and model.dtype == dtype
        result = model(torch_sim.io.atoms_to_state([bulk("Si")], torch.device("cpu"), dtype))
        assert {value.dtype for value in result.values()} == {dtype}


@pytest.mark.parametrize("make", [molecules, crystals])
def test_the_same_as_the_calculator(model: HIPNN, make: Callable[[], list[Atoms]]) -> None:
    periodic = make is crystals
    batched = TorchSimModel(model, compute_stress=periodic)(state(make()))
    expected = []
    for atoms in make():
        atoms.calc = HIPNNCalculator(model)
        atoms.get_stress(voigt=False) if periodic else atoms.get_forces()
        expected.append(atoms)
    results = {name: [a.calc.results[name] for a in expected] for name in ("energy", "forces")}
    close = {"rtol": 1e-11, "atol": 1e-11}
    np.testing.assert_allclose(batched["energy"], results["energy"], **close)
    np.testing.assert_allclose(batched["forces"], np.concatenate(results["forces"]), **close)
    r = [a.calc.results["nonhierarchicality"] for a in expected]
    np.testing.assert_allclose(batched["nonhierarchicality"], r, **close)
    energies = np.concatenate([a.get_potential_energies() for a in expected])
    np.testing.assert_allclose(batched["energies"], energies, **close)
    assert ("stress" in batched) == periodic
    if periodic:
        stress = [a.get_stress(voigt=False) for a in expected]
        np.testing.assert_allclose(batched["stress"], stress, **close)


def test_float32_networks_far_from_the_origin(small_model: Build) -> None:
    """Distances are formed in float64 by all that take positions in float64: nothing is lost."""
    model, found = small_model(torch.float32, energy_unit="eV"), []
    for where in (0.0, 1e5):
        atoms = molecules()[0]
        atoms.positions += where
        atoms.calc = HIPNNCalculator(model)
        data = Data(z=torch.tensor(atoms.numbers), pos=torch.tensor(atoms.positions))
        forces = HIPNNPotential(model)(data).forces, TorchSimModel(model)(state([atoms]))["forces"]
        found.append([*(each.numpy() for each in forces), atoms.get_forces()])
    for near, far in zip(*found, strict=True):
        np.testing.assert_allclose(far, near, rtol=0, atol=1e-5 * np.abs(near).max())
    data.pos = data.pos.float()  # control
    assert np.abs(HIPNNPotential(model)(data).forces.numpy() - near).max() > 1e-3


def test_units_and_files(small_model: Build, tmp_path: Path) -> None:
    at = state(molecules())
    plain = TorchSimModel(small_model(energy_unit="eV"))(at)
    save_model(small_model(energy_unit="kcal/mol"), tmp_path / "kcal", target="energy")
    converted = TorchSimModel(tmp_path / "kcal")(at)
    for name in "energy", "forces", "energies":
        torch.testing.assert_close(converted[name], kcal_per_mol * plain[name])
    save_model(small_model(energy_unit="eV"), tmp_path / "qm9", target="U0_atom")
    with pytest.raises(NotAPotentialError, match="zero-point"):
        TorchSimModel(tmp_path / "qm9")
    assert TorchSimModel(tmp_path / "qm9", i_know=True)
    with pytest.raises(ValueError, match="qm9-u0-ensemble is an ensemble.*one model"):
        TorchSimModel("qm9-u0-ensemble", i_know=True)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_in_inference_mode(small_model: Build, kernel: str) -> None:
    """The neighbours found there are used outside, and so may the state be."""
    energies, outside = small_model(energy_unit="eV", kernel=kernel), state(molecules())
    expected = TorchSimModel(energies)(outside)["forces"]  # control
    with torch.inference_mode():
        inside = state(molecules())
    for made in outside, inside:
        model = TorchSimModel(energies)
        with torch.inference_mode():
            assert torch.equal(model(made)["forces"], expected)
        assert torch.equal(model(made)["forces"], expected) and model.searches == 1


def test_pairs_are_kept_while_that_is_safe(model: HIPNN) -> None:
    """Also for atoms wrapped into the cell; not for other cells, atoms or larger moves."""
    kept = TorchSimModel(model, compute_stress=True)
    at = state(crystals())
    searches = 0

    def check(new: int) -> None:
        nonlocal searches
        fresh = TorchSimModel(model, compute_stress=True, skin=0.0)(at)
        for name, value in kept(at).items():
            torch.testing.assert_close(value, fresh[name], rtol=1e-10, atol=1e-10)
        searches += new
        assert kept.searches == searches

    check(1)
    at.positions = at.positions + 0.13  # moves of 0.225 Å
    check(0)
    cell = at.row_vector_cell[at.system_idx]
    images = torch.tensor([1.0, -2.0, 0.0]).double().expand(len(cell), 3)
    wrapped = at.positions + torch.einsum("na,nax->nx", images, cell)
    assert float((wrapped - at.positions).abs().max()) > 2
    at.positions = wrapped
    check(0)
    at.positions = at.positions + torch.tensor([0.06, 0.0, 0.0])
    check(1)
    at.row_vector_cell = at.row_vector_cell * 1.001
    check(1)
    at.atomic_numbers = at.atomic_numbers.flip(0)
    check(1)
    at = state(crystals()[:2])
    check(1)


def test_many_trajectories_at_once(model: HIPNN) -> None:
    """Velocity Verlet in a batch is ASE's, molecule by molecule."""
    start, steps = molecules()[:4], 50
    random = np.random.default_rng(0)
    for atoms in start:
        speed = np.sqrt(300 * units.kB / atoms.get_masses()[:, None])
        atoms.set_velocities(random.normal(size=(len(atoms), 3)) * speed)
    potential = TorchSimModel(model)
    step = torch.tensor(5e-4 * TIME, dtype=torch.float64)
    begin, update = nve(potential, dt=step, kT=torch.tensor(0.025, dtype=torch.float64))
    at = begin(state(start))
    # ASE's momenta are in the same units: amu Å / (Å sqrt(amu / eV)).
    at.momenta = torch.tensor(np.concatenate([atoms.get_momenta() for atoms in start]))
    for _ in range(steps):
        at = update(at)
    ends = []
    for atoms in start:
        atoms.calc = HIPNNCalculator(model)
        VelocityVerlet(atoms, 0.5 * units.fs).run(steps)
        ends.append(atoms.positions)
    np.testing.assert_allclose(at.positions, np.concatenate(ends), rtol=0, atol=1e-6)
    moved = np.concatenate(ends) - np.concatenate([atoms.positions for atoms in molecules()[:4]])
    assert np.abs(moved).max() > 0.3 and potential.searches < 30


def test_many_relaxations_at_once(model: HIPNN) -> None:
    start = molecules()[1:4]
    done = torch_sim.optimize(
        start,
        TorchSimModel(model),
        optimizer=fire,
        convergence_fn=torch_sim.runners.generate_force_convergence_fn(
            0.01, include_cell_forces=False
        ),
        max_steps=2_000,
    )
    for before, after in zip(start, done.to_atoms(), strict=True):
        before.calc = after.calc = HIPNNCalculator(model)
        assert np.linalg.norm(after.get_forces(), axis=1).max() < 0.01
        assert after.get_potential_energy() < before.get_potential_energy() - 0.01


def test_relaxation_of_cells(model: HIPNN) -> None:
    """TorchSim's sign and units of stress are ours."""
    start = bulk("NaCl", "cesiumchloride", 1.82)
    start.numbers[:] = (6, 8)
    potential = TorchSimModel(model, compute_stress=True)
    begin, update = frechet_cell_fire(potential, hydrostatic_strain=True)
    at = begin(state([start]))
    for _ in range(300):
        at = update(at)
    (end,) = at.to_atoms()
    end.calc = HIPNNCalculator(model)
    assert end.get_volume() < start.get_volume() - 0.05
    assert abs(end.get_stress()[:3].mean()) * end.get_volume() < 0.01


def test_bad_input_stops(model: HIPNN) -> None:
    potential = TorchSimModel(model)
    good = state(molecules())
    expected = potential(good)["energy"]
    lost, same, foreign = good.clone(), good.clone(), good.clone()
    lost.positions[3, 1] = torch.nan
    same.positions[1] = same.positions[0]
    foreign.atomic_numbers[0] = 79
    for bad, message in (lost, "atom 3"), (same, "atoms 0 and 1"), (foreign, "79"):
        with pytest.raises(StructureError, match=message):
            potential(bad)
    singular = state(crystals())
    singular.cell[1, :, 2] = singular.cell[1, :, 1]
    with pytest.raises(StructureError, match="singular"):
        potential(singular)
    with pytest.raises(StructureError, match="compute_stress=False"):
        TorchSimModel(model, compute_stress=True)(good)
    with pytest.raises(ValueError, match="skin"):
        TorchSimModel(model, skin=-1)
    torch.testing.assert_close(potential(good)["energy"], expected, rtol=0, atol=0)


def test_a_least_distance(model: HIPNN) -> None:
    water = molecules()[1]
    r = water.get_all_distances()[np.triu_indices(3, 1)].min()
    near, far = (TorchSimModel(model, min_distance=r + by) for by in (-1e-6, 1e-6))
    assert bool(near(state([water]))["energy"].isfinite().all())
    with pytest.raises(StructureError, match="atoms . and . are .* apart"):
        far(state([water]))


def test_later_versions_say_pbc_for_each_direction(model: HIPNN) -> None:
    """Their states have tensors; a slab is one there, and a molecule in 0.3.0."""
    slab = Atoms("CO", [[0.1, 0, 0], [1.3, 0.4, 0.8]], cell=[2.6, 2.7, 30], pbc=(1, 1, 0))
    slab.calc = HIPNNCalculator(model)
    at = state([slab])
    assert at.pbc is False
    alone = float(TorchSimModel(model)(at)["energy"])
    at.pbc = torch.tensor([True, True, False])
    energy = float(TorchSimModel(model)(at)["energy"])
    assert energy == pytest.approx(slab.get_potential_energy(), rel=1e-12) and energy != alone


def test_without_torchsim_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch_sim.models.interface", None)
    monkeypatch.delitem(sys.modules, "hipnn_pyg.interfaces.torch_sim")
    with pytest.raises(ImportError, match=r"hipnn_pyg\[sim\]"):
        importlib.import_module("hipnn_pyg.interfaces.torch_sim")
