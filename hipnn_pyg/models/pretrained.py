"""Models that come with the package: ``hipnn_pyg/pretrained/NAME/``.

A folder holds a model (``model.safetensors``, ``model.json``; further members of an ensemble in
``member-1``, ``member-2`` ...), its error bars, ``card.md`` (what it was trained on, how good it
is, what it must not be used for) and ``predictions.npz`` (200 named test molecules with what the
model predicted when it was shipped).
"""

from __future__ import annotations

from pathlib import Path

from hipnn_pyg.models.files import ModelFileError

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def pretrained_models() -> list[str]:
    """Names for :meth:`hipnn_pyg.HIPNN.from_pretrained`, in alphabetical order."""
    return sorted(card.parent.name for card in PRETRAINED.glob("*/model.json"))


def pretrained_folder(name: str) -> Path:
    """The folder of a model that comes with the package.

    Args:
        name: one of :func:`pretrained_models`.

    Raises:
        ModelFileError: there is none of that name.
    """
    known = pretrained_models()
    if name not in known:
        raise ModelFileError(
            f"no model {name!r} comes with this hipnn_pyg: "
            + (f"choose from {known}" if known else "it has none; train one with `hipnn train`")
        )
    return PRETRAINED / name


def model_folder(name: str | Path) -> Path:
    """The folder that ``--model`` names: a path that exists, else a model of the package.

    Args:
        name: a run folder, a model folder or one of its files, or one of
            :func:`pretrained_models`.

    Raises:
        ModelFileError: neither a path nor a name.
    """
    path = Path(name)
    if path.exists():
        return path.parent if path.is_file() else path
    if str(name) in pretrained_models():
        return PRETRAINED / str(name)
    known = pretrained_models()
    raise ModelFileError(
        f"{name} does not exist: give the folder that `hipnn train` or save_model wrote"
        + (f", or one of the package's models, {known}" if known else "")
    )
