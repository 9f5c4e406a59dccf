"""hipnn_pyg/paper.py and datasets/paper/README.md carry the same figures."""

from __future__ import annotations

import re
from pathlib import Path

from hipnn_pyg.models import HIPNN
from hipnn_pyg.paper import (
    NUM_SPLITS,
    TABLE_1,
    TABLE_1_OTHERS,
    TABLE_2,
    TABLE_3,
    TABLE_3_50K,
    TABLE_3_OTHERS,
)

README = Path(__file__).parents[1] / "datasets" / "paper" / "README.md"
TEXT = README.read_text()


def rows(table: str = "I") -> list[list[str]]:
    """Cells of the table rows that begin so."""
    lines = [line for line in TEXT.splitlines() if line.startswith(f"| {table}")]
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
    assert read == {key: row[:3] for key, row in TABLE_2.items()}
    assert read[80, True][0] == TABLE_1[110_426]  # the same experiment stands in both tables


def test_parameters_of_table_2() -> None:
    """The printed counts are in the README and are those of the models."""
    for (features, hierarchical), row in TABLE_2.items():
        assert f"{row.parameters} (F = {features})" in TEXT
        count = HIPNN(hidden_channels=features, hierarchical=hierarchical).num_parameters
        printed = float(row.parameters.removesuffix("k"))
        digits = 1 if "." in row.parameters else 0
        assert round(count / 1000, digits) == printed


def test_table_3() -> None:
    assert {r[1]: figure(r[2]) for r in rows() if r[0] == "III"} == TABLE_3
    for molecule, (mae, bar) in TABLE_3_50K.items():
        assert f"{molecule} {mae:.3f} ± {bar:.3f}" in TEXT
        assert mae < TABLE_3[molecule][0]  # more frames, smaller errors


def test_other_models() -> None:
    first = {
        (str(size), model): mae
        for size, row in TABLE_1_OTHERS.items()
        for model, mae in row.items()
    }
    third = {
        (f"{molecule}, {frames} frames, {trained_on}", model): mae
        for (frames, trained_on), molecules in TABLE_3_OTHERS.items()
        for molecule, row in molecules.items()
        for model, mae in row.items()
    }
    read = {(r[1], r[2]): float(r[3]) for r in rows("quoted in")}
    assert read == {**first, **third} and len(read) == 8 + 24
    assert all(mae > TABLE_1[n][0] for n, row in TABLE_1_OTHERS.items() for mae in row.values())


def test_no_row_is_left_over() -> None:
    assert len(rows()) == len(TABLE_1) + len(TABLE_2) + len(TABLE_3) == 15
    assert NUM_SPLITS == 8 and f"mean over {NUM_SPLITS} random splits" in " ".join(TEXT.split())
