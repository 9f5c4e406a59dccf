"""Relaxation: minima of the model, with and without the cell; refusals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from hipnn_pyg import HIPNN, StructureError
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.interfaces.dynamics import Simulator
from hipnn_pyg.interfaces.relaxation import OPTIMIZERS, Relaxation, Relaxed, relax
from hipnn_pyg.interfaces.simulation import Simulation, SimulationStopped

Build = Callable[..., HIPNN]


@pytest.fixture
def model(small_model: Build) -> HIPNN:
    return small_model(energy_unit="eV")


def some(model: HIPNN, name: str = "CH3CH2OH", **options: Any) -> Atoms:
    atoms = molecule(name)
    atoms.rattle(0.05, seed=1)
    atoms.calc = HIPNNCalculator(model, **options)
    return atoms


def crystal(model: HIPNN) -> Atoms:
    """At a = 1.78 Å the model has a minimum of this (else meaningless) crystal."""
    atoms = bulk("NaCl", "cesiumchloride", 1.82)
    atoms.numbers[:] = (6, 8)
    atoms.calc = HIPNNCalculator(model)
    return atoms


def run(atoms: Atoms, folder: Path, **settings: Any) -> Relaxed:
    return relax(atoms, Relaxation(**settings), folder, progress=False)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_molecule(model: HIPNN, tmp_path: Path, optimizer: str) -> None:
    atoms = some(model, "H2O")
    before = atoms.get_potential_energy()
    result = run(atoms, tmp_path, optimizer=optimizer)
    assert result.converged and result.steps > 3
    assert result.largest_force == np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.01
    assert result.energy == atoms.get_potential_energy() < before - 0.1
    frames = ase.io.read(tmp_path / "trajectory.extxyz", index=":")
    assert len(frames) == result.steps + 1
    assert frames[0].get_potential_energy() == before
    last = ase.io.read(tmp_path / "last.extxyz")
    np.testing.assert_allclose(last.positions, atoms.positions, atol=1e-8)
    assert last.info["nonhierarchicality"] == result.nonhierarchicality
    assert optimizer in (tmp_path / "relax.log").read_text()


def test_what_is_fixed_stays(model: HIPNN, tmp_path: Path) -> None:
    atoms = some(model)
    atoms.set_constraint(FixAtoms([0, 3]))
    start = atoms.positions.copy()
    assert run(atoms, tmp_path).converged
    np.testing.assert_array_equal(atoms.positions[[0, 3]], start[[0, 3]])
    assert (atoms.positions != start).any()
    assert ase.io.read(tmp_path / "last.extxyz").constraints[0].index.tolist() == [0, 3]


def test_a_cell(model: HIPNN, tmp_path: Path) -> None:
    """With a pressure the cell is smaller and its stress balances it; without --cell it stays."""
    volumes = {}
    for pressure in 0.0, 5.0:
        atoms = crystal(model)
        settings = {"cell": True, "pressure": pressure, "fmax": 1e-3, "optimizer": "BFGS"}
        assert run(atoms, tmp_path / str(pressure), **settings).converged
        volumes[pressure] = atoms.get_volume()
        found = -atoms.get_stress()[:3].mean() / units.GPa
        assert found == pytest.approx(pressure, abs=0.1)
    assert volumes[5.0] < volumes[0.0] - 1e-3
    atoms = crystal(model)
    cell = atoms.cell.array.copy()
    assert run(atoms, tmp_path / "rigid").converged
    np.testing.assert_array_equal(atoms.cell.array, cell)


def test_not_converged_is_said(model: HIPNN, tmp_path: Path) -> None:
    result = run(some(model), tmp_path, steps=2)
    assert not result.converged and result.steps == 2 and result.largest_force > 0.01
    assert (tmp_path / "last.extxyz").exists()
    with pytest.raises(FileExistsError, match="--run"):
        run(some(model), tmp_path)


def test_an_interrupt_stops_between_two_steps(model: HIPNN, tmp_path: Path) -> None:
    atoms, calls = some(model), []
    calculate = atoms.calc.calculate

    def counted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:  # that of the start, then one for each step
            os.kill(os.getpid(), signal.SIGTERM)
        calculate(*arguments)

    atoms.calc.calculate = counted
    with pytest.raises(SimulationStopped, match="stopped after step 2") as caught:
        run(atoms, tmp_path / "a")
    assert caught.value.interrupted and len(calls) == 3
    assert len(ase.io.read(tmp_path / "a" / "trajectory.extxyz", index=":")) == 3
    last = ase.io.read(tmp_path / "a" / "last.extxyz")
    np.testing.assert_allclose(last.positions, atoms.positions, atol=1e-8)
    assert run(some(model), tmp_path / "b", steps=3).steps == 3  # control


def test_what_must_not_go_on(model: HIPNN, tmp_path: Path) -> None:
    atoms = some(model)
    atoms.get_potential_energy()
    r = atoms.calc.results["nonhierarchicality"]
    with pytest.raises(SimulationStopped, match="above the limit"):
        run(atoms, tmp_path / "r", max_r=0.9 * r)
    run(some(model), tmp_path / "control", max_r=10 * r, steps=1)
    shortest = atoms.get_all_distances()[np.triu_indices(9, 1)].min()
    with pytest.raises(StructureError, match="^atoms . and . are .* closer than"):
        run(some(model, min_distance=shortest + 0.01), tmp_path / "d")
    assert not (tmp_path / "d").exists()
    run(some(model), tmp_path / "d", steps=1)  # what is mended can be tried again
    with pytest.raises(ValueError, match="three directions"):
        run(some(model), tmp_path / "cell", cell=True)
    for settings in {"optimizer": "Newton"}, {"fmax": 0.0}, {"steps": 0}:
        with pytest.raises(ValueError, match=next(iter(settings))):
            Relaxation(**settings)


def test_relaxations_and_simulations_leave_one_another_alone(model: HIPNN, tmp_path: Path) -> None:
    run(some(model, "H2O"), tmp_path / "relaxed", steps=3)
    kept = (tmp_path / "relaxed" / "trajectory.extxyz").read_bytes()
    with pytest.raises(FileExistsError, match="choose another --run"):
        Simulator(some(model, "H2O"), Simulation(), tmp_path / "relaxed", progress=False)
    assert (tmp_path / "relaxed" / "trajectory.extxyz").read_bytes() == kept
    simulator = Simulator(some(model, "H2O"), Simulation(), tmp_path / "moved", progress=False)
    simulator.run(3)
    with pytest.raises(FileExistsError, match="--resume"):
        run(some(model, "H2O"), tmp_path / "moved")


def test_pressure_wants_a_cell() -> None:
    with pytest.raises(ValueError, match="--cell true"):
        Relaxation(pressure=10.0)
    assert Relaxation(pressure=10.0, cell=True).pressure == 10.0
