"""Lattice vectors: read, checked, inverted; and the shift that belongs to an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from hipnn_pyg.checks import StructureError

_LEAST_INDEPENDENCE = 1e-6
"""Least singular value of lattice vectors of length 1 (1 for right angles, 0 in one plane)."""

Flags = bool | Sequence[bool] | Sequence[Sequence[bool]] | Tensor | None


class Lattice(NamedTuple):
    """Periodic directions of G structures; float64, rows of directions without them are 0.

    Attributes:
        vectors: lattice vectors in rows, Å, ``[G, 3, 3]``.
        inverse: pseudo-inverse, reciprocal vectors in columns, 1/Å, ``[G, 3, 3]``:
            ``pos @ inverse`` are the fractional coordinates along periodic directions, else 0.
        pbc: periodic directions, ``[G, 3]``.
    """

    vectors: Tensor
    inverse: Tensor
    pbc: Tensor

    @property
    def heights(self) -> Tensor:
        """Distance of neighbouring lattice planes in Å, ``[G, 3]``; inf if not periodic."""
        return 1 / torch.linalg.vector_norm(self.inverse, dim=1)


def image_shift(images: Tensor, cell: Tensor, graph: Tensor | None = None) -> Tensor:
    """Shift vectors of images, ``images @ cell``; differentiable in ``cell``.

    The reverse edge's shift is exactly the negative one.

    Args:
        images: integers, ``[E, 3]``.
        cell: lattice vectors in rows, Å, ``[3, 3]``, ``[1, 3, 3]`` or ``[G, 3, 3]``.
        graph: structure of each edge, ``batch[edge_index[1]]``, ``[E]``; not needed for one cell.

    Returns:
        Vectors in Å in the dtype of ``cell``, ``[E, 3]``.

    Raises:
        ValueError: several cells, and no ``graph`` to choose by.
    """
    cell = cell.reshape(-1, 3, 3)
    if cell.size(0) == 1:
        a, b, c = cell[0].unsqueeze(1)
    elif graph is None:
        raise ValueError(
            f"{cell.size(0)} cells need the structure of each edge: graph=batch[edge_index[1]]"
        )
    else:
        a, b, c = (cell[:, k][graph] for k in range(3))
    n = images.to(cell.dtype)
    return n[:, 0:1] * a + n[:, 1:2] * b + n[:, 2:3] * c


def lattice_of(data: Data) -> tuple[Tensor | None, Tensor | bool | None]:
    """``cell`` and ``pbc`` of a ``Data``, or those of a ``Batch`` in one row for each structure.

    PyG joins what belongs to a structure along the first axis: flags of one bool each become
    ``[G]``, of three ``[3 G]``, and cells ``[3, 3]`` become ``[3 G, 3]``.

    Args:
        data: one structure, or several.
    """
    cell, pbc = data.get("cell"), data.get("pbc")
    if isinstance(data, Batch):
        graphs = data.num_graphs
        if isinstance(cell, Tensor) and cell.shape == (3 * graphs, 3):
            cell = cell.view(graphs, 3, 3)
        joined = isinstance(pbc, Tensor) and "pbc" in getattr(data, "_slice_dict", {})
        if joined and pbc.shape in ((graphs,), (3 * graphs,)):
            pbc = pbc.view(graphs, -1).expand(graphs, 3)
    return cell, pbc


def read_lattice(cell: Tensor | None, pbc: Flags, num_graphs: int, pos: Tensor) -> Lattice:
    """Cells and periodic directions as given, checked.

    Args:
        cell: lattice vectors in rows, Å, ``[3, 3]``, ``[1, 3, 3]`` or ``[G, 3, 3]``, or None.
        pbc: a bool, ``[3]`` or ``[G, 3]``; None for all directions where there is a cell.
        num_graphs: G.
        pos: positions, for the device.

    Raises:
        StructureError: wrong shapes, a cell that is not finite, ``pbc`` without a cell, lattice
            vectors that are zero or not independent.
    """
    periodic = torch.as_tensor(cell is not None if pbc is None else pbc)
    if periodic.shape not in ((), (3,), (1, 3), (num_graphs, 3)) or periodic.is_floating_point():
        raise StructureError(
            f"pbc must be a bool, or bools of shape [3] or [{num_graphs}, 3], one row for each "
            f"structure, not {periodic.dtype} of shape {list(periodic.shape)}"
        )
    periodic = periodic.cpu().bool().expand(num_graphs, 3)
    if cell is None:
        if bool(periodic.any()):
            raise StructureError(
                f"pbc is {periodic.tolist()} and there is no cell: give the lattice vectors in Å, "
                "or pbc=False"
            )
        cell = torch.zeros(3, 3)
    if cell.shape not in ((3, 3), (1, 3, 3), (num_graphs, 3, 3)) or not cell.is_floating_point():
        raise StructureError(
            f"cell must be floating point of shape [3, 3] or [{num_graphs}, 3, 3] (Å), one for "
            f"each structure, not {cell.dtype} of shape {list(cell.shape)}"
        )
    vectors = cell.detach().cpu().double().reshape(-1, 3, 3).expand(num_graphs, 3, 3)
    _check_vectors(vectors, periodic)
    vectors = torch.where(periodic.unsqueeze(2), vectors, 0.0)
    inverse = torch.where(periodic.unsqueeze(1), torch.linalg.pinv(vectors), 0.0)
    return Lattice(*(t.to(pos.device) for t in (vectors, inverse, periodic)))


def _check_vectors(vectors: Tensor, periodic: Tensor) -> None:
    finite = torch.isfinite(vectors).flatten(1).all(1)
    length = torch.linalg.vector_norm(vectors, dim=2)
    absent = periodic & (length == 0)
    unit = torch.where(periodic, 1 / length, 0.0).unsqueeze(2) * vectors.nan_to_num()
    spread = torch.linalg.svdvals(unit.nan_to_num(0.0, 0.0, 0.0))
    count = periodic.sum(1, keepdim=True)
    least = torch.where(count > 0, spread.gather(1, (count - 1).clamp(min=0)), 1.0).squeeze(1)
    bad = ~finite | absent.any(1) | (least < _LEAST_INDEPENDENCE)
    if not bool(bad.any()):
        return
    graph = int(bad.nonzero()[0])
    what = f"cell of structure {graph} is {vectors[graph].tolist()} Å"
    if not bool(finite[graph]):
        raise StructureError(f"{what}, which is not finite: repair or remove that structure")
    flags = periodic[graph].tolist()
    if bool(absent[graph].any()):
        raise StructureError(
            f"{what} and its pbc {flags}: vector {int(absent[graph].nonzero()[0])} is zero; give "
            "it in Å, or set pbc to False there"
        )
    raise StructureError(
        f"{what}, singular along its periodic directions {flags}: the vectors must not lie in one "
        f"line or plane (least singular value of the unit vectors {float(least[graph]):.1e}, limit "
        f"{_LEAST_INDEPENDENCE}); correct the cell, or set pbc to False along one of them"
    )
