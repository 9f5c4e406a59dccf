"""Which loss a run minimises."""

from __future__ import annotations

from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.models.hipnn import HIPNN
from hipnn_pyg.train.config import Training
from hipnn_pyg.train.force_loss import HIPNNForceLoss, force_scale, stress_scale
from hipnn_pyg.train.loss import HIPNNLoss
from hipnn_pyg.train.static import StaticForceLoss, StaticLoss


def loss_of(
    config: Training, model: HIPNN, forces: PackedMolecules | None, stress: bool, static: bool
) -> HIPNNLoss:
    """The loss of energies alone, or that of energies and forces.

    Args:
        config: its weights.
        model: on its device.
        forces: the training molecules if their forces are learned, else None.
        stress: whether their stress is, too.
        static: whether the step is captured: then it takes padded mini-batches, too.
    """
    regularisation = (config.lambda_l2, config.lambda_r)
    if forces is not None:
        weights = (config.energy_weight, config.force_weight)
        of_stress = (stress_scale(forces) if stress else None, config.stress_weight)
        kind = StaticForceLoss if static else HIPNNForceLoss
        return kind(model, force_scale(forces), *weights, *regularisation, *of_stress)
    return (StaticLoss if static else HIPNNLoss)(model, *regularisation)
