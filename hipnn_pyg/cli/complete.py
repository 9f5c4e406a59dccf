"""Train what is missing for some experiments, and go on with what was cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from hipnn_pyg.cli.collect import (
    RECORDS,
    Part,
    collect,
    ensemble_of,
    look_at,
    settings_of,
    single_runs,
    tidy,
)
from hipnn_pyg.cli.ensemble import train_ensemble
from hipnn_pyg.cli.hardware import hardware
from hipnn_pyg.cli.run_folder import RunFolder
from hipnn_pyg.cli.train import train
from hipnn_pyg.data.unavailable import DatasetUnavailableError
from hipnn_pyg.reproduce.names import run_name
from hipnn_pyg.reproduce.records import completed, read_records
from hipnn_pyg.reproduce.rows import Row
from hipnn_pyg.train import Training, TrainingStopped

IGNORED = "logs/\nplots/\npredictions.npz\n*.tmp\n"
"""What git need not keep of run folders; the rest is what an unfinished run goes on from."""


@dataclass(frozen=True)
class Workshop:
    """Where runs are made and what for.

    Args:
        results: records go to its folder ``records``.
        runs: run folders: ``NAME/seed-K``, and ``NAME/seeds-K-L/member-M`` for ensembles.
        part: the molecules that records are about.
    """

    results: Path
    runs: Path
    part: Part

    def recorded(self, row: Row, training: Training) -> bool:
        """Whether there is a record of this run."""
        wanted = settings_of(row.molecules, row.network, training)
        records = read_records(self.results / RECORDS)
        return any(record.settings == wanted and record.part == self.part for record in records)

    def find(self, row: Row, training: Training) -> Path | None:
        """The folder of this run, begun or not."""
        wanted = settings_of(row.molecules, row.network, training)
        for path in single_runs(self.runs):
            if completed(RunFolder(path).read_config()) == wanted:
                return path
        return None

    def new_folder(self, row: Row, training: Training, last: str) -> Path:
        """A folder that holds no run yet."""
        parent = self.runs / run_name(settings_of(row.molecules, row.network, training))
        tries = (parent / (last if n == 1 else f"{last}-{n}") for n in count(1))
        return next(path for path in tries if not (path / "config.yaml").exists())


def complete(
    rows: Sequence[Row],
    settings: Sequence[Training],
    seeds: Sequence[int],
    workshop: Workshop,
    together: bool = False,
) -> None:
    """Make the record of every row, setting and seed that has none; the first seed comes first.

    Runs that were cut off go on from their checkpoints. Rows whose data set is not there are named
    once and left out.

    Args:
        rows: experiments.
        settings: of training; the seed is replaced.
        seeds: of splits and weights.
        workshop: where to.
        together: train the seeds of a row at once, in one process (for a GPU).

    Raises:
        TrainingStopped: on Ctrl-C or SIGTERM, after a checkpoint; or a loss that is not finite.
    """
    workshop.runs.mkdir(parents=True, exist_ok=True)
    ignore = workshop.runs / ".gitignore"
    if not ignore.exists():
        ignore.write_text(IGNORED)
    unavailable = set()
    for row, training, some in _jobs(rows, settings, seeds, together):
        if row.key in unavailable:
            continue
        try:
            if len(some) > 1:
                _train_together(row, training, some, workshop)
            else:
                _make_record(row, replace(training, seed=some[0]), workshop)
        except DatasetUnavailableError as error:
            unavailable.add(row.key)
            say(f"{row.label}: not run: {error}")


def _jobs(
    rows: Sequence[Row], settings: Sequence[Training], seeds: Sequence[int], together: bool
) -> Iterator[tuple[Row, Training, Sequence[int]]]:
    """Which runs come after which; what was not trained together then comes one by one."""
    for some in [seeds] if together else [[seed] for seed in seeds]:
        for training in settings:
            if together:
                yield from ((row, training, some) for row in rows)
            yield from ((row, training, [seed]) for seed in some for row in rows)


def _train_together(row: Row, training: Training, seeds: Sequence[int], workshop: Workshop) -> None:
    """Train those of some seeds at once that have neither a record nor a folder."""
    each = {seed: replace(training, seed=seed) for seed in seeds}
    new = [
        seed
        for seed, seeded in each.items()
        if not workshop.recorded(row, seeded) and workshop.find(row, seeded) is None
    ]
    if len(new) < 2 or new != list(range(new[0], new[-1] + 1)):
        return  # one by one
    path = workshop.new_folder(row, training, f"seeds-{new[0]}-{new[-1]}")
    say(f"{row.label}, seeds {new[0]} to {new[-1]}: training in {path}")
    with _stops():
        train_ensemble(row.molecules, row.network, each[new[0]], path, len(new))


def _make_record(row: Row, training: Training, workshop: Workshop) -> None:
    """Train or go on with one run and write its record, unless there is one."""
    if workshop.recorded(row, training):
        return
    what = f"{row.label}, seed {training.seed}"
    path = workshop.find(row, training)
    if path is None:
        path = workshop.new_folder(row, training, f"seed-{training.seed}")
    run = look_at(path) if (path / "config.yaml").exists() else None
    trained_here = ""
    if run is None or not run.finished:
        begun = run is not None and run.begun
        say(f"{what}: {'going on' if begun else 'training'} in {path}")
        ensemble = ensemble_of(path)
        with _stops():
            if ensemble is None:
                train(row.molecules, row.network, training, path, resume=begun)
            else:
                first = replace(training, seed=ensemble.seed)
                train_ensemble(row.molecules, row.network, first, path.parent, ensemble.number,
                               resume=RunFolder(path.parent).begun)  # fmt: skip
        trained_here = hardware(training.device)
    root = getattr(row.molecules, "root", None)
    written = collect(path, workshop.results, root, workshop.part, trained_here)
    tidy(path)
    say(f"{what}: {written}")


def say(text: str) -> None:
    """Print a line at once; paths in it stay whole, however narrow the terminal is."""
    print(text, flush=True)


@contextmanager
def _stops() -> Iterator[None]:
    """A run that is stopped says how this command goes on with it: by being given again."""
    try:
        yield
    except TrainingStopped as error:
        if not error.interrupted:
            raise
        where = str(error).partition("; go on")[0]
        raise TrainingStopped(f"{where}; the same command goes on", interrupted=True) from error
