"""The one check every plot applies to what it is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def finite_array(
    name: str,
    value: ArrayLike,
    shape: tuple[int | None, ...] | None = None,
    at_least: float = -np.inf,
    above: float = -np.inf,
) -> Array:
    """Return ``value`` as a float64 array, or say what is wrong with it.

    Args:
        name: what to call the array in an error.
        value: numbers; a torch tensor must be detached and on the CPU.
        shape: the required shape; ``None`` in a place allows any size there.
        at_least: the smallest value allowed.
        above: every value must be larger than this (for logarithmic axes, 0).

    Raises:
        ValueError: the array is empty, has another shape, or holds NaN, infinity or a value
            outside the limits.
    """
    array = np.asarray(value, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name} is empty: pass at least one value")
    if shape is not None and (
        array.ndim != len(shape)
        or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True))
    ):
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise ValueError(
            f"{name} has shape {array.shape}, but {wanted} is needed: "
            "give arrays that belong together the same length"
        )
    _reject(name, array, ~np.isfinite(array), "a finite number", "remove it or find its cause")
    _reject(name, array, array < at_least, f"at least {at_least:g}", "check its sign")
    _reject(name, array, array <= above, f"above {above:g}", "a logarithmic axis cannot show it")
    return array


def _reject(name: str, array: Array, bad: NDArray[np.bool_], limit: str, remedy: str) -> None:
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}{list(where)} = {array[where]:g} ({int(bad.sum())} such of {array.size}), "
            f"but every value must be {limit}: {remedy}"
        )
