"""The loss and its gradient by the kernels alone, see :mod:`hipnn_pyg.models.direct`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.graph import Pairs
from hipnn_pyg.models import direct
from hipnn_pyg.ops import cpu
from hipnn_pyg.ops.network import Network, Parameters, Structures
from hipnn_pyg.train.force_loss import (
    HIPNNForceLoss,
    PairForces,
    component_sums,
    force_errors,
    stress_errors,
    stress_sums,
)
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms, batch_pairs, is_searched
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

    @cached_property
    def network(self) -> Network:
        """All layers in one call."""
        return direct.network(self.weights, self.slopes)

    @classmethod
    def serves(cls, loss: HIPNNLoss) -> bool:
        """Whether the model has the kernels, its blocks are alike, and all weights of its layers
        are learned, E^0 not, each readout as a whole or not, and none shared."""
        if type(loss) not in cls.losses or not direct.serves(loss.model):
            return False
        blocks, reference = loss.model.blocks, loss.model.reference
        named = loss.model.named_parameters(remove_duplicate=False)
        shapes = {(b.interaction.V.shape[::2], len(b.onsite)) for b in blocks}
        return (
            len(shapes) == 1
            and len([*named]) == len([*loss.model.parameters()])
            and all(e0.dtype == torch.float64 for e0 in reference.state_dict().values())
            and not any(e0.requires_grad for e0 in reference.parameters())
            and all(b.readout.weight.requires_grad == b.readout.bias.requires_grad for b in blocks)
            and all(
                parameter.requires_grad
                for block in blocks
                for part in (block.interaction, block.onsite)
                for parameter in part.parameters()
            )
        )

    def __call__(self, batch: MoleculeBatch) -> tuple[LossTerms, Tensor]:
        """The loss and its gradient ``[P]``.

        Args:
            batch: checked molecules.
        """
        target, ptr = batch.target.double().contiguous(), batch.ptr.long().contiguous()
        batch = batch._replace(z=batch.z.contiguous(), ptr=ptr, target=target)
        if isinstance(self.loss, HIPNNForceLoss):
            return self._penalised(self._of_forces(self.loss, batch))
        if torch.get_num_threads() * batch.max_atoms <= batch.pos.size(0) / 2:
            return self._by_molecules(batch)  # each thread has molecules enough of its own
        return self._penalised(self._by_layers(batch))

    @torch.no_grad()
    def _penalised(self, found: LossTerms) -> tuple[LossTerms, Tensor]:
        """The loss and its gradient with the L2 term, which both still lack."""
        lambda_l2 = self.loss.lambda_l2
        given = (self.gradient, self.vector, self.penalised)
        gradient, l2 = cpu.penalise(*given, factor=2 * lambda_l2)
        l2 = l2.to(found.loss.dtype)
        return found._replace(loss=found.loss + lambda_l2 * l2, l2=l2), gradient

    def _by_molecules(self, batch: MoleculeBatch) -> tuple[LossTerms, Tensor]:
        loss, total = self.loss, self.gradient.new_empty(self.gradient.numel())
        parameters = Parameters(self.gradient, self.vector, self.penalised, total)
        given = (self._structures(batch), batch.target, parameters, loss.lambda_l2, loss.lambda_r)
        return LossTerms(*direct.learn(loss.model, self.network, *given)), total

    def _structures(self, batch: MoleculeBatch) -> Structures:
        z, pos = batch.z, batch.pos.detach()
        z = z if z.dtype == torch.int64 else z.long()
        pos = pos if pos.dtype == self.vector.dtype else pos.to(self.vector.dtype)
        if batch.cells is None and batch.pairs is None and not is_searched(batch):
            return Structures(z, batch.ptr, pos.contiguous())
        pairs = batch_pairs(self.loss.model, "fused", pos, batch)
        assert pairs.pattern is not None
        pattern = pairs.pattern
        return Structures(z, batch.ptr, None, pairs.r.contiguous(), pattern.row, pattern.j)

    @torch.no_grad()
    def _by_layers(self, batch: MoleculeBatch) -> LossTerms:
        terms, passes, _ = self._forward(batch)
        sums, error = cpu.error_sums(terms, batch.ptr, batch.target)
        sums = self._counted(sums, batch)
        found = self.loss.terms(sums, torch.zeros_like(sums[0]))
        dterms = cpu.error_sums_backward(terms, batch.ptr, error, self.loss.slopes(found, sums))
        direct.backward(self.loss.model, passes, dterms, self.slopes)
        return found

    @torch.no_grad()
    def _of_forces(self, loss: HIPNNForceLoss, batch: MoleculeBatch) -> Any:
        terms, passes, pairs = self._forward(batch)
        sums, error = cpu.error_sums(terms, batch.ptr, batch.target)
        slope = direct.distance_slopes(loss.model, passes, torch.ones_like(terms))
        pull = PairForces(pairs, batch.pos.to(self.vector.dtype), batch)
        force_error = force_errors(pull.forces(slope), batch)
        sums = torch.cat((self._counted(sums, batch), component_sums(force_error)))
        if loss.stress:
            stress = pull.stress(slope)
            assert stress is not None
            stress_error = stress_errors(stress, batch)
            sums = torch.cat((sums, stress_sums(stress_error, batch)))
        found: Any = loss.terms(sums, torch.zeros_like(sums[0]))
        dsums = loss.slopes(found, sums)
        dterms = cpu.error_sums_backward(terms, batch.ptr, error, dsums)
        dforces = dsums[3] * force_error.sign() + 2 * dsums[4] * force_error
        dstress = None
        if loss.stress:
            dstress = dsums[5] * stress_error.sign() + 2 * dsums[6] * stress_error
            dstress = dstress.to(self.vector.dtype)
        along = pull.back(dforces.to(self.vector.dtype), dstress)
        direct.force_backward(loss.model, passes, along, dterms, self.slopes)
        return found

    def _forward(self, batch: MoleculeBatch) -> tuple[Tensor, list[direct.BlockPass], Pairs]:
        model = self.loss.model
        pairs = batch_pairs(model, "fused", batch.pos.to(self.vector.dtype), batch)
        species = model.species_index(batch.z)
        return *direct.forward(model, species, pairs, True, self.weights), pairs

    @staticmethod
    def _counted(sums: Tensor, batch: MoleculeBatch) -> Tensor:
        """With the number of molecules, as the loss takes them."""
        return torch.cat((sums, sums.new_full((1,), batch.target.numel())))


class GPUGradient(DirectGradient):
    """The same on a GPU: of energies, also for mini-batches of fixed shape."""

    losses = (HIPNNLoss, StaticLoss)

    def __init__(self, loss: HIPNNLoss, vector: Tensor, penalised: Tensor) -> None:
        super().__init__(loss, vector, penalised)
        self.decay = torch.empty_like(self.gradient)

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
        pairs = batch_pairs(model, "fused", batch.pos.to(self.vector.dtype), batch)
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
