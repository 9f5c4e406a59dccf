"""What a run was trained on, in words."""

from __future__ import annotations

import os
import platform

import torch


def hardware(device: str) -> str:
    """The processor that a run uses here.

    Args:
        device: its ``--device``.
    """
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores, threads = os.cpu_count(), torch.get_num_threads()
    used = "" if threads == cores else f", {threads} thread{'s' if threads > 1 else ''}"
    return f"{processor()}, {cores} cores{used}"


def processor() -> str:
    """The name of this machine's processor."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            models = (line.split(":")[1].strip() for line in file if line.startswith("model name"))
            return next(models, name)
    except OSError:
        return name
