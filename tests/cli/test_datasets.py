"""QM9 and MD17 through the command line, from files of their official form."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import torch
import yaml
from torch_geometric.data import Data
from torch_geometric.datasets import QM9

from hipnn_pyg.cli import main
from hipnn_pyg.cli.evaluate import paper_figures
from hipnn_pyg.data import qm9_raw
from hipnn_pyg.data.qm9 import HARD_TO_CONVERGE
from hipnn_pyg.data.qm9_records import PROPERTIES, QM9Records
from hipnn_pyg.data.sets import FileSet, MD17Set, MoleculeSet, QM9RDKitSet, QM9Set
from hipnn_pyg.data.splits import Split
from hipnn_pyg.paper import TABLE_1, TABLE_2, TABLE_3
from hipnn_pyg.train.config import Network
from hipnn_pyg.uncertainty import CalibratedModel
from hipnn_pyg.uncertainty.structures import drugs

from .conftest import SMILES, save_qm9

FAST = "--compile off --device cpu --epochs 2 --num_sensitivities 6".split()
HARD = HARD_TO_CONVERGE[0] - 1

Capture = pytest.CaptureFixture[str]


def write_qm9(root: Path, number: int = 100) -> Path:
    """A saved QM9 pack of methane, ammonia, water and methanol; the last is hard to converge."""
    names, items = ("CH4", "NH3", "H2O", "CH3OH"), []
    for index in range(number):
        atoms = ase.build.molecule(names[index % 4])
        atoms.rattle(0.1, seed=index)
        y = torch.zeros(1, 19)
        y[0, 12] = -3.0 * len(atoms) + 0.1 * float(np.sin(index))  # U0_atom in eV
        y[0, 0] = 1.0 + 0.1 * index % 3  # mu in Debye
        items.append(
            Data(
                z=torch.tensor(atoms.numbers),
                pos=torch.tensor(atoms.positions).float(),
                y=y,
                idx=torch.tensor([HARD if index == number - 1 else index]),
                name=f"gdb_{index + 1}",
                smiles=SMILES[index % 4],
            )
        )
    return save_qm9(items, root)


@pytest.fixture
def qm9_root(tmp_path: Path) -> Path:
    """Of 100 molecules."""
    return write_qm9(tmp_path / "qm9")


@pytest.fixture
def md17_root(tmp_path: Path, data_dir: Path | None) -> Path:
    """The benzene trajectory where PyG looks for it: the real one, or 200 frames made here."""
    path = tmp_path / "md17" / "benzene" / "raw" / "md17_benzene2017.npz"
    path.parent.mkdir(parents=True)
    if data_dir is not None:
        shutil.copy(data_dir / "md17" / "md17_benzene2017.npz", path)
        return tmp_path / "md17"
    random = np.random.default_rng(0)
    atoms = ase.build.molecule("C6H6")
    displaced = random.normal(scale=0.05, size=(200, 12, 3))
    energies = -146_530.0 + 20 * np.square(displaced).sum((1, 2))
    np.savez(
        path,
        z=atoms.numbers.astype(np.uint8),
        R=atoms.positions + displaced,
        E=energies[:, None],
        F=np.zeros((200, 12, 3)),
    )
    return tmp_path / "md17"


def test_qm9(qm9_root: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["data", "qm9", "--root", str(qm9_root)]) == 0
    assert "100 molecules, 99 after exclusions" in capsys.readouterr().out
    run = tmp_path / "run"
    line = ["train", "qm9", "--root", str(qm9_root), "--run", str(run), "--hidden_channels", "4"]
    assert main([*line, *FAST, "--num_train", "70", "--num_validation", "15"]) == 0
    split = Split.load(run / "split.npz")
    assert split.sizes == {"train": 70, "validation": 15, "test": 14}
    drawn = torch.cat((split.train, split.validation, split.test))
    assert 99 not in drawn.tolist()  # the hard one is in no part
    card = json.loads((run / "model.json").read_text())
    assert card["energy_unit"] == "eV" and card["target"] == "U0_atom"
    assert set(card["e0"]) == {"1", "6", "7", "8"}
    assert card["e0"]["1"] == pytest.approx(-3.0, abs=0.2)  # the formula's energy per atom
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "14 molecules" in printed and "MAE (kcal/mol)" in printed and "MAE (meV)" in printed
    # a copy of the data elsewhere
    moved = qm9_root.rename(tmp_path / "moved")
    assert main(["evaluate", str(run), "--root", str(moved)]) == 0


def test_error_bars_of_qm9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both kinds of geometry; SMILES of other molecules would fail."""
    monkeypatch.setattr("hipnn_pyg.uncertainty.assess.drugs", lambda: drugs()[4:8])
    root, run = write_qm9(tmp_path / "qm9", 150), tmp_path / "run"
    line = ["train", "qm9", "--root", str(root), "--run", str(run), "--hidden_channels", "4"]
    assert main([*line, *FAST, "--num_train", "40", "--num_validation", "20"]) == 0
    assert main(["calibrate", str(run), "--num_calibration", "41", "--num_smiles", "41"]) == 0
    report = json.loads((run / "calibration.json").read_text())
    assert report["geometries"].keys() == {"given", "rdkit"} and report["rdkit_failed"] == 0
    assert report["num_test"] == 149 - 40 - 20 - 41
    assert main(["ship", str(run), "tiny", "--output", str(tmp_path / "out")]) == 0
    assert CalibratedModel.load(tmp_path / "out" / "tiny").error_bars is not None


def test_qm9_on_rdkit_geometries(qm9_root: Path, capsys: Capture) -> None:
    assert main(["data", "qm9", "--root", str(qm9_root)]) == 0
    assert not (qm9_root / "rdkit").exists()  # control
    assert main(["data", "qm9-rdkit", "--root", str(qm9_root)]) == 0
    assert capsys.readouterr().out.count("100 molecules, 99 after exclusions") == 2
    assert [*(qm9_root / "rdkit").glob("*/000000-*")]


def test_raw_files_of_qm9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Of the first three molecules."""
    atoms = [ase.build.molecule(name) for name in ("CH4", "NH3", "H2O")]
    records = QM9Records(
        index=np.arange(1, 4),
        smiles=["C", "N", "O"],
        ptr=np.cumsum([0, *map(len, atoms)]),
        z=np.concatenate([each.numbers for each in atoms]),
        pos=np.concatenate([each.positions for each in atoms]),
        properties=np.zeros((3, len(PROPERTIES))),
    )
    monkeypatch.setattr(qm9_raw, "read_qm9pack", lambda: records)
    monkeypatch.setattr(qm9_raw, "NUM_QM9", 3)
    line = ["data", "qm9-raw", str(tmp_path)]
    assert main(line) == 0
    assert "wrote 3 molecules and 0 placeholders" in capsys.readouterr().out
    assert [data.name for data in QM9(str(tmp_path))] == ["gdb_1", "gdb_2", "gdb_3"]
    assert main(line) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0


def test_qm9_target_that_is_no_energy(qm9_root: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    line = ["train", "qm9", "--root", str(qm9_root), "--run", str(run), "--hidden_channels", "4"]
    sizes = ["--num_train", "70", "--num_validation", "15"]
    assert main([*line, *FAST, *sizes, "--target", "mu"]) == 0
    told = capsys.readouterr()
    assert "Debye" in told.out and "mu does not grow with the molecule" in told.err
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "MAE (Debye)" in printed and "kcal" not in printed and "meV" not in printed
    assert main(["predict", "--model", str(run), "CO"]) == 0
    assert "mu in Debye" in capsys.readouterr().out
    assert main(["explain", "CO", "--model", str(run), "--text"]) == 0
    assert "model run of mu\n" in capsys.readouterr().out
    line[5] = str(tmp_path / "energy")
    assert main([*line, *FAST, *sizes, "--target", "U0_atom"]) == 0
    assert "does not grow" not in capsys.readouterr().err
    line[5] = str(tmp_path / "other")
    assert main([*line, *sizes, "--target", "U0_atoms"]) == 1
    assert "QM9 has no target 'U0_atoms'" in capsys.readouterr().err


def test_md17(md17_root: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    assert main(["data", "md17", "--root", str(md17_root)]) == 0
    assert "frames, kcal/mol" in capsys.readouterr().out
    line = ["train", "md17", "--root", str(md17_root), "--run", str(run)]
    assert main([*line, *FAST, "--num_train", "60", "--num_validation", "40"]) == 0
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["hidden_channels"] == 20 and settings["num_onsite"] == 0  # Table III's model
    card = json.loads((run / "model.json").read_text())
    assert card["energy_unit"] == "kcal/mol" and card["molecule"] == "benzene"
    whole = 6 * card["e0"]["1"] + 6 * card["e0"]["6"]
    assert whole == pytest.approx(-146_530, abs=100)  # the energy of the molecule, kcal/mol
    capsys.readouterr()
    assert main(["evaluate", str(run), "--part", "validation"]) == 0
    assert "40 molecules" in capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())
    assert results["mae"] == pytest.approx(card["validation_mae"], rel=1e-6)
    assert results["mae"] < 20  # kcal/mol: nothing of the 146,530 is left, in any unit


def test_structures_without_energies(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "bare.xyz"
    ase.io.write(path, [ase.build.molecule("H2O")] * 4)
    line = ["train", "file", "--path", str(path), "--num_train", "2", "--num_validation", "1"]
    assert main([*line, "--run", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "energy" in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "config.yaml").exists()  # the name is free for the next try


@pytest.mark.parametrize("command", ["predict", "evaluate", "train"])
def test_unknown_device(
    command: str, qm9_root: Path, tmp_path: Path, trained: Path, capsys: Capture
) -> None:
    lines = {
        "predict": ["predict", "--model", str(trained), "O"],
        "evaluate": ["evaluate", str(trained)],
        "train": [
            *("train", "qm9", "--root", str(qm9_root), "--run", str(tmp_path / "run")),
            *("--num_train", "70", "--num_validation", "15"),
        ],
    }
    assert main([*lines[command], "--device", "abacus"]) == 1
    error = capsys.readouterr().err
    assert "abacus" in error and error.count("\n") == 1


# --- which of the paper's figures stand beside ours -------------------------------------------


PAPER, NO_ONSITE = Network(), Network(hidden_channels=20, num_onsite=0)


def test_published_figures() -> None:
    assert paper_figures(QM9Set(), PAPER) == {
        "mae": "0.256 ± 0.003",
        "rmse": "0.527 ± 0.020",
        "above_1_kcal": "2.26 ± 0.07",
    }
    assert TABLE_2[80, True].mae == TABLE_1[110_426] == (0.256, 0.003)
    without = Network(hidden_channels=60, hierarchical=False)
    assert paper_figures(QM9Set(), without)["mae"] == "0.278 ± 0.008"
    assert paper_figures(QM9Set(num_train=49_000), PAPER) == {"mae": "0.354 ± 0.004"}
    assert paper_figures(MD17Set(root="x"), NO_ONSITE) == {"mae": "0.162 ± 0.002"}
    assert paper_figures(MD17Set(molecule="toluene"), NO_ONSITE) == {
        "mae": "{:.3f} ± {:.3f}".format(*TABLE_3["toluene"])
    }


@pytest.mark.parametrize(
    "molecules, network",
    [
        (QM9Set(target="gap"), PAPER),
        (QM9RDKitSet(), PAPER),
        (QM9Set(num_train=2_000), PAPER),
        (QM9Set(num_train=100_426, num_validation=10_000), PAPER),  # 110,426 all the same
        (QM9Set(), Network(hidden_channels=33)),
        (QM9Set(), Network(num_onsite=2)),
        (QM9Set(), Network(num_interactions=1)),
        (QM9Set(), Network(num_sensitivities=3)),
        (QM9Set(), Network(cutoff=3.0)),
        (MD17Set(molecule="revised benzene"), NO_ONSITE),
        (MD17Set(num_train=500), NO_ONSITE),
        (MD17Set(forces=True), NO_ONSITE),
        (MD17Set(), replace(NO_ONSITE, num_interactions=1)),
        (MD17Set(), replace(NO_ONSITE, num_onsite=3)),
        (FileSet("x", 1_000, 1_000), NO_ONSITE),
    ],
)
def test_no_figure_for_another_experiment(molecules: MoleculeSet, network: Network) -> None:
    assert paper_figures(molecules, network) == {}


def test_split_files_of_coupled_cluster_stop(tmp_path: Path, capsys: Capture) -> None:
    argv = ["train", "md17", "--molecule", "benzene CCSD(T)", "--root", str(tmp_path)]
    assert main([*argv, "--run", str(tmp_path / "run")]) == 1
    assert "load_md17(root, name, train=True)" in capsys.readouterr().err
