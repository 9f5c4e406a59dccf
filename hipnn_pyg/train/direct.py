"""The loss and its gradient by the CPU kernels alone, see :mod:`hipnn_pyg.models.direct`."""

from __future__ import annotations

import torch
from torch import Tensor

from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.models import direct
from hipnn_pyg.models.hipnn import all_pairs
from hipnn_pyg.ops import cpu
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms


class DirectGradient:
    """The loss of a mini-batch and its gradient, for a loss whose model has the CPU kernels.

    Args:
        loss: the loss; the gradient is taken in the parameters that its model learns.
        vector: these parameters, one after the other, ``[P]``.
        penalised: 1 for those that enter the L2 term, else 0, ``[P]``.
    """

    def __init__(self, loss: HIPNNLoss, vector: Tensor, penalised: Tensor) -> None:
        self.loss, self.vector, self.penalised = loss, vector.detach(), penalised
        self.gradient, self.slopes = direct.gradient_parts(loss.model)
        self.weights = direct.block_weights(loss.model)
        self.decay = torch.empty_like(self.gradient)

    @staticmethod
    def serves(loss: HIPNNLoss) -> bool:
        """Whether the model has the CPU kernels and all weights of its layers are learned."""
        return (
            type(loss) is HIPNNLoss
            and direct.serves(loss.model)
            and all(
                parameter.requires_grad
                for block in loss.model.blocks
                for part in (block.interaction, block.onsite)
                for parameter in part.parameters()
            )
        )

    @torch.no_grad()
    def __call__(self, batch: MoleculeBatch) -> tuple[LossTerms, Tensor]:
        """The loss and its gradient ``[P]``.

        Args:
            batch: checked molecules.
        """
        model = self.loss.model
        pos = batch.pos.to(self.vector.dtype)
        pairs = all_pairs("fused", pos, batch.batch, batch.ptr, batch.max_atoms, batch.num_edges)
        species = model.species_index(batch.z)
        terms, passes = direct.forward(model, species, pairs, True, self.weights)
        sums, error = cpu.error_sums(terms, batch.ptr, batch.target)
        weights = torch.mul(self.penalised, self.vector, out=self.decay)
        l2 = torch.linalg.vector_norm(weights).square()
        count = batch.target.numel()
        found = self.loss.terms(torch.cat((sums, sums.new_full((1,), count))), l2)
        dsums = self.loss.slopes(found, count)
        dterms = cpu.error_sums_backward(terms, batch.ptr, error, dsums)
        direct.backward(model, passes, dterms, self.slopes)
        return found, torch.add(self.gradient, weights, alpha=2 * self.loss.lambda_l2)
