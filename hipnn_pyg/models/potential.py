r"""HIP-NN as a potential: energy, forces and stress by one gradient.

.. math:: F_i = -\frac{\partial E}{\partial r_i}, \qquad
    \sigma_{ab} = \frac{1}{|V|} \frac{\partial E}{\partial \varepsilon_{ab}}
    = \frac{1}{|V|} \sum_{j \to i} \frac{\partial E}{\partial r_{ij}}
    \frac{r_{ij,a} r_{ij,b}}{r_{ij}}

:math:`\varepsilon` is a symmetric strain of positions and cell, r -> r (1 + eps). This is ASE's
sign: stress is positive where a crystal is under tension, and the pressure is -tr(sigma) / 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from hipnn_pyg.checks import MIN_DISTANCE, check_distances, check_graphs
from hipnn_pyg.graph import image_shift, radius_graph_pbc
from hipnn_pyg.graph.lattice import lattice_of, read_lattice
from hipnn_pyg.models import direct
from hipnn_pyg.models.forces import (
    both,
    copies,
    gradient,
    graphs_of,
    keeps_graph,
    leaf,
    refuse_beside_data,
)
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.neighborhood import Neighborhood, neighborhood
from hipnn_pyg.nn import nonhierarchicality


class Prediction(NamedTuple):
    """What a potential says about a batch of structures, in the model's energy unit and Å.

    Attributes:
        energy: total energies, float64, ``[G, 1]``.
        forces: -dE/dpos, energy unit / Å, dtype of the positions, ``[N, 3]``.
        stress: dE/d(strain) / volume, energy unit / Å^3, ``[G, 3, 3]``; None unless asked for.
        energies: energy of each atom, float64, ``[N]``.
        nonhierarchicality: R of each structure (Eq. 18), dimensionless, ``[G]``.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None
    energies: Tensor
    nonhierarchicality: Tensor


class HIPNNPotential(nn.Module):
    """HIP-NN as a potential: structures in; energy, forces, stress, atomic energies and R out.

    Args:
        model: the energy model.
        compile: energy and its gradient in one function compiled by torch.compile, without
            breaks in its graph. For predictions only: it cannot be differentiated again.
        min_distance: atoms closer than this (Å) are an error.

    Raises:
        RuntimeError: ``compile`` and this PyTorch cannot compile a gradient.
    """

    def __init__(
        self, model: HIPNN, compile: bool = False, min_distance: float = MIN_DISTANCE
    ) -> None:
        super().__init__()
        self.model = model
        self.min_distance = min_distance
        self.training = model.training  # not its parts: some may have been set apart
        self.compiled: Callable[..., Any] | None = None
        if compile:
            from hipnn_pyg.models.compiled import compiled_gradient  # slow to import

            self.compiled = compiled_gradient(energy_and_pull)

    @property
    def cutoff(self) -> float:
        """R_cut in Å."""
        return self.model.cutoff

    def forward(
        self,
        z: Tensor | Data,
        pos: Tensor | None = None,
        batch: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | bool | None = None,
        edge_index: Tensor | None = None,
        images: Tensor | None = None,
        *,
        stress: bool | None = None,
        create_graph: bool | None = None,
    ) -> Prediction:
        """Energy, forces and stress; r_ij = pos_j - pos_i + images @ cell.

        Args:
            z: atomic numbers ``[N]``, or a PyG ``Data`` or ``Batch`` with z, pos, batch, cell and
                pbc (its ``edge_index``, often chemical bonds, is not looked at).
            pos: positions in Å, wrapped or not, ``[N, 3]``.
            batch: structure of each atom, sorted, ``[N]``; None for one structure.
            cell: lattice vectors in rows, Å, ``[3, 3]``, ``[1, 3, 3]`` or ``[G, 3, 3]``.
            pbc: periodic directions, a bool, ``[3]`` or ``[G, 3]``; None for all where a cell is
                given.
            edge_index: own edges ``[2, E]``, row 0 = j (sends), row 1 = i (receives), that hold
                every pair within the cutoff; longer ones change nothing.
            images: lattice translations of those edges, integers, ``[E, 3]``.
            stress: whether to compute it; None for where every structure is fully periodic.
            create_graph: keep the graph, so that a loss on forces or stress can be
                differentiated; None for ``self.training`` where gradients are enabled.

        Raises:
            StructureError: bad input, see :mod:`hipnn_pyg.checks`.
            ValueError: stress of a structure that is not periodic in three directions, edges
                without their images, or pos, batch, cell or pbc beside a ``Data``.
        """
        num_graphs = None
        if isinstance(z, Data):
            refuse_beside_data(pos=pos, batch=batch, cell=cell, pbc=pbc)
            cell, pbc = lattice_of(z)
            num_graphs = graphs_of(z)
            z, pos, batch = z.get("z"), z.get("pos"), z.get("batch")
        z, pos = both(z, pos)
        shift = None if images is None else images.to(pos)
        check_graphs(z, pos, batch, num_graphs, edge_index, shift)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                pbc = None if pbc is None else torch.as_tensor(pbc)
                given = copies(z, pos, batch, cell, pbc, edge_index, images)
                return self.forward(*given, stress=stress, create_graph=create_graph)
        num_graphs = 1 if batch is None else int(batch[-1]) + 1
        cell, periodic = _periodic(cell, pbc, num_graphs, pos)
        full = bool(periodic.all())
        stress = full if stress is None else stress
        if stress and not full:
            raise ValueError(
                "stress needs a cell and periodicity in all three directions, not pbc "
                f"{periodic.tolist()}: give both, or stress=False"
            )
        if (images is not None) != (edge_index is not None and cell is not None):
            raise ValueError(
                "images belong to your own edge_index of structures with a cell: pass all three, "
                "or no images"
            )
        shift = None
        if cell is not None and edge_index is not None and images is not None:
            graph = None if batch is None else batch[edge_index[1]]
            shift = image_shift(images.to(cell), cell, graph)
        elif cell is not None:
            backend = self.model.backend
            edge_index, shift = radius_graph_pbc(
                pos.detach(), self.cutoff, cell, periodic, batch, backend
            )
        near = neighborhood(self.model, z, pos, batch, num_graphs, edge_index, shift)
        return self.evaluate(near, pos, cell if stress else None, keeps_graph(self, create_graph))

    def evaluate(
        self,
        near: Neighborhood,
        pos: Tensor,
        cell: Tensor | None = None,
        create_graph: bool = False,
    ) -> Prediction:
        """Energy, forces and stress with pairs that are already known.

        Args:
            near: the pairs; all that are within the cutoff at ``pos`` must be among them.
            pos: positions in Å, ``[N, 3]``.
            cell: lattice vectors in rows, Å, ``[G, 3, 3]``, of structures that are periodic in
                all directions; None for no stress.
            create_graph: keep the graph.

        Raises:
            StructureError: two atoms, or periodic images of them, closer than ``min_distance``.
            RuntimeError: a compiled potential asked to keep the graph, or that cannot compile.
        """
        run = self.compiled or energy_and_pull
        terms, r, forces, virial = run(self.model, near, pos, cell is not None, create_graph)
        check_distances(r, self.min_distance, (near.i, near.j))
        energies = terms.sum(1)
        energy = energies.new_zeros(near.num_graphs).index_add(0, near.batch, energies)
        stress = None
        if virial is not None and cell is not None:
            stress = virial / torch.linalg.det(cell).abs()[:, None, None]
        ratio = nonhierarchicality(terms, near.batch, near.num_graphs)
        return Prediction(energy.unsqueeze(1), forces, stress, energies, ratio)


def energy_and_pull(
    model: HIPNN, near: Neighborhood, pos: Tensor, stress: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The energies of all atoms and their one gradient, without checks.

    With dE/dr of every edge the rest is the chain rule: r_ij pulls at i and, oppositely, at j.

    Args:
        model: the energy model.
        near: the pairs.
        pos: positions in Å, ``[N, 3]``.
        stress: whether to compute the last result.
        keep: keep the graph.

    Returns:
        E_i^n ``[N, num_interactions + 1]``, distances ``[E]`` in Å, forces ``[N, 3]``, dE/d(strain)
        ``[G, 3, 3]`` or None.

    Raises:
        RuntimeError: the energies do not depend on positions in autograd.
    """
    with torch.enable_grad():
        r_ij = near.vectors(pos if keep else pos.detach())
        r = leaf(torch.linalg.vector_norm(r_ij, dim=1), keep)
        pairs = near.at(r)
        if not keep and pairs.pattern is not None and direct.serves(model):
            terms, passes = direct.forward(model, near.species, pairs, False)
            slope = direct.distance_slopes(model, passes, torch.ones_like(terms)).to(r.dtype)
        else:
            terms, _ = model.atom_terms(near.species, pairs)
            (slope,) = gradient(terms, (r,), keep, isolated=r.numel() == 0)
        pull = (slope / r).unsqueeze(1) * r_ij
        forces = near.per_atom(pull)
        virial = near.virial(pull, r_ij) if stress else None
    if keep:
        return terms, r, forces, virial
    virial = None if virial is None else virial.detach()
    return terms.detach(), r.detach(), forces.detach(), virial


def _periodic(
    cell: Tensor | None, pbc: Tensor | bool | None, num_graphs: int, pos: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Checked cells ``[G, 3, 3]``, None where nothing is periodic, and directions ``[G, 3]``."""
    if cell is None and pbc is None:
        return None, torch.zeros(num_graphs, 3, dtype=torch.bool)
    checked = read_lattice(cell, pbc, num_graphs, pos)
    if cell is None or not bool(checked.pbc.any()):
        return None, checked.pbc
    return cell.to(pos).reshape(-1, 3, 3).expand(num_graphs, 3, 3), checked.pbc
