"""Colours of atoms that colour-blind people can tell apart, with their legends.

Sums that contain E^0 have one sign for all practical purposes and R is never negative: they get
cividis. Higher orders get blue (lowers the energy) to vermilion (raises it), grey at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from ase.data.colors import jmol_colors
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex

from hipnn_pyg.explain.breakdown import Breakdown, Floats
from hipnn_pyg.plots.style import BLUE, COLOURS, VERMILION

SIGNED = LinearSegmentedColormap.from_list("signed", [BLUE, "#d4d4d4", VERMILION])
STEPS = 9
"""Colour stops of a legend."""


class Colouring(NamedTuple):
    """One way to colour the atoms.

    Attributes:
        key: its name inside the page.
        label: its name for people (HTML).
        colours: ``#rrggbb`` of each atom, ``[N]``.
        stops: colours of the legend from ``low`` to ``high``; empty for classes.
        low: the value at the first stop.
        high: the value at the last.
        unit: of both.
        classes: (colour, meaning, number of atoms), for colourings without a scale.
    """

    key: str
    label: str
    colours: list[str]
    stops: Sequence[str] = ()
    low: float = 0.0
    high: float = 0.0
    unit: str = ""
    classes: Sequence[tuple[str, str, int]] = ()


def colourings(parts: Breakdown) -> list[Colouring]:
    """Every colouring that shows something, the first for a start."""
    num_orders = parts.terms.shape[1]
    found = [_unsigned("energy", "atom energy", parts.atoms, parts.unit)]
    if parts.hierarchical:
        beyond = parts.terms[:, 1:].sum(axis=1)
        found.append(_signed("beyond", "beyond E<sup>0</sup>", beyond, parts.unit))
        found += [
            _signed(f"order{n}", f"E<sup>{n}</sup>", parts.terms[:, n], parts.unit)
            for n in range(1, num_orders)
        ]
        found.append(_largest(parts))
        found.append(_unsigned("R", "R", parts.r_atoms, "", low=0.0))
    found.append(_elements(parts))
    return found


def _signed(key: str, label: str, values: Floats, unit: str) -> Colouring:
    """Symmetric about 0."""
    limit = float(np.abs(values).max()) or 1.0
    return _scaled(key, label, values, unit, -limit, limit, SIGNED)


def _unsigned(
    key: str, label: str, values: Floats, unit: str, low: float | None = None
) -> Colouring:
    """From the smallest value, or ``low``, to the largest."""
    low = float(values.min()) if low is None else low
    cividis = matplotlib.colormaps["cividis"](np.linspace(0.12, 1.0, 64))  # no near-black
    scale = LinearSegmentedColormap.from_list("unsigned", cividis)
    return _scaled(key, label, values, unit, low, float(values.max()), scale)


def _scaled(
    key: str, label: str, values: Floats, unit: str, low: float, high: float, scale: Colormap
) -> Colouring:
    width = (high - low) or 1.0
    colours = [to_hex(scale(float((value - low) / width))) for value in values]
    stops = [to_hex(scale(x)) for x in np.linspace(0.0, 1.0, STEPS).tolist()]
    return Colouring(key, label, colours, stops, low, high, unit)


def _largest(parts: Breakdown) -> Colouring:
    """The order n >= 1 that contributes most."""
    chosen = [COLOURS[(n - 1) % len(COLOURS)] for n in parts.largest]
    classes = [
        (COLOURS[(n - 1) % len(COLOURS)], f"E<sup>{n}</sup>", int((parts.largest == n).sum()))
        for n in range(1, parts.terms.shape[1])
    ]
    return Colouring("largest", "largest order beyond E<sup>0</sup>", chosen, classes=classes)


def _elements(parts: Breakdown) -> Colouring:
    """Jmol's colours."""
    hexes = [to_hex(jmol_colors[number]) for number in parts.z]
    classes = [
        (to_hex(jmol_colors[number]), parts.symbols[parts.z.tolist().index(number)], int(count))
        for number, count in zip(*np.unique(parts.z, return_counts=True), strict=True)
    ]
    return Colouring("element", "element", hexes, classes=classes)
