"""Physics that any energy model must obey, as assertions to import into a test suite.

A model is any callable ``energy(z, pos, batch)`` that returns one energy per molecule, ``[G]`` or
``[G, 1]``; positions are in Å. Every function raises ``AssertionError`` naming what was violated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Energy = Callable[[Tensor, Tensor, Tensor], Tensor]


def assert_invariant(
    model: Energy,
    z: Tensor,
    pos: Tensor,
    batch: Tensor,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
) -> None:
    r"""The energy does not know the frame, the order of atoms, or the other molecules.

    .. math:: E(\{z_{\pi i}, Q r_{\pi i} + t\}) = E(\{z_i, r_i\}), \qquad Q^T Q = 1

    Checked: translation, rotation, reflection, permutation of the atoms of each molecule, and
    each molecule alone against the batch.

    Args:
        model: ``energy(z, pos, batch)``.
        z: atomic numbers, ``[N]``.
        pos: positions in Å, ``[N, 3]``.
        batch: molecule of each atom, sorted, ``[N]``.
        rtol: relative tolerance; None for 1e-5 (float32) or 1e-9 (float64).
        atol: absolute tolerance in the model's energy unit; None as ``rtol``.
        seed: of the random frame and order.

    Raises:
        AssertionError: naming the transformation that changed the energy.
    """
    default = 1e-9 if pos.dtype == torch.float64 else 1e-5
    rtol = default if rtol is None else rtol
    atol = default if atol is None else atol
    expected = _energies(model, z, pos, batch)
    for name, energies in _transformed(model, z, pos, batch, seed):
        _assert_equal(energies, expected, rtol, atol, f"the energy changes under {name}")


def _transformed(
    model: Energy, z: Tensor, pos: Tensor, batch: Tensor, seed: int
) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    move = torch.randn(3, generator=generator, dtype=torch.float64).to(pos)
    yield "translation", _energies(model, z, pos + move, batch)
    frame = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    rotation = (frame * frame.det()).to(pos)  # det(c Q) = c^3 det(Q): a proper rotation
    yield "rotation", _energies(model, z, pos @ rotation.T, batch)
    yield "reflection", _energies(model, z, pos * pos.new_tensor([-1.0, 1.0, 1.0]), batch)
    order = torch.randperm(z.numel(), generator=generator).to(batch.device)
    order = order[batch[order].argsort(stable=True)]  # shuffled inside each molecule
    yield "permutation of atoms", _energies(model, z[order], pos[order], batch)
    alone = [
        _energies(
            model, z[batch == graph], pos[batch == graph], torch.zeros_like(batch[batch == graph])
        )
        for graph in batch.unique()
    ]
    yield "batching with other molecules", torch.cat(alone)


def assert_extensive(
    model: Energy,
    z: Tensor,
    pos: Tensor,
    batch: Tensor,
    separation: float = 100.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> None:
    r"""Molecules far apart have the sum of their energies: :math:`E(A \cup B) = E(A) + E(B)`.

    Args:
        model: ``energy(z, pos, batch)``.
        z: atomic numbers, ``[N]``.
        pos: positions in Å, ``[N, 3]``.
        batch: molecule of each atom, sorted, ``[N]``.
        separation: gap between the molecules in Å, longer than the model's reach.
        rtol: relative tolerance.
        atol: absolute tolerance in the model's energy unit.

    Raises:
        AssertionError: the energies differ.
    """
    expected = _energies(model, z, pos, batch).sum(0, keepdim=True)
    stride = separation + float(pos[:, 0].max() - pos[:, 0].min())
    apart = pos.clone()
    apart[:, 0] += stride * batch.to(pos.dtype)
    energy = _energies(model, z, apart, torch.zeros_like(batch))
    message = "separated molecules do not have the sum of their energies"
    _assert_equal(energy, expected, rtol, atol, message)


def assert_gradient(
    model: Energy,
    z: Tensor,
    pos: Tensor,
    batch: Tensor,
    second: bool = False,
    rtol: float = 1e-3,
    atol: float = 1e-5,
) -> None:
    r"""Automatic derivatives equal finite differences, for forces :math:`F = -dE/dr`.

    Args:
        model: ``energy(z, pos, batch)`` in float64.
        z: atomic numbers, ``[N]``.
        pos: positions in Å, float64, ``[N, 3]``.
        batch: molecule of each atom, sorted, ``[N]``.
        second: check second derivatives too, which training on forces needs.
        rtol: relative tolerance.
        atol: absolute tolerance in energy unit / Å.

    Raises:
        AssertionError: a derivative differs, or energies do not depend on positions in autograd.
        ValueError: positions are not float64.
    """
    if pos.dtype != torch.float64:
        raise ValueError(f"finite differences need float64 positions and model, not {pos.dtype}")
    pos = pos.detach().clone().requires_grad_()
    checks = [torch.autograd.gradcheck] + [torch.autograd.gradgradcheck] * second
    for check in checks:
        try:
            check(lambda p: model(z, p, batch), (pos,), rtol=rtol, atol=atol)
        except (RuntimeError, ValueError) as error:  # both are how gradcheck reports a mismatch
            raise AssertionError(f"wrong derivative with respect to positions: {error}") from error


def assert_smooth_cutoff(
    model: Energy, cutoff: float, species: tuple[int, int] = (1, 1), reach: float = 0.01
) -> None:
    r"""The energy of two atoms and its first derivative go to 0 at the cutoff and stay there.

    With D the energy difference to infinite distance, at d and at d/10 short of the cutoff: where
    value and first derivative are continuous, :math:`D(d/10) / D(d) \le 10^{-2}` and
    :math:`D'(d/10) / D'(d) \le 10^{-1}` in the limit; a jump of either gives a ratio near 1.

    Args:
        model: ``energy(z, pos, batch)`` in float64.
        cutoff: R_cut in Å.
        species: atomic numbers of the two atoms.
        reach: d as a fraction of the cutoff.

    Raises:
        AssertionError: the energy is not smooth, not 0 beyond, or 0 inside already.
    """
    far, _ = _dimer(model, species, 2 * cutoff)
    energy, slope = _dimer(model, species, cutoff * (1 + 1e-6))
    if energy != far or slope != 0:
        raise AssertionError(
            f"beyond the cutoff of {cutoff} Å two atoms still interact: energy {energy - far:.3e}, "
            f"slope {slope:.3e}"
        )
    outer, outer_slope = _dimer(model, species, cutoff * (1 - reach))
    inner, inner_slope = _dimer(model, species, cutoff * (1 - reach / 10))
    if outer == far or outer_slope == 0:
        raise AssertionError(
            f"two atoms at {1 - reach:.2%} of the cutoff do not interact: nothing was tested, "
            "choose other species or a larger reach"
        )
    values, slopes = abs((inner - far) / (outer - far)), abs(inner_slope / outer_slope)
    if values > 0.5:
        raise AssertionError(f"the energy jumps at the cutoff: D(d/10) / D(d) = {values:.3g}")
    if slopes > 0.5:
        raise AssertionError(f"the force jumps at the cutoff: D'(d/10) / D'(d) = {slopes:.3g}")


def _dimer(model: Energy, species: tuple[int, int], r: float) -> tuple[float, float]:
    """Energy and its derivative of two atoms at distance r (Å)."""
    distance = torch.tensor(r, dtype=torch.float64, requires_grad=True)
    direction = torch.tensor([[0.0] * 3, [1.0, 0.0, 0.0]], dtype=torch.float64)
    z, batch = torch.tensor(species), torch.zeros(2, dtype=torch.long)
    energy = model(z, direction * distance, batch).sum()
    if not energy.requires_grad:
        raise AssertionError("the energy does not depend on positions in autograd: no forces")
    (slope,) = torch.autograd.grad(energy, distance)
    return float(energy.detach()), float(slope)


def _energies(model: Energy, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
    """One energy per molecule, ``[G]``, without gradient."""
    return model(z, pos, batch).detach().reshape(-1)


def _assert_equal(actual: Tensor, expected: Tensor, rtol: float, atol: float, message: str) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=rtol, atol=atol, msg=lambda details: f"{message}: {details}"
    )
