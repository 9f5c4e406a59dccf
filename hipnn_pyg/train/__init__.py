"""Training: loss, schedules, statistics, the loop and its checkpoints."""

from hipnn_pyg.train.config import Network, Training
from hipnn_pyg.train.ensemble import EnsembleTrainer, Member
from hipnn_pyg.train.loss import HIPNNLoss, LossTerms
from hipnn_pyg.train.metrics import ErrorStatistics, Predictions, error_statistics, predict
from hipnn_pyg.train.schedule import PlateauAnnealing, WarmupCosine
from hipnn_pyg.train.trainer import Trainer, TrainingStopped

__all__ = [
    "EnsembleTrainer",
    "ErrorStatistics",
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
    "predict",
]
