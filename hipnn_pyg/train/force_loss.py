"""The loss of energies, forces and stress: the paper's (Eq. 14) with errors of the same form."""

from __future__ import annotations

from functools import cached_property
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
        stress_mae: mean absolute error of the stress components, energy unit / Å^3; 0 where stress
            is not learned, or no structure has any.
        stress_rmse: their root-mean-square error, energy unit / Å^3.
    """

    loss: Tensor
    mae: Tensor
    rmse: Tensor
    l2: Tensor
    r: Tensor
    force_mae: Tensor
    force_rmse: Tensor
    stress_mae: Tensor
    stress_rmse: Tensor

    @property
    def logged(self) -> tuple[Tensor, ...]:
        """Whose sums are logged; where stress is learned, its error and 1 where there was any."""
        of_stress = (self.stress_mae, self.stress_mae.sign())
        return self.loss, self.mae, self.r, self.force_mae, *of_stress


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
    forces = molecules.forces[molecules.atoms]
    sigma_f = float(forces.double().square().mean().sqrt())
    if not sigma_f > 0:
        raise StructureError(
            f"all forces of the {len(molecules)} training molecules are 0: give force labels that "
            "are not, or train on energies alone"
        )
    return sigma_f


def stress_scale(molecules: PackedMolecules) -> float:
    """sigma_S: root mean square of all stress components, energy unit / Å^3.

    Raises:
        StructureError: no structure has any, or all are 0.
    """
    stress = torch.zeros(0) if molecules.stress is None else molecules.stress
    known = stress[torch.isfinite(stress)]
    sigma_s = float(known.square().mean().sqrt()) if len(known) else 0.0
    if not sigma_s > 0:
        raise StructureError(
            f"of the {len(molecules)} training structures none has stress, or all of it is 0: give "
            "labels that are not, or train without"
        )
    return sigma_s


class PairForces:
    r"""Forces and stress from :math:`\partial E / \partial r` of each pair, and back.

    .. math:: F_i = \sum_{j} \left(\frac{\partial E}{\partial r_{ij}}
        + \frac{\partial E}{\partial r_{ji}}\right) \frac{r_{ij}}{|r_{ij}|}, \qquad
        \sigma = \frac{1}{V} \sum_{j \to i} \frac{\partial E}{\partial r_{ij}}
        \frac{r_{ij} \otimes r_{ij}}{|r_{ij}|}

    Args:
        pairs: in either layout, of periodic structures as edges.
        pos: positions in Å, ``[N, 3]``.
        batch: the mini-batch that they are of.
    """

    def __init__(self, pairs: Pairs, pos: Tensor, batch: MoleculeBatch) -> None:
        i = pairs.i
        if i is None:
            i = torch.arange(pos.size(0), device=pos.device).unsqueeze(1).expand_as(pairs.j)
        r_ij = pos[pairs.j] - pos[i]
        shift = edges_of(batch)[1]
        if shift is not None:
            r_ij = r_ij + shift.to(pos)
        self.direction = (r_ij / pairs.r.detach().unsqueeze(-1)).view(-1, 3)  # unused places: 0
        self.i, self.j, self.r_ij = i.reshape(-1), pairs.j.reshape(-1), r_ij.view(-1, 3)
        self.none, self.batch = torch.zeros_like(pos), batch

    def forces(self, slope: Tensor) -> Tensor:
        """Forces ``[N, 3]`` from the derivatives in the distances, in the pairs' layout."""
        pull = slope.reshape(-1, 1) * self.direction
        return self.none.index_add(0, self.i, pull).index_add(0, self.j, pull, alpha=-1)

    def stress(self, slope: Tensor) -> Tensor | None:
        """Stress ``[G, 3, 3]`` likewise; None without labels, without meaning where no label is."""
        if self.batch.stress is None:
            return None
        pull = slope.reshape(-1, 1) * self.direction
        virial = self.none.new_zeros(self.batch.target.numel(), 3, 3)
        virial = virial.index_add(0, self._graph, pull.unsqueeze(2) * self.r_ij.unsqueeze(1))
        return virial / self._volume

    def back(self, dforces: Tensor, dstress: Tensor | None = None) -> Tensor:
        """The gradient in the derivatives, ``[E]``, from those in forces and stress."""
        along = ((dforces[self.i] - dforces[self.j]) * self.direction).sum(1)
        if dstress is None:
            return along
        of_each = (dstress / self._volume)[self._graph]
        outer = self.direction.unsqueeze(2) * self.r_ij.unsqueeze(1)  # no product to be rounded
        return along + (outer * of_each).sum((1, 2))

    @cached_property
    def _graph(self) -> Tensor:
        """Structure of each pair."""
        return self.batch.batch[self.i]

    @cached_property
    def _volume(self) -> Tensor:
        """In Å^3, ``[G, 1, 1]``; 1 where a structure has none."""
        volume = self.none.new_ones(self.batch.target.numel(), 1, 1)
        if (cells := self.batch.cells) is None:
            return volume
        own = torch.linalg.det(cells.cell).abs().to(volume).view(-1, 1, 1)
        return torch.where(cells.pbc.all(1).view(-1, 1, 1), own, volume)


def terms_and_forces(
    model: HIPNN, kernel: str, batch: MoleculeBatch
) -> tuple[Tensor, Tensor, Tensor | None]:
    """E_i^n, forces and stress, differentiable in the model's parameters (not in the positions).

    Args:
        model: the model.
        kernel: as :func:`force_kernel` gives it.
        batch: packed molecules, checked.

    Returns:
        ``(terms [N, orders + 1] float64, forces [N, 3], stress [G, 3, 3])`` in the energy unit
        (/ Å, / Å^3); stress is None without labels.
    """
    pos = batch.pos.to(model.blocks[0].interaction.V.dtype)
    if batch.cells is not None and kernel == "padded":
        kernel = "reference"  # forces need the shift of each edge
    pairs = batch_pairs(model, kernel, pos, batch)
    r = pairs.r.detach().requires_grad_()
    terms, _ = model.atom_terms(model.species_index(batch.z), pairs._replace(r=r))
    (slope,) = torch.autograd.grad(terms.sum(), (r,), create_graph=True, materialize_grads=True)
    pull = PairForces(pairs, pos, batch)
    return terms, pull.forces(slope), pull.stress(slope)


def force_errors(forces: Tensor, batch: MoleculeBatch) -> Tensor:
    """Predicted minus labelled force components, float64, ``[N, 3]``."""
    assert batch.forces is not None
    return forces.double() - batch.forces


def component_sums(errors: Tensor, count: Tensor | None = None) -> Tensor:
    """Sums of abs(f) and f^2 over the components f of errors, and their number; ``[3]``.

    Args:
        errors: of forces or stress.
        count: how many of them count, the others being 0; None for all.
    """
    count = errors.new_full((), errors.numel()) if count is None else count
    return torch.stack((errors.abs().sum(), errors.square().sum(), count))


def stress_errors(stress: Tensor, batch: MoleculeBatch) -> Tensor:
    """Predicted minus labelled stress components, float64, ``[G, 3, 3]``; 0 where no label is."""
    assert batch.stress is not None
    errors = stress.double() - batch.stress
    return torch.where(torch.isnan(batch.stress), 0.0, errors)


def stress_sums(errors: Tensor, batch: MoleculeBatch) -> Tensor:
    """:func:`component_sums` of :func:`stress_errors`."""
    assert batch.stress is not None
    return component_sums(errors, (~torch.isnan(batch.stress)).sum().to(errors))


class HIPNNForceLoss(HIPNNLoss):
    r"""The loss of a mini-batch with forces and, where it is learned, stress.

    .. math:: L = \frac{w_E}{\sigma_E} (\mathrm{MAE}_E + \mathrm{RMSE}_E)
        + \frac{w_F}{\sigma_F} (\mathrm{MAE}_F + \mathrm{RMSE}_F)
        + \frac{w_S}{\sigma_S} (\mathrm{MAE}_S + \mathrm{RMSE}_S)
        + \lambda_{L2} (\ldots) + \lambda_R \langle R \rangle

    The paper learns energies only. Forces get an error of the form of Eqs. 12 to 15: MAE and RMSE
    over the 3N components of the mini-batch, relative to sigma_F, the root mean square of the
    training forces; stress likewise, over the 9 components of each structure that has a label.
    With w_E = 1 and w_F = w_S = 0 it is Eq. 14.

    Args:
        model: the model.
        sigma_f: sigma_F (energy unit / Å), see :func:`force_scale`.
        energy_weight: w_E, dimensionless.
        force_weight: w_F, dimensionless.
        lambda_l2: weight of the L2 term.
        lambda_r: weight of the R term; ignored without hierarchy.
        sigma_s: sigma_S (energy unit / Å^3), see :func:`stress_scale`; None without stress.
        stress_weight: w_S, dimensionless.

    Raises:
        ValueError: a negative weight, or those of energies and forces both 0.
    """

    def __init__(
        self,
        model: HIPNN,
        sigma_f: float,
        energy_weight: float = 1.0,
        force_weight: float = 1.0,
        lambda_l2: float = 1e-6,
        lambda_r: float = 1e-2,
        sigma_s: float | None = None,
        stress_weight: float = 0.3,
    ) -> None:
        super().__init__(model, lambda_l2, lambda_r)
        if min(energy_weight, force_weight) < 0 or energy_weight + force_weight == 0:
            raise ValueError(
                f"energy_weight = {energy_weight} and force_weight = {force_weight}: both must be "
                "at least 0, and one of them positive"
            )
        if stress_weight < 0:
            raise ValueError(f"stress_weight must be at least 0, not {stress_weight}")
        self.energy_weight, self.force_weight = energy_weight, force_weight
        self.stress_weight, self.stress = stress_weight, sigma_s is not None
        self.num_sums = 10 if self.stress else 7
        self.kernel = force_kernel(model, model.reference.weight.device)
        self.sigma_f: Tensor
        scale = model.reference.sigma_e.new_full((), sigma_f)
        self.register_buffer("sigma_f", scale, persistent=False)
        self.sigma_s: Tensor
        scale = torch.full_like(scale, 1.0 if sigma_s is None else sigma_s)
        self.register_buffer("sigma_s", scale, persistent=False)

    def forward(  # type: ignore[override]
        self, batch: MoleculeBatch, l2: Tensor | None = None
    ) -> ForceLossTerms:
        """The loss of a packed mini-batch of checked molecules with forces."""
        return super().forward(batch, l2)  # type: ignore[return-value]

    def sums(self, batch: MoleculeBatch) -> Tensor:
        """What :meth:`terms` needs of some molecules; adds up over parts of a mini-batch.

        Returns:
            The sums of :func:`~hipnn_pyg.train.loss.error_sums`, those of abs(f) and f^2 over
            the components f of the force errors, and their number; with stress its own three;
            float64, ``[7]`` or ``[10]``.
        """
        batch = batch if self.stress else batch._replace(stress=None)  # labels, but no weight
        terms, forces, stress = terms_and_forces(self.model, self.kernel, batch)
        sums = [sums_of_terms(terms, batch), component_sums(force_errors(forces, batch))]
        if self.stress:
            assert stress is not None
            sums.append(stress_sums(stress_errors(stress, batch), batch))
        return torch.cat(sums)

    def terms(self, sums: Tensor, l2: Tensor) -> ForceLossTerms:  # type: ignore[override]
        """The loss from the sums over a mini-batch, see :meth:`sums`.

        Args:
            sums: of the whole mini-batch, see :meth:`sums`.
            l2: the L2 term.
        """
        absolute, square, r, count, absolute_f, square_f, count_f = sums[:7].unbind()
        (mae, rmse), r = mean_and_root(absolute, square, count), r / count
        force_mae, force_rmse = mean_and_root(absolute_f, square_f, count_f)
        loss = self.energy_weight * (mae + rmse) / self.model.reference.sigma_e
        loss = loss + self.force_weight * (force_mae + force_rmse) / self.sigma_f
        stress_mae = stress_rmse = torch.zeros_like(mae)
        if self.stress:
            absolute_s, square_s, count_s = sums[7:].unbind()  # of none: 0
            stress_mae, stress_rmse = mean_and_root(absolute_s, square_s, count_s.clamp(min=1))
            loss = loss + self.stress_weight * (stress_mae + stress_rmse) / self.sigma_s
        l2 = l2.to(sums.dtype)
        loss = loss + self.lambda_l2 * l2 + self.lambda_r * r
        of_forces = (force_mae, force_rmse, stress_mae, stress_rmse)
        return ForceLossTerms(loss, mae, rmse, l2, r, *of_forces)

    def slopes(self, terms: LossTerms, sums: Tensor) -> Tensor:
        """As :meth:`HIPNNLoss.slopes`, then in the sums of abs(f) and f^2, then in those of
        stress: ``[5]`` or ``[7]``."""
        assert isinstance(terms, ForceLossTerms)
        absolute, square, of_r = super().slopes(terms, sums).unbind()
        parts = [self.energy_weight * torch.stack((absolute, square)), of_r.view(1)]
        scale = float(sums[6]) * float(self.sigma_f)
        of_forces = sums.new_tensor(error_slopes(float(terms.force_rmse), scale))
        parts.append(self.force_weight * of_forces)
        if self.stress:
            scale = max(float(sums[9]), 1.0) * float(self.sigma_s)
            of_stress = sums.new_tensor(error_slopes(float(terms.stress_rmse), scale))
            parts.append(self.stress_weight * of_stress)
        return torch.cat(parts)
