"""The precision of matrix products, chosen for a stretch of code.

Only products change: V, W and M (Eqs. 5-9), and the environment sums where they are matrix products
(``kernel="padded"``). Distances, sensitivities, activations, residual sums and readouts stay in the
parameters' dtype, energies in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]


@contextmanager
def matrix_products(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Inside, matrix products in a lower precision; afterwards everything as before.

    Args:
        precision: ``"float32"`` changes nothing. ``"tf32"`` lets a GPU round the operands to 10
            bits of mantissa (``torch.set_float32_matmul_precision("high")``; a CPU without such
            instructions does nothing of the kind). ``"bf16"`` rounds operands and results to 7
            bits (``torch.autocast``); sums of products are float32 in both.
        device: where the products run.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in ("float32", "tf32", "bf16"):
        raise ValueError(f'precision must be "float32", "tf32" or "bf16", not {precision!r}')
    if precision == "bf16":
        # Weights are used once a step: nothing to keep, and a captured graph must not.
        with torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False):
            yield
    elif precision == "tf32":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    else:
        yield
