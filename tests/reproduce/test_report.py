"""Printed tables: nothing is cut off, however narrow the terminal is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hipnn_pyg.reproduce.report import Report, Table

TABLE = Table(
    ["N_feature", *("MAE (kcal/mol)", "paper (difference)") * 3, "trained"],
    [
        ["80 (no hierarchy)", *("0.231 ± 0.003", "0.256 ± 0.003 (+226.3)") * 3, "2 epochs, " * 9],
        ["5", *("-", "1.177 ± 0.014") * 3, "not run"],
    ],
    wide=("trained",),
)


def printed(width: int, whole: bool = True) -> list[str]:
    """Lines of the table on a terminal of so many columns."""
    console = Console(width=width, file=io.StringIO())
    if whole:
        Report("name", "Title", TABLE).show(console)
    else:
        console.print(TABLE.rich())
    assert isinstance(console.file, io.StringIO)
    return [line for line in console.file.getvalue().splitlines() if line and line[0] in "┏┃┡│└"]


def is_whole(lines: list[str]) -> bool:
    """Whether every line has its right edge, and every number and word stands in one piece."""
    rows = (TABLE.headings, *TABLE.rows)
    words = {word for row in rows for cell in row for word in cell.split()}
    shown = {word for line in lines for word in line.split()}
    number = any(" 0.231 ± 0.003 " in line for line in lines)
    edge = {line[-1] for line in lines} == {*"┓┃┩│┘"}
    return number and words <= shown and edge and len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("width", [1, 80, 120, 145, 300])
def test_nothing_is_cut_off(width: int) -> None:
    lines = printed(width)
    assert is_whole(lines)
    if width == 145:  # text folds before the table gets wider than the terminal
        assert len(lines[0]) == width


def test_control_rich_alone_cuts() -> None:
    assert is_whole(printed(300, whole=False)) and not is_whole(printed(120, whole=False))
