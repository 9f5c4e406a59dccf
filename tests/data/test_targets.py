"""Targets: the right column, with its unit, one value per graph, or an error."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import qm9

from hipnn_pyg.data.targets import ASE_ENERGY, MD17_ENERGY, QM9_TARGETS, Target, resolve_target


def graph(number: int) -> Data:
    """A QM9-like graph with y[0, c] = 100 number + c, and an MD17-like energy."""
    y = 100.0 * number + torch.arange(19.0).unsqueeze(0)
    size = number + 2
    z, pos = torch.ones(size, dtype=torch.long), torch.zeros(size, 3)
    return Data(z=z, pos=pos, y=y, energy=torch.tensor([-float(number)], dtype=torch.float64))


@pytest.fixture
def batch() -> Batch:
    return Batch.from_data_list([graph(number) for number in range(3)])


def test_qm9_targets_follow_pyg() -> None:
    names = "mu alpha homo lumo gap r2 zpve U0 U H G Cv U0_atom U_atom H_atom G_atom A B C".split()
    assert list(QM9_TARGETS) == names
    assert [target.column for target in QM9_TARGETS.values()] == list(range(19))
    assert [target.name for target in QM9_TARGETS.values()] == names
    # in eV exactly where PyG converts to eV
    converted = {name for name, factor in zip(names, qm9.conversion, strict=True) if factor != 1}
    assert {name for name, target in QM9_TARGETS.items() if target.unit == "eV"} == converted
    assert QM9_TARGETS["mu"].unit == "Debye" and QM9_TARGETS["Cv"].unit == "cal/(mol K)"
    assert {QM9_TARGETS[name].unit for name in "ABC"} == {"GHz"}


def test_select_takes_the_column_of_each_graph(batch: Batch) -> None:
    assert QM9_TARGETS["U0"].select(batch).tolist() == [7.0, 107.0, 207.0]
    assert QM9_TARGETS["U0_atom"].select(batch).tolist() == [12.0, 112.0, 212.0]
    assert QM9_TARGETS["U0"].select(graph(1)).tolist() == [107.0]


def test_select_without_column(batch: Batch) -> None:
    energies = MD17_ENERGY.select(batch)
    assert energies.tolist() == [0.0, -1.0, -2.0] and energies.dtype == torch.float64
    assert MD17_ENERGY.select(graph(2)).shape == (1,)
    zero_dim = Data(z=torch.ones(1), energy=torch.tensor(3.0))
    assert MD17_ENERGY.select(zero_dim).tolist() == [3.0]


def test_select_counts_graphs_of_a_batch_vector() -> None:
    data = Data(energy=torch.tensor([1.0, 2.0]), batch=torch.tensor([0, 0, 1]))
    assert MD17_ENERGY.select(data).tolist() == [1.0, 2.0]
    del data.batch  # control: now it is one graph with two energies
    with pytest.raises(ValueError, match=r"shape \[2\] is not one value for each of 1 graphs"):
        MD17_ENERGY.select(data)


def test_missing_attribute_lists_what_is_there() -> None:
    with pytest.raises(KeyError, match=r"no tensor at data.U0; the data has .*'energy', 'pos'"):
        Target("U0", "eV", "U0").select(graph(0))
    with pytest.raises(KeyError, match="a float, no tensor"):
        Target("a", "eV", "a").select(Data(a=1.0))


@pytest.mark.parametrize("column", [19, -1])
def test_column_out_of_range(column: int, batch: Batch) -> None:
    with pytest.raises(IndexError, match=rf"column {column} of data.y.* 0 to 18"):
        Target("far", "eV", "y", column).select(batch)


def test_values_per_atom_are_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"\[9\] is not one value for each of 3 graphs"):
        Target("charge", "e", "z").select(batch)
    with pytest.raises(ValueError, match=r"\[9, 3\] has no row for each of 3 graphs"):
        Target("x", "Angstrom", "pos", 0).select(batch)
    with pytest.raises(ValueError, match=r"shape \[3, 19\].*name a column"):
        Target("y", "eV").select(batch)


def test_a_target_that_was_selected_before() -> None:
    """A transform of PyG's examples: data.y = data.y[:, target]."""
    data = Data(y=torch.tensor([3.0]))
    with pytest.raises(ValueError, match="or give target='y' if it is the target itself"):
        QM9_TARGETS["U0"].select(data)
    assert resolve_target("y").select(data).tolist() == [3.0]


def test_resolve_target() -> None:
    assert resolve_target("gap") is QM9_TARGETS["gap"]
    assert resolve_target(ASE_ENERGY) is ASE_ENERGY and ASE_ENERGY.unit == "eV"
    assert resolve_target("dipole") == Target("dipole", "unknown", "dipole", None)
    assert resolve_target(7) == Target("y[7]", "unknown", "y", 7)


def test_unit_is_never_guessed(batch: Batch) -> None:
    # an int may mean any data set's column: only a name carries QM9's unit
    assert resolve_target(7).unit == resolve_target("u0").unit == "unknown"
    assert resolve_target("U0").unit == "eV"
    # MD17's energies are in kcal/mol, an attribute of the same name elsewhere need not be
    assert resolve_target("energy", [batch]) == Target("energy", "unknown", "energy")


def test_resolve_target_refuses_the_rest(batch: Batch) -> None:
    for wrong in (True, 1.5, None, torch.tensor(1)):
        with pytest.raises(TypeError, match="no name, no column number and no Target"):
            resolve_target(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count from 0"):
        resolve_target(-1)
    with pytest.raises(ValueError, match="is empty"):
        resolve_target("")
