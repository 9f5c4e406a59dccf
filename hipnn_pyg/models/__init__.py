"""Models: the network of Fig. 1 and its files."""

from hipnn_pyg.models.captured import CapturedEnergies
from hipnn_pyg.models.files import ModelFileError, load_model, read_card, save_model
from hipnn_pyg.models.forces import Forces
from hipnn_pyg.models.hipnn import HIPNN, EnergyTerms
from hipnn_pyg.models.potential import HIPNNPotential
from hipnn_pyg.models.pretrained import pretrained_models

__all__ = [
    "HIPNN",
    "CapturedEnergies",
    "EnergyTerms",
    "Forces",
    "HIPNNPotential",
    "ModelFileError",
    "load_model",
    "pretrained_models",
    "read_card",
    "save_model",
]
