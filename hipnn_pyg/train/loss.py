"""The loss, Eqs. 12-18."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hipnn_pyg.data.packed import MoleculeBatch, edges_of
from hipnn_pyg.graph import Pairs, all_pairs, edge_pairs, laid_out, radius_graph
from hipnn_pyg.graph.neighbors import ALL_PAIRS_LIMIT
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.nn import nonhierarchicality


class LossTerms(NamedTuple):
    """The loss of a mini-batch and its parts, each a float64 scalar.

    Attributes:
        loss: what is minimised (Eq. 14), dimensionless.
        mae: mean absolute error (Eq. 12), energy unit.
        rmse: root-mean-square error (Eq. 13), energy unit.
        l2: L2 regularisation (Eq. 16), dimensionless.
        r: mean non-hierarchicality (Eqs. 17, 18), dimensionless.
    """

    loss: Tensor
    mae: Tensor
    rmse: Tensor
    l2: Tensor
    r: Tensor

    @property
    def logged(self) -> tuple[Tensor, ...]:
        """Whose means over an epoch are logged."""
        return self.loss, self.mae, self.r


def l2_norm(model: HIPNN) -> Tensor:
    r"""Sum of squared weights (Eq. 16): :math:`|w|^2/\sigma_E^2 + |W|^2 + |V|^2 + |\tilde W|^2
    + |\tilde M|^2`.

    :math:`w^n/\sigma_E` is the learned :math:`\tilde w^n`; what is not learned (w^0, the identity
    :math:`\tilde M`) does not enter, nor do biases, mu and sigma.
    """
    return torch.stack(
        [
            parameter.square().sum()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and is_penalised(name)
        ]
    ).sum()


def is_penalised(name: str) -> bool:
    """Whether a parameter of this name enters the L2 term: neither biases nor mu and sigma do."""
    return name.rpartition(".")[2] not in ("bias", "mu", "sigma")


def is_searched(batch: MoleculeBatch) -> bool:
    """Whether a mini-batch has a molecule so large that its neighbours are sooner found than all
    its pairs computed; not in a compiled step, whose sizes do not depend on positions."""
    return not torch.compiler.is_compiling() and batch.max_atoms > ALL_PAIRS_LIMIT


def batch_pairs(model: HIPNN, kernel: str, pos: Tensor, batch: MoleculeBatch) -> Pairs:
    """The pairs of a mini-batch, in the layout that a kernel takes.

    Args:
        model: whose cutoff counts where neighbours are searched, see :func:`is_searched`.
        kernel: as :meth:`HIPNN.kernel_on` gives it.
        pos: positions in Å, in the dtype of the distances, ``[N, 3]``.
        batch: packed molecules, or periodic structures with their edges.

    Raises:
        StructureError: periodic structures whose neighbours were not searched.
    """
    if batch.pairs is not None:
        return batch.pairs
    edge_index, shift = edges_of(batch)
    if edge_index is None:
        if not is_searched(batch):
            return all_pairs(kernel, pos, batch.batch, batch.ptr, batch.max_atoms, batch.num_edges)
        edge_index = radius_graph(pos, model.cutoff, batch.batch, model.backend)
    shift = None if shift is None else shift.to(pos)
    return laid_out(kernel, edge_pairs(pos, edge_index, shift), pos.size(0))


def error_sums(model: HIPNN, kernel: str, batch: MoleculeBatch) -> Tensor:
    """What the loss needs to know of some molecules: sums, which add up over parts of a mini-batch.

    Args:
        model: the model.
        kernel: as :meth:`HIPNN.kernel_on` gives it.
        batch: packed molecules, checked.

    Returns:
        Sums of abs(e), e^2 and R, and the number of molecules; float64, ``[4]``. The error
        e = E - target is formed on E - E^0.
    """
    pos = batch.pos.to(model.blocks[0].interaction.V.dtype)
    pairs = batch_pairs(model, kernel, pos, batch)
    terms, _ = model.atom_terms(model.species_index(batch.z), pairs)
    return sums_of_terms(terms, batch)


def sums_of_terms(terms: Tensor, batch: MoleculeBatch) -> Tensor:
    """:func:`error_sums` from the E_i^n of the molecules, ``[N, orders + 1]``."""
    num_graphs = batch.target.numel()
    per_graph = terms.new_zeros(num_graphs, terms.size(1)).index_add(0, batch.batch, terms)
    error = per_graph[:, 1:].sum(1) - (batch.target - per_graph[:, 0])
    r = nonhierarchicality(terms, batch.batch, num_graphs)
    count = error.new_full((), num_graphs)
    return torch.stack((error.abs().sum(), error.square().sum(), r.sum(), count))


def mean_and_root(absolute: Tensor, square: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """MAE and RMSE (Eqs. 12, 13) from sums over ``count`` errors."""
    mean_square = square / count
    # The root's gradient at 0 is infinite; that of the norm, which this is, is taken as 0.
    exact = mean_square == 0
    return absolute / count, torch.where(exact, 0.0, torch.where(exact, 1.0, mean_square).sqrt())


def error_slopes(rmse: float, scale: float) -> tuple[float, float]:
    """Derivatives of (MAE + RMSE) count / scale in the sums of abs(e) and e^2.

    Args:
        rmse: root-mean-square error; where it is 0, so is its derivative.
        scale: number of errors times what they are relative to.
    """
    return 1 / scale, 0.5 / (rmse * scale) if rmse else 0.0


class HIPNNLoss(nn.Module):
    r"""The loss of a mini-batch (Eq. 14).

    .. math:: L = \frac{\mathrm{MAE} + \mathrm{RMSE}}{\sigma_E} + \lambda_{L2} (\ldots)
        + \lambda_R \langle R \rangle

    Errors are formed on E - E^0 in float64. No checks run inside: the step compiles and captures.

    Args:
        model: the model.
        lambda_l2: weight of the L2 term.
        lambda_r: weight of the R term; ignored without hierarchy (Table II).

    Attributes:
        num_sums: numbers that :meth:`sums` gives.
    """

    num_sums = 4

    def __init__(self, model: HIPNN, lambda_l2: float = 1e-6, lambda_r: float = 1e-2) -> None:
        super().__init__()
        self.model = model
        self.lambda_l2 = lambda_l2
        self.lambda_r = lambda_r if model.hierarchical else 0.0
        self.kernel = model.kernel_on(model.reference.weight.device)

    def forward(self, batch: MoleculeBatch, l2: Tensor | None = None) -> LossTerms:
        """The loss of a packed mini-batch of checked molecules.

        Args:
            batch: the molecules.
            l2: the L2 term, if it is already known.

        Raises:
            ValueError: targets of another shape than ``[G]``.
        """
        if batch.target.dim() != 1:  # [G, 1] would be broadcast against all energies
            raise ValueError(
                f"target must hold one energy per molecule, [G], not {[*batch.target.shape]}: "
                "flatten it"
            )
        l2 = l2_norm(self.model) if l2 is None else l2
        return self.terms(self.sums(batch), l2)

    def sums(self, batch: MoleculeBatch) -> Tensor:
        """:func:`error_sums` of some molecules: all that :meth:`terms` needs of them."""
        return error_sums(self.model, self.kernel, batch)

    def terms(self, sums: Tensor, l2: Tensor) -> LossTerms:
        """The loss from the sums over a mini-batch, see :func:`error_sums`.

        Args:
            sums: of the whole mini-batch, ``[4]``.
            l2: the L2 term.
        """
        absolute, square, r, count = sums.unbind()
        (mae, rmse), r = mean_and_root(absolute, square, count), r / count
        loss, l2 = (mae + rmse) / self.model.reference.sigma_e, l2.to(sums.dtype)
        loss = loss + self.lambda_l2 * l2 + self.lambda_r * r
        return LossTerms(loss, mae, rmse, l2, r)

    def slopes(self, terms: LossTerms, sums: Tensor) -> Tensor:
        """Derivatives of :meth:`terms`' loss in the sums of abs(e), e^2 and R, ``[3]``.

        Args:
            terms: the loss.
            sums: that it came from.
        """
        count = float(sums[3])
        of_errors = error_slopes(float(terms.rmse), count * self.model.sigma_e)
        return terms.loss.new_tensor([*of_errors, self.lambda_r / count])
