"""HIP-NN in TorchSim: dynamics and relaxation of many structures at once.

>>> import torch_sim as ts  # doctest: +SKIP
>>> model = TorchSimModel("runs/md17")  # doctest: +SKIP
>>> ts.optimize(molecules, model, optimizer=ts.optimizers.fire)  # doctest: +SKIP

Written for ``torch-sim-atomistic`` 0.3.0, the last for Python 3.11, whose states have one ``pbc``
for all three directions: a slab or a wire becomes a molecule there. In later versions ``pbc`` is a
tensor of three; both are understood here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.checks import MIN_DISTANCE, StructureError, check_graphs
from hipnn_pyg.graph import image_shift, radius_graph, radius_graph_pbc
from hipnn_pyg.graph.lattice import Lattice, read_lattice
from hipnn_pyg.interfaces.loading import load_potential
from hipnn_pyg.models.files import member_folders
from hipnn_pyg.models.forces import copies
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.neighborhood import Neighborhood, neighborhood
from hipnn_pyg.models.potential import HIPNNPotential
from hipnn_pyg.models.pretrained import model_folder
from hipnn_pyg.units import ENERGY_UNITS

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ImportError(f'TorchSim: {error}; pip install "hipnn_pyg[sim]"') from error


class Searched(NamedTuple):
    """Pairs of a batch, and what they were searched for.

    Attributes:
        near: the pairs within cutoff + skin.
        lattice: None where nothing is periodic.
        z: atomic numbers, ``[N]``.
        batch: structure of each atom, ``[N]``.
        pos: positions in Å, ``[N, 3]``.
        cell: lattice vectors in rows, Å, ``[G, 3, 3]``.
        pbc: periodic directions, ``[3]``.
    """

    near: Neighborhood
    lattice: Lattice | None
    z: Tensor
    batch: Tensor
    pos: Tensor
    cell: Tensor
    pbc: Tensor

    def unwrapped(self, pos: Tensor) -> Tensor:
        """The images of atoms that are nearest to where the atoms were, ``[N, 3]`` in Å."""
        if self.lattice is None:
            return pos
        inverse = self.lattice.inverse[self.batch]
        crossed = torch.einsum("nx,nxa->na", pos - self.pos, inverse).round()
        return pos - image_shift(crossed, self.lattice.vectors, self.batch)


class TorchSimModel(ModelInterface):
    """A model for ``torch_sim.integrate``, ``optimize`` and ``static``: eV, Å, eV/Å^3.

    Besides ``energy``, ``forces`` and ``stress`` results hold ``energies`` (per atom) and
    ``nonhierarchicality`` (R, Eq. 18). Pairs are searched with a margin and kept while no atom has
    moved by half of it, wrapped or not.

    Args:
        model: a model or its file. A model is copied.
        device: where it runs.
        dtype: of states and results; float64 costs little.
        network_dtype: of the network; None for the model's own.
        compute_stress: give the stress too; states must then be periodic.
        skin: margin in Å; results do not depend on it.
        i_know: use the model although its file says that it is no potential.
        min_distance: atoms closer than this (Å) are an error.

    Raises:
        ModelFileError: a model file that cannot be read.
        NotAPotentialError: see :func:`hipnn_pyg.interfaces.loading.check_is_potential`.
        SelfCheckError: see :func:`~hipnn_pyg.models.self_check.self_check`.
        ValueError: an ensemble, a model whose energy unit is unknown, or a negative skin.
    """

    def __init__(
        self,
        model: HIPNN | str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        network_dtype: torch.dtype | str | None = None,
        compute_stress: bool = False,
        skin: float = 0.5,
        i_know: bool = False,
        min_distance: float = MIN_DISTANCE,
    ) -> None:
        super().__init__()
        if not skin >= 0:
            raise ValueError(f"skin must be a length >= 0 in Å, not {skin}")
        self._device, self._dtype = torch.device(device), dtype
        self._compute_stress, self._compute_forces = compute_stress, True
        if not isinstance(model, HIPNN) and len(member_folders(model_folder(model))) > 1:
            raise ValueError(
                f"{model} is an ensemble, and TorchSimModel runs one model: give the folder of a "
                "member, or take hipnn_pyg.interfaces.ase.HIPNNCalculator"
            )
        energies = load_potential(model, device, network_dtype, i_know)
        self.potential = HIPNNPotential(energies, min_distance=min_distance)
        self.to_ev = ENERGY_UNITS[energies.energy_unit]
        self.skin, self.searches = skin, 0
        self._searched: Searched | None = None

    @property
    def compute_stress(self) -> bool:
        """Whether the stress is given too; may be set."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        self._compute_stress = compute_stress

    @torch.inference_mode(False)  # whose tensors no later derivative could use
    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Energies, forces and stress of all structures of a state.

        Args:
            state: a ``SimState``; it is not changed.

        Returns:
            ``energy`` ``[G]`` in eV, ``forces`` ``[N, 3]`` in eV/Å, ``energies`` ``[N]``,
            ``nonhierarchicality`` ``[G]`` and, if asked for, ``stress`` ``[G, 3, 3]`` in eV/Å^3
            (ASE's sign), in the model's ``dtype``.

        Raises:
            StructureError: bad input, see :mod:`hipnn_pyg.checks`, or the stress of structures
                that are not periodic.
        """
        z, batch, pos, cell, pbc = copies(
            state.atomic_numbers,
            state.system_idx,
            state.positions.detach().double(),
            state.row_vector_cell.detach().double(),
            torch.as_tensor(state.pbc, device=state.positions.device).expand(3),
        )
        if self._compute_stress and not bool(pbc.all()):
            raise StructureError(
                f"stress needs periodicity in all three directions, not pbc {pbc.tolist()}: take "
                "TorchSimModel(..., compute_stress=False)"
            )
        searched = self._searched
        if searched is None or not self._holds(searched, z, batch, pos, cell, pbc):
            searched = self._search(z, batch, pos, cell, pbc)
        full = cell if self._compute_stress else None
        result = self.potential.evaluate(searched.near, searched.unwrapped(pos), full)
        values = {
            "energy": result.energy[:, 0],
            "forces": result.forces,
            "energies": result.energies,
            "stress": result.stress,
        }
        given = {k: (v * self.to_ev).to(self._dtype) for k, v in values.items() if v is not None}
        return {**given, "nonhierarchicality": result.nonhierarchicality.to(self._dtype)}

    def _holds(
        self, old: Searched, z: Tensor, batch: Tensor, pos: Tensor, cell: Tensor, pbc: Tensor
    ) -> bool:
        """Whether the last search still has every pair within the cutoff."""
        now = (z, batch, cell, pbc)
        before = (old.z, old.batch, old.cell, old.pbc)
        if not all(torch.equal(a, b) for a, b in zip(before, now, strict=True)):
            return False
        moved = old.unwrapped(pos) - old.pos
        return bool(4 * moved.square().sum(1).max() < self.skin**2)

    def _search(self, z: Tensor, batch: Tensor, pos: Tensor, cell: Tensor, pbc: Tensor) -> Searched:
        model, self._searched = self.potential.model, None
        check_graphs(z, pos, batch)
        num_graphs, reach = int(batch[-1]) + 1, model.cutoff + self.skin
        shift = lattice = None
        if bool(pbc.any()):
            lattice = read_lattice(cell, pbc, num_graphs, pos)
            edges, shift = radius_graph_pbc(pos, reach, cell, pbc, batch, model.backend)
        else:
            edges = radius_graph(pos, reach, batch, model.backend)
        near = neighborhood(model, z, pos, batch, num_graphs, edges, shift)
        self.searches += 1
        self._searched = Searched(near, lattice, z, batch, pos, cell, pbc)
        return self._searched
