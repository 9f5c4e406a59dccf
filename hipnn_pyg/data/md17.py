"""MD17 trajectories through PyG, with energies in float64 and a download that fails readably.

PyG stores the total energies as float32. They are about -1e5 kcal/mol, where neighbouring
float32 numbers lie 0.008 to 0.03 kcal/mol apart: close to the noise of the labels, and not far
below the errors of a good model. The raw files hold float64, so they are read again here.

Frames of one trajectory are correlated: a frame next to a training frame is no independent
test. Draw random splits as the literature does, and never test on a frame that was trained on.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric import datasets
from torch_geometric.data import Data
from torch_geometric.data.data import BaseData

from hipnn_pyg.data.unavailable import DatasetUnavailableError, download_timeout

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError)
"""What reading a damaged raw file raises."""
_DOWNLOAD_ERRORS = (OSError, HTTPException, tarfile.TarError, *_DAMAGE)


class MD17(datasets.MD17):
    """PyG's ``MD17`` whose failed download says what to put where, and leaves no broken file; a
    damaged one of its own is named."""

    def load(self, path: str, data_cls: type[BaseData] = Data) -> None:
        try:
            super().load(path, data_cls)
        except Exception as error:  # of damage inside, torch and pickle have many
            raise DatasetUnavailableError(
                f"{path} is damaged ({error!r}): delete it, then it is made again from the raw file"
            ) from error

    def download(self) -> None:
        before = set(Path(self.raw_dir).rglob("*"))
        try:
            with download_timeout():
                super().download()
            for path in self.raw_paths:  # a connection that was cut raises nothing
                if not zipfile.is_zipfile(path):
                    raise zipfile.BadZipFile(f"{path} did not arrive whole")
        except BaseException as error:
            for partial in filter(Path.is_file, set(Path(self.raw_dir).rglob("*")) - before):
                partial.unlink()
            if isinstance(error, _DOWNLOAD_ERRORS):
                raise DatasetUnavailableError(self._advice(error)) from error
            raise

    def _advice(self, error: BaseException) -> str:
        archive = f"{self.gdml_url}/{self.file_names[self.name]}"
        url = self.revised_url if self.revised else archive
        paths = " and ".join(str(Path(path).resolve()) for path in self.raw_paths)
        return (
            f"MD17 {self.name!r} could not be downloaded ({type(error).__name__}: {error}). "
            f"Try again on a machine with access to {url}, or fetch that file by any other means "
            f"and put {'its content' if url.endswith('.zip') or self.revised else 'it'} at {paths}"
        )


def md17_molecules() -> list[str]:
    """Names of all trajectories, for :func:`load_md17`."""
    return list(datasets.MD17.file_names)


def load_md17(root: str | Path, name: str, train: bool | None = None) -> datasets.MD17:
    """Load one trajectory, downloading it if its file is not below ``root`` yet.

    Every graph has ``z`` ``[N]``, ``pos`` ``[N, 3]`` in Å, ``energy`` ``[1]`` in kcal/mol as
    float64, and ``force`` ``[N, 3]`` in kcal/mol/Å. All but the dtype of ``energy`` is PyG's.

    Args:
        root: folder of the data set.
        name: one of :func:`md17_molecules`.
        train: only for the CCSD trajectories, which come in two files: which one to load.

    Returns:
        PyG's data set.

    Raises:
        ValueError: the name is unknown, ``train`` does not fit it, or the raw file was replaced
            after PyG processed it.
        DatasetUnavailableError: the raw file or what PyG made of it is damaged, or the raw file is
            not there and cannot be downloaded.
    """
    if name not in datasets.MD17.file_names:
        raise ValueError(f"unknown MD17 trajectory {name!r}: choose one of {md17_molecules()}")
    if train is None and "CCSD" in name:
        raise ValueError(f"MD17 {name!r} comes in two files: pass train=True or train=False")
    try:
        dataset = MD17(str(root), name, train=train)
    except _DAMAGE as error:
        raise DatasetUnavailableError(
            f"the raw file of MD17 {name!r} below {root} is damaged ({error}): delete it, then it "
            "is downloaded again"
        ) from error
    stored = dataset._data.energy
    dataset._data.energy = md17_energies(dataset).reshape(stored.shape)
    return dataset


def md17_energies(dataset: datasets.MD17) -> Tensor:
    """Read the energies of a PyG ``MD17`` again, from its raw file and in float64.

    Args:
        dataset: the loaded trajectory, or a part of it made by indexing (``dataset[:1000]``).

    Returns:
        Energies in kcal/mol, float64 ``[len(dataset)]``, in the order of ``dataset``.

    Raises:
        DatasetUnavailableError: the raw file is gone.
        ValueError: the raw file does not hold the energies that PyG stored, rounded.
    """
    stored = dataset._data.energy.reshape(-1)
    for path in dataset.raw_paths:  # one file, or train and test of a CCSD trajectory
        energies = _read_energies(path, "energies" if dataset.revised else "E")
        if torch.equal(energies.to(stored.dtype), stored):
            return energies[list(dataset.indices())]
    raise ValueError(
        f"{' and '.join(dataset.raw_paths)}: the last has {energies.numel()} energies, and none "
        f"has the {stored.numel()} that PyG keeps in {dataset.processed_dir}; the file was "
        f"replaced or the data set was filtered: load it with force_reload=True and no pre_filter"
    )


def _read_energies(path: str, key: str) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as file:
            return torch.from_numpy(file[key].astype(np.float64)).reshape(-1)
    except FileNotFoundError as error:
        raise DatasetUnavailableError(
            f"the raw MD17 file {path} is gone, and with it the float64 energies: put it back, "
            f"or delete the data set's 'processed' folder and load it again"
        ) from error
    except (KeyError, *_DAMAGE) as error:
        raise ValueError(f"{path} is no MD17 file with the key {key!r}: {error}") from error
