"""Every example runs with --quick, learns, and returns figures of the right unit and shape."""

from __future__ import annotations

import ast
import difflib
import importlib
import json
import shutil
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import InMemoryDataset

from hipnn_pyg import HIPNN, save_model
from hipnn_pyg.data.qm9 import QM9Pack

EXAMPLES = Path(__file__).parents[1] / "examples"
MD17_FRAMES = 500  # of a trajectory the tests write themselves

Main = Callable[[Sequence[str]], dict[str, Any]]


@pytest.fixture(autouse=True)
def process_settings() -> Any:
    """Examples are scripts: they seed torch for their whole process."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def main_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Main]:
    """``main`` of an example; importable by name, so that it may start processes."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name: importlib.import_module(name).main


@pytest.fixture(scope="module")
def qm9(whole_qm9: QM9Pack, tmp_path_factory: pytest.TempPathFactory) -> QM9Pack:
    """3,000 molecules of it, water and ethanol among them."""
    root = tmp_path_factory.mktemp("qm9")
    folder = root / "qm9pack" / "processed"
    folder.mkdir(parents=True)
    some = [whole_qm9[k] for k in sorted({*range(40), *range(0, len(whole_qm9), 44)})]
    InMemoryDataset.save(some, str(folder / "qm9pack_v1.pt"))
    for name in ("pre_transform.pt", "pre_filter.pt"):
        torch.save("None", folder / name)  # PyG asks for them
    return QM9Pack(root)


def energy_of_bonds(positions: np.ndarray) -> np.ndarray:
    """kcal/mol: springs on the C-C and C-H bonds of benzene frames ``[M, 12, 3]``."""
    carbon, hydrogen = positions[:, :6], positions[:, 6:]
    cc = np.linalg.norm(carbon - np.roll(carbon, 1, axis=1), axis=2) - 1.39
    ch = np.linalg.norm(carbon - hydrogen, axis=2) - 1.09
    return -146_530 + 120 * (cc**2).sum(1) + 80 * (ch**2).sum(1)


def write_benzene(path: Path) -> None:
    """A trajectory in the official format, whose energies are a function of the positions."""
    random = np.random.default_rng(0)
    angles = np.arange(6) * np.pi / 3
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    still = np.concatenate([1.39 * ring, 2.48 * ring])
    positions = still + random.normal(scale=0.05, size=(MD17_FRAMES, 12, 3))
    z = np.array([6] * 6 + [1] * 6, dtype=np.uint8)
    energies, forces = energy_of_bonds(positions)[:, None], np.empty_like(positions)
    for place in np.ndindex(12, 3):
        step = np.zeros((12, 3))
        step[place] = 1e-5
        rise = energy_of_bonds(positions + step) - energy_of_bonds(positions - step)
        forces[(slice(None), *place)] = -rise / 2e-5
    np.savez(path, z=z, R=positions, E=energies, F=forces)


@pytest.fixture
def md17_file(tmp_path: Path, data_dir: Path | None) -> Path:
    """Benzene's raw file where PyG looks for it below ``tmp_path``."""
    path = tmp_path / "benzene" / "raw" / "md17_benzene2017.npz"
    path.parent.mkdir(parents=True)
    if data_dir is None:
        write_benzene(path)
    else:
        shutil.copy(data_dir / "md17" / path.name, path)
    return path


@pytest.mark.parametrize("name", ["01_qm9", "02_qm9_schnet"])
def test_plain_loop(
    name: str, main_of: Callable[[str], Main], qm9: QM9Pack, capsys: pytest.CaptureFixture[str]
) -> None:
    result = main_of(name)(["--quick", "--root", qm9.root])
    loss, error = result["train_loss"], result["validation_mae"]
    assert len(loss) == len(error) == 8 and all(map(isfinite, loss + error))
    assert loss[-1] < 0.7 * loss[0] and error[-1] < 0.7 * error[0]
    # far below what predicting the mean gives, which it would not be in another unit
    spread = qm9._data.y[:, 12]
    assert error[-1] < 0.25 * (spread - spread.mean()).abs().mean() and result["unit"] == "eV"
    assert result["shape"] == (30, 1)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"epoch 8: validation MAE {error[-1] * 23.060548:.3f} kcal/mol = {error[-1] * 1e3:.1f} meV"
    )


def statements(name: str) -> list[str]:
    """The code of an example, one statement a line, without its docstring."""
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text())
    assert ast.get_docstring(tree)
    tree.body.pop(0)
    return [line.strip() for line in ast.unparse(tree).splitlines()]


def test_schnet_is_swapped_in_by_one_line() -> None:
    lines = list(difflib.ndiff(statements("01_qm9"), statements("02_qm9_schnet")))
    removed, added = ([line[2:] for line in lines if line.startswith(mark)] for mark in "-+")
    code = [[line for line in part if "import" not in line] for part in (removed, added)]
    (hipnn,), (schnet,) = code
    assert hipnn.startswith("model = HIPNN(") and schnet.startswith("model = SchNet(")
    assert removed[0] == "from hipnn_pyg import HIPNN" and len(removed) == 2
    assert sorted(set(added) - {schnet}) == [
        "from hipnn_pyg import RadiusGraph",
        "from torch_geometric.nn.models import SchNet",
    ]


def test_md17(main_of: Callable[[str], Main], md17_file: Path, tmp_path: Path) -> None:
    result = main_of("03_md17")(["--quick", "--root", str(tmp_path)])
    energies = np.load(md17_file)["E"]
    assert result["train_loss"][-1] < 0.9 * result["train_loss"][0]
    deviation = np.abs(energies - energies.mean()).mean()
    assert 0 < result["test_mae"] < 0.9 * deviation and isfinite(result["validation_mae"])
    assert result["unit"] == "kcal/mol" and result["published_mae"] == 0.162
    num_test = len(energies) - 2 * 180
    assert result["sizes"] == {"train": 180, "validation": 180, "test": num_test}
    assert result["shape"] == (num_test,)


def test_smiles(main_of: Callable[[str], Main], qm9: QM9Pack) -> None:
    result = main_of("04_predict_smiles")(["--quick", "--root", qm9.root, "O", "CCO"])
    assert result["unit"] == "eV" and result["shape"] == (2, 3)
    for row, smiles in zip(result["rows"], ["O", "CCO"], strict=True):
        assert list(row) == ["smiles", "energy", "E0", "E1", "E2", "R"] and row["smiles"] == smiles
        assert row["energy"] == pytest.approx(row["E0"] + row["E1"] + row["E2"], abs=1e-9)
        assert 0 <= row["R"] <= 2 * {"O": 3, "CCO": 9}[smiles]  # two orders of each atom
        reference = float(qm9._data.y[qm9._data.smiles.index(smiles), 12])
        assert row["energy"] == pytest.approx(reference, rel=0.15)


def test_smiles_with_a_model_file(
    main_of: Callable[[str], Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = HIPNN((1, 6, 8), hidden_channels=4, e0=[-1.0, -2.0, -3.0], energy_unit="Hartree")
    with torch.no_grad():  # leave E^0 alone
        for block in model.blocks:
            block.readout.weight.zero_()
    save_model(model, tmp_path)
    result = main_of("04_predict_smiles")(["--model", str(tmp_path), "O", "CCO"])
    assert [row["energy"] for row in result["rows"]] == [-5.0, -13.0]
    assert result["unit"] == "Hartree" and "energies in Hartree" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main_of("04_predict_smiles")(["O"])
    assert "--model (qm9-u0-rdkit" in capsys.readouterr().err


def test_features(main_of: Callable[[str], Main], qm9: QM9Pack) -> None:
    result = main_of("05_features")(["--quick", "--root", qm9.root])
    for errors in (result["energy_mae"], result["gap_mae"]):
        assert len(errors) == 8 and all(map(isfinite, errors)) and errors[-1] < 0.7 * errors[0]
    assert result["unit"] == "eV" and result["features"] == (result["atoms"], 16)


def test_compare(main_of: Callable[[str], Main], qm9: QM9Pack) -> None:
    result = main_of("06_compare")(["--quick", "--root", qm9.root])
    assert set(result) == {"HIPNN", "SchNet"}
    figures = (
        "mae_kcal_per_mol",
        "rmse_kcal_per_mol",
        "molecules_per_second",
        "parameters",
        "peak_memory_mb",
        "epochs",
    )
    energies, species = qm9._data.y[:, 12].double().numpy(), (1, 6, 7, 8, 9)
    counts = np.array([[int((data.z == number).sum()) for number in species] for data in qm9])
    fit = np.linalg.lstsq(counts.astype(float), energies, rcond=None)[0]
    of_atoms_alone = 23.060548 * np.abs(energies - counts @ fit).mean()  # kcal/mol
    for name in result:
        for figure in figures:
            assert isfinite(result[name][figure]) and result[name][figure] > 0, (name, figure)
        assert result[name]["mae_kcal_per_mol"] <= result[name]["rmse_kcal_per_mol"]
    peaks = [result[name]["peak_memory_mb"] for name in result]
    assert peaks[0] != peaks[1]  # not that of the process that started both
    # three seconds: more than a fit of the atoms knows; in another unit it would be far off
    assert 0.1 * of_atoms_alone < result["HIPNN"]["mae_kcal_per_mol"] < 1.2 * of_atoms_alone
    assert result["SchNet"]["mae_kcal_per_mol"] < 100 * of_atoms_alone  # hardly trained
    assert result["HIPNN"]["parameters"] != result["SchNet"]["parameters"]
    assert result["HIPNN"]["test_molecules"] == result["SchNet"]["test_molecules"]


def test_forces(main_of: Callable[[str], Main], md17_file: Path, tmp_path: Path) -> None:
    options = ["--quick", "--root", str(tmp_path), "--json", str(tmp_path / "json")]
    options += ["--keep", str(tmp_path / "keep")]
    result = main_of("07_forces")(options)
    assert set(result) == {"HIPNN", "SchNet"}
    frames, forces = np.load(md17_file), np.load(md17_file)["F"]
    deviation = np.abs(frames["E"] - frames["E"].mean()).mean()
    for name, figures in result.items():
        assert 0 < figures["mae"] < 1.2 * deviation and figures["mae"] <= figures["rmse"]
        assert 0 < figures["force_mae"] < 1.2 * np.abs(forces).mean()
        assert figures["force_mae"] <= figures["force_rmse"] and figures["steps"] > 0
        written = json.loads((tmp_path / f"json/{name.lower()}-loop-benzene-0.json").read_text())
        assert written["force_mae"] == figures["force_mae"] and written["molecule"] == "benzene"
        assert figures["test_frames"] == 200
    again = main_of("07_forces")([*options, "--model", "HIPNN"])  # nothing is left to learn
    for key in ("steps", "seconds", "mae", "force_mae"):
        assert again["HIPNN"][key] == pytest.approx(result["HIPNN"][key], rel=1e-6), key
    with pytest.raises(ValueError, match="is of a run with other options"):
        main_of("07_forces")([*options, "--model", "HIPNN", "--batch_size", "6"])


def test_relaxation_and_vibrations(
    main_of: Callable[[str], Main],
    md17_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "spectrum.png"
    options = ["--root", str(tmp_path), "--molecule", "benzene", "--plot", str(picture)]
    result = main_of("08_relax_vibrations")(["--quick", *options])
    assert result["converged"] and result["largest_force"] < 1e-4 and result["relaxed_by"] > 0.01
    wavenumbers = result["wavenumbers"]
    assert wavenumbers.shape == (36,) and (np.sort(np.abs(wavenumbers))[:6] < 40).all()
    assert 1000 < wavenumbers.max() < 5000
    inside = (wavenumbers > 30).sum() * 10 * np.sqrt(2 * np.pi)  # of Gaussians wholly on the grid
    assert inside * 0.99 < np.trapezoid(result["density"], dx=2) < inside + 36 * 25
    assert picture.read_bytes().startswith(b"\x89PNG") and "cm^-1" in capsys.readouterr().out


def test_nve(
    main_of: Callable[[str], Main],
    md17_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--root", str(tmp_path), "--molecule", "benzene", "--run", str(tmp_path / "nve")]
    result = main_of("09_nve")(["--quick", *options])
    assert result["steps"] == 1_000 and result["rows"] == 101 and result["time"] == 0.5
    assert abs(result["drift"]) < 1 and 0 < result["fluctuation"] < 1
    assert 50 < result["temperature"] < 600
    assert result["picture"].read_bytes().startswith(b"\x89PNG")
    assert "meV/atom/ps" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="holds a simulation: .* choose another --run"):
        main_of("09_nve")(["--quick", *options])  # said before it trains


def test_crystal(main_of: Callable[[str], Main]) -> None:
    result = main_of("10_crystal")(["--quick"])
    assert result["train_loss"][-1] < 0.3 * result["train_loss"][0]
    (a, modulus), (emt_a, emt_modulus) = result["HIP-NN"], result["EMT"]
    assert a == pytest.approx(emt_a, abs=0.02) and emt_a == pytest.approx(3.590, abs=1e-3)
    assert modulus == pytest.approx(emt_modulus, rel=0.25)
    assert result["relaxed"] and result["a"] == pytest.approx(a, abs=2e-3)
    assert abs(result["pressure"]) < 0.1
