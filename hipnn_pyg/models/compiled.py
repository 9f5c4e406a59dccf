"""torch.compile for a function that takes a gradient inside: all of it in one graph, or refusal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch._dynamo.config as dynamo
import torch.fx.experimental._config as sizes
from torch import nn
from torch._dynamo.exc import TorchDynamoException


def compiled_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function whose last argument says whether to keep the graph of its result.

    Shapes are dynamic: another number of atoms or pairs does not compile anew. The first result
    is compared with the uncompiled function's.

    Args:
        function: ``function(..., keep)``, differentiating with :func:`torch.autograd.grad` inside.

    Returns:
        The compiled function. It raises RuntimeError where ``keep`` is asked for, where
        compilation fails, or where the result differs; it never runs uncompiled instead.

    Raises:
        RuntimeError: this PyTorch cannot compile a gradient.
    """
    if not hasattr(dynamo, "trace_autograd_ops"):
        raise RuntimeError(
            f"PyTorch {torch.__version__} cannot compile an energy together with its gradient: "
            "upgrade it (2.13 can), or use compile=False"
        )
    from torch._inductor.exc import InductorError  # which older ones lack

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    verified = False

    def call(*arguments: Any) -> Any:
        nonlocal verified
        if arguments[-1]:
            raise RuntimeError(
                "a compiled potential cannot be differentiated again (create_graph): train with "
                "compile=False"
            )
        try:
            with torch.no_grad(), dynamo.patch(trace_autograd_ops=True), _independent_sizes():
                result = compiled(*arguments)
        except (TorchDynamoException, InductorError) as error:
            raise RuntimeError(
                f"torch.compile cannot take this model ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}): use compile=False"
            ) from error
        if not verified:
            first = arguments[0]
            weights = first.parameters() if isinstance(first, nn.Module) else [first]
            single = any(weight.dtype == torch.float32 for weight in weights)
            _verify(result, function(*arguments), 5e-5 if single else 1e-7)
            verified = True
        return result

    return call


def _independent_sizes() -> AbstractContextManager[None]:
    """Sizes that happen to be equal, 3 atoms and 3 coordinates, are not taken for the same."""
    return sizes.patch(use_duck_shape=False)  # type: ignore[attr-defined]


def _verify(result: Any, expected: Any, limit: float) -> None:
    """To a limit relative to the largest number, or to 10 where forces are small: sums in float64
    carry a network's rounding."""
    try:
        for one, other in zip(result, expected, strict=True):
            scale = 0.0 if other is None or not other.numel() else float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=limit, atol=limit * max(scale, 10.0))
    except AssertionError as error:
        raise RuntimeError(
            f"the compiled potential differs from the uncompiled one: {error}; use compile=False"
        ) from error
