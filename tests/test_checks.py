"""Every bad input raises an error that names the value and the remedy; good input passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from hipnn_pyg import HIPNN, HIPNNWarning, StructureError, radius_graph
from hipnn_pyg.checks import (
    MIN_DISTANCE,
    check_distances,
    check_graphs,
    check_species,
    check_targets,
    warn_unlikely_unit,
)

Inputs = dict[str, Tensor]


@pytest.fixture
def inputs(molecules: Batch) -> Inputs:
    """Good ones: four molecules with their own edges and shifts."""
    edge_index = radius_graph(molecules.pos, 3.0, molecules.batch)
    return {
        "z": molecules.z,
        "pos": molecules.pos,
        "batch": molecules.batch,
        "edge_index": edge_index,
        "shift": torch.zeros(edge_index.size(1), 3, dtype=torch.float64),
    }


def at(tensor: Tensor, place: object, value: float) -> Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


BAD: dict[str, tuple[Callable[[Inputs], dict[str, object]], str]] = {
    "float_z": (lambda x: {"z": x["z"].double()}, r"z must be integers.*float64"),
    "bool_z": (lambda x: {"z": x["z"] > 1}, r"z must be integers.*bool"),
    "column_z": (lambda x: {"z": x["z"].unsqueeze(1)}, r"shape \[N\], not .*\[21, 1\]"),
    "flat_pos": (lambda x: {"pos": x["pos"][:, :2]}, r"pos must be .*\[21, 3\].*\[21, 2\]"),
    "short_pos": (lambda x: {"pos": x["pos"][:-1]}, r"\[21, 3\].*to match z.*\[20, 3\]"),
    "integer_pos": (lambda x: {"pos": x["pos"].long()}, "pos must be floating point.*int64"),
    "nan_pos": (lambda x: {"pos": at(x["pos"], (7, 1), torch.nan)}, "atom 7 is .*not finite"),
    "inf_pos": (lambda x: {"pos": at(x["pos"], (0, 2), torch.inf)}, "atom 0 is .*not finite"),
    "device_pos": (lambda x: {"pos": x["pos"].to("meta")}, "z is on cpu and pos on meta"),
    "same_place": (
        lambda x: {"pos": at(x["pos"], 1, x["pos"][2]), "edge_index": None, "shift": None},
        "0.00e.00 Å apart.*duplicate atom",
    ),
    "no_atoms": (
        lambda x: {"z": x["z"][:0], "pos": x["pos"][:0], "batch": None},
        "holds no atoms",
    ),
    "unsorted_batch": (
        lambda x: {"batch": at(x["batch"], 12, 0)},
        "not sorted: it falls from 2 to 0 at atom 12",
    ),
    "gap_in_batch": (lambda x: {"batch": x["batch"] * 2}, "molecule 1 of the batch has no atoms"),
    "late_batch": (lambda x: {"batch": x["batch"] + 1}, "molecule 0 of the batch has no atoms"),
    "negative_batch": (lambda x: {"batch": x["batch"] - 1}, "molecule 0"),
    "short_batch": (lambda x: {"batch": x["batch"][:-1]}, r"batch must be .*\[21\].*\[20\]"),
    "float_batch": (lambda x: {"batch": x["batch"].float()}, "batch must be integers.*float32"),
    "bool_batch": (lambda x: {"batch": x["batch"] > 1}, "batch must be integers.*bool"),
    "device_batch": (
        lambda x: {"batch": x["batch"].to("meta")},
        "on meta, the atoms on cpu",
    ),
    "more_graphs": (lambda x: {"num_graphs": 5}, "molecule 4 of the batch has no atoms"),
    "fewer_graphs": (lambda x: {"num_graphs": 3}, "names molecule 3 but num_graphs is 3"),
    "foreign_species": (
        lambda x: {"z": at(x["z"], 4, 35)},
        r"atomic number 35 \(atom 4\).*\(1, 6, 7, 8\).*HIPNN\(species",
    ),
    "species_zero": (lambda x: {"z": at(x["z"], 4, 0)}, r"atomic number 0 \(atom 4\)"),
    "negative_species": (lambda x: {"z": at(x["z"], 4, -6)}, r"atomic number -6 \(atom 4\)"),
    "transposed_edges": (lambda x: {"edge_index": x["edge_index"].T}, r"shape \[2, E\]"),
    "float_edges": (lambda x: {"edge_index": x["edge_index"].double()}, "integers.*float64"),
    "far_edge": (lambda x: {"edge_index": at(x["edge_index"], (0, 3), 21)}, "0 to 21, outside 0"),
    "negative_edge": (lambda x: {"edge_index": at(x["edge_index"], (1, 0), -1)}, "from -1 to 20"),
    "self_loop": (
        lambda x: {"edge_index": torch.tensor([[1, 4], [0, 4]]), "shift": None},
        "joins atom 4 to itself.*remove_self_loops",
    ),
    "self_loop_without_shift": (
        lambda x: {"edge_index": torch.tensor([[4], [4]]), "shift": torch.zeros(1, 3)},
        "0.00e.00 Å apart",
    ),
    "edge_between_molecules": (
        lambda x: {"edge_index": torch.tensor([[20, 0], [0, 20]]), "shift": None},
        "edge_index joins .*molecule",
    ),
    "short_shift": (lambda x: {"shift": x["shift"][1:]}, "shift must have shape"),
    "flat_shift": (lambda x: {"shift": x["shift"][:, :2]}, "one vector per edge"),
    "nan_shift": (lambda x: {"shift": at(x["shift"], (2, 0), torch.nan)}, "shift.*not finite"),
}


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_input_to_a_model_is_named(
    small_model: Callable[..., HIPNN],
    inputs: Inputs,
    kernel: str,
    change: Callable[[Inputs], dict[str, object]],
    message: str,
) -> None:
    model = small_model(kernel=kernel)
    assert bool(torch.isfinite(model.energy_terms(**inputs).energy).all())  # control
    with pytest.raises(StructureError, match=message):
        model.energy_terms(**(inputs | change(inputs)))


def test_crystals_may_have_32_neighbours_each() -> None:
    """Periodic images are no work of a search that stops at 32; without them it is suspicious."""
    z, pos = torch.ones(40, dtype=torch.long), torch.rand(40, 3)
    atom = torch.arange(40)
    edge_index = torch.stack([torch.cat([(atom + k) % 40 for k in range(1, 33)]), atom.repeat(32)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_graphs(z, pos, edge_index=edge_index, shift=torch.zeros(40 * 32, 3))
        check_graphs(z, pos, edge_index=edge_index[:, 40:])  # 31 each
    with pytest.warns(HIPNNWarning, match="max_num_neighbors=32") as caught:
        check_graphs(z, pos, edge_index=edge_index)
    assert len(caught) == 1


def test_a_complete_graph_of_33_atoms_is_not_cut_off() -> None:
    """Each atom has 32 neighbours, and there are no more: alone, and beside another molecule."""
    atom = torch.arange(33)
    i, j = torch.cartesian_prod(atom, atom).t()
    edge_index = torch.stack((j, i))[:, i != j]
    z, pos = torch.ones(35, dtype=torch.long), torch.rand(35, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_graphs(z[:33], pos[:33], edge_index=edge_index)
        for dtype in (torch.int64, torch.int16, torch.uint8):
            batch = torch.tensor([0] * 33 + [1] * 2, dtype=dtype)
            check_graphs(z, pos, batch, edge_index=edge_index)
    with pytest.warns(HIPNNWarning, match="33 atoms have exactly 32 neighbours"):  # control
        check_graphs(z, pos, edge_index=edge_index)  # one molecule of 35


def test_distances_name_the_atoms() -> None:
    r = torch.tensor([2.0, 0.3, 1.0])
    atoms = torch.tensor([0, 7, 2]), torch.tensor([1, 4, 3])
    check_distances(r, 0.3)
    with pytest.raises(StructureError, match=r"atoms 4 and 7 are 3.00e-01 Å .* than 0.4 Å$"):
        check_distances(r, 0.4, atoms)
    with pytest.raises(StructureError, match="atom 7 and an image of it are"):
        check_distances(r, 0.4, (atoms[0], atoms[0]))


def test_errors_are_value_errors() -> None:
    assert issubclass(StructureError, ValueError)
    assert issubclass(HIPNNWarning, UserWarning)


def test_good_graphs_pass(inputs: Inputs) -> None:
    check_graphs(**inputs, num_graphs=4)
    check_graphs(inputs["z"], inputs["pos"])
    lattice = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)  # an atom and its own image
    own = torch.zeros(2, 1, dtype=torch.long)
    check_graphs(inputs["z"], inputs["pos"], edge_index=own, shift=lattice)
    with pytest.raises(StructureError, match="to itself"):
        check_graphs(inputs["z"], inputs["pos"], edge_index=own)


def test_distances_at_the_limit() -> None:
    check_distances(torch.tensor([torch.inf, 0.7, 1.01 * MIN_DISTANCE]))
    check_distances(torch.empty(3, 0))
    with pytest.raises(StructureError, match=r"9.90e-04 Å apart, closer than 0.001 Å"):
        check_distances(torch.tensor([torch.inf, 0.99 * MIN_DISTANCE]))


def test_species_check_names_the_first_foreign_number() -> None:
    z = torch.tensor([1, 9, 17, 9])
    check_species(z, torch.tensor([True] * 4), (1, 9, 17))
    with pytest.raises(StructureError, match=r"atomic number 9 \(atom 1\)"):
        check_species(z, z == 1, (1,))


def test_targets_are_finite_and_as_many_as_molecules() -> None:
    check_targets(torch.tensor([1.0, -2.0]), 2)
    with pytest.raises(StructureError, match=r"shape \[3\], one per molecule, not \[2\]"):
        check_targets(torch.zeros(2), 3)
    with pytest.raises(StructureError, match=r"not \[2, 1\]"):
        check_targets(torch.zeros(2, 1), 2)
    with pytest.raises(StructureError, match="molecule 1 is nan"):
        check_targets(torch.tensor([0.0, torch.nan]), 2)


@pytest.mark.parametrize(
    ("bond", "unit"), [(1.09, None), (0.75, None), (2.06, "Bohr"), (0.109, "nm")]
)
def test_unlikely_units(bond: float, unit: str | None) -> None:
    z, nearest = torch.tensor([6, 1, 1, 1] * 4), torch.full((16,), bond)
    batch = torch.arange(4).repeat_interleave(4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_unlikely_unit(z, nearest, batch, "the file")
        warn_unlikely_unit(z[:12], nearest[:12], batch[:12])  # too few to judge
        warn_unlikely_unit(6 * z, nearest, batch)  # no hydrogen
        warn_unlikely_unit(z, torch.full((16,), torch.inf), batch)  # no neighbours
        lithium = torch.where(z == 6, 3, z)
        warn_unlikely_unit(lithium, nearest, batch)  # hydrides, where 2.06 is in Å
        mixed, five = torch.cat((lithium, z[:4])), torch.arange(5).repeat_interleave(4)
        warn_unlikely_unit(mixed, torch.full((20,), bond), five)
    assert len(caught) == (unit is not None)
    if unit is not None:
        assert "the file" in str(caught[0].message) and unit in str(caught[0].message)
