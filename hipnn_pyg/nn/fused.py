"""An interaction layer and its on-site layers run by the compiled kernels: the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus
from torch.nn.modules import module as torch_module

from hipnn_pyg import ops
from hipnn_pyg.graph.pairs import Pairs
from hipnn_pyg.nn.environment import EnvironmentSum
from hipnn_pyg.nn.hooks import unchanged
from hipnn_pyg.nn.interaction import Interaction
from hipnn_pyg.nn.onsite import OnSite
from hipnn_pyg.nn.readout import EnergyReadout
from hipnn_pyg.nn.residual import Linear, Residual
from hipnn_pyg.nn.sensitivity import Sensitivity, sensitivities

PARTS: dict[type[nn.Module], dict[str, type[nn.Module]]] = {
    Interaction: {
        "sensitivity": Sensitivity,
        "environment_sum": EnvironmentSum,
        "W": Linear,
        "residual": Residual,
    },
    OnSite: {"W": Linear, "residual": Residual},
    Residual: {"W": Linear, "M": Linear},
}
"""What the layers are made of; the kernels compute no other."""
PARAMETERS: dict[type[nn.Module], set[str]] = {
    Interaction: {"V"},
    Sensitivity: {"mu", "sigma"},
    Linear: {"weight", "bias"},
    EnergyReadout: {"weight", "bias"},
}
"""What they must have as parameters: in replicas and fast weights these are plain tensors."""
PLAIN = (Tensor, nn.Parameter)
"""What lies in memory as it reads: quantised or distributed weights are of other classes."""


def has_kernels(interaction: Interaction, onsite: nn.Module, z: Tensor, pairs: Pairs) -> bool:
    """Whether the compiled layers take this input, and compute what these layers would.

    Args:
        interaction: Eqs. 8, 9.
        onsite: the on-site layers, one after the other.
        z: features.
        pairs: edges, with their pattern for the kernels.
    """
    return (
        pairs.pattern is not None
        and ops.takes(z)
        and layers_as_built(interaction, onsite, z)
        and z.size(1) == interaction.V.size(1)
        and pairs.r.dtype == z.dtype
    )


def layers_as_built(interaction: nn.Module, onsite: nn.Module, like: Tensor) -> bool:
    """:func:`as_built` of an interaction layer and the on-site layers after it, whose sizes fit."""
    layers = onsite.__dict__["_modules"].values()
    return (
        as_built(interaction, Interaction, like)
        and interaction.__dict__["_modules"]["environment_sum"].as_written
        and unchanged(onsite, nn.Sequential)
        and all(as_built(layer, OnSite, like) for layer in layers)
        and not _hooks_of_all()
        and _sizes_fit(interaction, layers)
    )


def _hooks_of_all() -> bool:
    """Whether hooks of all modules there are."""
    hooks = torch_module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def _sizes_fit(interaction: nn.Module, onsite: Iterable[nn.Module]) -> bool:
    """Whether weights have the shapes that kernels expect: they read memory by address."""
    nu, width, out = interaction.__dict__["_parameters"]["V"].shape
    functions = interaction.__dict__["_modules"]["sensitivity"].__dict__["_parameters"]
    if not functions["mu"].shape == functions["sigma"].shape == (nu,):
        return False
    shapes = [None if w is None else w.shape for w in dense_weights(interaction, onsite)]
    for n in range(0, len(shapes), 5):
        W, B, W_residual, B_residual, M = shapes[n : n + 5]
        if not (W == (out, width) and B == B_residual == (out,) and W_residual == (out, out)):
            return False
        if M != (out, width) and (M is not None or width != out):
            return False
        width = out
    return True


def as_built(module: nn.Module, kind: type[nn.Module], like: Tensor) -> bool:
    """Whether the kernels compute what a layer does: unchanged in all its parts, its weights plain
    tensors of one dtype, on one device and without gaps in memory.

    Asked in every call: modules are looked up past ``nn.Module``'s slow attributes.

    Args:
        module: the layer.
        kind: its class.
        like: a tensor whose dtype and device the weights must have.
    """
    return _as_built(module, kind, like.dtype, like.device)


def _as_built(
    module: nn.Module, kind: type[nn.Module], dtype: torch.dtype, device: torch.device
) -> bool:
    if not unchanged(module, kind):
        return False
    own = module.__dict__
    if kind in PARAMETERS and not own["_parameters"].keys() >= PARAMETERS[kind]:
        return False
    for w in own["_parameters"].values():
        if w is None:
            continue
        if not (w.dtype is dtype and w.device == device and w.is_contiguous() and type(w) in PLAIN):
            return False
    if kind in PARTS:
        parts = own["_modules"]
        for name, part in PARTS[kind].items():
            if (held := parts.get(name)) is None:
                continue
            if not _as_built(held, part, dtype, device):
                return False
        if kind is Residual and parts.get("M") is not None:
            return parts["M"].__dict__["_parameters"]["bias"] is None
    return True


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


def dense_weights(interaction: nn.Module, onsite: Iterable[nn.Module]) -> list[Tensor | None]:
    """W, B, W~, B~, M~ (None: identity) of the layers, in the order of the parameters."""
    weights: list[Tensor | None] = []
    for layer in (interaction, *onsite):
        parts = layer.__dict__["_modules"]  # past slow attributes, see as_built
        residual = parts["residual"].__dict__["_modules"]
        for part in (parts["W"], residual["W"]):
            own = part.__dict__["_parameters"]
            weights += [own["weight"], own["bias"]]
        M = residual.get("M")
        weights.append(None if M is None else M.__dict__["_parameters"]["weight"])
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
