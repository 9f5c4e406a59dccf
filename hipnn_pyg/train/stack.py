"""K models of one shape in one pass: stacked parameters, padded mini-batches, one Adam."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.adam import adam

from hipnn_pyg.data.packed import MoleculeBatch, PackedMolecules
from hipnn_pyg.graph import molecule_pairs
from hipnn_pyg.nn import nonhierarchicality
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms
from hipnn_pyg.train.step import TrainingStep, compiled_gradient

StackedGradient = Callable[
    [Tensor, dict[str, Tensor], MoleculeBatch], tuple[tuple[Tensor, ...], Tensor]
]

_STACKED = MoleculeBatch(0, 0, 0, 0, None, None, 0)  # type: ignore[arg-type]
"""Fields of a mini-batch that have a leading dimension K."""


def gather_padded(parts: Sequence[PackedMolecules], indices: Sequence[Tensor]) -> MoleculeBatch:
    """One mini-batch of each of K models, padded to a common number of atoms.

    Padding atoms stand behind the molecules, in a graph G of their own. ``ptr`` says that it is
    empty, so they have no pairs, and only the first G graphs enter the loss.

    Args:
        parts: each model's molecules, on one device.
        indices: each model's mini-batch, int64 on the CPU, ``[G]``, the same G for all.

    Returns:
        The fields of :class:`MoleculeBatch` with a leading dimension K; ``ptr`` is ``[K, G + 2]``.
        ``max_atoms`` and ``num_edges`` are the largest of the K.
    """
    device, index = parts[0].device, torch.stack(list(indices))
    counts = torch.stack([part.counts[i] for part, i in zip(parts, index, strict=True)])
    total, largest = int(counts.sum(1).max()), int(counts.max())
    num_edges = int((counts * (counts - 1)).sum(1).max())

    index, counts = index.to(device), counts.to(device)
    last = counts.cumsum(1)
    ptr = torch.cat((torch.zeros_like(last[:, :1]), last, last[:, -1:]), 1)
    atoms = torch.arange(total, device=device).repeat(len(parts), 1)
    batch = torch.searchsorted(last, atoms, right=True)  # G for padding atoms
    start = torch.stack([part.start[i] for part, i in zip(parts, index, strict=True)])
    offset = torch.cat((start - ptr[:, :-2], start[:, :1]), 1).gather(1, batch)
    # Padding atoms copy the first atom, whose species every model knows.
    source = torch.where(batch < index.size(1), atoms, 0) + offset
    return MoleculeBatch(
        torch.stack([part.z[i] for part, i in zip(parts, source, strict=True)]),
        torch.stack([part.pos[i] for part, i in zip(parts, source, strict=True)]),
        batch,
        ptr,
        largest,
        num_edges,
        torch.stack([part.target[i] for part, i in zip(parts, index, strict=True)]),
    )


class PaddedLoss(HIPNNLoss):
    """:class:`HIPNNLoss` of one model's part of a padded batch, for ``torch.vmap``.

    Pairs are padded, so that no shape depends on the molecules; sums over molecules are a matrix
    product, since ``index_add`` would run as a loop over the models.
    """

    def forward(self, batch: MoleculeBatch, l2: Tensor | None = None) -> LossTerms:
        """The loss; ``l2``, the L2 term, must be given."""
        assert l2 is not None
        pos = batch.pos.to(self.model.blocks[0].interaction.V.dtype)
        pairs = molecule_pairs(pos, batch.batch, batch.ptr, batch.max_atoms)
        terms, _ = self.model.atom_terms(self.model.species_index(batch.z), pairs)
        num_graphs = batch.target.size(0)
        graphs = torch.arange(num_graphs, device=terms.device).unsqueeze(1)
        per_graph = (batch.batch == graphs).to(terms.dtype) @ terms
        error = per_graph[:, 1:].sum(1) - (batch.target - per_graph[:, 0])
        real = torch.where((batch.batch < num_graphs).unsqueeze(1), terms, 0.0)
        together = torch.zeros(terms.size(0), dtype=torch.long, device=terms.device)
        r = nonhierarchicality(real, together, 1)[0]
        count = error.new_full((), num_graphs)
        return self.terms(torch.stack((error.abs().sum(), error.square().sum(), r, count)), l2)


def stacked_gradient(step: TrainingStep, compile: bool = False) -> StackedGradient:
    """:meth:`TrainingStep.gradient` of K models at once, by ``torch.vmap``.

    Model k's loss depends on row k of the vectors alone: the gradient of the sum of the losses is
    each model's own gradient.

    Args:
        step: one of the models' steps; the others differ from it in vector and frozen parts only.
        compile: see :func:`~hipnn_pyg.train.step.compiled_gradient`.

    Returns:
        A function of ``vectors [K, P]``, of the frozen parts, each stacked, and of a batch from
        :func:`gather_padded`; it gives the loss and its parts, each ``[K]``, and the gradients,
        ``[K, P]``.
    """
    model, loss = copy.deepcopy(step.loss.model), step.loss
    template = TrainingStep(PaddedLoss(model, loss.lambda_l2, loss.lambda_r))

    def gradient(
        vectors: Tensor, frozen: dict[str, Tensor], batch: MoleculeBatch
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        vectors = vectors.detach().requires_grad_()
        evaluate = torch.vmap(template.evaluate, in_dims=(0, 0, _STACKED))
        terms: LossTerms = evaluate(vectors, frozen, batch)
        (gradients,) = torch.autograd.grad(terms.loss.sum(), (vectors,))
        return tuple(term.detach() for term in terms), gradients

    return compiled_gradient(gradient) if compile else gradient


@torch.no_grad()
def adam_steps(optimizers: Sequence[Adam]) -> None:
    """One step of several Adams, each of one parameter, in one launch per learning rate.

    The arithmetic is that of each alone, bit for bit. Gradients are dropped, so that ``step()``
    has nothing left to do. An optimizer before its first step is left to its own ``step()``.

    Args:
        optimizers: fused, with equal settings; their learning rates and steps may differ.
    """
    of_rate: dict[float, list[Adam]] = defaultdict(list)
    for optimizer in optimizers:
        if optimizer.state:
            of_rate[float(optimizer.param_groups[0]["lr"])].append(optimizer)
    for rate, group in of_rate.items():
        parameters: list[Tensor] = [o.param_groups[0]["params"][0] for o in group]
        states = [o.state[p] for o, p in zip(group, parameters, strict=True)]
        settings = group[0].param_groups[0]
        adam(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=settings["betas"][0],
            beta2=settings["betas"][1],
            lr=rate,
            weight_decay=settings["weight_decay"],
            eps=settings["eps"],
            maximize=False,
        )
        for parameter in parameters:
            parameter.grad = None
