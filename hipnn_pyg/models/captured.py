"""Energies as one CUDA graph: those of few molecules are sooner computed than launched."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.checks import check_distances, check_graphs, check_species
from hipnn_pyg.graph import Pairs
from hipnn_pyg.models import direct
from hipnn_pyg.models.hipnn import HIPNN, SEARCH_BEYOND
from hipnn_pyg.ops.cuda_graph import record
from hipnn_pyg.ops.devices import molecule_kernels

MOST_ATOMS = 2**15
"""Of a batch; more keep a GPU busy, and a graph keeps the memory that it was recorded with."""


class Room(NamedTuple):
    """What a graph has been recorded for.

    Attributes:
        atoms: A, more than a batch has: the last one is padding.
        edges: E, pairs inside the molecules, each in both directions.
        graphs: G, molecules.
        largest: atoms of the largest molecule.
        dtype: of the positions.
        products: how matrix products are computed, see :mod:`hipnn_pyg.nn.precision`.
    """

    atoms: int
    edges: int
    graphs: int
    largest: int
    dtype: torch.dtype
    products: str

    def holds(self, other: Room) -> bool:
        """Whether there is room for a batch, and not far too much."""
        enough = all(mine >= its for mine, its in zip(self[:4], other[:4], strict=True))
        return enough and self.atoms <= 2 * other.atoms and self[4:] == other[4:]


def rounded(size: int) -> int:
    """The next number with at most four binary digits: few sizes, at most an eighth too large."""
    unit = 1 << max(size.bit_length() - 4, 0)
    return -(-size // unit) * unit


class CapturedEnergies:
    """The energies of a model for repeated calls, without derivatives: ``CapturedEnergies(model)``
    is called as the model is and gives the same.

    On a GPU the whole prediction, neighbours included, is recorded as a CUDA graph for each of a
    few sizes, to which batches are padded; padding has no pairs and no energy. Recording takes a
    fraction of a second and happens at the first batch of a size. Elsewhere the model is simply
    called, also where a molecule has more than 64 atoms, a batch more than 32,768, or a layer is
    not the package's own.

    Weights may change in place, move or be replaced. What happens to the layers themselves after
    the first call (others, hooks) is not seen: make a new one.

    Args:
        model: its checks (``validate``), kernel and precision count as they are in each call.
    """

    def __init__(self, model: HIPNN) -> None:
        self.model = model
        self._recorded: dict[Room, Recorded] = {}
        self._where: tuple[torch.cuda.Stream, Any] | None = None  # and memory of all graphs
        self._held: list[dict[str, Any]] = []  # weights and buffers, by module
        self._places: list[int] = []

    def __call__(
        self, z: Tensor, pos: Tensor, batch: Tensor | None = None, num_graphs: int | None = None
    ) -> Tensor:
        """Total energies ``[G, 1]``, of the dtype that the model gives; arguments as in
        :meth:`HIPNN.energy_terms`.

        Raises:
            StructureError: bad input, see :mod:`hipnn_pyg.checks`.
        """
        energy = self.in_float64(z, pos, batch, num_graphs)
        return energy.to(torch.promote_types(pos.dtype, torch.float32))

    @torch.no_grad()
    def in_float64(
        self, z: Tensor, pos: Tensor, batch: Tensor | None = None, num_graphs: int | None = None
    ) -> Tensor:
        """The same with all digits, as ``energy_terms(...).energy``."""
        model, kernels = self.model, self._kernels(z, pos)
        if kernels is None:
            return model.energy_terms(z, pos, batch, num_graphs=num_graphs).energy
        if model.validate:
            check_graphs(z, pos, batch, num_graphs)
        if batch is None:
            batch, num_graphs = torch.zeros_like(z, dtype=torch.long), 1
        if num_graphs is None:
            num_graphs = int(batch[-1]) + 1
        ptr, largest, edges = kernels.sizes(batch, num_graphs)
        if largest > SEARCH_BEYOND:
            return model.energy_terms(z, pos, batch, num_graphs=num_graphs).energy
        if model.validate:
            check_species(z, model.species_index(z) >= 0, model.species)
        how = kernels.products(model.blocks[0].interaction.V)
        room = Room(z.numel() + 1, edges, num_graphs, largest, pos.dtype, how)
        recorded = self._with_room(room, pos.device)
        energy = recorded.energies(z, pos, ptr)
        if model.validate:
            check_distances(recorded.r[:edges])
        return energy.clone().unsqueeze(1)

    def _kernels(self, z: Tensor, pos: Tensor) -> ModuleType | None:
        """The kernels that find the pairs of a batch, if there are such for model and batch."""
        model, kernels = self.model, molecule_kernels(pos)
        if kernels is None or not 0 < z.numel() <= MOST_ATOMS or model.backend != "torch":
            return None
        usual = model.kernel_on(pos.device) == "fused"
        return kernels if usual and (self._is_recorded() or direct.serves(model)) else None

    def _is_recorded(self) -> bool:
        """Whether there are graphs, of weights that are where they were."""
        if self._places != self._addresses():
            self._recorded.clear()
            self._where = None  # weights may be on another GPU now
        return bool(self._recorded)

    def _addresses(self) -> list[int]:
        """Where weights and buffers lie now."""
        return [x.data_ptr() for own in self._held for x in own.values() if x is not None]

    def _with_room(self, room: Room, device: torch.device) -> Recorded:
        """The smallest graph that a batch fits into; recorded now, if there is none."""
        fitting = [own for own in self._recorded if own.holds(room)]
        if fitting:
            return self._recorded[min(fitting)]
        atoms, edges, graphs = (rounded(max(size, 1)) for size in room[:3])
        largest = 1 << (room.largest - 1).bit_length()
        room = Room(atoms, edges, graphs, largest, *room[4:])
        with torch.cuda.device(device):
            self._where = self._where or (torch.cuda.Stream(), torch.cuda.graph_pool_handle())
            self._recorded[room] = Recorded(self.model, room, device, *self._where)
        parts = self.model.modules()
        self._held = [own for part in parts for own in (part._parameters, part._buffers) if own]
        self._places = self._addresses()
        return self._recorded[room]


class Recorded:
    """Energies of batches that fit into a room.

    Args:
        model: the model.
        room: for a batch.
        device: a GPU.
        stream: to record on.
        pool: memory of the graph, which others may share.

    Attributes:
        r: distances of the batch's edges in Å, then inf, ``[E]``.
    """

    def __init__(
        self,
        model: HIPNN,
        room: Room,
        device: torch.device,
        stream: torch.cuda.Stream,
        pool: Any,
    ) -> None:
        self.model, self.room = model, room
        self.index = model._species_index  # the graph reads it even if the model gets another
        self.order = torch.arange(room.graphs, device=device)
        self.z = self.order.new_full((room.atoms,), model.species[0])
        self.pos = torch.zeros(room.atoms, 3, dtype=room.dtype, device=device)
        self.counts, self.start = self.order.new_zeros(2, room.graphs)
        self.step, self.no_target = self.order[:1], torch.zeros(room.graphs, device=device).double()
        self.graph, (self.energy, self.r) = record(self._run, stream, pool=pool)

    def energies(self, z: Tensor, pos: Tensor, ptr: Tensor) -> Tensor:
        """Total energies, float64, ``[G]``; the next call overwrites them.

        Args:
            z: atomic numbers, ``[N]``.
            pos: positions in Å, ``[N, 3]``.
            ptr: first atom of each molecule and, last, N, ``[G + 1]``.
        """
        graphs = ptr.numel() - 1
        self.z[: z.numel()].copy_(z)
        self.pos[: z.numel()].copy_(pos)
        self.start[:graphs].copy_(ptr[:-1])
        torch.sub(ptr[1:], ptr[:-1], out=self.counts[:graphs])
        if graphs < self.room.graphs:
            self.counts[graphs:].zero_()
        self.graph.replay()
        return self.energy[:graphs]

    def _run(self) -> tuple[Tensor, Tensor]:
        from hipnn_pyg.ops import triton_molecules, triton_step  # need Triton

        model, (atoms, edges, graphs, largest, dtype, _) = self.model, self.room
        molecules = (self.z, self.pos, self.counts, self.start, self.no_target)
        sizes = (graphs, largest, atoms, edges, dtype)
        drawn = triton_step.draw(self.order, self.step, molecules, *sizes)
        pairs = Pairs(drawn.pattern.j, drawn.pattern.i, drawn.r, drawn.pattern)
        terms, _ = direct.values(model, model.species_index(drawn.z), pairs)
        energy, _ = triton_molecules.molecule_sums(terms, drawn.batch, graphs)
        return energy, drawn.r
