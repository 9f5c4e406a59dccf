"""Short runs that differ in one setting: what helps, on validation molecules only.

Settings are chosen by these figures, so the test set has no part in them.
"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from jsonargparse import ArgumentParser

from hipnn_pyg.reproduce.groups import Group, changes, groups_of, words
from hipnn_pyg.reproduce.report import Report, Table
from hipnn_pyg.reproduce.rows import Row
from hipnn_pyg.reproduce.tables import TRAINED, Found, group_data, number, provenance
from hipnn_pyg.train.config import Training

NUM_TRAIN, NUM_VALIDATION = 105_426, 5_000

VARIATIONS = (
    "energy_scale=total",
    "lambda_r=0",
    "lambda_r=1e-3",
    "lambda_l2=0",
    "learning_rate=5e-4",
    "learning_rate=2e-3",
    "batch_size=60 learning_rate=2e-3",
    "average_decay=0",
    "recipe=paper",
)
"""What is varied by default; ``average_decay=0`` keeps no average."""


def varied(training: Training, variation: str) -> Training:
    """The settings with some of them changed.

    Args:
        training: the settings to start from.
        variation: "NAME=VALUE", several separated by spaces; "" changes nothing.

    Raises:
        ValueError: no such setting, or a value that it does not take.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Training)
    parser.set_defaults(asdict(training))
    known = {field.name for field in fields(Training)} - {"seed"}
    for item in variation.split():
        name, equals, _ = item.partition("=")
        if name not in known or not equals:
            raise ValueError(
                f"--vary {variation!r}: {item!r} is no NAME=VALUE of a setting of training; "
                f"the names are {', '.join(sorted(known))}"
            )
    try:
        parsed = parser.parse_args([f"--{item}" for item in variation.split()])
    except ArgumentError as error:
        raise ValueError(f"--vary {variation!r}: {error}") from error
    return Training(**parsed.as_dict())


def ablation(row: Row, found: Found) -> Report:
    """Validation errors of all runs of one experiment that were judged by validation.

    Runs of equal length are compared with the one from which all others differ least.

    Args:
        row: data set, sizes and network.
        found: all runs.
    """
    name, title = "ablation", f"One setting changed at a time, {row.label} features"
    families: dict[int, list[Group]] = {}
    for group in groups_of(row, found.records, "validation"):
        families.setdefault(group.settings["epochs"], []).append(group)
    if not families:
        return Report(name, title, text=("not run",))
    lines, data = [], []
    for _, family in sorted(families.items()):
        base = unchanged(family)
        for group in sorted(family, key=lambda group: group is not base):
            changed = differing(group, base)
            against = None if group is base else _against(group, base)
            lines.append(_line(group, changed, against))
            kept = group_data(group, row, ("mae", "rmse"))
            data.append({"changed": changed, "against_unchanged_percent": against, **kept})
    headings = ["changed", "MAE (kcal/mol)", "against unchanged (%)", "RMSE (kcal/mol)", "mean R"]
    table = Table([*headings, TRAINED], lines, wide=(TRAINED,))
    text = f"Errors on {row.molecules.num_validation:,} validation molecules, not on the test set."
    return Report(name, title, table, (text,), data)


def differing(group: Group, base: Group) -> dict[str, Any]:
    """Settings of training in which a group differs from another."""
    names = [field.name for field in fields(Training) if field.name in group.settings]
    return {
        name: group.settings[name]
        for name in names
        if group.settings[name] != base.settings.get(name)
    }


def unchanged(family: Sequence[Group]) -> Group:
    """The group that the others differ from least; of two, the one nearer to the recipe's own."""
    return min(
        family,
        key=lambda base: (
            sum(len(differing(group, base)) for group in family),
            len(changes(base.settings)),
        ),
    )


def _against(group: Group, base: Group) -> float | None:
    """Difference of the mean MAE from that of another group over the seeds that both have (%)."""
    mae, usual = ({record.seed: record.mae for record in of.records} for of in (group, base))
    seeds = sorted(mae.keys() & usual.keys())
    if not seeds:
        return None
    return round(100 * (sum(mae[s] for s in seeds) / sum(usual[s] for s in seeds) - 1), 2)


def _line(group: Group, changed: Mapping[str, Any], against: float | None) -> list[str]:
    kept = [record.arrays().get("nonhierarchicality") for record in group.records]
    R = [float(values.mean()) for values in kept if values is not None]
    return [
        words(changed) or "nothing",
        number(group.mean("mae"), 4),
        "-" if against is None else f"{against:+.1f}",
        number(group.mean("rmse"), 4),
        f"{sum(R) / len(R):.2f}" if R else "-",
        provenance(group),
    ]
