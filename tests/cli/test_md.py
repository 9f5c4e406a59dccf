"""``hipnn md`` and ``hipnn relax``: results, kills, refusals, every kind of model folder."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from hipnn_pyg import HIPNN, StructureError, save_model
from hipnn_pyg.cli import main, parser
from hipnn_pyg.cli.md import number_of_steps
from hipnn_pyg.cli.system import load, read_structure
from hipnn_pyg.models.self_check import SelfCheckError
from hipnn_pyg.plots import energy_against_time

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder(small_model: Callable[..., HIPNN], tmp_path: Path) -> Path:
    """A float64 model that saw forces, an ensemble of two, and a molecule."""
    model = small_model(hidden_channels=3, num_interactions=1, num_onsite=0, energy_unit="eV")
    with torch.no_grad():  # forces so weak that nothing collides
        model.blocks[0].readout.weight.mul_(0.03)
    about = {"target": "energy", "trained_on_forces": True}
    save_model(model, tmp_path / "model", **about)
    save_model(model, tmp_path / "ensemble" / "member-0", **about)
    with torch.no_grad():
        model.blocks[0].readout.weight.mul_(1.2)
    save_model(model, tmp_path / "ensemble" / "member-1", **about)
    ase.io.write(tmp_path / "ethanol.xyz", ase.build.molecule("CH3CH2OH"))
    return tmp_path


def md(folder: Path, run: str, *options: str, model: str = "model") -> list[str]:
    structure = ["md", str(folder / "ethanol.xyz"), "--model", str(folder / model)]
    return [*structure, "--run", str(folder / run), "--min_distance", "0.05", *options]


def test_a_simulation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[float | None] = []
    monkeypatch.setattr(
        "hipnn_pyg.cli.md.energy_against_time",
        lambda *given: drawn.append(given[4]) or energy_against_time(*given),
    )
    assert main(md(folder, "nve", "--time", "0.05")) == 0
    shown = capsys.readouterr()
    assert "100 steps, 0.05 ps" in shown.out and "meV/atom/ps" in shown.out
    assert "ns/day" in shown.err and "drift" in shown.err  # the progress bar
    assert "nan" not in shown.err and ", 0 ns/day" not in shown.err
    report = json.loads((folder / "nve" / "report.json").read_text())
    assert report["steps"] == 100 and abs(report["drift"]) < 1 and report["fluctuation"] > 0
    drift = f"drift {report['drift']:.5f} meV/atom/ps, fluctuation {report['fluctuation']:.4f} meV"
    assert drift in shown.out and drawn == [report["drift"]]  # a line in the picture
    assert (folder / "nve" / "energy.png").read_bytes().startswith(b"\x89PNG")
    assert len(ase.io.read(folder / "nve" / "trajectory.extxyz", index=":")) == 2
    assert main(md(folder, "nve", "--time", "0.05")) == 1
    assert "--resume" in capsys.readouterr().err
    # Longer, and from the last frame:
    assert main(md(folder, "nve", "--time", "0.1", "--resume")) == 0
    assert json.loads((folder / "nve" / "report.json").read_text())["steps"] == 200
    line = md(folder, "on", "--steps", "3", "--velocities", "keep", "--log_every", "1")
    line[1] = str(folder / "nve" / "last.extxyz")
    assert main(line) == 0
    (last, first) = ((folder / name / "log.csv").read_text().split() for name in ("nve", "on"))
    total = [float(text.split(",")[4]) for text in (last[-1], first[1])]
    assert total[0] == pytest.approx(total[1], abs=1e-6)
    options = ("--ensemble", "nvt", "--steps", "3", "--log_every", "1")  # control: no line
    capsys.readouterr()
    assert main(md(folder, "nvt", *options)) == 0
    assert drawn[-1] is None and "drift" not in capsys.readouterr().out
    assert main(md(folder, "short", "--steps", "3")) == 0  # one row of the log is no line
    assert "drift" not in capsys.readouterr().out


def test_a_killed_simulation_goes_on(folder: Path, hipnn: Start) -> None:
    """The same files, byte for byte, as of one that was left alone."""
    options: tuple[str, ...] = ("--ensemble", "nvt", "--steps", "1000", "--save_every", "50")
    assert main(md(folder, "whole", *options)) == 0
    options = (*options, "--checkpoint_seconds", "0.05")
    process = hipnn(md(folder, "killed", *options))
    checkpoint, log = folder / "killed" / "checkpoint.npz", folder / "killed" / "log.csv"
    deadline = time.monotonic() + 60
    while not log.exists() or log.stat().st_size < 2_000:  # some checkpoints after the first
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with np.load(checkpoint) as state:
        assert 0 < state["step"] < 1000
    assert main(md(folder, "killed", *options, "--resume")) == 0
    for name in ("log.csv", "trajectory.extxyz", "last.extxyz"):
        contents = [(folder / run / name).read_bytes() for run in ("whole", "killed")]
        assert contents[0] == contents[1], name


def test_ctrl_c_ends_with_a_message(folder: Path, hipnn: Start) -> None:
    process = hipnn(md(folder, "run", "--steps", "1000000"))
    log = folder / "run" / "log.csv"
    deadline = time.monotonic() + 60
    while not log.exists() or log.stat().st_size < 500:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "go on with --resume" in err and "Traceback" not in err


def test_ensembles(folder: Path) -> None:
    """Its folder, or its members one by one."""
    members = [str(folder / "ensemble" / f"member-{n}") for n in (0, 1)]
    assert main(md(folder, "a", "--steps", "10", model="ensemble")) == 0
    line = md(folder, "b", "--steps", "10", "--model", members[1], model="ensemble/member-0")
    assert main(line) == 0
    logs = [(folder / run / "log.csv").read_text() for run in "ab"]
    assert logs[0] == logs[1] and "energy_std_eV" in logs[0]
    assert main(md(folder, "c", "--steps", "10", model="ensemble/member-0")) == 0
    assert "energy_std_eV" not in (folder / "c" / "log.csv").read_text()


def test_precision(folder: Path) -> None:
    for precision in "float32", "float64":
        assert main(md(folder, precision, "--steps", "10", "--precision", precision)) == 0
    assert main(md(folder, "model_", "--steps", "10")) == 0
    logs = {run: (folder / run / "log.csv").read_text() for run in ("float32", "float64", "model_")}
    assert logs["model_"] == logs["float64"] != logs["float32"]


def test_relax(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["relax", str(folder / "ethanol.xyz"), "--model", str(folder / "model")]
    line += ["--fmax", "0.03"]
    assert main([*line, "--run", str(folder / "a")]) == 0
    assert "steps of LBFGS" in capsys.readouterr().out
    relaxed = ase.io.read(folder / "a" / "last.extxyz")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.03
    assert main([*line, "--run", str(folder / "b"), "--steps", "1", "--optimizer", "FIRE"]) == 1
    assert "not converged in 1 steps" in capsys.readouterr().err
    assert (folder / "b" / "last.extxyz").exists()
    assert main([*line, "--run", str(folder / "c"), "--cell", "true"]) == 1
    assert "three directions" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["md", "relax"])
def test_a_model_of_minima_is_refused(
    folder: Path,
    small_model: Callable[..., HIPNN],
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    save_model(small_model(energy_unit="eV"), folder / "qm9", target="U0_atom", dataset="qm9")
    for model in ("qm9-u0", str(folder / "qm9")):  # the first comes with the package
        line = [command, str(folder / "ethanol.xyz"), "--model", model]
        line += ["--run", str(folder / "run"), "--steps", "3"]
        assert main(line) == 1
        error = capsys.readouterr().err
        assert "zero-point" in error and "--i-know" in error and not (folder / "run").exists()
    assert main([*line, "--i-know"]) == (command == "relax")  # not converged in 3 steps


@pytest.mark.parametrize(
    "options, message",
    [
        (["--steps", "5", "--time", "1"], "either --steps or --time"),
        ([], "either --steps or --time"),
        (["--time", "0.0001"], "0 steps"),
        (["--steps", "5", "--timestep", "-1"], "timestep"),
        (["--steps", "5", "--device", "abacus"], "--device abacus"),
        (["--steps", "5", "--index", "3"], "structure 3"),
        (["--steps", "5", "--velocities", "keep"], "velocities"),
        (["--steps", "5", "--min_distance", "2"], "closer than 2 Å"),
        (["--steps", "5", "--max_r", "0.001"], "above the limit"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(md(folder, "run", *options)) == 1
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err
    assert shown.err.rstrip().splitlines()[-1].startswith("hipnn md: ")


def test_an_unknown_precision(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(md(folder, "run", "--steps", "5", "--precision", "half"))
    shown = capsys.readouterr().err
    assert exit.value.code == 2 and "Traceback" not in shown
    assert all(word in shown for word in ("precision", "half", "model", "float32", "float64"))


@pytest.mark.parametrize("distance, near", [(0.39, True), (0.5, False)])
def test_atoms_closer_than_the_default_stop_it(
    distance: float, near: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No bond is shorter than 0.4 Å."""
    ase.io.write(folder / "co.xyz", Atoms("CO", [[0, 0, 0], [0, 0, distance]]))
    line = ["md", str(folder / "co.xyz"), "--model", str(folder / "model"), "--steps", "1"]
    assert main([*line, "--run", str(folder / "run")]) == near
    assert ("3.90e-01 Å apart, closer than 0.4 Å" in capsys.readouterr().err) == near


@pytest.mark.parametrize("command", ["md", "relax"])
def test_kernels_are_checked_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    line = [command, *md(folder, "run", "--steps", "1")[1:]]
    line += ["--i-know"]  # of no effect
    checked: list[str] = []
    monkeypatch.setattr(
        "hipnn_pyg.interfaces.loading.self_check", lambda kernel, device: checked.append(kernel)
    )
    main(line)
    assert len(checked) == 1 and (folder / "run").exists()

    def differs(kernel: str, device: torch.device) -> None:
        raise SelfCheckError(f'kernel "{kernel}" differs')

    monkeypatch.setattr("hipnn_pyg.interfaces.loading.self_check", differs)
    line[line.index(str(folder / "run"))] = str(folder / "other")
    capsys.readouterr()
    assert main(line) == 1
    assert f'hipnn {command}: kernel "{checked[0]}" differs' in capsys.readouterr().err
    assert not (folder / "other").exists()


def test_files_that_are_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.xyz").write_text("nonsense")
    for structure, model, message in (
        ("none.xyz", "model", "no structure file"),
        ("text.xyz", "model", "ASE cannot read"),
        ("ethanol.xyz", "none", "does not exist"),
    ):
        line = ["md", str(folder / structure), "--model", str(folder / model), "--steps", "1"]
        assert main(line) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["md", "relax"])
def test_a_blank_line_between_structures(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """ASE would stop there, and the last structure be another."""
    first, second = "1\n\nC 0 0 0\n", "2\n\nC 0 0 0\nH 0 0 1.1\n"
    line = [command, str(folder / "two.xyz"), *md(folder, "run", "--steps", "1")[2:]]
    (folder / "two.xyz").write_text(f"{first}\n{second}")
    assert main(line) == 1
    assert "line 4 is blank" in capsys.readouterr().err and not (folder / "run").exists()
    (folder / "two.xyz").write_text(first + second)  # control
    main(line)
    assert len(ase.io.read(folder / "run" / "last.extxyz")) == 2


def test_records_of_an_sdf_file(tmp_path: Path) -> None:
    """ASE would read the atoms of the first one, whatever the index and the charge."""
    path = tmp_path / "three.sdf"
    with path.open("w") as file:
        for smiles in ("O", "CO", "[OH-]"):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            rdDistGeom.EmbedMolecule(mol, randomSeed=0)
            file.write(Chem.MolToMolBlock(mol) + "$$$$\n")
    assert [len(read_structure(str(path), index)) for index in (0, 1, -2)] == [3, 6, 6]
    with pytest.raises(StructureError, match="record 2 has charge -1"):
        read_structure(str(path))
    with pytest.raises(StructureError, match="holds no structure 3"):
        read_structure(str(path), 3)


def test_number_of_steps() -> None:
    assert number_of_steps(None, 50.0, 0.5) == 100_000
    assert number_of_steps(None, 0.3, 0.1) == 3_000
    assert number_of_steps(7, None, 0.5) == 7


def test_small_structures_take_one_thread(folder: Path, threads: Callable[[int], None]) -> None:
    for repeats, expected in ((1, 1), (4, 2)):  # 9 atoms, and 36 as control
        atoms = ase.build.molecule("CH3CH2OH", cell=(9, 9, 9)).repeat((repeats, 1, 1))
        ase.io.write(folder / "ethanol.xyz", atoms, format="xyz")
        threads(2)
        load(parser().parse_args(md(folder, "run", "--steps", "1"))["md"])
        assert torch.get_num_threads() == expected


def test_the_skin_is_that_of_the_neighbour_list(folder: Path) -> None:
    for options, skin in ((["--skin", "0.25"], 0.25), ([], 0.5)):
        atoms = load(parser().parse_args(md(folder, "run", "--steps", "1", *options))["md"])
        assert atoms.calc.neighbors.skin == skin
