"""The progress bar of a training, in molecules."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(total: int, done: int, title: str, shown: bool) -> tqdm:
    """A bar that moves smoothly in a terminal and seldom writes to a file.

    Args:
        total: molecules to see in all.
        done: molecules seen before.
        title: stands before it.
        shown: whether to show it at all.
    """
    return tqdm(
        total=total,
        initial=done,
        unit=" molecules",
        unit_scale=True,
        desc=title,
        smoothing=0.05,
        disable=not shown,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        dynamic_ncols=True,
    )
