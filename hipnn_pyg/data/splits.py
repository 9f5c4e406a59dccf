"""Seeded random splits into training, validation and test sets, and the files that keep them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PARTS = ("train", "validation", "test")

QM9_SIZES: dict[int, tuple[int, int]] = {
    110_426: (109_426, 1_000),
    100_000: (99_000, 1_000),
    50_000: (49_000, 1_000),
}
"""N_train + N_validate of the HIP-NN paper's QM9 experiments -> (N_train, N_validate)."""


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint sets of graph indices, and the seed they were drawn with.

    Args:
        train: indices to fit on, int64 ``[num_train]``.
        validation: indices that choose the stopping point, int64 ``[num_validation]``.
        test: indices the reported error is measured on, int64 ``[num_test]``.
        seed: the seed of :func:`random_split`.
        name: what was split, for reports.

    Raises:
        ValueError: an index is negative, stands twice, or is in two sets.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    seed: int
    name: str = ""

    def __post_init__(self) -> None:
        for part in PARTS:
            _check_indices(part, getattr(self, part))
        for first, second in (PARTS[:2], PARTS[1:], PARTS[::2]):
            shared = np.intersect1d(getattr(self, first), getattr(self, second))
            if shared.size:
                raise ValueError(
                    f"split: {first} and {second} share {shared.size} indices, "
                    f"the first being {shared[0]}; the sets must be disjoint"
                )

    @property
    def sizes(self) -> dict[str, int]:
        """Number of graphs in each part."""
        return {part: getattr(self, part).numel() for part in PARTS}

    @property
    def checksum(self) -> str:
        """SHA-256 over seed, name and the three index lists: equal for equal splits."""
        digest = hashlib.sha256(f"{self.seed}|{self.name}|{self.sizes}".encode())
        for part in PARTS:
            digest.update(getattr(self, part).numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the split to ``path`` as a compressed ``.npz`` that names every part."""
        arrays = {part: getattr(self, part).numpy() for part in PARTS}
        labels = {"seed": self.seed, "name": self.name, "checksum": self.checksum}
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays, **labels)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read what :meth:`save` wrote, and check it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no split, was altered, or its sets are not disjoint.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                parts = {part: torch.from_numpy(file[part]) for part in PARTS}
                seed, name, checksum = (file[key].item() for key in ("seed", "name", "checksum"))
        except FileNotFoundError:
            raise
        except Exception as error:  # of damage inside, each part of NumPy and zipfile has its own
            raise ValueError(f"{path} is no file written by Split.save: {error}") from error
        split = cls(**parts, seed=seed, name=name)
        if split.checksum != checksum:
            raise ValueError(f"{path} was altered after Split.save: its checksum does not match")
        return split


def random_split(
    num: int,
    num_train: int,
    num_validation: int,
    seed: int,
    candidates: Tensor | None = None,
    name: str = "",
) -> Split:
    """Draw validation and training sets at random; everything left over is the test set.

    Each candidate gets one raw 64-bit draw of NumPy's PCG64, and the candidates are ordered by
    it. NumPy guarantees that stream, so a seed means the same split on every platform and in
    every version. The validation set is taken first and the training set after it: for one
    seed, a larger training set contains the smaller one, and validation stays the same. Each
    set is sorted.

    Args:
        num: number of graphs in the data set.
        num_train: size of the training set.
        num_validation: size of the validation set.
        seed: any non-negative integer.
        candidates: the indices that may be used, int64; all ``num`` by default.
        name: what is split, for reports.

    Raises:
        ValueError: the sizes do not fit, or a candidate is out of range or stands twice.
    """
    allowed = torch.arange(num) if candidates is None else candidates.sort().values
    _check_indices("candidates", allowed)
    if allowed.numel() and int(allowed[-1]) >= num:
        raise ValueError(f"candidate {int(allowed[-1])} is not among the graphs 0 to {num - 1}")
    if num_train < 1 or num_validation < 0 or num_train + num_validation > allowed.numel():
        raise ValueError(
            f"num_train = {num_train} and num_validation = {num_validation} do not fit: they need "
            f"num_train >= 1, num_validation >= 0 and a sum of at most the {allowed.numel()} "
            f"candidates (of {num} graphs)"
        )
    draws = np.random.PCG64(seed).random_raw(allowed.numel())
    order = allowed[torch.from_numpy(np.argsort(draws, kind="stable"))]
    sizes = [num_validation, num_train, allowed.numel() - num_validation - num_train]
    validation, train, test = (part.sort().values for part in order.split(sizes))
    return Split(train, validation, test, seed, name)


def _check_indices(part: str, indices: Tensor) -> None:
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise ValueError(
            f"split: {part} must be int64 of shape [n], not {indices.dtype} of shape "
            f"{list(indices.shape)}"
        )
    if indices.numel() and int(indices.min()) < 0:
        raise ValueError(f"split: {part} holds the negative index {int(indices.min())}")
    if indices.unique().numel() != indices.numel():
        raise ValueError(f"split: {part} holds an index twice")
