"""HIP-NN as an ASE calculator: optimisers, vibrations, equations of state, molecular dynamics."""

from __future__ import annotations

from collections.abc import Sequence
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
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from hipnn_pyg.checks import MIN_DISTANCE, StructureError
from hipnn_pyg.interfaces.loading import NotAPotentialError, check_is_potential, load_potential
from hipnn_pyg.interfaces.skin import VerletList, changes
from hipnn_pyg.models.files import check_alike, member_folders
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.neighborhood import Neighborhood, neighborhood
from hipnn_pyg.models.potential import HIPNNPotential, Prediction
from hipnn_pyg.models.pretrained import model_folder
from hipnn_pyg.uncertainty.error_bars import ErrorBars
from hipnn_pyg.units import ENERGY_UNITS

__all__ = ["HIPNNCalculator", "NotAPotentialError", "check_is_potential"]

PROPERTIES = ("energy", "free_energy", "energies", "forces", "stress", "nonhierarchicality")
ERROR_BARS = ("q90", "unlike_training")


class HIPNNCalculator(BaseCalculator):
    """Energy, forces and stress of a model for ASE, in eV and Å.

    Results: ``energy`` and ``free_energy`` (the same), ``energies`` (per atom), ``forces``,
    ``stress`` (fully periodic structures), and beside ASE's own ``nonhierarchicality`` (R, Eq. 18).
    Several models are averaged, R included, and add ``energy_std`` and ``forces_std``, sample
    standard deviations (n - 1) over the models. A folder with error bars (``hipnn calibrate``) adds
    ``q90`` (eV, the error is smaller for 90 % of structures like the calibration's) and
    ``unlike_training`` (true where that is no promise). These two are computed only when asked for,
    ``calc.get_property("q90", atoms)``: they cost another pass through the network.

    Args:
        model: a model, its folder, the folder of an ensemble, a name of a model that comes with the
            package, or several of these. A model is copied.
        device: where it runs.
        dtype: of the network, ``"float32"`` or ``"float64"``; None for the model's own. Positions
            and energy sums are float64 in any case.
        skin: margin of the neighbour list in Å, see :class:`~hipnn_pyg.interfaces.skin.VerletList`;
            results do not depend on it.
        i_know: use the model although its file says that it is no potential.
        compile: see :class:`~hipnn_pyg.models.potential.HIPNNPotential`.
        min_distance: atoms closer than this (Å) are an error.

    Raises:
        ModelFileError: a model file that cannot be read.
        NotAPotentialError: see :func:`check_is_potential`.
        SelfCheckError: see :func:`~hipnn_pyg.models.self_check.self_check`.
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
        min_distance: float = MIN_DISTANCE,
    ) -> None:
        super().__init__()
        members: list[HIPNN | str | Path]
        self.error_bars: ErrorBars | None = None
        if isinstance(model, (str, Path)):
            folder = model_folder(model)
            found = member_folders(folder)
            members, self.ensemble = [*found], len(found) > 1
            self.error_bars = ErrorBars.load(folder, found)
        elif isinstance(model, HIPNN):
            members, self.ensemble = [model], False
        else:
            every = dict.fromkeys(member for each in model for member in _members(each))
            members, self.ensemble = [*every], True
        if not members:
            raise ValueError("no model was given: pass at least one")
        check_alike([model_folder(m) for m in members if not isinstance(m, HIPNN)], ["target"])
        models = [load_potential(member, device, dtype, i_know) for member in members]
        self.implemented_properties = list(PROPERTIES)
        if self.ensemble:
            self.implemented_properties += ["energy_std", "forces_std"]
        if self.error_bars is not None and "given" in self.error_bars.calibrations:
            self.implemented_properties += ERROR_BARS
        self.potentials = [HIPNNPotential(each, compile, min_distance) for each in models]
        self.to_ev = [ENERGY_UNITS[each.energy_unit] for each in models]
        self.device = torch.device(device)
        reach = max(each.cutoff for each in models)
        self.neighbors = VerletList(reach, skin, device, models[0].backend)
        self._near: list[Neighborhood] = []
        self._cell: Tensor | None = None

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What changed since the last calculation, bit for bit.

        Args:
            atoms: the structure.
            tol: not used.
        """
        return all_changes if self.atoms is None else changes(self.atoms, atoms)

    @torch.inference_mode(False)  # whose tensors no later derivative could use
    def calculate(
        self,
        atoms: Atoms,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; everything is computed at once but the error bars, see the class.

        Args:
            atoms: the structure, wrapped or not.
            properties: what must be among the results.
            system_changes: not used: the neighbour list compares for itself.

        Raises:
            PropertyNotImplementedError: stress without periodicity in three directions.
            StructureError: bad input, see :mod:`hipnn_pyg.checks`, or a result that is not finite.
        """
        if "stress" in properties and not bool(atoms.pbc.all()):
            raise PropertyNotImplementedError(
                "stress needs a cell and periodicity in all three directions, not pbc "
                f"{atoms.pbc.tolist()}"
            )
        pos = torch.as_tensor(atoms.positions, device=self.device)
        judged = any(name in properties for name in ERROR_BARS)
        same = self.atoms is not None and not changes(self.atoms, atoms)
        if judged and same and self.results:
            self.results |= self._judged(self.results, pos)
            return
        self.results = {}
        if not same:  # called by hand
            self.atoms = atoms.copy()
        if not self._near or not self.neighbors.holds(atoms):
            self.search(atoms)
        outputs = [
            _in_ev(potential.evaluate(near, pos, self._cell), unit)
            for potential, near, unit in zip(self.potentials, self._near, self.to_ev, strict=True)
        ]
        results = _combine(outputs) if self.ensemble else outputs[0]
        if not (np.isfinite(results["energy"]) and np.isfinite(results["forces"]).all()):
            raise StructureError(
                f"the energy is {results['energy']} eV and the largest force "
                f"{np.abs(results['forces']).max()} eV/Å, not finite: look for atoms that are too "
                "close, or for weights of the model that are not finite"
            )
        if judged:
            results |= self._judged(results, pos)
        self.results = results

    def _judged(self, results: dict[str, Any], pos: Tensor) -> dict[str, Any]:
        """The error bar in eV and the flag, of the structure that the results are of."""
        assert self.error_bars is not None
        statistics, unit = self.error_bars.statistics, self.to_ev[0]
        distance = statistics.distances_near(self.potentials[0].model, self._near[0], pos)
        r = torch.tensor([results["nonhierarchicality"]])
        spread = torch.tensor([results["energy_std"] / unit]) if self.ensemble else None
        judged = self.error_bars.judge("given", r, spread, distance)
        q90 = float(judged.half_width[0, self.error_bars.levels.index(0.9)])
        return {"q90": q90 * unit, "unlike_training": bool(judged.unlike_training[0])}

    def export_properties(self) -> Properties:
        """The results that have a name in ASE, for ``atoms.get_properties``."""
        return Properties({name: v for name, v in self.results.items() if name in all_outputs})

    def reset(self) -> None:
        """Forget structure, neighbours and results."""
        self.atoms, self.results, self._near = None, {}, []
        self.neighbors.searched = None

    @torch.inference_mode(False)
    def search(self, atoms: Atoms) -> None:
        """Search the neighbours in this structure, even where those at hand still hold.

        A simulation that goes on where it stopped searches where it last did: then sums run over
        the same pairs in the same order, to the same last bit.

        Args:
            atoms: the structure.
        """
        self.results, self._near, self.neighbors.searched = {}, [], None
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


def _members(model: HIPNN | str | Path) -> Sequence[HIPNN | Path]:
    """A model itself, or the folders of the one or several that a name stands for."""
    return [model] if isinstance(model, HIPNN) else member_folders(model_folder(model))


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
