"""Relax a molecule and print its vibrations, with a potential trained on energies and forces.

    hipnn train md17 --molecule "revised benzene" --forces --run runs/benzene
    python examples/08_relax_vibrations.py --model runs/benzene --plot spectrum.png

Harmonic wavenumbers are in cm^-1; the spectrum is their density, each broadened by 10 cm^-1 (there
are no dipoles, hence no intensities). Without --model a small potential is trained first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase.optimize import LBFGS
from ase.vibrations import Vibrations
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure

from hipnn_pyg import HIPNN, PackedMolecules
from hipnn_pyg.data.forces import MD17_FORCES
from hipnn_pyg.data.md17 import load_md17
from hipnn_pyg.data.molecules import to_atoms
from hipnn_pyg.data.splits import random_split
from hipnn_pyg.data.targets import MD17_ENERGY
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.train import Trainer, Training

WIDTH = 10.0  # cm^-1


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Relax the first frame, differentiate its forces, print and plot the wavenumbers."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    options = parse(argv)
    frames = load_md17(options.root, options.molecule)
    atoms = to_atoms(frames[0])
    # float64: differences of forces, 0.01 Å apart, need the digits.
    atoms.calc = HIPNNCalculator(options.model or train(frames, options), dtype="float64")

    before = atoms.get_potential_energy()
    optimizer = LBFGS(atoms, logfile=None)
    converged = optimizer.run(fmax=1e-4, steps=2_000)
    energy = atoms.get_potential_energy()
    print(
        f"relaxed by {before - energy:.3f} eV in {optimizer.nsteps} steps (converged: {converged})"
    )

    with tempfile.TemporaryDirectory() as folder:
        vibrations = Vibrations(atoms, name=f"{folder}/vibrations")
        vibrations.run()
        found = vibrations.get_frequencies()  # complex: imaginary where the energy curves down
    wavenumbers = np.where(np.abs(found.imag) > found.real, -np.abs(found.imag), found.real)
    print("wavenumbers in cm^-1 (negative: imaginary):")
    print(np.array2string(wavenumbers, precision=0, suppress_small=True, floatmode="fixed"))
    grid = np.arange(0.0, 4000.0, 2.0)
    density = np.exp(-0.5 * ((grid[:, None] - wavenumbers[None]) / WIDTH) ** 2).sum(1)
    if options.plot is not None:
        figure = Figure(figsize=(5, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(grid, density, linewidth=1)
        axes.set(xlabel="Wavenumber (cm$^{-1}$)", ylabel="Vibrations (arb. unit)", yticks=[])
        figure.savefig(options.plot, dpi=200)
    return {
        "relaxed_by": before - energy,
        "converged": bool(converged),
        "largest_force": float(np.linalg.norm(atoms.get_forces(), axis=1).max()),
        "wavenumbers": wavenumbers,
        "density": density,
        "unit": "cm^-1",
    }


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
    parser.add_argument("--plot", type=str | None, help="picture of the spectrum")
    parser.add_argument("--num_train", type=int, default=1_000, help="frames, without --model")
    parser.add_argument("--epochs", type=int, default=200, help="without --model")
    parser.add_argument("--quick", action="store_true", help="few frames and epochs")
    options = parser.parse_args(argv)
    if options.quick:
        options.num_train, options.epochs = 100, 20
    return options


if __name__ == "__main__":
    main()
