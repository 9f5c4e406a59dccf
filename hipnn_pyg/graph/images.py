"""Atoms moved into their cell, and those of their images that any atom can reach."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.checks import StructureError
from hipnn_pyg.graph.lattice import Lattice, image_shift

_MOST_POINTS = 1 << 27
"""Atoms and images that a search may hold (about 10 GB)."""


class Points(NamedTuple):
    """Atoms and their images: what the senders of a search stand for.

    Attributes:
        owner: the atom, ``[M]``.
        image: its image, seen from an atom that was not moved, ``[M, 3]``.
        moved: by how many lattice vectors each atom was moved to get into the cell, ``[N, 3]``.
    """

    owner: Tensor
    image: Tensor
    moved: Tensor

    def edges(self, sender: Tensor, receiver: Tensor) -> tuple[Tensor, Tensor]:
        """The sending atom ``[E]`` and its image ``[E, 3]`` of each pair."""
        image = self.image.index_select(0, sender) + self.moved.index_select(0, receiver)
        return self.owner.index_select(0, sender), image


def into_cell(pos: Tensor, lattice: Lattice, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Fractional coordinates from 0 to 1, and the whole lattice vectors taken off, ``[N, 3]``.

    Args:
        pos: positions in Å, ``[N, 3]``.
        lattice: G cells.
        batch: structure of each atom, ``[N]``.
    """
    fraction = torch.bmm(pos.double().unsqueeze(1), lattice.inverse[batch]).squeeze(1)
    moved = fraction.floor()
    return fraction - moved, moved.long()


def check_number_of_images(cutoff: float, lattice: Lattice, batch: Tensor) -> None:
    """The images within the cutoff must fit in memory.

    Args:
        cutoff: R_cut in Å.
        lattice: G cells.
        batch: structure of each atom, ``[N]``.

    Raises:
        StructureError: they do not.
    """
    repeats = cutoff / lattice.heights
    total = float((1 + 2 * repeats).prod(1)[batch].sum())
    if total > _MOST_POINTS:
        graph = int(repeats.amax(1).argmax())
        raise StructureError(
            f"the cutoff takes in {total:.1e} images of atoms (limit {_MOST_POINTS:.1e}): it is "
            f"{float(repeats[graph].max()):.3g} times the height of the cell of structure {graph}; "
            "check that cell and cutoff are in Å"
        )


def distance_rounding(
    pos: Tensor, cutoff: float, lattice: Lattice, batch: Tensor, moved: Tensor
) -> float:
    """How far a distance may be off in the dtype of ``pos``, Å.

    Args:
        pos: positions in Å, ``[N, 3]``.
        cutoff: R_cut in Å.
        lattice: G cells.
        batch: structure of each atom, ``[N]``.
        moved: lattice vectors taken off each atom, ``[N, 3]``.

    Raises:
        StructureError: it is more than a tenth of the cutoff.
    """
    length = torch.linalg.vector_norm(lattice.vectors, dim=2)
    travel = float((moved.abs() * length[batch]).sum(1).max())
    images = float(((cutoff / lattice.heights + 2) * length).sum(1).max())
    rounding = 8 * torch.finfo(pos.dtype).eps * (2 * travel + images + cutoff)
    if rounding > 0.1 * cutoff:
        raise StructureError(
            f"positions lie up to {travel:.3g} Å outside their cell, where distances in "
            f"{pos.dtype} can be off by {rounding:.1g} Å (limit: a tenth of the cutoff, "
            f"{0.1 * cutoff:.2g} Å): wrap them into the cell, or pass them in float64"
        )
    return rounding + 1e-9 * cutoff


def reachable_images(
    fraction: Tensor, margin: Tensor, batch: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Images of atoms that come within a margin of the atoms of their structure.

    Args:
        fraction: fractional coordinates of the atoms, ``[N, 3]``; 0 along open directions.
        margin: the cutoff in fractional coordinates, ``[G, 3]``; 0 along open directions.
        batch: structure of each atom, ``[N]``.

    Returns:
        The atom of each image ``[M]`` and the image ``[M, 3]``, sorted by atom, then image; and
        where each atom itself stands among them ``[N]``.
    """
    of_atom = batch.unsqueeze(1).expand_as(fraction)
    low = torch.full_like(margin, torch.inf).scatter_reduce(0, of_atom, fraction, "amin")
    high = torch.full_like(margin, -torch.inf).scatter_reduce(0, of_atom, fraction, "amax")
    first = ((low - margin)[batch] - fraction).ceil()
    count = ((high + margin)[batch] - fraction).floor() - first + 1
    first, count = first.long(), count.long()
    each = count.prod(1)
    total = int(each.sum())
    start = each.cumsum(0) - each
    owner = torch.arange(batch.numel(), device=batch.device)
    owner = owner.repeat_interleave(each, output_size=total)
    place = torch.arange(total, device=batch.device) - start[owner]
    second, third = count[owner, 1], count[owner, 2]
    image = torch.stack((place // (second * third), place // third % second, place % third), 1)
    home = start - (first[:, 0] * count[:, 1] + first[:, 1]) * count[:, 2] - first[:, 2]
    return owner, image + first[owner], home


def image_points(
    pos: Tensor, cutoff: float, lattice: Lattice, batch: Tensor
) -> tuple[Points, Tensor, Tensor, float]:
    """What a search among points needs to know of a periodic structure.

    Args:
        pos: positions in Å, ``[N, 3]``.
        cutoff: R_cut in Å.
        lattice: G cells.
        batch: structure of each atom, ``[N]``.

    Returns:
        The points; their positions ``[M, 3]`` in Å, float64; which of them each atom is ``[N]``;
        and how far distances may be off in the dtype of ``pos``, Å.
    """
    fraction, moved = into_cell(pos, lattice, batch)
    doubt = distance_rounding(pos, cutoff, lattice, batch, moved)
    owner, image, home = reachable_images(fraction, (cutoff + doubt) / lattice.heights, batch)
    image -= moved[owner]
    where = pos.double()[owner] + image_shift(image, lattice.vectors, batch[owner])
    return Points(owner, image, moved), where, home, doubt
