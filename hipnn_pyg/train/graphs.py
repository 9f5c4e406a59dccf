"""Whether to compile the training step, and how often that happened: once is enough."""

from __future__ import annotations

import sys
import warnings

import torch

from hipnn_pyg.ops import available
from hipnn_pyg.train.config import Training

COMPILE_PAYS_AFTER = 5_000
"""Steps from which ``compile="auto"`` compiles on a GPU: about a minute once."""


def compile_wanted(config: Training, device: torch.device, kernel: str, total_steps: int) -> bool:
    """Whether to run the step through ``torch.compile``.

    ``"auto"`` does on a GPU, for runs long enough to pay. On a CPU the kernels of
    :mod:`hipnn_pyg.ops` are faster than a compiled step and ready in seconds.

    Args:
        config: its ``compile``.
        device: that trains.
        kernel: of the model there (``HIPNN.kernel_on``).
        total_steps: of the run.
    """
    compiler = device.type == "cuda" or available(device.type) == ""
    if not compiler and (config.compile == "on" or kernel == "padded"):
        warnings.warn(
            f"{available(device.type)}: training runs in plain PyTorch, about a third as fast",
            stacklevel=3,
        )
    if config.compile == "auto":
        return device.type == "cuda" and total_steps >= COMPILE_PAYS_AFTER
    return config.compile == "on" and compiler


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # nothing was compiled before it is imported
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


def recompiled(graphs: int) -> str:
    """The line that reports a step compiled more than once.

    Args:
        graphs: how often it was compiled.
    """
    return (
        f"the training step was compiled {graphs} times, where its symbolic sizes should make once "
        "enough: TORCH_LOGS=recompiles shows why; --compile off avoids the time it takes"
    )
