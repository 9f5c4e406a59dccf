"""Models to run as potentials: from files or memory, refused where they are none."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hipnn_pyg.data.targets import QM9_TARGETS
from hipnn_pyg.models.files import load_model
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.pretrained import model_folder
from hipnn_pyg.models.self_check import self_check
from hipnn_pyg.units import ENERGY_UNITS

MINIMA_TARGETS = tuple(base + end for base in ("U0", "U", "H", "G") for end in ("", "_atom"))
"""QM9 targets that include the zero-point energy and are known at minima only."""


class NotAPotentialError(ValueError):
    """A model that was not trained to give forces or to leave the minima."""


def check_is_potential(card: Mapping[str, Any], i_know: bool = False) -> None:
    """Stop before a model is used for what its training data cannot support.

    Args:
        card: the JSON side of a model file, see :func:`hipnn_pyg.models.read_card`. What it does
            not say is not held against it.
        i_know: go on all the same.

    Raises:
        NotAPotentialError: the target is one of QM9, none of which is a potential energy, and the
            model saw no forces.
    """
    target = card.get("target")
    if i_know or card.get("trained_on_forces") or target not in QM9_TARGETS:
        return
    reason = "which is not a potential energy"
    if target in MINIMA_TARGETS:
        reason = "which includes the zero-point energy and was learned at minima only"
    raise NotAPotentialError(
        f"the model predicts {target!r}, {reason}: its forces are not those of the potential "
        "energy surface. Train on forces or trajectories, or pass i_know=True (--i-know)"
    )


def load_potential(
    model: HIPNN | str | Path,
    device: torch.device | str,
    dtype: torch.dtype | str | None,
    i_know: bool = False,
) -> HIPNN:
    """A model to make forces with: one's own, evaluating, without gradients of its parameters.

    Args:
        model: a model, which is copied, its file, or the name of one that comes with the package.
        device: where it runs.
        dtype: of the network, also as a name; None for the model's own.
        i_know: use it although its file says that it is no potential.

    Raises:
        ModelFileError: a model file that cannot be read.
        NotAPotentialError: see :func:`check_is_potential`.
        SelfCheckError: its kernel disagrees with the reference on this machine.
        ValueError: its energy unit is unknown.
    """
    model = copy.deepcopy(model) if isinstance(model, HIPNN) else load_model(model_folder(model))
    check_is_potential(model.card, i_know)
    if model.energy_unit not in ENERGY_UNITS:
        raise ValueError(
            f"the model's energy unit is {model.energy_unit!r}, so that eV cannot be made of it: "
            f"set model.energy_unit to one of {sorted(ENERGY_UNITS)}"
        )
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    self_check(model.kernel_on(torch.device(device)), device)
    return model
