"""Learn a crystal: energies, forces and stresses of copper from ASE's EMT, in a plain PyG loop.

    python examples/10_crystal.py

Rattled and strained cells are labelled with EMT, a cheap classical potential that stands for the
DFT code. HIP-NN learns all three quantities, then relaxes a cell by its own stress and gives the
equation of state, beside EMT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS
from jsonargparse import ArgumentParser
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from hipnn_pyg import HIPNN, HIPNNPotential
from hipnn_pyg.data.molecules import from_atoms
from hipnn_pyg.data.targets import ASE_ENERGY
from hipnn_pyg.interfaces.ase import HIPNNCalculator


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Label, train, compare lattice constant and bulk modulus."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    options = parse(argv)
    train, test = labelled(options.num_train, seed=0), labelled(20, seed=1)
    model = HIPNN(
        species=[29], hidden_channels=16, num_onsite=1, num_sensitivities=12, cutoff=5.5, r_high=4.5
    )
    model.fit_e0(train, target=ASE_ENERGY)
    model.set_e0(model.reference.weight, sigma_e=0.1)  # an energy scale per atom, not per cell
    potential = HIPNNPotential(model).train()
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], lr=options.learning_rate
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    losses = []
    for epoch in range(1, options.epochs + 1):
        total = 0.0
        for batch in DataLoader(train, batch_size=8, shuffle=True):
            loss = sum(errors(potential, batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        schedule.step()
        losses.append(total / len(train))
        if epoch % max(1, options.epochs // 10) == 0:
            print(f"epoch {epoch}: loss {losses[-1]:.4f}")

    potential.eval()
    found = errors(potential, Batch.from_data_list(test))
    shown = {name: float(value.detach()) for name, value in found.items()}
    print("test MAE: energy {energy:.4f} eV/atom, forces {forces:.4f} eV/Å,".format(**shown))
    print("          stress {:.3f} GPa".format(shown["stress"] / units.GPa))

    results: dict[str, Any] = {"train_loss": losses, "test_mae": shown, "unit": "eV"}
    for name, calculator in (("EMT", EMT()), ("HIP-NN", HIPNNCalculator(model))):
        results[name] = equation_of_state(calculator)
        print("{}: lattice constant {:.4f} Å, bulk modulus {:.0f} GPa".format(name, *results[name]))
    strained = bulk("Cu", cubic=True, a=3.75)
    strained.calc = HIPNNCalculator(model)
    before = pressure(strained)
    results["relaxed"] = LBFGS(FrechetCellFilter(strained), logfile=None).run(0.005, 200)
    results["a"], results["pressure"] = strained.cell.lengths().mean(), pressure(strained)
    print(
        f"relaxed by its stress: from a = 3.75 Å and {before:.1f} GPa to "
        f"{results['a']:.4f} Å and {results['pressure']:.2f} GPa"
    )
    return results


def labelled(number: int, seed: int) -> list[Data]:
    """Cells of four copper atoms, strained by up to 5 % and rattled by 0.1 Å, with EMT's labels."""
    random = np.random.default_rng(seed)
    structures = []
    for _ in range(number):
        atoms = bulk("Cu", cubic=True, a=3.6)
        strain = np.eye(3) + random.uniform(-0.05, 0.05, (3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += random.normal(scale=0.1, size=(4, 3))
        atoms.calc = EMT()
        data = from_atoms(atoms.copy())
        data.energy = torch.tensor([atoms.get_potential_energy()], dtype=torch.float64)
        data.force = torch.tensor(atoms.get_forces(), dtype=torch.float32)
        data.stress = torch.tensor(atoms.get_stress(voigt=False), dtype=torch.float32)[None]
        structures.append(data)
    return structures


def errors(potential: HIPNNPotential, batch: Data) -> dict[str, torch.Tensor]:
    """Mean absolute errors: energy in eV/atom, forces in eV/Å, stress in eV/Å^3.

    They are of a size here (0.1, 0.1, 0.01 at first), so that their plain sum will do as a loss.
    """
    predicted = potential(batch)
    per_atom = torch.bincount(batch.batch)
    return {
        "energy": ((predicted.energy[:, 0] - batch.energy) / per_atom).abs().mean(),
        "forces": (predicted.forces - batch.force).abs().mean(),
        "stress": (predicted.stress - batch.stress).abs().mean(),
    }


def equation_of_state(calculator: Any) -> tuple[float, float]:
    """Lattice constant in Å and bulk modulus in GPa (Birch-Murnaghan)."""
    volumes, energies = [], []
    for a in np.linspace(3.5, 3.7, 9):
        atoms = bulk("Cu", cubic=True, a=a)
        atoms.calc = calculator
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return volume ** (1 / 3), modulus / units.GPa


def pressure(atoms: Atoms) -> float:
    """In GPa: minus a third of the trace of the stress."""
    return -atoms.get_stress()[:3].mean() / units.GPa


def parse(argv: Sequence[str] | None) -> Any:
    """Command-line options."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--num_train", type=int, default=200, help="cells to train on")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--learning_rate", type=float, default=5e-3)
    parser.add_argument("--quick", action="store_true", help="few cells and epochs")
    options = parser.parse_args(argv)
    if options.quick:
        options.num_train, options.epochs = 50, 20
    return options


if __name__ == "__main__":
    main()
