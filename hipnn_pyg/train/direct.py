"""The loss and its gradient by the kernels alone, see :mod:`hipnn_pyg.models.direct`."""

from __future__ import annotations

import torch
from torch import Tensor

from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.models import direct
from hipnn_pyg.ops import cpu
from hipnn_pyg.train.force_loss import (
    HIPNNForceLoss,
    PairForces,
    component_sums,
    force_errors,
    stress_errors,
    stress_sums,
)
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms, batch_pairs
from hipnn_pyg.train.static import StaticLoss


class DirectGradient:
    """The loss of a mini-batch and its gradient, for a loss whose model has the kernels.

    Args:
        loss: the loss; the gradient is taken in the parameters that its model learns.
        vector: these parameters, one after the other, ``[P]``.
        penalised: 1 for those that enter the L2 term, else 0, ``[P]``.
    """

    losses: tuple[type[HIPNNLoss], ...] = (HIPNNLoss, HIPNNForceLoss)
    """Those that it can differentiate."""

    def __init__(self, loss: HIPNNLoss, vector: Tensor, penalised: Tensor) -> None:
        self.loss, self.vector, self.penalised = loss, vector.detach(), penalised
        self.gradient, self.slopes = direct.gradient_parts(loss.model)
        self.weights = direct.block_weights(loss.model)
        self.decay = torch.empty_like(self.gradient)

    @classmethod
    def serves(cls, loss: HIPNNLoss) -> bool:
        """Whether the model has the kernels and all weights of its layers are learned."""
        return (
            type(loss) in cls.losses
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
        model, loss = self.loss.model, self.loss
        pos = batch.pos.to(self.vector.dtype)
        pairs = batch_pairs("fused", pos, batch)
        species = model.species_index(batch.z)
        terms, passes = direct.forward(model, species, pairs, True, self.weights)
        sums, error = cpu.error_sums(terms, batch.ptr, batch.target)
        count = batch.target.numel()
        sums = torch.cat((sums, sums.new_full((1,), count)))
        if isinstance(loss, HIPNNForceLoss):
            slope = direct.distance_slopes(model, passes, torch.ones_like(terms))
            pull = PairForces(pairs, pos, batch)
            force_error = force_errors(pull.forces(slope), batch)
            sums = torch.cat((sums, component_sums(force_error)))
            if loss.stress:
                stress = pull.stress(slope)
                assert stress is not None
                stress_error = stress_errors(stress, batch)
                sums = torch.cat((sums, stress_sums(stress_error, batch)))
        weights = torch.mul(self.penalised, self.vector, out=self.decay)
        l2 = torch.linalg.vector_norm(weights).square()
        found = loss.terms(sums, l2)
        dsums = loss.slopes(found, sums)
        dterms = cpu.error_sums_backward(terms, batch.ptr, error, dsums)
        if isinstance(loss, HIPNNForceLoss):
            dforces = dsums[3] * force_error.sign() + 2 * dsums[4] * force_error
            dstress = None
            if loss.stress:
                dstress = dsums[5] * stress_error.sign() + 2 * dsums[6] * stress_error
                dstress = dstress.to(pos.dtype)
            along = pull.back(dforces.to(pos.dtype), dstress)
            direct.force_backward(model, passes, along, dterms, self.slopes)
        else:
            direct.backward(model, passes, dterms, self.slopes)
        return found, torch.add(self.gradient, weights, alpha=2 * loss.lambda_l2)


class GPUGradient(DirectGradient):
    """The same on a GPU: of energies, also for mini-batches of fixed shape."""

    losses = (HIPNNLoss, StaticLoss)

    def __call__(self, batch: MoleculeBatch) -> tuple[LossTerms, Tensor]:
        """The loss and its gradient ``[P]``; nothing waits for the GPU."""
        found = self.without_l2(batch)
        decay = torch.mul(self.penalised, self.vector, out=self.decay)
        gradient = torch.add(self.gradient, decay, alpha=2 * self.loss.lambda_l2)
        return LossTerms(*found.unbind()), gradient

    @torch.no_grad()
    def without_l2(self, batch: MoleculeBatch) -> Tensor:
        """The loss and its parts, ``[5]``; the gradient without the L2 term's in :attr:`gradient`.

        Args:
            batch: checked molecules, with their pairs or without.
        """
        from hipnn_pyg.ops import triton_step  # needs Triton

        model, loss = self.loss.model, self.loss
        pairs = batch_pairs("fused", batch.pos.to(self.vector.dtype), batch)
        species = model.species_index(batch.z)
        terms, passes = direct.forward(model, species, pairs, True, self.weights)
        found, dterms = triton_step.loss(
            terms,
            batch.ptr,
            batch.batch,
            batch.target,
            model.reference.sigma_e,
            self.vector,
            self.penalised,
            loss.lambda_l2,
            loss.lambda_r,
        )
        direct.backward(model, passes, dterms, self.slopes)
        return found


def direct_gradient(loss: HIPNNLoss, vector: Tensor, penalised: Tensor) -> DirectGradient | None:
    """The direct gradient of a loss, or None if there is none; arguments as there."""
    kind = GPUGradient if vector.is_cuda else DirectGradient
    return kind(loss, vector, penalised) if kind.serves(loss) else None
