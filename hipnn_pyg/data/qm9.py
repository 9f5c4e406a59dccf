"""QM9 with or without the internet: PyG's own dataset, or the same molecules from a wheel."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.datasets import QM9
from torch_geometric.io import fs

from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.data.qm9_records import PROPERTIES, QM9Records, read_qm9pack
from hipnn_pyg.data.unavailable import DatasetUnavailableError, download_timeout
from hipnn_pyg.units import Hartree

Source = Literal["auto", "official", "qm9pack"]

RAW_FILES = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
"""What ``torch_geometric.datasets.QM9`` reads from ``root/raw``."""

HARD_TO_CONVERGE = (
    6620, 21725, 59818, 59827, 87037, 117523, 128113, 129053, 129152, 129158, 130535,
)  # fmt: skip
"""1-based gdb9 indices of the 11 geometries that QM9's readme names as hard to converge."""

IN_HARTREE = {"homo", "lumo", "gap", "zpve", "u0", "u298", "h298", "g298"}


class QM9Pack(InMemoryDataset):
    r"""QM9's 130,831 consistent molecules, built offline from the ``qm9pack`` wheel.

    Every molecule is a :class:`~torch_geometric.data.Data` with the fields of PyG's ``QM9`` that
    need no bonds, in PyG's order and units:

    - ``z`` [n] int64, ``pos`` [n, 3] float32 in Å (from 10 decimals; the official SDF has 4);
    - ``y`` [1, 19] float32, PyG's targets: energies in eV, 7 is :math:`U_0`, 12 is
      :math:`U_0^{ATOM}`. Sums and unit conversion run in float64 and the cast comes last, so
      column 12 carries no rounding of the large total energies (column 7 is coarse: 1 meV);
    - ``idx`` [1] int64 (0-based, as PyG), ``name`` (``"gdb_1"``);
    - ``smiles``: the record's own SMILES, hydrogens implied (PyG's spells them out).

    The first use parses the wheel (seconds) and saves ``root/qm9pack/processed``; later ones load.

    Args:
        root: folder for the processed file.
        transform: applied to each ``Data`` at access.
        force_reload: parse the wheel again.

    Raises:
        ModuleNotFoundError: nothing is saved in ``root`` and ``qm9pack`` is not installed.
        ValueError: the saved file is damaged.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[Any], Any] | None = None,
        force_reload: bool = False,
    ) -> None:
        super().__init__(str(root), transform, log=False, force_reload=force_reload)
        path = self.processed_paths[0]
        try:
            self.load(path)
        except Exception as error:  # of damage inside, torch and pickle have many
            raise ValueError(
                f"{path} is damaged ({error!r}): delete it, then it is built again"
            ) from error

    @property
    def processed_dir(self) -> str:
        return os.path.join(self.root, "qm9pack", "processed")

    @property
    def processed_file_names(self) -> str:
        return "qm9pack_v1.pt"

    def process(self) -> None:
        data, slices = _pack(read_qm9pack())
        partial = f"{self.processed_paths[0]}.{os.getpid()}"
        fs.torch_save((data.to_dict(), slices, Data), partial)
        os.replace(partial, self.processed_paths[0])


def load_qm9(root: str | os.PathLike[str], source: Source = "auto") -> InMemoryDataset:
    """Load QM9's 130,831 molecules from the first place that has them.

    ``"auto"`` takes, in this order: PyG's raw files in ``root``; the saved :class:`QM9Pack` in
    ``root``; the official download; the ``qm9pack`` wheel.

    Args:
        root: folder of the data set.
        source: ``"auto"``, ``"official"`` (PyG's ``QM9``: local raw files, else the download) or
            ``"qm9pack"`` (the wheel).

    Returns:
        ``torch_geometric.datasets.QM9`` or :class:`QM9Pack`; the latter has no bonds (``x``,
        ``edge_index``, ``edge_attr``), see :func:`~hipnn_pyg.data.qm9_raw.write_qm9_raw` for them.

    Raises:
        DatasetUnavailableError: no place has it; the message names the three ways out.
        ModuleNotFoundError: ``source="qm9pack"`` and the wheel is not installed.
        ValueError: ``source`` is none of the three, or PyG cannot read the files in ``root``.
    """
    if source not in ("auto", "official", "qm9pack"):
        raise ValueError(f'source={source!r}: choose "auto", "official" or "qm9pack"')
    root = Path(root).expanduser()
    if source == "qm9pack":
        return QM9Pack(root)
    if _has_official_files(root):
        return _local(root)
    if source == "auto" and _has_packed_file(root):
        return QM9Pack(root)
    try:
        return _download(root)
    except (OSError, HTTPException, BadZipFile) as error:
        if _has_official_files(root):  # arrived, then failed to parse: not a download problem
            raise
        if source == "official":
            raise _unavailable(root, error) from error
        return _fall_back(root, error)


def _local(root: Path) -> QM9:
    """PyG's data set from its files in ``root``."""
    try:
        return QM9(str(root))
    except Exception as error:  # of damage inside, torch and pickle have many
        made = root / "processed" / QM9.processed_file_names.fget(None)
        if made.exists():  # it is written after all raw files were read
            raise ValueError(
                f"{made} is damaged ({error!r}): delete its folder, then it is made again from the "
                "raw files"
            ) from error
        if isinstance(error, OSError):  # such as a folder that is not writable
            raise
        raise ValueError(
            f"PyG cannot read the QM9 files in {root}/raw ({error!r}): restore or delete them"
        ) from error


def qm9_kept(dataset: InMemoryDataset) -> Tensor:
    """Positions in ``dataset`` of the molecules that are not in :data:`HARD_TO_CONVERGE`.

    Of the 130,831 consistent molecules 130,823 remain (3 of the 11 are already absent), the set
    the HIP-NN paper trains and tests on.

    Args:
        dataset: PyG's ``QM9`` or :class:`QM9Pack`, whole or a subset.

    Returns:
        Ascending positions for ``dataset[positions]``, [M] int64.
    """
    hard = torch.tensor(HARD_TO_CONVERGE) - 1
    return (~torch.isin(dataset.idx, hard)).nonzero().flatten()


def _pack(records: QM9Records) -> tuple[Data, dict[str, Tensor]]:
    """The storage of an ``InMemoryDataset``: concatenated fields, and where each one is cut."""
    molecules = len(records.index)
    atoms = torch.from_numpy(records.ptr)
    each = torch.arange(molecules + 1)
    data = Data(
        z=torch.from_numpy(records.z),
        pos=torch.from_numpy(records.pos).float(),
        y=torch.from_numpy(_targets(records)).float(),
        idx=torch.from_numpy(records.index - 1),
        name=[f"gdb_{index}" for index in records.index],
        smiles=records.smiles,
    )
    slices = {"z": atoms, "pos": atoms, "y": each, "idx": each, "name": each, "smiles": each}
    return data, slices


def _targets(records: QM9Records) -> np.ndarray:
    """PyG's 19 targets in eV, Debye, Bohr^3, Bohr^2, cal/(mol K) and GHz, [M, 19] float64."""
    to_ev = np.array([Hartree if name in IN_HARTREE else 1.0 for name in PROPERTIES])
    scaled = records.properties * to_ev
    return np.concatenate(
        [scaled[:, 3:], records.atomization_energies() * Hartree, scaled[:, :3]], axis=1
    )


def _has_official_files(root: Path) -> bool:
    """Without its raw files PyG downloads them, whatever it made of them before."""
    return all((root / "raw" / name).is_file() for name in RAW_FILES)


def _has_packed_file(root: Path) -> bool:
    return any((root / "qm9pack" / "processed").glob("qm9pack_v*.pt"))


def _download(root: Path) -> InMemoryDataset:
    raw = root / "raw"
    before = set(raw.glob("*"))
    try:
        with download_timeout():
            return QM9(str(root))
    except BaseException as error:
        torn = raw.glob("*.zip") if isinstance(error, BadZipFile) else ()
        for file in (set(raw.glob("*")) - before).union(torn):
            if file.is_file() and file.name not in RAW_FILES:
                file.unlink()  # PyG would take a torn archive for a whole one
        raise


def _fall_back(root: Path, error: Exception) -> InMemoryDataset:
    try:
        dataset = QM9Pack(root)
    except (ModuleNotFoundError, FileNotFoundError) as missing:
        raise _unavailable(root, error) from missing
    warnings.warn(
        f"QM9's download failed ({_reason(error)}): it was read from the qm9pack wheel",
        HIPNNWarning,
        stacklevel=3,
    )
    return dataset


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _unavailable(root: Path, error: Exception) -> DatasetUnavailableError:
    return DatasetUnavailableError(
        f"QM9 is not in {root} and its download failed ({_reason(error)}). Three ways out: run "
        'again where the official download works; or pip install "hipnn_pyg[data]", which carries '
        f"QM9; or put {', '.join(RAW_FILES[:-1])} and {RAW_FILES[-1]} into {root / 'raw'}"
    )
