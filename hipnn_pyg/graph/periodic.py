"""Neighbour search in periodic cells, usable on its own: :func:`radius_graph_pbc`.

Atoms are moved into the cell and copied into its images as far as the cutoff reaches beyond the
atoms; a search among these points (:mod:`hipnn_pyg.graph.columns`) finds the neighbours. The
copies lie at the surface of a large cell, so time and memory stay linear in the number of atoms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from hipnn_pyg.checks import check_search
from hipnn_pyg.graph.columns import Block, near_blocks, placed
from hipnn_pyg.graph.images import (
    Points,
    check_number_of_images,
    distance_rounding,
    image_points,
    into_cell,
)
from hipnn_pyg.graph.lattice import Flags, Lattice, image_shift, read_lattice
from hipnn_pyg.graph.vesin_search import vesin_pairs


@overload
def radius_graph_pbc(
    pos: Tensor,
    cutoff: float,
    cell: Tensor | None,
    pbc: Flags = True,
    batch: Tensor | None = None,
    backend: str = "torch",
    return_images: Literal[False] = False,
) -> tuple[Tensor, Tensor]: ...
@overload
def radius_graph_pbc(
    pos: Tensor,
    cutoff: float,
    cell: Tensor | None,
    pbc: Flags = True,
    batch: Tensor | None = None,
    backend: str = "torch",
    *,
    return_images: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
def radius_graph_pbc(
    pos: Tensor,
    cutoff: float,
    cell: Tensor | None,
    pbc: Flags = True,
    batch: Tensor | None = None,
    backend: str = "torch",
    return_images: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    r"""All pairs of an atom and another atom, or an image of any atom, closer than ``cutoff``.

    :math:`\mathbf r_{ij} = \mathbf r_j - \mathbf r_i + \mathbf n\,\mathbf C` with the integers
    :math:`\mathbf n` (``images``) and the lattice vectors in the rows of :math:`\mathbf C`
    (``cell``). No cap on neighbours; cells of any shape, skewed, left-handed or smaller than the
    cutoff; positions inside or outside the cell. An atom's own images are among its neighbours
    (i = j with a shift that is not 0); it is not its own neighbour.

    The edges do not depend on ``pos`` and ``cell`` differentiably, distances do::

        edge_index, shift = radius_graph_pbc(pos, cutoff, cell)
        j, i = edge_index
        r = (pos[j] - pos[i] + shift).norm(dim=1)

    Where ``cell`` requires a gradient, ``shift`` carries it. To strain the structure instead of
    the cell, and for the stress, search once and compute the shifts from the images::

        edge_index, _, images = radius_graph_pbc(pos, cutoff, cell, return_images=True)
        strain = torch.zeros(3, 3, dtype=pos.dtype, requires_grad=True)
        stretch = torch.eye(3, dtype=pos.dtype) + (strain + strain.T) / 2
        x, shift = pos @ stretch, images.to(pos.dtype) @ (cell @ stretch)
        r = (x[edge_index[0]] - x[edge_index[1]] + shift).norm(dim=1)

    For cells ``[G, 3, 3]`` of a batch, :func:`hipnn_pyg.graph.image_shift` is that last product.

    Args:
        pos: positions in Å, ``[N, 3]``.
        cutoff: R_cut in Å.
        cell: lattice vectors in rows, Å, ``[3, 3]`` for all structures or ``[G, 3, 3]``. Vectors
            along directions that are not periodic must be finite and may be zero; None where no
            direction is periodic.
        pbc: periodic directions, a bool, ``[3]`` for all structures or ``[G, 3]``; None for all
            directions where there is a cell.
        batch: structure of each atom, sorted, ``[N]``; None for one structure.
        backend: ``"torch"`` (plain PyTorch, any device) or ``"vesin"`` (on the CPU, one structure
            after the other; slow where atoms lie far apart along open directions).
        return_images: give the images too.

    Returns:
        ``edge_index [2, E]``, row 0 = j (sends), row 1 = i (receives), the convention of PyG's
        ``radius_graph``, sorted by i, then j, then image; ``shift [E, 3]`` in Å, in the dtype of
        ``pos``; with ``return_images`` also ``images [E, 3]``, int64.

    Raises:
        StructureError: wrong shapes, an unsorted batch, positions or cells that are not finite,
            ``pbc`` without a cell, lattice vectors that are zero or not independent, or a cell so
            flat that its images do not fit in memory.
        ValueError: unknown backend, or a cutoff that is not positive and finite.
        ImportError: the backend's package is not installed.
    """
    if backend not in _SEARCHES:
        raise ValueError(
            f"no periodic neighbour search {backend!r}: choose from {sorted(_SEARCHES)}"
        )
    check_search(pos, cutoff, batch)
    if batch is None:
        batch = torch.zeros(pos.size(0), dtype=torch.long, device=pos.device)
    batch = batch.long()
    with torch.no_grad():
        lattice = read_lattice(cell, pbc, _num_graphs(batch, cell), pos)
        check_number_of_images(cutoff, lattice, batch)
        blocks, points = _SEARCHES[backend](pos, float(cutoff), lattice, batch)
        follows = cell is not None and cell.requires_grad
        edge_index, shift, images = _joined(
            blocks, points, lattice.vectors.to(pos), batch, return_images or follows
        )
    if cell is not None and follows and torch.is_grad_enabled():
        shift = image_shift(images, cell.to(pos), batch[edge_index[1]])
    return (edge_index, shift, images) if return_images else (edge_index, shift)


def _num_graphs(batch: Tensor, cell: Tensor | None) -> int:
    if batch.numel():
        return int(batch[-1]) + 1
    return cell.size(0) if cell is not None and cell.dim() == 3 else 1


def _joined(
    blocks: list[Block], points: Points, cell: Tensor, batch: Tensor, with_images: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Edges, shifts and images (or none) of the blocks, which are emptied meanwhile."""
    total = sum(block.senders.numel() for block in blocks)
    edge_index = batch.new_empty(2, total)
    shift = cell.new_empty(total, 3)
    images = batch.new_empty(total if with_images else 0, 3)
    for here, block in placed(blocks):
        receiver = block.receivers
        edge_index[0, here], image = points.edges(block.senders, receiver)
        edge_index[1, here] = receiver
        shift[here] = image_shift(image, cell, batch[receiver])
        if with_images:
            images[here] = image
    return edge_index, shift, images


def _closer(pos: Tensor, edges: tuple[Tensor, Tensor], shift: Tensor, cutoff: float) -> Tensor:
    """Whether |pos_j - pos_i + shift| is below the cutoff, by the arithmetic of that formula."""
    j, i = edges
    x, y, z = (pos[j] - pos[i] + shift).unbind(1)
    return x * x + y * y + z * z < cutoff * cutoff


def _torch_search(
    pos: Tensor, cutoff: float, lattice: Lattice, batch: Tensor
) -> tuple[list[Block], Points]:
    """Sorted columns of the atoms and their images."""
    if not pos.size(0):
        return [], Points(batch, batch.new_empty(0, 3), batch.new_empty(0, 3))
    points, where, home, doubt = image_points(pos, cutoff, lattice, batch)
    cell = lattice.vectors.to(pos)

    def settle(sender: Tensor, receiver: Tensor) -> Tensor:
        j, image = points.edges(sender, receiver)
        return _closer(pos, (j, receiver), image_shift(image, cell, batch[receiver]), cutoff)

    return list(near_blocks(where, batch[points.owner], home, cutoff, doubt, settle)), points


def _vesin_search(
    pos: Tensor, cutoff: float, lattice: Lattice, batch: Tensor
) -> tuple[list[Block], Points]:
    """The same edges by vesin: each becomes a point of its own."""
    _, moved = into_cell(pos, lattice, batch)
    reach = cutoff
    if pos.size(0):
        reach += distance_rounding(pos, cutoff, lattice, batch, moved)
    inside = pos.double() - image_shift(moved, lattice.vectors, batch)
    j, i, images = vesin_pairs(inside, reach, lattice.vectors, lattice.pbc, batch)
    images = images - moved[j] + moved[i]
    shift = image_shift(images, lattice.vectors.to(pos), batch[i])
    order = _closer(pos, (j, i), shift, cutoff).nonzero().squeeze(1)
    for key in (images[:, 2], images[:, 1], images[:, 0], j, i):
        order = order[key[order].argsort(stable=True)]
    degree = torch.bincount(i[order], minlength=pos.size(0))
    points = Points(j[order], images[order], torch.zeros_like(moved))
    return [Block(0, degree, torch.arange(order.numel(), device=pos.device))], points


_SEARCHES: dict[str, Callable[..., tuple[list[Block], Points]]] = {
    "torch": _torch_search,
    "vesin": _vesin_search,
}
