"""Does a potential conserve energy? NVE dynamics of a molecule, the drift, and its plot.

    hipnn train md17 --molecule "revised benzene" --forces --run runs/benzene
    python examples/09_nve.py --model runs/benzene --time 50 --run runs/nve

The same for any structure file, without Python: ``hipnn md FILE --model runs/benzene --time 50``.
Without --model a small potential is trained first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.optimize import LBFGS
from jsonargparse import ArgumentParser

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.data.forces import MD17_FORCES
from hipnn_pyg.data.md17 import load_md17
from hipnn_pyg.data.molecules import to_atoms
from hipnn_pyg.data.splits import random_split
from hipnn_pyg.data.targets import MD17_ENERGY
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.interfaces.dynamics import Simulator
from hipnn_pyg.interfaces.simulation import Simulation
from hipnn_pyg.interfaces.simulation_files import refuse_results
from hipnn_pyg.plots import energy_against_time
from hipnn_pyg.train import Trainer, Training


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Relax, simulate, print drift and fluctuation of the total energy, plot it."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    options = parse(argv)
    refuse_results(Path(options.run))
    frames = load_md17(options.root, options.molecule)
    atoms = to_atoms(frames[0])
    atoms.calc = HIPNNCalculator(options.model or train(frames, options), min_distance=0.4)
    LBFGS(atoms, logfile=None).run(fmax=0.05, steps=500)

    # From a minimum half of the kinetic energy goes to the bonds: 600 K become 300 K.
    settings = Simulation(temperature=600.0, timestep=options.timestep)
    simulator = Simulator(atoms, settings, options.run, progress=not options.quick)
    report = simulator.run(round(1e3 * options.time / options.timestep))
    print(f"{report.time:.4g} ps of {atoms.get_chemical_formula()} at {report.temperature:.0f} K")
    print(f"drift of the total energy {report.drift:.5f} meV/atom/ps")
    print(f"fluctuation about the line {report.fluctuation:.4f} meV/atom")
    print(f"{report.steps_per_second:.0f} steps/s, {report.ns_per_day:.3g} ns/day")

    rows = list(simulator.files.rows())
    names = ("time_ps", "total_eV", "temperature_K")
    time, energy, temperature = (np.array([row[name] for row in rows]) for name in names)
    per_atom = 1e3 * (energy - energy.mean()) / len(atoms)
    figure = energy_against_time(time, per_atom, temperature, drift=report.drift)
    picture = Path(options.run) / "energy.png"
    figure.savefig(picture, dpi=200)
    print(picture)
    return {**report._asdict(), "unit": "meV/atom/ps", "picture": picture, "rows": len(rows)}


def train(frames: Any, options: Any) -> HIPNN:
    """A small potential for a first look; ``hipnn train md17 --forces`` makes a good one."""
    packed = PackedMolecules.pack(frames, MD17_ENERGY, forces=MD17_FORCES)
    split = random_split(len(packed), options.num_train, 100, seed=0)
    parts = packed.subset(split.train), packed.subset(split.validation)
    species = sorted(set(packed.z.tolist()))
    model = HIPNN(species, hidden_channels=24, num_onsite=1).fit_e0(parts[0], target=MD17_ENERGY)
    settings = Training(epochs=options.epochs, batch_size=10, learning_rate=5e-3, warmup_steps=50)
    return Trainer(model, *parts, settings).fit()


def parse(argv: Sequence[str] | None) -> Any:
    """Command-line options."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=str | None, help="run folder of hipnn train --forces")
    parser.add_argument("--root", type=str, default="data/md17", help="folder of MD17")
    parser.add_argument("--molecule", type=str, default="revised benzene", help="the trajectory")
    parser.add_argument("--run", type=str, default="runs/nve-example", help="folder of the results")
    parser.add_argument("--time", type=float, default=50.0, help="in ps")
    parser.add_argument("--timestep", type=float, default=0.5, help="in fs")
    parser.add_argument("--num_train", type=int, default=1_000, help="frames, without --model")
    parser.add_argument("--epochs", type=int, default=200, help="without --model")
    parser.add_argument("--quick", action="store_true", help="few frames, epochs and steps")
    options = parser.parse_args(argv)
    if options.quick:
        options.num_train, options.epochs, options.time = 100, 20, 0.5
    return options


if __name__ == "__main__":
    main()
