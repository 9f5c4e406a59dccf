"""What is read off the training energies before training: E^0 and sigma_E (Sec. II.F, Eq. 15)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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
    z = molecules.atomic_numbers()
    molecule = torch.repeat_interleave(molecules.counts).to(z.device)
    matches = z.unsqueeze(1) == torch.tensor(list(species), device=z.device)
    check_species(z, matches.any(1), species)
    counts = torch.zeros(len(molecules), len(species), dtype=torch.float64, device=z.device)
    return counts.index_add(0, molecule, matches.double())


EnergyScale = Literal["total", "residual"]
"""What sigma_E is the standard deviation of: the energies (the paper's) or E - E^0."""


def fit_reference_energies(
    data: Any, target: Target, species: Sequence[int], scale: EnergyScale = "total"
) -> tuple[Tensor, float]:
    r"""Least-squares energy of each species, :math:`w^0 = \mathrm{pinv}(C) E`, and sigma_E.

    :math:`b^0 = 0`, since a constant per atom and the one-hot :math:`w^0` are degenerate. Where
    compositions do not determine :math:`w^0` (one molecule, as in MD17) this is the solution of
    least norm. Species that do not occur get 0.

    Args:
        data: training molecules: packed, a PyG dataset, a list of ``Data`` or a ``DataLoader``.
        target: the energy to fit.
        species: atomic numbers.
        scale: what sigma_E is the standard deviation of. E - E^0 ("residual") is what the network
            learns; in QM9 it is ten times smaller than the spread of the energies.

    Returns:
        ``(w0 [len(species)] float64, sigma_E)`` in the target's unit.

    Raises:
        StructureError: no molecules, foreign species, targets not finite, all equal or, with
            ``scale="residual"``, sums of energies of their atoms.
    """
    molecules = PackedMolecules.pack(data, target)
    counts = composition(molecules, species)
    energies = molecules.target
    total = float(energies.std(correction=0))
    if not total > 0:
        raise StructureError(
            f"sigma_E, the standard deviation of {len(molecules)} target energies, is {total}: "
            "give training molecules with different energies"
        )
    w0 = torch.linalg.pinv(counts) @ energies
    if scale == "total":
        return w0.cpu(), total
    residual = float((energies - counts @ w0).std(correction=0))
    if not residual > 1e-9 * total:
        raise StructureError(
            f"the standard deviation of E - E^0 over {len(molecules)} molecules is {residual}: the "
            'energies are sums over atoms and leave nothing to learn; use scale="total" '
            "(--energy_scale total) to go on"
        )
    return w0.cpu(), residual
