"""The paper's tables and figures from our own runs: trains what is missing, prints both.

Every command may be stopped (Ctrl-C) and given again: finished runs have a record in results/,
unfinished ones go on from their checkpoint in results/runs/. The first split of all rows comes
first. --from-results trains nothing and needs no run folder. What the paper has is written to
results/NAME.md, .json and .png; another choice of data or network to NAME-own. Examples:

  hipnn reproduce table2 --rows 80 5 10 20 --epochs 100
  hipnn reproduce table2 --splits 8 --together          (on a GPU)
  hipnn reproduce table3 --rows benzene toluene --splits 3
  hipnn reproduce all --from-results
"""

from __future__ import annotations

from argparse import SUPPRESS
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console

from hipnn_pyg.cli.collect import collect, found, look_at, single_runs
from hipnn_pyg.cli.complete import Workshop, complete, say
from hipnn_pyg.cli.run_folder import of_class
from hipnn_pyg.reproduce.ablation import VARIATIONS, varied
from hipnn_pyg.reproduce.outputs import OUTPUTS, Output
from hipnn_pyg.reproduce.report import Report
from hipnn_pyg.reproduce.rows import Row
from hipnn_pyg.reproduce.tables import NOTE, Found
from hipnn_pyg.train import Training

NO_OPTIONS = {"seed", "split_seed", "devices", "num_nodes"}
"""Settings of training that are none here: there are several seeds, each with a split of its own,
on one device."""


def add_options(parser: ArgumentParser) -> None:
    """Options of ``hipnn reproduce``: one sub-command per table or figure."""
    outputs = parser.add_subcommands(title="what", metavar="WHAT", dest="what")
    for name, output in OUTPUTS.items():
        options = ArgumentParser(description=f"{output.help[0].upper()}{output.help[1:]}.")
        _add_places(options)
        options.add_argument("--from-results", action="store_true", help="print, train nothing")
        _add_choice(options, name, output)
        if output.chosen_by != "nothing":
            _add_budget(options, output)
        outputs.add_subcommand(name, options, help=output.help)

    help = "write records of finished runs, and all tables and figures"
    gather = ArgumentParser(description=f"{help[0].upper()}{help[1:]}.")
    gather.add_argument("folders", type=str, nargs="*", help="run folders besides those in --runs")
    gather.add_argument("--root", type=str | None, default=None, help="folder of the data set")
    _add_places(gather)
    outputs.add_subcommand("collect", gather, help=help)

    help = "print all tables, from the records alone"
    everything = ArgumentParser(description=f"{help[0].upper()}{help[1:]}.")
    everything.add_argument("--from-results", action="store_true", help=SUPPRESS)
    _add_places(everything)
    outputs.add_subcommand("all", everything, help=help)


def _add_places(options: ArgumentParser) -> None:
    options.add_argument("--results", type=str, default="results", help="records and reports")
    help = "run folders (null: RESULTS/runs)"
    options.add_argument("--runs", type=str | None, default=None, help=help)


def _add_choice(options: ArgumentParser, name: str, output: Output) -> None:
    """Which experiments."""
    if output.chosen_by == "rows":
        names = ["--rows", "--features"] if name == "table2" else ["--rows"]
        options.add_argument(*names, type=str, nargs="+", default=None, help=output.keys)
    elif output.chosen_by == "network":
        options.add_argument("--features", type=PositiveInt, default=80, help="N_feature")
        options.add_argument(
            "--num_interactions", type=PositiveInt, default=2, help="N_interaction"
        )
    if name == "ablation":
        help = f"NAME=VALUE, several in quotes; may be given often (null: {'; '.join(VARIATIONS)})"
        options.add_argument("--vary", type=str, action="append", default=None, help=help)


def _add_budget(options: ArgumentParser, output: Output) -> None:
    """How much training, on what data."""
    help = "random splits, seeds 0, 1 ...; the paper has 8"
    options.add_argument("--splits", type=PositiveInt, default=1, help=help)
    options.add_argument(
        "--seeds", type=NonNegativeInt, nargs="+", default=None, help="these seeds instead"
    )
    help = "train the splits of a row at once, in one process (for a GPU)"
    options.add_argument("--together", action="store_true", help=help)
    options.add_class_arguments(output.data, skip=set(output.fixed))
    options.add_class_arguments(Training, skip=NO_OPTIONS)
    options.set_defaults(output.defaults)


def run(arguments: Namespace) -> None:
    """Train what is missing, print, write."""
    what = arguments.what
    options = arguments[what].as_dict()
    results = Path(options["results"])
    runs = Path(options["runs"] or results / "runs")
    console = Console()
    if what not in OUTPUTS:
        if what == "collect":
            _collect(options, results, runs)
        everything = found(results, runs)
        shown, usual = _all_reports(everything), True
    else:
        output = OUTPUTS[what]
        rows = _rows(output, options)
        if rows and not options["from_results"]:
            _train(output, rows, options, Workshop(results, runs, output.part))
        everything = found(results, runs)
        shown = [output.report(rows, everything)]
        known = [row.settings for row in output.usual_rows(everything.records)]
        usual = all(row.settings in known for row in rows)
    said: set[str] = set()
    for report in shown:
        report.show(console, said)
        said |= {NOTE} & {*report.text}
    if what != "all" and not options.get("from_results"):
        records = Found(everything.records)  # how far the others are changes while one looks
        own = [replace(report, name=f"{what}-own") for report in shown]
        for report in _all_reports(records) if usual else own:
            for path in report.write(results):
                say(str(path))


def _rows(output: Output, options: dict[str, Any]) -> list[Row]:
    """The experiments that the options choose."""
    if output.chosen_by == "nothing":
        return []
    data = of_class(output.data, options)
    if output.chosen_by == "rows":
        return output.rows(data, options["rows"])
    return output.rows(data, int(options["features"]), int(options["num_interactions"]))


def _train(output: Output, rows: list[Row], options: dict[str, Any], workshop: Workshop) -> None:
    """Make the records that are missing, the first split of everything first."""
    training = of_class(Training, options)
    settings = [training.resolved()]
    if "vary" in options:
        variations = VARIATIONS if options["vary"] is None else options["vary"]
        settings += [varied(training, variation).resolved() for variation in variations]
    seeds = [int(seed) for seed in options["seeds"] or range(options["splits"])]
    complete(rows, settings, seeds, workshop, options["together"])


def _collect(options: dict[str, Any], results: Path, runs: Path) -> None:
    """Records of finished runs that have none, and of the folders that were named."""
    done = [record.settings for record in found(results, runs).records]
    finished = [run for run in map(look_at, single_runs(runs)) if run.finished]
    paths = [run.folder.path for run in finished if run.settings not in done]
    for path in [*paths, *map(Path, options["folders"])]:
        written = collect(path, results, options["root"])
        say(str(written))


def _all_reports(found: Found) -> list[Report]:
    """Every table and figure, of the paper's experiments and others like them."""
    return [output.report(output.usual_rows(found.records), found) for output in OUTPUTS.values()]
