"""Who neighbours whom, apart from distances: searched once, used for many positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.checks import check_species
from hipnn_pyg.graph import Pairs, sorted_edges
from hipnn_pyg.models.hipnn import HIPNN


class Neighborhood(NamedTuple):
    """The pairs of some structures in the layout of a model's kernel, for any positions near by.

    Attributes:
        species: place of each atom in the model's species list, ``[N]``.
        batch: structure of each atom, ``[N]``.
        num_graphs: G.
        j: sending atom of each edge, ``[E]``.
        i: receiving atom of each edge, ascending, ``[E]``.
        shift: periodic-image vectors in Å, ``[E, 3]``; None without a cell.
        pairs: the kernel's layout; its distances are to be replaced.
        slot: place of each edge in the padded ``[N * K]``; None in the edge layout.
    """

    species: Tensor
    batch: Tensor
    num_graphs: int
    j: Tensor
    i: Tensor
    shift: Tensor | None
    pairs: Pairs
    slot: Tensor | None

    def vectors(self, pos: Tensor) -> Tensor:
        """r_ij = pos_j - pos_i + shift of each edge, ``[E, 3]``, of positions ``[N, 3]`` in Å."""
        r_ij = pos[self.j] - pos[self.i]
        return r_ij if self.shift is None else r_ij + self.shift

    def at(self, r: Tensor) -> Pairs:
        """The kernel's pairs with the distances ``[E]`` in Å."""
        if self.slot is None:
            return self.pairs._replace(r=r)
        padded = r.new_full((self.pairs.r.numel(),), torch.inf).index_put((self.slot,), r)
        return self.pairs._replace(r=padded.view_as(self.pairs.r))

    def per_atom(self, pull: Tensor) -> Tensor:
        """Sum over the edges of what pulls i towards j, and j towards i: ``[E, 3] -> [N, 3]``."""
        zeros = pull.new_zeros(self.species.size(0), 3)
        return zeros.index_add(0, self.i, pull).index_add(0, self.j, pull, alpha=-1)

    def virial(self, pull: Tensor, r_ij: Tensor) -> Tensor:
        """dE/d(strain): sum over the edges of pull times r_ij, symmetric, ``[G, 3, 3]``."""
        outer = pull.unsqueeze(2) * r_ij.unsqueeze(1)  # no matrix product, which may be rounded
        if self.num_graphs == 1:
            product = outer.sum(0, keepdim=True)
        else:
            product = outer.new_zeros(self.num_graphs, 3, 3)
            product = product.index_add(0, self.batch[self.i], outer)
        return 0.5 * (product + product.mT)


def neighborhood(
    model: HIPNN,
    z: Tensor,
    pos: Tensor,
    batch: Tensor | None,
    num_graphs: int,
    edge_index: Tensor | None = None,
    shift: Tensor | None = None,
) -> Neighborhood:
    """Bring edges into the layout of the model's kernel.

    Args:
        model: the energy model.
        z: atomic numbers, ``[N]``.
        pos: positions in Å, ``[N, 3]``.
        batch: structure of each atom, sorted, ``[N]``; None for one structure.
        num_graphs: G.
        edge_index: all pairs within the cutoff, in any order, ``[2, E]``; None to search them in
            structures without a cell.
        shift: their periodic-image vectors in Å, ``[E, 3]``.

    Raises:
        StructureError: an atomic number that the model does not know.
    """
    species = model.species_index(z)
    check_species(z, species >= 0, model.species)
    if batch is None:
        batch = torch.zeros_like(z, dtype=torch.long)
    batch = batch.long()
    if edge_index is not None:
        edge_index, shift = sorted_edges(edge_index, shift)
    with torch.enable_grad():  # the kernels' pattern holds what derivatives need
        pairs = model.pairs(pos.detach(), batch, edge_index)
    shift = None if shift is None else shift.to(pos)
    j, i, slot = pairs.j, pairs.i, None
    if i is None:
        slot = torch.isfinite(pairs.r).flatten().nonzero().squeeze(1)
        j, i = j.flatten()[slot], slot // max(1, pairs.r.size(1))
    return Neighborhood(species, batch, num_graphs, j, i, shift, pairs, slot)
