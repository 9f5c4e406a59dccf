"""Error bars of models: kept with their weights, applied to the right geometry, refused in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from hipnn_pyg import HIPNN, ModelFileError, PackedMolecules, StructureError, save_model
from hipnn_pyg.data.targets import Target
from hipnn_pyg.models import load_model
from hipnn_pyg.models.files import member_folders
from hipnn_pyg.uncertainty import (
    CalibratedModel,
    ErrorBars,
    FeatureStatistics,
    Sample,
    observe,
    take_sample,
)
from hipnn_pyg.uncertainty.structures import rattled, stretched

NAMES = ("CH4", "NH3", "H2O", "CH3CH2OH", "CH3OH", "C2H6", "H2CO", "HCOOH")
Build = Callable[..., HIPNN]


def molecules(number: int, first: int = 0) -> PackedMolecules:
    """Rattled molecules; 'energies' are noise around nothing, so that a model has errors."""
    random, items = np.random.default_rng(first), []
    for k in range(first, first + number):
        atoms = ase.build.molecule(NAMES[k % len(NAMES)])
        data = Data(z=torch.tensor(atoms.numbers), pos=torch.tensor(atoms.positions).float())
        items.append(rattled(data, 0.03, k))
        items[-1].e = torch.tensor([random.normal()])
    return PackedMolecules.pack(items, Target("e", "eV", "e"))


def singles(packed: PackedMolecules) -> list[Data]:
    batches = [packed.gather(torch.tensor([k])) for k in range(len(packed))]
    return [Data(z=batch.z, pos=batch.pos) for batch in batches]


def build(folder: Path, small_model: Build, number: int = 1) -> CalibratedModel:
    """A calibrated model or ensemble in a folder; RDKit errors are made ten times larger."""
    for k in range(number):
        model = small_model(torch.float32)
        with torch.no_grad():
            model.blocks[0].readout.bias += 0.3 * k
        model.energy_unit = "eV"
        save_model(model, folder if k == 0 else folder / f"member-{k}")
    members = member_folders(folder)
    assert len(members) == number
    models = [load_model(member) for member in members]
    statistics = FeatureStatistics.fit(models[0], molecules(160))
    given = take_sample(models, statistics, molecules(240, 300))
    rdkit = given._replace(error=10 * given.error, distance=2 * given.distance)
    bars = ErrorBars.fit(statistics, {"given": given, "rdkit": rdkit}, "eV", note=[1, 2])
    bars.save(folder, members)
    return CalibratedModel.load(folder)


@pytest.fixture
def model(small_model: Build, tmp_path: Path) -> CalibratedModel:
    return build(tmp_path, small_model)


def test_what_is_read_is_what_was_made(small_model: Build, tmp_path: Path) -> None:
    model = build(tmp_path, small_model)
    bars = model.error_bars
    assert bars is not None and bars.unit == "eV" and bars.provenance == {"note": [1, 2]}
    test = molecules(50, 700)
    sample = take_sample(model.models, bars.statistics, test)
    sample_of_calibration = take_sample(model.models, bars.statistics, molecules(240, 300))
    for geometry in ("given", "rdkit"):
        out = model.predict(test, geometry)
        intervals, threshold = bars.calibrations[geometry]
        assert out.judgement is not None
        np.testing.assert_array_equal(out.judgement.half_width, intervals.half_width(sample.r))
        np.testing.assert_array_equal(out.q90, out.judgement.half_width[:, 1])
        low, high = sample_of_calibration.r.min(), sample_of_calibration.r.max()
        expected = (sample.distance > threshold) | (sample.r < low) | (sample.r > high)
        np.testing.assert_array_equal(out.unlike_training, expected)
    again = CalibratedModel.load(tmp_path).predict(test, "given")
    assert torch.equal(again.q90, model.predict(test, "given").q90)
    expected = torch.stack([model.models[0](d.z, d.pos)[0, 0] for d in singles(test)])
    torch.testing.assert_close(again.energy.float(), expected)


def test_each_geometry_has_its_own_error_bar_and_threshold(model: CalibratedModel) -> None:
    test = molecules(200, 700)
    given, rdkit = (model.predict(test, geometry) for geometry in ("given", "rdkit"))
    torch.testing.assert_close(rdkit.q90, 10 * given.q90)
    assert torch.equal(given.energy, rdkit.energy)
    assert given.unlike_training is not None and rdkit.unlike_training is not None
    assert 0 < int(given.unlike_training.sum()) < 30
    assert int(rdkit.unlike_training.sum()) < int(given.unlike_training.sum())
    bare = model.predict(test, None)
    assert bare.judgement is None and bool(bare.q90.isnan().all())
    del model.error_bars.calibrations["rdkit"]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"geometry 'rdkit': choose from \['given'\]"):
        model.predict(test, "rdkit")


def test_what_is_no_number_is_unlike_the_training_data(model: CalibratedModel) -> None:
    assert model.error_bars is not None
    calibration = model.error_bars.calibrations["given"]
    usual = np.median(calibration.intervals.r_quantiles)
    distance = np.array([0.5 * calibration.threshold, np.nan, 0.5 * calibration.threshold])
    flags = calibration.unlike(distance, np.array([usual, usual, np.nan]))
    assert flags.tolist() == [False, True, True]


def test_the_flag_hits_one_in_twenty(model: CalibratedModel) -> None:
    """And R outside of n molecules' range 2 / (n + 1) more."""
    out = model.predict(molecules(2000, 2000), "given")
    assert out.unlike_training is not None
    share = float(out.unlike_training.double().mean())
    assert share == pytest.approx(0.05 + 2 / 241, abs=0.035)  # of 240, itself a sample


def test_stretched_bonds_are_flagged(model: CalibratedModel) -> None:
    structures = singles(molecules(40, 800))
    usual = model.predict(structures, "given").unlike_training
    changed = [stretched(data, 0.3, k) for k, data in enumerate(structures)]
    far = model.predict([data for data in changed if data is not None], "given").unlike_training
    assert usual is not None and far is not None
    assert float(usual.float().mean()) < 0.2 and float(far.float().mean()) > 0.8


def test_an_ensemble_is_its_mean_with_its_spread(small_model: Build, tmp_path: Path) -> None:
    model = build(tmp_path, small_model, number=3)
    test = molecules(20, 900)
    seen = observe(model.models, test)
    each = torch.stack([observe([member], test).energy for member in model.models])
    torch.testing.assert_close(seen.energy, each.mean(0))
    torch.testing.assert_close(seen.spread, each.std(0))
    assert observe(model.models[:1], test).spread is None
    assert observe(model.models[:2], test).spread is not None
    out = model.predict(test, "given")
    assert torch.equal(out.energy, seen.energy) and bool((out.q90 > 0).all())
    with pytest.raises(ModelFileError, match="made for other weights"):
        ErrorBars.load(tmp_path, member_folders(tmp_path)[:2])
    one = CalibratedModel(model.models[:1], model.error_bars)
    with pytest.raises(ValueError, match="ensemble, whose spread it needs"):
        one.predict(test, "given")
    assert out.judgement is not None and model.error_bars is not None
    statistics = model.error_bars.statistics  # of the first model's features
    for place, same in ((2, True), (0, False)):
        with torch.no_grad():
            model.models[place].blocks[0].interaction.V.mul_(1.1)
        again = model.predict(test, "given").judgement
        assert again is not None
        for distance in (again.distance, take_sample(model.models, statistics, test).distance):
            assert np.array_equal(distance, out.judgement.distance) is same
    model.models[1].energy_unit = "Hartree"
    with pytest.raises(ValueError, match=r"\['Hartree', 'eV'\]"):
        model.predict(test, "given")


@pytest.mark.parametrize("with_spread", [True, False])
def test_part_of_a_sample(with_spread: bool) -> None:
    columns = [*np.arange(20.0).reshape(4, 5)]
    columns[2] = columns[2] if with_spread else None
    part = Sample(*columns).part(np.array([3, 1]))
    for mine, whole in zip(part, columns, strict=True):
        assert (mine is None) if whole is None else (mine.tolist() == whole[[3, 1]].tolist())


def test_what_a_loader_draws_is_predicted(model: CalibratedModel) -> None:
    """All of its dataset in that order, or what a sampler draws in its own."""
    structures = singles(molecules(8, 900))
    whole = model.predict(structures, "given").energy
    everything = model.predict(DataLoader(structures, batch_size=3, shuffle=True), "given")
    assert torch.equal(everything.energy, whole)  # control
    some = DataLoader(structures, batch_sampler=[[6, 1], [3]])
    torch.testing.assert_close(model.predict(some, "given").energy, whole[[6, 1, 3]])
    assert len(whole.unique()) == 8


@pytest.mark.parametrize("missing", ["z", "pos"])
def test_a_bad_structure_has_its_number(model: CalibratedModel, missing: str) -> None:
    structures = singles(molecules(8, 900))
    del structures[5][missing]
    with pytest.raises(StructureError, match=f"item 5 of the dataset: {missing} is None"):
        model.predict(structures, "given")


def test_without_calibration_there_is_no_error_bar(small_model: Build, tmp_path: Path) -> None:
    plain = small_model(torch.float32)
    out = CalibratedModel.load(save_model(plain, tmp_path)).predict(molecules(3), "given")
    assert out.judgement is None and out.unlike_training is None and bool(out.q90.isnan().all())


def test_other_weights_have_no_error_bars(small_model: Build, tmp_path: Path) -> None:
    build(tmp_path, small_model)
    assert CalibratedModel.load(tmp_path).error_bars is not None  # control
    other = small_model(torch.float32)
    with torch.no_grad():
        other.blocks[1].readout.bias += 1e-6
    save_model(other, tmp_path)
    with pytest.raises(ModelFileError, match="made for other weights.*`hipnn calibrate` again"):
        CalibratedModel.load(tmp_path)
    (tmp_path / "error_bars.json").unlink()
    assert CalibratedModel.load(tmp_path).error_bars is None


def edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "error_bars.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "error_bars.safetensors").unlink(), "is damaged"),
        (lambda folder: (folder / "error_bars.safetensors").write_bytes(b"x"), "is damaged"),
        (lambda folder: (folder / "error_bars.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "error_bars.json").write_text("[]"), "is damaged"),
        (edit(calibrations={"given": {"threshold": 1.0}}), "is damaged"),
        (edit(format="other"), "another format"),
        (edit(format_version=2), "upgrade hipnn_pyg"),
    ],
    ids=["no_arrays", "arrays", "json", "list", "no_intervals", "foreign", "newer"],
)
def test_damage_is_named(
    small_model: Build, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    build(tmp_path, small_model)
    damage(tmp_path)
    with pytest.raises(ModelFileError, match=message):
        CalibratedModel.load(tmp_path)
