"""HIP-NN inside a larger PyG model: its atomic features feed a head of your own, end to end.

One network learns the atomization energy and, from the mean of the atomic features, the gap.

    python examples/05_features.py --epochs 20 --num_train 10000

Both targets of QM9 are in eV; so is the loss, the sum of both mean absolute errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import MLP, global_mean_pool
from tqdm import tqdm

from hipnn_pyg import HIPNN, QM9_TARGETS
from hipnn_pyg.data.qm9 import load_qm9, qm9_kept
from hipnn_pyg.data.splits import random_split

ENERGY, GAP = QM9_TARGETS["U0_atom"], QM9_TARGETS["gap"]


class EnergyAndGap(nn.Module):
    """HIP-NN's energy, and a gap read from its atomic features."""

    def __init__(self, hipnn: HIPNN, channels: int) -> None:
        super().__init__()
        self.hipnn = hipnn
        self.head = MLP([channels, channels, 1], norm=None)

    def forward(self, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        """Energies ``[G]``, gaps ``[G]`` and atomic features ``[N, channels]``."""
        out = self.hipnn.energy_terms(data.z, data.pos, data.batch)
        gap = self.head(global_mean_pool(out.features, data.batch))
        return out.energy.squeeze(1), gap.squeeze(1), out.features


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, print the loss of every epoch, return the figures."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    options = parse(argv)

    dataset = load_qm9(options.root)
    split = random_split(len(dataset), options.num_train, 0, seed=0, candidates=qm9_kept(dataset))
    train = dataset[split.train]
    loader = DataLoader(train, batch_size=30, shuffle=True)

    hipnn = HIPNN(hidden_channels=options.channels).fit_e0(train, "U0_atom", scale="residual")
    model = EnergyAndGap(hipnn, options.channels).to(options.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    losses = []
    for epoch in range(1, options.epochs + 1):
        total = torch.zeros(2)
        for data in tqdm(loader, desc=f"epoch {epoch}", unit="batch", leave=False):
            data = data.to(options.device)
            energy, gap, features = model(data)
            energy_error = l1_loss(energy, ENERGY.select(data))
            gap_error = l1_loss(gap, GAP.select(data))
            optimizer.zero_grad()
            (energy_error + gap_error).backward()
            optimizer.step()
            total += torch.tensor([energy_error.item(), gap_error.item()]) * data.num_graphs
        losses.append((total / len(train)).tolist())
        of_energy, of_gap = losses[-1]
        print(f"epoch {epoch}: training MAE of U0 {of_energy:.3f} eV, of the gap {of_gap:.3f} eV")
    return {
        "energy_mae": [energy for energy, _ in losses],
        "gap_mae": [gap for _, gap in losses],
        "unit": GAP.unit,
        "features": features.shape,
        "atoms": data.num_nodes,
    }


def parse(argv: Sequence[str] | None) -> Any:
    """Command-line options."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=str, default="data/qm9", help="folder of QM9")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--num_train", type=int, default=10_000, help="training molecules")
    parser.add_argument("--channels", type=int, default=80, help="features per atom")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a small model for a few seconds")
    options = parser.parse_args(argv)
    if options.quick:
        options.epochs, options.num_train, options.channels = 8, 900, 16
    return options


if __name__ == "__main__":
    main()
