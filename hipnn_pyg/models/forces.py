"""Forces of any energy model by one gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from hipnn_pyg.checks import StructureError, check_graphs, check_shapes
from hipnn_pyg.graph.lattice import lattice_of

_NO_GRADIENT = (
    "the energy does not depend on positions in autograd, so it has no forces: the model detaches "
    "them, or was compiled without its gradient"
)


class EnergyForces(NamedTuple):
    """Energies and forces of a batch.

    Attributes:
        energy: total energies, ``[G, 1]``.
        forces: :math:`F_i = -dE/dr_i`, ``[N, 3]``.
    """

    energy: Tensor
    forces: Tensor


class Forces(nn.Module):
    """Forces for any model called as ``model(z, pos, batch) -> [G, 1]``: SchNet, DimeNet, HIPNN.

    Of a model that returns several things, such as PyG's ViSNet, the first is the energy.

    ``energy, forces = Forces(SchNet())(z, pos, batch)``

    Args:
        model: the energy model; the units are its own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # not its parts: some may have been set apart

    def forward(
        self,
        z: Tensor | Data,
        pos: Tensor | None = None,
        batch: Tensor | None = None,
        create_graph: bool | None = None,
    ) -> EnergyForces:
        """Energies and forces.

        Args:
            z: atomic numbers ``[N]``, or a PyG ``Data`` or ``Batch`` that holds all.
            pos: positions, ``[N, 3]``.
            batch: structure of each atom, sorted, ``[N]``; None for one structure.
            create_graph: keep the graph, so that a loss on forces can be differentiated; None for
                ``self.training`` where gradients are enabled.

        Raises:
            StructureError: no positions, wrong shapes, positions that are not finite, or a
                periodic ``Data``, of whose cell such a model would not know.
            ValueError: ``pos`` or ``batch`` beside a ``Data``.
            RuntimeError: the energy does not depend on positions in autograd.
        """
        num_graphs = None
        if isinstance(z, Data):
            refuse_beside_data(pos=pos, batch=batch)
            refuse_cells(z)
            num_graphs = graphs_of(z)
            z, pos, batch = z.get("z"), z.get("pos"), z.get("batch")
        z, pos = both(z, pos)
        check_graphs(z, pos, batch, num_graphs)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                z, pos, batch = copies(z, pos, batch)
                return self.forward(z, pos, batch, create_graph)
        keep = keeps_graph(self, create_graph)
        with torch.enable_grad():
            pos = leaf(pos, keep)
            molecule = torch.zeros_like(z, dtype=torch.long) if batch is None else batch
            energy = self.model(z, pos, molecule)  # PyG's ViSNet wants it
            if isinstance(energy, tuple):
                energy = energy[0]
            (slope,) = gradient(energy, (pos,), keep, isolated=_all_single(z, batch))
            return EnergyForces(energy if keep else energy.detach(), -slope)


def refuse_beside_data(**tensors: Any) -> None:
    """A ``Data`` holds all: what is given beside it would not be looked at.

    Raises:
        ValueError: naming what was given.
    """
    given = [name for name, value in tensors.items() if value is not None]
    if given:
        raise ValueError(
            f"{' and '.join(given)} given beside a Data, of which its own would be taken: set "
            f"data.{given[0]}, or pass all of the structure as tensors"
        )


def refuse_cells(data: Data) -> None:
    """Models called as ``model(z, pos, batch)`` know no cell.

    Raises:
        StructureError: a periodic structure.
    """
    cell, pbc = lattice_of(data)
    periodic = cell is not None and bool(cell.any()) if pbc is None else torch.as_tensor(pbc).any()
    if periodic:
        raise StructureError(
            f"the structure is periodic (pbc {pbc}, cell {cell}) and model(z, pos, batch) knows no "
            "cell: use HIPNNPotential, or set pbc to False"
        )


def graphs_of(data: Data) -> int | None:
    """How many structures a ``Batch`` holds, the empty ones too; None of a ``Data``."""
    return data.num_graphs if isinstance(data, Batch) else None


def both(z: Any, pos: Any) -> tuple[Tensor, Tensor]:
    """Atomic numbers and positions, or an error that names what is missing."""
    check_shapes(z, pos)
    return z, pos


def copies(*tensors: Tensor | None) -> list[Any]:
    """The same numbers for autograd, which tensors made in inference mode cannot enter."""
    return [None if x is None else x.clone() for x in tensors]


def keeps_graph(module: nn.Module, create_graph: bool | None) -> bool:
    """Whether the result stays differentiable: as asked, else in training only."""
    if create_graph is None:
        return module.training and torch.is_grad_enabled()
    return create_graph


def leaf(pos: Tensor, keep: bool) -> Tensor:
    """Positions to differentiate by: the caller's own if the result stays in their graph."""
    return pos if keep and pos.requires_grad else pos.detach().requires_grad_()


def gradient(
    energy: Tensor, inputs: tuple[Tensor, ...], keep: bool, isolated: bool
) -> list[Tensor]:
    """d(sum of energies)/d(inputs).

    Args:
        energy: energies of any shape.
        inputs: what to differentiate by; the first are the positions.
        keep: keep the graph.
        isolated: no atom has a neighbour, so that autograd may see no path: then 0.

    Raises:
        RuntimeError: autograd sees no path although atoms have neighbours.
    """
    slopes: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if energy.requires_grad:
        slopes = torch.autograd.grad(energy.sum(), inputs, create_graph=keep, allow_unused=True)
    if slopes[0] is None and not isolated:
        raise RuntimeError(_NO_GRADIENT)
    return [torch.zeros_like(x) if s is None else s for x, s in zip(inputs, slopes, strict=True)]


def _all_single(z: Tensor, batch: Tensor | None) -> bool:
    """Whether every structure is one atom."""
    return z.numel() == (1 if batch is None else int(batch[-1]) + 1)
