"""A PyG data set in memory, of any molecules."""

from __future__ import annotations

from typing import Any

from torch_geometric.data import Data, InMemoryDataset


class InMemory(InMemoryDataset):
    """What PyG's own datasets are after processing."""

    def __init__(self, items: list[Data], transform: Any = None) -> None:
        super().__init__(transform=transform)
        self.data, self.slices = self.collate(items)
