"""Recording what runs on a GPU, to be replayed in one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

WARM_UP = 3
"""Runs before a recording: kernels are compiled and libraries set up, which cannot be recorded."""


def record(
    run: Callable[[], T],
    stream: torch.cuda.Stream,
    warm_up: Callable[[], Any] | None = None,
    pool: Any = None,
) -> tuple[torch.cuda.CUDAGraph, T]:
    """A CUDA graph of what ``run`` launches, and the tensors that each replay fills anew.

    Args:
        run: waits for nothing on the device; its operands stay where they are.
        stream: to record on, the same for all graphs that may share memory of libraries.
        warm_up: called instead of ``run`` before the recording; None for ``run`` itself.
        pool: memory (``torch.cuda.graph_pool_handle()``) that several graphs may share, if they are
            replayed one at a time and their results are kept; None for memory of its own.

    Raises:
        RuntimeError: something cannot be recorded.
    """
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            (warm_up or run)()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        result = run()
    return graph, result
