"""The equations of the paper as layers: tensors in, tensors out."""

from hipnn_pyg.nn.cutoff import cosine_cutoff
from hipnn_pyg.nn.environment import EnvironmentSum
from hipnn_pyg.nn.fused import (
    as_built,
    dense_weights,
    fused_layers,
    has_kernels,
    layers_as_built,
)
from hipnn_pyg.nn.hooks import unchanged
from hipnn_pyg.nn.interaction import Interaction
from hipnn_pyg.nn.onsite import OnSite
from hipnn_pyg.nn.readout import EnergyReadout, ReferenceEnergy, molecule_sums, nonhierarchicality
from hipnn_pyg.nn.residual import Linear, Residual, glorot_
from hipnn_pyg.nn.sensitivity import Sensitivity

__all__ = [
    "EnergyReadout",
    "EnvironmentSum",
    "Interaction",
    "Linear",
    "OnSite",
    "ReferenceEnergy",
    "Residual",
    "Sensitivity",
    "as_built",
    "cosine_cutoff",
    "dense_weights",
    "fused_layers",
    "glorot_",
    "has_kernels",
    "layers_as_built",
    "molecule_sums",
    "nonhierarchicality",
    "unchanged",
]
