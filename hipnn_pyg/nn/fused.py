"""An interaction layer and its on-site layers run by the compiled kernels: the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import linear, softplus

from hipnn_pyg import ops
from hipnn_pyg.graph.pairs import Pairs
from hipnn_pyg.nn.interaction import Interaction
from hipnn_pyg.nn.onsite import OnSite
from hipnn_pyg.nn.sensitivity import sensitivities


def has_kernels(z: Tensor, pairs: Pairs) -> bool:
    """Whether the compiled layers take this input: edges with their pattern on a CPU."""
    return pairs.pattern is not None and ops.takes(z)


def fused_layers(
    interaction: Interaction, onsite: Sequence[OnSite], z: Tensor, pairs: Pairs
) -> Tensor:
    """``onsite(interaction(z, pairs))`` by :func:`hipnn_pyg.ops.interact` and ``dense``.

    Args:
        interaction: Eqs. 8, 9.
        onsite: Eqs. 5-7.
        z: features, ``[N, in]``.
        pairs: edges with their pattern.

    Returns:
        ``[N, out]``.
    """
    pattern, cutoff = pairs.pattern, interaction.sensitivity.cutoff
    assert pattern is not None

    def received(r: Tensor, mu: Tensor, sigma: Tensor, z: Tensor, V: Tensor) -> Tensor:
        e = ops.envsum(sensitivities(r, mu, sigma, cutoff), z, pattern)
        return e.flatten(1) @ V.flatten(0, 1)

    mu, sigma = interaction.sensitivity.mu, interaction.sensitivity.sigma
    sent = ops.interact(pairs.r, mu, sigma, z, interaction.V, pattern, cutoff, received)
    return ops.dense(z, sent, dense_weights(interaction, onsite), layers)


def dense_weights(interaction: Interaction, onsite: Sequence[OnSite]) -> list[Tensor | None]:
    """W, B, W~, B~, M~ (None: identity) of the layers, in the order of the parameters."""
    weights: list[Tensor | None] = []
    stack: list[Interaction | OnSite] = [interaction, *onsite]
    for layer in stack:
        residual = layer.residual
        weights += [layer.W.weight, layer.W.bias, residual.W.weight, residual.W.bias]
        weights.append(None if residual.M is None else residual.M.weight)
    return weights


def layers(z: Tensor, received: Tensor, *weights: Tensor | None) -> Tensor:
    """Eqs. 5-9 from what was received on: W, B, W~, B~, M~ (None: identity) of each layer."""
    for n in range(0, len(weights), 5):
        W, B, W_residual, B_residual, M = weights[n : n + 5]
        assert W is not None and W_residual is not None
        before = linear(z, W, B) if n else linear(z, W, B) + received
        kept = z if M is None else linear(z, M)
        z = linear(softplus(before), W_residual, B_residual) + kept
    return z
