"""MD17: PyG's own class loads the official files, and the energies come back in float64."""

from __future__ import annotations

import shutil
import socket
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from torch_geometric import datasets
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from hipnn_pyg import HIPNN
from hipnn_pyg.checks import HIPNNWarning
from hipnn_pyg.data import md17
from hipnn_pyg.data.forces import MD17_FORCES
from hipnn_pyg.data.md17 import load_md17, md17_energies, md17_molecules
from hipnn_pyg.data.packed import PackedMolecules
from hipnn_pyg.data.targets import MD17_ENERGY, resolve_target
from hipnn_pyg.data.unavailable import DatasetUnavailableError, download_timeout

BENZENE = np.array([6] * 6 + [1] * 6, dtype=np.uint8)
OFFSETS = {"benzene": -146_530.0, "revised benzene": -145_434.0, "benzene CCSD(T)": -145_000.0}
FLOAT32_SPACING = 2.0**-6  # kcal/mol, of numbers between 2^17 and 2^18


def write_frames(path: Path, revised: bool, offset: float, num_frames: int = 40) -> None:
    """A file of the official format: benzene frames with noise, energies near -146,000 kcal/mol."""
    random = np.random.default_rng(num_frames)
    angles = np.arange(6) * np.pi / 3
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    positions = np.concatenate([1.39 * ring, 2.48 * ring]) + random.normal(
        scale=0.05, size=(num_frames, 12, 3)
    )
    energies = offset + random.normal(scale=2.3, size=num_frames)
    forces = random.normal(scale=20.0, size=positions.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    if revised:
        np.savez(path, nuclear_charges=BENZENE, coords=positions, energies=energies, forces=forces)
    else:
        np.savez(path, z=BENZENE, R=positions, E=energies[:, None], F=forces)


@pytest.fixture
def place(tmp_path: Path, data_dir: Path | None) -> Callable[[str], Path]:
    """Puts the raw file of a trajectory where PyG looks for it; real data if there are any."""

    def put(name: str) -> Path:
        revised = name.startswith("revised")
        folder = "raw/rmd17/npz_data" if revised else "benzene/raw"
        file = datasets.MD17.file_names[name]
        path = tmp_path / folder / file
        if data_dir is None:
            write_frames(path, revised, OFFSETS[name])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data_dir / ("rmd17" if revised else "md17") / file, path)
        return path

    return put


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download goes to a port of this machine where nobody listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(datasets.MD17, "gdml_url", "http://127.0.0.1:9/npz")
    monkeypatch.setattr(datasets.MD17, "revised_url", "http://127.0.0.1:9/file?filename=rmd17")


@pytest.mark.parametrize("name", ["benzene", "revised benzene"])
def test_float64_energies(
    name: str, place: Callable[[str], Path], tmp_path: Path, no_network: None
) -> None:
    path = place(name)
    pyg = datasets.MD17(str(tmp_path), name)
    ours = load_md17(tmp_path, name)

    raw = np.load(path)["energies" if pyg.revised else "E"].reshape(-1)
    energies = torch.cat([frame.energy.reshape(-1) for frame in ours])
    assert energies.dtype == torch.float64
    assert np.array_equal(energies.numpy(), raw)
    assert torch.equal(md17_energies(pyg), energies)

    # what float32 loses: up to half a spacing, and really lost
    lost = (pyg._data.energy.double().reshape(-1) - energies).abs()
    assert 0.1 * FLOAT32_SPACING < lost.max() <= 0.5 * FLOAT32_SPACING
    assert lost.mean() == pytest.approx(0.25 * FLOAT32_SPACING, rel=0.3)


@pytest.mark.parametrize("name", ["benzene", "revised benzene"])
def test_forces_are_the_files(
    name: str, place: Callable[[str], Path], tmp_path: Path, no_network: None
) -> None:
    """PyG keeps them as float32: 1e-7 of a force, which does not matter as it does for energies."""
    path = place(name)
    dataset = load_md17(tmp_path, name)
    raw = torch.from_numpy(np.load(path)["forces" if dataset.revised else "F"])
    packed = PackedMolecules.pack(dataset, MD17_ENERGY, forces=MD17_FORCES)
    assert torch.equal(packed.forces, raw.reshape(-1, 3).float())
    chosen = torch.tensor([7, 3])
    assert torch.equal(packed.gather(chosen).forces, raw[chosen].reshape(-1, 3).float())
    assert PackedMolecules.pack(dataset, MD17_ENERGY).forces is None


def test_packing_pygs_own_object_reads_float64(
    place: Callable[[str], Path], tmp_path: Path, no_network: None
) -> None:
    path = place("benzene")
    raw = torch.from_numpy(np.load(path)["E"].reshape(-1))
    pyg = datasets.MD17(str(tmp_path), "benzene")
    assert torch.equal(PackedMolecules.pack(pyg, MD17_ENERGY).target, raw)
    chosen = [7, 3, 30]
    assert torch.equal(PackedMolecules.pack(pyg[chosen], MD17_ENERGY).target, raw[chosen])
    part = Subset(Subset(pyg, range(40)), chosen)  # as torch.utils.data.random_split makes
    packed = PackedMolecules.pack(part, MD17_ENERGY)
    assert torch.equal(packed.target, raw[chosen])
    assert torch.equal(packed.gather(torch.tensor([1])).pos, pyg[3].pos)

    path.unlink()  # control: without the raw file there is float32 only, and a warning
    with pytest.warns(HIPNNWarning, match="float32"):
        rounded = PackedMolecules.pack(pyg, MD17_ENERGY).target
    assert torch.equal(rounded, raw.float().double()) and not torch.equal(rounded, raw)


def test_energies_that_are_float64_are_not_read_again(
    place: Callable[[str], Path], tmp_path: Path, no_network: None
) -> None:
    path = place("benzene")
    raw = torch.from_numpy(np.load(path)["E"].reshape(-1))
    ours, pygs = load_md17(tmp_path, "benzene"), datasets.MD17(str(tmp_path), "benzene")
    path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(PackedMolecules.pack(ours, MD17_ENERGY).target, raw)
    with pytest.warns(HIPNNWarning, match="float32"):  # control
        PackedMolecules.pack(pygs, MD17_ENERGY)


def test_energies_that_a_transform_made_stay(
    place: Callable[[str], Path], tmp_path: Path, no_network: None
) -> None:
    """The file does not have them; of untouched ones it has the digits that float32 lost."""
    raw = torch.from_numpy(np.load(place("benzene"))["E"].reshape(-1))[:40]

    def lowered(frame: Data) -> Data:
        frame.energy = frame.energy - 5
        return frame

    for transform, expected in ((lowered, raw.float() - 5), (lambda frame: frame, raw)):
        dataset = datasets.MD17(str(tmp_path), "benzene", transform=transform)[:40]
        assert torch.equal(PackedMolecules.pack(dataset, MD17_ENERGY).target, expected.double())


@pytest.mark.parametrize("name", ["benzene", "revised benzene"])
def test_everything_else_is_pygs(
    name: str, place: Callable[[str], Path], tmp_path: Path, no_network: None
) -> None:
    place(name)
    pyg, ours = datasets.MD17(str(tmp_path), name), load_md17(tmp_path, name)
    assert isinstance(ours, datasets.MD17) and len(ours) == len(pyg)
    for theirs, mine in zip(pyg[:40], ours[:40], strict=True):
        assert theirs.keys() == mine.keys() and theirs.energy.shape == mine.energy.shape
        for key in ("z", "pos", "force"):
            assert torch.equal(theirs[key], mine[key]) and theirs[key].dtype == mine[key].dtype
    assert MD17_ENERGY.select(ours[0]).item() == md17_energies(ours)[0]
    # PyG's stored file is untouched: loading it again still gives float32
    assert datasets.MD17(str(tmp_path), name)[0].energy.dtype == torch.float32


def test_parts_keep_their_order(place: Callable[[str], Path], tmp_path: Path) -> None:
    place("benzene")
    dataset = load_md17(tmp_path, "benzene")
    everything = md17_energies(dataset)
    assert torch.equal(md17_energies(dataset[10:20]), everything[10:20])
    order = torch.tensor([7, 3, 5])
    assert torch.equal(md17_energies(dataset[order]), everything[order])
    assert not torch.equal(md17_energies(dataset[order]), everything[:3])


def test_coupled_cluster_files(tmp_path: Path) -> None:
    name, raw = "benzene CCSD(T)", tmp_path / "benzene CCSD(T)" / "raw"
    for part, num_frames in {"train": 20, "test": 10}.items():
        write_frames(raw / f"benzene_ccsd_t-{part}.npz", False, OFFSETS[name], num_frames)
    train, test = (load_md17(tmp_path, name, train=train) for train in (True, False))
    assert (len(train), len(test)) == (20, 10)
    for dataset, part in ((train, "train"), (test, "test")):
        expected = np.load(raw / f"benzene_ccsd_t-{part}.npz")["E"].reshape(-1)
        assert np.array_equal(md17_energies(dataset).numpy(), expected)
    with pytest.raises(ValueError, match="pass train=True or train=False"):
        load_md17(tmp_path, name)


def test_unit_of_the_name_energy(
    place: Callable[[str], Path], tmp_path: Path, no_network: None
) -> None:
    """kcal/mol for the dataset, a part or a loader of it; of loose frames nobody knows."""
    place("benzene")
    dataset = datasets.MD17(str(tmp_path), "benzene")
    part = Subset(dataset, range(20))
    for source in (dataset, dataset[:20], part, DataLoader(part, batch_size=5)):
        assert resolve_target("energy", source) is MD17_ENERGY
        assert HIPNN((1, 6), 4).fit_e0(source, "energy").energy_unit == "kcal/mol"
    frames = [dataset[number] for number in range(20)]
    for source in (frames, DataLoader(frames, batch_size=5), None):
        assert resolve_target("energy", source).unit == "unknown"


def test_replaced_file_is_noticed(place: Callable[[str], Path], tmp_path: Path) -> None:
    path = place("benzene")
    dataset = datasets.MD17(str(tmp_path), "benzene")
    with np.load(path) as file:
        contents = dict(file)
    np.savez(path, **(contents | {"E": contents["E"] + 1e-9}))  # control: below float32
    assert md17_energies(dataset).shape == (len(dataset),)
    for energies in (contents["E"] + 1.0, contents["E"][1:], contents["E"][::-1]):
        np.savez(path, **(contents | {"E": energies}))
        with pytest.raises(ValueError, match=r"md17_benzene2017\.npz: .*file was replaced"):
            md17_energies(dataset)
    np.savez(path, z=BENZENE)
    with pytest.raises(ValueError, match="no MD17 file with the key 'E'"):
        md17_energies(dataset)
    path.unlink()
    with pytest.raises(DatasetUnavailableError, match=r"md17_benzene2017\.npz is gone"):
        md17_energies(dataset)


@pytest.mark.parametrize(
    ("name", "train", "expected"),
    [
        ("uracil", None, "uracil/raw/md17_uracil.npz"),
        ("revised uracil", None, "raw/rmd17/npz_data/rmd17_uracil.npz"),
        ("ethanol CCSD(T)", True, "ethanol CCSD(T)/raw/ethanol_ccsd_t-train.npz"),
    ],
)
def test_failed_download_says_what_to_do(
    name: str, train: bool | None, expected: str, tmp_path: Path, no_network: None
) -> None:
    with pytest.raises(DatasetUnavailableError) as caught:
        load_md17(tmp_path, name, train)
    message = str(caught.value)
    assert "\n" not in message and "http://127.0.0.1:9/" in message
    assert str(tmp_path / expected) in message and name in message
    assert isinstance(caught.value.__cause__, OSError)


def test_broken_download_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[[str], Path]
) -> None:
    def half_a_file(self: datasets.MD17) -> None:
        Path(self.raw_paths[0]).write_bytes(b"PK\x03\x04")
        raise zipfile.BadZipFile("cut off")

    monkeypatch.setattr(datasets.MD17, "download", half_a_file)
    with pytest.raises(DatasetUnavailableError, match="cut off"):
        load_md17(tmp_path, "benzene")
    assert list((tmp_path / "benzene" / "raw").iterdir()) == []
    shutil.rmtree(tmp_path / "benzene")
    place("benzene")  # the way out the message names
    assert len(load_md17(tmp_path, "benzene")) >= 40


@pytest.mark.parametrize("name", ["benzene", "revised benzene"])
def test_a_connection_that_was_cut_leaves_no_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[[str], Path]
) -> None:
    """Which PyG's download does not notice; nor does a torn archive stop it from unpacking half."""
    path = place(name)
    torn = path.read_bytes()[:-1000]
    path.unlink()

    def cut_off(self: datasets.MD17) -> None:
        Path(self.raw_paths[0]).parent.mkdir(parents=True, exist_ok=True)
        Path(self.raw_paths[0]).write_bytes(torn)

    monkeypatch.setattr(datasets.MD17, "download", cut_off)
    with pytest.raises(DatasetUnavailableError, match="did not arrive whole"):
        load_md17(tmp_path, name)
    assert not path.exists()
    path.write_bytes(torn)  # by other means
    with pytest.raises(DatasetUnavailableError, match=f"{name}.*is damaged .*delete it"):
        load_md17(tmp_path, name)
    place(name)
    assert len(load_md17(tmp_path, name)) >= 40


def test_a_raw_file_that_does_not_unpack_is_named(
    place: Callable[[str], Path], tmp_path: Path
) -> None:
    """The official files are compressed: of one that is whole outside, zlib finds the damage."""
    path = place("benzene")
    with np.load(path) as stored:
        np.savez_compressed(path, **dict(stored))
    assert len(load_md17(tmp_path, "benzene")) >= 40  # control
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo("E.npy").header_offset
    lengths = content[begin + 26 : begin + 30]  # of the name and of what follows it
    begin += 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    content[begin] |= 0b110  # a kind of block that there is not
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"E'.*invalid block type"):
        load_md17(tmp_path, "benzene")  # which PyG processed before
    shutil.rmtree(path.parents[1] / "processed")
    with pytest.raises(DatasetUnavailableError, match="raw file.*is damaged .*delete it"):
        load_md17(tmp_path, "benzene")


@pytest.mark.parametrize("left", [0, 10, -30], ids=["empty", "torn", "end_missing"])
def test_a_damaged_processed_file_is_named(
    left: int, place: Callable[[str], Path], tmp_path: Path
) -> None:
    """Not the raw file, which is whole: what is done as it says helps."""
    place("benzene")
    made = Path(load_md17(tmp_path, "benzene").processed_paths[0])
    made.write_bytes(made.read_bytes()[:left])
    with pytest.raises(DatasetUnavailableError, match=f"{made} is damaged .*delete it") as caught:
        load_md17(tmp_path, "benzene")
    assert "\n" not in str(caught.value)
    made.unlink()
    assert len(load_md17(tmp_path, "benzene")) >= 40


def test_silent_server_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(md17, "download_timeout", lambda: download_timeout(0.2))
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(datasets.MD17, "gdml_url", url)
        with pytest.raises(DatasetUnavailableError, match="TimeoutError"):
            load_md17(tmp_path, "toluene")
        with download_timeout(0.2), pytest.raises(TimeoutError):
            urlopen(url)


def test_timeout_is_restored() -> None:
    before = socket.getdefaulttimeout()
    with pytest.raises(RuntimeError), download_timeout(1.5):
        assert socket.getdefaulttimeout() == 1.5
        raise RuntimeError
    assert socket.getdefaulttimeout() == before


def test_names() -> None:
    assert {"benzene", "malonaldehyde", "toluene", "revised ethanol"} <= set(md17_molecules())
    assert len(md17_molecules()) == 26
    with pytest.raises(ValueError, match=r"unknown MD17 trajectory 'Benzene'.*'benzene'"):
        load_md17("unused", "Benzene")
