"""What is read off the training energies before training: E^0 and sigma_E (Sec. II.F, Eq. 15)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hipnn_pyg.checks import StructureError, check_species
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.targets import Target


def composition(molecules: PackedMolecules, species: Sequence[int]) -> Tensor:
    """How many atoms of each species each molecule has.

    Args:
        molecules: packed molecules.
        species: atomic numbers.

    Returns:
        Counts, float64, ``[M, len(species)]``.

    Raises:
        StructureError: a species outside the list.
    """
    every = molecules.gather(torch.arange(len(molecules)))
    matches = every.z.unsqueeze(1) == torch.tensor(list(species), device=every.z.device)
    check_species(every.z, matches.any(1), species)
    counts = torch.zeros(len(molecules), len(species), dtype=torch.float64, device=every.z.device)
    return counts.index_add(0, every.batch, matches.double())


def fit_reference_energies(
    data: Any, target: Target, species: Sequence[int]
) -> tuple[Tensor, float]:
    r"""Least-squares energy of each species, :math:`w^0 = \mathrm{pinv}(C) E`, and sigma_E.

    :math:`b^0 = 0`, since a constant per atom and the one-hot :math:`w^0` are degenerate. Where
    compositions do not determine :math:`w^0` (one molecule, as in MD17) this is the solution of
    least norm. Species that do not occur get 0.

    Args:
        data: training molecules: packed, a PyG dataset, a list of ``Data`` or a ``DataLoader``.
        target: the energy to fit.
        species: atomic numbers.

    Returns:
        ``(w0 [len(species)] float64, sigma_E)`` in the target's unit.

    Raises:
        StructureError: no molecules, foreign species, targets not finite or all equal.
    """
    molecules = PackedMolecules.pack(data, target)
    counts = composition(molecules, species)
    energies = molecules.target
    sigma_e = float(energies.std(correction=0))
    if not sigma_e > 0:
        raise StructureError(
            f"sigma_E, the standard deviation of {len(molecules)} target energies, is {sigma_e}: "
            "give training molecules with different energies"
        )
    return (torch.linalg.pinv(counts) @ energies).cpu(), sigma_e
