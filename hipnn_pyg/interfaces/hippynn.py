"""Models trained with hippynn 0.1.3, turned into ours: the same numbers, weight by weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hipnn_pyg.models import HIPNN
from hipnn_pyg.units import convert


def from_hippynn(
    network: Any, henergy: Any, length_unit: str = "Angstrom", energy_unit: str = "eV"
) -> HIPNN:
    r"""A :class:`~hipnn_pyg.models.HIPNN` with the weights of hippynn's ``Hipnn`` and ``HEnergy``.

    Energies, :math:`E_i^n` and all gradients are equal to rounding (hippynn's numba kernel, its
    default on CPUs, leaves out sensitivities below 1e-10 and is off by about as much). Lengths
    become Å. hippynn's readouts are not factorised: :math:`\sigma_E = 1`, and :math:`\tilde w^n`
    carries the energy unit. Its b^0 is 0, so E^0 is its zeroth readout alone.
    ``HEnergy(first_is_interacting=True)`` has no zeroth order: then E^0 = 0, and R (Eq. 18) is
    larger than hippynn's hierarchicality by 1 per atom. The weights are copied. Do not call
    ``fit_e0`` on the result: it would change the energies.

    Args:
        network: ``hippynn.networks.hipnn.Hipnn`` or its graph node, with ``possible_species``.
        henergy: ``hippynn.layers.targets.HEnergy`` or its graph node (``HEnergyNode``).
        length_unit: unit of the lengths the network was trained on: "Angstrom", "Bohr", "nm".
        energy_unit: unit of its energies, kept: "eV", "meV", "Hartree", "kcal/mol", "kJ/mol".

    Returns:
        The model in evaluation mode, in the network's dtype (E^0 in float64), on its device.

    Raises:
        TypeError: another class of network, readout or layer (HipnnVec, HipnnQuad, HIP-HOP, the
            linear sensitivity ...).
        ValueError: a setting that HIP-NN does not have, or an unknown unit.
        ImportError: hippynn is not installed.
    """
    network, henergy = (getattr(part, "torch_module", part) for part in (network, henergy))
    _check_network(network)
    _check_henergy(henergy, network)
    convert(1.0, energy_unit, "eV")  # refuses an unknown unit
    to_angstrom = convert(1.0, length_unit, "Angstrom")
    weight = network.interaction_layers[0].int_weights
    model = HIPNN(
        species=network.species_set[1:].tolist(),
        hidden_channels=network.feature_sizes[1],
        num_interactions=network.ni,
        num_onsite=network.n_layers_per_block,
        num_sensitivities=network.n_sensitivities,
        r_low=network.dist_soft_min * to_angstrom,
        r_high=network.dist_soft_max * to_angstrom,
        cutoff=network.dist_hard_max * to_angstrom,
        e0=None if henergy.first_is_interacting else _zeroth_order(henergy.layers[0]),
        energy_unit=energy_unit,
    ).to(weight.device, weight.dtype)
    readouts = henergy.layers[0 if henergy.first_is_interacting else 1 :]
    for ours, layers, readout in zip(model.blocks, network.blocks, readouts, strict=True):
        ours.load_state_dict(_block_state(layers, readout, to_angstrom))
    model.warn_unfitted = False
    return model.eval()


def _zeroth_order(readout: nn.Linear) -> list[float]:
    """E^0 of each species: the readout of the one-hot inputs (Eq. 3)."""
    with torch.no_grad():
        return readout(torch.eye(readout.in_features).to(readout.weight)).squeeze(1).tolist()


def _block_state(layers: Any, readout: nn.Linear, to_angstrom: float) -> dict[str, Tensor]:
    """State dict of one of our blocks from hippynn's [interaction, on-site, ...] and readout."""
    interaction = layers[0].base_layer
    sensitivity = interaction.sensitivity
    state = {
        "interaction.sensitivity.mu": sensitivity.mu[0] * to_angstrom,
        "interaction.sensitivity.sigma": sensitivity.sigma[0] * to_angstrom,
        "interaction.V": interaction.int_weights.transpose(1, 2),  # theirs is [nu, out, in]
        "readout.weight": readout.weight[0],
        "readout.bias": readout.bias,
        **_wrapped_state("interaction", interaction.selfint, layers[0]),
    }
    for k, layer in enumerate(layers[1:]):
        state |= _wrapped_state(f"onsite.{k}", layer.base_layer, layer)
    return state


def _wrapped_state(name: str, linear: nn.Linear, wrapper: Any) -> dict[str, Tensor]:
    """W and B of a layer (Eqs. 5, 8) and its residual transformation (Eq. 7), by our names."""
    parts = {"W": linear, "residual.W": wrapper.res_layer}
    if wrapper.needs_size_adjust:
        parts["residual.M"] = wrapper.adjust_layer
    return {
        f"{name}.{part}.{key}": tensor
        for part, module in parts.items()
        for key, tensor in module.state_dict().items()
    }


# -- what cannot be converted --------------------------------------------------------------------


def _check_network(network: Any) -> None:
    """Refuse what is not the HIP-NN of the 2018 paper."""
    try:
        from hippynn.networks.hipnn import Hipnn
    except ImportError as error:
        raise ImportError("from_hippynn needs hippynn: pip install hippynn==0.1.3") from error
    if type(network) is not Hipnn:
        raise TypeError(
            f"network is a {type(network).__name__}, which is not HIP-NN: give a hippynn Hipnn "
            "(its subclasses HipnnVec, HipnnQuad and HipHopNNModule have terms that HIP-NN lacks)"
        )
    if not network.resnet:
        raise ValueError(
            "resnet=False: HIP-NN has residual layers (Eq. 7); train the Hipnn with resnet=True"
        )
    if len({*network.feature_sizes[1:], *network.nf_middle}) > 1:
        raise ValueError(
            f"n_features={network.feature_sizes[1:]} with resnet={network.resnet}: HIP-NN has one "
            "width for all layers; train the Hipnn with one integer n_features and resnet=True"
        )
    _check_species(network.species_set)
    _check_sensitivities(network)
    for layer in (layer for block in network.blocks for layer in block):
        _check_activation(layer.activation)


def _check_species(species: Tensor | None) -> None:
    if species is None:
        raise ValueError(
            "the Hipnn has n_input_features but no possible_species: set network.species_set = "
            "torch.tensor([0, ...]) to the atomic numbers of its inputs, after a 0"
        )
    if species[0] != 0:
        raise ValueError(
            f"possible_species={species.tolist()} must begin with 0, the blank atom: hippynn gives "
            "the first entry no input feature"
        )


def _check_sensitivities(network: Any) -> None:
    from hippynn.layers.hiplayers import CosCutoff, InverseSensitivityModule

    for sensitivity in network.sensitivity_layers:
        if type(sensitivity) is not InverseSensitivityModule:
            raise TypeError(
                f"the sensitivity is a {type(sensitivity).__name__}, not Eq. 10: train the Hipnn "
                'with sensitivity_type="inverse" ("linear" is GaussianSensitivityModule)'
            )
        if type(sensitivity.cutoff) is not CosCutoff:
            raise TypeError(
                f"the cutoff function is a {type(sensitivity.cutoff).__name__}, not Eq. 11: train "
                "the Hipnn with CosCutoff"
            )
        if sensitivity.cutoff.hard_max_dist != network.dist_hard_max:
            raise ValueError(
                f"a layer is cut off at {sensitivity.cutoff.hard_max_dist}, the network at "
                f"{network.dist_hard_max}: HIP-NN has one R_cut; make them equal"
            )


def _check_activation(activation: Any) -> None:
    """f(x) = log(1 + exp(x)) (Eq. 6), which is torch's softplus with its default settings."""
    if type(activation) is not nn.Softplus:
        raise TypeError(
            f"the activation is {type(activation).__name__}, not softplus (Eq. 6): train the Hipnn "
            "with activation=torch.nn.Softplus"
        )
    if (activation.beta, activation.threshold) != (1, 20):
        raise ValueError(
            f"the activation is {activation}, not softplus (Eq. 6): train the Hipnn with beta=1 "
            "and threshold=20, the defaults of torch.nn.Softplus"
        )


def _check_henergy(henergy: Any, network: Any) -> None:
    from hippynn.layers.targets import HEnergy

    if type(henergy) is not HEnergy:
        raise TypeError(
            f"henergy is a {type(henergy).__name__}, which is not Eq. 4: give a hippynn HEnergy"
        )
    targets = henergy.layers[0].out_features
    if targets != 1:
        raise ValueError(f"n_target={targets}: HIP-NN has one energy; use an HEnergy of n_target=1")
    expected = network.feature_sizes[1 if henergy.first_is_interacting else 0 :]
    sizes = tuple(layer.in_features for layer in henergy.layers)
    if sizes != expected:
        raise ValueError(
            f"the HEnergy reads features of sizes {sizes}, the network gives {expected}: build it "
            "with feature_sizes=network.feature_sizes"
        )
