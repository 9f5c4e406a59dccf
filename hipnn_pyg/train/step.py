"""One training step: the loss and its gradient in one function, so that they compile as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hipnn_pyg.data.packed import MoleculeBatch
from hipnn_pyg.train.direct import direct_gradient
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms, is_penalised
from hipnn_pyg.train.recipe import flattened

Gradient = Callable[[Tensor, dict[str, Tensor], MoleculeBatch], tuple[LossTerms, Tensor]]


class TrainingStep(nn.Module):
    """The loss as a function of one vector, of which the model's learned parameters are views.

    One vector makes one gradient, one Adam update and one all-reduce out of dozens.

    Args:
        loss: the loss, with the model on its device. The model's parameters become views of
            :attr:`vector`: what happens to one happens to the other.

    Attributes:
        vector: all learned parameters, ``[P]``.
        frozen: what is not learned but the loss needs, by name: E^0, sigma_E, with forces sigma_F,
            and every parameter that was frozen before.
    """

    def __init__(self, loss: HIPNNLoss) -> None:
        super().__init__()
        object.__setattr__(self, "loss", loss)  # no submodule: its parameters are the vector's
        self.loss: HIPNNLoss
        learned = {name: p for name, p in loss.named_parameters() if p.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in learned.items()}
        self.sizes = [parameter.numel() for parameter in learned.values()]
        self.learned = tuple(learned.values())
        every = [*loss.named_parameters(), *loss.named_buffers()]
        self.frozen = {name: t.detach() for name, t in every if name not in learned}
        self.vector = nn.Parameter(flattened(loss))
        self.penalised: Tensor
        mask = [p.new_full((p.numel(),), is_penalised(name)) for name, p in learned.items()]
        self.register_buffer("penalised", torch.cat(mask), persistent=False)
        self.direct = direct_gradient(loss, self.vector, self.penalised)

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """The model's learned parameters by name, as parts of ``vector``.

        Args:
            vector: ``[P]``, or ``[K, P]`` for those of K models.
        """
        parts, lead = vector.split(self.sizes, -1), vector.shape[:-1]
        return {
            name: part.view(*lead, *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def forward(self, batch: MoleculeBatch) -> LossTerms:
        """The loss of a mini-batch, differentiable in :attr:`vector`."""
        return self.evaluate(self.vector, self.frozen, batch)

    def evaluate(
        self, vector: Tensor, frozen: dict[str, Tensor], batch: MoleculeBatch
    ) -> LossTerms:
        """The loss as a function of everything it depends on.

        Args:
            vector: all learned parameters, ``[P]``.
            frozen: as :attr:`frozen`, of this model or another.
            batch: the molecules.
        """
        l2 = (self.penalised * vector.square()).sum()
        parameters = {**self.views(vector), **frozen}
        return cast(LossTerms, functional_call(self.loss, parameters, (batch, l2)))

    def gradient(
        self, vector: Tensor, frozen: dict[str, Tensor], batch: MoleculeBatch
    ) -> tuple[LossTerms, Tensor]:
        """The loss (detached) and its gradient in ``vector``, ``[P]``; see :meth:`evaluate`."""
        if not torch.compiler.is_compiling() and vector is self.vector:
            return self._own_gradient(batch)
        vector = vector.detach().requires_grad_()
        terms = self.evaluate(vector, frozen, batch)
        (gradient,) = torch.autograd.grad(terms.loss, (vector,))
        return type(terms)(*(term.detach() for term in terms)), gradient

    def _own_gradient(self, batch: MoleculeBatch) -> tuple[LossTerms, Tensor]:
        """The same at :attr:`vector` itself, without the detour through views; L2 by hand."""
        if self.direct is not None:
            return self.direct(batch)
        vector = self.vector.detach()
        weights = self.penalised * vector
        terms = self.loss(batch, (weights * vector).sum())  # not dot: see EnergyReadout
        pieces = torch.autograd.grad(terms.loss, self.learned)
        gradient = torch.cat([piece.flatten() for piece in pieces])
        gradient.add_(weights, alpha=2 * self.loss.lambda_l2)
        return type(terms)(*(term.detach() for term in terms)), gradient


def compiled_gradient(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient such as :meth:`TrainingStep.gradient` compiled: forward and backward pass in one
    graph.

    Sizes are symbolic, so that one compilation serves every mini-batch.

    Args:
        gradient: a function that calls :func:`torch.autograd.grad`.
    """
    dynamo: Any = torch._dynamo.config
    dynamo.trace_autograd_ops = True  # lets torch.autograd.grad into the graph
    return torch.compile(gradient, dynamic=True, fullgraph=True)
