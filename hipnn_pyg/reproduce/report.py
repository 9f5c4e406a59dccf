"""What a reproduction prints and writes: tables, sentences and a figure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable

from hipnn_pyg.models.files import atomic_write
from hipnn_pyg.reproduce.records import readable_json


@dataclass(frozen=True)
class Table:
    """Cells of text under headings; the first column and those of ``wide`` are left-aligned.

    Args:
        headings: of the columns.
        rows: their cells.
        wide: headings of further columns of text.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: Sequence[str] = ()

    def is_text(self, heading: str) -> bool:
        """Whether a column is left-aligned."""
        return heading == self.headings[0] or heading in self.wide

    def markdown(self) -> str:
        """As Markdown."""
        rule = "".join("|---" if self.is_text(heading) else "|--:" for heading in self.headings)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.headings, *self.rows)]
        return "\n".join([lines[0], rule + "|", *lines[1:]])

    def rich(self) -> RichTable:
        """For the terminal: units and brackets on a line of their own."""
        table = RichTable()
        for heading in self.headings:
            justify: Literal["left", "right"] = "left" if self.is_text(heading) else "right"
            least = 30 if heading in self.wide else None
            table.add_column(_broken(heading), justify=justify, overflow="fold", min_width=least)
        for cells in self.rows:
            broken = zip(self.headings, cells, strict=True)
            table.add_row(*(c if h in self.wide else _broken(c) for h, c in broken))
        return table


@dataclass(frozen=True)
class Report:
    """A table or figure of the paper, as far as there are runs for it.

    Args:
        name: of its files.
        title: one line.
        table: the figures, if any.
        text: sentences below the table.
        data: the same figures for programs; becomes the JSON file.
        figure: the picture, if any.
    """

    name: str
    title: str
    table: Table | None = None
    text: Sequence[str] = ()
    data: Any = field(default_factory=list)
    figure: Figure | None = None

    def markdown(self) -> str:
        """Title, table and text."""
        parts = [f"## {self.title}", *([self.table.markdown()] if self.table else []), *self.text]
        if self.figure is not None:
            parts.insert(1, f"![{self.title}]({self.name}.png)")
        return "\n\n".join(parts) + "\n"

    def show(self, console: Console, known: Collection[str] = ()) -> None:
        """Print title, table and text.

        Args:
            console: where to.
            known: lines of text to leave out.
        """
        console.print(f"\n[bold]{self.title}[/bold]", highlight=False)
        if self.table is not None:
            print_whole(console, self.table.rich())
        for line in self.text:
            if line not in known:
                console.print(line, highlight=False, markup=False)

    def write(self, folder: Path) -> list[Path]:
        """Write ``NAME.md``, ``NAME.json`` and, if there is a figure, ``NAME.png``.

        Returns:
            The files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        markdown, data = folder / f"{self.name}.md", folder / f"{self.name}.json"
        atomic_write({markdown: self.markdown().encode(), data: readable_json(self.data).encode()})
        if self.figure is None:
            return [markdown, data]
        picture = folder / f"{self.name}.png"
        self.figure.savefig(picture, dpi=200)
        return [markdown, data, picture]


def print_whole(console: Console, *tables: RichTable) -> None:
    """Print tables with all digits; one that needs more columns than the terminal has gets them.

    Where the terminal is narrow, rich alone cuts off numbers or a table's right edge.

    Args:
        console: where to.
        tables: right-aligned columns are numbers and stay whole; columns of text fold down to their
            ``min_width``, by default their longest word.
    """
    wide = Console(width=10_000)
    for table in tables:
        excess = max(0, Measurement.get(wide, wide.options, table).maximum - console.width)
        for column in reversed(table.columns):
            cells = (column.header, *column.cells)
            sizes = [Measurement.get(wide, wide.options, cell) for cell in cells]
            column.width = most = max(size.maximum for size in sizes)
            if column.justify != "right":
                least = column.min_width or max(size.minimum for size in sizes)
                column.width = max(most - excess, min(least, most))
            excess -= most - column.width
        Console(file=console.file, width=console.width + excess).print(table)


def _broken(cell: str) -> str:
    return cell.replace(" (", "\n(")
