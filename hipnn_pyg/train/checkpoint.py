"""Checkpoints: everything a run needs to go on, readable with ``weights_only=True``."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch

from hipnn_pyg.models.files import ModelFileError, atomic_write


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; after any failure the old one is intact.

    Args:
        path: the file.
        state: tensors, numbers, strings and containers of these.
    """
    buffer = io.BytesIO()
    torch.save({**state, "rng": rng_state()}, buffer)
    atomic_write({path: buffer.getvalue()})


def load_checkpoint(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Read a checkpoint; :func:`restore_rng` is for the end of resuming.

    Raises:
        ModelFileError: missing, truncated or foreign.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        state["rng"]["cpu"], state["progress"]
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path} does not exist: nothing to resume; leave --resume out to start this run"
        ) from error
    except Exception as error:  # torch.load raises many kinds on damaged files
        raise ModelFileError(
            f"{path} is truncated or not a checkpoint ({type(error).__name__}): start the run anew "
            "in another folder"
        ) from error
    return state


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write one row per epoch (CSV); columns that an older version did not know stay empty.

    Args:
        path: the file.
        history: the rows.
    """
    if not history:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, history[-1], restval="")
    writer.writeheader()
    writer.writerows(history)
    atomic_write({path: text.getvalue().encode()})


def rng_state() -> dict[str, Any]:
    """States of torch's random number generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng(rng: dict[str, Any]) -> None:
    """Go on from ``rng_state()``; last of all, since building a model draws numbers too."""
    torch.set_rng_state(rng["cpu"].cpu())
    if torch.cuda.is_available() and rng["cuda"]:
        torch.cuda.set_rng_state_all([cuda.cpu() for cuda in rng["cuda"]])
