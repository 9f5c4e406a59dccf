"""What a simulation leaves in its folder, and how it is cut back to the last checkpoint."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from ase import Atoms

from hipnn_pyg.models.files import ModelFileError, atomic_write, read_arrays

RESUME_MAY_CHANGE = {"checkpoint_seconds", "device"}
"""Settings that do not change what is computed."""


class State(NamedTuple):
    """Everything the next step depends on, in ASE's units.

    Attributes:
        step: steps done.
        positions: in Å, ``[N, 3]``.
        momenta: ``[N, 3]``.
        searched: positions at which the neighbours were searched, ``[N, 3]``.
        random: state of the thermostat's random numbers.
        seconds: that the simulation has taken so far.
    """

    step: int
    positions: np.ndarray
    momenta: np.ndarray
    searched: np.ndarray
    random: Mapping[str, Any]
    seconds: float


class SimulationFiles:
    """The files of a simulation: settings, log, trajectory, checkpoint, last frame.

    Rows and frames are appended. A checkpoint knows how long both files were, so that what a
    killed process wrote after it is cut off again: no frame is there twice or missing.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log, self.trajectory = folder / "log.csv", folder / "trajectory.extxyz"
        self.checkpoint, self.last = folder / "checkpoint.npz", folder / "last.extxyz"
        self.settings = folder / "settings.json"
        self._log: io.TextIOWrapper | None = None
        self._trajectory: io.TextIOWrapper | None = None

    def begin(self, settings: Mapping[str, object]) -> None:
        """Open empty files in place of those that may be there, see :func:`refuse_results`.

        Args:
            settings: what a restart must share, as JSON values.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write({self.settings: json.dumps(settings, indent=2).encode()})
        self._log, self._trajectory = (open(p, "w", newline="") for p in self._growing)

    def resume(self, settings: Mapping[str, object]) -> State:
        """Cut log and trajectory back to the last checkpoint and open them.

        Args:
            settings: must be those the simulation began with.

        Raises:
            ModelFileError: no checkpoint, a damaged one, other settings, or files that are shorter
                than it says.
        """
        if not self.checkpoint.exists():
            raise ModelFileError(
                f"{self.folder} has no checkpoint: nothing to resume; leave --resume out to start"
            )
        state, lengths = self._read_checkpoint()
        self._check_same(settings)
        for path, length in zip(self._growing, lengths, strict=True):
            found = path.stat().st_size if path.exists() else 0
            if found < length:
                raise ModelFileError(
                    f"{path} has {found} bytes, fewer than the {length} at the last checkpoint: "
                    "restore it, or start the simulation anew"
                )
            os.truncate(path, length)
        self._log, self._trajectory = (open(p, "a", newline="") for p in self._growing)
        return state

    def _check_same(self, settings: Mapping[str, object]) -> None:
        try:
            old = json.loads(self.settings.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ModelFileError(
                f"{self.settings} is missing or damaged ({error}): start the simulation anew"
            ) from error
        for name in sorted((old.keys() | settings.keys()) - RESUME_MAY_CHANGE):
            if old.get(name) != settings.get(name):
                raise ModelFileError(
                    f"{self.folder} was simulated with {name} = {old.get(name)}, not "
                    f"{settings.get(name)}: resume with the old value, or choose another --run"
                )

    def _read_checkpoint(self) -> tuple[State, list[int]]:
        """The state, and how long log and trajectory were."""
        names, remedy = (*State._fields, "lengths"), "start the simulation anew"
        values = read_arrays(self.checkpoint, remedy, *names)
        state = State(
            int(values["step"]),
            values["positions"],
            values["momenta"],
            values["searched"],
            json.loads(str(values["random"])),
            float(values["seconds"]),
        )
        return state, [int(length) for length in values["lengths"]]

    @property
    def _growing(self) -> tuple[Path, Path]:
        return self.log, self.trajectory

    def add_row(self, row: Mapping[str, float]) -> None:
        """Append to the log; the first row brings the header."""
        assert self._log is not None
        writer = csv.DictWriter(self._log, list(row))
        if not self._log.tell():
            writer.writeheader()
        writer.writerow(row)
        self._log.flush()

    def rows(self) -> Iterator[dict[str, float]]:
        """The log, row by row."""
        with open(self.log, newline="") as file:
            for row in csv.DictReader(file):
                yield {name: float(value) for name, value in row.items()}

    def add_frame(self, atoms: Atoms) -> None:
        """Append to the trajectory: positions, momenta, and what its calculator holds."""
        assert self._trajectory is not None
        ase.io.write(self._trajectory, atoms, format="extxyz")
        self._trajectory.flush()

    def save(self, state: State) -> None:
        """Replace the checkpoint, after what it counts on is on the disk."""
        lengths = []
        for file in (self._log, self._trajectory):
            assert file is not None
            file.flush()
            os.fsync(file.fileno())
            lengths.append(file.tell())
        content = io.BytesIO()
        values = {**state._asdict(), "random": json.dumps(dict(state.random)), "lengths": lengths}
        np.savez(content, **values)
        atomic_write({self.checkpoint: content.getvalue()})

    def save_last(self, atoms: Atoms) -> None:
        """Write ``last.extxyz``: one frame to look at, or to start from."""
        text = io.StringIO()
        ase.io.write(text, atoms, format="extxyz")
        atomic_write({self.last: text.getvalue().encode()})

    def close(self) -> None:
        """Close both files."""
        for file in (self._log, self._trajectory):
            if file is not None:
                file.close()


def refuse_results(folder: Path) -> None:
    """A simulation and a relaxation do not write over one another, nor over their own results.

    Args:
        folder: of the new one.

    Raises:
        FileExistsError: the folder has results.
    """
    if (folder / "checkpoint.npz").exists():
        raise FileExistsError(
            f"{folder} holds a simulation: go on with --resume, or choose another --run"
        )
    for name in ("trajectory.extxyz", "last.extxyz", "relax.log"):
        if (folder / name).exists() and (folder / name).stat().st_size:
            raise FileExistsError(
                f"{folder} holds results ({name}): choose another --run, or delete them"
            )


def frame(atoms: Atoms, **info: float) -> Atoms:
    """A copy to write: with R and, where they are of this structure, the calculator's results.

    Args:
        atoms: structure with a :class:`~hipnn_pyg.interfaces.ase.HIPNNCalculator`.
        **info: goes to ``info``, that is to the comment line of an extxyz file.
    """
    copy, results = atoms.copy(), atoms.calc.results
    copy.info = dict(info)
    if results:
        copy.info["nonhierarchicality"] = results["nonhierarchicality"]
        copy.calc = atoms.calc
    return copy
