"""The experiments of the paper's tables: data set, network, and what was printed for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hipnn_pyg.data.sets import MD17Set, MoleculeSet, QM9Set, describe
from hipnn_pyg.data.splits import QM9_SIZES
from hipnn_pyg.paper import TABLE_1, TABLE_2, TABLE_3, Estimate
from hipnn_pyg.reproduce.records import NO_RESULT
from hipnn_pyg.train.config import Network

NO_HIERARCHY = "-no-hierarchy"
TABLE_3_NETWORK = Network(hidden_channels=20, num_onsite=0)


@dataclass(frozen=True)
class Row:
    """One experiment, whatever the budget of its training.

    Args:
        key: its name on the command line.
        label: its name in the table.
        molecules: data set and sizes.
        network: the network.
        paper: statistic -> (mean, error bar) as printed; {} for what the paper has not.
    """

    key: str
    label: str
    molecules: MoleculeSet
    network: Network
    paper: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of data and network that a record of this experiment has."""
        settings = {**describe(self.molecules), **asdict(self.network)}
        return {name: value for name, value in settings.items() if name not in NO_RESULT}


def table_1(qm9: QM9Set, keys: Sequence[str] | None = None) -> list[Row]:
    """Training-set sizes of Table I.

    Args:
        qm9: where the data set is, and N_validate; with another than 1,000 nothing compares.
        keys: N_train + N_validate, any; the paper's three by default.

    Raises:
        ValueError: a key that is no number above N_validate.
    """
    rows = []
    for size in [_number(key, "a size") for key in (map(str, TABLE_1) if keys is None else keys)]:
        num_train = size - qm9.num_validation
        if num_train < 1:
            raise ValueError(
                f"--rows {size} leaves nothing to train on besides {qm9.num_validation} to validate"
            )
        data = replace(qm9, num_train=num_train)
        sizes = (num_train, qm9.num_validation)
        printed = _of_paper(qm9) and size in TABLE_1 and QM9_SIZES[size] == sizes
        paper = {"mae": TABLE_1[size]} if printed else {}
        rows.append(Row(str(size), f"{size:,}", data, Network(), paper))
    return rows


def table_2(qm9: QM9Set, keys: Sequence[str] | None = None) -> list[Row]:
    """Networks of Table II.

    Args:
        qm9: the data set; with other sizes than 109,426 + 1,000 nothing of the paper compares.
        keys: N_feature, or e.g. "80-no-hierarchy"; the paper's eight by default.

    Raises:
        ValueError: a key of another form.
    """
    if keys is None:
        keys = [f"{features}{'' if yes else NO_HIERARCHY}" for features, yes in TABLE_2]
    standard = _of_paper(qm9) and (qm9.num_train, qm9.num_validation) == QM9_SIZES[110_426]
    rows = []
    for key in keys:
        hierarchical = not key.endswith(NO_HIERARCHY)
        features = _number(key.removesuffix(NO_HIERARCHY), "N_feature")
        network = Network(hidden_channels=features, hierarchical=hierarchical)
        published = TABLE_2.get((features, hierarchical)) if standard else None
        statistics = {} if published is None else published._asdict()
        statistics.pop("parameters", None)
        label = f"{features}" if hierarchical else f"{features} (no hierarchy)"
        rows.append(Row(key, label, qm9, network, statistics))
    return rows


def one_network(qm9: QM9Set, features: int = 80, num_interactions: int = 2) -> list[Row]:
    """The row of Table II with so many features, or that with other interactions.

    Args:
        qm9: the data set.
        features: N_feature.
        num_interactions: N_interaction; the paper's is 2.
    """
    (row,) = table_2(qm9, [str(features)])
    if num_interactions == row.network.num_interactions:
        return [row]
    network = replace(row.network, num_interactions=num_interactions)
    label = f"{row.label} ({num_interactions} interactions)"
    return [replace(row, label=label, network=network, paper={})]


def table_3(md17: MD17Set, keys: Sequence[str] | None = None) -> list[Row]:
    """Trajectories of Table III: 20 features, no on-site layers, energies only.

    Args:
        md17: where the data set is, and the sizes.
        keys: names of trajectories, any that ``hipnn train md17 --molecule`` takes; the paper's
            four by default.
    """
    sizes = (md17.num_train, md17.num_validation)
    standard = sizes == (1_000, 1_000) and not md17.forces
    rows = []
    for name in TABLE_3 if keys is None else keys:
        paper = {"mae": TABLE_3[name]} if standard and name in TABLE_3 else {}
        rows.append(Row(name, name, replace(md17, molecule=name), TABLE_3_NETWORK, paper))
    return rows


def printed_for(molecules: MoleculeSet, network: Network) -> Mapping[str, Estimate]:
    """What the paper printed for an experiment: statistic -> (mean, error bar), {} if nothing.

    Args:
        molecules: data set, target and sizes.
        network: all of its settings.
    """
    rows: list[Row] = []
    if isinstance(molecules, QM9Set):
        rows = [*table_2(molecules), *table_1(molecules)]
    elif isinstance(molecules, MD17Set):
        rows = table_3(molecules, [molecules.molecule])
    for row in rows:
        if row.paper and (row.molecules, row.network) == (molecules, network):
            return row.paper
    return {}


def _of_paper(qm9: QM9Set) -> bool:
    """Whether these are the paper's molecules and energies."""
    return type(qm9) is QM9Set and qm9.target == QM9Set.target


def _number(text: str, what: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not {what}: give a whole number, as --rows 80")
    return int(text)
