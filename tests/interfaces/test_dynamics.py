"""Simulations: physics, restarts to the last bit, refusals, flat memory."""

from __future__ import annotations

import copy
import csv
import gc
import json
import os
import signal
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLengths, Hookean

from hipnn_pyg import HIPNN, StructureError
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.interfaces.drift import EnergyDrift
from hipnn_pyg.interfaces.dynamics import Simulator
from hipnn_pyg.interfaces.simulation import (
    Simulation,
    SimulationStopped,
    draw_velocities,
    temperature,
)
from hipnn_pyg.models.files import ModelFileError
from hipnn_pyg.units import GPa

Build = Callable[..., HIPNN]


@pytest.fixture
def model(small_model: Build) -> HIPNN:
    """Fast enough for hundreds of steps; forces that hold nothing together, but smooth ones."""
    return small_model(hidden_channels=3, num_interactions=1, num_onsite=0, energy_unit="eV")


def ethanol(model: HIPNN, **options: Any) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.calc = HIPNNCalculator(model, **options)
    return atoms


def box(model: HIPNN, **options: Any) -> Atoms:
    positions = [[0.2, 0.3, 0.1], [2.1, 0.2, 0.4], [0.1, 2.2, 0.3], [2.0, 2.1, 2.4]]
    atoms = Atoms("CONH", positions, cell=[[4.2, 0, 0], [0.3, 4.1, 0], [0, 0.4, 4.3]], pbc=True)
    atoms.calc = HIPNNCalculator(model, **options)
    return atoms


def gas(model: HIPNN, side: int, **options: Any) -> Atoms:
    """A cube of side x side x side atoms out of one another's reach."""
    grid = np.stack(np.meshgrid(*3 * [np.arange(float(side))]), axis=-1).reshape(-1, 3)
    return Atoms(f"O{side**3}", 9 * grid, calculator=HIPNNCalculator(model), **options)


def simulate(
    atoms: Atoms, folder: Path, steps: int, resume: bool = False, **settings: Any
) -> Simulator:
    settings = {"log_every": 2, "save_every": 6, **settings}
    simulator = Simulator(atoms, Simulation(**settings), folder, resume, progress=False)
    simulator.run(steps)
    return simulator


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "log.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


# -- physics -----------------------------------------------------------------------------------


def test_nve_conserves_energy_and_momentum(model: HIPNN, tmp_path: Path) -> None:
    """The fluctuation falls with the square of the time step."""
    found = []
    for timestep in 0.4, 0.2:
        atoms = ethanol(model)
        folder = tmp_path / str(timestep)
        simulator = simulate(atoms, folder, round(40 / timestep), timestep=timestep, log_every=1)
        log, report, drift = rows(folder), simulator.report(), EnergyDrift()
        for row in log:
            drift.add(row["time_ps"], row["total_eV"])
        assert abs(atoms.get_momenta().sum(0)).max() < 1e-12
        spread = {name: np.ptp([row[name] for row in log]) for name in ("kinetic_eV", "total_eV")}
        assert spread["kinetic_eV"] > 100 * spread["total_eV"]
        expected = 1e3 * drift.fluctuation / len(atoms)
        assert report.fluctuation == pytest.approx(expected, rel=1e-9)
        found.append(report.fluctuation)
    assert 3 < found[0] / found[1] < 5


def test_the_log_and_the_report(model: HIPNN, tmp_path: Path) -> None:
    atoms = ethanol(model)
    simulator = simulate(atoms, tmp_path, 13)
    log, report = rows(tmp_path), simulator.report()
    assert [row["step"] for row in log] == [0, 2, 4, 6, 8, 10, 12]
    assert [row["time_ps"] for row in log] == pytest.approx(
        [step * 5e-4 for step in range(0, 13, 2)]
    )
    assert report.steps == 13 and report.time == pytest.approx(6.5e-3)
    for row in log:
        assert row["total_eV"] == row["potential_eV"] + row["kinetic_eV"]
        assert row["temperature_K"] == pytest.approx(
            2 * row["kinetic_eV"] / (24 * units.kB), rel=1e-12
        )
    slope = np.polyfit([r["time_ps"] for r in log], [r["total_eV"] for r in log], 1)[0]
    assert report.drift == pytest.approx(1e3 * slope / 9, rel=1e-6)
    assert report.largest_r == max(row["R"] for row in log)
    assert report.temperature == pytest.approx(np.mean([row["temperature_K"] for row in log]))
    assert report.ns_per_day == pytest.approx(report.steps_per_second * 0.5e-6 * 86_400)
    frames = ase.io.read(tmp_path / "trajectory.extxyz", index=":")
    assert [frame.info["step"] for frame in frames] == [0, 6, 12]
    last = ase.io.read(tmp_path / "last.extxyz")
    assert last.info["step"] == 13
    np.testing.assert_allclose(last.positions, atoms.positions, atol=1e-8)
    np.testing.assert_allclose(last.get_velocities(), atoms.get_velocities(), atol=1e-8)
    np.testing.assert_allclose(last.get_forces(), atoms.get_forces(), atol=1e-8)
    assert last.info["nonhierarchicality"] == pytest.approx(
        atoms.calc.results["nonhierarchicality"]
    )


def test_pressure_is_in_the_log_of_a_crystal(model: HIPNN, tmp_path: Path) -> None:
    atoms = box(model)
    simulate(atoms, tmp_path, 2, ensemble="nvt", temperature=900)
    stress = atoms.get_stress(include_ideal_gas=True)
    expected = -stress[:3].mean() / GPa
    assert rows(tmp_path)[-1]["pressure_GPa"] == pytest.approx(expected, rel=1e-9)


def test_velocities_have_the_temperature() -> None:
    atoms = Atoms("HCNO" * 5000, np.zeros((20_000, 3)))
    draw_velocities(atoms, 400.0, np.random.default_rng(0))
    kinetic = atoms.get_kinetic_energy()
    assert temperature(atoms, kinetic) == pytest.approx(400, rel=0.01)
    assert abs(atoms.get_momenta().sum(0)).max() < 1e-8
    for number in (1, 8):  # equipartition
        part = atoms[atoms.numbers == number]
        assert temperature(part, part.get_kinetic_energy()) == pytest.approx(400, rel=0.03)
    atoms.set_constraint(FixAtoms(range(10_000)))
    draw_velocities(atoms, 400.0, np.random.default_rng(0))
    assert not atoms.get_velocities()[:10_000].any()
    assert temperature(atoms, atoms.get_kinetic_energy()) == pytest.approx(400, rel=0.02)
    free = molecule("C6H6")
    draw_velocities(free, 400.0, np.random.default_rng(0))
    alone = temperature(free, free.get_kinetic_energy())
    free.set_velocities(free.get_velocities() + np.array([0.05, 0.0, 0.02]))
    assert free.get_temperature() > 1.1 * alone  # control
    assert temperature(free, free.get_kinetic_energy()) == pytest.approx(alone, rel=1e-12)
    one = Atoms("H")
    draw_velocities(one, 300.0, np.random.default_rng(0))
    assert temperature(one, one.get_kinetic_energy()) > 0


def test_a_simulation_begins_at_its_temperature(model: HIPNN, tmp_path: Path) -> None:
    """A third of it makes a third, of the same random numbers."""
    found = []
    for kelvin in 900.0, 300.0:
        folder = tmp_path / str(kelvin)
        simulate(gas(model, 5), folder, 1, temperature=kelvin)
        found.append(rows(folder)[0]["temperature_K"])
    assert found[0] == pytest.approx(900, rel=0.15)
    assert found[1] == pytest.approx(found[0] / 3, rel=1e-9)


def test_friction_is_the_rate_of_warming(model: HIPNN, tmp_path: Path) -> None:
    """From rest T / T0 = 1 - exp(-2 friction t): after 0.1 ps 0.63 at 5/ps, 0.39 at half of it."""
    for friction, expected in (5.0, 0.632), (2.5, 0.393):
        atoms, folder = gas(model, 7, momenta=np.zeros((343, 3))), tmp_path / str(friction)
        settings = {"ensemble": "nvt", "temperature": 600.0, "friction": friction}
        simulate(atoms, folder, 50, velocities="keep", timestep=2.0, save_every=100, **settings)
        last = rows(folder)[-1]
        assert last["time_ps"] == pytest.approx(0.1)
        assert last["temperature_K"] / 600 == pytest.approx(expected, rel=0.15)


def test_the_thermostat_reaches_its_temperature(model: HIPNN, tmp_path: Path) -> None:
    """A gas of atoms out of each other's reach, from rest; without a thermostat it stays there."""
    found = {}
    for ensemble in "nvt", "nve":
        atoms = gas(model, 3, momenta=np.zeros((27, 3)))
        settings = {"ensemble": ensemble, "temperature": 600.0, "friction": 200.0}
        folder = tmp_path / ensemble
        simulate(atoms, folder, 300, velocities="keep", timestep=1.0, **settings)
        found[ensemble] = np.mean([row["temperature_K"] for row in rows(folder)[25:]])
        assert abs(atoms.get_momenta().sum(0)).max() < 1e-10
    assert 540 < found["nvt"] < 660 and found["nve"] == 0


def test_velocities_may_be_kept(model: HIPNN, tmp_path: Path) -> None:
    atoms = ethanol(model)
    with pytest.raises(StructureError, match="velocities"):
        simulate(atoms, tmp_path / "a", 2, velocities="keep")
    assert not (tmp_path / "a").exists()
    draw_velocities(atoms, 300, np.random.default_rng(7))
    kept, drawn = atoms.copy(), atoms.copy()
    kept.calc = drawn.calc = atoms.calc
    energy = kept.get_kinetic_energy()
    simulate(kept, tmp_path / "kept", 1, velocities="keep")
    simulate(drawn, tmp_path / "drawn", 1)
    assert rows(tmp_path / "kept")[0]["kinetic_eV"] == energy
    assert rows(tmp_path / "drawn")[0]["kinetic_eV"] != energy


def test_an_ensemble_logs_its_spread(small_model: Build, tmp_path: Path) -> None:
    models = [small_model(energy_unit="eV", cutoff=cutoff) for cutoff in (3.0, 2.5)]
    atoms = molecule("H2O")
    atoms.calc = HIPNNCalculator(models)
    simulate(atoms, tmp_path, 2)
    row = rows(tmp_path)[-1]
    assert row["energy_std_eV"] == atoms.calc.results["energy_std"] > 0
    assert row["largest_force_std_eV_A"] == atoms.calc.results["forces_std"].max() > 0


def test_least_squares_on_the_fly() -> None:
    """Digits survive a total energy of -1e5 eV."""
    random = np.random.default_rng(0)
    time = np.linspace(0, 50, 500)
    energy = -1e5 + 2e-4 * time + 1e-3 * random.standard_normal(500)
    drift = EnergyDrift()
    assert np.isnan(drift.slope) and np.isnan(drift.fluctuation)
    for sample in zip(time, energy, strict=True):
        drift.add(*sample)
    slope, offset = np.polyfit(time, energy + 1e5, 1)
    assert drift.slope == pytest.approx(slope, rel=1e-6)
    residual = energy + 1e5 - slope * time - offset
    assert drift.fluctuation == pytest.approx(np.sqrt((residual**2).sum() / 498), rel=1e-6)
    assert drift.mean_energy == pytest.approx(energy.mean(), rel=1e-14)
    few = EnergyDrift()
    for sample in ((0.0, 0.0), (1.0, 3.0)):
        few.add(*sample)
    assert few.slope == 3 and np.isnan(few.fluctuation)  # two samples lie on a line
    few.add(2.0, 0.0)
    assert few.slope == 0 and few.fluctuation == pytest.approx(6**0.5)


# -- restarts ----------------------------------------------------------------------------------

MADE = ("log.csv", "trajectory.extxyz", "last.extxyz")


@pytest.mark.parametrize(("ensemble", "stop"), [("nve", 30), ("nvt", 31)])
@pytest.mark.parametrize("make", [ethanol, box])
def test_a_restart_gives_the_same_trajectory(
    model: HIPNN, tmp_path: Path, make: Callable[..., Atoms], ensemble: str, stop: int
) -> None:
    """To the last bit, from a checkpoint between two searches, between rows and frames or on one of
    each, which is not written twice."""
    settings = {"ensemble": ensemble, "temperature": 2000.0, "timestep": 1.0}
    whole = make(model)
    simulate(whole, tmp_path / "whole", 80, **settings)
    first = make(model)
    simulate(first, tmp_path / "parts", stop, **settings)
    assert (first.calc.neighbors.searched.positions != first.positions).any()
    # What a killed process wrote after its last checkpoint:
    for name in MADE[:2]:
        with open(tmp_path / "parts" / name, "a") as file:
            file.write(f"{stop + 1},0.0")
    second = make(model)
    second.rattle(0.1)  # the structure is the checkpoint's
    simulator = simulate(second, tmp_path / "parts", 80, resume=True, **settings)
    np.testing.assert_array_equal(second.positions, whole.positions)
    np.testing.assert_array_equal(second.get_momenta(), whole.get_momenta())
    for name in MADE:
        texts = [(tmp_path / part / name).read_bytes() for part in ("whole", "parts")]
        assert texts[0] == texts[1], name
    assert simulator.report().steps == 80
    assert simulator.drift.samples == 41
    assert np.abs(whole.positions - make(model).positions).max() > 0.3


def test_a_restart_takes_no_older_neighbours(model: HIPNN, tmp_path: Path) -> None:
    """A calculator that was used near by has some that hold, and results that belong to them."""
    settings = {"temperature": 2000.0, "timestep": 1.0}
    first, used = ethanol(model), ethanol(model)
    simulate(first, tmp_path, 31, **settings)
    searched, used.positions[:] = first.calc.neighbors.searched, first.positions
    used.get_forces()
    assert used.calc.neighbors.holds(searched)  # control
    assert (used.calc.neighbors.searched.positions != searched.positions).any()
    settings = Simulation(log_every=2, save_every=6, **settings)
    Simulator(used, settings, tmp_path, resume=True, progress=False)
    np.testing.assert_array_equal(used.calc.neighbors.searched.positions, searched.positions)
    assert used.calc.neighbors.searches == 2
    np.testing.assert_array_equal(used.get_forces(), first.get_forces())


def test_a_restart_keeps_bond_lengths(model: HIPNN, tmp_path: Path) -> None:
    """Those of the start, of which the checkpoint's differ in the last digits."""

    def start() -> Atoms:
        atoms = ethanol(model)
        atoms.set_constraint(FixBondLengths([[0, 1], [0, 3]]))
        return atoms

    simulate(start(), tmp_path / "whole", 40, temperature=2000.0)
    simulate(start(), tmp_path / "parts", 17, temperature=2000.0)
    last = start()
    simulate(last, tmp_path / "parts", 40, resume=True, temperature=2000.0)
    for name in MADE:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert last.get_distance(0, 1) == pytest.approx(start().get_distance(0, 1), abs=1e-9)
    assert abs(last.get_distance(0, 2) - start().get_distance(0, 2)) > 1e-3  # control


def test_control_random_numbers_matter(model: HIPNN, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ensemble": "nvt", "temperature": 2000.0, "log_every": 2}
    found = []
    for seed in 0, 0, 1:
        atoms = ethanol(model)
        simulate(atoms, tmp_path / str(len(found)), 5, seed=seed, save_every=100, **settings)
        found.append(atoms.positions)
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()
    simulate(ethanol(model), tmp_path / "parts", 3, save_every=100, **settings)
    second = ethanol(model)
    resumed = Simulator(second, Simulation(**settings), tmp_path / "parts", True, False)
    resumed.random.standard_normal()  # one number lost
    resumed.run(5)
    assert (second.positions != found[0]).any()


def test_an_interrupt_saves_and_goes_on(model: HIPNN, tmp_path: Path) -> None:
    atoms = ethanol(model)
    settings = Simulation(log_every=2, save_every=6)
    simulator = Simulator(atoms, settings, tmp_path, progress=False)
    calculate, calls = atoms.calc.calculate, []

    def counted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        calculate(*arguments)

    atoms.calc.calculate = counted
    with pytest.raises(SimulationStopped, match="--resume") as caught:
        simulator.run(50)
    assert caught.value.interrupted
    assert 8 <= simulator.integrator.nsteps <= 10
    fresh = ethanol(model)
    resumed = Simulator(fresh, settings, tmp_path, resume=True, progress=False)
    assert resumed.integrator.nsteps == simulator.integrator.nsteps
    np.testing.assert_array_equal(fresh.positions, atoms.positions)


def test_what_cannot_be_resumed(model: HIPNN, tmp_path: Path) -> None:
    settings = Simulation(log_every=2)
    with pytest.raises(ModelFileError, match="nothing to resume"):
        Simulator(ethanol(model), settings, tmp_path / "none", resume=True)
    folder = tmp_path / "run"
    simulate(ethanol(model), folder, 4, save_every=100)
    with pytest.raises(FileExistsError, match="--resume"):
        Simulator(ethanol(model), settings, folder)

    def resume(atoms: Atoms, **changes: Any) -> None:
        Simulator(atoms, replace(settings, **changes), folder, resume=True, progress=False)

    with pytest.raises(ModelFileError, match="timestep = 0.5, not 1.0"):
        resume(ethanol(model), timestep=1.0)
    other, exchanged = copy.deepcopy(model), ethanol(model)
    with torch.no_grad():
        other.blocks[0].interaction.V.mul_(1.001)
    with pytest.raises(ModelFileError, match="simulated with weights_sha256"):
        resume(ethanol(other))
    with pytest.raises(ModelFileError, match="skin = 0.5, not 0.4"):
        resume(ethanol(model, skin=0.4))
    exchanged.numbers[exchanged.numbers == 8] = 7
    deuterated = ethanol(model)
    deuterated.set_masses(np.where(deuterated.numbers == 1, 2.014, deuterated.get_masses()))
    for atoms in (exchanged, deuterated, box(model)):
        with pytest.raises(ModelFileError, match="simulated with atoms_and_cell_sha256"):
            resume(atoms)
    resume(ethanol(model), checkpoint_seconds=1.0)  # changes nothing that is computed
    log = folder / "log.csv"
    log.write_bytes(log.read_bytes()[:-5])
    with pytest.raises(ModelFileError, match=r"log.csv has \d+ bytes, fewer"):
        resume(ethanol(model))
    checkpoint = folder / "checkpoint.npz"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(ModelFileError, match="damaged"):
        resume(ethanol(model))


# -- what must not go on -----------------------------------------------------------------------


def test_atoms_that_collide_stop(model: HIPNN, tmp_path: Path) -> None:
    """Two atoms shot at each other: the last frame shows them."""
    atoms = Atoms("OO", [[0, 0, 0], [2.0, 0, 0]])
    atoms.set_velocities([[0.1 / units.fs, 0, 0], [-0.1 / units.fs, 0, 0]])
    atoms.calc = HIPNNCalculator(model, min_distance=0.5)
    with pytest.raises(SimulationStopped, match="atoms 0 and 1 are .* closer than 0.5") as caught:
        simulate(atoms, tmp_path, 100, velocities="keep", log_every=1)
    assert "last.extxyz" in str(caught.value) and not caught.value.interrupted
    last = ase.io.read(tmp_path / "last.extxyz")
    assert 0.2 < last.get_distance(0, 1) < 0.5
    assert 0.5 <= min(abs(2 - 0.1 * row["step"]) for row in rows(tmp_path)) < 0.7
    through = Atoms("OO", [[0, 0, 0], [2.0, 0.01, 0]], calculator=HIPNNCalculator(model))
    through.set_velocities([[0.1 / units.fs, 0, 0], [-0.1 / units.fs, 0, 0]])
    simulate(through, tmp_path / "through", 100, velocities="keep")  # control


def test_an_energy_that_is_not_finite_stops(model: HIPNN, tmp_path: Path) -> None:
    atoms = ethanol(model)
    simulator = Simulator(atoms, Simulation(log_every=1), tmp_path, progress=False)
    calculate, calls = atoms.calc.calculate, []

    def spoil(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            with torch.no_grad():
                atoms.calc.potentials[0].model.blocks[0].readout.weight.fill_(torch.nan)
        calculate(*arguments)

    atoms.calc.calculate = spoil
    with pytest.raises(SimulationStopped, match="not finite"):
        simulator.run(20)
    assert np.isfinite(ase.io.read(tmp_path / "last.extxyz").positions).all()
    assert len(rows(tmp_path)) == 4


def test_a_bad_start_leaves_no_files(model: HIPNN, tmp_path: Path) -> None:
    """What is mended can be tried again in the same folder."""
    atoms = ethanol(model)
    atoms.numbers[3] = 9
    with pytest.raises(StructureError, match=r"^atomic number 9 \(atom 3\) is not among"):
        simulate(atoms, tmp_path / "a", 2)
    assert not (tmp_path / "a").exists()
    simulate(ethanol(model), tmp_path / "a", 2)
    before = (tmp_path / "a" / "trajectory.extxyz").read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):  # told first
        simulate(atoms, tmp_path / "a", 2)
    assert (tmp_path / "a" / "trajectory.extxyz").read_bytes() == before


def test_a_limit_on_r_stops(model: HIPNN, tmp_path: Path) -> None:
    start = ethanol(model)
    simulate(start, tmp_path / "free", 60, temperature=3000, log_every=1)
    r = [row["R"] for row in rows(tmp_path / "free")]
    limit = (r[0] + max(r)) / 2
    first = next(step for step, value in enumerate(r) if value > limit)
    assert 1 < first < 60
    with pytest.raises(SimulationStopped, match=f"R is .* above the limit {limit:g}") as caught:
        simulate(ethanol(model), tmp_path / "a", 60, temperature=3000, max_r=limit)
    assert f"after step {first}" in str(caught.value)
    last = ase.io.read(tmp_path / "a" / "last.extxyz")
    assert last.info["nonhierarchicality"] > limit and last.info["step"] == first
    simulate(ethanol(model), tmp_path / "b", 60, temperature=3000, max_r=max(r))  # control


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"timestep": 0.0}, "timestep must be positive"),
        ({"timestep": float("nan")}, "timestep must be positive"),
        ({"friction": -1.0}, "friction"),
        ({"log_every": 0}, "log_every"),
        ({"temperature": -1.0}, "temperature"),
        ({"ensemble": "npt"}, "nve"),
        ({"velocities": "some"}, "draw"),
    ],
)
def test_bad_settings_stop(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulation(**settings)


def test_memory_does_not_grow(model: HIPNN, tmp_path: Path) -> None:
    """Neither Python objects nor tensors, with a row every step and a frame every second one."""
    atoms = ethanol(model)
    settings = Simulation(log_every=1, save_every=2, checkpoint_seconds=0)
    simulator = Simulator(atoms, settings, tmp_path, progress=False)
    tensors, sizes = [], []
    tracemalloc.start()
    for done in simulator._steps(240):
        if done in (120, 240):
            gc.collect()
            sys._clear_type_cache()  # it keeps names that were looked up
            tensors.append(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    simulator.files.close()
    assert tensors[1] <= tensors[0] and sizes[1] - sizes[0] < 6_000  # 50 bytes a step
    assert (tmp_path / "trajectory.extxyz").stat().st_size > 60_000
    assert json.loads((tmp_path / "settings.json").read_text())["save_every"] == 2


def test_the_energy_of_constraints_is_part_of_the_total(model: HIPNN, tmp_path: Path) -> None:
    atoms = ethanol(model)
    atoms.set_constraint(Hookean(0, 1, 5.0, 1.3))
    settings = {"timestep": 0.2, "log_every": 1, "temperature": 100.0}
    simulate(atoms, tmp_path, 60, **settings)
    log = rows(tmp_path)
    assert log[-1]["total_eV"] == pytest.approx(atoms.get_total_energy(), rel=1e-10)
    spread = np.std([row["total_eV"] for row in log])
    spring = [row["potential_eV"] for row in log]
    assert spread < 0.02 * np.ptp(spring)
    assert abs(log[-1]["potential_eV"] - atoms.calc.results["energy"]) > 1e-3  # control
