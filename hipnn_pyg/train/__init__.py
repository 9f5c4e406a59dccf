"""Training: loss, schedules, statistics, the loop and its checkpoints."""

from hipnn_pyg.train.config import Network, Training
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member
from hipnn_pyg.train.force_loss import ForceLossTerms, HIPNNForceLoss
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms
from hipnn_pyg.train.metrics import (
    ErrorStatistics,
    ForceStatistics,
    Predictions,
    error_statistics,
    force_statistics,
    predict,
    predict_forces,
    predict_stress,
    stress_statistics,
)
from hipnn_pyg.train.schedule import PlateauAnnealing, WarmupCosine
from hipnn_pyg.train.trainer import Trainer, TrainingStopped

__all__ = [
    "EnsembleTrainer",
    "ErrorStatistics",
    "ForceLossTerms",
    "ForceStatistics",
    "HIPNNForceLoss",
    "HIPNNLoss",
    "LossTerms",
    "Member",
    "Network",
    "PlateauAnnealing",
    "Predictions",
    "Trainer",
    "Training",
    "TrainingStopped",
    "WarmupCosine",
    "error_statistics",
    "force_statistics",
    "predict",
    "predict_forces",
    "predict_stress",
    "stress_statistics",
]
