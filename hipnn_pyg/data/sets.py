"""The data sets the commands know: where they are, which target, how they are split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from hipnn_pyg.checks import HIPNNWarning, StructureError
from hipnn_pyg.data.embedded import on_rdkit_geometries
from hipnn_pyg.data.forces import ASE_FORCES, MD17_FORCES
from hipnn_pyg.data.md17 import load_md17
from hipnn_pyg.data.molecules import read_structures
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.qm9 import load_qm9, qm9_kept
from hipnn_pyg.data.splits import Split, random_split
from hipnn_pyg.data.stress import ASE_STRESS
from hipnn_pyg.data.targets import ASE_ENERGY, MD17_ENERGY, QM9_TARGETS


@dataclass(frozen=True)
class QM9Set:
    """QM9 without the 3,054 inconsistent and the 11 hard-to-converge molecules (130,823 left).

    Args:
        root: folder of the data set.
        source: "official" (PyG's own, downloaded), "qm9pack" (the wheel) or "auto" (whichever is
            there, else in this order).
        target: a QM9 target; "U0_atom" is the paper's, the atomisation energy at 0 K (eV).
        num_train: training molecules; with 1,000 to validate the paper's 110,426.
        num_validation: validation molecules; the rest is the test set.
    """

    root: str = "data/qm9"
    source: Literal["auto", "official", "qm9pack"] = "auto"
    target: str = "U0_atom"
    num_train: int = 109_426
    num_validation: int = 1_000

    def load(self) -> tuple[PackedMolecules, Tensor]:
        """All molecules, checked, and those that may be drawn from.

        Raises:
            ValueError: QM9 has no such target.
        """
        molecules, kept, _ = self.load_with_dataset()
        return molecules, kept

    def load_with_dataset(self) -> tuple[PackedMolecules, Tensor, InMemoryDataset]:
        """The same on QM9's own geometries, and the data set with its names and SMILES."""
        if self.target not in QM9_TARGETS:
            raise ValueError(f"QM9 has no target {self.target!r}: choose from {[*QM9_TARGETS]}")
        dataset = load_qm9(self.root, self.source)
        molecules = PackedMolecules.pack(dataset, QM9_TARGETS[self.target])
        return molecules, qm9_kept(dataset), dataset


@dataclass(frozen=True)
class QM9RDKitSet(QM9Set):
    """QM9's energies on geometries that RDKit makes of its SMILES (ETKDG, MMFF94; seed 0).

    For a model that predicts from a SMILES alone what DFT would find at its own minimum. The first
    use embeds all SMILES (10 to 20 minutes on two cores) and keeps them under the root.
    """

    def load(self) -> tuple[PackedMolecules, Tensor]:
        """All molecules; those that RDKit can embed may be drawn from."""
        from rdkit import __version__ as version

        molecules, kept, dataset = self.load_with_dataset()
        folder = Path(self.root).expanduser() / "rdkit" / version
        packed, found = on_rdkit_geometries(dataset._data.smiles, molecules, folder, progress=True)
        packed.check()
        return packed, kept[found[kept]]


@dataclass(frozen=True)
class MD17Set:
    """One molecule of MD17 or revised MD17, energies re-read in float64 (kcal/mol, kcal/mol/Å).

    Args:
        root: folder of the data set, as PyG's ``MD17`` lays it out.
        molecule: e.g. "benzene", "toluene", "revised benzene".
        num_train: training frames.
        num_validation: validation frames; the rest is the test set.
        forces: learn the forces, too.
    """

    root: str = "data/md17"
    molecule: str = "benzene"
    num_train: int = 1_000
    num_validation: int = 1_000
    forces: bool = False

    def load(self) -> tuple[PackedMolecules, Tensor]:
        """All frames, checked, and their indices.

        Raises:
            ValueError: a trajectory that comes split into training and test files.
        """
        if "CCSD" in self.molecule:
            raise ValueError(
                f"MD17 {self.molecule!r} comes in a training and a test file, the commands split "
                "one: use hipnn_pyg.data.md17.load_md17(root, name, train=True)"
            )
        frames, labels = load_md17(self.root, self.molecule), MD17_FORCES if self.forces else None
        packed = PackedMolecules.pack(frames, MD17_ENERGY, forces=labels)
        return packed, torch.arange(len(packed))


@dataclass(frozen=True)
class FileSet:
    """Structures with energies from any file that ASE reads (eV, eV/Å, eV/Å^3).

    Molecules or periodic: extxyz, db, traj and others. Of metals, whose occupations DFT
    smears, ASE has as ``energy`` what is extrapolated to no smearing, while forces belong to the
    ``free_energy``: to learn forces, write that as the energy.

    Args:
        path: the file.
        num_train: training structures.
        num_validation: validation structures; the rest is the test set.
        forces: learn the forces, too.
        stress: with forces: learn the stress, too, of the structures that have it.
    """

    path: str
    num_train: int
    num_validation: int
    forces: bool = False
    stress: bool = False

    def load(self) -> tuple[PackedMolecules, Tensor]:
        """All structures, checked, and their indices.

        Raises:
            StructureError: one without an energy, or forces, to learn; no stress to learn in any.
            ValueError: stress without forces.
        """
        if self.stress and not self.forces:
            raise ValueError("stress is learned beside forces: give --forces with --stress")
        structures: list[Data] = read_structures(self.path)
        wanted = {"energy": "energy=... in the comment line, in eV"}
        if self.forces:
            wanted["force"] = "forces:R:3 among the Properties, in eV/Å"
        for name, how in wanted.items():
            bare = [number for number, data in enumerate(structures) if name not in data]
            if bare:
                raise StructureError(
                    f"{self.path}, structure {bare[0]}: no {name} to learn; write one that ASE "
                    f"finds (extxyz: {how}) or leave the structure out"
                )
        if self.stress and not any("stress" in data for data in structures):
            raise StructureError(
                f"{self.path}: no structure periodic in all directions has a stress to learn; "
                "write one that ASE finds (extxyz: stress=... in the comment line, in eV/Å^3), or "
                "leave --stress out"
            )
        _warn_of_copies(self.path, structures)
        forces = ASE_FORCES if self.forces else None
        stress = ASE_STRESS if self.stress else None
        packed = PackedMolecules.pack(structures, ASE_ENERGY, forces=forces, stress=stress)
        return packed, torch.arange(len(packed))


def _warn_of_copies(path: str, structures: Sequence[Data]) -> None:
    """Of structures that are there twice, atom by atom: one may be learned, the other tested."""
    first: dict[tuple[bytes, ...], int] = {}
    copies: dict[int, int] = {}
    for number, data in enumerate(structures):
        parts = (data[name] for name in ("z", "pos", "cell", "pbc") if name in data)
        original = first.setdefault(tuple(part.numpy().tobytes() for part in parts), number)
        if original != number:
            copies[number] = original
    if copies:
        number, original = next(iter(copies.items()))
        warnings.warn(
            f"{path}: {len(copies)} of {len(structures)} structures are copies of others "
            f"(structure {number} of {original}): test errors are too low where the original is "
            "learned; leave copies out",
            HIPNNWarning,
            stacklevel=3,
        )


MoleculeSet = QM9Set | MD17Set | FileSet
SETS: dict[str, type[QM9Set] | type[MD17Set] | type[FileSet]] = {
    "qm9": QM9Set,
    "qm9-rdkit": QM9RDKitSet,
    "md17": MD17Set,
    "file": FileSet,
}


def describe(molecules: MoleculeSet) -> dict[str, Any]:
    """The settings of a data set with its name, for configurations and model files."""
    name = next(name for name, kind in SETS.items() if type(molecules) is kind)
    return {"dataset": name, **asdict(molecules)}


def split(molecules: MoleculeSet, num: int, candidates: Tensor, seed: int) -> Split:
    """The seeded random split of a loaded data set."""
    return random_split(
        num,
        molecules.num_train,
        molecules.num_validation,
        seed,
        candidates,
        name=str(describe(molecules)["dataset"]),
    )
