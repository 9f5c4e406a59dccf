"""HIP-NN, the Hierarchically Interacting Particle Neural Network, on PyTorch Geometric."""

__version__ = "0.1.0"

from hipnn_pyg.checks import HIPNNWarning, StructureError
from hipnn_pyg.data.packed import PackedLoader, PackedMolecules
from hipnn_pyg.data.targets import QM9_TARGETS, Target
from hipnn_pyg.graph import RadiusGraph, radius_graph, radius_graph_pbc
from hipnn_pyg.models import (
    HIPNN,
    EnergyTerms,
    Forces,
    HIPNNPotential,
    ModelFileError,
    load_model,
    save_model,
)

__all__ = [
    "HIPNN",
    "QM9_TARGETS",
    "EnergyTerms",
    "Forces",
    "HIPNNPotential",
    "HIPNNWarning",
    "ModelFileError",
    "PackedLoader",
    "PackedMolecules",
    "RadiusGraph",
    "StructureError",
    "Target",
    "load_model",
    "radius_graph",
    "radius_graph_pbc",
    "save_model",
]
