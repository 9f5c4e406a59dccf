"""Records of the paper's experiments, made up: nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipnn_pyg.data.sets import QM9Set
from hipnn_pyg.reproduce.names import record_name
from hipnn_pyg.reproduce.records import Record, completed, read_record, read_records, write_record
from hipnn_pyg.reproduce.rows import Row, table_2
from hipnn_pyg.train import Training


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Record]:
    """``make(row, error=..., R=..., training=..., **fields)``: a record written and read back.

    By default that of 80 features, with 2,000 errors drawn from R times an exponential
    distribution.
    """
    folder = tmp_path / "records"

    def write(
        row: Row | None = None,
        error: np.ndarray | None = None,
        R: np.ndarray | None = None,
        training: Training | None = None,
        **changed: Any,
    ) -> Record:
        row = row or table_2(QM9Set(), ["80"])[0]
        training = (training or Training()).resolved()
        random = np.random.default_rng(training.seed)
        R = 10 ** random.uniform(-1.5, 0.5, 2000) if R is None else R
        error = R * random.exponential(size=R.size) if error is None else error
        initial = np.linspace(1.0, 5.0, row.network.num_sensitivities)
        record = Record(
            settings=completed({**row.settings, **vars(training)}),
            part="test",
            split_sha256=f"{training.seed_of_split:064d}",
            epochs=training.epochs or 0,
            best_epoch=training.epochs or 0,
            seconds=3600.0,
            hardware="abacus, 2 beads",
            date="2026-01-31",
            versions={"torch": "2"},
            num_parameters=234_328,
            unit="kcal/mol",
            num=error.size,
            mae=float(np.abs(error).mean()),
            rmse=float(np.sqrt(np.square(error).mean())),
            above_1_kcal=float(100 * (np.abs(error) > 1).mean()),
            mean_abs_order=[1755.0, 16.0, 6.5],
            truncated_mae=[20.0, 4.0, 0.8],
            sensitivities=[{"mu": (f * initial).tolist(), "sigma": [36.0] * initial.size}
                           for f in (1.0, 1.1)],
        )  # fmt: skip
        record = replace(record, **changed)
        arrays = {
            "error": error.astype(np.float32),
            "nonhierarchicality": R.astype(np.float32),
            "epoch": np.arange(1, 4),
            "seconds": np.array([1200.0, 2400.0, 3600.0]),
            "validation_mae": np.array([2.0, 2.5, 1.0]),
            "validation_rmse": np.array([3.0, 3.5, 2.0]),
        }
        others = read_records(folder) if folder.exists() else []
        return read_record(write_record(record, arrays, folder, record_name(record, others)))

    return write
