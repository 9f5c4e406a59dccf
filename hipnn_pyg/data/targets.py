"""Targets: which number of a data set is learned, under which name and in which unit."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import MD17


@dataclass(frozen=True)
class Target:
    """One scalar per graph, with its name and unit.

    Args:
        name: the name reports and model files print.
        unit: the unit the data set stores it in; ``"unknown"`` if nobody said.
        key: the attribute of :class:`~torch_geometric.data.Data` that holds it.
        column: its column, if the attribute is a table ``[num_graphs, num_columns]``.
    """

    name: str
    unit: str
    key: str = "y"
    column: int | None = None

    def select(self, data: Data | Batch) -> Tensor:
        """Read this target from one graph or from a batch.

        Args:
            data: a ``Data`` (one graph, or many with a ``batch`` vector) or a ``Batch``.

        Returns:
            One value per graph, ``[num_graphs]``, in :attr:`unit` and in the stored dtype.

        Raises:
            KeyError: ``data`` has no tensor of this name.
            IndexError: the table has no such column.
            ValueError: there is not exactly one value (or one table row) per graph.
        """
        values = self.stored(data)
        num_graphs = _count_graphs(data)
        if self.column is None:
            if values.numel() != num_graphs:
                raise ValueError(
                    f"target {self.name!r}: data.{self.key} of shape {list(values.shape)} is not "
                    f"one value for each of {num_graphs} graphs; name a column if it is a table"
                )
            return values.reshape(num_graphs)
        if values.dim() != 2 or values.size(0) != num_graphs:
            raise ValueError(
                f"target {self.name!r}: data.{self.key} of shape {list(values.shape)} has no row "
                f"for each of {num_graphs} graphs; store it as [1, num_columns] in every Data, or "
                f"give target={self.key!r} if it is the target itself"
            )
        if not 0 <= self.column < values.size(1):
            raise IndexError(
                f"target {self.name!r}: column {self.column} of data.{self.key}, which has the "
                f"columns 0 to {values.size(1) - 1}"
            )
        return values[:, self.column]

    def stored(self, data: Data | Batch) -> Tensor:
        """The attribute that holds it.

        Raises:
            KeyError: ``data`` has no tensor of this name.
        """
        values = getattr(data, self.key, None)
        if not isinstance(values, Tensor):
            found = "no tensor" if values is None else f"a {type(values).__name__}, no tensor,"
            raise KeyError(
                f"target {self.name!r}: {found} at data.{self.key}; the data has "
                f"{sorted(map(str, data.keys()))}"
            )
        return values


def _count_graphs(data: Data | Batch) -> int:
    if isinstance(data, Batch):
        return data.num_graphs
    batch = getattr(data, "batch", None)
    return int(batch.max()) + 1 if isinstance(batch, Tensor) and batch.numel() else 1


_QM9_UNITS = {
    "mu": "Debye",
    "alpha": "Bohr^3",
    "homo": "eV",
    "lumo": "eV",
    "gap": "eV",
    "r2": "Bohr^2",
    "zpve": "eV",
    "U0": "eV",
    "U": "eV",
    "H": "eV",
    "G": "eV",
    "Cv": "cal/(mol K)",
    "U0_atom": "eV",
    "U_atom": "eV",
    "H_atom": "eV",
    "G_atom": "eV",
    "A": "GHz",
    "B": "GHz",
    "C": "GHz",
}

QM9_TARGETS: dict[str, Target] = {
    name: Target(name, unit, "y", column) for column, (name, unit) in enumerate(_QM9_UNITS.items())
}
"""The 19 columns of ``torch_geometric.datasets.QM9``, in its order and its units."""

NO_SUMS = [QM9_TARGETS[name] for name in ("mu", "homo", "lumo", "gap", "A", "B", "C")]
"""Those that do not grow with the molecule; what HIP-NN predicts is a sum over atoms."""

MD17_ENERGY = Target("energy", "kcal/mol", "energy")
"""The total energy of ``torch_geometric.datasets.MD17``."""

ASE_ENERGY = Target("energy", "eV", "energy")
"""The total energy of structures read through ASE, which stores eV."""


def resolve_target(target: str | int | Target, source: Any = None) -> Target:
    """Turn a short name into a :class:`Target`.

    ====================  ==========================================================
    given                 meant
    ====================  ==========================================================
    a :class:`Target`     itself
    a QM9 name, ``"U0"``  that column of PyG's QM9, in its unit
    ``"energy"``          of PyG's MD17 :data:`MD17_ENERGY`, kcal/mol
    any other string      the attribute of that name, unit ``"unknown"``
    an integer            that column of ``data.y``, unit ``"unknown"``
    ====================  ==========================================================

    Args:
        target: as above.
        source: what it is read from; a ``DataLoader`` or ``Subset`` of a dataset counts as that.

    Raises:
        TypeError: ``target`` is none of these.
        ValueError: a negative column or an empty name.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, str):
        if not target:
            raise ValueError(f"target '' is empty: give one of {[*QM9_TARGETS, 'energy']}")
        while hasattr(source, "dataset"):
            source = source.dataset
        if target == MD17_ENERGY.name and isinstance(source, MD17):
            return MD17_ENERGY
        return QM9_TARGETS.get(target) or Target(target, "unknown", target)
    column = _as_column(target)
    return Target(f"y[{column}]", "unknown", "y", column)


def _as_column(target: object) -> int:
    if isinstance(target, (bool, torch.Tensor)) or not hasattr(target, "__index__"):
        raise TypeError(f"target {target!r} is no name, no column number and no Target")
    column = operator.index(target)
    if column < 0:
        raise ValueError(f"target {column}: the columns of data.y count from 0")
    return column
