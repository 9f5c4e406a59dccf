"""Records of finished runs: a small JSON file each, and arrays beside it.

``NAME.json`` holds settings, statistics and where they come from; ``NAME.npz`` what figures need:

- ``error``: prediction - target of every molecule of the part, in its order (ascending index in
  the data set; the split follows from the seed), float32, in the unit of the statistics;
- ``nonhierarchicality``: R of the same molecules, float32; absent without hierarchy;
- ``epoch``, ``seconds``, ``validation_mae``, ``validation_rmse``: the history.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hipnn_pyg.data.sets import SETS
from hipnn_pyg.models.files import ModelFileError, atomic_write, read_arrays
from hipnn_pyg.train.checkpoint import MAY_CHANGE
from hipnn_pyg.train.config import as_trained

FORMAT = "hipnn_pyg record"

NO_RESULT = {*MAY_CHANGE, "root", "source"}
"""Settings that say where things are and how they are computed, not what comes out."""


@dataclass(frozen=True)
class Record:
    """One finished run. Statistics are in ``unit``, times in seconds.

    Args:
        settings: all of data set, network and training that change the result, the seed included.
        part: "test", or "validation" where settings are chosen by it.
        split_sha256: of the split.
        epochs: done.
        best_epoch: the model's.
        seconds: of training, over all restarts.
        hardware: where it was trained (last).
        date: when it was begun or last resumed.
        versions: of the packages.
        num_parameters: of the model.
        unit: of energies.
        num: molecules of the part.
        mae: mean absolute error.
        rmse: root-mean-square error.
        above_1_kcal: percentage of errors above 1 kcal/mol; None if the target is no energy.
        mean_abs_order: mean over molecules of abs(E^n), one for each order n.
        truncated_mae: MAE of the sum of orders 0 to k, one for each k; empty without hierarchy.
        sensitivities: of each interaction layer, ``mu`` and ``sigma`` (Å) after training.
        arrays_path: the ``.npz``; not part of the JSON.
    """

    settings: dict[str, Any]
    part: str
    split_sha256: str
    epochs: int
    best_epoch: int
    seconds: float
    hardware: str
    date: str
    versions: dict[str, str]
    num_parameters: int
    unit: str
    num: int
    mae: float
    rmse: float
    above_1_kcal: float | None
    mean_abs_order: list[float]
    truncated_mae: list[float]
    sensitivities: list[dict[str, list[float]]]
    arrays_path: Path = field(default=Path(), compare=False)

    @property
    def seed(self) -> int:
        """Of the weights, the mini-batches and, without a split_seed, the split."""
        return int(self.settings["seed"])

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The arrays beside the record, as float64.

        Raises:
            ModelFileError: missing or damaged.
        """
        stored = read_arrays(self.arrays_path, "restore it")
        return {name: values.astype(np.float64) for name, values in stored.items()}


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change the result, with those that did not exist yet when they were kept.

    Args:
        settings: of data set ("dataset" says which), network and training.
    """
    every_one = as_trained(settings, SETS[settings["dataset"]])
    if "path" in every_one:  # where it is does not matter, which it is does
        every_one["file"] = Path(every_one.pop("path")).name
    return {name: value for name, value in every_one.items() if name not in NO_RESULT}


def write_record(
    record: Record, arrays: Mapping[str, NDArray[Any]], folder: Path, name: str
) -> Path:
    """Write both files of a record.

    Args:
        record: what goes to the JSON file.
        arrays: what goes to the ``.npz``.
        folder: where to.
        name: of the files.

    Returns:
        The JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = asdict(record)
    del content["arrays_path"]
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    text = readable_json({"format": FORMAT, **content})
    files = {path.with_suffix(".npz"): packed.getvalue(), path: text.encode()}
    atomic_write(files)
    return path


def readable_json(content: Any) -> str:
    """Indented JSON with each list of numbers or strings on one line."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def read_record(path: Path) -> Record:
    """Read the JSON file of a record.

    Raises:
        ModelFileError: damaged or not a record.
    """
    names = {f.name for f in fields(Record)} - {"arrays_path"}
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(content["format"])
        values = {name: content[name] for name in names}
        values["settings"] = completed(values["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} is damaged or no record ({error!r}): restore it") from error
    return Record(**values, arrays_path=path.with_suffix(".npz"))


def read_records(folder: Path) -> list[Record]:
    """All records of a folder, in the order of their names."""
    return [read_record(path) for path in sorted(folder.glob("*.json"))]
