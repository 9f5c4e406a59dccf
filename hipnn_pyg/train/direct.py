"""The loss and its gradient by the CPU kernels alone: the chain rule written out, a kernel a line.

What autograd does over :mod:`hipnn_pyg.ops.layers`, without its bookkeeping, which at the paper's
mini-batches costs a sixth of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.models.hipnn import Block, all_pairs
from hipnn_pyg.nn import dense_weights
from hipnn_pyg.ops import cpu
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms


class Slopes(NamedTuple):
    """Where the gradients of a block's parameters go: parts of one vector."""

    mu: Tensor
    sigma: Tensor
    V: Tensor
    dense: Tensor  # of all dense layers, one after the other
    w: Tensor
    b: Tensor


class DirectGradient:
    """The loss of a mini-batch and its gradient, for a loss whose model has the CPU kernels.

    Args:
        loss: the loss; the gradient is taken in the parameters that its model learns.
        vector: these parameters, one after the other, ``[P]``.
        penalised: 1 for those that enter the L2 term, else 0, ``[P]``.
    """

    def __init__(self, loss: HIPNNLoss, vector: Tensor, penalised: Tensor) -> None:
        self.loss, self.vector, self.penalised = loss, vector.detach(), penalised
        self.gradient, self.decay = torch.zeros_like(penalised), torch.empty_like(penalised)
        self.start: dict[Tensor, int] = {}
        end = 0
        for parameter in loss.parameters():
            if parameter.requires_grad:
                self.start[parameter] = end
                end += parameter.numel()
        blocks = loss.model.blocks
        self.dense = [dense_weights(block.interaction, [*block.onsite]) for block in blocks]
        self.slopes = [self._slopes(*of) for of in zip(blocks, self.dense, strict=True)]

    @staticmethod
    def serves(loss: HIPNNLoss) -> bool:
        """Whether the model has the CPU kernels and all weights of its layers are learned."""
        return loss.kernel == "fused" and all(
            parameter.requires_grad and cpu.takes(parameter)
            for block in loss.model.blocks
            for part in (block.interaction, block.onsite)
            for parameter in part.parameters()
        )

    def _slopes(self, block: Block, dense: Sequence[Tensor | None]) -> Slopes:
        def part(*parameters: Tensor) -> Tensor:
            first = self.start.get(parameters[0])
            if first is None:  # not learned: its gradient goes nowhere
                return torch.empty_like(parameters[0])
            end = first
            for parameter in parameters:
                assert self.start[parameter] == end, "a block's dense weights must be neighbours"
                end += parameter.numel()
            return self.gradient[first:end]

        functions, readout = block.interaction.sensitivity, block.readout
        return Slopes(
            part(functions.mu),
            part(functions.sigma),
            part(block.interaction.V),
            part(*(weight for weight in dense if weight is not None)),
            part(readout.weight),
            part(readout.bias),
        )

    @torch.no_grad()
    def __call__(self, batch: MoleculeBatch) -> tuple[LossTerms, Tensor]:
        """The loss and its gradient ``[P]``, which the next call overwrites.

        Args:
            batch: checked molecules.
        """
        model = self.loss.model
        sigma_e, cutoff = model.sigma_e, model.cutoff
        pos = batch.pos.to(self.vector.dtype)
        pairs = all_pairs("fused", pos, batch.batch, batch.ptr, batch.max_atoms, batch.num_edges)
        species = model.species_index(batch.z)
        z = model.one_hot(species)
        terms, kept = [model.reference(species)], []
        for block, dense in zip(model.blocks, self.dense, strict=True):
            layer, readout = block.interaction, block.readout
            where = (pairs.pattern, cutoff, pairs.r, layer.sensitivity.mu, layer.sensitivity.sigma)
            received = cpu.interact(*where, z, layer.V)
            result, activations, between = cpu.dense(z, received, dense, True)
            terms.append(cpu.readout(result, readout.weight, readout.bias, sigma_e))
            kept.append((where, layer.V, z, dense, activations, between, result, readout.weight))
            z = result
        every = torch.stack(terms, dim=1)
        sums, error = cpu.error_sums(every, batch.ptr, batch.target)
        weights = torch.mul(self.penalised, self.vector, out=self.decay)
        found, dsums = self._head(
            sums, batch.target.numel(), torch.linalg.vector_norm(weights).square()
        )

        dterms = cpu.error_sums_backward(every, batch.ptr, error, dsums).t().contiguous()
        dz: Tensor | None = None
        for n in range(len(kept) - 1, -1, -1):
            where, V, z, dense, activations, between, result, w = kept[n]
            to = self.slopes[n]
            dresult = torch.empty_like(result)
            cpu.readout_backward(result, w, dterms[n + 1], sigma_e, dresult, to.w, to.b)
            if dz is not None:
                dresult += dz
            dz = torch.empty_like(z) if n else None
            dreceived = cpu.dense_backward(z, dense, activations, between, dresult, dz, to.dense)
            sent = None if dz is None else torch.empty_like(z)
            cpu.interact_backward(*where, z, V, dreceived, (None, to.mu, to.sigma, sent, to.V))
            if dz is not None:
                dz += sent
        return found, self.gradient.add_(weights, alpha=2 * self.loss.lambda_l2)

    def _head(self, sums: Tensor, count: int, l2: Tensor) -> tuple[LossTerms, Tensor]:
        """The loss from its sums, and its gradient in them."""
        with torch.enable_grad():
            sums = torch.cat((sums, sums.new_full((1,), count))).requires_grad_()
            terms = self.loss.terms(sums, l2)
            (slopes,) = torch.autograd.grad(terms.loss, sums)
        return LossTerms(*(term.detach() for term in terms)), slopes[:3]
