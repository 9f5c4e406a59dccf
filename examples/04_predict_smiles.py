"""Predict molecules from SMILES: energy, its orders E^n, and R (Eq. 18).

RDKit makes one conformer (ETKDG, MMFF94). A model that knows DFT's geometries errs about 25 times
as much there (qm9-u0: 5.7 instead of 0.23 kcal/mol): take one that has learned RDKit's.

    python examples/04_predict_smiles.py --model qm9-u0-rdkit CCO "c1ccccc1"

Energies are in the model's unit. Without --model, --quick trains a small one in a few seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch_geometric.data import Batch
from torch_geometric.nn import global_add_pool

from hipnn_pyg import HIPNN, QM9_TARGETS, PackedMolecules, load_model
from hipnn_pyg.data.molecules import from_smiles
from hipnn_pyg.data.qm9 import load_qm9, qm9_kept
from hipnn_pyg.data.splits import random_split
from hipnn_pyg.models.files import member_folders
from hipnn_pyg.models.pretrained import model_folder
from hipnn_pyg.train import Trainer, Training


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Predict, print one line per molecule, return the rows."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    options = parse(argv)
    folder = model_folder(options.model) if options.model else None
    if folder and len(member_folders(folder)) > 1:
        raise SystemExit(f"{options.model} has several models, whose mean `hipnn predict` gives")
    model = load_model(folder) if folder else train_small_model(options.root)

    molecules = Batch.from_data_list([from_smiles(smiles) for smiles in options.smiles])
    with torch.no_grad():
        out = model.eval().energy_terms(molecules.z, molecules.pos, molecules.batch)
    orders = global_add_pool(out.terms, molecules.batch)  # E^n: [num_molecules, num_orders]

    names = ["energy", *(f"E{n}" for n in range(orders.size(1))), "R"]
    table = torch.cat((out.energy, orders, out.nonhierarchicality[:, None]), dim=1)
    print(f"{'energies in ' + model.energy_unit:20}", *(f"{name:>11}" for name in names))
    for smiles, row in zip(options.smiles, table.tolist(), strict=True):
        print(f"{smiles:20}", *(f"{value:11.5f}" for value in row))
    rows = [
        {"smiles": smiles, **dict(zip(names, row, strict=True))}
        for smiles, row in zip(options.smiles, table.tolist(), strict=True)
    ]
    return {"rows": rows, "unit": model.energy_unit, "shape": orders.shape}


def train_small_model(root: str) -> HIPNN:
    """A model of 16 features from 500 molecules of QM9: for a first look only."""
    dataset, target = load_qm9(root), QM9_TARGETS["U0_atom"]
    split = random_split(len(dataset), 500, 100, seed=0, candidates=qm9_kept(dataset))
    train = PackedMolecules.pack(dataset[split.train], target)
    validation = PackedMolecules.pack(dataset[split.validation], target)
    model = HIPNN(hidden_channels=16).fit_e0(train, target=target, scale="residual")
    return Trainer(model, train, validation, Training(epochs=8, warmup_steps=20)).fit()


def parse(argv: Sequence[str] | None) -> Any:
    """Command-line options."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("smiles", nargs="*", type=str, help="molecules of H, C, N, O and F")
    parser.add_argument("--model", type=str | None, help="run folder, or model of the package")
    parser.add_argument("--root", type=str, default="data/qm9", help="folder of QM9, for --quick")
    parser.add_argument("--quick", action="store_true", help="train a small model first")
    options = parser.parse_args(argv)
    if not (options.model or options.quick):
        parser.error("give --model (qm9-u0-rdkit, or a run folder), or --quick for a small one")
    options.smiles = options.smiles or ["O", "CCO", "c1ccccc1", "CC(=O)N"]
    return options


if __name__ == "__main__":
    main()
