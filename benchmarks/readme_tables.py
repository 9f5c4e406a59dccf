"""Write the tables of the README from the files in ``results/``: ``make tables``.

Each goes between ``<!-- NAME -->`` and ``<!-- /NAME -->``. Run folders are what ``hipnn train``
and ``hipnn evaluate`` wrote; ``compare.json`` is from ``examples/06_compare.py --json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"


def markdown(headings: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table whose first column is text and the others numbers."""
    rule = "|---|" + "--:|" * (len(headings) - 1)
    return "\n".join([f"| {' | '.join(headings)} |", rule, *(f"| {' | '.join(r)} |" for r in rows)])


def runs() -> str:
    """One row per run folder: what was trained, our statistics, the paper's beside them."""
    rows = []
    for file in sorted(RESULTS.glob("*/results.json")):
        result = json.loads(file.read_text())
        model, paper = result["model"], result["paper"]
        settings = [
            file.parent.name,
            str(model["hyperparameters"]["hidden_channels"]),
            f"{model['num_train']:,}",
            f"{model['recipe']}, {model['epoch']}",
            f"{model['training_seconds'] / 60:.0f}",
        ]
        for key, digits in (("mae", 3), ("rmse", 3), ("above_1_kcal", 2)):
            settings.append(f"{result[key]:.{digits}f} ({paper.get(key, '-')})")
        rows.append([*settings, model["trained_on"]["date"]])
    headings = ["run", "F", "N_train", "recipe, best epoch", "minutes"]
    headings += ["MAE (paper)", "RMSE (paper)", "% > 1 kcal/mol (paper)", "date"]
    return markdown(headings, rows)


def comparison() -> str:
    """HIP-NN beside SchNet, and how it was measured."""
    measured: dict[str, Any] = json.loads((RESULTS / "compare.json").read_text())
    figures = measured["results"]
    rows = [
        [label, *(f"{figures[name][key]:,.{digits}f}" for name in figures)]
        for key, label, digits in (
            ("mae_kcal_per_mol", "test MAE (kcal/mol)", 3),
            ("rmse_kcal_per_mol", "test RMSE (kcal/mol)", 3),
            ("molecules_per_second", "training molecules/s", 0),
            ("epochs", "epochs seen", 2),
            ("parameters", "parameters", 0),
            ("peak_memory_mb", "peak memory of the process (MB)", 0),
        )
    ]
    options = measured["options"]
    note = (
        f"\n\n{options['minutes']:g} minutes of training each, batch {options['batch_size']}, seed "
        f"{options['seed']}, {measured['machine']}, torch {measured['torch']}, {measured['date']}."
    )
    return markdown(["", *figures], rows) + note


def main() -> None:
    """Rewrite the README's tables."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, make in (("runs", runs), ("comparison", comparison)):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, make=make: m[1] + make() + "\n" + m[2], text, flags=re.S)
    readme.write_text(text)


if __name__ == "__main__":
    main()
