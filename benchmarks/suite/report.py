"""From the JSON files of a run to one Markdown table and one plot."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEADINGS = ("what", "unit", "ours (smallest-largest)", "others", "other / ours", "floor", "goal")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """All entries that have a file, by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def write_table(folder: Path, order: Iterable[str]) -> str:
    """Write ``README.md`` from the JSON files; returns its text.

    Args:
        folder: where they are.
        order: names of entries, in the order of the table.
    """
    entries = read(folder)
    entries = {name: entries[name] for name in order if name in entries}
    lines = [
        "# Results",
        "",
        "Written by `benchmarks/run.py` from the JSON files beside it. Medians; less is better. "
        "What each figure is: [`../README.md`](../README.md).",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|" + "---|" * len(HEADINGS),
    ]
    for name, entry in entries.items():
        if entry["missing"]:
            lines.append(f"| {name} | | not measured: {entry['missing']} | | | | |")
        lines += [f"| {' | '.join(_cells(row))} |" for row in entry["rows"]]
    lines += ["", *_origins(entries), ""]
    if (folder / "scaling.png").exists():
        lines += ["![Time and memory against the number of atoms](scaling.png)", ""]
    text = "\n".join(lines)
    (folder / "README.md").write_text(text)
    return text


def _cells(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    figures, ours = row["figures"], row["ours"]
    mine = "not measured"
    if ours in figures:
        best = figures[ours]
        mine = f"{ours} **{short(best['median'])}** ({short(best['min'])}-{short(best['max'])})"
    others = [f"{name} {short(f['median'])}" for name, f in figures.items() if name != ours]
    for reason in dict.fromkeys(row["missing"].values()):
        names = [name for name, why in row["missing"].items() if why == reason]
        others.append(f"not measured ({reason}): {', '.join(names)}")
    ratios = [
        f"{name} **{ratio['median']:.2f}** ({ratio['min']:.2f}-{ratio['max']:.2f})"
        for name, ratio in row["ratios"].items()
        if ratio
    ]
    verdict = {True: "met", False: "**not met**", None: "not measured"}
    goals = [f"{goal['goal']}: {verdict[goal['met']]}" for goal in row["goals"]]
    floor = short(row["floor"]["value"]) if row["floor"] else ""
    title = row["title"] + (f" ({row['note']})" if row["note"] else "")
    listed = ("<br>".join(cell) for cell in (others, ratios))
    return [title, row["unit"], mine, *listed, floor, "<br>".join(goals)]


def short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _origins(entries: dict[str, dict[str, Any]]) -> list[str]:
    """Which entries come from which machine, versions and day."""
    origins: dict[str, list[str]] = {}
    for name, entry in entries.items():
        machine = entry["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in entry["versions"].items() if v)
        origin = (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, GPU: "
            f"{machine['gpu'] or 'none'}; {versions}; {entry['molecules']}; seed {entry['seed']}; "
            f"{entry['date']}" + ("; --quick: the figures mean nothing" if entry["quick"] else "")
        )
        origins.setdefault(origin, []).append(name)
    return [f"- {', '.join(names)}: {origin}." for origin, names in origins.items()]


def plot_scaling(folder: Path) -> None:
    """Draw ``scaling.png``, time and memory of large structures, if there are figures."""
    entry = read(folder).get("large", {"rows": []})
    panels = {"µs/atom": ("time of an energy (s)", 1e-6), "bytes/atom": ("memory (GB)", 1e-9)}
    rows = [row for row in entry["rows"] if row["unit"] in panels and row["figures"]]
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, (unit, (label, scale)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in (row for row in rows if row["unit"] == unit):
            for name, values in row["figures"].items():
                total = values["median"] * row["size"] * scale
                curves.setdefault("neighbour search" if name == "search" else name, []).append(
                    (row["size"], total)
                )
        for name, points in curves.items():
            axes.loglog(*zip(*points, strict=True), "o-", label=name)
        axes.set_xlabel("atoms")
        axes.set_ylabel(label)
        axes.legend()
    figure.savefig(folder / "scaling.png", dpi=150)
