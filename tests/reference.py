"""The paper's equations as slow NumPy loops in float64: what every layer is held against.

Written from J. Chem. Phys. 148, 241715 (2018), index by index: atoms i, j; features a (out),
b (in); sensitivities nu. Only the last three functions know the names in the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

Array = np.ndarray
Neighbours = list[list[tuple[int, float]]]


def softplus(x: float) -> float:
    """Eq. 6."""
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def cutoff(r: float, r_cut: float) -> float:
    """Eq. 11."""
    return math.cos(math.pi * r / (2 * r_cut)) ** 2 if r <= r_cut else 0.0


def sensitivity(r: float, mu: float, sigma: float, r_cut: float) -> float:
    """Eq. 10."""
    return math.exp(-((1 / r - 1 / mu) ** 2) / (2 * sigma**-2)) * cutoff(r, r_cut)


def neighbours(pos: Array, molecule: Sequence[int], r_cut: float) -> Neighbours:
    """(j, r_ij) of every other atom j of i's molecule within the cutoff."""
    found: Neighbours = []
    for i in range(len(pos)):
        found.append([])
        for j in range(len(pos)):
            r = math.sqrt(sum((pos[j][k] - pos[i][k]) ** 2 for k in range(3)))
            if j != i and molecule[i] == molecule[j] and r <= r_cut:
                found[i].append((j, r))
    return found


def environment_sum(s: list[list[Array]], z: Array, near: Neighbours) -> Array:
    """e[i, nu, b] = sum_j s_nu(r_ij) z[j, b]; ``s[i][k]`` holds the s_nu of i's k-th neighbour."""
    num_sensitivities = max((len(values) for row in s for values in row), default=0)
    e = np.zeros((len(z), num_sensitivities, z.shape[1]))
    for i in range(len(z)):
        for k, (j, _) in enumerate(near[i]):
            for nu in range(num_sensitivities):
                for b in range(z.shape[1]):
                    e[i, nu, b] += s[i][k][nu] * z[j, b]
    return e


def residual(activation: Array, z: Array, p: dict[str, Array]) -> Array:
    """Eq. 7 for one atom; without ``M_tilde`` it is the identity."""
    out = len(activation)
    result = np.zeros(out)
    for a in range(out):
        result[a] = p["B_tilde"][a]
        for b in range(out):
            result[a] += p["W_tilde"][a, b] * activation[b]
        for b in range(len(z)):
            result[a] += (p["M_tilde"][a, b] if "M_tilde" in p else float(a == b)) * z[b]
    return result


def onsite(z: Array, p: dict[str, Array]) -> Array:
    """Eqs. 5-7."""
    rows = []
    for i in range(len(z)):
        activation = np.zeros(len(p["B"]))
        for a in range(len(activation)):
            total = p["B"][a]
            for b in range(z.shape[1]):
                total += p["W"][a, b] * z[i, b]
            activation[a] = softplus(total)
        rows.append(residual(activation, z[i], p))
    return np.array(rows)


def interaction(z: Array, near: Neighbours, p: dict[str, Array], r_cut: float) -> Array:
    """Eqs. 7-9, with v_ab(r) = sum_nu V[nu, a, b] s_nu(r) built for every pair."""
    rows = []
    for i in range(len(z)):
        activation = np.zeros(len(p["B"]))
        for a in range(len(activation)):
            total = p["B"][a]
            for b in range(z.shape[1]):
                total += p["W"][a, b] * z[i, b]
            for j, r in near[i]:
                for b in range(z.shape[1]):
                    v_ab = 0.0
                    for nu in range(len(p["mu"])):
                        s = sensitivity(r, p["mu"][nu], p["sigma"][nu], r_cut)
                        v_ab += p["V"][nu, a, b] * s
                    total += v_ab * z[j, b]
            activation[a] = softplus(total)
        rows.append(residual(activation, z[i], p))
    return np.array(rows)


def nonhierarchicality(terms: Array, molecule: Sequence[int]) -> Array:
    """Eq. 18, one R per molecule; ``terms[i, n]`` = E_i^n."""
    result = np.zeros(max(molecule) + 1)
    for i in range(len(terms)):
        for n in range(1, terms.shape[1]):
            upper, lower = terms[i, n] ** 2, terms[i, n - 1] ** 2
            result[molecule[i]] += upper / (upper + lower) if upper + lower > 0 else 0.0
    return result


def atom_terms(numbers: Sequence[int], near: Neighbours, model: dict[str, Any]) -> Array:
    """E_i^n of Eqs. 1-4 for all atoms and orders, ``[N, N_interaction + 1]``."""
    z = np.zeros((len(numbers), len(model["species"])))
    for i, number in enumerate(numbers):
        z[i, model["species"].index(number)] = 1.0
    terms = [[sum(model["w0"] * z[i]) + model["b0"] for i in range(len(z))]]
    for block in model["blocks"]:
        z = interaction(z, near, block["interaction"], model["cutoff"])
        for layer in block["onsite"]:
            z = onsite(z, layer)
        terms.append(
            [
                sum(model["sigma_e"] * block["w"][a] * z[i, a] for a in range(z.shape[1]))
                + block["b"]
                for i in range(len(z))
            ]
        )
    return np.array(terms).T


def glorot_bound(fan_in: int, fan_out: int) -> float:
    """Half-width of the uniform distribution of Glorot and Bengio."""
    return math.sqrt(6 / (fan_in + fan_out))


def array(tensor: Tensor) -> Array:
    """A float64 copy."""
    return tensor.detach().double().numpy()


def layer_arrays(layer: nn.Module) -> dict[str, Array]:
    """An on-site or interaction layer's parameters in the paper's letters, [a, b] = [out, in]."""
    p = {
        "W": array(layer.W.weight),
        "B": array(layer.W.bias),
        "W_tilde": array(layer.residual.W.weight),
        "B_tilde": array(layer.residual.W.bias),
    }
    if layer.residual.M is not None:
        p["M_tilde"] = array(layer.residual.M.weight)
    if hasattr(layer, "V"):
        p["V"] = array(layer.V).transpose(0, 2, 1)
        p["mu"], p["sigma"] = array(layer.sensitivity.mu), array(layer.sensitivity.sigma)
    return p


def model_arrays(model: nn.Module) -> dict[str, Any]:
    """A HIPNN's parameters as :func:`atom_terms` takes them."""
    return {
        "species": list(model.species),
        "cutoff": model.cutoff,
        "w0": array(model.reference.weight),
        "b0": model.reference.bias.item(),
        "sigma_e": model.sigma_e,
        "blocks": [
            {
                "interaction": layer_arrays(block.interaction),
                "onsite": [layer_arrays(layer) for layer in block.onsite],
                "w": array(block.readout.weight),
                "b": block.readout.bias.item(),
            }
            for block in model.blocks
        ],
    }
