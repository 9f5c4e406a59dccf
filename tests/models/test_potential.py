"""HIP-NN as a potential: forces and stress are the derivatives of the energy, on every path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from torch import Tensor
from torch_geometric.data import Batch, Data

from hipnn_pyg import HIPNN, StructureError, radius_graph
from hipnn_pyg.graph import radius_graph_pbc
from hipnn_pyg.models.hipnn import Kernel
from hipnn_pyg.models.neighborhood import neighborhood
from hipnn_pyg.models.potential import HIPNNPotential, Prediction
from hipnn_pyg.nn.precision import matrix_products

Build = Callable[..., HIPNN]
KERNELS = [name for name in get_args(Kernel) if name != "auto"]
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
STEP = 2e-3


def as_data(atoms: Atoms) -> Data:
    data = Data(z=torch.tensor(atoms.numbers), pos=torch.tensor(atoms.positions))
    if atoms.pbc.any():
        data.cell = torch.tensor(atoms.cell.array)[None]
        data.pbc = torch.tensor(atoms.pbc)[None]
    return data


def rocksalt() -> Atoms:
    """Two atoms in a primitive cell much smaller than the cutoff: many images."""
    atoms = bulk("NaCl", "rocksalt", 4.1)
    atoms.numbers[:] = (6, 8)
    atoms.rattle(0.1, seed=1)
    return atoms


def triclinic() -> Atoms:
    """Five atoms in a skewed cell, partly outside it."""
    generator = np.random.default_rng(8)
    cell = [[3.1, 0.1, -0.2], [1.4, 3.3, 0.2], [-0.7, 1.1, 3.6]]
    sites = [[0.1, 0.1, 0.1], [0.5, 0.6, 0.1], [0.1, 0.5, 0.6], [1.6, 0.1, 0.5], [0.6, -0.4, 0.6]]
    atoms = Atoms("HCNOH", scaled_positions=sites, cell=cell, pbc=True)
    atoms.positions += generator.normal(0, 0.05, (5, 3))
    return atoms


def slab() -> Atoms:
    """Periodic in two directions; the third has no lattice vector."""
    atoms = Atoms("CO", positions=[[0.1, 0, 0], [1.3, 0.4, 0.8]], pbc=(True, True, False))
    atoms.cell[:2] = [[2.6, 0.2, 0], [0.4, 2.7, 0.1]]
    return atoms


CRYSTALS = {"rocksalt": rocksalt, "triclinic": triclinic}


def predict(potential: HIPNNPotential, atoms: Atoms, **options: Any) -> Prediction:
    return potential(as_data(atoms), **options)


def test_no_pair_crosses_the_cutoff_where_finite_differences_are_taken() -> None:
    """The energy's second derivative jumps there."""
    for make in (*CRYSTALS.values(), slab):
        r = neighbor_list("d", make(), 3.3)
        assert float(np.abs(r - 3.0).min()) > 8 * STEP


def derivative(potential: HIPNNPotential, variants: Callable[[float], list[Data]]) -> Tensor:
    """Five-point derivative in x at 0 of the energies of ``variants(x)``, all in one batch."""
    steps = [variants(k * STEP) for k, _ in STENCIL]
    batch = Batch.from_data_list([data for step in steps for data in step])
    energy = potential(batch, stress=False).energy.view(len(STENCIL), -1)
    return torch.tensor([w / STEP for _, w in STENCIL], dtype=torch.float64) @ energy


def numerical_forces(potential: HIPNNPotential, data: Data) -> Tensor:
    def moved(step: float) -> list[Data]:
        copies = [data.clone() for _ in range(data.pos.numel())]
        for place, copy in enumerate(copies):
            copy.pos.view(-1)[place] += step
        return copies

    return -derivative(potential, moved).view(-1, 3)


def numerical_stress(potential: HIPNNPotential, data: Data) -> Tensor:
    def strained(step: float) -> list[Data]:
        copies = [data.clone() for _ in range(9)]
        for place, copy in enumerate(copies):
            strain = torch.zeros(9, dtype=torch.float64)
            strain[place] = step
            stretch = torch.eye(3).double() + 0.5 * (strain.view(3, 3) + strain.view(3, 3).T)
            copy.pos, copy.cell = copy.pos @ stretch, copy.cell @ stretch
        return copies

    return derivative(potential, strained).view(3, 3) / torch.linalg.det(data.cell[0]).abs()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    scale = float(expected.abs().max())
    assert scale > 1e-3  # or nothing was tested
    return float((actual - expected).abs().max()) / scale


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert relative_error(actual, expected) <= tolerance


@pytest.fixture
def fitted_model(small_model: Build, molecules: Batch) -> Build:
    """The same after some steps of Adam, so that sensitivities have moved too."""

    def build(**options: Any) -> HIPNN:
        model = small_model(**options)
        target = torch.tensor([[-3.0], [-2.0], [-2.5], [-7.0]], dtype=torch.float64)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=1e-2)
        start = [p.detach().clone() for p in trainable]
        for _ in range(20):
            optimizer.zero_grad()
            energy = model(molecules.z, molecules.pos, molecules.batch)
            (energy - target).square().mean().backward()
            optimizer.step()
        assert all(bool((p != q).any()) for p, q in zip(trainable, start, strict=True))
        return model

    return build


@pytest.mark.parametrize("weights", ["small_model", "fitted_model"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_forces_and_stress_are_derivatives(
    request: pytest.FixtureRequest, molecules: Batch, kernel: str, weights: str
) -> None:
    model = request.getfixturevalue(weights)(kernel=kernel)
    potential = HIPNNPotential(model)
    for data in molecules[2], molecules[3], *(as_data(make()) for make in CRYSTALS.values()):
        result = potential(data)
        numerical = numerical_forces(potential, data)
        assert_relative(result.forces, numerical)
        assert relative_error(1.00001 * result.forces, numerical) > 5e-6  # control
        assert (result.stress is None) == ("cell" not in data)
        if result.stress is not None:
            numerical = numerical_stress(potential, data)
            assert_relative(result.stress[0], numerical)
            assert relative_error(-result.stress[0], numerical) > 1
    assert_relative(predict(potential, slab()).forces, numerical_forces(potential, as_data(slab())))


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_every_kernel_every_call_same_numbers(
    small_model: Build, molecules: Batch, kernel: str
) -> None:
    reference = HIPNNPotential(small_model(kernel="reference"))
    potential = HIPNNPotential(small_model(kernel=kernel))
    crystals = Batch.from_data_list([as_data(make()) for make in CRYSTALS.values()])
    for batch in molecules, crystals:
        expected, actual = reference(batch), potential(batch)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    single = [predict(potential, make()) for make in CRYSTALS.values()]
    torch.testing.assert_close(torch.cat([s.energy for s in single]), actual.energy)
    torch.testing.assert_close(torch.cat([s.forces for s in single]), actual.forces)
    torch.testing.assert_close(torch.cat([s.stress for s in single]), actual.stress)
    assert actual.energy.shape == (2, 1) and actual.energy.dtype == torch.float64
    assert actual.nonhierarchicality.shape == (2,)
    sums = torch.zeros(2, dtype=torch.float64).index_add(0, crystals.batch, actual.energies)
    torch.testing.assert_close(sums, actual.energy[:, 0])
    terms = reference.model.energy_terms(molecules.z, molecules.pos, molecules.batch)
    molecular = potential(molecules.z, molecules.pos, molecules.batch)
    torch.testing.assert_close(molecular.energy, terms.energy)
    torch.testing.assert_close(molecular.nonhierarchicality, terms.nonhierarchicality)


def test_molecules_and_crystals_in_one_batch(small_model: Build, molecules: Batch) -> None:
    potential = HIPNNPotential(small_model())
    molecule, crystal, layer = molecules[3].clone(), as_data(triclinic()), as_data(slab())
    molecule.cell = torch.zeros(1, 3, 3, dtype=torch.float64)
    molecule.pbc = torch.zeros(1, 3, dtype=torch.bool)
    together = potential(Batch.from_data_list([molecule, crystal, layer]))
    alone = [potential(data) for data in (molecules[3], crystal, layer)]
    torch.testing.assert_close(together.energy, torch.cat([one.energy for one in alone]))
    torch.testing.assert_close(together.forces, torch.cat([one.forces for one in alone]))
    assert together.stress is None and alone[1].stress is not None


@pytest.mark.parametrize("kernel", KERNELS)
def test_own_edges(small_model: Build, molecules: Batch, kernel: str) -> None:
    """Any order; pairs beyond the cutoff change nothing; missing pairs do."""
    potential = HIPNNPotential(small_model(kernel=kernel))
    data = as_data(triclinic())
    expected = potential(data)
    arguments = (data.z, data.pos, None, data.cell, data.pbc)
    edges, _, images = radius_graph_pbc(data.pos, 4.0, data.cell[0], return_images=True)
    order = torch.randperm(edges.size(1), generator=torch.Generator().manual_seed(0))
    actual = potential(*arguments, edges[:, order], images[order])
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    fewer = potential(*arguments, edges[:, 20:], images[20:])
    assert float((fewer.forces - expected.forces).abs().max()) > 1e-3
    molecule = molecules.z, molecules.pos, molecules.batch
    long_edges = radius_graph(molecules.pos, 5.0, molecules.batch)
    torch.testing.assert_close(
        potential(*molecule, edge_index=long_edges).forces, potential(*molecule).forces
    )


def rotation(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    return q * torch.linalg.det(q).sign()


def test_no_net_force_and_no_torque(small_model: Build, molecules: Batch) -> None:
    potential = HIPNNPotential(small_model())
    forces = potential(molecules).forces
    torque = torch.linalg.cross(molecules.pos, forces)
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    for vectors in forces, torque:
        net = zeros.index_add(0, molecules.batch, vectors)
        torch.testing.assert_close(net, zeros, rtol=0, atol=1e-11)
        assert float(vectors.abs().max()) > 1e-2
    crystal = predict(potential, triclinic()).forces
    torch.testing.assert_close(crystal.sum(0), zeros[0], rtol=0, atol=1e-11)
    assert float(crystal.abs().max()) > 1e-2


@pytest.mark.parametrize("make", CRYSTALS.values(), ids=CRYSTALS)
def test_rotation_and_reflection(small_model: Build, make: Callable[[], Atoms]) -> None:
    potential = HIPNNPotential(small_model())
    data = as_data(make())
    expected = potential(data)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    for q in rotation(), mirror, mirror @ rotation(1):
        turned = potential(data.z, data.pos @ q, None, data.cell @ q)
        assert float((turned.forces - expected.forces).abs().max()) > 1e-2
        torch.testing.assert_close(turned.energy, expected.energy, rtol=1e-12, atol=0)
        torch.testing.assert_close(turned.forces, expected.forces @ q, rtol=1e-10, atol=1e-11)
        stress = q.T @ expected.stress @ q
        torch.testing.assert_close(turned.stress, stress, rtol=1e-10, atol=1e-11)


def test_the_choice_of_lattice_vectors_does_not_matter(small_model: Build) -> None:
    """Exchanged vectors make a left-handed cell of the same crystal; so do other unit cells."""
    potential = HIPNNPotential(small_model())
    data = as_data(triclinic())
    expected = potential(data)
    for change in ([1, 0, 0], [0, 0, 1], [0, 1, 0]), ([1, 0, 0], [1, 1, 0], [0, -2, 1]):
        matrix = torch.tensor(change, dtype=torch.float64)
        actual = potential(data.z, data.pos, None, matrix @ data.cell, data.pbc)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert float(torch.linalg.det(data.cell[0])) > 0


@pytest.mark.parametrize("make", CRYSTALS.values(), ids=CRYSTALS)
def test_supercell(small_model: Build, make: Callable[[], Atoms]) -> None:
    potential = HIPNNPotential(small_model())
    one, eight = predict(potential, make()), predict(potential, make().repeat(2))
    torch.testing.assert_close(eight.energy, 8 * one.energy)
    torch.testing.assert_close(eight.forces, one.forces.repeat(8, 1))
    torch.testing.assert_close(eight.energies, one.energies.repeat(8))
    torch.testing.assert_close(eight.stress, one.stress)
    torch.testing.assert_close(eight.nonhierarchicality, 8 * one.nonhierarchicality)


def test_wrapped_or_not(small_model: Build) -> None:
    potential = HIPNNPotential(small_model())
    atoms = triclinic()
    expected = predict(potential, atoms)
    moved = atoms.copy()
    moved.positions += (
        np.array([[2, 0, -1], [0, 0, 0], [1, 1, 1], [-3, 0, 0], [0, 5, 0]]) @ atoms.cell
    )
    wrapped = moved.copy()
    wrapped.wrap()
    for other in moved, wrapped:
        assert float(np.abs(other.positions - atoms.positions).max()) > 1
        for a, b in zip(predict(potential, other), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_isolated_atoms_feel_nothing(small_model: Build, kernel: str) -> None:
    """One atom, two far apart, an empty crystal: no force, no stress, a sum of atomic energies."""
    potential = HIPNNPotential(small_model(kernel=kernel))
    alone = predict(potential, Atoms("O"))
    assert not bool(alone.forces.any()) and alone.stress is None
    far = predict(potential, Atoms("OO", [[0, 0, 0], [3.0001, 0, 0]]))
    assert not bool(far.forces.any())
    torch.testing.assert_close(far.energy, 2 * alone.energy)
    near = predict(potential, Atoms("OO", [[0, 0, 0], [2.0, 0, 0]]))
    assert bool(near.forces.any())  # control
    crystal = predict(potential, Atoms("O", cell=[9, 9, 9], pbc=True))
    assert not bool(crystal.forces.any()) and not bool(crystal.stress.any())
    torch.testing.assert_close(crystal.energy, alone.energy)


def test_a_molecule_that_flies_apart(small_model: Build, molecules: Batch) -> None:
    potential = HIPNNPotential(small_model())
    data = molecules[3]
    atoms = torch.stack(
        [potential(data.z[i : i + 1], data.pos[i : i + 1]).energy for i in range(9)]
    )
    largest = []
    for stretch in 1.0, 1.5, 2.0, 5.0, 1e4:
        result = potential(data.z, data.pos * stretch)
        assert bool(torch.isfinite(result.forces).all())
        largest.append(float(result.forces.abs().max()))
    assert largest[0] > 0 and largest[-1] == 0
    torch.testing.assert_close(result.energy, atoms.sum(0))


def test_graph_in_training_only(small_model: Build, molecules: Batch) -> None:
    model = small_model(sigma_e=1.5)
    potential = HIPNNPotential(model)
    assert not potential.training  # follows the model
    pos = molecules.pos.clone().requires_grad_()
    result = potential(molecules.z, pos, molecules.batch)
    assert not any(t.requires_grad for t in result if t is not None)
    potential.train()
    result = potential(molecules.z, molecules.pos, molecules.batch)
    assert result.energy.requires_grad and result.forces.requires_grad
    with torch.no_grad():
        quiet = potential(molecules.z, molecules.pos, molecules.batch)
    assert not quiet.forces.requires_grad
    torch.testing.assert_close(quiet.forces, result.forces.detach())


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_loss_on_forces_and_stress_has_the_right_gradient(
    small_model: Build, kernel: str
) -> None:
    model = small_model(kernel=kernel)
    potential = HIPNNPotential(model).train()
    data = as_data(triclinic())
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 3, dtype=torch.float64, generator=generator)

    def loss() -> Tensor:
        result = potential(data)
        return (result.forces * weights).sum() + (result.stress[0] * weights[:3]).square().sum()

    interaction = model.blocks[1].interaction
    parameters = [interaction.V, interaction.sensitivity.mu, model.blocks[0].readout.weight]
    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        change = torch.zeros((), dtype=torch.float64)
        for k, weight in STENCIL:
            with torch.no_grad():
                parameter += k * STEP * direction
            change += weight / STEP * loss().detach()
            with torch.no_grad():
                parameter -= k * STEP * direction
        assert_relative((gradient * direction).sum(), change)


def test_second_derivatives_in_positions(small_model: Build) -> None:
    """Where the caller differentiates, forces stay in the graph of the caller's positions."""
    potential = HIPNNPotential(small_model())
    data = as_data(rocksalt())

    def forces(pos: Tensor) -> Tensor:
        return potential(data.z, pos, cell=data.cell, create_graph=True).forces

    hessian = -torch.autograd.functional.jacobian(forces, data.pos).view(6, 6)
    torch.testing.assert_close(hessian, hessian.T)
    for place in range(6):
        step = torch.zeros(6, dtype=torch.float64).scatter(0, torch.tensor(place), STEP).view(2, 3)
        change = sum(w / STEP * forces(data.pos + k * step).detach() for k, w in STENCIL)
        assert_relative(hessian[place], -change.flatten())


def test_float32_networks(small_model: Build) -> None:
    """float64 positions keep their precision; float32 positions work; energies are float64."""
    exact = predict(HIPNNPotential(small_model()), triclinic())
    potential = HIPNNPotential(small_model().float())
    data = as_data(triclinic())
    mixed = potential(data)
    single = potential(data.z, data.pos.float(), cell=data.cell.float())
    assert mixed.forces.dtype == torch.float64 and single.forces.dtype == torch.float32
    for result in mixed, single:
        assert result.energy.dtype == result.energies.dtype == torch.float64
        torch.testing.assert_close(result.energy, exact.energy, rtol=1e-6, atol=0)
        for a, b in (result.forces, exact.forces), (result.stress, exact.stress):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_stress_of_one_structure_is_no_matrix_product(small_model: Build) -> None:
    """It stays what it is where matrix products are less precise, as in a batch."""
    data = as_data(triclinic())
    edge_index, shift = radius_graph_pbc(data.pos, 3.0, data.cell, data.pbc)
    near = neighborhood(small_model(), data.z, data.pos, None, 1, edge_index, shift)
    r_ij = near.vectors(data.pos).float()
    pull = r_ij.roll(1, 1) / 3
    expected = near.virial(pull.double(), r_ij.double())
    product = pull.double().T @ r_ij.double()
    torch.testing.assert_close(expected[0], 0.5 * (product + product.T))
    with matrix_products("bf16", "cpu"):
        found, rounded = near.virial(pull, r_ij), pull.T @ r_ij
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    error = (0.5 * (rounded + rounded.T).double() - expected[0]).abs().max()
    assert float(error) > 1e-3 * float(expected.abs().max())  # control


def test_a_detached_energy_is_no_zero_force(small_model: Build) -> None:
    model = small_model(kernel="reference")
    original = model.atom_terms
    model.atom_terms = lambda species, pairs: original(species, pairs._replace(r=pairs.r.detach()))
    with pytest.raises(RuntimeError, match="does not depend on positions"):
        predict(HIPNNPotential(model), rocksalt())


def bad_inputs() -> dict[str, tuple[Callable[[Data], None], str]]:
    def put(name: str, value: Any) -> Callable[[Data], None]:
        return lambda data: setattr(data, name, value)

    def same_place(data: Data) -> None:
        data.pos[1] = data.pos[0]

    def same_image(data: Data) -> None:
        data.pos[1] = data.pos[0] + data.cell[0, 0] - data.cell[0, 2]

    def singular(data: Data) -> None:
        data.cell[0, 2] = data.cell[0, 0] + data.cell[0, 1]

    def short(data: Data) -> None:
        data.cell[0, 0] = 0

    def not_finite(data: Data) -> None:
        data.cell[0, 1, 1] = torch.nan

    def lost(data: Data) -> None:
        data.pos[2, 1] = torch.inf

    def no_cell(data: Data) -> None:
        del data.cell

    return {
        "pbc without cell": (no_cell, "cell"),
        "singular cell": (singular, "independent|singular"),
        "zero lattice vector": (short, "independent|singular|zero"),
        "cell not finite": (not_finite, "finite"),
        "cell shape": (put("cell", torch.eye(3)[:2]), "shape"),
        "coincident atoms": (same_place, "apart"),
        "coincident images": (same_image, "apart"),
        "position not finite": (lost, "finite"),
        "foreign species": (put("z", torch.tensor([1, 6, 7, 8, 79])), "79"),
        "count": (put("z", torch.tensor([1, 6, 7, 8])), "shape"),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_structures_stop(small_model: Build, name: str) -> None:
    potential = HIPNNPotential(small_model())
    data = as_data(triclinic())
    potential(data)  # fine as it is
    change, message = bad_inputs()[name]
    change(data)
    with pytest.raises(StructureError, match=message):
        potential(data)


def test_stress_needs_three_periodic_directions(small_model: Build, molecules: Batch) -> None:
    potential = HIPNNPotential(small_model())
    for data in molecules[0], as_data(slab()):
        assert potential(data).stress is None
        with pytest.raises(ValueError, match="three directions"):
            potential(data, stress=True)
    data = as_data(triclinic())
    assert potential(data, stress=False).stress is None
    edges, _, images = radius_graph_pbc(data.pos, 3.0, data.cell[0], return_images=True)
    with pytest.raises(ValueError, match="images"):
        potential(data.z, data.pos, None, data.cell, True, edges)
    with pytest.raises(StructureError, match="one vector per edge"):
        potential(data.z, data.pos, None, data.cell, True, edges, images[1:])
    with pytest.raises(ValueError, match="images"):
        potential(data.z, data.pos, None, data.cell, True, None, images)
    with pytest.raises(ValueError, match="images"):
        potential(data.z, data.pos, edge_index=edges, images=images)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("training", [False, True])
def test_in_inference_mode(
    small_model: Build, molecules: Batch, kernel: Kernel, training: bool
) -> None:
    potential = HIPNNPotential(small_model(kernel=kernel)).train(training)
    given = (molecules.z, molecules.pos, molecules.batch)
    expected = potential(*given, create_graph=False)
    with torch.inference_mode():
        found = potential(molecules.z, molecules.pos + 0, molecules.batch)
    torch.testing.assert_close(found.forces, expected.forces)
    assert not found.energy.requires_grad


def test_periodicity_in_inference_mode(small_model: Build) -> None:
    """As ASE and lists give it, too."""
    potential, atoms = HIPNNPotential(small_model()), bulk("C")
    data = Data(z=torch.tensor(atoms.numbers), pos=torch.tensor(atoms.positions))
    data.cell = torch.tensor(atoms.cell.array)
    given = (data.z, data.pos, None, data.cell)
    expected = potential(*given, True)
    for pbc in (True, torch.tensor([True] * 3), [True] * 3, atoms.pbc):
        data.pbc = pbc
        with torch.inference_mode():
            found = potential(data)
        torch.testing.assert_close(found.energy, expected.energy)
        torch.testing.assert_close(found.stress, expected.stress)
    assert abs(float(expected.energy - potential(data.z, data.pos).energy)) > 1e-3  # control


@pytest.mark.parametrize("of_each", ["bool", "three"])
def test_cells_of_a_batch(small_model: Build, of_each: str) -> None:
    """PyG joins what belongs to each structure: three flags are not three directions."""
    potential, items = HIPNNPotential(small_model()), []
    for number in range(3):
        atoms = bulk("C") * (2, 1, 1)
        atoms.rattle(0.05, seed=number)
        z, pos = torch.tensor(atoms.numbers), torch.tensor(atoms.positions)
        flags: Any = number != 1
        cell = torch.tensor(atoms.cell.array)
        if of_each == "three":
            flags = torch.tensor([True, number != 1, True])
        items.append(Data(z=z, pos=pos, cell=cell, pbc=flags))
    expected = [float(potential(item, stress=False).energy) for item in items]
    found = potential(Batch.from_data_list(items), stress=False).energy.flatten()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    for item in items:
        item.pbc = torch.tensor([True, True, True])
    control = [float(potential(item, stress=False).energy) for item in items]
    assert abs(control[1] - expected[1]) > 1e-3 > abs(control[0] - expected[0])


def test_an_empty_structure_at_the_end_stops(small_model: Build, molecules: Batch) -> None:
    water = molecules[2]
    empty = Data(z=water.z[:0], pos=water.pos[:0])
    with pytest.raises(StructureError, match="molecule 1 of the batch has no atoms"):
        HIPNNPotential(small_model())(Batch.from_data_list([water, empty]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_forces_have_the_dtype_of_the_positions(small_model: Build, kernel: Kernel) -> None:
    atoms = bulk("C") * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    z, pos = torch.tensor(atoms.numbers), torch.tensor(atoms.positions)
    cell = torch.tensor(atoms.cell.array)
    potential = HIPNNPotential(small_model(kernel=kernel))
    expected = potential(z, pos, cell=cell)
    found = potential(z, pos.float(), cell=cell.float())
    assert found.forces.dtype == torch.float32 and found.energy.dtype == torch.float64
    torch.testing.assert_close(found.forces, expected.forces.float(), rtol=1e-4, atol=1e-4)
