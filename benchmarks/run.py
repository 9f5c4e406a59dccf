"""Run the benchmarks: one JSON file per entry, one table, one plot.

    python benchmarks/run.py                      # everything, at most 10 minutes on 2 quiet cores
    python benchmarks/run.py --only train_step memory
    python benchmarks/run.py --quick --synthetic  # does it run? the figures mean nothing

``benchmarks/README.md`` says what each figure is.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from suite import machine, report
from suite.bench import Bench
from suite.dynamics import md
from suite.gpu import gpu_batch_30, gpu_batch_1024, gpu_ensemble, gpu_epoch, gpu_precision
from suite.large import large
from suite.memory import memory
from suite.precision import precision
from suite.rows import Row, Unavailable
from suite.settings import QUICK, Settings
from suite.starting import first_step
from suite.steps import inference, train_step
from suite.training import ensemble, trainer

ENTRIES: dict[str, Callable[[Bench], list[Row]]] = {
    "train_step": train_step,
    "inference": inference,
    "trainer": trainer,
    "memory": memory,
    "large": large,
    "md": md,
    "first_step": first_step,
    "ensemble": ensemble,
    "precision": precision,
    "gpu_batch_30": gpu_batch_30,
    "gpu_batch_1024": gpu_batch_1024,
    "gpu_epoch": gpu_epoch,
    "gpu_ensemble": gpu_ensemble,
    "gpu_precision": gpu_precision,
}
GROUPS = {"gpu": [name for name in ENTRIES if name.startswith("gpu_")]}
"""What ``--only`` takes for several entries."""


def parse(argv: Sequence[str] | None) -> Namespace:
    """Command-line options."""
    default = Settings()
    options = ArgumentParser(
        description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--only", nargs="+", choices=[*ENTRIES, *GROUPS], default=list(ENTRIES))
    options.add_argument("--quick", action="store_true", help="tiny sizes, to runs/benchmarks")
    options.add_argument("--out", type=Path, help="folder of the results")
    options.add_argument(
        "--root",
        default=os.environ.get("HIPNN_QM9", default.root),
        help="folder of QM9 ($HIPNN_QM9)",
    )
    options.add_argument("--synthetic", action="store_true", help="random molecules, not QM9")
    options.add_argument("--peers", nargs="*", default=default.peers, help="to compare with")
    options.add_argument("--run", help="run folder of the model of `precision`")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--seed", type=int, default=default.seed)
    arguments = options.parse_args(argv)
    arguments.only = [entry for name in arguments.only for entry in GROUPS.get(name, [name])]
    home = Path(__file__).resolve().parent
    if arguments.out is None:
        arguments.out = home.parent / "runs/benchmarks" if arguments.quick else home / "results"
    return arguments


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Run the entries; returns what their files hold."""
    arguments = parse(argv)
    names = ("root", "synthetic", "peers", "run", "threads", "seed")
    settings = Settings(
        **{name: getattr(arguments, name) for name in names},
        **(QUICK if arguments.quick else {}),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(settings)
    results = {}
    try:
        for name in arguments.only:
            began = time.monotonic()
            results[name] = measure(name, bench, arguments.quick)
            keep(arguments.out / f"{name}.json", results[name])
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    finally:
        bench.close()
    report.plot_scaling(arguments.out)
    print(report.write_table(arguments.out, ENTRIES))
    return results


def keep(file: Path, entry: dict[str, Any]) -> None:
    """Write an entry; what a machine without a GPU cannot measure, it leaves as another did."""
    unavailable = entry["missing"] and not entry["missing"].startswith("failed")
    if unavailable and file.exists() and json.loads(file.read_text())["rows"]:
        print(f"{file.name} stays as it is: {entry['missing']}")
        return
    text = json.dumps(entry, indent=2, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n")


def measure(name: str, bench: Bench, quick: bool) -> dict[str, Any]:
    """One entry: its rows, or why there are none, and where they come from."""
    settings = bench.settings
    rows: list[Row] = []
    missing = ""
    try:
        rows = ENTRIES[name](bench)
    except Unavailable as reason:
        missing = str(reason)
    except Exception as error:  # a broken entry is a result too, and the others go on
        traceback.print_exc()
        missing = f"failed: {type(error).__name__}: {error}"
    return {
        "entry": name,
        "is": (ENTRIES[name].__doc__ or "").split("\n")[0],
        "rows": [row.as_dict() for row in rows],
        "missing": missing,
        "machine": machine.hardware(settings.threads),
        "versions": machine.versions(),
        "molecules": "random molecules" if settings.synthetic else "QM9",
        "seed": settings.seed,
        "date": date.today().isoformat(),
        "quick": quick,
    }


if __name__ == "__main__":
    sys.exit(any(entry["missing"].startswith("failed") for entry in main().values()))
