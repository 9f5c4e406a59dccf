"""Neighbourhoods: positions in, pairs within the cutoff out."""

from hipnn_pyg.graph.neighbors import BACKENDS, RadiusGraph, radius_graph
from hipnn_pyg.graph.pairs import Pairs, edge_distances, edge_pairs, molecule_pairs, pad_pairs

__all__ = [
    "BACKENDS",
    "Pairs",
    "RadiusGraph",
    "edge_distances",
    "edge_pairs",
    "molecule_pairs",
    "pad_pairs",
    "radius_graph",
]
