"""Molecular dynamics with ASE's integrators: a folder of results, and restarts to the last bit."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet
from tqdm import tqdm

from hipnn_pyg.checks import StructureError
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.interfaces.drift import EnergyDrift
from hipnn_pyg.interfaces.simulation import (
    PS,
    Report,
    Simulation,
    SimulationStopped,
    draw_velocities,
    temperature,
)
from hipnn_pyg.interfaces.simulation_files import SimulationFiles, State, frame, refuse_results
from hipnn_pyg.train.interrupts import interrupts
from hipnn_pyg.units import GPa


def _fingerprints(atoms: Atoms) -> dict[str, object]:
    """What a restart must find again: which atoms in which cell, all models' weights, the skin."""
    weights = hashlib.sha256()
    for potential in atoms.calc.potentials:
        for _, tensor in sorted(potential.model.state_dict().items()):
            weights.update(tensor.cpu().numpy().tobytes())
    structure = hashlib.sha256()
    for array in (atoms.numbers, atoms.get_masses(), atoms.cell.array, atoms.pbc):
        structure.update(np.ascontiguousarray(array).tobytes())
    return {
        "atoms_and_cell_sha256": structure.hexdigest(),
        "weights_sha256": weights.hexdigest(),
        "skin": atoms.calc.neighbors.skin,
    }


class Simulator:
    """One simulation in one folder: ``log.csv``, ``trajectory.extxyz``, ``checkpoint.npz``.

    Memory does not grow with the number of steps. A simulation that was killed and goes on with
    ``resume=True`` gives the trajectory of one that was not, to the last bit: the checkpoint holds
    positions, momenta, the thermostat's random numbers, and where neighbours were last searched.

    Args:
        atoms: structure whose calculator is a
            :class:`~hipnn_pyg.interfaces.ase.HIPNNCalculator`; it moves.
        settings: how.
        folder: of the results.
        resume: go on from the checkpoint in the folder.
        progress: show a progress bar.
        about: further settings that a restart must share, such as the model's file.

    Raises:
        FileExistsError: the folder holds results and ``resume`` is false.
        ModelFileError: nothing to resume, other settings, atoms, cell, weights or skin, or damaged
            files.
        StructureError: velocities to keep, and there are none; or a structure that the model
            cannot take: nothing is written.
    """

    def __init__(
        self,
        atoms: Atoms,
        settings: Simulation,
        folder: str | Path,
        resume: bool = False,
        progress: bool = True,
        about: dict[str, object] | None = None,
    ) -> None:
        self.atoms, self.settings, self.progress = atoms, settings, progress
        self.calculator: HIPNNCalculator = atoms.calc
        self.files = SimulationFiles(Path(folder))
        self.random = np.random.default_rng(settings.seed)
        self.drift = EnergyDrift()
        self.seconds = self._sum_of_temperatures = self._largest_r = 0.0
        if settings.ensemble == "nvt" and not atoms.constraints and len(atoms) > 1:
            atoms.set_constraint(FixCom())
        if settings.velocities == "keep" and not (resume or atoms.has("momenta")):
            raise StructureError("the structure has no velocities to keep: draw them instead")
        everything = {**asdict(settings), **_fingerprints(atoms), **(about or {})}
        state = None
        if resume:
            state = self.files.resume(everything)
            self._restore(state)
        else:
            refuse_results(self.files.folder)
            atoms.get_potential_energy()  # refuses, before there are files, what it cannot take
            self.files.begin(everything)
            if settings.velocities == "draw":
                draw_velocities(atoms, settings.temperature, self.random)
            else:
                atoms.set_momenta(atoms.get_momenta())  # without what constraints forbid
        self.integrator = self._integrator()
        self.integrator.nsteps = 0 if state is None else state.step
        self._written = -1 if state is None else state.step  # rows and frames up to here

    @property
    def time(self) -> float:
        """Simulated so far (ps)."""
        return self.integrator.nsteps * self.settings.timestep * 1e-3

    def _integrator(self) -> MolecularDynamics:
        timestep = self.settings.timestep * units.fs
        if self.settings.ensemble == "nve":
            return VelocityVerlet(self.atoms, timestep)
        return Langevin(
            self.atoms,
            timestep,
            temperature_K=self.settings.temperature,
            friction=self.settings.friction / PS,
            fixcm=False,
            rng=self.random,
        )

    # -- the run -------------------------------------------------------------------------------

    def run(self, steps: int) -> Report:
        """Go on until so many steps are done in all; once, then the files are closed.

        Args:
            steps: the total, those before a restart included.

        Returns:
            What came out; ``last.extxyz`` holds the last frame, ready to start from.

        Raises:
            SimulationStopped: Ctrl-C or SIGTERM (resume it); atoms that collide, energies that are
                not finite, or an R above ``max_r``: ``last.extxyz`` then holds the last frame.
        """
        asked: list[bool] = []
        before, began = self.seconds, time.monotonic()
        first = self.integrator.nsteps
        saved = began if first else -math.inf  # one that has begun can be resumed
        bar = tqdm(total=steps, initial=first, unit="step", disable=not self.progress)
        try:
            with interrupts(lambda: asked.append(True)):
                for done in self._steps(steps):
                    now = time.monotonic()
                    self.seconds = before + now - began
                    if done % self.settings.log_every == 0:
                        bar.update(done - bar.n)
                        if self.drift.samples > 1:
                            bar.set_postfix_str(self._brief(), refresh=False)
                    waited = now - saved >= self.settings.checkpoint_seconds
                    if waited or asked or done >= steps:
                        self._save()
                        saved = now
                    if asked:
                        raise SimulationStopped(
                            f"stopped after step {done:,} of {steps:,}: go on with --resume", True
                        )
        except StructureError as error:
            raise self._broken(error) from error
        finally:
            bar.close()
            self.files.close()
        self.files.save_last(self._frame())
        return self.report()

    def _steps(self, steps: int) -> Iterator[int]:
        """ASE's integrator, step by step, with rows and frames where they are due."""
        for _ in self.integrator.irun(steps - self.integrator.nsteps):
            done = self.integrator.nsteps
            if done > self._written:
                self._check_r()
                if done % self.settings.log_every == 0:
                    self._log()
                if done % self.settings.save_every == 0:
                    self.files.add_frame(self._frame())
                self._written = done
            yield done

    def _check_r(self) -> None:
        r, limit = self.calculator.results["nonhierarchicality"], self.settings.max_r
        if limit is not None and r > limit:
            raise StructureError(
                f"R is {r:.4g}, above the limit {limit:g}: the model may not know such structures"
            )

    def _broken(self, error: StructureError) -> SimulationStopped:
        """The last frame goes to a file of its own; what was there before stays."""
        self.files.save_last(self._frame())
        return SimulationStopped(
            f"after step {self.integrator.nsteps:,} ({self.time:.4g} ps): {error}. The "
            f"frame is in {self.files.last}. Take a shorter time step, a lower temperature, a "
            "better start, or a model that has learned such structures"
        )

    # -- what is written -----------------------------------------------------------------------

    def _log(self) -> None:
        results = self.calculator.results
        potential = self.atoms.get_potential_energy()  # that of constraints such as Hookean, too
        kinetic = self.atoms.get_kinetic_energy()
        row = {
            "step": self.integrator.nsteps,
            "time_ps": self.time,
            "potential_eV": potential,
            "kinetic_eV": kinetic,
            "total_eV": potential + kinetic,
            "temperature_K": temperature(self.atoms, kinetic),
            "R": results["nonhierarchicality"],
        }
        if "stress" in results:
            ideal = 2 * kinetic / (3 * self.atoms.get_volume())
            row["pressure_GPa"] = (ideal - results["stress"][:3].mean()) / GPa
        if "forces_std" in results:
            row["energy_std_eV"] = results["energy_std"]
            row["largest_force_std_eV_A"] = float(results["forces_std"].max())
        self.files.add_row(row)
        self._take(row)

    def _take(self, row: dict[str, float]) -> None:
        """What the report needs of a row."""
        self.drift.add(row["time_ps"], row["total_eV"])
        self._sum_of_temperatures += row["temperature_K"]
        self._largest_r = max(self._largest_r, row["R"])

    def _frame(self) -> Atoms:
        return frame(self.atoms, step=self.integrator.nsteps, time_ps=self.time)

    def _save(self) -> None:
        searched = self.calculator.neighbors.searched
        assert searched is not None
        self.files.save(
            State(
                self.integrator.nsteps,
                self.atoms.positions,
                self.atoms.get_momenta(),
                searched.positions,
                self.random.bit_generator.state,
                self.seconds,
            )
        )

    def _restore(self, state: State) -> None:
        for constraint in self.atoms.constraints:  # some keep the lengths that they see first
            constraint.adjust_momenta(self.atoms, np.zeros((len(self.atoms), 3)))
        self.atoms.positions[:] = state.searched
        self.calculator.search(self.atoms)
        self.atoms.positions[:] = state.positions
        self.atoms.set_momenta(state.momenta, apply_constraint=False)
        self.random.bit_generator.state = state.random
        self.seconds = state.seconds
        self.atoms.get_forces()
        for row in self.files.rows():
            self._take(row)

    def _brief(self) -> str:
        """The end of the progress bar."""
        report = self.report()
        drift = f"drift {report.drift:.2g} meV/atom/ps, " if self.settings.ensemble == "nve" else ""
        return f"{report.ns_per_day:.3g} ns/day, {drift}{report.temperature:.0f} K"

    def report(self) -> Report:
        """Speed, temperature and energy conservation so far."""
        steps, rows = self.integrator.nsteps, self.drift.samples
        per_atom = 1e3 / len(self.atoms)
        speed = steps / self.seconds if self.seconds else 0.0
        return Report(
            steps,
            self.time,
            self._sum_of_temperatures / max(rows, 1),
            self.drift.slope * per_atom,
            self.drift.fluctuation * per_atom,
            self._largest_r,
            speed,
            speed * self.settings.timestep * 1e-6 * 86_400,
        )
