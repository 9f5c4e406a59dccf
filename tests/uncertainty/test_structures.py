"""The structures that the flag is tested with are what their names say."""

from __future__ import annotations

import csv
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcMolFormula
from torch_geometric.data import Data

from hipnn_pyg.uncertainty.structures import bonds, drugs, rattled, rotated, stretched


def molecule(name: str) -> Data:
    atoms = ase.build.molecule(name)
    return Data(z=torch.tensor(atoms.numbers), pos=torch.tensor(atoms.positions))


def distances(data: Data) -> np.ndarray:
    return torch.cdist(data.pos, data.pos).numpy()


@pytest.mark.parametrize("by", [0.3, -0.15])
@pytest.mark.parametrize("seed", range(6))
def test_one_bond_changes_its_length(by: float, seed: int) -> None:
    ethanol = molecule("CH3CH2OH")
    changed = stretched(ethanol, by, seed)
    assert changed is not None
    difference = (distances(changed) - distances(ethanol))[np.triu(bonds(ethanol))]
    moved = np.abs(difference) > 1e-9
    assert moved.sum() == 1 and difference[moved][0] == pytest.approx(by, abs=1e-9)
    assert torch.equal(changed.z, ethanol.z)


def test_every_bond_outside_rings_is_drawn() -> None:
    ethanol, seen = molecule("CH3CH2OH"), set()
    for seed in range(60):
        changed = stretched(ethanol, 0.3, seed)
        assert changed is not None
        difference = np.abs(distances(changed) - distances(ethanol)) * bonds(ethanol)
        seen.add(tuple(np.unravel_index(np.argmax(np.triu(difference)), difference.shape)))
    assert len(seen) == 8


def test_bonds_of_a_ring_stay() -> None:
    benzene = molecule("C6H6")
    for seed in range(10):
        changed = stretched(benzene, 0.3, seed)
        assert changed is not None
        hydrogen = np.argwhere((changed.pos - benzene.pos).abs().sum(1).numpy() > 1e-9)
        assert len(hydrogen) in (1, 11)
    ring = Data(z=benzene.z[:6], pos=benzene.pos[:6])
    assert stretched(ring) is None


def test_bonds_are_those_of_the_formula() -> None:
    for name, number in (("CH4", 4), ("C6H6", 12), ("CH3CH2OH", 8), ("H2O", 2)):
        assert bonds(molecule(name)).sum() == 2 * number


def test_rotation_keeps_distances_and_handedness() -> None:
    data = rattled(molecule("CH3CH2OH"), 0.1)
    turned = rotated(data, 3)
    np.testing.assert_allclose(distances(turned), distances(data), atol=1e-12)
    assert (turned.pos - data.pos).abs().max() > 0.3
    volumes = [torch.linalg.det(d.pos[1:4] - d.pos[0]) for d in (data, turned)]
    torch.testing.assert_close(*volumes)


def test_rattling_moves_by_its_deviation() -> None:
    data = molecule("C6H6")
    moves = torch.cat([rattled(data, 0.1, seed).pos - data.pos for seed in range(50)])
    assert float(moves.std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(rattled(data, 0.1, 7).pos, rattled(data, 0.1, 7).pos)


def test_drugs_are_what_their_formulas_say() -> None:
    listed = drugs()
    assert len(listed) > 100 and len({drug.name for drug in listed}) == len(listed)
    assert [drug.name for drug in listed] == sorted(drug.name for drug in listed)
    for drug in listed:
        mol = Chem.MolFromSmiles(drug.smiles)
        assert CalcMolFormula(mol) == drug.formula, drug.name
        assert 12 <= mol.GetNumHeavyAtoms() <= 33, drug.name
        assert {atom.GetSymbol() for atom in mol.GetAtoms()} <= set("CNOF"), drug.name
    smiles = {Chem.MolToSmiles(Chem.MolFromSmiles(drug.smiles)) for drug in listed}
    assert len(smiles) == len(listed)


def test_the_card_counts_the_drugs() -> None:
    card = Path(__file__).parents[2] / "datasets" / "drugs" / "README.md"
    assert f"\n{len(drugs())} well-known drugs" in card.read_text()
    with open(Path(__file__).parents[2] / "hipnn_pyg" / "data" / "drugs.csv") as file:
        assert len(list(csv.DictReader(file))) == len(drugs())
