"""Neighbour search by vesin (https://github.com/Luthaf/vesin): C++, on the CPU, one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hipnn_pyg.graph.columns import squared_distance


def vesin_search(pos: Tensor, cutoff: float, batch: Tensor) -> Tensor:
    """The edges of :func:`hipnn_pyg.graph.radius_graph`, found by vesin."""
    open_cells = torch.zeros(int(batch[-1]) + 1, 3, 3, dtype=torch.float64)
    nowhere = torch.zeros(open_cells.shape[:2], dtype=torch.bool)
    j, i, _ = vesin_pairs(pos, cutoff * (1 + 1e-6), open_cells, nowhere, batch)
    square = squared_distance(pos[j].unbind(1), pos[i].unbind(1))
    near = square < cutoff * cutoff
    j, i = j[near], i[near]
    order = (i * pos.size(0) + j).argsort()
    return torch.stack((j[order], i[order]))


def vesin_pairs(
    pos: Tensor, cutoff: float, cell: Tensor, pbc: Tensor, batch: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs closer than ``cutoff`` in any order, with their images.

    Args:
        pos: positions in Å, ``[N, 3]``.
        cutoff: in Å; vesin compares float64 distances.
        cell: lattice vectors in rows, Å, ``[G, 3, 3]``.
        pbc: periodic directions, ``[G, 3]``.
        batch: structure of each atom, sorted, ``[N]``.

    Returns:
        j ``[E]``, i ``[E]`` and images ``[E, 3]``, all int64, on the device of ``pos``.

    Raises:
        ImportError: vesin is not installed.
    """
    found = list(_one_by_one(pos, cutoff, cell, pbc, batch))
    pairs = torch.cat([pair for pair, _ in found]).to(pos.device)
    images = torch.cat([image for _, image in found]).to(pos.device)
    return pairs[:, 1], pairs[:, 0], images


def _one_by_one(
    pos: Tensor, cutoff: float, cell: Tensor, pbc: Tensor, batch: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs ``[E, 2]``, i before j, and images ``[E, 3]`` of one structure after the other."""
    try:
        from vesin import NeighborList
    except ImportError as error:
        raise ImportError(
            'backend "vesin" needs vesin: pip install "hipnn_pyg[vesin]", or use backend="torch"'
        ) from error
    search = NeighborList(cutoff=cutoff, full_list=True)
    counts = torch.bincount(batch, minlength=cell.size(0)).tolist()
    first = 0
    for part, box, periodic in zip(
        pos.detach().double().cpu().split(counts), cell.cpu(), pbc.cpu(), strict=True
    ):
        pairs, images = search.compute(
            points=part.numpy(), box=box.numpy(), periodic=periodic.numpy(), quantities="PS"
        )
        yield (
            torch.from_numpy(pairs.astype("int64")) + first,
            torch.from_numpy(images.astype("int64")),
        )
        first += len(part)
