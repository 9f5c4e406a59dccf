"""Neighbour search: every pair within the cutoff, no cap on their number, on the device of ``pos``.

One signature, several backends. ``"torch"`` (plain PyTorch) is the default and the specification:
all pairs of small molecules, sorted columns (:mod:`hipnn_pyg.graph.columns`) for large ones, with
the same result. The others are used only when named.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hipnn_pyg.checks import check_search
from hipnn_pyg.graph.columns import Block, block_size, near_blocks, placed, squared_distance
from hipnn_pyg.graph.pairs import edge_distances
from hipnn_pyg.graph.vesin_search import vesin_search

Search = Callable[[Tensor, float, Tensor], Tensor]

ALL_PAIRS_LIMIT = 300
"""Atoms of a molecule up to which looking at all pairs is faster than sorting."""


def _torch_search(pos: Tensor, cutoff: float, batch: Tensor) -> Tensor:
    """All pairs, or sorted columns where a molecule is large; sorted by receiver, then sender."""
    counts = torch.bincount(batch)
    if int(counts.max()) <= ALL_PAIRS_LIMIT:
        return _all_pairs(pos, cutoff, batch, counts)
    atoms = torch.arange(pos.size(0), device=pos.device)
    return joined(list(near_blocks(pos, batch, atoms, cutoff)), pos.device)


def _all_pairs(pos: Tensor, cutoff: float, batch: Tensor, counts: Tensor) -> Tensor:
    """Every pair within each molecule, in blocks of receivers."""
    first = (counts.cumsum(0) - counts)[batch]
    partners = counts[batch]
    xyz = tuple(c.contiguous() for c in pos.unbind(1))
    blocks = []
    per_block = max(1, block_size(pos.device) // int(counts.max()))
    for receivers in torch.arange(pos.size(0), device=pos.device).split(per_block):
        n = partners[receivers]
        i = receivers.repeat_interleave(n)
        j = torch.arange(i.numel(), device=pos.device) - (n.cumsum(0) - n).repeat_interleave(n)
        j = j + first[i]
        square = squared_distance(
            tuple(c.index_select(0, j) for c in xyz), tuple(c.index_select(0, i) for c in xyz)
        )
        near = (square < cutoff * cutoff) & (i != j)
        blocks.append(torch.stack((j[near], i[near])))
    return torch.cat(blocks, 1)


def joined(blocks: list[Block], device: torch.device) -> Tensor:
    """Edges ``[2, E]`` of the blocks, which are emptied meanwhile."""
    edges = sum(block.senders.numel() for block in blocks)
    edge_index = torch.empty(2, edges, dtype=torch.long, device=device)
    for here, block in placed(blocks):
        edge_index[0, here] = block.senders
        edge_index[1, here] = block.receivers
    return edge_index


def _uncapped(search: Callable[..., Tensor], pos: Tensor, cutoff: float, batch: Tensor) -> Tensor:
    """A search of another package without its cap on neighbours, sorted as ours."""
    largest = int(torch.bincount(batch).max())
    edge_index = search(pos, cutoff, batch, max_num_neighbors=largest)
    return edge_index[:, (edge_index[1] * pos.size(0) + edge_index[0]).argsort()]


def _torch_cluster_search(pos: Tensor, cutoff: float, batch: Tensor) -> Tensor:
    try:
        import torch_cluster
    except ImportError as error:
        raise ImportError(
            'backend "torch_cluster" needs torch-cluster: pip install "hipnn_pyg[ops]", '
            'or use backend="torch"'
        ) from error
    return _uncapped(torch_cluster.radius_graph, pos, cutoff, batch)


def _pyg_lib_search(pos: Tensor, cutoff: float, batch: Tensor) -> Tensor:
    try:
        import pyg_lib  # noqa: F401
        from torch_geometric.nn import radius_graph as pyg_radius_graph
    except ImportError as error:
        raise ImportError(
            'backend "pyg_lib" needs pyg-lib >= 0.6 and torch-geometric >= 2.8 '
            '(see https://github.com/pyg-team/pyg-lib), or use backend="torch"'
        ) from error
    return _uncapped(pyg_radius_graph, pos, cutoff, batch)


BACKENDS: dict[str, Search] = {
    "torch": _torch_search,
    "torch_cluster": _torch_cluster_search,
    "pyg_lib": _pyg_lib_search,
    "vesin": vesin_search,
}


def radius_graph(
    pos: Tensor, cutoff: float, batch: Tensor | None = None, backend: str = "torch"
) -> Tensor:
    """All pairs of different atoms of the same molecule closer than ``cutoff``, without a cap.

    Args:
        pos: positions in Å, ``[N, 3]``.
        cutoff: R_cut in Å.
        batch: molecule of each atom, sorted, ``[N]``; None for one molecule.
        backend: ``"torch"`` (plain PyTorch, the default), ``"torch_cluster"``, ``"pyg_lib"`` or
            ``"vesin"`` (on the CPU, one molecule after the other).

    Returns:
        ``edge_index [2, E]``, row 0 = j (sends), row 1 = i (receives), sorted by i, then j.

    Raises:
        StructureError: wrong shapes, an unsorted batch, or a position that is not finite.
        ValueError: unknown backend, or a cutoff that is not positive and finite.
        ImportError: the backend's package is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown neighbour backend {backend!r}: choose from {sorted(BACKENDS)}")
    check_search(pos, cutoff, batch)
    if batch is None:
        batch = torch.zeros(pos.size(0), dtype=torch.long, device=pos.device)
    batch = batch.long()
    if not pos.size(0):
        return batch.new_empty(2, 0)
    with torch.no_grad():
        return BACKENDS[backend](pos, float(cutoff), batch)


class RadiusGraph(torch.nn.Module):
    """:func:`radius_graph` as PyG's ``SchNet(interaction_graph=...)`` wants it.

    Args:
        cutoff: R_cut in Å.
        backend: see :func:`radius_graph`.
    """

    def __init__(self, cutoff: float, backend: str = "torch") -> None:
        super().__init__()
        self.cutoff = cutoff
        self.backend = backend

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """``(edge_index [2, E], distances [E] in Å)`` of positions ``[N, 3]``."""
        edge_index = radius_graph(pos, self.cutoff, batch, self.backend)
        return edge_index, edge_distances(pos, edge_index)
