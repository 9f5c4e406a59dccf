"""Neighbour search: every pair within the cutoff, no cap on their number, on the device of ``pos``.

One signature, several backends. ``"torch"`` (plain PyTorch) is the default and the specification;
the others are used only when named.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hipnn_pyg.graph.pairs import edge_distances

Search = Callable[[Tensor, float, Tensor], Tensor]

_BLOCK = 1 << 24
"""Candidate pairs looked at in one go by the plain-torch search (bounds its memory)."""


def _torch_search(pos: Tensor, cutoff: float, batch: Tensor) -> Tensor:
    """All pairs within each molecule, in blocks of receivers; sorted by receiver, then sender."""
    counts = torch.bincount(batch)
    first = (counts.cumsum(0) - counts)[batch]
    partners = counts[batch]
    blocks = []
    per_block = max(1, _BLOCK // int(counts.max()))
    for receivers in torch.arange(pos.size(0), device=pos.device).split(per_block):
        n = partners[receivers]
        i = receivers.repeat_interleave(n)
        j = torch.arange(i.numel(), device=pos.device) - (n.cumsum(0) - n).repeat_interleave(n)
        j = j + first[i]
        near = ((pos[j] - pos[i]).square().sum(-1) < cutoff * cutoff) & (i != j)
        blocks.append(torch.stack((j[near], i[near])))
    return torch.cat(blocks, 1)


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
}


def radius_graph(
    pos: Tensor, cutoff: float, batch: Tensor | None = None, backend: str = "torch"
) -> Tensor:
    """All pairs of different atoms of the same molecule closer than ``cutoff``, without a cap.

    Args:
        pos: positions in Å, ``[N, 3]``.
        cutoff: R_cut in Å.
        batch: molecule of each atom, sorted, ``[N]``; None for one molecule.
        backend: ``"torch"`` (plain PyTorch, the default), ``"torch_cluster"`` or ``"pyg_lib"``.

    Returns:
        ``edge_index [2, E]``, row 0 = j (sends), row 1 = i (receives), sorted by i, then j.

    Raises:
        ValueError: unknown backend.
        ImportError: the backend's package is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown neighbour backend {backend!r}: choose from {sorted(BACKENDS)}")
    if batch is None:
        batch = torch.zeros(pos.size(0), dtype=torch.long, device=pos.device)
    if not pos.size(0):
        return batch.new_empty(2, 0)
    with torch.no_grad():
        return BACKENDS[backend](pos, cutoff, batch)


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
