"""Whether to compile the training step, and how often that happened: once is enough."""

from __future__ import annotations

import sys
import warnings

import torch

from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.graph.neighbors import ALL_PAIRS_LIMIT
from hipnn_pyg.ops import available
from hipnn_pyg.train.config import Training

COMPILE_PAYS_AFTER = 5_000
"""Steps from which ``compile="auto"`` compiles on a GPU: about a minute once."""
FORCES_PAY_AFTER = 20_000
"""The same for force training on a CPU, where a compiled step takes half the time."""

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
COMPILES_FROM = (2, 13)
"""Release of PyTorch whose compiler takes a gradient within the function that it compiles."""


def mostly_large(molecules: PackedMolecules) -> bool:
    """Whether most pairs are in molecules whose neighbours an ordinary step searches
    (:func:`hipnn_pyg.train.loss.is_searched`); captured and compiled ones compute all pairs."""
    pairs = molecules.counts * (molecules.counts - 1)
    return bool(2 * pairs[molecules.counts > ALL_PAIRS_LIMIT].sum() > pairs.sum())


def compile_wanted(
    config: Training,
    device: torch.device,
    kernel: str,
    total_steps: int,
    forces: bool = False,
    periodic: bool = False,
    processes: int = 1,
    large: bool = False,
) -> bool:
    """Whether to run the step through ``torch.compile``.

    The kernels of :mod:`hipnn_pyg.ops` are faster than a compiled step and ready in seconds:
    ``"auto"`` compiles where a step runs without them, in runs long enough to pay, on a CPU only
    where forces are learned.

    Args:
        config: its ``compile``.
        device: that trains.
        kernel: of the step (``HIPNN.kernel_on``).
        total_steps: of the run.
        forces: whether forces are learned.
        periodic: whether structures have cells: such steps are not compiled.
        processes: of the run; where several learn forces, steps are not compiled.
        large: as :func:`mostly_large` says; then ``"auto"`` does not compile.

    Raises:
        ValueError: ``compile="on"`` with cells, or with forces on several processes.
    """
    if periodic or (forces and processes > 1):  # the compiler takes no part of a double gradient
        if config.compile == "on":
            what = "periodic structures" if periodic else "forces on several processes"
            raise ValueError(f"--compile on does not take {what} yet: leave it out")
        return False
    if config.compile != "off" and TORCH < COMPILES_FROM:
        if config.compile == "on":
            release = ".".join(map(str, COMPILES_FROM))
            warnings.warn(
                f"PyTorch {torch.__version__} does not compile training steps, {release} does: "
                "they run as they are",
                stacklevel=3,
            )
        return False
    compiler = device.type == "cuda" or available(device.type) == ""
    if not compiler and (config.compile == "on" or kernel == "padded"):
        warnings.warn(
            f"{available(device.type)}: training runs in plain PyTorch, about a third as fast",
            stacklevel=3,
        )
    if config.compile == "auto" and large:
        return False
    if config.compile == "auto" and forces and device.type == "cpu":
        return compiler and kernel == "padded" and total_steps >= FORCES_PAY_AFTER
    if config.compile == "auto":
        return device.type == "cuda" and kernel != "fused" and total_steps >= COMPILE_PAYS_AFTER
    return config.compile == "on" and compiler


def capture_wanted(
    config: Training,
    device: torch.device,
    processes: int,
    periodic: bool = False,
    large: bool = False,
) -> bool:
    """Whether to run the step as one CUDA graph (:mod:`hipnn_pyg.train.capture`).

    Args:
        config: its ``capture``.
        device: that trains.
        processes: of the run.
        periodic: whether structures have cells: such steps are not captured.
        large: as :func:`mostly_large` says; then ``"auto"`` does not capture.

    Raises:
        ValueError: ``capture="on"`` with several processes, with cells or ``compile="on"``.
    """
    if config.compile == "on":
        if config.capture == "on":
            raise ValueError("--compile on and --capture on exclude each other: choose one")
        return False
    if periodic:
        if config.capture == "on":
            raise ValueError("--capture on does not take periodic structures yet: leave it out")
        return False
    if processes > 1:
        if config.capture == "on":
            raise ValueError(
                f"--capture on takes one process, not {processes}: the mini-batch of a captured "
                "step is drawn on one device; use --capture off"
            )
        return False
    auto = device.type == "cuda" and not large
    return config.capture == "on" or (config.capture == "auto" and auto)


def not_captured(error: RuntimeError, what: str = "training step") -> str:
    """The line that reports what could not be captured.

    Args:
        error: what was raised.
        what: could not.
    """
    reason = (str(error) or "no reason given").splitlines()[0]
    return (
        f"the {what} could not be captured ({type(error).__name__}: {reason}): training goes on "
        f"with an ordinary {what}, which gives the same numbers more slowly; --capture on shows "
        "the whole error, --capture off avoids it"
    )


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
