"""The whole network and the gradient of the loss in one call of ``network.h``, on a CPU."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.ops import cpu
from hipnn_pyg.ops.operands import Weights


class _Memory:
    """What is kept from call to call: fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self.bytes = torch.empty(0, dtype=torch.uint8)


_lock = threading.Lock()
_shared: weakref.WeakValueDictionary[str, _Memory] = weakref.WeakValueDictionary()
"""The one memory that all networks use in turns, so that it stays in the processor's caches."""


class Structures(NamedTuple):
    """Structures as the kernels take them.

    Attributes:
        z: atomic numbers, int64, ``[N]``.
        ptr: first atom of each molecule and, last, N; ``[G + 1]``.
        pos: positions in Å, ``[N, 3]``, of molecules whose pairs are all; else None.
        r: distances of the edges in Å, ``[E]``; None for molecules.
        row: where each receiver's edges begin, ``[N + 1]``; None for molecules.
        j: senders, ``[E]``; None for molecules.
    """

    z: Tensor
    ptr: Tensor
    pos: Tensor | None
    r: Tensor | None = None
    row: Tensor | None = None
    j: Tensor | None = None


class Zeroth(NamedTuple):
    """E^0 and the energy scale, float64, in the energy unit.

    Attributes:
        place: of each atomic number in the species list; the last entry is that of all beyond.
        weight: w^0, ``[species]``.
        bias: b^0, ``[1]``.
        sigma_e: sigma_E, a scalar.
    """

    place: Tensor
    weight: Tensor
    bias: Tensor
    sigma_e: Tensor


class Parameters(NamedTuple):
    """All weights one after the other, each ``[P]``.

    Attributes:
        gradient: what the slopes are parts of.
        vector: the weights.
        penalised: 1 for those that enter the L2 term, else 0.
        total: where the gradient of the loss goes.
    """

    gradient: Tensor
    vector: Tensor
    penalised: Tensor
    total: Tensor


class Network:
    """Eqs. 3-11 and the sums of Eqs. 12, 13 and 18 over molecules, and their gradient.

    Each thread takes molecules of its own through all layers and back: for many small molecules
    that is faster than layer after layer.

    Args:
        cutoffs: R_cut in Å of each order.
        weights: of each order mu, sigma, V, w, b and the dense weights
            (:class:`hipnn_pyg.ops.operands.Weights`); read where they lie.
        slopes: where the gradients of each order go: in mu, sigma, V, all dense weights one after
            the other, w and b; the last two may be None.
    """

    def __init__(
        self,
        cutoffs: Sequence[float],
        weights: Sequence[Sequence[Tensor | None]],
        slopes: Sequence[Sequence[Tensor | None]],
    ) -> None:
        V, first = weights[0][2], weights[0][5:]
        assert V is not None
        nu, species, out = V.shape
        self._dtype, self._sizes = V.dtype, (species, out, nu, len(first) // 5, len(cutoffs))
        self._cutoffs = (ctypes.c_double * len(cutoffs))(*cutoffs)
        self._weights = Weights([w for order in weights for w in order])
        self._slopes = Weights([slope for order in slopes for slope in order])
        with _lock:
            self._memory = _shared.setdefault("memory", _Memory())

    def learn(
        self,
        zeroth: Zeroth,
        structures: Structures,
        target: Tensor,
        parameters: Parameters,
        lambda_l2: float,
        lambda_r: float,
    ) -> list[Tensor]:
        """The loss (Eq. 14) and its gradient, to ``parameters.total``.

        Args:
            zeroth: E^0 and sigma_E.
            structures: atoms and pairs.
            target: energies, float64, ``[G]``.
            parameters: all weights; their gradient without the L2 term has the slopes as parts.
            lambda_l2: weight of the L2 term.
            lambda_r: weight of the R term.

        Returns:
            The loss, MAE, RMSE, L2 term and mean R, float64 scalars.
        """
        place, *others = zeroth
        numbers = (structures.z.numel(), target.numel(), *self._sizes)
        sizes = (ctypes.c_int64 * 9)(*numbers, place.numel() - 1, parameters.total.numel())
        found = [target.new_empty(()) for _ in range(5)]
        tables = (sizes, self._cutoffs, self._weights.addresses, self._slopes.addresses)
        given = (*tables, *structures, place, *others, target, *found, *parameters)
        weights = (float(lambda_l2), float(lambda_r))
        with _lock:
            while True:
                room = self._memory.bytes
                needed = cpu.call("learn", self._dtype, *given, room, room.numel(), *weights)
                if needed <= room.numel():
                    return found
                self._memory.bytes = room = room.new_empty(0)  # the old one goes first
                self._memory.bytes = room.new_empty(needed + needed // 8)
