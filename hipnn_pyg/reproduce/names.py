"""Names of run folders and records: for people, not for programs, which read the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hipnn_pyg.data.sets import QM9Set
from hipnn_pyg.reproduce.groups import changes, words
from hipnn_pyg.reproduce.records import Record
from hipnn_pyg.reproduce.rows import TABLE_3_NETWORK
from hipnn_pyg.train.config import Network


def run_name(settings: Mapping[str, Any]) -> str:
    """A name for runs that differ in the seed alone, such as "qm9-110426-f80-fast-100".

    Args:
        settings: of data set, network and training.
    """
    s = settings
    size = str(s["num_train"] + s["num_validation"] if s["dataset"] == "qm9" else s["num_train"])
    usual = {**_network(s["dataset"]), "hidden_channels": s["hidden_channels"]}
    usual |= {"num_validation": 1_000, "target": QM9Set.target, "forces": False}
    usual |= {"hierarchical": s["hierarchical"]}
    unusual = {name: s[name] for name, value in usual.items() if name in s and s[name] != value}
    changed = changes(s)
    if "start" in changed:
        changed["start"] = Path(changed["start"]).name
    parts = [
        s["dataset"],
        str(s.get("molecule", "")).replace(" ", "-"),
        size,
        f"f{s['hidden_channels']}",
        "" if s["hierarchical"] else "no-hierarchy",
        s["recipe"],
        str(s["epochs"]),
        words({**unusual, **changed}).replace(" = ", "=").replace(", ", "-"),
    ]
    return "-".join(part for part in parts if part)


def record_name(record: Record, others: Sequence[Record]) -> str:
    """The name of a record: that of an older one with the same settings, else one not taken.

    Args:
        record: to be named.
        others: what is there already.
    """
    base = f"{run_name(record.settings)}-seed-{record.seed}"
    if record.part != "test":
        base = f"{base}-{record.part}"
    taken = {other.arrays_path.stem: other for other in others}
    name, number = base, 1
    while name in taken and not _same(taken[name], record):
        number += 1
        name = f"{base}-{number}"
    return name


def _same(one: Record, other: Record) -> bool:
    keys = [(each.settings, each.part, each.split_sha256) for each in (one, other)]
    return keys[0] == keys[1]


def _network(dataset: str) -> dict[str, Any]:
    return asdict(TABLE_3_NETWORK if dataset == "md17" else Network())
