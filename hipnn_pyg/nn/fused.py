"""An interaction layer and its on-site layers run by the compiled kernels: the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from hipnn_pyg import ops
from hipnn_pyg.graph.pairs import Pairs
from hipnn_pyg.nn.environment import EnvironmentSum
from hipnn_pyg.nn.interaction import Interaction
from hipnn_pyg.nn.onsite import OnSite
from hipnn_pyg.nn.residual import Linear, Residual
from hipnn_pyg.nn.sensitivity import Sensitivity, sensitivities


def has_kernels(interaction: Interaction, onsite: nn.Module, z: Tensor, pairs: Pairs) -> bool:
    """Whether the compiled layers take this input, and compute what these layers would.

    Args:
        interaction: Eqs. 8, 9.
        onsite: the on-site layers, one after the other.
        z: features.
        pairs: edges, with their pattern for the kernels.
    """
    return pairs.pattern is not None and ops.takes(z) and written_out(interaction, onsite, z)


def written_out(interaction: Interaction, onsite: nn.Module, like: Tensor) -> bool:
    """Whether the kernels compute these layers: as built, all weights of one kind.

    A layer of another class, or with hooks, is called instead.

    Args:
        interaction: Eqs. 8, 9.
        onsite: the on-site layers.
        like: a tensor whose dtype and device the weights must have.
    """
    functions = interaction.sensitivity
    built = as_built(interaction, Interaction) and as_built(functions, Sensitivity)
    if not (built and as_built(interaction.environment_sum, EnvironmentSum)):
        return False
    if not as_built(onsite, nn.Sequential):
        return False
    own: list[OnSite] = []
    for layer in onsite.children():
        if not (isinstance(layer, OnSite) and as_built(layer, OnSite)):
            return False
        own.append(layer)
    layers: list[Interaction | OnSite] = [interaction, *own]
    for layer in layers:
        residual = layer.residual
        maps = as_built(layer.W, Linear) and as_built(residual, Residual)
        if not (maps and as_built(residual.W, Linear)):
            return False
        if residual.M is not None and not as_built(residual.M, Linear):
            return False
    weights = dense_weights(interaction, own)
    return alike(like, [interaction.V, functions.mu, functions.sigma, *weights])


def as_built(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of this module would do what its class says, and no more."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    hooks = hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) is kind and not hooks and "forward" not in module.__dict__


def alike(like: Tensor, weights: Sequence[Tensor | None]) -> bool:
    """Whether kernels can read these weights: of one dtype and device, without gaps."""
    dtype, device = like.dtype, like.device
    return all(
        w is None or (w.dtype == dtype and w.device == device and w.is_contiguous())
        for w in weights
    )


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
