"""hippynn 0.1.3 as the oracle: its whole pipeline (padding, pair finder, network) against ours."""

from __future__ import annotations

import ast
import csv
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hipnn_pyg.interfaces import from_hippynn
from hipnn_pyg.models import HIPNN, EnergyTerms, load_model, save_model
from hipnn_pyg.units import Bohr

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import hippynn
    from hippynn.graphs import GraphModule, inputs, networks, targets
    from hippynn.layers.hiplayers import InverseSensitivityModule, SensitivityBottleneck
    from hippynn.layers.targets import HCharge, HEnergy
    from hippynn.networks.hiphop import HipHopNNModule
    from hippynn.networks.hipnn import Hipnn, HipnnQuad, HipnnVec

RTOL = 1e-10
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
SETTINGS: dict[str, Any] = {  # lengths in Å
    "n_features": 6,
    "n_sensitivities": 8,
    "dist_soft_min": 0.9,
    "dist_soft_max": 5.0,
    "dist_hard_max": 6.5,
    "n_atom_layers": 2,
    "n_interaction_layers": 2,
    "possible_species": [0, 1, 6, 7, 8, 9],
}


@pytest.fixture(scope="module", autouse=True)
def plain_and_quiet_hippynn() -> Iterator[None]:
    """hippynn's sums in plain torch (its numba kernel drops sensitivities < 1e-10), no advice."""
    kernels = hippynn.custom_kernels.CUSTOM_KERNELS_ACTIVE
    warn = hippynn.settings.WARN_LOW_DISTANCES
    hippynn.settings.WARN_LOW_DISTANCES = False
    hippynn.custom_kernels.set_custom_kernels("pytorch")
    yield
    hippynn.custom_kernels.set_custom_kernels(kernels)
    hippynn.settings.WARN_LOW_DISTANCES = warn


class Molecules(NamedTuple):
    """The same molecules padded as hippynn wants them; ``z``, ``pos``, ``batch`` are ours."""

    Z: Tensor
    R: Tensor

    @property
    def z(self) -> Tensor:
        return self.Z[self.Z > 0]

    @property
    def pos(self) -> Tensor:
        return self.R[self.Z > 0]

    @property
    def batch(self) -> Tensor:
        return (self.Z > 0).nonzero()[:, 0]

    def head(self, count: int) -> Molecules:
        return Molecules(self.Z[:count], self.R[:count])


FLUORINE = {"184", "826", "828", "829", "830"}


def qm9_rows() -> Iterator[dict[str, str]]:
    """Every 400th of the first 4000 molecules of each third of QM9, and 5 with fluorine."""
    spec = importlib.util.find_spec("qm9pack")
    assert spec is not None and spec.submodule_search_locations
    for part in (1, 2, 3):
        path = Path(spec.submodule_search_locations[0]) / "data" / f"qm9_part{part}.csv"
        with path.open(newline="") as file:
            for count, row in zip(range(4000), csv.DictReader(file), strict=False):
                if count % 400 == 0 or row["Index"] in FLUORINE:
                    yield row


@functools.cache
def read_molecules() -> Molecules:
    rows = list(qm9_rows())
    z = [torch.tensor([NUMBERS[e] for e in ast.literal_eval(row["Elements"])]) for row in rows]
    pos = [torch.tensor(ast.literal_eval(r["XYZ_Ang"]), dtype=torch.float64) for r in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return Molecules(pad(z, batch_first=True), pad(pos, batch_first=True))


@pytest.fixture
def molecules() -> Molecules:
    """Real QM9 molecules whose positions take gradients."""
    Z, R = read_molecules()
    return Molecules(Z, R.clone().requires_grad_())


class Oracle(NamedTuple):
    """A hippynn model as its users build it: graph nodes around torch modules."""

    network: Hipnn
    henergy: HEnergy
    graph: GraphModule

    def named_parameters(self) -> dict[str, Tensor]:
        parts = {"network": self.network, "henergy": self.henergy}
        return {f"{k}.{n}": p for k, m in parts.items() for n, p in m.named_parameters()}

    def __call__(self, molecules: Molecules, unit: float = 1.0) -> EnergyTerms:
        """hippynn's answer in the form of ours, from lengths divided by ``unit`` (Å)."""
        features, energy, r = self.graph(molecules.Z, molecules.R / unit)
        if self.henergy.first_is_interacting:
            features = features[1:]
        terms = [layer(x) for layer, x in zip(self.henergy.layers, features, strict=True)]
        return EnergyTerms(energy, torch.cat(terms, 1), r.squeeze(1), features[-1])


def make_oracle(
    dtype: torch.dtype = torch.float64,
    first_is_interacting: bool = False,
    seed: int = 0,
    **settings: Any,
) -> Oracle:
    """Random weights everywhere: sensitivities and biases too, other ones in every layer."""
    torch.manual_seed(seed)
    species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
    node = networks.Hipnn("net", (species, positions), module_kwargs={**SETTINGS, **settings})
    energy = targets.HEnergyNode("energy", node, first_is_interacting=first_is_interacting)
    network, henergy = node.torch_module.to(dtype), energy.torch_module.to(dtype)
    with torch.no_grad():
        for sensitivity in network.sensitivity_layers:
            for parameter in (sensitivity.mu, sensitivity.sigma):
                parameter *= 1 + 0.1 * torch.rand_like(parameter)
    outputs = [node, energy.mol_energy, energy.hierarchicality]
    return Oracle(network, henergy, GraphModule([species, positions], outputs))


def ours(model: HIPNN, molecules: Molecules) -> EnergyTerms:
    return model.energy_terms(molecules.z, molecules.pos, molecules.batch)


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value expected."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_the_molecules_are_real_and_varied(molecules: Molecules) -> None:
    assert len(molecules.Z) >= 30
    assert set(molecules.z.tolist()) == {1, 6, 7, 8, 9}
    assert molecules.batch.bincount().max() > 20 > 5 == molecules.batch.bincount().min()


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="F=6"),
        pytest.param(
            {"n_features": 20, "n_sensitivities": 20, "n_atom_layers": 3, "resnet": 20}, id="F=20"
        ),
        pytest.param({"n_features": 5}, id="F=number of species"),
        pytest.param({"n_interaction_layers": 3, "n_atom_layers": 1}, id="three interactions"),
        pytest.param({"n_interaction_layers": 1, "n_atom_layers": 0}, id="smallest"),
        pytest.param({"possible_species": [0, 9, 8, 1, 6, 7]}, id="species in another order"),
        pytest.param({"first_is_interacting": True}, id="no zeroth order"),
    ],
)
def test_equal_to_hippynn(molecules: Molecules, settings: dict[str, Any], kernel: Any) -> None:
    oracle = make_oracle(**settings)
    model = from_hippynn(oracle.network, oracle.henergy)
    model.kernel = kernel
    theirs, result = oracle(molecules), ours(model, molecules)
    terms, r = result.terms, result.nonhierarchicality
    if oracle.henergy.first_is_interacting:  # E^0 = 0, so our R counts (E^1)^2 / (E^1)^2 per atom
        assert not bool(terms[:, 0].any())
        terms, r = terms[:, 1:], r - molecules.batch.bincount()
    torch.testing.assert_close(result.energy, theirs.energy, rtol=RTOL, atol=0)
    torch.testing.assert_close(r, theirs.nonhierarchicality, rtol=RTOL, atol=1e-12)
    torch.testing.assert_close(terms, theirs.terms, rtol=RTOL, atol=1e-12)
    assert deviation(result.features, theirs.features) < RTOL
    (gradient,) = torch.autograd.grad(result.energy.sum(), molecules.R)
    (expected,) = torch.autograd.grad(theirs.energy.sum(), molecules.R)
    assert expected.abs().max() > 1e-3
    assert deviation(gradient, expected) < RTOL


@pytest.mark.parametrize("kernel", ["fused", "padded", "reference"])
def test_gradients_in_the_weights_are_equal(molecules: Molecules, kernel: Any) -> None:
    """Of a loss with forces, so through second derivatives, as in training."""
    oracle = make_oracle()
    model = from_hippynn(oracle.network, oracle.henergy)
    model.kernel = kernel

    def backward(energy: Tensor) -> None:
        (force,) = torch.autograd.grad(energy.sum(), molecules.R, create_graph=True)
        (energy.square().mean() + force.square().mean()).backward(inputs=parameters)

    parameters = [p for p in model.parameters() if p.requires_grad]
    backward(ours(model, molecules).energy)
    parameters = list(oracle.named_parameters().values())
    backward(oracle(molecules).energy)
    for n, (block, layers) in enumerate(zip(model.blocks, oracle.network.blocks, strict=True)):
        theirs, interaction = layers[0].base_layer, block.interaction
        readout = oracle.henergy.layers[n + 1]
        pairs = [
            (interaction.V, theirs.int_weights.grad.transpose(1, 2)),
            (interaction.sensitivity.mu, theirs.sensitivity.mu.grad[0]),
            (interaction.sensitivity.sigma, theirs.sensitivity.sigma.grad[0]),
            (interaction.W.weight, theirs.selfint.weight.grad),
            (interaction.W.bias, theirs.selfint.bias.grad),
            (interaction.residual.W.weight, layers[0].res_layer.weight.grad),
            (block.onsite[1].W.bias, layers[2].base_layer.bias.grad),
            (block.onsite[1].residual.W.bias, layers[2].res_layer.bias.grad),
            (block.readout.weight, readout.weight.grad[0]),
            (block.readout.bias, readout.bias.grad),
        ]
        for parameter, expected in pairs:
            assert expected.abs().max() > 0
            assert deviation(parameter.grad, expected) < RTOL


def test_every_weight_is_carried_over(molecules: Molecules) -> None:
    """Control: after a change of any one of hippynn's weights only a new conversion agrees."""
    few = molecules.head(4)
    oracle = make_oracle()
    before = from_hippynn(oracle.network, oracle.henergy)
    unchanged = ours(before, few).energy
    parameters = oracle.named_parameters()
    assert len(parameters) == 36  # 16 and 15 in the blocks, 5 in the readouts
    for name, parameter in parameters.items():
        value = parameter.detach().clone()
        with torch.no_grad():
            parameter[(0,) * parameter.dim()] += 0.1 * parameter.abs().max()
        expected = oracle(few).energy
        after = from_hippynn(oracle.network, oracle.henergy)
        torch.testing.assert_close(ours(after, few).energy, expected, rtol=RTOL, atol=0)
        assert (unchanged - expected).abs().max() > 1e-7, name
        torch.testing.assert_close(ours(before, few).energy, unchanged, rtol=0, atol=0)
        with torch.no_grad():
            parameter.copy_(value)


def test_a_network_in_bohr(molecules: Molecules) -> None:
    """The paper's lengths. Control: the same network taken for one in Å answers otherwise."""
    lengths = {"dist_soft_min": 1.7, "dist_soft_max": 10.0, "dist_hard_max": 15.0}
    oracle = make_oracle(**lengths)
    model = from_hippynn(oracle.network, oracle.henergy, "Bohr", "Hartree")
    assert model.cutoff == pytest.approx(15 * Bohr) and model.energy_unit == "Hartree"
    paper = {key: HIPNN().hyperparameters[key] for key in ("r_low", "r_high", "cutoff")}
    assert {key: model.hyperparameters[key] for key in paper} == pytest.approx(paper)
    theirs, result = oracle(molecules, unit=Bohr), ours(model, molecules)
    torch.testing.assert_close(result.energy, theirs.energy, rtol=RTOL, atol=0)
    (gradient,) = torch.autograd.grad(result.energy.sum(), molecules.R)
    (expected,) = torch.autograd.grad(theirs.energy.sum(), molecules.R)  # in Hartree/Å
    assert deviation(gradient, expected) < RTOL
    wrong = from_hippynn(oracle.network, oracle.henergy, "Angstrom", "Hartree")
    assert deviation(ours(wrong, molecules).energy, theirs.energy) > 1e-3


def test_the_length_unit_changes_the_lengths_only() -> None:
    oracle = make_oracle()
    in_angstrom = from_hippynn(oracle.network, oracle.henergy).state_dict()
    in_bohr = from_hippynn(oracle.network, oracle.henergy, "Bohr").state_dict()
    for name, tensor in in_angstrom.items():
        is_length = name.endswith((".mu", ".sigma"))
        torch.testing.assert_close(in_bohr[name], tensor * (Bohr if is_length else 1))


def test_float32_stays_float32(molecules: Molecules) -> None:
    oracle = make_oracle(torch.float32)
    model = from_hippynn(oracle.network, oracle.henergy)
    assert model.blocks[0].interaction.V.dtype == torch.float32
    assert model.reference.weight.dtype == torch.float64
    single = molecules._replace(R=molecules.R.detach().float())
    assert deviation(ours(model, single).energy, oracle(single).energy) < 1e-5


def test_nodes_are_taken_for_their_modules() -> None:
    species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
    node = networks.Hipnn("net", (species, positions), module_kwargs=SETTINGS)
    energy = targets.HEnergyNode("energy", node)
    state = from_hippynn(node, energy).state_dict()
    expected = from_hippynn(node.torch_module, energy.torch_module).state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_converted_model_is_saved_and_loaded(molecules: Molecules, tmp_path: Path) -> None:
    oracle = make_oracle()
    model = from_hippynn(oracle.network, oracle.henergy, energy_unit="kcal/mol")
    loaded = load_model(save_model(model, tmp_path))
    assert loaded.energy_unit == "kcal/mol" and not model.training
    assert torch.equal(ours(loaded, molecules).energy, ours(model, molecules).energy)


# -- refusals: each differs in one thing from a network that is converted -------------------------


def bottleneck(*sizes: Any) -> SensitivityBottleneck:
    return SensitivityBottleneck(*sizes, n_dist_bare=10)


def other_cutoff(*sizes: Any) -> InverseSensitivityModule:
    class TanhCutoff(torch.nn.Module):
        def __init__(self, hard_max_dist: float) -> None:
            super().__init__()

    return InverseSensitivityModule(*sizes, cutoff_type=TanhCutoff)


def shorter_cutoff(*sizes: Any) -> InverseSensitivityModule:
    return InverseSensitivityModule(*sizes[:3], 4.0)


@pytest.mark.parametrize(
    ("make", "settings", "error", "message"),
    [
        (HipnnVec, {}, TypeError, "HipnnVec, which is not HIP-NN: give a hippynn Hipnn"),
        (HipnnQuad, {}, TypeError, "HipnnQuad, which is not HIP-NN: give a hippynn Hipnn"),
        (HipHopNNModule, {}, TypeError, "HipHopNNModule, which is not HIP-NN"),
        (Hipnn, {"resnet": False}, ValueError, "resnet=False.*train .* with resnet=True"),
        (Hipnn, {"resnet": 4}, ValueError, r"n_features=\(6, 6\) with resnet=4.*one width"),
        (
            Hipnn,
            {"n_features": [6, 7], "n_interaction_layers": None},
            ValueError,
            r"n_features=\(6, 7\).*one width",
        ),
        (
            Hipnn,
            {"sensitivity_type": "linear"},
            TypeError,
            'GaussianSensitivityModule.*sensitivity_type="inverse"',
        ),
        (Hipnn, {"sensitivity_type": bottleneck}, TypeError, "SensitivityBottleneck"),
        (Hipnn, {"sensitivity_type": other_cutoff}, TypeError, "TanhCutoff, not Eq. 11"),
        (Hipnn, {"sensitivity_type": shorter_cutoff}, ValueError, "cut off at 4.0.* 6.5"),
        (Hipnn, {"activation": torch.nn.SiLU}, TypeError, "SiLU, not softplus"),
        (Hipnn, {"activation": torch.nn.Softplus(2)}, ValueError, "beta=2.*train .* beta=1"),
        (
            Hipnn,
            {"possible_species": None, "n_input_features": 5},
            ValueError,
            "no possible_species: set network.species_set",
        ),
        (Hipnn, {"possible_species": [1, 6, 7, 8]}, ValueError, "must begin with 0"),
    ],
)
def test_networks_that_are_refused(
    make: Callable[..., Hipnn], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = make(**{**SETTINGS, **settings})
    with pytest.raises(error, match=message):
        from_hippynn(network, HEnergy(network.feature_sizes))
    accepted = Hipnn(**SETTINGS)
    assert from_hippynn(accepted, HEnergy(accepted.feature_sizes)).species == (1, 6, 7, 8, 9)


def test_readouts_that_are_refused() -> None:
    network = Hipnn(**SETTINGS)
    sizes = network.feature_sizes
    with pytest.raises(TypeError, match=r"HCharge, which is not Eq\. 4: give a hippynn HEnergy"):
        from_hippynn(network, HCharge(sizes))
    with pytest.raises(ValueError, match=r"n_target=3.*n_target=1"):
        from_hippynn(network, HEnergy(sizes, n_target=3))
    with pytest.raises(ValueError, match=r"sizes \(5, 6\), the network gives \(5, 6, 6\)"):
        from_hippynn(network, HEnergy(sizes[:-1]))
    with pytest.raises(TypeError, match="network is a HEnergy"):
        from_hippynn(HEnergy(sizes), network)


@pytest.mark.parametrize(
    "units", [("angstrom", "eV"), ("eV", "eV"), ("Bohr", "Rydberg"), ("Bohr", "Angstrom")]
)
def test_units_that_are_refused(units: tuple[str, str]) -> None:
    network = Hipnn(**SETTINGS)
    with pytest.raises(ValueError, match=r"cannot convert .*: choose"):
        from_hippynn(network, HEnergy(network.feature_sizes), *units)


def test_without_hippynn_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Hipnn(**SETTINGS)
    henergy = HEnergy(network.feature_sizes)
    monkeypatch.setitem(sys.modules, "hippynn.networks.hipnn", None)
    with pytest.raises(ImportError, match=r"pip install hippynn==0\.1\.3"):
        from_hippynn(network, henergy)
