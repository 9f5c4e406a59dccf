"""Neighbour search by columns of sorted points: time and memory linear in their number.

Space is cut into columns along z, narrower than the cutoff, and the points of each are sorted
along z. The candidates of an atom are then one contiguous run of points in each column near by,
cut at the height where the cutoff sphere leaves that column: about twice the true neighbours.
Only occupied columns are stored, so empty space costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_COLUMNS = 2
"""Width of a column: cutoff / 2. Smaller ones hold fewer wrong candidates but are more to visit."""
_SLICES = 16
"""Height of a slice of a column: cutoff / 16."""


class Block(NamedTuple):
    """Pairs of consecutive receiving atoms, sorted by receiver, then sender.

    Attributes:
        first: the first receiver.
        degree: number of senders of each receiver of the block, int64.
        senders: index of the sending point, ``[sum of degree]``, int32 where it fits.
    """

    first: int
    degree: Tensor
    senders: Tensor

    @property
    def receivers(self) -> Tensor:
        """Index of the receiving atom of each pair, int64."""
        atoms = torch.arange(self.first, self.first + len(self.degree), device=self.degree.device)
        return atoms.repeat_interleave(self.degree, output_size=len(self.senders))


class _Columns(NamedTuple):
    """Points in order of column, then slice; and where each stands.

    Attributes:
        width: width of a column in Å.
        height: height of a slice in Å.
        reach: cutoff in Å, wider by what rounding can do to the places of points.
        within: place of a point inside its column along x and y, 0 to 1, ``[M, 2]``.
        column: number of its column, ``[M]``; ``stride`` further is the next column along x.
        slice: number of its slice, ``[M]``.
        stride: see ``column``.
        layers: numbers of slices that one column can use up.
        occupied: numbers of the columns that hold points, sorted.
        keys: (place of the column in ``occupied``) * layers + slice, sorted, ``[M]``.
        order: the point at each place of ``keys``.
    """

    width: float
    height: float
    reach: float
    within: Tensor
    column: Tensor
    slice: Tensor
    stride: int
    layers: int
    occupied: Tensor
    keys: Tensor
    order: Tensor


def placed(blocks: list[Block]) -> Iterator[tuple[slice, Block]]:
    """Each block and its place among the pairs of all of them.

    The list is emptied meanwhile: blocks and what is made of them never both stand in full.

    Args:
        blocks: in the order of receivers.
    """
    blocks.reverse()
    begin = 0
    while blocks:
        block = blocks.pop()
        here = slice(begin, begin + block.senders.numel())
        yield here, block
        begin = here.stop


def block_size(device: torch.device) -> int:
    """Candidate pairs looked at in one go: few enough for the CPU's cache or the GPU's memory."""
    return 1 << 18 if device.type == "cpu" else 1 << 23


def squared_distance(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """Squared distance between points given by their three coordinates, added in that order.

    All searches compare this number with the squared cutoff, so that they agree to the last bit.
    """
    square = (a[0] - b[0]).square_()
    square += (a[1] - b[1]).square_()
    square += (a[2] - b[2]).square_()
    return square


def near_blocks(
    points: Tensor,
    group: Tensor,
    home: Tensor,
    cutoff: float,
    doubt: float = 0.0,
    settle: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[Block]:
    """All pairs of an atom and another point of its group closer than the cutoff.

    Args:
        points: positions of senders in Å, finite, ``[M, 3]``: atoms and, if any, their images.
        group: structure of each point, ``[M]``; points of different ones are never paired.
        home: the point that is the receiving atom itself, ``[N]``.
        cutoff: in Å.
        doubt: what rounding of ``points`` may add to a distance, Å, less than the cutoff.
        settle: ``(sender, receiver) -> mask``, asked which pairs within ``doubt`` of the cutoff
            are closer.

    Yields:
        Blocks in order of receivers; together they hold every receiver once.
    """
    columns = _columns(points, group, cutoff + doubt)
    limit = block_size(points.device)
    sorted_xyz = tuple(c.contiguous() for c in points[columns.order].unbind(1))
    for atoms in torch.arange(home.numel(), device=home.device).split(max(1, limit // 64)):
        start, length = _runs(columns, home[atoms])
        total = length.sum(1)
        sizes = torch.unique_consecutive(total.cumsum(0) // limit, return_counts=True)[1].tolist()
        parts = (atoms.split(sizes), start.split(sizes), length.split(sizes), total.split(sizes))
        for receivers, first, count, candidates in zip(*parts, strict=True):
            place = _expand(first.flatten(), count.flatten())
            local = torch.arange(receivers.numel(), device=place.device)
            local = local.repeat_interleave(candidates, output_size=place.numel())
            own = home[receivers]
            centre = [c.contiguous() for c in points[own].unbind(1)]
            square = squared_distance(
                tuple(c.index_select(0, place) for c in sorted_xyz),
                tuple(c.index_select(0, local) for c in centre),
            )
            near = (square < (cutoff + doubt) ** 2).nonzero().squeeze(1)
            sender = columns.order.index_select(0, place.index_select(0, near))
            local = local.index_select(0, near)
            keep = sender != own.index_select(0, local)
            if settle is not None:
                unsure = (square[near] >= (cutoff - doubt) ** 2).nonzero().squeeze(1)
                keep[unsure] = settle(sender[unsure], receivers[local[unsure]])
            sender, local = sender[keep], local[keep]
            key = (local * points.size(0) + sender).sort(stable=True).values
            small = torch.int32 if points.size(0) < 2**31 else torch.int64
            degree = torch.bincount(local, minlength=receivers.numel())
            yield Block(int(receivers[0]), degree, (key % points.size(0)).to(small))


def _columns(points: Tensor, group: Tensor, cutoff: float) -> _Columns:
    exact = points.double()
    # What rounding may add to a distance: relative in the dtype, absolute in far places.
    slack = max(1e-6, 8 * torch.finfo(points.dtype).eps)
    reach = cutoff * (1 + slack) + 1e-15 * float(exact.abs().max())
    width, height = reach / _COLUMNS, reach / _SLICES
    scaled = exact[:, :2] / width
    whole = scaled.floor()
    x, y = (_close_gaps(c, _COLUMNS) for c in whole.long().unbind(1))
    slices = _close_gaps((exact[:, 2] / height).floor().long(), _SLICES + 1)
    x = _close_gaps(group * (int(x.max()) + _COLUMNS + 1) + x, _COLUMNS)  # groups never adjoin
    stride = int(y.max()) + 2 * _COLUMNS + 1
    layers = int(slices.max()) + 2 * (_SLICES + 2)
    column = x * stride + y
    occupied, rank = column.unique(return_inverse=True)
    keys, order = (rank * layers + slices).sort(stable=True)
    within = scaled - whole
    return _Columns(
        width, height, reach, within, column, slices, stride, layers, occupied, keys, order
    )


def _close_gaps(values: Tensor, widest: int) -> Tensor:
    """Numbers from 0 in the same order, equally far apart up to ``widest`` and further beyond.

    Their largest is at most (widest + 1) times their count: products of them stay in int64.
    """
    distinct, place = values.unique(return_inverse=True)
    return distinct.diff(prepend=distinct[:1]).clamp_(max=widest + 1).cumsum(0)[place]


def _runs(columns: _Columns, home: Tensor) -> tuple[Tensor, Tensor]:
    """Start and length, in ``columns.order``, of the run of candidates in each column near by.

    Args:
        columns: the sorted points.
        home: points whose neighbours are sought, ``[B]``.

    Returns:
        Two of ``[B, (2 * _COLUMNS + 1)**2]``.
    """
    steps = torch.arange(-_COLUMNS, _COLUMNS + 1, device=home.device)
    step = torch.cartesian_prod(steps, steps)
    # Distance to the nearest side of each column, in widths: 0 along an axis it shares.
    within = columns.within[home].unsqueeze(1)
    ahead, behind = step - within, within - (step + 1)
    gap = torch.maximum(ahead, behind).clamp_(min=0)
    free = columns.reach**2 - columns.width**2 * gap.square().sum(2)
    half = (free.clamp(min=0).sqrt() / columns.height).long() + 1
    target = columns.column[home].unsqueeze(1) + step[:, 0] * columns.stride + step[:, 1]
    rank = torch.searchsorted(columns.occupied, target).clamp_(max=columns.occupied.numel() - 1)
    middle = rank * columns.layers + columns.slice[home].unsqueeze(1)
    start = torch.searchsorted(columns.keys, middle - half)
    end = torch.searchsorted(columns.keys, middle + half + 1)
    reached = (columns.occupied[rank] == target) & (free > 0)
    return start, torch.where(reached, end - start, 0)


def _expand(start: Tensor, length: Tensor) -> Tensor:
    """The numbers start, start + 1, ... of each run, one run after the other."""
    end = length.cumsum(0)
    total = int(end[-1])
    offset = (start - end + length).repeat_interleave(length, output_size=total)
    return torch.arange(total, device=start.device) + offset
