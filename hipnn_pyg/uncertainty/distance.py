r"""How far a structure is from the training data: Mahalanobis distances of its atoms' features.

.. math:: d_i = \sqrt{\tfrac{1}{D} (z_i - m_s)^T C_s^{-1} (z_i - m_s)}

:math:`z_i` are the features of atom i after every block, side by side, D = N_interaction N_feature
of them; :math:`m_s` and :math:`C_s` are mean and covariance over the training atoms of its species
s. A training atom has d of about 1; a molecule has the distance of its furthest atom. Lee, Lee,
Lee and Shin (NeurIPS 2018, arXiv:1807.03888) tell foreign input of classifiers this way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hipnn_pyg.data.packed import MoleculeBatch, PackedMolecules, edges_of
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.models.neighborhood import Neighborhood

RIDGE = 1e-4
"""Added to the covariance's diagonal, relative to its mean variance: no direction is free of it."""
ROUNDING = 1e-6
"""Features that differ by this share of their size are as good as equal, as those of lone atoms."""


@contextmanager
def recorded_features(model: HIPNN) -> Iterator[list[Tensor]]:
    """The features that every block computes inside, dimensionless, each ``[N, hidden_channels]``.

    Args:
        model: the model; calls of it inside the ``with`` append to the list.
    """
    found: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, __, output: found.append(output[0].detach()))
        for block in model.blocks
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def atom_features(
    model: HIPNN, molecules: PackedMolecules, batch_size: int = 256
) -> Iterator[tuple[MoleculeBatch, Tensor]]:
    """Mini-batches with the features of their atoms, float64, ``[N, D]``.

    Args:
        model: the model, in evaluation mode.
        molecules: packed molecules.
        batch_size: molecules per mini-batch.
    """
    molecules = molecules.to(model.reference.weight.device).with_edges(model.cutoff)
    for index in torch.arange(len(molecules)).split(batch_size):
        batch = molecules.gather(index)
        with recorded_features(model) as features:
            edge_index, shift = edges_of(batch)
            model.energy_terms(batch.z, batch.pos, batch.batch, edge_index, shift, index.numel())
        yield batch, torch.cat(features, dim=1).double()


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of the training atoms' features, one of each per species.

    Attributes:
        species: atomic numbers, ``[S]``.
        mean: m_s, float64, ``[S, D]``.
        whitening: triangular W_s with W_s W_s^T = C_s^-1, float64, ``[S, D, D]``.
        counts: training atoms of each species, ``[S]``; fewer than two say nothing.
    """

    species: Tensor
    mean: Tensor
    whitening: Tensor
    counts: Tensor

    @classmethod
    def fit(cls, model: HIPNN, molecules: PackedMolecules) -> FeatureStatistics:
        """From training molecules, in one pass.

        The covariance of n atoms is shrunk to its diagonal by D / (n + D), so that a rare species
        has one that can be inverted.

        Args:
            model: the model, in evaluation mode.
            molecules: its training molecules, or many of them.
        """
        species = torch.tensor(model.species, device=model.reference.weight.device)
        counts = torch.zeros(len(species), dtype=torch.int64)
        first: Tensor | None = None
        for batch, features in atom_features(model, molecules):
            if first is None:  # sums are taken around an atom of the data, where they are small
                first = features[0].clone()
                total = features.new_zeros(len(species), len(first))
                square = features.new_zeros(len(species), len(first), len(first))
            for s, number in enumerate(species):
                x = features[batch.z == number] - first
                counts[s] += len(x)
                total[s] += x.sum(0)
                square[s] += x.T @ x
        assert first is not None
        n = counts.to(total).clamp(min=2)[:, None]
        mean = total / n
        covariance = (square - n[:, None] * mean[:, :, None] * mean[:, None, :]) / (n - 1)[:, None]
        mean = mean + first
        each = zip(covariance, mean, counts, strict=True)
        whitening = torch.stack([_whitening(c, m, int(k)) for c, m, k in each])
        return cls(species.cpu(), mean.cpu(), whitening.cpu(), counts)

    def atom_distances(self, z: Tensor, features: Tensor) -> Tensor:
        """Distance of each atom, ``[N]``; infinite for species without two training atoms.

        Args:
            z: atomic numbers, ``[N]``.
            features: of every block, side by side, ``[N, D]``.
        """
        distance = features.new_full((len(z),), torch.inf, dtype=torch.float64)
        for s in (self.counts > 1).nonzero()[:, 0].tolist():
            atoms = z == int(self.species[s])
            x = features[atoms].double() - self.mean[s].to(features.device)
            y = x @ self.whitening[s].to(features.device)
            distance[atoms] = y.square().mean(1).sqrt()
        return distance

    def distances(self, model: HIPNN, molecules: PackedMolecules) -> Tensor:
        """Distance of each molecule, that of its furthest atom, on the CPU, ``[M]``.

        Args:
            model: the model, in evaluation mode.
            molecules: packed molecules.
        """
        parts = []
        for batch, features in atom_features(model, molecules):
            atoms = self.atom_distances(batch.z, features)
            parts.append(_furthest(atoms, batch.batch, len(batch.ptr) - 1).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def distances_near(self, model: HIPNN, near: Neighborhood, pos: Tensor) -> Tensor:
        """Distance of each structure whose neighbours are known, periodic or not, ``[G]``.

        Costs one pass through the network: a potential's own gives no features.

        Args:
            model: the model, in evaluation mode.
            near: the pairs.
            pos: positions in Å, ``[N, 3]``.
        """
        pairs = near.at(torch.linalg.vector_norm(near.vectors(pos), dim=1))
        with recorded_features(model) as features:
            model.atom_terms(near.species, pairs)
        z = torch.tensor(model.species, device=pos.device)[near.species]
        return _furthest(
            self.atom_distances(z, torch.cat(features, 1)), near.batch, near.num_graphs
        )


def _furthest(atoms: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """The largest value of each graph, ``[G]``."""
    return atoms.new_zeros(num_graphs).scatter_reduce(0, batch, atoms, "amax")


def _whitening(covariance: Tensor, mean: Tensor, count: int) -> Tensor:
    """W with W W^T = C^-1 of the regularised covariance, lower triangular transposed."""
    size = len(covariance)
    shrink = size / (count + size)
    variances = covariance.diagonal().clamp(min=0)
    ridge = RIDGE * variances.mean() + ROUNDING**2 * mean.square().mean()
    regular = (1 - shrink) * covariance + torch.diag(shrink * variances + ridge)
    lower = torch.linalg.cholesky(regular)
    identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, identity, upper=False).T.contiguous()
