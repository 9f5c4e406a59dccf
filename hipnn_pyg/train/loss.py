"""The loss, Eqs. 12-18."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.graph import molecule_pairs
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.nn import nonhierarchicality


class LossTerms(NamedTuple):
    """The loss of a mini-batch and its parts, each a float64 scalar.

    Attributes:
        loss: what is minimised (Eq. 14), dimensionless.
        mae: mean absolute error (Eq. 12), energy unit.
        rmse: root-mean-square error (Eq. 13), energy unit.
        l2: L2 regularisation (Eq. 16), dimensionless.
        r: mean non-hierarchicality (Eqs. 17, 18), dimensionless.
    """

    loss: Tensor
    mae: Tensor
    rmse: Tensor
    l2: Tensor
    r: Tensor


def l2_norm(model: HIPNN) -> Tensor:
    r"""Sum of squared weights (Eq. 16): :math:`|w|^2/\sigma_E^2 + |W|^2 + |V|^2 + |\tilde W|^2
    + |\tilde M|^2`.

    :math:`w^n/\sigma_E` is the learned :math:`\tilde w^n`; what is not learned (w^0, the identity
    :math:`\tilde M`) does not enter, nor do biases, mu and sigma.
    """
    learned = (p for p in model.parameters() if p.requires_grad)
    weights = {id(p): p for p in learned}
    for module in model.modules():
        for name in ("bias", "mu", "sigma"):
            weights.pop(id(getattr(module, name, None)), None)
    return torch.stack([w.square().sum() for w in weights.values()]).sum()


class HIPNNLoss(nn.Module):
    r"""The loss of a mini-batch (Eq. 14).

    .. math:: L = \frac{\mathrm{MAE} + \mathrm{RMSE}}{\sigma_E} + \lambda_{L2} (\ldots)
        + \lambda_R \langle R \rangle

    Errors are formed on E - E^0 in float64. No checks run inside: the step compiles and captures.

    Args:
        model: the model.
        lambda_l2: weight of the L2 term.
        lambda_r: weight of the R term; ignored without hierarchy (Table II).
    """

    def __init__(self, model: HIPNN, lambda_l2: float = 1e-6, lambda_r: float = 1e-2) -> None:
        super().__init__()
        self.model = model
        self.lambda_l2 = lambda_l2
        self.lambda_r = lambda_r if model.hierarchical else 0.0

    def forward(self, batch: MoleculeBatch) -> LossTerms:
        """The loss of a packed mini-batch of checked molecules."""
        pairs = molecule_pairs(batch.pos, batch.batch, batch.ptr, batch.max_atoms)
        species = self.model.species_index(batch.z)
        terms, _ = self.model.atom_terms(species, pairs)
        num_graphs = batch.target.numel()
        per_graph = terms.new_zeros(num_graphs, terms.size(1)).index_add(0, batch.batch, terms)
        error = per_graph[:, 1:].sum(1) - (batch.target - per_graph[:, 0])
        r = nonhierarchicality(terms, batch.batch, num_graphs).mean()
        mae = error.abs().mean()
        rmse = torch.linalg.vector_norm(error) / num_graphs**0.5
        l2 = l2_norm(self.model)
        loss = (mae + rmse) / self.model.reference.sigma_e
        loss = loss + self.lambda_l2 * l2 + self.lambda_r * r
        return LossTerms(loss, mae, rmse, l2, r)
