"""Model files: bit-exact round trips, and a clear error for everything that is not one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch_geometric.data import Batch

from hipnn_pyg import HIPNN, ModelFileError, load_model, save_model
from hipnn_pyg.models import read_card
from hipnn_pyg.models.files import read_arrays

Build = Callable[..., HIPNN]


@pytest.fixture
def saved(small_model: Build, tmp_path: Path) -> Path:
    return save_model(small_model(torch.float32), tmp_path / "model")


@pytest.mark.parametrize(
    "options",
    [{}, {"hierarchical": False}, {"species": (8, 1, 7, 6), "cutoff": 1 / 3 + 3, "num_onsite": 0}],
    ids=["default", "no_hierarchy", "odd"],
)
def test_round_trip_is_bit_exact(
    small_model: Build, molecules: Batch, tmp_path: Path, options: dict, dtype: torch.dtype
) -> None:
    model = small_model(dtype, **options)
    model.energy_unit = "eV"
    loaded = load_model(save_model(model, tmp_path))
    assert loaded.hyperparameters == model.hyperparameters
    assert loaded.energy_unit == "eV" and not loaded.training
    state, expected = loaded.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    inputs = molecules.z, molecules.pos.to(dtype), molecules.batch
    assert torch.equal(loaded(*inputs), model(*inputs))
    frozen = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in loaded.parameters()] == frozen


def test_e0_and_scale_survive_to_the_last_bit(small_model: Build, tmp_path: Path) -> None:
    model = small_model(torch.float32)
    model.set_e0([-13.587222780835477, 0.1, 1 / 3, -2e5 / 7], sigma_e=10.2345678901234)
    loaded = load_model(save_model(model, tmp_path))
    assert torch.equal(loaded.reference.weight, model.reference.weight)
    assert loaded.sigma_e == 10.2345678901234
    card = read_card(tmp_path)
    assert card["e0"]["6"] == 0.1 and card["sigma_e"] == 10.2345678901234


def test_card_says_what_a_user_needs(small_model: Build, tmp_path: Path) -> None:
    model = small_model(torch.float32)
    model.energy_unit = "eV"
    card = read_card(save_model(model, tmp_path, dataset="QM9", seed=7))
    assert card["energy_unit"] == "eV" and card["length_unit"] == "Angstrom"
    assert card["hyperparameters"]["species"] == [1, 6, 7, 8]
    assert card["num_parameters"] == model.num_parameters and card["dtype"] == "float32"
    assert card["dataset"] == "QM9" and card["seed"] == 7
    json.loads((tmp_path / "model.json").read_text())


def test_either_file_names_the_model(saved: Path) -> None:
    expected = load_model(saved).state_dict()
    for path in (saved / "model.json", saved / "model.safetensors", str(saved)):
        for name, tensor in load_model(path).state_dict().items():
            assert torch.equal(tensor, expected[name])


def test_a_compiled_model_is_saved_as_itself(small_model: Build, tmp_path: Path) -> None:
    model = small_model()
    compiled = torch.compile(model)
    loaded = load_model(save_model(compiled, tmp_path)).state_dict()  # type: ignore[arg-type]
    assert list(compiled.state_dict()) != list(loaded)  # control: with the prefix of its wrapper
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("name", ["best.safetensors", "best.json"])
def test_a_folder_may_be_called_like_a_file(small_model: Build, tmp_path: Path, name: str) -> None:
    folder = save_model(small_model(), tmp_path / name)
    save_model(small_model(hidden_channels=7), tmp_path)  # control: not that one
    for path in (folder, folder / "model.json"):
        assert load_model(path).hyperparameters["hidden_channels"] == 6


def test_saving_leaves_no_other_files_and_the_model_alone(
    small_model: Build, tmp_path: Path
) -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path)
    save_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# -- damage ------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.json"
        card = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in card.items() if value != "DROP"}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: truncate(folder / "model.safetensors"), "safetensors is .*truncated"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b""),
            "missing, truncated.* if its run is unfinished, go on with it",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 500), "truncated or not"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing"),
        (lambda folder: truncate(folder / "model.json"), "model.json is damaged"),
        (lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
        (lambda folder: (folder / "model.json").unlink(), "does not exist"),
        (lambda folder: (folder / "model.json").write_text("[1, 2]"), "not written by hipnn_pyg"),
        (lambda folder: (folder / "model.json").write_text('{"a": 1}'), "not written by hipnn_pyg"),
        (edit(format="other"), "not written by hipnn_pyg"),
        (edit(format_version=99), "format version 99, newer than 1.*upgrade hipnn_pyg"),
        (
            lambda folder: safetensors.torch.save_file(
                {"weight": torch.zeros(2)}, folder / "model.safetensors"
            ),
            "does not fit model.json",
        ),
    ],
    ids=[
        "truncated_weights",
        "empty_weights",
        "garbage_weights",
        "no_weights",
        "truncated_json",
        "binary_json",
        "no_json",
        "json_list",
        "foreign_json",
        "foreign_format",
        "newer_version",
        "foreign_weights",
    ],
)
def test_damaged_files_are_named(
    saved: Path, damage: Callable[[Path], object], message: str
) -> None:
    assert load_model(saved).num_parameters  # control: intact before
    damage(saved)
    with pytest.raises(ModelFileError, match=message):
        load_model(saved)


@pytest.mark.parametrize(
    "damage",
    [
        edit(hyperparameters="DROP"),
        edit(energy_unit="DROP"),
        edit(format_version="DROP"),
        edit(format_version="one"),
        edit(dtype="float7"),
        edit(hyperparameters={"species": [1], "no_such_option": 3}),
    ],
    ids=["no_hyperparameters", "no_unit", "no_version", "text_version", "dtype", "unknown_option"],
)
def test_incomplete_cards_are_damaged_files(saved: Path, damage: Callable[[Path], None]) -> None:
    damage(saved)
    with pytest.raises(ModelFileError, match=r"model\.json"):
        load_model(saved)


def test_weights_of_another_size_do_not_load(
    small_model: Build, saved: Path, tmp_path: Path
) -> None:
    other = save_model(small_model(torch.float32, hidden_channels=7), tmp_path / "other")
    (other / "model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(ModelFileError, match="does not fit"):
        load_model(saved)


# -- full disk ---------------------------------------------------------------------------------


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("function", "after"),
    [("fsync", 0), ("fsync", 1), ("replace", 0)],
    ids=["first_write", "second_write", "rename"],
)
def test_full_disk_leaves_the_old_model_intact(
    small_model: Build,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    after: int,
) -> None:
    """Whichever file or step fails: the folder still holds the old model, whole."""
    expected = load_model(saved)
    original, calls = getattr(os, function), []

    def fail_later(*args: object) -> object:
        calls.append(args)
        return original(*args) if len(calls) <= after else full_disk()

    larger = small_model(torch.float32, hidden_channels=7)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail_later)
        with pytest.raises(OSError, match=r"No space left.*previous file is intact") as failure:
            save_model(larger, saved)
    assert failure.value.errno == errno.ENOSPC and str(saved) in str(failure.value)
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]
    loaded = load_model(saved)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    save_model(larger, saved)  # control: with space it is replaced
    assert load_model(saved).hyperparameters["hidden_channels"] == 7


def test_no_damage_passes_for_arrays(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, error=np.linspace(0, 1, 20), unit=np.array("eV"))
    whole = path.read_bytes()
    expected = read_arrays(path, "restore it", "error", "unit")
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = read_arrays(path, "restore it", "error", "unit")
        except ModelFileError as error:
            assert f"{path} is damaged" in str(error) and str(error).endswith(": restore it")
        else:  # such as another date
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values)
    with pytest.raises(ModelFileError, match="is damaged .*'error_bar'"):
        path.write_bytes(whole)
        read_arrays(path, "restore it", "error_bar")
    with pytest.raises(ModelFileError, match="is missing"):
        read_arrays(tmp_path / "none.npz", "restore it")
