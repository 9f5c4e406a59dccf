"""Model files: ``model.safetensors`` (weights) beside ``model.json`` (how to use them)."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from hipnn_pyg.models.hipnn import HIPNN

FORMAT = "hipnn_pyg model"
FORMAT_VERSION = 1


class ModelFileError(RuntimeError):
    """A model file that is missing, damaged, or not ours."""


def atomic_write(contents: Mapping[Path, bytes]) -> None:
    """Write files so that after a failure (full disk, kill) the old ones are intact.

    Args:
        contents: new bytes of each file. All are written beside the old ones and flushed to disk
            before any is renamed.

    Raises:
        OSError: the disk is full or not writable.
    """
    temporary = {path: path.with_name(path.name + ".tmp") for path in contents}
    try:
        for path, content in contents.items():
            with open(temporary[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    except OSError as error:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"could not save ({error.strerror}); the previous file is intact",
            str(path),
        ) from error


def read_arrays(path: Path, remedy: str, *names: str) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz`` file.

    Args:
        path: the file.
        remedy: what to do where it is damaged, for the message.
        *names: arrays that must be among them.

    Raises:
        ModelFileError: it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored}
        for name in names:
            arrays[name]
    except Exception as error:  # of damage inside, NumPy, zipfile and zlib have many
        what = "damaged" if path.exists() else "missing"
        raise ModelFileError(f"{path} is {what} ({error!r}): {remedy}") from error
    return arrays


def check_writable(folder: str | Path) -> None:
    """Whether results can be saved in a folder, asked before they are computed; makes it.

    Args:
        folder: of the results.

    Raises:
        OSError: nothing can be written there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            error.errno, f"results could not be saved there ({error.strerror})", str(folder)
        ) from error


def save_model(model: HIPNN, folder: str | Path, **provenance: Any) -> Path:
    """Write a model.

    Args:
        model: the model; of a compiled one, what was compiled.
        folder: where ``model.safetensors`` and ``model.json`` go.
        **provenance: JSON values to keep with it (data set, target, seed, statistics ...).

    Returns:
        The folder.

    Raises:
        OSError: the disk is full or not writable; older files stay intact.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's name for it
    return write_model(model, model.state_dict(), folder, provenance)


def write_model(
    model: HIPNN, state: Mapping[str, Tensor], folder: str | Path, provenance: Mapping[str, Any]
) -> Path:
    """:func:`save_model` with weights that the model had before.

    Args:
        model: what the weights belong to.
        state: its ``state_dict()`` at the time.
        folder: where the files go.
        provenance: JSON values to keep with it.
    """
    from hipnn_pyg import __version__

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "hipnn_pyg_version": __version__,
        "hyperparameters": model.hyperparameters,
        "energy_unit": model.energy_unit,
        "length_unit": "Angstrom",
        "sigma_e": model.sigma_e,
        "e0": dict(zip(model.species, model.reference.weight.tolist(), strict=True)),
        "dtype": str(model.blocks[0].interaction.V.dtype).removeprefix("torch."),
        "num_parameters": model.num_parameters,
        **provenance,
    }
    atomic_write(
        {
            folder / "model.safetensors": serialize(weights, metadata={"format": FORMAT}),
            folder / "model.json": json.dumps(card, indent=2).encode(),
        }
    )
    return folder


def read_card(folder: str | Path) -> dict[str, Any]:
    """The JSON side of a model file.

    Args:
        folder: the model's folder, or one of its two files.

    Raises:
        ModelFileError: missing, damaged, foreign, or from a newer version.
    """
    path = _folder(folder) / "model.json"
    if not path.is_file() and (members := sorted(path.parent.glob("member-*/model.json"))):
        raise ModelFileError(
            f"{path.parent} holds an ensemble of {len(members)}: name one of its models, such as "
            f"{members[0].parent}"
        )
    if not path.is_file():
        raise ModelFileError(
            f"{path} does not exist: give the folder that `hipnn train` or save_model wrote"
        )
    try:
        card = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} is damaged ({error}): restore it from a copy") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ModelFileError(f"{path} was not written by hipnn_pyg")
    version = card.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ModelFileError(f"{path} is damaged (format_version {version!r}): restore it")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}, newer than {FORMAT_VERSION}, the newest this "
            "hipnn_pyg reads: upgrade hipnn_pyg"
        )
    return card


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> HIPNN:
    """Read a model written by :func:`save_model`.

    Args:
        folder: the model's folder, or one of its two files.
        device: where to put it.

    Returns:
        The model in evaluation mode, in the dtype it was saved in.

    Raises:
        ModelFileError: missing, truncated, foreign, or weights that do not fit.
    """
    card = read_card(folder)
    path = _folder(folder) / "model.safetensors"
    try:
        model = HIPNN(**card["hyperparameters"], energy_unit=card["energy_unit"])
        model = model.to(getattr(torch, card["dtype"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelFileError(
            f"{path.with_suffix('.json')} is incomplete or damaged ({error!r}): restore it"
        ) from error
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is missing, truncated or not a model ({error}): restore it from a copy or, if "
            "its run is unfinished, go on with it: `hipnn train --resume`"
        ) from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelFileError(f"{path} does not fit model.json beside it: {error}") from error
    model.card = card
    return model.to(device).eval()


def copy_model(folder: str | Path, target: Path) -> None:
    """Copy both files of a model.

    Args:
        folder: the model's folder, or one of its two files.
        target: the folder of the copy.

    Raises:
        OSError: a file is missing, or the disk is full or not writable.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = ("model.safetensors", "model.json")
    atomic_write({target / name: (_folder(folder) / name).read_bytes() for name in names})


def weights_sha256(folder: str | Path) -> str:
    """SHA-256 of a model's weights: what was made for these weights names them by it.

    Args:
        folder: the model's folder.

    Raises:
        ModelFileError: there are no weights.
    """
    path = _folder(folder) / "model.safetensors"
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist: restore it from a copy")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def member_folders(folder: str | Path) -> list[Path]:
    """Where the models of a folder are: its own model, then ``member-0``, ``member-1`` ...

    A folder of ``hipnn train`` holds one model, that of ``hipnn train --ensemble`` only members; an
    ensemble that comes with the package holds its first model itself.

    Args:
        folder: of a model or an ensemble.

    Raises:
        ModelFileError: there is no model, or members do not predict the same.
    """
    folder = _folder(folder)
    members = [path.parent for path in folder.glob("member-*/model.json")]
    members.sort(key=lambda path: (len(path.name), path.name))
    own = [folder] if (folder / "model.json").is_file() or not members else []
    check_alike(own + members)
    return own + members


def check_alike(
    folders: Sequence[Path],
    names: Sequence[str] = ("target", "energy_unit", "species", "num_interactions"),
) -> None:
    """Models that are averaged must predict the same.

    Args:
        folders: of the models.
        names: what they must share, of the card or of the hyperparameters.

    Raises:
        ModelFileError: naming the first two that differ; there is no model.
    """
    cards = [read_card(folder) for folder in folders]
    for folder, card in zip(folders, cards, strict=True):
        for name in names:
            first, other = (
                {**each, **each.get("hyperparameters", {})}.get(name) for each in (cards[0], card)
            )
            if first != other:
                raise ModelFileError(
                    f"{folders[0]} has {name} = {first}, {folder} has {other}: models that are "
                    "averaged must share it"
                )


def _folder(path: str | Path) -> Path:
    path = Path(path)
    is_file = path.suffix in (".json", ".safetensors") and not path.is_dir()
    return path.parent if is_file else path
