"""The arithmetic floor: multiply-adds that HIP-NN needs, at the rate of a matrix product here."""

from __future__ import annotations

import time
from itertools import pairwise

import torch

from hipnn_pyg.train import Network


def multiply_adds(
    num_atoms: float, num_pairs: float, num_species: int, network: Network, training: bool
) -> float:
    """Multiply-adds of the sums and matrix products of one pass, nothing padded.

    A product ``[N, a] x [a, b]`` costs N a b forward and as much again for each operand that
    needs a gradient; so do the environment sums, E nu a. The one-hot input needs none.

    Args:
        num_atoms: N.
        num_pairs: E, directed pairs within the cutoff.
        num_species: features of the input.
        network: sizes.
        training: with the backward pass.
    """
    both = 3 if training else 1  # forward, and a gradient for either operand
    one = 2 if training else 1  # forward, and a gradient for the weights alone
    f, nu = network.hidden_channels, network.num_sensitivities
    total = 0.0
    for n, (a, b) in enumerate(pairwise([num_species] + [f] * network.num_interactions)):
        of_z = both if n else one
        total += of_z * num_pairs * nu * a  # environment sum
        total += both * num_atoms * nu * a * b  # V
        total += of_z * num_atoms * a * b * (1 if a == b else 2)  # W and, between sizes, M~
        total += both * num_atoms * b * b  # W~
        total += network.num_onsite * 2 * both * num_atoms * b * b  # on-site W and W~
        total += both * num_atoms * b  # readout
    return total


def multiply_add_rate(rows: int, inner: int, columns: int, device: str = "cpu") -> float:
    """Multiply-adds per second of ``[rows, inner] x [inner, columns]`` in float32, at best."""
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = float("inf")
    for _ in range(20):
        synchronize()
        began = time.perf_counter()
        for _ in range(5):
            torch.mm(a, b)
        synchronize()
        best = min(best, (time.perf_counter() - began) / 5)
    return rows * inner * columns / best
