"""Neighbourhoods: positions in, pairs within the cutoff out."""

from hipnn_pyg.graph.lattice import image_shift
from hipnn_pyg.graph.neighbors import BACKENDS, RadiusGraph, radius_graph
from hipnn_pyg.graph.pairs import (
    Pairs,
    all_pairs,
    edge_distances,
    edge_pairs,
    laid_out,
    molecule_edges,
    molecule_pairs,
    molecule_sizes,
    pad_pairs,
    sorted_edges,
)
from hipnn_pyg.graph.periodic import radius_graph_pbc

__all__ = [
    "BACKENDS",
    "Pairs",
    "RadiusGraph",
    "all_pairs",
    "edge_distances",
    "edge_pairs",
    "image_shift",
    "laid_out",
    "molecule_edges",
    "molecule_pairs",
    "molecule_sizes",
    "pad_pairs",
    "radius_graph",
    "radius_graph_pbc",
    "sorted_edges",
]
