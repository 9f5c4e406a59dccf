"""Write the tables of the README and of docs/gpu.md from files in ``results/``: ``make tables``.

Each goes between ``<!-- NAME -->`` and ``<!-- /NAME -->``. Records are what ``hipnn reproduce``
wrote; ``compare.json`` is from ``examples/06_compare.py --json``, ``nve/`` holds ``report.json``
files of ``hipnn md``, for ``forces/`` see ``force_table.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from force_table import forces
from suite.report import short

from hipnn_pyg.reproduce.groups import groups_of
from hipnn_pyg.reproduce.outputs import OUTPUTS
from hipnn_pyg.reproduce.records import read_records
from hipnn_pyg.reproduce.report import Table
from hipnn_pyg.reproduce.tables import STATISTICS, number, provenance, published

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
MEASURED = ROOT / "benchmarks" / "results"
ON_A_GPU = ("gpu_batch_30", "gpu_batch_1024", "gpu_epoch", "gpu_ensemble")
OURS = ("HIPNN", "HIPNN captured", "HIPNN compiled")
ON_A_CPU = ("train_step", "inference", "memory", "large", "md")


def runs() -> str:
    """What was run of the paper's tables: our statistics, the paper's beside them."""
    records, rows = read_records(RESULTS / "records"), []
    for name, label in (("table2", "QM9, F = {}"), ("table1", "QM9, {}"), ("table3", "MD17, {}")):
        for row in OUTPUTS[name].usual_rows(records):
            if name == "table1" and row.key == "110426":
                continue  # stands in Table II
            for group in groups_of(row, records):
                cells = [label.format(row.label)]
                for statistic, (_, digits) in STATISTICS.items():
                    ours, paper = number(group.mean(statistic), digits), row.paper.get(statistic)
                    cells.append(f"{ours} ({published(paper, digits)})" if paper else ours)
                rows.append([*cells, provenance(group)])
    headings = ["MAE (paper)", "RMSE (paper)", "% > 1 kcal/mol (paper)"]
    return Table(["experiment", *headings, "trained"], rows, wide=("trained",)).markdown()


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
        if all(key in figures[name] for name in figures)
    ]
    options = measured["options"]
    note = (
        f"\n\n{options['minutes']:g} minutes of training each, batch {options['batch_size']}, seed "
        f"{options['seed']}, {measured['machine']}, torch {measured['torch']}, {measured['date']}."
    )
    return Table(["", *figures], rows).markdown() + note


def speed(entries: Sequence[str], peers: Sequence[str], alone: bool = False) -> str:
    """What the benchmarks found beside the peers, from their files.

    Args:
        entries: of the benchmarks.
        peers: implementations to show.
        alone: also what has no peer.
    """
    rows, origins = [], {}
    for file in entries:
        entry: dict[str, Any] = json.loads((MEASURED / f"{file}.json").read_text())
        machine, versions = entry["machine"], entry["versions"]
        where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
        origins[where, versions["torch"], entry["date"]] = None
        for row in entry["rows"]:
            ratios = {peer: ratio for peer, ratio in row["ratios"].items() if peer in peers}
            if row["ours"] not in row["figures"] or not (ratios or alone):
                continue
            samples = row["figures"][row["ours"]]["rounds"]
            once = ", one sample" if ratios and len(samples) == 1 else ""
            title = f"{row['title']} ({row['unit']}{once})"
            for name, figure in row["figures"].items():
                if alone and name in row["ratios"] and name not in (*peers, *OURS):
                    title += f"; {name}: {short(figure['median'])}"
            cells = [title, short(row["figures"][row["ours"]]["median"])]
            for peer in peers:
                there = peer in ratios and peer in row["figures"]
                theirs = row["figures"][peer]["median"] if there else 0.0
                cells.append(
                    f"{short(theirs)} (**{ratios[peer]['median']:.1f}x**)" if there else ""
                )
            rows.append(cells)
    places = "; ".join(f"{where}, torch {version}, {day}" for where, version, day in origins)
    note = f"\n\nMedians, less is better; in brackets their figure / ours, in turns. {places}."
    return Table(["", "HIPNN", *peers], rows).markdown() + note


def nve() -> str:
    """How well energy is conserved, from the reports of ``hipnn md``."""
    rows = []
    for path in sorted((RESULTS / "nve").glob("*.json")):
        report: dict[str, Any] = json.loads(path.read_text())
        figures = [f"{report['time']:g}", f"{report['temperature']:.0f}", f"{report['drift']:.5f}"]
        rows.append([path.stem.replace("-", " "), *figures, f"{report['fluctuation']:.4f}"])
    headings = ["trajectory learned", "ps", "K", "drift (meV/atom/ps)", "fluctuation (meV/atom)"]
    return Table(headings, rows).markdown()


def precision() -> str:
    """What lower precision does to a trained model, on a CPU and on a GPU."""
    rows, origins = [], []
    for name in ("precision", "gpu_precision"):
        entry: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text())
        mean_energy, most_energy, mean_force, most_force = (row["figures"] for row in entry["rows"])
        gpu = entry["machine"]["gpu"]
        for kind in mean_energy:
            if gpu or kind != "tf32":  # which a CPU has not
                cells = [
                    f"{short(mean[kind]['median'])} ({short(most[kind]['median'])})"
                    for mean, most in ((mean_energy, most_energy), (mean_force, most_force))
                ]
                rows.append([f"{kind}, {gpu or 'CPU'}", *cells])
        note = entry["rows"][0]["note"].split(";")[0]
        origins.append(
            f"{gpu or 'CPU'}: {note}, torch {entry['versions']['torch']}, {entry['date']}"
        )
    headings = [
        "",
        "energies: mean (largest) error, kcal/mol",
        "force components: mean (largest) error, kcal/mol/Å",
    ]
    return Table(headings, rows).markdown() + "\n\n" + "; ".join(origins) + "."


SECTIONS = {
    "runs": runs,
    "comparison": comparison,
    "speed": lambda: speed(ON_A_CPU, ("hippynn numba", "SchNet", "SchNetPack")),
    "gpu": lambda: speed(ON_A_GPU, ("hippynn triton", "SchNet"), alone=True),
    "forces": lambda: forces(RESULTS / "forces"),
    "nve": nve,
    "precision": precision,
}
PAGES = (ROOT / "README.md", ROOT / "docs" / "gpu.md")


def with_tables(text: str) -> str:
    """A page with its tables made anew.

    Args:
        text: the page.
    """
    for name, make in SECTIONS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, make=make: m[1] + make() + "\n" + m[2], text, flags=re.S)
    return text


def main() -> None:
    """Rewrite the tables of all pages."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))


if __name__ == "__main__":
    main()
