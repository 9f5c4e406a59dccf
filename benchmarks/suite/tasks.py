"""What runs inside a worker process: implementations are set up once, then called by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hipnn_pyg import PackedMolecules
from suite.implementations import BUILDERS, Implementation
from suite.rows import Unavailable
from suite.settings import Settings

_built: dict[str, tuple[Implementation, PackedMolecules, str]] = {}


def set_up(name: str, molecules: PackedMolecules, settings: Settings, device: str = "cpu") -> None:
    """Build an implementation and keep it for :func:`turn`.

    Raises:
        Unavailable: it cannot run here; the reason.
    """
    torch.manual_seed(settings.seed)
    try:
        built = BUILDERS[name](molecules, settings, device)
    except ImportError as error:
        raise Unavailable(f'{error}: pip install "hipnn_pyg[bench]"') from error
    _built[name] = built, molecules.to(device), device


def built(name: str) -> Any:
    """An implementation that was set up."""
    return _built[name][0]


def prepare(name: str, batches: Sequence[Tensor], action: str = "step") -> list[Any]:
    """Batches of the given molecules in the form that an implementation's method takes."""
    implementation, molecules, _ = _built[name]
    return implementation.load(molecules, batches, action)


def turn(name: str, action: str, batches: Sequence[Tensor]) -> float:
    """Milliseconds per call of ``"step"`` or ``"energies"``; the first batch warms up.

    Args:
        name: of an implementation that was set up.
        action: its method.
        batches: molecules of each batch.
    """
    method = getattr(built(name), action)
    first, *rest = prepare(name, batches, action)
    with torch.set_grad_enabled(action == "step"):
        method(first)
        return 1e3 * elapsed(_built[name][2], lambda: [method(batch) for batch in rest]) / len(rest)


def elapsed(device: str, action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes; on a GPU between two events in its stream."""
    if device == "cpu":
        began = time.perf_counter()
        action()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def kernels_per_step(name: str, batch: Tensor) -> int:
    """Kernels that one training step launches on a GPU."""
    from torch.profiler import ProfilerActivity, profile

    step = built(name).step
    first, second = prepare(name, [batch, batch])
    step(first)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step(second)
        torch.cuda.synchronize()
    return count_kernels(trace.events())


def count_kernels(events: Iterable[Any]) -> int:
    """Kernels among the profiler's events: what ran on the device, copies and fills excepted."""
    cuda = torch.autograd.DeviceType.CUDA
    moved = ("Memcpy", "Memset")
    return sum(e.device_type == cuda and not e.name.startswith(moved) for e in events)
