"""Where the figures come from: hardware and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("hipnn_pyg", "torch", "torch-geometric", "hippynn", "numba", "triton", "schnetpack")


def hardware(threads: int) -> dict[str, Any]:
    """CPU, cores, threads used, memory and GPU."""
    from hipnn_pyg.cli.hardware import processor  # not in the workers, whose start is timed

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": processor(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(pages / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str | None]:
    """Versions of the packages that matter; None for those not installed."""
    result: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            result[package] = None
    return result
