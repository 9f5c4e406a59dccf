"""The benchmark suite: every entry runs, says what is missing, and computes what it claims."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from hipnn_pyg.interfaces import from_hippynn
from hipnn_pyg.interfaces.ase import HIPNNCalculator
from hipnn_pyg.train import HIPNNLoss, Network

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
ENTRIES = (  # the table's order
    "train_step inference trainer memory large md first_step ensemble precision "
    "gpu_batch_30 gpu_batch_1024 gpu_epoch gpu_ensemble gpu_precision"
).split()
QUICK = ["--quick", "--synthetic", "--threads", "1", "--out"]


@pytest.fixture(scope="module", autouse=True)
def on_the_path() -> Iterator[None]:
    """``benchmarks/`` importable, here and in worker processes."""
    sys.path.insert(0, BENCHMARKS)
    yield
    sys.path.remove(BENCHMARKS)


def module(name: str) -> Any:
    return importlib.import_module(name)


class Inline:
    """A stand-in for ``suite.processes.Worker`` without a process."""

    def __init__(self, threads: int, environment: Any = None, memory_limit_gb: Any = None) -> None:
        pass

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def close(self) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def stay_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """No processes, and hippynn without numba, which takes half a minute to compile."""
    patch.setattr(module("suite.processes"), "Worker", Inline)
    implementations = module("suite.implementations")
    plain = partial(implementations.Hippynn, kernels="_pytorch_raw")
    patch.setitem(implementations.BUILDERS, "hippynn numba", plain)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_in_this_process(monkeypatch)


@pytest.fixture(scope="module")
def results(on_the_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run of all entries."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        stay_in_this_process(patch)
        module("run").main([*QUICK, str(out)])
    return out


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


# -- all entries ---------------------------------------------------------------------------------


def test_the_entries_are_these(results: Path) -> None:
    assert list(module("run").ENTRIES) == ENTRIES
    assert sorted(file.stem for file in results.glob("*.json")) == sorted(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_each_file_says_what_where_and_how(results: Path, name: str) -> None:
    entry = read(results, name)
    assert not entry["missing"].startswith("failed") and entry["is"]
    assert bool(entry["rows"]) != bool(entry["missing"])
    assert entry["machine"]["cpu"] and entry["machine"]["cores"] == os.cpu_count()
    assert entry["machine"]["threads"] == 1 and entry["seed"] == 0 and entry["quick"]
    assert entry["versions"]["torch"] == torch.__version__
    assert entry["versions"]["hippynn"] == "0.1.3" and entry["molecules"] == "random molecules"
    for row in entry["rows"]:
        assert row["title"] and row["unit"]
        assert row["figures"] or row["missing"]
        for figure in row["figures"].values():
            there = [value for value in figure["rounds"] if value is not None]
            assert figure["median"] == median(there) and all(map(math.isfinite, there))
            assert (figure["min"], figure["max"]) == (min(there), max(there))
        assert set(row["figures"]).isdisjoint(row["missing"])


@pytest.mark.parametrize("name", ENTRIES)
def test_ratios_are_peer_over_ours_of_the_same_round(results: Path, name: str) -> None:
    entry = read(results, name)
    if not entry["rows"]:
        assert name.startswith("gpu_") and entry["missing"].startswith("no GPU: this PyTorch")
    for row in entry["rows"]:
        for peer, ratio in row["ratios"].items():
            ours = row["figures"][row["ours"]]["rounds"]
            theirs = row["figures"][peer]["rounds"]
            pairs = zip(theirs, ours, strict=True)
            quotients = [a / b for a, b in pairs if a is not None and b is not None]
            assert ratio["median"] == pytest.approx(median(quotients)) and peer != row["ours"]
        for goal in row["goals"]:
            assert (goal["met"] is None) == (goal["value"] is None)


def test_who_is_measured(results: Path) -> None:
    """No GPU, perhaps; our compiled step is left out of a quick run, and says so."""
    peers = {"hippynn numba", "SchNet", "SchNetPack"}
    for name in ("train_step", "inference", "memory"):
        for row in read(results, name)["rows"]:
            assert set(row["figures"]) == {"HIPNN"} | peers and set(row["ratios"]) == peers
    for row in read(results, "large")["rows"]:
        search = row["title"].startswith("neighbour search")
        assert set(row["figures"]) == ({"search"} if search else {"HIPNN", "hippynn numba"})
        assert row["size"] in (90, 150, 300)
    for row in read(results, "train_step")["rows"]:
        assert row["missing"]["HIPNN compiled"] == "not compiled in this run"
        assert row["floor"]["value"] > 0
        rounds = row["figures"]["SchNet"]["rounds"]
        assert [value is None for value in rounds] == [False, True, False]  # seldom
    if not torch.cuda.is_available():
        for name in ENTRIES[-5:]:
            gpu = read(results, name)
            assert not gpu["rows"] and gpu["missing"].startswith("no GPU: this PyTorch")


def test_the_epoch_is_extrapolated_from_the_trainer(results: Path) -> None:
    steps, epoch = read(results, "trainer")["rows"]
    expected = steps["figures"]["Trainer"]["median"] * 3.648
    assert epoch["figures"]["Trainer"]["median"] == pytest.approx(expected)
    assert "extrapolated" in epoch["note"]


def test_what_another_machine_measured_stays(tmp_path: Path) -> None:
    """Where there is no GPU, its figures are left alone; a broken entry is always shown."""
    file = tmp_path / "gpu_epoch.json"
    measured = {"rows": [{"title": "epoch"}], "missing": ""}
    for entry in (measured, {"rows": [], "missing": "no GPU"}):
        module("run").keep(file, entry)
        assert json.loads(file.read_text()) == measured
    broken = {"rows": [], "missing": "failed: RuntimeError: out of memory"}
    module("run").keep(file, broken)
    assert json.loads(file.read_text()) == broken


def test_the_ensemble_is_measured_beside_single_models(results: Path) -> None:
    (cpu,) = read(results, "ensemble")["rows"]
    assert set(cpu["figures"]) == {"ensemble", "one after the other"}
    assert cpu["title"].startswith("8 models") and cpu["goals"][0]["value"] > 0


def test_the_precision_of_the_shipped_model(results: Path) -> None:
    """bf16 errs by more than float32, by less than forces of eV/Å; TF32 is the GPU's."""
    rows = read(results, "precision")["rows"]
    assert [row["title"] for row in rows[:4]] == [
        f"CPU: {size} error of {what}"
        for what in ("energies", "forces")
        for size in ("mean", "largest")
    ]
    for row in rows[:4]:
        assert row["unit"] == ("kcal/mol" if "energies" in row["title"] else "kcal/mol/Å")
        error = {name: figure["median"] for name, figure in row["figures"].items()}
        assert 0 < error["float32"] < 0.01 < error["bf16"] < 100
        same = error["tf32"] == error["float32"]
        assert same == ("tf32 has no effect on this device" in row["note"])
        assert "bf16 has no effect" not in row["note"] and "qm9-u0" in row["note"]
    means, largest = (rows[k]["figures"]["bf16"]["median"] for k in (0, 1))
    assert means < largest


def test_a_folder_without_a_model_has_no_precision(inline: None, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = module("run").main([*QUICK, out, "--only", "precision", "--run", str(tmp_path)])
    assert (
        result["precision"]["missing"] == f"{tmp_path} holds no model: name a run folder with --run"
    )


# -- the GPU's entry, on a CPU ---------------------------------------------------------------------


def test_the_captured_step_is_our_step(inline: None) -> None:
    """The same batches, drawn within the step or gathered outside, give the same weights."""
    tasks, settings = module("suite.tasks"), module("suite.settings")
    molecules = module("suite.structures").random_molecules(24, seed=0)
    quick = replace(settings.Settings(), **settings.QUICK)
    batches = list(torch.randint(24, (5, 4), generator=torch.Generator().manual_seed(0)))
    weights = {}
    for name in ("HIPNN", "HIPNN captured"):
        tasks.set_up(name, molecules, quick)
        before = tasks.built(name).objective.vector.detach().clone()
        assert tasks.turn(name, "step", batches) > 0
        assert tasks.turn(name, "energies", batches[:2]) > 0
        weights[name] = tasks.built(name).objective.vector.detach()
        assert not torch.allclose(weights[name], before, atol=1e-4)  # control
    torch.testing.assert_close(weights["HIPNN captured"], weights["HIPNN"], rtol=1e-4, atol=1e-6)


def test_kernels_are_counted_without_copies() -> None:
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        SimpleNamespace(name=name, device_type=device)
        for name, device in (
            ("aten::mm", cpu),
            ("cudaGraphLaunch", cpu),
            ("ampere_sgemm_64x32", cuda),
            ("_envsum", cuda),
            ("Memcpy HtoD (Pinned -> Device)", cuda),
            ("Memset (Device)", cuda),
        )
    ]
    assert module("suite.tasks").count_kernels(events) == 2


def test_the_rows_of_the_gpu(inline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be written, with the CPU in its place; no figure of it is kept."""
    gpu = module("suite.gpu")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "PEERS", ("SchNet",))
    monkeypatch.setattr(gpu.tasks, "kernels_per_step", lambda name, batch: len(name))
    for name in ("compare", "kernel_count", "epoch_row", "ensemble_row", "errors_on"):
        there = getattr(gpu, name)
        swapped = lambda *a, there=there: there(*("cpu" if x == "cuda" else x for x in a))  # noqa: E731
        monkeypatch.setattr(gpu, name, swapped)
    settings = module("suite.settings")
    quick = replace(settings.Settings(), synthetic=True, threads=1, **settings.QUICK)
    bench = module("suite.bench").Bench(quick)
    entries = [module("run").ENTRIES[name] for name in ENTRIES[-5:]]
    rows = [row.as_dict() for entry in entries for row in entry(bench)]
    bench.close()
    titles = [row["title"] for row in rows]
    for size in (2, 8):
        for what in ("GPU training step", "GPU kernels per training step", "GPU energies"):
            assert f"{what}, batch {size}" in titles
    assert titles[6:8] == ["epoch of 2 steps", "8 models, 1 steps each"]
    assert all("error of" in title for title in titles[8:]) and len(titles) == 12
    step, kernels, energies = rows[:3]
    assert step["ours"] == energies["ours"] == "HIPNN captured"
    assert set(step["ratios"]) == {"HIPNN", "SchNet"} and step["floor"]["value"] > 0
    assert [goal["goal"] for goal in step["goals"]] == ["at least 5x SchNet", "at most 0.274123 ms"]
    assert kernels["figures"]["SchNet"]["median"] == 6.0
    assert energies["figures"]["HIPNN"]["molecules_per_second"] > 0
    assert [row["goals"][0]["goal"] for row in rows[6:8]] == [
        "at most 1 s",
        "at least 0.4x one model",
    ]
    json.dumps(rows, allow_nan=False)


def test_dynamics_in_ase_and_of_many_molecules(results: Path) -> None:
    small, box, *at_once = read(results, "md")["rows"]
    assert (
        small["title"].startswith("MD step, 15 atoms") and "81 atoms in a periodic" in box["title"]
    )
    assert "turns of 2 steps, too few for a new search" in box["note"]
    for row in small, box:
        assert set(row["figures"]) == {"HIPNN", "hippynn numba"} and not row["missing"]
        assert row["goals"][0]["value"] == row["ratios"]["hippynn numba"]["median"]
    assert [row["title"].split()[0] for row in at_once] == ["dynamics", "relaxation"]
    for row in at_once:
        assert set(row["figures"]) == {"TorchSim", "ASE, one by one"} and not row["missing"]


def test_turns_of_dynamics_in_a_box_search_for_neighbours(inline: None) -> None:
    """Those of the middle box do; those of the largest are too short, and say so."""
    dynamics, tasks = module("suite.dynamics"), module("suite.tasks")
    settings = module("suite.settings").Settings(network=Network(hidden_channels=4, num_onsite=0))
    middle, largest = settings.dynamics
    assert dynamics.steps_of_turn(settings, largest) < dynamics.FEW
    tasks.set_up("HIPNN", module("suite.structures").random_molecules(8, 0), settings)
    dynamics.load("HIPNN", middle, settings)
    neighbors = dynamics._running["HIPNN"].atoms.calc.neighbors
    dynamics.advance("HIPNN", dynamics.FEW - 1)
    assert neighbors.searches == 1
    steps = dynamics.steps_of_turn(settings, middle)
    dynamics.advance("HIPNN", steps)
    assert steps >= 20 and neighbors.searches >= 3


def test_both_calculators_have_the_same_forces(
    inline: None, recwarn: pytest.WarningsRecorder
) -> None:
    tasks, dynamics = module("suite.tasks"), module("suite.dynamics")
    settings = module("suite.settings").Settings(network=Network(hidden_channels=6, num_onsite=1))
    tasks.set_up("hippynn numba", module("suite.structures").random_molecules(8, 0), settings)
    theirs = tasks.built("hippynn numba")
    for size in 81, 0:
        dynamics.load("hippynn numba", size, settings)
        atoms = dynamics._running["hippynn numba"].atoms
        forces, energy = atoms.get_forces(), atoms.get_potential_energy()
        atoms.calc = HIPNNCalculator(from_hippynn(theirs.network, theirs.henergy))
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-3)
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-5)
        assert np.abs(forces).max() > 0.1


def test_the_table_has_every_row_and_its_origin(results: Path) -> None:
    text = (results / "README.md").read_text()
    for name in ENTRIES:
        entry = read(results, name)
        for row in entry["rows"]:
            (line,) = (x for x in text.splitlines() if x.startswith(f"| {row['title']} "))
            for peer in (*row["figures"], *row["missing"]):
                assert peer in line
        if entry["missing"]:
            assert f"| {name} | | not measured: {entry['missing']} |" in text
        assert name in next(x for x in text.splitlines() if x.startswith("- train_step"))
    assert "the figures mean nothing" in text and "scaling.png" in text
    assert (results / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_goals_of_the_full_run_are_judged_by_the_figures() -> None:
    rows = module("suite.rows")
    goals = [rows.Goal(2.5, "peer"), rows.Goal(4.5, "peer"), rows.Goal(1.5), rows.Goal(0.5)]
    goals.append(rows.Goal(2, "absent"))
    samples = {"ours": [1.0, 1.0, 1.0], "peer": [3.0, 4.0, 5.0]}
    row = rows.Row("what", "s", "ours", samples, {"absent": "why"}, ["peer"], goals=goals)
    assert [goal["met"] for goal in row.as_dict()["goals"]] == [True, False, True, False, None]


# -- what is missing -----------------------------------------------------------------------------


def test_an_absent_peer_is_reported(
    inline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hippynn", "schnetpack"):
        monkeypatch.setitem(sys.modules, name, None)
    result = module("run").main([*QUICK, str(tmp_path), "--only", "train_step"])
    for row in result["train_step"]["rows"]:
        for name in ("hippynn numba", "SchNetPack"):
            assert "pip install" in row["missing"][name]
        assert set(row["ratios"]) == {"SchNet"}
        assert row["goals"][0]["met"] is None and row["goals"][1]["met"] is not None
    table = (tmp_path / "README.md").read_text()
    assert "not measured (import of hippynn halted" in table


def test_hippynn_without_its_numba_kernels_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    tasks = module("suite.tasks")
    molecules = module("suite.structures").random_molecules(4, seed=0)
    with pytest.raises(module("suite.rows").Unavailable, match=r"numba.*pip install"):
        tasks.set_up("hippynn numba", molecules, module("suite.settings").Settings())


def test_without_qm9_the_entries_say_so(
    inline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = module("suite.structures")

    def load(self: Any) -> None:
        raise structures.DatasetUnavailableError("put it there")

    monkeypatch.setattr(structures.QM9Set, "load", load)
    arguments = [argument for argument in QUICK if argument != "--synthetic"]
    result = module("run").main([*arguments, str(tmp_path), "--only", "inference", "trainer"])
    for name in ("inference", "trainer"):
        assert "QM9: put it there; --synthetic" in result[name]["missing"]
        assert not result[name]["rows"]
    assert "put it there" in (tmp_path / "README.md").read_text()


def test_a_broken_entry_does_not_end_the_run(
    inline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = module("run")

    def broken(bench: Any) -> None:
        """Broken."""
        raise KeyError("a mistake")

    monkeypatch.setitem(run.ENTRIES, "gpu_epoch", broken)
    result = run.main([*QUICK, str(tmp_path), "--only", "gpu", "ensemble"])
    assert list(result) == [*ENTRIES[-5:], "ensemble"]
    assert result["gpu_epoch"]["missing"] == "failed: KeyError: 'a mistake'"
    assert "failed" not in result["ensemble"]["missing"]


# -- turns and ratios ----------------------------------------------------------------------------


@pytest.mark.parametrize(("peer", "times"), [(0.03, 3.0), (0.001, 0.1)])
def test_a_slower_peer_has_a_ratio_above_one(peer: float, times: float) -> None:
    rows = module("suite.rows")
    samples, _ = rows.interleave({"ours": lambda _: 0.01, "peer": lambda _: peer}, 5)
    ratio = rows.ratio(samples["peer"], samples["ours"])
    assert ratio == pytest.approx({"median": times, "min": times, "max": times})


def test_the_ratio_survives_a_drift_that_medians_do_not() -> None:
    """The machine gets slower by 1.5 each round; the peer is seldom and always 3 times slower."""
    rows = module("suite.rows")
    turns = {"ours": lambda n: 1.5**n, "peer": lambda n: 3 * 1.5**n}
    samples, missing = rows.interleave(turns, 6, ["peer"], 4)
    assert samples["peer"] == [3.0, None, None, None, 3 * 1.5**4, None] and not missing
    assert rows.ratio(samples["peer"], samples["ours"])["median"] == pytest.approx(3)
    medians = {name: rows.spread(values)["median"] for name, values in samples.items()}
    assert medians["peer"] / medians["ours"] > 3.1


def test_turns_alternate_and_failures_are_kept_apart() -> None:
    rows = module("suite.rows")
    order = []

    def turn(name: str, number: int) -> float:
        order.append(name)
        if name == "c" and number == 1:
            raise rows.Unavailable("out of memory at 2 GB")
        return 1.0

    turns = {name: lambda number, name=name: turn(name, number) for name in "abc"}
    samples, missing = rows.interleave(turns, 3)
    assert "".join(order) == "abc" + "cba" + "ab"
    assert samples == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert missing == {"c": "out of memory at 2 GB"}


# -- the floor -----------------------------------------------------------------------------------


def test_multiply_adds_counted_by_hand() -> None:
    """N = 4, E = 5, 2 species, F = 3, nu = 2, one on-site layer, two interactions."""
    count = module("suite.floors").multiply_adds
    network = Network(3, num_interactions=2, num_onsite=1, num_sensitivities=2)
    first = {
        "sum": (5 * 2 * 2, 2),
        "V": (4 * 2 * 2 * 3, 3),
        "W": (4 * 2 * 3, 2),
        "M~": (4 * 2 * 3, 2),
        "W~": (4 * 3 * 3, 3),
        "on-site": (2 * 4 * 3 * 3, 3),
        "readout": (4 * 3, 3),
    }
    second = {
        "sum": (5 * 2 * 3, 3),
        "V": (4 * 2 * 3 * 3, 3),
        "W": (4 * 3 * 3, 3),
        "W~": (4 * 3 * 3, 3),
        "on-site": (2 * 4 * 3 * 3, 3),
        "readout": (4 * 3, 3),
    }
    terms = [*first.values(), *second.values()]
    assert count(4, 5, 2, network, training=False) == sum(n for n, _ in terms) == 494
    assert count(4, 5, 2, network, training=True) == sum(n * k for n, k in terms) == 1414
    assert count(4, 6, 2, network, training=True) == 1414 + 2 * 2 * 2 + 3 * 2 * 3


def test_the_floor_of_the_papers_network() -> None:
    """0.87 GFLOP a step for 30 molecules of 18 atoms, two operations per multiply-add."""
    count = module("suite.floors").multiply_adds
    assert 2 * count(540, 540 * 17, 5, Network(), training=True) == pytest.approx(0.87e9, rel=0.03)


def test_the_rate_is_of_this_machine() -> None:
    assert 1e7 < module("suite.floors").multiply_add_rate(64, 64, 64) < 1e13


# -- what is measured ----------------------------------------------------------------------------


def test_both_hipnns_minimise_the_same_loss() -> None:
    """Control: without the L2 or the R term the losses differ."""
    implementations = module("suite.implementations")
    settings = module("suite.settings").Settings(network=Network(hidden_channels=6, num_onsite=1))
    molecules = module("suite.structures").random_molecules(20, seed=3)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="non-standard"):
        theirs = implementations.Hippynn(molecules, settings, "cpu", kernels="_pytorch_raw")
    theirs.graph.double()
    theirs.sigma_e = 1.0  # from_hippynn puts sigma_E into the weights
    batch = molecules.gather(torch.arange(12))
    batch = batch._replace(pos=batch.pos.double())
    loss = theirs.loss(theirs.prepare(batch)).detach()
    assert theirs.optimizer.defaults["fused"]
    ours = from_hippynn(theirs.network, theirs.henergy)
    lambdas = implementations.LAMBDA_L2, implementations.LAMBDA_R
    torch.testing.assert_close(loss, HIPNNLoss(ours, *lambdas)(batch).loss, rtol=1e-9, atol=0)
    for other in ((0.0, lambdas[1]), (lambdas[0], 0.0)):
        assert abs(HIPNNLoss(ours, *other)(batch).loss - loss) > 1e-6 * loss


def test_both_hipnns_get_the_same_energy_from_the_same_pairs() -> None:
    implementations = module("suite.implementations")
    settings = module("suite.settings").Settings(network=Network(hidden_channels=6, num_onsite=1))
    molecules = module("suite.structures").random_molecules(20, seed=3)
    with pytest.warns(UserWarning, match="non-standard"):
        theirs = implementations.Hippynn(molecules, settings, "cpu", kernels="_pytorch_raw")
    theirs.graph.double()
    ours = implementations.Ours(molecules, settings, "cpu", compiled=False)
    ours.model = from_hippynn(theirs.network, theirs.henergy)
    z, pos = module("suite.structures").water_box(60, seed=0)
    edge_index = implementations.RadiusGraph(3.0)(pos, torch.zeros_like(z))[0]
    edge_index = edge_index[:, edge_index[0] % 5 != 0]  # not symmetric: who sends matters
    edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    with torch.no_grad():
        energies = [x.energy_from_pairs(z, pos.double(), edge_index) for x in (ours, theirs)]
        turned = theirs.energy_from_pairs(z, pos.double(), edge_index.flip(0))
    torch.testing.assert_close(*energies, rtol=1e-9, atol=0)
    assert abs(turned - energies[1]) > 1e-6


def test_schnetpack_gets_what_its_own_pipeline_gives_it() -> None:
    settings, molecules = (
        module("suite.settings"),
        module("suite.structures").random_molecules(3, 0),
    )
    tiny = replace(settings.Settings(), **settings.QUICK)
    theirs = module("suite.implementations").SchNetPack(molecules, tiny, "cpu")
    from schnetpack.interfaces import AtomsConverter
    from schnetpack.transform import ASENeighborList

    batch = molecules.gather(torch.arange(3))
    pieces = zip(*(x.split(molecules.counts.tolist()) for x in (batch.z, batch.pos)), strict=True)
    own = [Atoms(z.numpy(), pos.numpy()) for z, pos in pieces]
    convert = AtomsConverter(ASENeighborList(cutoff=theirs.CUTOFF), dtype=torch.float32)
    far = AtomsConverter(ASENeighborList(cutoff=theirs.CUTOFF - 1.0), dtype=torch.float32)
    with torch.no_grad():
        ours = theirs.energies(theirs.prepare(batch))
        expected = theirs.model(convert(own))["energy"]
        less = theirs.model(far(own))["energy"]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert (less - ours).abs().min() > 1e-4


def test_a_step_learns_and_energies_do_not() -> None:
    tasks = module("suite.tasks")
    settings = module("suite.settings")
    tiny = replace(settings.Settings(), **settings.QUICK)
    molecules = module("suite.structures").random_molecules(20, seed=3)
    for name in ("HIPNN", "SchNet", "SchNetPack"):
        tasks.set_up(name, molecules, tiny)
        built = tasks.built(name)
        (batch,) = tasks.prepare(name, [torch.arange(20)])
        before = float(built.loss(batch).detach())
        indices = [torch.arange(20)] * 3
        assert tasks.turn(name, "energies", indices) > 0
        assert float(built.loss(batch).detach()) == before
        assert tasks.turn(name, "step", indices) > 0
        assert float(built.loss(batch).detach()) < before


def test_water_has_the_density_and_distances_of_water() -> None:
    water_box = module("suite.structures").water_box
    z, pos = water_box(3 * 512, seed=0)
    assert z.bincount().tolist() == [0, 1024, 0, 0, 0, 0, 0, 0, 512]
    r = torch.cdist(pos, pos, compute_mode="donot_use_mm_for_euclid_dist")
    molecule = torch.arange(len(z)) // 3
    same = molecule[:, None] == molecule
    assert r[~same].min() >= 1.2 - 1e-5
    torch.testing.assert_close(r[0, 1:3], torch.tensor([0.9572, 0.9572]), rtol=1e-4, atol=0)
    edges = np.ptp(pos.numpy(), axis=0)
    assert 0.08 < len(z) / edges.prod() < 0.12  # atoms per cubic Å
    assert torch.equal(water_box(3 * 512, seed=0)[1], pos)
    assert not torch.equal(water_box(3 * 512, seed=1)[1], pos)
    assert len(water_box(100, seed=0)[0]) == 99


def test_peak_growth_sees_what_an_action_holds_for_a_moment() -> None:
    peak_growth = module("suite.processes").peak_growth

    def take(megabytes: int) -> Callable[[], object]:
        return lambda: float(np.ones(megabytes * 125_000).sum())  # freed at the end

    take(120)()  # an earlier, higher peak must not hide a later one
    assert 60e6 < peak_growth(take(64)) < 90e6
    assert peak_growth(lambda: None) < 10e6


# -- real processes ------------------------------------------------------------------------------


def test_a_worker_is_a_process_of_its_own_with_our_settings() -> None:
    processes, rows = module("suite.processes"), module("suite.rows")
    before = dict(os.environ)
    with processes.Worker(1, {"HIPNN_TEST": "there"}, memory_limit_gb=4) as worker:
        assert dict(os.environ) == before
        assert worker(os.getpid) == worker(os.getpid) != os.getpid()
        assert worker(os.getenv, "HIPNN_TEST") == "there"
        assert worker(os.getenv, "NUMBA_NUM_THREADS") == "1" == worker(os.getenv, "OMP_NUM_THREADS")
        assert worker(torch.get_num_threads) == 1
        assert worker(math.sqrt, 4.0) == 2.0
        denormal = torch.tensor([1e-40])
        assert float(denormal) > 0 == float(worker(torch.mul, denormal, 1.0))
        with pytest.raises(ZeroDivisionError):
            worker(divmod, 1, 0)
        with pytest.raises(rows.Unavailable, match="out of memory at 4 GB"):
            worker(torch.zeros, 2_000_000_000)
        assert worker(math.sqrt, 9.0) == 3.0  # it lives on
        with pytest.raises(rows.Unavailable, match="the process died, perhaps out of memory"):
            worker(os._exit, 1)


def test_a_run_with_real_processes(tmp_path: Path) -> None:
    """Molecules, settings and figures go from process to process."""
    only = ["--only", "inference", "--peers"]
    result = module("run").main([*QUICK, str(tmp_path), *only])
    (row,) = result["inference"]["rows"]
    assert set(row["figures"]) == {"HIPNN"} and not row["missing"] and not row["ratios"]
    assert row["figures"]["HIPNN"]["molecules_per_second"] > 0
    assert read(tmp_path, "inference") == json.loads(json.dumps(result["inference"]))


def test_the_readme_shows_the_results_on_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = module("readme_tables")
    text = "".join(page.read_text() for page in tables.PAGES)
    assert all(f"<!-- {name} -->\n|" in text for name in tables.SECTIONS)
    assert tables.with_tables(text) == text  # else: make tables
    (tmp_path / "nve").mkdir()  # control: other results, another table
    report = {"time": 1.0, "temperature": 300.0, "drift": 0.25, "fluctuation": 0.5}
    (tmp_path / "nve" / "water.json").write_text(json.dumps(report))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| water | 1 | 300 | 0.25000 | 0.5000 |" in tables.nve()


def test_forces_are_tabled_by_molecule_and_method(tmp_path: Path) -> None:
    table = module("force_table")
    for seed, error in enumerate((1.0, 2.0, 3.0)):
        figures = {"mae": error, "force_mae": 10 * error, "seconds": 900.0}
        kept = {"method": "SchNet, plain loop", "molecule": "toluene", "seed": seed, **figures}
        kept |= {"machine": "M", "torch": "T", "date": "D"}
        (tmp_path / f"{seed}.json").write_text(json.dumps(kept))
        shown = table.forces(tmp_path)
        assert ("±" in shown) == (seed == 2)  # an error bar from three splits on
    assert "2.000 ± 0.577 | 0.12 |" in shown and "20.000 ± 5.774 | 0.57 |" in shown
    assert "SchNet with forces: 15 minutes of training; seeds 0, 1, 2; M, torch T, D." in shown
    assert shown.count(table.NOT_RUN) == 22
    for seconds, error in ((900.0, 4.0), (3600.0, 5.0)):  # longer training stands apart
        model = {"trained_on_forces": True, "training_seconds": seconds, "molecule": "toluene"}
        model |= {"seed": 0, "hyperparameters": {"num_sensitivities": 10}}
        model["trained_on"] = {"machine": "M", "torch": "T", "date": "D"}
        kept = {"part": "test", "mae": error, "forces": {"mae": 10 * error}, "model": model}
        (tmp_path / f"hipnn-{seconds}.json").write_text(json.dumps(kept))
    assert "4.000 | 5.000 | 2.000 ± 0.577" in table.forces(tmp_path)
    stages = {"training_seconds": 600.0, "started_from": {"training_seconds": 1800.0}}
    model |= {"started_from": stages, "training_seconds": 900.0, "seed": 1}
    kept |= {"seconds": 1200.0, "model": model}  # the whole of its last stage
    (tmp_path / "stages.json").write_text(json.dumps(kept))
    run = table.read_run(tmp_path / "stages.json")
    assert (run.method, run.minutes) == ("longer", 60.0)
    assert not run.whole and table.read_run(tmp_path / "0.json").whole
    shown = table.forces(tmp_path)
    assert "with forces, longer: at least 60 minutes of training; seeds 0, 1; M, torch T" in shown
    assert "SchNet with forces: 15 minutes" in shown  # control
    model["trained_on"] |= {"machine": "N"}
    (tmp_path / "stages.json").write_text(json.dumps(kept))
    assert "seeds 0, 1; M, torch T, D; N, torch T, D." in table.forces(tmp_path)
    (tmp_path / "twice.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"two results of \('longer', 'toluene', 1\)"):
        table.forces(tmp_path)
    (tmp_path / "twice.json").unlink()
    (tmp_path / "bad.json").write_text(json.dumps({"part": "test", "mae": 1.0}))
    with pytest.raises(ValueError, match="no test of forces"):
        table.forces(tmp_path)
