"""Runs that differ in the seed alone, their means and error bars, and what they are called."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from hipnn_pyg.data.sets import SETS
from hipnn_pyg.reproduce.records import Record
from hipnn_pyg.reproduce.rows import Row
from hipnn_pyg.train.config import Network, Training


class Mean(NamedTuple):
    """Mean over runs and its error bar, the sample standard deviation over the root of their
    number; fewer than three have none."""

    value: float
    bar: float | None


def mean(values: Sequence[float]) -> Mean:
    """The mean of at least one value."""
    enough = len(values) >= 3
    bar = statistics.stdev(values) / math.sqrt(len(values)) if enough else None
    return Mean(statistics.fmean(values), bar)


@dataclass(frozen=True)
class Group:
    """Runs with equal settings but for the seed, judged by equally many molecules.

    Args:
        records: in the order of their seeds.
    """

    records: tuple[Record, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What the runs share."""
        return {k: v for k, v in self.records[0].settings.items() if k != "seed"}

    @property
    def seconds(self) -> float:
        """Of training, mean over the runs."""
        return statistics.fmean(record.seconds for record in self.records)

    @property
    def hardware(self) -> str:
        """What the runs were trained on."""
        return " / ".join(dict.fromkeys(record.hardware for record in self.records))

    def mean(self, statistic: str) -> Mean | None:
        """Mean of a number that every record has; None where it has no meaning."""
        values = [getattr(record, statistic) for record in self.records]
        return None if None in values else self._mean(values)

    def means(self, statistic: str) -> list[Mean]:
        """Means of a list that every record has, entry by entry."""
        columns = zip(*(getattr(record, statistic) for record in self.records), strict=True)
        return [self._mean(column) for column in columns]

    @property
    def num_splits(self) -> int:
        """Different splits among the runs: models on one split have no error bar."""
        return len({record.split_sha256 for record in self.records})

    def _mean(self, values: Sequence[float]) -> Mean:
        found = mean(values)
        return found if self.num_splits == len(self.records) else found._replace(bar=None)


def groups(records: Iterable[Record]) -> list[Group]:
    """Sort records into groups, best mean MAE first."""
    sorted_in: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        shared = {k: v for k, v in record.settings.items() if k != "seed"}
        key = json.dumps([record.part, record.num, shared], sort_keys=True)
        sorted_in.setdefault(key, []).append(record)
    made = [Group(tuple(members)) for members in sorted_in.values()]
    return sorted(made, key=lambda group: statistics.fmean(r.mae for r in group.records))


def is_of(row: Row, settings: Mapping[str, Any]) -> bool:
    """Whether these are the settings of a run of this experiment."""
    return all(settings.get(name) == value for name, value in row.settings.items())


def groups_of(row: Row, records: Iterable[Record], part: str = "test") -> list[Group]:
    """The groups of one experiment, best mean MAE first."""
    return groups(r for r in records if r.part == part and is_of(row, r.settings))


def changes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of training that differ from the recipe's own, but for epochs and seed.

    Settings that this version does not know are among them.
    """
    usual = asdict(Training(recipe=settings["recipe"]).resolved())
    others = {f.name for kind in (SETS[settings["dataset"]], Network) for f in fields(kind)}
    apart = others | {"dataset", "recipe", "epochs", "seed"}
    return {
        name: value
        for name, value in settings.items()
        if name not in apart and (name not in usual or value != usual[name])
    }


def words(changed: Mapping[str, Any]) -> str:
    """Settings as text: "learning_rate = 0.002, batch_size = 60"."""
    return ", ".join(f"{name} = {_short(value)}" for name, value in changed.items())


def _short(value: Any) -> str:
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else str(value)


def trained_as(settings: Mapping[str, Any], epochs: float) -> str:
    """Recipe, epochs done and what differs from the recipe."""
    text = f"{settings['recipe']}, {epochs:,.0f} epochs"
    changed = words(changes(settings))
    return f"{text}, {changed}" if changed else text
