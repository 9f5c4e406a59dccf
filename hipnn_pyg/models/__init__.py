"""Models: the network of Fig. 1 and its files."""

from hipnn_pyg.models.files import ModelFileError, load_model, read_card, save_model
from hipnn_pyg.models.hipnn import HIPNN, EnergyTerms

__all__ = ["HIPNN", "EnergyTerms", "ModelFileError", "load_model", "read_card", "save_model"]
