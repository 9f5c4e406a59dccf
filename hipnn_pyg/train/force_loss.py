"""The loss of energies and forces: the paper's (Eq. 14) with a force error of the same form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hipnn_pyg.checks import StructureError
from hipnn_pyg.data.packed import MoleculeBatch, PackedMolecules, edges_of
from hipnn_pyg.graph.pairs import Pairs
from hipnn_pyg.models.hipnn import HIPNN, Kernel
from hipnn_pyg.train.loss import (
    HIPNNLoss,
    LossTerms,
    batch_pairs,
    error_slopes,
    mean_and_root,
    sums_of_terms,
)


class ForceLossTerms(NamedTuple):
    """The loss of a mini-batch and its parts, each a float64 scalar.

    Attributes:
        loss: what is minimised, see :class:`HIPNNForceLoss`, dimensionless.
        mae: mean absolute error of the energies (Eq. 12), energy unit.
        rmse: root-mean-square error of the energies (Eq. 13), energy unit.
        l2: L2 regularisation (Eq. 16), dimensionless.
        r: mean non-hierarchicality (Eqs. 17, 18), dimensionless.
        force_mae: mean absolute error of the force components, energy unit / Å.
        force_rmse: their root-mean-square error, energy unit / Å.
    """

    loss: Tensor
    mae: Tensor
    rmse: Tensor
    l2: Tensor
    r: Tensor
    force_mae: Tensor
    force_rmse: Tensor


def force_kernel(model: HIPNN, device: torch.device) -> Kernel:
    """The kernel whose second derivatives autograd takes to train on forces: ``"auto"`` is
    ``"padded"``, where they are the fastest (the fused layers compute theirs by the readable ones).
    :mod:`hipnn_pyg.train.direct` needs none.
    """
    return "padded" if model.kernel == "auto" else model.kernel_on(device)


def force_scale(molecules: PackedMolecules) -> float:
    """sigma_F: root mean square of all force components (the mean force is 0), energy unit / Å.

    Raises:
        StructureError: there are no forces, or all are 0.
    """
    if molecules.forces is None:
        raise StructureError("these molecules have no force labels: pack them with forces=...")
    forces = molecules.gather(torch.arange(len(molecules))).forces
    assert forces is not None
    sigma_f = float(forces.double().square().mean().sqrt())
    if not sigma_f > 0:
        raise StructureError(
            f"all forces of the {len(molecules)} training molecules are 0: give force labels that "
            "are not, or train on energies alone"
        )
    return sigma_f


class PairForces:
    r"""Forces from :math:`\partial E / \partial r` of each pair, and back.

    .. math:: F_i = \sum_{j} \left(\frac{\partial E}{\partial r_{ij}}
        + \frac{\partial E}{\partial r_{ji}}\right) \frac{r_{ij}}{|r_{ij}|}

    Args:
        pairs: in either layout, of periodic structures as edges.
        pos: positions in Å, ``[N, 3]``.
        shift: periodic-image vectors of the edges in Å, ``[E, 3]``; None for molecules.
    """

    def __init__(self, pairs: Pairs, pos: Tensor, shift: Tensor | None = None) -> None:
        i = pairs.i
        if i is None:
            i = torch.arange(pos.size(0), device=pos.device).unsqueeze(1).expand_as(pairs.j)
        r_ij = pos[pairs.j] - pos[i]
        if shift is not None:
            r_ij = r_ij + shift.to(pos)
        self.direction = (r_ij / pairs.r.detach().unsqueeze(-1)).view(-1, 3)  # unused places: 0
        self.i, self.j = i.reshape(-1), pairs.j.reshape(-1)
        self.none = torch.zeros_like(pos)

    def __call__(self, slope: Tensor) -> Tensor:
        """Forces ``[N, 3]`` from the derivatives in the distances, in the pairs' layout."""
        pull = slope.reshape(-1, 1) * self.direction
        return self.none.index_add(0, self.i, pull).index_add(0, self.j, pull, alpha=-1)

    def back(self, dforces: Tensor) -> Tensor:
        """The gradient in the derivatives, ``[E]``, from that in the forces, ``[N, 3]``."""
        return ((dforces[self.i] - dforces[self.j]) * self.direction).sum(1)


def terms_and_forces(model: HIPNN, kernel: str, batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
    """E_i^n and forces, differentiable in the model's parameters (not in the positions).

    Args:
        model: the model.
        kernel: as :func:`force_kernel` gives it.
        batch: packed molecules, checked.

    Returns:
        ``(terms [N, orders + 1] float64, forces [N, 3])`` in the energy unit (/ Å).
    """
    pos = batch.pos.to(model.blocks[0].interaction.V.dtype)
    if batch.cells is not None and kernel == "padded":
        kernel = "reference"  # forces need the shift of each edge
    pairs = batch_pairs(kernel, pos, batch)
    r = pairs.r.detach().requires_grad_()
    terms, _ = model.atom_terms(model.species_index(batch.z), pairs._replace(r=r))
    (slope,) = torch.autograd.grad(terms.sum(), (r,), create_graph=True, materialize_grads=True)
    return terms, PairForces(pairs, pos, edges_of(batch)[1])(slope)


def force_errors(forces: Tensor, batch: MoleculeBatch) -> Tensor:
    """Predicted minus labelled force components, float64, ``[N, 3]``."""
    assert batch.forces is not None
    return forces.double() - batch.forces


def force_sums(errors: Tensor) -> Tensor:
    """Sums of abs(f) and f^2 over the components f of force errors, and their number; ``[3]``."""
    count = errors.new_full((), errors.numel())
    return torch.stack((errors.abs().sum(), errors.square().sum(), count))


class HIPNNForceLoss(HIPNNLoss):
    r"""The loss of a mini-batch with forces.

    .. math:: L = \frac{w_E}{\sigma_E} (\mathrm{MAE}_E + \mathrm{RMSE}_E)
        + \frac{w_F}{\sigma_F} (\mathrm{MAE}_F + \mathrm{RMSE}_F)
        + \lambda_{L2} (\ldots) + \lambda_R \langle R \rangle

    The paper learns energies only. Forces get an error of the form of Eqs. 12 to 15: MAE and RMSE
    over the 3N components of the mini-batch, relative to sigma_F, the root mean square of the
    training forces. With w_E = 1 and w_F = 0 it is Eq. 14.

    Args:
        model: the model.
        sigma_f: sigma_F (energy unit / Å), see :func:`force_scale`.
        energy_weight: w_E, dimensionless.
        force_weight: w_F, dimensionless.
        lambda_l2: weight of the L2 term.
        lambda_r: weight of the R term; ignored without hierarchy.

    Raises:
        ValueError: a negative weight, or both 0.
    """

    num_sums = 7

    def __init__(
        self,
        model: HIPNN,
        sigma_f: float,
        energy_weight: float = 1.0,
        force_weight: float = 1.0,
        lambda_l2: float = 1e-6,
        lambda_r: float = 1e-2,
    ) -> None:
        super().__init__(model, lambda_l2, lambda_r)
        if min(energy_weight, force_weight) < 0 or energy_weight + force_weight == 0:
            raise ValueError(
                f"energy_weight = {energy_weight} and force_weight = {force_weight}: both must be "
                "at least 0, and one of them positive"
            )
        self.energy_weight, self.force_weight = energy_weight, force_weight
        self.kernel = force_kernel(model, model.reference.weight.device)
        self.sigma_f: Tensor
        scale = model.reference.sigma_e.new_full((), sigma_f)
        self.register_buffer("sigma_f", scale, persistent=False)

    def forward(  # type: ignore[override]
        self, batch: MoleculeBatch, l2: Tensor | None = None
    ) -> ForceLossTerms:
        """The loss of a packed mini-batch of checked molecules with forces."""
        return super().forward(batch, l2)  # type: ignore[return-value]

    def sums(self, batch: MoleculeBatch) -> Tensor:
        """What :meth:`terms` needs of some molecules; adds up over parts of a mini-batch.

        Returns:
            The sums of :func:`~hipnn_pyg.train.loss.error_sums`, those of abs(f) and f^2 over
            the components f of the force errors, and their number; float64, ``[7]``.
        """
        terms, forces = terms_and_forces(self.model, self.kernel, batch)
        of_forces = force_sums(force_errors(forces, batch))
        return torch.cat((sums_of_terms(terms, batch), of_forces))

    def terms(self, sums: Tensor, l2: Tensor) -> ForceLossTerms:  # type: ignore[override]
        """The loss from the sums over a mini-batch, see :meth:`sums`.

        Args:
            sums: of the whole mini-batch, ``[7]``.
            l2: the L2 term.
        """
        absolute, square, r, count, absolute_f, square_f, count_f = sums.unbind()
        (mae, rmse), r = mean_and_root(absolute, square, count), r / count
        force_mae, force_rmse = mean_and_root(absolute_f, square_f, count_f)
        loss = self.energy_weight * (mae + rmse) / self.model.reference.sigma_e
        loss = loss + self.force_weight * (force_mae + force_rmse) / self.sigma_f
        loss = loss + self.lambda_l2 * l2 + self.lambda_r * r
        return ForceLossTerms(loss, mae, rmse, l2, r, force_mae, force_rmse)

    def slopes(self, terms: LossTerms, sums: Tensor) -> Tensor:
        """As :meth:`HIPNNLoss.slopes`, then in the sums of abs(f) and f^2, ``[5]``."""
        assert isinstance(terms, ForceLossTerms)
        scale = float(sums[6]) * float(self.sigma_f)
        of_forces = sums.new_tensor(error_slopes(float(terms.force_rmse), scale))
        absolute, square, of_r = super().slopes(terms, sums).unbind()
        of_energies = self.energy_weight * torch.stack((absolute, square))
        return torch.cat((of_energies, of_r.view(1), self.force_weight * of_forces))
