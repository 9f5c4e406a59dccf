"""One HTML page about one prediction: no server, no network, no other file.

The viewer is 3Dmol.js (Rego and Koes, Bioinformatics 31, 1322, 2015), carried inside the page; a
content security policy in the page's head forbids every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from hipnn_pyg.explain.breakdown import Breakdown
from hipnn_pyg.explain.colours import colourings
from hipnn_pyg.explain.standing import Standing
from hipnn_pyg.explain.trust import Trust
from hipnn_pyg.units import ENERGY_UNITS, convert

DECIMALS = {"eV": 4, "meV": 1, "Hartree": 6, "kcal/mol": 2, "kJ/mol": 2}
"""Of an atom's energies in the page and on the terminal."""

MINUS = "\N{MINUS SIGN}"


class Report(NamedTuple):
    """All that a page or a text says.

    Attributes:
        name: of the molecule: a SMILES or a file name.
        parts: energies and R.
        trust: error bar.
        standing: where R stands; None if unknown.
        model: name of the model.
        facts: what is known about the model, in order of appearance.
    """

    name: str
    parts: Breakdown
    trust: Trust
    standing: Standing | None
    model: str
    facts: Mapping[str, str]

    @property
    def decimals(self) -> int:
        """Of energies."""
        return DECIMALS.get(self.parts.unit, 5)

    def also(self) -> tuple[float, str] | None:
        """The energy in a second unit, and that unit; None if it cannot be converted."""
        if self.parts.unit not in ENERGY_UNITS:
            return None
        second = "eV" if self.parts.unit == "kcal/mol" else "kcal/mol"
        return convert(self.parts.energy, self.parts.unit, second), second


def render(report: Report) -> str:
    """The page.

    Args:
        report: what it says.

    Returns:
        HTML, UTF-8, about 600 kB, most of it the viewer.
    """
    parts = report.parts
    chosen = colourings(parts)
    data = {
        "xyz": _xyz(parts),
        "names": [f"{symbol}{number}" for number, symbol in enumerate(parts.symbols)],
        "broken": parts.breaks.any(axis=1).tolist(),
        "colours": {colouring.key: colouring.colours for colouring in chosen},
    }
    return _template().render(
        report=report,
        parts=parts,
        colourings=chosen,
        data=data,
        style=_read("template/page.css"),
        script=_read("template/page.js"),
        viewer=_read("viewer/3Dmol-min.js"),
        viewer_licence=_read("viewer/3Dmol-LICENSE.txt"),
    )


def number(value: float, decimals: int) -> str:
    """A number for people: true minus sign, thousands separated."""
    text = f"{value:,.{decimals}f}"
    if not text.strip("-0."):  # -0.000
        text = text.lstrip("-")
    return text.replace("-", MINUS)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: str(_read(f"template/{name}"))),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("page.html")


@cache
def _read(name: str) -> Markup:
    """A file of this package, which needs no escaping."""
    return Markup(files("hipnn_pyg.explain").joinpath(name).read_text(encoding="utf-8"))


def _xyz(parts: Breakdown) -> str:
    """The structure as the viewer reads it; bonds are guessed there, from distances."""
    rows: list[Any] = [len(parts.z), ""]
    for symbol, (x, y, z) in zip(parts.symbols, parts.pos, strict=True):
        rows.append(f"{symbol} {x:.5f} {y:.5f} {z:.5f}")
    return "\n".join(map(str, rows))
