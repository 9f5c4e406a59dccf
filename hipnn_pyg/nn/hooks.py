"""Whether a module does what its class says: what stands in for it must know."""

from __future__ import annotations

from torch import nn


def unchanged(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of this module does what its class says, and no more: no hooks."""
    own = module.__dict__
    return type(module) is kind and not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "received" in own
    )
