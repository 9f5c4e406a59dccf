"""What one model or an ensemble says about molecules, and how far it was off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.train.metrics import predict
from hipnn_pyg.uncertainty.distance import FeatureStatistics

Floats = NDArray[np.float64]


class Observation(NamedTuple):
    """What one or several models say about M molecules, in their energy unit, on the CPU.

    Attributes:
        energy: mean over the models, float64, ``[M]``.
        orders: sums over atoms of E_i^n, mean over the models, float64,
            ``[M, num_interactions + 1]``.
        nonhierarchicality: R (Eq. 18), mean over the models, ``[M]``.
        spread: sample standard deviation (n - 1) over the models, ``[M]``; None of one model.
    """

    energy: Tensor
    orders: Tensor
    nonhierarchicality: Tensor
    spread: Tensor | None


def observe(models: Sequence[HIPNN], molecules: PackedMolecules) -> Observation:
    """Predict with every model.

    Args:
        models: one or more, of one energy unit.
        molecules: packed molecules.

    Raises:
        StructureError: no molecules, or species that a model does not know.
        ValueError: models of different energy units.
    """
    units = {model.energy_unit for model in models}
    if len(units) != 1:
        raise ValueError(f"the models predict in {sorted(units)}: give models of one unit")
    each = [predict(model, molecules) for model in models]
    energy, orders, r = (torch.stack(values) for values in zip(*each, strict=True))
    spread = energy.std(0) if len(models) > 1 else None
    return Observation(energy.mean(0), orders.mean(0), r.double().mean(0), spread)


class Sample(NamedTuple):
    """Errors over M molecules, with all that may foretell them; float64.

    Attributes:
        error: abs(prediction - target) in the energy unit, ``[M]``.
        r: non-hierarchicality, ``[M]``.
        spread: sample standard deviation over the models, ``[M]``; None of one model.
        distance: from the training data, ``[M]``.
    """

    error: Floats
    r: Floats
    spread: Floats | None
    distance: Floats

    def part(self, index: NDArray[np.int64] | slice) -> Sample:
        """Some of the molecules."""
        spread = None if self.spread is None else self.spread[index]
        return Sample(self.error[index], self.r[index], spread, self.distance[index])


def take_sample(
    models: Sequence[HIPNN], statistics: FeatureStatistics, molecules: PackedMolecules
) -> Sample:
    """Predict molecules of known energy.

    Args:
        models: one model, or the members of an ensemble: the error is their mean's.
        statistics: of the first model's training atoms.
        molecules: with energies in the models' unit.
    """
    seen = observe(models, molecules)
    return Sample(
        np.abs(as_array(seen.energy) - as_array(molecules.target)),
        as_array(seen.nonhierarchicality),
        None if seen.spread is None else as_array(seen.spread),
        as_array(statistics.distances(models[0], molecules)),
    )


def as_array(values: Tensor) -> Floats:
    """A float64 array on the CPU."""
    return values.detach().double().cpu().numpy()
