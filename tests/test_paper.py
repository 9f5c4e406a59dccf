"""hipnn_pyg/paper.py and datasets/paper/README.md carry the same figures."""

from __future__ import annotations

import re
from pathlib import Path

from hipnn_pyg.paper import TABLE_1, TABLE_2, TABLE_3

README = Path(__file__).parents[1] / "datasets" / "paper" / "README.md"


def rows() -> list[list[str]]:
    """Cells of the table's rows below its heading."""
    lines = [line for line in README.read_text().splitlines() if line.startswith("| I")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def figure(cell: str) -> tuple[float, float]:
    found = re.fullmatch(r"(\d+\.\d+) ± (\d+\.\d+)", cell)
    assert found, cell
    return float(found[1]), float(found[2])


def test_table_1() -> None:
    assert {int(r[1]): figure(r[2]) for r in rows() if r[0] == "I"} == TABLE_1


def test_table_2() -> None:
    read = {
        (int(r[1].split()[0]), not r[1].endswith("no hierarchy")): tuple(map(figure, r[2:5]))
        for r in rows()
        if r[0] == "II"
    }
    assert read == {key: tuple(row) for key, row in TABLE_2.items()}
    assert read[80, True][0] == TABLE_1[110_426]  # the same experiment stands in both tables


def test_table_3() -> None:
    assert {r[1]: figure(r[2]) for r in rows() if r[0] == "III"} == TABLE_3


def test_no_row_is_left_over() -> None:
    assert len(rows()) == len(TABLE_1) + len(TABLE_2) + len(TABLE_3) == 15
