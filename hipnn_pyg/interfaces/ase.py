"""HIP-NN as an ASE calculator: optimisers, vibrations, equations of state, molecular dynamics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    BaseCalculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from hipnn_pyg.data.targets import QM9_TARGETS
from hipnn_pyg.interfaces.skin import VerletList
from hipnn_pyg.models.files import load_model, read_card
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.neighborhood import Neighborhood, neighborhood
from hipnn_pyg.models.potential import HIPNNPotential, Prediction
from hipnn_pyg.units import ENERGY_UNITS

MINIMA_TARGETS = tuple(base + end for base in ("U0", "U", "H", "G") for end in ("", "_atom"))
"""QM9 targets that include the zero-point energy and are known at minima only."""

PROPERTIES = ("energy", "free_energy", "energies", "forces", "stress", "nonhierarchicality")


class NotAPotentialError(ValueError):
    """A model that was not trained to give forces or to leave the minima."""


def check_is_potential(card: Mapping[str, Any], i_know: bool = False) -> None:
    """Stop before a model is used for what its training data cannot support.

    Args:
        card: the JSON side of a model file, see :func:`hipnn_pyg.models.read_card`. What it does
            not say is not held against it.
        i_know: go on all the same.

    Raises:
        NotAPotentialError: the target is no potential energy, or the model saw neither forces nor
            trajectories.
    """
    target = card.get("target")
    saw = [card.get(key) for key in ("trained_on_forces", "trained_on_trajectories")]
    if i_know or saw[0]:
        return
    reason = ""
    if target in MINIMA_TARGETS:
        reason = "which includes the zero-point energy and was learned at minima only"
    elif target in QM9_TARGETS:
        reason = "which is not a potential energy"
    elif saw == [False, False]:
        reason = "and saw neither forces nor trajectories"
    if reason:
        raise NotAPotentialError(
            f"the model predicts {target!r}, {reason}: its forces are not those of the potential "
            "energy surface. Train on forces or trajectories, or pass i_know=True (--i-know)"
        )


class HIPNNCalculator(BaseCalculator):
    """Energy, forces and stress of a model for ASE, in eV and Å.

    Results: ``energy`` and ``free_energy`` (the same), ``energies`` (per atom), ``forces``,
    ``stress`` (fully periodic structures), and beside ASE's own ``nonhierarchicality`` (R, Eq. 18).
    Several models are averaged, R included, and add ``energy_std`` and ``forces_std``, sample
    standard deviations (n - 1) over the models.

    Args:
        model: a model, its file, or several of either. A model is copied.
        device: where it runs.
        dtype: of the network, ``"float32"`` or ``"float64"``; None for the model's own. Positions
            and energy sums are float64 in any case.
        skin: margin of the neighbour list in Å, see :class:`~hipnn_pyg.interfaces.skin.VerletList`;
            results do not depend on it.
        i_know: use the model although its file says that it is no potential.
        compile: see :class:`~hipnn_pyg.models.potential.HIPNNPotential`.

    Raises:
        ModelFileError: a model file that cannot be read.
        NotAPotentialError: see :func:`check_is_potential`.
        ValueError: no model, or one whose energy unit is unknown.
    """

    name = "hipnn"

    def __init__(
        self,
        model: HIPNN | str | Path | Sequence[HIPNN | str | Path],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        skin: float = 0.5,
        i_know: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        members = [model] if isinstance(model, (HIPNN, str, Path)) else list(model)
        if not members:
            raise ValueError("no model was given: pass at least one")
        models = [_load(member, device, dtype, i_know) for member in members]
        self.implemented_properties = list(PROPERTIES)
        self.ensemble = not isinstance(model, (HIPNN, str, Path))
        if self.ensemble:
            self.implemented_properties += ["energy_std", "forces_std"]
        self.potentials = [HIPNNPotential(each, compile) for each in models]
        self.to_ev = [ENERGY_UNITS[each.energy_unit] for each in models]
        self.device = torch.device(device)
        reach = max(each.cutoff for each in models)
        self.neighbors = VerletList(reach, skin, device, models[0].backend)
        self._near: list[Neighborhood] = []
        self._cell: Tensor | None = None

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What changed since the last calculation, bit for bit (ASE's own check takes 0.4 ms).

        Args:
            atoms: the structure.
            tol: not used.
        """
        old = self.atoms
        if old is None or len(old) != len(atoms):
            return all_changes
        pairs = {
            "positions": (old.positions, atoms.positions),
            "numbers": (old.numbers, atoms.numbers),
            "cell": (old.cell.array, atoms.cell.array),
            "pbc": (old.pbc, atoms.pbc),
        }
        return [name for name, (a, b) in pairs.items() if not np.array_equal(a, b)]

    def calculate(
        self,
        atoms: Atoms,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; everything is computed at once.

        Args:
            atoms: the structure, wrapped or not.
            properties: what must be among the results.
            system_changes: not used: the neighbour list compares for itself.

        Raises:
            PropertyNotImplementedError: stress without periodicity in three directions.
            StructureError: bad input, see :mod:`hipnn_pyg.checks`.
        """
        self.results = {}
        periodic = bool(atoms.pbc.all())
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError(
                "stress needs a cell and periodicity in all three directions, not pbc "
                f"{atoms.pbc.tolist()}"
            )
        if not self._near or not self.neighbors.holds(atoms):
            self._search(atoms)
        pos = torch.as_tensor(atoms.positions, device=self.device)
        outputs = [
            _in_ev(potential.evaluate(near, pos, self._cell), unit)
            for potential, near, unit in zip(self.potentials, self._near, self.to_ev, strict=True)
        ]
        self.results = _combine(outputs) if self.ensemble else outputs[0]

    def _search(self, atoms: Atoms) -> None:
        """Pairs anew, in the layout of each model's kernel."""
        self._near = []
        self.neighbors.update(atoms)
        edges = self.neighbors.edges
        assert edges is not None
        pos = torch.as_tensor(atoms.positions, device=self.device)
        z = torch.as_tensor(atoms.numbers, device=self.device)
        self._cell = edges.cell if atoms.pbc.all() else None
        self._near = [
            neighborhood(each.model, z, pos, None, 1, edges.edge_index, edges.shift)
            for each in self.potentials
        ]


def _load(
    model: HIPNN | str | Path,
    device: torch.device | str,
    dtype: torch.dtype | str | None,
    i_know: bool,
) -> HIPNN:
    """A model of one's own: in evaluation mode, without gradients of its parameters."""
    if isinstance(model, HIPNN):
        model = copy.deepcopy(model)
    else:
        check_is_potential(read_card(model), i_know)
        model = load_model(model)
    if model.energy_unit not in ENERGY_UNITS:
        raise ValueError(
            f"the model's energy unit is {model.energy_unit!r}, so that eV cannot be made of it: "
            f"set model.energy_unit to one of {sorted(ENERGY_UNITS)}"
        )
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _in_ev(prediction: Prediction, unit: float) -> dict[str, Any]:
    """ASE's names, numpy, eV and Å."""
    energy = float(prediction.energy) * unit
    results = {
        "energy": energy,
        "free_energy": energy,
        "energies": prediction.energies.cpu().numpy() * unit,
        "forces": prediction.forces.cpu().numpy() * unit,
        "nonhierarchicality": float(prediction.nonhierarchicality),
    }
    if prediction.stress is not None:
        stress = prediction.stress[0].cpu().numpy() * unit
        results["stress"] = full_3x3_to_voigt_6_stress(stress)
    return results


def _combine(members: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the models, and how far they disagree."""
    results: dict[str, Any] = {
        name: np.mean([member[name] for member in members], axis=0) for name in members[0]
    }
    for name in ("energy", "forces"):
        values = np.array([member[name] for member in members])
        spread = values.std(axis=0, ddof=1) if len(members) > 1 else np.zeros(values.shape[1:])
        results[f"{name}_std"] = spread
    return {name: float(v) if np.ndim(v) == 0 else v for name, v in results.items()}
