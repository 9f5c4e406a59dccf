"""Every table and figure that can be reproduced: which experiments it needs, what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hipnn_pyg.data.sets import MD17Set, QM9Set, describe
from hipnn_pyg.reproduce.ablation import NUM_TRAIN, NUM_VALIDATION, ablation
from hipnn_pyg.reproduce.curves import learning_curve, time_curve
from hipnn_pyg.reproduce.figures import fig_2, fig_3, orders, trained_sensitivities
from hipnn_pyg.reproduce.groups import groups_of
from hipnn_pyg.reproduce.records import Record
from hipnn_pyg.reproduce.report import Report
from hipnn_pyg.reproduce.rows import NO_HIERARCHY, Row, one_network, table_1, table_2, table_3
from hipnn_pyg.reproduce.tables import STATISTICS, Found, accuracy
from hipnn_pyg.train.config import Network


@dataclass(frozen=True)
class Output:
    """A table or figure.

    Args:
        help: one line.
        rows: its experiments; called with the data set and, by name, what ``chosen_by`` names.
        report: what it says about them.
        chosen_by: "rows" (any keys), "network" (one number of features) or "nothing" (no runs).
        keys: what ``--rows`` takes.
        data: QM9Set or MD17Set.
        fixed: settings of the data set that are no options.
        defaults: options whose default differs from the usual.
        part: the molecules its records are about.
        key_of: the key of the row that a run with such settings may belong to; runs of rows that
            the paper has not are then listed, too.
    """

    help: str
    rows: Callable[..., list[Row]]
    report: Callable[[Sequence[Row], Found], Report]
    chosen_by: Literal["rows", "network", "nothing"] = "network"
    keys: str = ""
    data: type[QM9Set] | type[MD17Set] = QM9Set
    fixed: frozenset[str] = frozenset({"target"})
    defaults: dict[str, Any] = field(default_factory=dict)
    part: Literal["test", "validation"] = "test"
    key_of: Callable[[Mapping[str, Any]], str] | None = None

    def usual_rows(self, records: Sequence[Record] = ()) -> list[Row]:
        """The experiments where no option is given.

        Args:
            records: their experiments are added, as far as they differ from the others in what
                ``--rows`` chooses.
        """
        names = {"num_train", "num_validation"} & self.defaults.keys()
        data = self.data(**{name: self.defaults[name] for name in names})
        rows = self.rows(data)
        if self.key_of is None:
            return rows
        mine = {"dataset": describe(data)["dataset"], "num_validation": data.num_validation}
        settings = [r.settings for r in records if mine.items() <= r.settings.items()]
        keys = {self.key_of(s) for s in settings}
        for row in self.rows(data, sorted(keys - {row.key for row in rows}, key=_natural)):
            if groups_of(row, records, self.part):
                rows.append(row)
        return rows


def _natural(key: str) -> tuple[int, str]:
    """Numbers by size, then names."""
    digits = key.partition("-")[0]
    return (int(digits) if digits.isdecimal() else 0, key)


def _size_of(settings: Mapping[str, Any]) -> str:
    return str(settings["num_train"] + settings["num_validation"])


def _network_of(settings: Mapping[str, Any]) -> str:
    return f"{settings['hidden_channels']}{'' if settings['hierarchical'] else NO_HIERARCHY}"


def _trajectory_of(settings: Mapping[str, Any]) -> str:
    return str(settings["molecule"])


def _table_1(rows: Sequence[Row], found: Found) -> Report:
    title = "Table I: QM9, MAE against N_train + N_validate, 80 features"
    return accuracy("table1", title, "N_train + N_validate", rows, found, ["mae"])


def _table_2(rows: Sequence[Row], found: Found) -> Report:
    title = f"Table II: QM9, networks of different size, {_size(rows)}"
    return accuracy("table2", title, "N_feature", rows, found, list(STATISTICS))


def _table_3(rows: Sequence[Row], found: Found) -> Report:
    title = f"Table III: MD17 trajectories, energies only, {_size(rows)}"
    return accuracy("table3", title, "trajectory", rows, found, ["mae", "rmse"])


def _size(rows: Sequence[Row]) -> str:
    data = rows[0].molecules
    return f"N_train = {data.num_train:,}, N_validate = {data.num_validation:,}"


OUTPUTS: dict[str, Output] = {
    "table1": Output(
        "QM9 with training sets of three sizes",
        table_1,
        _table_1,
        chosen_by="rows",
        keys="N_train + N_validate (default: 110426 100000 50000)",
        fixed=frozenset({"target", "num_train"}),
    ),
    "table2": Output(
        "QM9 with networks of eight sizes",
        table_2,
        _table_2,
        chosen_by="rows",
        keys="N_feature, or e.g. 80-no-hierarchy (default: the paper's eight)",
        key_of=_network_of,
    ),
    "table3": Output(
        "MD17 trajectories, energies only",
        table_3,
        _table_3,
        chosen_by="rows",
        keys="any that hipnn train md17 --molecule takes (default: the paper's four)",
        data=MD17Set,
        fixed=frozenset({"molecule", "forces"}),
        defaults={"epochs": 2000},
        key_of=_trajectory_of,
    ),
    "fig2": Output(
        "the initial sensitivities (needs no runs)",
        lambda data: [],
        lambda rows, found: fig_2(Network()),
        chosen_by="nothing",
    ),
    "fig3": Output(
        "quantiles of the error against R",
        one_network,
        lambda rows, found: fig_3(rows[0], found),
    ),
    "orders": Output(
        "mean abs(E^n), and the error of the energy truncated after each order",
        one_network,
        lambda rows, found: orders(rows[0], found),
    ),
    "sensitivities": Output(
        "the sensitivities before and after training",
        one_network,
        lambda rows, found: trained_sensitivities(rows[0], found),
    ),
    "learning-curve": Output(
        "MAE against N_train",
        table_1,
        learning_curve,
        chosen_by="rows",
        keys="N_train + N_validate, any numbers (default: Table I's)",
        fixed=frozenset({"target", "num_train"}),
        key_of=_size_of,
    ),
    "time-curve": Output(
        "MAE against the time of training",
        one_network,
        lambda rows, found: time_curve(rows[0], found),
    ),
    "ablation": Output(
        "short runs that differ in one setting, judged by validation molecules",
        one_network,
        lambda rows, found: ablation(rows[0], found),
        defaults={"epochs": 4, "num_train": NUM_TRAIN, "num_validation": NUM_VALIDATION},
        part="validation",
    ),
}
