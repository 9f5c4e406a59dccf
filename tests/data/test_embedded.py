"""Molecules embedded anew by RDKit, a few or a whole data set, by one process or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset

from hipnn_pyg.checks import StructureError
from hipnn_pyg.data import embedded
from hipnn_pyg.data.embedded import conformers, embed, on_rdkit_geometries, typed
from hipnn_pyg.data.molecules import from_smiles
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.sets import QM9RDKitSet, QM9Set, describe
from hipnn_pyg.data.targets import Target

SMILES = ["C", "C1CC", "CCO", "N", "O", "CC#N", "C=O"]  # the second cannot be read
ATOMS = ["C", "CC", "CCO", "N", "N", "CC#N", "C=O"]  # the fifth is not water


def structures(moved: float = 1.0) -> list[Data]:
    """Molecules whose atoms stand elsewhere and in another order than RDKit's."""
    items = [from_smiles(text, seed=7) for text in ATOMS]
    for k, data in enumerate(items):
        turn = torch.arange(len(data.z)).flip(0)
        data.z, data.pos = data.z[turn], data.pos[turn] * moved
        data.e = torch.tensor([float(k)])
    return items


def packed() -> PackedMolecules:
    return PackedMolecules.pack(structures(), Target("U0", "eV", "e"))


def test_embedding_keeps_the_energies_and_counts_failures() -> None:
    smiles = ["C", "CCO", "C1CC", "N", "O"]  # the third cannot be read, the last is not water
    items = [from_smiles(text) for text in ("C", "CCO", "CC", "N", "N")]
    for k, data in enumerate(items):
        data.e = torch.tensor([float(k)])
    packed = PackedMolecules.pack(items, Target("U0", "eV", "e"))
    made = embed(smiles, packed, torch.tensor([4, 3, 2, 1]), seed=1)
    assert made.kept.tolist() == [3, 1] and made.failed == 2
    assert made.molecules.target.tolist() == [3.0, 1.0] and made.molecules.spec.unit == "eV"
    assert made.molecules.counts.tolist() == [4, 9]
    expected = from_smiles("CCO", 1)
    assert torch.equal(made.molecules.gather(torch.tensor([1])).pos, expected.pos)


def test_several_processes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [*conformers(SMILES, 3)]
    monkeypatch.setattr(embedded, "WORKERS_PAY_AFTER", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    shared = [*conformers(SMILES, 3)]
    refused = [isinstance(data, StructureError) for data in alone]
    assert refused == [text == "C1CC" for text in SMILES]
    for one, other in zip(alone, shared, strict=True):
        if isinstance(one, StructureError) or isinstance(other, StructureError):
            assert str(one) == str(other) and "C1CC" in str(one)
        else:
            assert torch.equal(one.z, other.z) and torch.equal(one.pos, other.pos)
    other_seed = next(conformers(["CCO"], 4))
    assert isinstance(other_seed, Data) and isinstance(alone[2], Data)  # control
    assert not torch.equal(other_seed.pos, alone[2].pos)


@pytest.mark.parametrize(
    "smiles, expected",
    [
        ("[H]C#C[H]", "C#C"),
        ("[H]O[C@@]([H])(F)C([H])([H])[H]", "CC(O)F"),
        ("C/C=C\\C", "CC=CC"),
        ("OCC", "OCC"),  # in any order
        ("[NH3+]CC([O-])=O", "[NH3+]CC([O-])=O"),
        ("C1CC@", "C1CC@"),  # no SMILES
    ],
)
def test_smiles_as_people_type_them(smiles: str, expected: str) -> None:
    assert typed(smiles) == expected
    (made,) = conformers([expected], 0)
    if not isinstance(made, StructureError):  # what is embedded is that
        data = Data(z=made.z, pos=made.pos, e=torch.zeros(1))
        packed = PackedMolecules.pack([data], Target("U0", "eV", "e"))
        found = embed([smiles], packed, torch.tensor([0])).molecules
        torch.testing.assert_close(found.pos, packed.pos, rtol=0, atol=0)


def test_a_data_set_gets_other_geometries_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PART", 3)
    own = packed()
    made, found = on_rdkit_geometries(SMILES, own, tmp_path)
    assert found.tolist() == [True, False, True, True, False, True, True]
    assert torch.equal(made.target, own.target) and torch.equal(made.counts, own.counts)
    for number in range(len(own)):
        batch, before = (m.gather(torch.tensor([number])) for m in (made, own))
        expected = from_smiles(SMILES[number]) if found[number] else before
        assert torch.equal(batch.z, expected.z) and torch.equal(batch.pos, expected.pos)
    made.check()

    files = sorted(tmp_path.iterdir())
    assert [file.name.split("-")[0] for file in files] == ["000000", "000003", "000006"]
    files[1].write_bytes(files[1].read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{files[1]} is damaged .*delete it"):
        on_rdkit_geometries(SMILES, own, tmp_path)
    files[1].unlink()  # as if stopped; the others are not made again
    asked: list[int] = []
    monkeypatch.setattr(
        embedded,
        "embed",
        lambda s, m, index, **rest: asked.extend(index.tolist()) or embed(s, m, index, **rest),
    )
    again, _ = on_rdkit_geometries(SMILES, own, tmp_path)
    assert asked == [3, 4, 5] and torch.equal(again.pos, made.pos)


def test_other_molecules_do_not_get_kept_geometries(tmp_path: Path) -> None:
    """Of other SMILES, or other elements behind the same ones, though all are equally many."""
    own = packed()
    on_rdkit_geometries(SMILES, own, tmp_path)
    order = [3, 0, 6, 2, 5, 4, 1]
    others = own.subset(torch.tensor(order))
    made, found = on_rdkit_geometries([SMILES[k] for k in order], others, tmp_path)
    for number, k in enumerate(order):
        batch = made.gather(torch.tensor([number]))
        expected = (
            from_smiles(SMILES[k]) if found[number] else others.gather(torch.tensor([number]))
        )
        assert torch.equal(batch.z, expected.z) and torch.equal(batch.pos, expected.pos)
    with pytest.raises(StructureError, match="no molecules"):  # no SMILES is that of its molecule
        on_rdkit_geometries(SMILES, others, tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def test_geometries_made_in_another_way_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for files, recipe in ((1, embedded.RECIPE), (1, embedded.RECIPE), (2, b"another")):
        monkeypatch.setattr(embedded, "RECIPE", recipe)
        on_rdkit_geometries(SMILES, packed(), tmp_path)
        assert len([*tmp_path.iterdir()]) == files


class TinyQM9(InMemoryDataset):
    """What :func:`load_qm9` gives, with seven molecules."""

    def __init__(self) -> None:
        super().__init__()
        items = structures()
        for k, data in enumerate(items):
            data.y = torch.arange(19.0).unsqueeze(0) + 100 * k
            data.smiles, data.idx = SMILES[k], torch.tensor([k])
            del data.e
        self._data, self.slices = self.collate(items)


def test_qm9_on_rdkit_geometries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[TinyQM9] = []

    def load(*_: Any) -> TinyQM9:
        loaded.append(TinyQM9())
        return loaded[-1]

    monkeypatch.setattr("hipnn_pyg.data.sets.load_qm9", load)
    monkeypatch.setattr("hipnn_pyg.data.sets.qm9_kept", lambda _: torch.arange(6))
    chosen = QM9RDKitSet(root=str(tmp_path))
    molecules, kept = chosen.load()
    assert len(loaded) == 1
    assert kept.tolist() == [0, 2, 3, 5]  # not what was excluded, and not what failed
    own, _ = QM9Set.load(chosen)
    assert torch.equal(molecules.target, own.target)
    assert not torch.equal(molecules.pos, own.pos)
    assert describe(chosen)["dataset"] == "qm9-rdkit" and describe(QM9Set())["dataset"] == "qm9"
    (file,) = tmp_path.glob("rdkit/*/*.npz")
    assert np.load(file)["kept"].tolist() == [0, 2, 3, 5, 6]
