"""One prediction taken apart: E_i^n and R of every atom, as a page or as text.

>>> parts = break_down(models, data, unit="eV")  # doctest: +SKIP
>>> parts.terms, parts.r_atoms  # [N, num_interactions + 1], [N]  # doctest: +SKIP
"""

from hipnn_pyg.explain.breakdown import Breakdown, break_down
from hipnn_pyg.explain.page import Report, render
from hipnn_pyg.explain.standing import Standing, known_r, stand
from hipnn_pyg.explain.text import summary, tables
from hipnn_pyg.explain.trust import Trust, judge

__all__ = [
    "Breakdown",
    "Report",
    "Standing",
    "Trust",
    "break_down",
    "judge",
    "known_r",
    "render",
    "stand",
    "summary",
    "tables",
]
