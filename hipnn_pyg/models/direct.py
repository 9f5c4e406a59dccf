"""All of Fig. 1 and its first derivatives by the kernels alone: the chain rule written out.

What autograd does over :mod:`hipnn_pyg.ops.layers`, without its bookkeeping, which for few atoms
costs a sixth of a training step, and without derivatives that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.graph.pairs import Pairs
from hipnn_pyg.models.hipnn import HIPNN, Block
from hipnn_pyg.nn import (
    EnergyReadout,
    ReferenceEnergy,
    as_built,
    dense_weights,
    layers_as_built,
    unchanged,
)
from hipnn_pyg.ops import cpu, takes
from hipnn_pyg.ops.devices import layer_kernels
from hipnn_pyg.ops.network import Network, Zeroth
from hipnn_pyg.ops.operands import Kept, Weights, Where

OWN = {name: getattr(HIPNN, name) for name in ("atom_terms", "one_hot", "species_index")}
"""Methods that a subclass may have of its own: then it is called instead."""


class Slopes(NamedTuple):
    """Where the gradients of a block's parameters go; None: nobody wants them."""

    mu: Tensor | None = None
    sigma: Tensor | None = None
    V: Tensor | None = None
    dense: Tensor | None = None  # of all dense layers, one after the other
    w: Tensor | None = None
    b: Tensor | None = None


class BlockWeights(NamedTuple):
    """The parameters of a block as its kernels take them."""

    cutoff: float
    mu: Tensor
    sigma: Tensor
    V: Tensor
    dense: Weights
    w: Tensor
    b: Tensor


class BlockPass(NamedTuple):
    """What the backward pass of a block needs of its forward pass."""

    where: Where
    z: Tensor
    weights: BlockWeights
    kept: Kept | None  # for gradients in the weights
    activations: Tensor
    between: Tensor
    result: Tensor


class BlockChange(NamedTuple):
    """How what :class:`BlockPass` keeps changes; of the first block's z, not at all."""

    z: Tensor | None
    environments: Tensor
    activations: Tensor
    between: Tensor
    result: Tensor


def serves(model: HIPNN) -> bool:
    """Whether the kernels of its device compute what the model does: no part of it is replaced."""
    weight = model.blocks[0].interaction.V
    if not takes(weight) or model.kernel_on(weight.device) != "fused":
        return False
    if any(getattr(getattr(model, name), "__func__", None) is not own for name, own in OWN.items()):
        return False
    if not unchanged(model.reference, ReferenceEnergy):
        return False
    width = len(model.species)
    for block in model.blocks:
        layer, readout = block.interaction, block.readout
        if not (
            unchanged(block, Block)
            and as_built(readout, EnergyReadout, weight)
            and layers_as_built(layer, block.onsite, weight)
        ):
            return False
        own, (_, below, width_above) = readout.__dict__["_parameters"], layer.V.shape
        if below != width or own["weight"].shape != (width_above,) or own["bias"].shape != (1,):
            return False
        width = width_above
    return True


def _scale(model: HIPNN) -> Any:
    """sigma_E as the readout's kernels take it: a number, on a GPU in its memory."""
    sigma_e = model.reference.sigma_e
    return sigma_e if sigma_e.is_cuda else float(sigma_e)


def block_weights(model: HIPNN) -> list[BlockWeights]:
    """The parameters of each block where they lie now: changed values are seen, new tensors not."""
    found = []
    for block in model.blocks:
        layer, readout = block.interaction, block.readout
        functions, dense = layer.sensitivity, Weights(dense_weights(layer, [*block.onsite]))
        own = (functions.mu, functions.sigma, layer.V, dense, readout.weight, readout.bias)
        found.append(BlockWeights(functions.cutoff, *own))
    return found


def gradient_parts(model: HIPNN) -> tuple[Tensor, list[Slopes]]:
    """A vector for the gradient in all learned parameters, in their order, and its parts.

    Args:
        model: its interaction and on-site layers are learned as a whole.

    Returns:
        Zeros, ``[P]``, or ``[K, P]`` where the parameters are those of K models, and where in them
        the gradients of each block go.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lead = model.blocks[0].interaction.V.shape[:-3]
    zeros = [torch.zeros_like(parameter).flatten(len(lead)) for parameter in learned]
    gradient = torch.cat(zeros, -1)
    ends = [*accumulate(zero.size(-1) for zero in zeros)]
    spans = zip([0, *ends], ends, strict=False)
    place: dict[Tensor, tuple[int, int]] = dict(zip(learned, spans, strict=True))

    def part(parameters: Sequence[Tensor]) -> Tensor:
        places = [place[parameter] for parameter in parameters]
        for before, after in pairwise(places):
            assert before[1] == after[0], "a block's dense weights must be neighbours"
        return gradient[..., places[0][0] : places[-1][1]]

    slopes = []
    for block in model.blocks:
        functions, readout = block.interaction.sensitivity, block.readout
        own: list[list[Tensor]] = [[functions.mu], [functions.sigma], [block.interaction.V]]
        own.append([w for w in dense_weights(block.interaction, [*block.onsite]) if w is not None])
        if readout.weight in place:  # not below the last order without hierarchy
            own += [[readout.weight], [readout.bias]]
        slopes.append(Slopes(*(part(parameters) for parameters in own)))
    return gradient, slopes


def network(weights: Sequence[BlockWeights], slopes: Sequence[Slopes]) -> Network:
    """All blocks and the loss in one call, see :func:`learn`; on a CPU.

    Args:
        weights: of the blocks.
        slopes: where their gradients go.
    """
    own = [(w.mu, w.sigma, w.V, w.w, w.b, *w.dense) for w in weights]
    return Network([w.cutoff for w in weights], own, slopes)


def learn(model: HIPNN, whole: Network, *given: Any) -> list[Tensor]:
    """The loss of molecules and its gradient; arguments and result as :meth:`Network.learn`.

    Args:
        model: for E^0, sigma_E and the species list.
        whole: of its blocks.
        *given: structures, target, parameters, lambda_l2, lambda_r.
    """
    own = model.reference
    zeroth = Zeroth(model._species_index, own.weight, own.bias, own.sigma_e)
    return whole.learn(zeroth, *given)


def _inputs(model: HIPNN, species: Tensor) -> tuple[Tensor, Tensor]:
    """Input features ``[N, species]`` and E^0 ``[N]``, on a GPU in one launch."""
    kernels = layer_kernels(species.device)
    if not hasattr(kernels, "inputs"):
        return model.one_hot(species), model.reference(species)
    dtype, reference = model.blocks[0].interaction.V.dtype, model.reference
    found: tuple[Tensor, Tensor] = kernels.inputs(species, reference.weight, reference.bias, dtype)
    return found


@torch.no_grad()
def forward(
    model: HIPNN,
    species: Tensor,
    pairs: Pairs,
    learn: bool,
    weights: Sequence[BlockWeights] | None = None,
) -> tuple[Tensor, list[BlockPass]]:
    """Eqs. 3-11, as :meth:`HIPNN.atom_terms`.

    Args:
        model: the model.
        species: places in the species list, ``[N]``.
        pairs: edges with their pattern.
        learn: whether :func:`backward` will follow, not :func:`distance_slopes` alone.
        weights: of the model, if they were looked up before.

    Returns:
        ``terms [N, num_interactions + 1]`` in float64, and what :func:`backward` needs.
    """
    assert pairs.pattern is not None
    z, zeroth = _inputs(model, species)
    terms, passes, r = [zeroth], [], pairs.r.detach().to(z.dtype)
    kernels, sigma_e = layer_kernels(z.device), _scale(model)
    for own in block_weights(model) if weights is None else weights:
        where = Where(pairs.pattern, own.cutoff, r, own.mu, own.sigma)
        received, kept = kernels.interact(where, z, own.V, learn)
        result, activations, between = kernels.dense(z, received, own.dense, True)
        assert activations is not None and between is not None
        terms.append(kernels.readout(result, own.w, own.b, sigma_e))
        passes.append(BlockPass(where, z, own, kept, activations, between, result))
        z = result
    return torch.stack(terms, dim=1), passes


@torch.no_grad()
def values(model: HIPNN, species: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """What :meth:`HIPNN.atom_terms` returns; nothing is kept for derivatives.

    Args:
        model: the model.
        species: places in the species list, ``[N]``.
        pairs: edges with their pattern.
    """
    assert pairs.pattern is not None
    z, zeroth = _inputs(model, species)
    terms, r = [zeroth], pairs.r.detach().to(z.dtype)
    kernels, sigma_e = layer_kernels(z.device), _scale(model)
    for own in block_weights(model):
        where = Where(pairs.pattern, own.cutoff, r, own.mu, own.sigma)
        received, _ = kernels.interact(where, z, own.V, False)
        z, _, _ = kernels.dense(z, received, own.dense, False)
        terms.append(kernels.readout(z, own.w, own.b, sigma_e))
    return torch.stack(terms, dim=1), z


@torch.no_grad()
def backward(
    model: HIPNN, passes: Sequence[BlockPass], dterms: Tensor, slopes: Sequence[Slopes]
) -> None:
    """Gradients of a function of the terms in the parameters.

    Args:
        model: the model.
        passes: of :func:`forward`.
        dterms: gradient in the terms, ``[N, num_interactions + 1]``.
        slopes: of each block: where to.
    """
    _backward(model, passes, dterms, slopes, [None] * len(passes))


@torch.no_grad()
def distance_slopes(model: HIPNN, passes: Sequence[BlockPass], dterms: Tensor) -> Tensor:
    """The same in the distances, ``[E]`` (energy unit / Å)."""
    r = passes[0].where.r
    each = r.new_empty(len(passes), r.numel())
    _backward(model, passes, dterms, [Slopes()] * len(passes), [*each])
    return each.sum(0)


def _backward(
    model: HIPNN,
    passes: Sequence[BlockPass],
    dterms: Tensor,
    slopes: Sequence[Slopes],
    dr: Sequence[Tensor | None],
) -> None:
    of_order, sigma_e = dterms.t().contiguous(), _scale(model)
    kernels = layer_kernels(dterms.device)
    dz: Tensor | None = None
    for n in range(len(passes) - 1, -1, -1):
        own, to = passes[n], slopes[n]
        mine = own.weights
        dresult = kernels.readout_backward(own.result, mine.w, of_order[n + 1], sigma_e, to.w, to.b)
        if dz is not None:
            dresult += dz
        dz = torch.empty_like(own.z) if n else None
        sent = None if dz is None else torch.empty_like(dz)
        inside = (own.activations, own.between)
        dreceived = kernels.dense_backward(own.z, mine.dense, *inside, dresult, dz, to.dense)
        wanted = (dr[n], to.mu, to.sigma, sent, to.V)
        kernels.interact_backward(own.where, own.z, mine.V, own.kept, dreceived, wanted)
        if dz is not None and sent is not None:
            dz += sent


@torch.no_grad()
def force_backward(
    model: HIPNN,
    passes: Sequence[BlockPass],
    along: Tensor,
    dterms: Tensor,
    slopes: Sequence[Slopes],
) -> None:
    r"""Gradients of :math:`f(E_i^n) + \sum_x a_x \partial E / \partial r_x` in the parameters.

    The sum is the change of E if each distance r_x moves by a_x: changes go forward through the
    network beside the values, then both go back. So a loss on forces is learned without second
    derivatives being written down. On a CPU.

    Args:
        model: the model.
        passes: of :func:`forward` with ``learn``.
        along: a, of each edge, ``[E]``.
        dterms: gradient of f, ``[N, num_interactions + 1]``.
        slopes: of each block: where to.
    """
    changes = _changes(passes, along)
    of_order, sigma_e = dterms.t().contiguous(), model.sigma_e
    ones = torch.ones_like(of_order[0])
    below: Tensor | None = None  # gradients in z and in its change, [2, N, out]
    for n in range(len(passes) - 1, -1, -1):
        own, change, to, mine = passes[n], changes[n], slopes[n], passes[n].weights
        assert to.dense is not None and own.kept is not None
        dvalue = cpu.readout_backward(own.result, mine.w, of_order[n + 1], sigma_e, to.w, to.b)
        dw, db = (None if g is None else torch.empty_like(g) for g in (to.w, to.b))
        dchange = cpu.readout_backward(change.result, mine.w, ones, sigma_e, dw, db)
        if to.w is not None and dw is not None:
            to.w.add_(dw)  # b, a constant, does not change
        dresult = torch.stack((dvalue, dchange))
        if below is not None:
            dresult += below
        size, z = (2, *own.z.shape), (own.z, change.z)
        below = own.z.new_empty(size) if n else None
        sent = own.z.new_empty(size) if n else None
        activations = (own.activations, change.activations)
        between = (own.between, change.between)
        received = cpu.dense_tangent_backward(
            z, mine.dense, activations, between, dresult, below, to.dense
        )
        pairs = (own.where, along, z, mine.V, own.kept, change.environments)
        cpu.interact_tangent_backward(*pairs, received, sent, (to.mu, to.sigma, to.V))
        if below is not None and sent is not None:
            below += sent


def _changes(passes: Sequence[BlockPass], along: Tensor) -> list[BlockChange]:
    """How the network's numbers change if each distance moves by ``along``."""
    changes: list[BlockChange] = []
    z_dot: Tensor | None = None  # the one-hot input stays
    for own in passes:
        mine, kept = own.weights, own.kept
        assert kept is not None and kept.sensitivities is not None, "not a CPU's forward pass"
        received, environments = cpu.interact_tangent(own.where, along, own.z, z_dot, mine.V, kept)
        found = cpu.dense_tangent(z_dot, received, mine.dense, own.activations)
        result, activations, between = found
        changes.append(BlockChange(z_dot, environments, activations, between, result))
        z_dot = result
    return changes
