"""Rows of results: interleaved samples, their medians and spreads, ratios, floors and goals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Samples = dict[str, list[float | None]]
"""One value per round of each implementation; None where it did not take part."""


class Unavailable(RuntimeError):
    """Something cannot be measured here; the message says why and becomes part of the result."""


def interleave(
    turns: Mapping[str, Callable[[int], float]],
    rounds: int,
    seldom: Collection[str] = (),
    every: int = 1,
) -> tuple[Samples, dict[str, str]]:
    """Let implementations take turns, so that a drift of the machine meets them all.

    The order turns round from one round to the next.

    Args:
        turns: each measures its implementation once, given the number of the round.
        rounds: how many.
        seldom: implementations that take part in every ``every``-th round only.
        every: see ``seldom``.

    Returns:
        The samples, and why implementations that raised :class:`Unavailable` have none.
    """
    samples: Samples = {name: [None] * rounds for name in turns}
    missing: dict[str, str] = {}
    for number in range(rounds):
        for name in list(turns)[:: 1 if number % 2 == 0 else -1]:
            if name in missing or (name in seldom and number % every):
                continue
            try:
                samples[name][number] = turns[name](number)
            except Unavailable as reason:
                missing[name] = str(reason)
    return {name: samples[name] for name in turns if name not in missing}, missing


def spread(values: Sequence[float | None]) -> dict[str, float]:
    """Median, smallest and largest of the rounds an implementation took part in."""
    there = [value for value in values if value is not None]
    return {"median": median(there), "min": min(there), "max": max(there)}


def ratio(peer: Sequence[float | None], ours: Sequence[float | None]) -> dict[str, float] | None:
    """Spread of peer / ours over the rounds that both took part in; None if there are none."""
    both = zip(peer, ours, strict=True)
    quotients = [a / b for a, b in both if a is not None and b is not None]
    return spread(quotients) if quotients else None


@dataclass(frozen=True)
class Goal:
    """What the figures should reach.

    Args:
        limit: least ratio peer / ours; without a peer the most our own figure may be.
        peer: the implementation of the ratio.
    """

    limit: float
    peer: str | None = None


@dataclass
class Row:
    """One comparison: samples of the same quantity for several implementations; less is better.

    Args:
        title: the quantity.
        unit: of all samples.
        ours: the implementation that ratios and goals are about.
        samples: see :func:`interleave`.
        missing: implementations without samples, and why.
        peers: the implementations to form ratios with.
        floor: the least possible figure, and what it is.
        goals: what the figures should reach.
        size: atoms of a large structure.
        molecules: molecules of one sample in ms, for molecules/s.
        note: what a reader must know.
    """

    title: str
    unit: str
    ours: str
    samples: Samples = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    peers: Sequence[str] = ()
    floor: tuple[float, str] | None = None
    goals: Sequence[Goal] = ()
    size: int | None = None
    molecules: int | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The row for the JSON file."""
        figures: dict[str, Any] = {n: {**spread(v), "rounds": v} for n, v in self.samples.items()}
        if self.molecules is not None:
            for figure in figures.values():
                figure["molecules_per_second"] = 1e3 * self.molecules / figure["median"]
        ours = self.samples.get(self.ours)
        ratios = {
            peer: ratio(self.samples[peer], ours)
            for peer in self.peers
            if peer in self.samples and ours is not None
        }
        return {
            "title": self.title,
            "unit": self.unit,
            "ours": self.ours,
            "figures": figures,
            "missing": self.missing,
            "ratios": ratios,
            "floor": self.floor and {"value": self.floor[0], "is": self.floor[1]},
            "goals": [self._judged(goal, figures, ratios) for goal in self.goals],
            "size": self.size,
            "note": self.note,
        }

    def _judged(self, goal: Goal, figures: Any, ratios: Any) -> dict[str, Any]:
        """A goal, the figure it is about, and whether it is met: None if not measured."""
        if goal.peer is None:
            value = figures[self.ours]["median"] if self.ours in figures else None
            text, met = f"at most {goal.limit:g} {self.unit}", value and value <= goal.limit
        else:
            value = (ratios.get(goal.peer) or {}).get("median")
            text, met = f"at least {goal.limit:g}x {goal.peer}", value and value >= goal.limit
        return {"goal": text, "value": value, "met": met}
