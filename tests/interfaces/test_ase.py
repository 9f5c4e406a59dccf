"""HIP-NN in ASE: derivatives, optimisers, vibrations, dynamics, files, ensembles, refusals."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import SumCalculator
from ase.eos import EquationOfState
from ase.md.verlet import VelocityVerlet
from ase.vibrations import Vibrations
from torch._dynamo.utils import counters
from torch_geometric.data import Data

from hipnn_pyg import HIPNN, StructureError, save_model
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.interfaces.loading import NotAPotentialError
from hipnn_pyg.models.files import ModelFileError, member_folders
from hipnn_pyg.models.potential import HIPNNPotential
from hipnn_pyg.models.pretrained import model_folder
from hipnn_pyg.uncertainty import CalibratedModel
from hipnn_pyg.units import Hartree, kcal_per_mol

Build = Callable[..., HIPNN]


@pytest.fixture
def model(small_model: Build) -> HIPNN:
    return small_model(energy_unit="eV")


def crystal() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", 4.1).repeat((2, 1, 1))
    atoms.numbers[:] = (6, 8, 7, 1)
    atoms.rattle(0.1, seed=1)
    return atoms


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def slab() -> Atoms:
    return Atoms("CO", [[0.1, 0, 0], [1.3, 0.4, 0.8]], cell=[2.6, 2.7, 0], pbc=(True, True, False))


# -- what it computes --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ethanol, crystal, slab])
def test_finite_differences(model: HIPNN, make: Callable[[], Atoms]) -> None:
    atoms = make()
    atoms.calc = HIPNNCalculator(model)
    forces = atoms.get_forces()
    other = make()
    other.calc = atoms.calc
    numerical = calculate_numerical_forces(other, eps=1e-5, iatoms=[0, 1])
    np.testing.assert_allclose(numerical, forces[:2], rtol=0, atol=1e-7)
    assert np.abs(forces[:2]).max() > 0.1
    if make is crystal:
        stress = atoms.get_stress()
        expected = calculate_numerical_stress(other, eps=1e-5)
        np.testing.assert_allclose(stress, expected, rtol=0, atol=1e-7)
        assert np.abs(stress).min() > 1e-4  # all six count


def test_results(model: HIPNN) -> None:
    atoms = crystal()
    atoms.calc = HIPNNCalculator(model)
    expected = HIPNNPotential(model)(
        torch.tensor(atoms.numbers),
        torch.tensor(atoms.positions),
        cell=torch.tensor(atoms.cell.array),
    )
    energy = atoms.get_potential_energy()
    assert energy == pytest.approx(float(expected.energy), rel=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == energy
    assert atoms.get_potential_energies().sum() == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, rtol=1e-11, atol=1e-11)
    assert expected.stress is not None
    matrix = atoms.get_stress(voigt=False)
    np.testing.assert_allclose(matrix, expected.stress[0], rtol=1e-11, atol=1e-11)
    r = atoms.calc.get_property("nonhierarchicality", atoms)
    assert r == atoms.calc.results["nonhierarchicality"]
    assert r == pytest.approx(float(expected.nonhierarchicality), rel=1e-12)
    assert type(r) is float and type(energy) is float


def test_one_calculation_serves_all_properties(model: HIPNN) -> None:
    """Charges and moments change nothing; positions, even by the last bit, do."""
    atoms = crystal()
    atoms.calc = calculator = HIPNNCalculator(model)
    calls = []
    calculate = calculator.calculate
    calculator.calculate = lambda *args: calls.append(args) or calculate(*args)
    for read in atoms.get_potential_energy, atoms.get_forces, atoms.get_stress:
        read()
    atoms.set_initial_charges([1, 0, 0, -1])
    atoms.get_forces()
    assert len(calls) == 1
    atoms.positions[0, 0] = np.nextafter(atoms.positions[0, 0], 9)
    atoms.get_forces()
    assert len(calls) == 2


def test_called_by_hand_it_knows_whose_results_it_has(model: HIPNN) -> None:
    near, far = (ase.Atoms("CO", [[0, 0, 0], [0, 0, r]]) for r in (1.1, 1.6))
    near.calc = calculator = HIPNNCalculator(model)
    energy, forces = near.get_potential_energy(), near.get_forces()
    calculator.calculate(far, ["energy"])
    assert calculator.results["energy"] != energy  # control
    assert near.get_potential_energy() == energy
    np.testing.assert_array_equal(near.get_forces(), forces)


@pytest.mark.parametrize("unit, factor", [("kcal/mol", kcal_per_mol), ("Hartree", Hartree)])
def test_units_come_from_the_model(small_model: Build, unit: str, factor: float) -> None:
    results = []
    for name in "eV", unit:
        atoms = crystal()
        atoms.calc = HIPNNCalculator(small_model(energy_unit=name))
        atoms.get_potential_energy()
        results.append(atoms.calc.results)
    for name in "energy", "free_energy", "energies", "forces", "stress":
        np.testing.assert_allclose(results[1][name], factor * results[0][name], rtol=1e-12)
    assert results[1]["nonhierarchicality"] == results[0]["nonhierarchicality"]


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_in_inference_mode(small_model: Build, kernel: str) -> None:
    """The neighbours found there are used outside, too."""
    atoms, again = crystal(), crystal()
    model = small_model(energy_unit="eV", kernel=kernel)
    atoms.calc, again.calc = HIPNNCalculator(model), HIPNNCalculator(model)
    with torch.inference_mode():
        again.get_forces()
    for moved in (atoms, again):
        moved.positions[0] += 0.01
    np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(again.get_stress(), atoms.get_stress(), rtol=0, atol=1e-12)
    assert again.calc.neighbors.searches == 1


def test_unknown_unit_stops(small_model: Build) -> None:
    for unit in "unknown", "Debye":
        with pytest.raises(ValueError, match="energy_unit"):
            HIPNNCalculator(small_model(energy_unit=unit))


def test_precision(model: HIPNN) -> None:
    """The model given stays as it is; a float32 network is close to the float64 one."""
    energies = {}
    for dtype in None, "float64", "float32", torch.float32:
        atoms = crystal()
        atoms.calc = HIPNNCalculator(model, dtype=dtype)
        energies[dtype] = atoms.get_potential_energy()
    assert energies[None] == energies["float64"] != energies["float32"]
    assert energies["float32"] == energies[torch.float32]
    assert energies["float32"] == pytest.approx(energies[None], rel=1e-5)
    assert model.blocks[0].interaction.V.dtype == torch.float64
    assert model.blocks[0].interaction.V.requires_grad


def ensemble(small_model: Build) -> list[HIPNN]:
    models = [small_model(energy_unit="eV", cutoff=cutoff) for cutoff in (3.0, 3.5, 2.5)]
    for scale, each in zip((1.0, 1.1, 0.8), models, strict=True):
        with torch.no_grad():
            each.blocks[0].readout.weight.mul_(scale)
    return models


def test_an_ensemble_and_its_spread(small_model: Build) -> None:
    models = ensemble(small_model)
    alone = []
    for each in models:
        atoms = crystal()
        atoms.calc = HIPNNCalculator(each)
        atoms.get_stress()
        alone.append(atoms.calc.results)
    atoms.calc = calculator = HIPNNCalculator(models)
    atoms.get_stress()
    for name in alone[0]:
        values = np.array([results[name] for results in alone])
        np.testing.assert_allclose(
            calculator.results[name], values.mean(0), rtol=1e-11, atol=1e-12, err_msg=name
        )
        if name in ("energy", "forces"):
            spread = calculator.get_property(f"{name}_std", atoms)
            np.testing.assert_allclose(spread, values.std(0, ddof=1), rtol=1e-9, atol=1e-12)
            assert np.max(spread) > 1e-2
    assert "energy_std" not in alone[0]
    atoms.calc = HIPNNCalculator(models[:1])
    assert atoms.get_potential_energy() and atoms.calc.results["energy_std"] == 0


def test_files_of_two_models(small_model: Build, tmp_path: Path) -> None:
    """Already two are an ensemble, given by their folder too; not if they learned other things."""
    models, atoms = ensemble(small_model)[:2], ethanol()
    for number, each in enumerate(models):
        save_model(each, tmp_path / f"member-{number}", target="U0")
    atoms.calc = HIPNNCalculator(models)
    mean, spread = atoms.get_potential_energy(), atoms.calc.results["energy_std"]
    atoms.calc = HIPNNCalculator(tmp_path, i_know=True)
    assert atoms.get_potential_energy() == mean and spread > 1e-2
    assert atoms.calc.results["energy_std"] == spread
    save_model(models[1], tmp_path / "other", target="H")
    HIPNNCalculator(tmp_path / "other", i_know=True)  # control
    with pytest.raises(ModelFileError, match="target = U0, .* has H: models that are averaged"):
        HIPNNCalculator([tmp_path / "member-0", tmp_path / "other"], i_know=True)


# -- error bars --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qm9-u0", "qm9-u0-ensemble"])
def test_error_bars_are_those_of_predict(name: str) -> None:
    """In eV, and only when asked for."""
    calibrated = CalibratedModel.load(name)
    calculator = HIPNNCalculator(name, i_know=True)
    flags = []
    for stretch in (0.0, 0.3):  # the second is unlike all training data
        atoms = molecule("CH3CH2OH")
        atoms.set_distance(0, 1, atoms.get_distance(0, 1) + stretch, fix=0)
        atoms.calc = calculator
        data = Data(z=torch.tensor(atoms.numbers), pos=torch.tensor(atoms.positions))
        expected = calibrated.predict([data], "given")
        energy = atoms.get_potential_energy()
        assert "q90" not in calculator.results
        q90 = calculator.get_property("q90", atoms)
        flags.append(calculator.get_property("unlike_training", atoms))
        assert energy == pytest.approx(float(expected.energy), rel=1e-6)
        assert q90 == pytest.approx(float(expected.q90), rel=1e-3)
        assert expected.unlike_training is not None
        assert flags[-1] is bool(expected.unlike_training[0])
        assert atoms.get_forces().shape == (9, 3)
    assert flags == [False, True]
    in_kcal = HIPNNCalculator(name, i_know=True)
    in_kcal.to_ev = [0.5 * unit for unit in in_kcal.to_ev]  # control: the unit counts
    assert in_kcal.get_property("q90", atoms) == pytest.approx(0.5 * q90, rel=1e-3)


def test_error_bars_leave_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass through the network gives them, and none of the potential; until an atom moves."""
    atoms, calls = molecule("CH3CH2OH"), []
    evaluate = HIPNNPotential.evaluate
    monkeypatch.setattr(
        HIPNNPotential, "evaluate", lambda *given: calls.append(1) or evaluate(*given)
    )
    fresh = HIPNNCalculator("qm9-u0", i_know=True).get_property("q90", atoms)
    atoms.calc = HIPNNCalculator("qm9-u0", i_know=True)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    assert len(calls) == 2
    assert atoms.calc.get_property("q90", atoms) == fresh
    assert atoms.calc.get_property("unlike_training", atoms) is False
    assert atoms.get_potential_energy() == energy
    np.testing.assert_array_equal(atoms.get_forces(), forces)
    assert len(calls) == 2
    atoms.positions[0, 0] += 0.02
    assert atoms.calc.get_property("q90", atoms) != fresh
    assert atoms.get_potential_energy() != energy and len(calls) == 3


def test_the_folder_of_an_ensemble_is_averaged() -> None:
    atoms = molecule("CH3OH")
    atoms.calc = HIPNNCalculator("qm9-u0-ensemble", i_know=True)
    energy = atoms.get_potential_energy()
    folders = member_folders(model_folder("qm9-u0-ensemble"))
    atoms.calc = HIPNNCalculator(folders, i_know=True)
    assert atoms.get_potential_energy() == energy and atoms.calc.results["energy_std"] > 1e-4
    with pytest.raises(PropertyNotImplementedError):  # of the members, not of their folder
        atoms.calc.get_property("q90", atoms)
    atoms.calc = HIPNNCalculator(folders[1], i_know=True)
    assert atoms.get_potential_energy() != energy  # control
    for named in (["qm9-u0-ensemble"], ["qm9-u0-ensemble", folders[1]]):
        atoms.calc = HIPNNCalculator(named, i_know=True)
        assert len(atoms.calc.potentials) == 3 and atoms.get_potential_energy() == energy


# -- what ASE does with it ---------------------------------------------------------------------


def cesium_chloride(a: float) -> Atoms:
    """At a = 1.78 Å the model has a minimum of this (else meaningless) crystal."""
    atoms = bulk("NaCl", "cesiumchloride", a)
    atoms.numbers[:] = (6, 8)
    return atoms


def test_equation_of_state_agrees_with_stress(model: HIPNN) -> None:
    volumes, energies, pressures = [], [], []
    calculator = HIPNNCalculator(model)
    for a in np.linspace(1.765, 1.815, 9):
        atoms = cesium_chloride(a)
        atoms.calc = calculator
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
        pressures.append(-atoms.get_stress()[:3].mean())
    v0, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    assert volumes[0] < v0 < volumes[-1] and modulus > 0
    assert np.interp(0.0, pressures[::-1], volumes[::-1]) == pytest.approx(v0, rel=2e-3)
    slope = np.gradient(energies, volumes)[1:-1]
    np.testing.assert_allclose(pressures[1:-1], -slope, rtol=0, atol=0.05 * np.ptp(pressures))


def test_vibrations(model: HIPNN, tmp_path: Path) -> None:
    """ASE's Hessian from differences of forces is the second derivative of the energy."""
    atoms = molecule("H2O")
    atoms.calc = HIPNNCalculator(model)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-4)
    vibrations.run()
    hessian = vibrations.get_vibrations().get_hessian_2d()

    def energy(pos: torch.Tensor) -> torch.Tensor:
        return model(torch.tensor(atoms.numbers), pos.view(3, 3)).sum()

    pos = torch.tensor(atoms.positions).flatten()
    expected = torch.autograd.functional.hessian(energy, pos)
    np.testing.assert_allclose(hessian, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert len(vibrations.get_frequencies()) == 9


@pytest.mark.parametrize("suffix", ["extxyz", "traj"])
def test_results_in_files(small_model: Build, tmp_path: Path, suffix: str) -> None:
    """ASE writes the properties it knows; R and the spreads are no obstacle."""
    path = tmp_path / f"frames.{suffix}"
    frames = [crystal(), crystal()]
    frames[1].rattle(0.05, seed=5)
    for atoms in frames:
        atoms.calc = HIPNNCalculator(ensemble(small_model))
        atoms.get_stress()
    ase.io.write(path, frames)
    for atoms, read_back in zip(frames, ase.io.read(path, index=":"), strict=True):
        assert read_back.get_potential_energy() == pytest.approx(
            atoms.get_potential_energy(), abs=1e-7
        )
        for read in Atoms.get_forces, Atoms.get_stress, Atoms.get_potential_energies:
            np.testing.assert_allclose(read(read_back), read(atoms), rtol=0, atol=1e-7)
    assert {"nonhierarchicality", "energy_std", "forces_std"} <= set(frames[0].calc.results)


def test_what_else_ase_asks_for(model: HIPNN) -> None:
    """Its property objects, sums of calculators, copies, one calculator for the images of a NEB."""
    atoms = crystal()
    atoms.calc = calculator = HIPNNCalculator(model)
    found = atoms.get_properties(["energy", "forces", "stress"])
    assert found["energy"] == atoms.get_potential_energy() and len(found["forces"]) == 4
    assert "nonhierarchicality" not in found
    double = crystal()
    double.calc = SumCalculator([calculator, copy.deepcopy(calculator)])
    np.testing.assert_allclose(double.get_forces(), 2 * atoms.get_forces(), rtol=1e-12)
    np.testing.assert_allclose(double.get_stress(), 2 * atoms.get_stress(), rtol=1e-12)
    other = crystal()
    other.calc = pickle.loads(pickle.dumps(calculator))
    assert other.get_potential_energy() == atoms.get_potential_energy()
    searches = calculator.neighbors.searches
    calculator.reset()
    assert not calculator.results
    same(atoms, other)
    assert calculator.neighbors.searches == searches + 1


# -- dynamics ----------------------------------------------------------------------------------


def hot_box() -> Atoms:
    """Six atoms at 3000 K in a box smaller than twice the cutoff."""
    positions = [[0.2, 0.3, 0.1], [2.1, 0.2, 0.4], [0.1, 2.2, 0.3], [0.4, 0.1, 2.2]]
    positions += [[2.2, 2.3, 0.1], [2.0, 2.1, 2.4]]
    atoms = Atoms("CONCHO", positions, cell=[[4.2, 0, 0], [0.3, 4.1, 0], [0, 0.4, 4.3]], pbc=True)
    speed = np.sqrt(3000 * units.kB / atoms.get_masses()[:, None])
    atoms.set_velocities(np.random.default_rng(0).normal(size=(6, 3)) * speed)
    return atoms


def trajectory(model: HIPNN, skin: float, stale: bool = False) -> tuple[Atoms, int]:
    """100 steps of 0.5 fs, wrapped into the box every 7 steps; the number of searches."""
    atoms = hot_box()
    atoms.calc = calculator = HIPNNCalculator(model, skin=skin)
    if stale:
        atoms.get_forces()
        calculator.neighbors.holds = lambda atoms: True
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.attach(atoms.wrap, interval=7)
    dynamics.run(100)
    return atoms, calculator.neighbors.searches


def test_the_skin_does_not_change_a_trajectory(small_model: Build) -> None:
    model = small_model(energy_unit="eV", hidden_channels=4, num_onsite=0, cutoff=2.6)
    fresh, every = trajectory(model, 0.0)
    kept, some = trajectory(model, 0.2)
    np.testing.assert_allclose(kept.positions, fresh.positions, rtol=0, atol=1e-8)
    np.testing.assert_allclose(kept.get_velocities(), fresh.get_velocities(), rtol=0, atol=1e-8)
    travelled = np.abs(fresh.positions - hot_box().positions).max()
    assert travelled > 0.5
    assert every > 100 and 15 < some < 0.6 * every
    stale, once = trajectory(model, 0.2, stale=True)
    assert once == 1
    assert np.abs(stale.positions - fresh.positions).max() > 1e-3  # a stale list would show


def test_atoms_that_cross_the_box_in_a_step(small_model: Build) -> None:
    """Faster than any skin: every step searches."""
    model = small_model(energy_unit="eV", hidden_channels=4, num_onsite=0, cutoff=2.6)
    ends = []
    for skin in 0.0, 0.5:
        atoms = hot_box()
        atoms.calc = calculator = HIPNNCalculator(model, skin=skin)
        velocities = atoms.get_velocities()
        velocities[4] = np.array([11.0, -7.0, 5.0]) / units.fs
        atoms.set_velocities(velocities)
        VelocityVerlet(atoms, 0.5 * units.fs).run(40)
        assert calculator.neighbors.searches == 41
        ends.append(atoms.positions)
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-8)


def test_energy_is_conserved(model: HIPNN) -> None:
    """To the second order of the time step, as velocity Verlet has it for true forces."""

    def fluctuation(step: float) -> float:
        atoms = ethanol()
        atoms.calc = HIPNNCalculator(model)
        energies: list[float] = []
        dynamics = VelocityVerlet(atoms, step * units.fs)
        dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
        dynamics.run(round(10 / step))
        return float(np.ptp(energies))

    coarse, fine = fluctuation(0.2), fluctuation(0.1)
    assert 3.5 < coarse / fine < 4.5


# -- bad input, and changes between calls ------------------------------------------------------


def same(a: Atoms, b: Atoms) -> None:
    assert a.get_potential_energy() == pytest.approx(b.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(a.get_forces(), b.get_forces(), rtol=0, atol=1e-11)


def test_one_calculator_for_changing_structures(model: HIPNN) -> None:
    """Other atoms, species, cells and periodicity: as a fresh calculator."""
    calculator = HIPNNCalculator(model)
    swapped = crystal()
    swapped.numbers[:] = (8, 6, 1, 7)
    strained = crystal()
    strained.set_cell(strained.cell.array * 1.02)
    open_box = crystal()
    open_box.pbc = False
    structures = [
        crystal(),
        swapped,
        strained,
        open_box,
        ethanol(),
        slab(),
        crystal()[:2],
        crystal(),
    ]
    energies = []
    for atoms in structures:
        fresh = atoms.copy()
        atoms.calc, fresh.calc = calculator, HIPNNCalculator(model)
        same(atoms, fresh)
        energies.append(atoms.get_potential_energy())
    assert energies[-1] == energies[0]
    assert len(set(energies)) == len(energies) - 1


def test_left_handed_cells(model: HIPNN) -> None:
    """Exchanged vectors change nothing; a mirror image has the mirror image of the stress."""
    atoms, exchanged, mirrored = crystal(), crystal(), crystal()
    exchanged.set_cell(exchanged.cell.array[[1, 0, 2]])
    mirrored.positions[:, 2] *= -1
    mirrored.set_cell(mirrored.cell.array * [1, 1, -1])
    for each in atoms, exchanged, mirrored:
        each.calc = HIPNNCalculator(model)
    assert np.linalg.det(exchanged.cell) < 0 and np.linalg.det(mirrored.cell) < 0
    same(exchanged, atoms)
    stress = atoms.get_stress()
    np.testing.assert_allclose(exchanged.get_stress(), stress, rtol=0, atol=1e-11)
    assert mirrored.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    mirror = np.array([1, 1, -1])
    np.testing.assert_allclose(mirrored.get_forces(), atoms.get_forces() * mirror, atol=1e-11)
    signs = [1, 1, 1, -1, -1, 1]  # xx yy zz yz xz xy
    np.testing.assert_allclose(mirrored.get_stress(), stress * signs, rtol=0, atol=1e-11)
    assert np.abs(stress).min() > 1e-4


def test_a_least_distance(model: HIPNN) -> None:
    atoms = ethanol()
    r = atoms.get_all_distances()
    i, j = np.unravel_index(np.where(r > 0, r, 9).argmin(), r.shape)
    atoms.calc = HIPNNCalculator(model, min_distance=r[i, j] - 1e-6)
    assert np.isfinite(atoms.get_potential_energy())
    atoms.calc = HIPNNCalculator(model, min_distance=r[i, j] + 1e-6)
    with pytest.raises(StructureError, match=f"atoms {i} and {j} are .* apart"):
        atoms.get_potential_energy()


def test_results_that_are_not_finite_stop(model: HIPNN) -> None:
    atoms = ethanol()
    atoms.calc = HIPNNCalculator(model)
    atoms.get_forces()
    with torch.no_grad():
        atoms.calc.potentials[0].model.blocks[0].readout.weight[0] = torch.inf
    atoms.rattle(0.01)
    with pytest.raises(StructureError, match="not finite"):
        atoms.get_forces()
    assert not atoms.calc.results


@pytest.mark.parametrize("make", [ethanol, slab])
def test_no_stress_without_a_cell(model: HIPNN, make: Callable[[], Atoms]) -> None:
    atoms = make()
    atoms.calc = HIPNNCalculator(model)
    with pytest.raises(PropertyNotImplementedError, match="three directions"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_potential_energy())
    assert "stress" not in atoms.calc.results
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()


def spoil(atoms: Atoms, name: str) -> None:
    if name == "no cell":
        atoms.cell[:] = 0
    elif name == "cell not finite":
        atoms.cell[1, 1] = np.nan
    elif name == "singular cell":
        atoms.cell[2] = atoms.cell[0] - atoms.cell[1]
    elif name == "same site":
        atoms.positions[1] = atoms.positions[0]
    elif name == "same image":
        atoms.positions[1] = atoms.positions[0] + atoms.cell[0] + atoms.cell[2]
    elif name == "lost":
        atoms.positions[2, 1] = np.nan
    elif name == "foreign":
        atoms.numbers[3] = 79


@pytest.mark.parametrize(
    "name, message",
    [
        ("no cell", "zero"),
        ("cell not finite", "finite"),
        ("singular cell", "singular"),
        ("same site", "apart"),
        ("same image", "apart"),
        ("lost", "atom 2"),
        ("foreign", "79"),
    ],
)
def test_bad_structures_stop_and_good_ones_go_on(model: HIPNN, name: str, message: str) -> None:
    atoms, good = crystal(), crystal()
    atoms.calc = HIPNNCalculator(model)
    good.calc = HIPNNCalculator(model)
    atoms.get_forces()
    spoil(atoms, name)
    for _ in range(2):
        with pytest.raises(StructureError, match=message):
            atoms.get_forces()
        assert not atoms.calc.results
    repaired = crystal()
    repaired.calc = atoms.calc
    same(repaired, good)


def test_a_molecule_that_flies_apart(model: HIPNN) -> None:
    atoms = ethanol()
    atoms.calc = HIPNNCalculator(model)
    assert np.abs(atoms.get_forces()).max() > 0.1
    atoms.positions *= 50
    assert not atoms.get_forces().any()
    single = Atoms("O", calculator=atoms.calc)
    assert not single.get_forces().any() and np.isfinite(single.get_potential_energy())


def test_compiled(small_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search anew does not compile again (code generation, which takes long, is left out)."""
    compile_it = torch.compile
    traced = functools.partial(compile_it, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    model = small_model(num_interactions=1, num_onsite=0, energy_unit="eV")
    compiled, eager = crystal(), crystal()
    compiled.calc, eager.calc = HIPNNCalculator(model, compile=True), HIPNNCalculator(model)
    for shift in 0.0, 0.01, 1.0, 3.0:
        for atoms in compiled, eager:
            atoms.positions[0, 0] += shift
        same(compiled, eager)
    assert compiled.calc.neighbors.searches == 3
    assert counters["stats"]["unique_graphs"] == before + 1


# -- model files -------------------------------------------------------------------------------


def test_a_model_file(small_model: Build, tmp_path: Path) -> None:
    model = small_model(energy_unit="kcal/mol")
    save_model(model, tmp_path, target="energy", dataset="md17")
    results = []
    for source in model, tmp_path, str(tmp_path / "model.json"), [tmp_path, model]:
        atoms = ethanol()
        atoms.calc = HIPNNCalculator(source)
        results.append((atoms.get_potential_energy(), atoms.get_forces()))
    for energy, forces in results[1:]:
        assert energy == pytest.approx(results[0][0], rel=1e-12)
        np.testing.assert_allclose(forces, results[0][1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "card, reason",
    [
        ({"target": "U0"}, "zero-point"),
        ({"target": "U0_atom", "dataset": "qm9"}, "zero-point"),
        ({"target": "G_atom", "trained_on_forces": False}, "zero-point"),
        ({"target": "homo"}, "not a potential energy"),
    ],
)
def test_a_model_of_minima_is_no_potential(
    model: HIPNN, tmp_path: Path, card: dict[str, Any], reason: str
) -> None:
    save_model(model, tmp_path, **card)
    for source in tmp_path, tmp_path / "model.json", [model, tmp_path]:
        with pytest.raises(NotAPotentialError, match=reason) as caught:
            HIPNNCalculator(source)
        assert "i_know" in str(caught.value) and "--i-know" in str(caught.value)
    atoms = ethanol()
    for source in tmp_path, "qm9-u0":  # the second comes with the package
        atoms.calc = HIPNNCalculator(source, i_know=True)
        assert np.isfinite(atoms.get_potential_energy())


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"target": "energy"},
        {"target": "energy", "trained_on_forces": False},
        {"target": "U0", "trained_on_forces": True},
    ],
)
def test_others_are_taken(model: HIPNN, tmp_path: Path, card: dict[str, Any]) -> None:
    save_model(model, tmp_path, **card)
    assert HIPNNCalculator(tmp_path).potentials


def test_no_model_stops() -> None:
    with pytest.raises(ValueError, match="no model"):
        HIPNNCalculator([])


def test_a_model_in_memory_is_refused_as_its_file_is() -> None:
    with pytest.raises(NotAPotentialError, match="zero-point"):
        HIPNNCalculator(HIPNN.from_pretrained("qm9-u0"))
    assert HIPNNCalculator(HIPNN.from_pretrained("qm9-u0"), i_know=True).potentials


def test_stress_of_a_molecule_leaves_the_results(model: HIPNN) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = HIPNNCalculator(model)
    forces = atoms.get_forces()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    assert np.array_equal(atoms.calc.results["forces"], forces)
