"""Every check of input, in one place; called where data enters: loaders, predict, the model.

Compiled and captured steps call none of these: there a finite flag is read instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MIN_DISTANCE = 1e-3
"""Å. Two atoms closer than this are at the same place."""


class HIPNNWarning(UserWarning):
    """Something that works but is probably not what was meant."""


class StructureError(ValueError):
    """A molecule that the model cannot take: it names the value, the limit and the remedy."""


def check_graphs(
    z: Tensor,
    pos: Tensor,
    batch: Tensor | None = None,
    num_graphs: int | None = None,
    edge_index: Tensor | None = None,
    shift: Tensor | None = None,
) -> None:
    """Shapes, dtypes, devices, finiteness, and a sorted ``batch`` without gaps.

    Args:
        z: atomic numbers, ``[N]``.
        pos: positions in Å, ``[N, 3]``.
        batch: molecule of each atom, ``[N]``.
        num_graphs: number of molecules, if known.
        edge_index: the user's own edges, ``[2, E]``.
        shift: their periodic-image vectors in Å, ``[E, 3]``.

    Raises:
        StructureError: naming the first thing found wrong.
    """
    check_shapes(z, pos)
    _check_values(z, pos)
    if batch is not None:
        _check_batch(batch, z, num_graphs)
    if edge_index is not None:
        _check_edges(edge_index, shift, z, None if batch is None else batch.long())
        if batch is not None:
            _check_edges_inside(edge_index.long(), batch.long())


def check_shapes(z: Any, pos: Any) -> None:
    """One atomic number and one position for each atom.

    Args:
        z: atomic numbers, ``[N]``.
        pos: positions in Å, ``[N, 3]``.

    Raises:
        StructureError: they are something else.
    """
    for name, value in (("z", z), ("pos", pos)):
        if not isinstance(value, Tensor):
            kind = "None" if value is None else f"a {type(value).__name__}"
            raise StructureError(f"{name} is {kind}: give it as a tensor, or a Data that has it")
    if z.dim() != 1 or z.is_floating_point() or z.dtype == torch.bool:
        raise StructureError(
            f"z must be integers of shape [N], not {z.dtype} of shape {list(z.shape)}: "
            "pass atomic numbers, e.g. z.long().view(-1)"
        )
    if pos.shape != (z.size(0), 3) or not pos.is_floating_point():
        raise StructureError(
            f"pos must be floating point of shape [{z.size(0)}, 3] (Å) to match z, not {pos.dtype} "
            f"of shape {list(pos.shape)}"
        )


def check_search(pos: Tensor, cutoff: float, batch: Tensor | None) -> None:
    """Positions and cutoff that a search for neighbours can take.

    Args:
        pos: positions in Å, ``[N, 3]``.
        cutoff: R_cut in Å.
        batch: structure of each atom, ``[N]``, or None.

    Raises:
        StructureError: wrong shapes, an unsorted batch, or a position that is not finite.
        ValueError: a cutoff that is no positive finite number.
    """
    if not 0 < cutoff < torch.inf:
        raise ValueError(f"the cutoff is {cutoff} Å: it must be positive and finite")
    if not isinstance(pos, Tensor):
        raise StructureError(f"pos is a {type(pos).__name__}: give it as a tensor")
    if pos.dim() != 2 or pos.size(1) != 3 or not pos.is_floating_point():
        raise StructureError(
            f"pos must be floating point of shape [N, 3] (Å), not {pos.dtype} of shape "
            f"{list(pos.shape)}"
        )
    if batch is not None:
        _check_rows(batch, pos)
        if bool((batch[1:] < batch[:-1]).any()):
            raise StructureError(
                "batch is not sorted: sort the atoms of all inputs by structure, e.g. with "
                "batch.argsort(stable=True)"
            )
        if batch.numel() and batch[0] < 0:
            raise StructureError(f"batch begins with {int(batch[0])}: number structures from 0")
    _check_finite(pos)


def _check_values(z: Tensor, pos: Tensor) -> None:
    if not z.numel():
        raise StructureError("the batch holds no atoms: give at least one molecule")
    if z.device != pos.device:
        raise StructureError(
            f"z is on {z.device} and pos on {pos.device}: move both with .to(device)"
        )
    _check_finite(pos)


def _check_finite(pos: Tensor) -> None:
    finite = torch.isfinite(pos).all(dim=1)
    if not bool(finite.all()):
        atom = int((~finite).nonzero()[0])
        raise StructureError(
            f"position of atom {atom} is {pos[atom].tolist()}, which is not finite: "
            "remove or repair that structure"
        )


def _check_rows(batch: Any, atoms: Tensor) -> None:
    """An integer for each atom, where the atoms are."""
    if not isinstance(batch, Tensor):
        raise StructureError(f"batch is a {type(batch).__name__}: give it as a tensor")
    if batch.shape != atoms.shape[:1] or batch.is_floating_point() or batch.dtype == torch.bool:
        raise StructureError(
            f"batch must be integers of shape [{atoms.size(0)}], one molecule number per atom, "
            f"not {batch.dtype} of shape {list(batch.shape)}"
        )
    if batch.device != atoms.device:
        raise StructureError(
            f"batch is on {batch.device}, the atoms on {atoms.device}: move both with .to(device)"
        )


def _check_batch(batch: Tensor, z: Tensor, num_graphs: int | None) -> None:
    _check_rows(batch, z)
    batch = batch.long()
    step = batch.diff(prepend=batch[:1])
    looked_at = torch.stack((batch[0], batch[-1], *torch.aminmax(step)))
    first, last, lowest, highest = looked_at.tolist()  # a GPU is waited for once
    if lowest < 0:
        atom = int((step < 0).nonzero()[0])
        raise StructureError(
            f"batch is not sorted: it falls from {int(batch[atom - 1])} to {int(batch[atom])} at "
            f"atom {atom}; sort the atoms of all inputs by molecule, e.g. with batch.argsort()"
        )
    present, missing = last + 1, None
    if first != 0:
        missing = 0
    elif highest > 1:
        missing = int(batch[int((step > 1).nonzero()[0]) - 1]) + 1
    elif num_graphs is not None and num_graphs > present:
        missing = present
    if missing is not None:
        raise StructureError(
            f"molecule {missing} of the batch has no atoms: number the molecules 0 ... G-1 "
            "without gaps, or drop the empty one"
        )
    if num_graphs is not None and num_graphs < present:
        raise StructureError(f"batch names molecule {present - 1} but num_graphs is {num_graphs}")


def _check_edges(edge_index: Tensor, shift: Tensor | None, z: Tensor, batch: Tensor | None) -> None:
    whole = not (edge_index.is_floating_point() or edge_index.dtype == torch.bool)
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or not whole:
        raise StructureError(
            f"edge_index must be integers of shape [2, E], not {edge_index.dtype} of shape "
            f"{list(edge_index.shape)}"
        )
    edge_index = edge_index.long()
    if edge_index.device != z.device:
        raise StructureError(
            f"edge_index is on {edge_index.device} and z on {z.device}: move both with .to(device)"
        )
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < z.size(0):
        raise StructureError(
            f"edge_index reaches from {int(edge_index.min())} to {int(edge_index.max())}, "
            f"outside 0 ... {z.size(0) - 1}"
        )
    if shift is not None and shift.shape != (edge_index.size(1), 3):
        raise StructureError(
            f"shift must have shape [{edge_index.size(1)}, 3] (Å), one vector per edge, not "
            f"{list(shift.shape)}"
        )
    if shift is not None and not bool(torch.isfinite(shift).all()):
        edge = int((~torch.isfinite(shift).all(dim=1)).nonzero()[0])
        raise StructureError(
            f"shift of edge {edge} is {shift[edge].tolist()}, not finite: repair it"
        )
    if shift is None:  # the search with that default knows no periodic images
        _warn_if_truncated(edge_index, z.size(0), batch)
    own = edge_index[0] == edge_index[1]
    if shift is None and bool(own.any()):
        raise StructureError(
            f"edge_index joins atom {int(edge_index[0][own][0])} to itself: remove self loops, "
            "e.g. with torch_geometric.utils.remove_self_loops (the layer has its own self term)"
        )


def _warn_if_truncated(edge_index: Tensor, num_atoms: int, batch: Tensor | None) -> None:
    degree = torch.bincount(edge_index[1], minlength=num_atoms)
    if int(degree.max()) != 32:
        return
    size = degree.new_tensor(num_atoms) if batch is None else torch.bincount(batch)[batch]
    suspect = int(((degree == 32) & (size > 33)).sum())  # of 33 atoms 32 are all others
    if suspect > 1:
        warnings.warn(
            f"{suspect} atoms have exactly 32 neighbours and none has more: "
            "edge_index looks cut off by a default max_num_neighbors=32; raise that limit",
            HIPNNWarning,
            stacklevel=6,
        )


def _check_edges_inside(edge_index: Tensor, batch: Tensor) -> None:
    across = batch[edge_index[0]] != batch[edge_index[1]]
    if bool(across.any()):
        j, i = edge_index[:, across][:, 0].tolist()
        raise StructureError(
            f"edge_index joins atom {j} of molecule {int(batch[j])} to atom {i} of molecule "
            f"{int(batch[i])}: molecules of a batch must not touch; add each graph's first atom to "
            "its edges, as torch_geometric.data.Batch does"
        )


def check_species(z: Tensor, known: Tensor, species: Sequence[int]) -> None:
    """Every atomic number must be one of the model's.

    Args:
        z: atomic numbers, ``[N]``.
        known: whether each number is in the list, ``[N]``.
        species: the model's species.

    Raises:
        StructureError: naming the foreign atomic number.
    """
    if not bool(known.all()):
        foreign = sorted(set(z[~known].tolist()))
        raise StructureError(
            f"atomic number {foreign[0]} (atom {int((~known).nonzero()[0])}) is not among the "
            f"model's species {tuple(species)}: build the model with HIPNN(species=...) that "
            "includes it, or leave such structures out"
        )


def check_distances(
    r: Tensor, least: float = MIN_DISTANCE, atoms: tuple[Tensor, Tensor] | None = None
) -> None:
    """No two atoms at the same place.

    Args:
        r: pair distances in Å, any shape.
        least: the smallest distance allowed in Å.
        atoms: the two atoms of each pair, each of the shape of ``r``.

    Raises:
        StructureError: a distance is below ``least``; names the atoms if they are given.
    """
    if not r.numel():
        return
    closest = float(r.detach().min())
    if closest < least:
        pair = "two atoms"
        if atoms is not None:
            i, j = sorted(int(atom[r.argmin()]) for atom in atoms)
            pair = f"atoms {i} and {j}" if i != j else f"atom {i} and an image of it"
        remedy = ": remove the duplicate atom, or check that positions are in Å"
        raise StructureError(
            f"{pair} are {closest:.2e} Å apart, closer than {least:g} Å"
            + (remedy if least <= MIN_DISTANCE else "")
        )


def check_targets(target: Tensor, num_graphs: int) -> None:
    """One finite target per molecule.

    Args:
        target: energies, ``[G]``.
        num_graphs: G.

    Raises:
        StructureError: wrong count, or a value that is not finite.
    """
    if target.shape != (num_graphs,):
        raise StructureError(
            f"the target must have shape [{num_graphs}], one per molecule, not {list(target.shape)}"
        )
    finite = torch.isfinite(target)
    if not bool(finite.all()):
        molecule = int((~finite).nonzero()[0])
        raise StructureError(
            f"target of molecule {molecule} is {float(target[molecule])}: remove that molecule"
        )


def warn_unlikely_unit(
    z: Tensor, nearest: Tensor, batch: Tensor, source: str = "positions"
) -> None:
    """Warn where the hydrogens' nearest neighbours say that positions are not in Å.

    A hydrogen is 0.96 to 1.1 Å from the C, N or O that it is bound to, that is 1.8 to 2.1 Bohr or
    0.096 to 0.11 nm. Structures without such atoms are not judged: in metal hydrides it is 1.6 to
    2.4 Å from the metal.

    Args:
        z: atomic numbers, ``[N]``.
        nearest: distance to the nearest other atom, ``[N]``, inf where there is none.
        batch: structure of each atom, ``[N]``.
        source: what to call the structures in the message.
    """
    judged = torch.isin(batch, batch[(z >= 6) & (z <= 8)])
    hydrogen = nearest[(z == 1) & torch.isfinite(nearest) & judged]
    if hydrogen.numel() < 10:
        return
    typical = float(hydrogen.median())
    for unit, low, high, factor in (("Bohr", 1.7, 2.4, 0.529177), ("nm", 0.07, 0.16, 10.0)):
        if low < typical < high:
            warnings.warn(
                f"{source}: hydrogen's nearest neighbour is typically at {typical:.3f}, as if in "
                f"{unit}; positions must be in Å: if they are not, multiply them by {factor}",
                HIPNNWarning,
                stacklevel=3,
            )
