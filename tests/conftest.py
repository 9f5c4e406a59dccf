"""Fixtures every test shares: dtype and tolerance, the folder of real data, small molecules."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase.build
import pytest
import torch
from filelock import FileLock
from torch_geometric.data import Batch, Data

from hipnn_pyg import HIPNN
from hipnn_pyg.data.qm9 import QM9Pack


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data",
        default=os.environ.get("HIPNN_DATA"),
        help="folder with md17/, rmd17/ and qm9/ files (default: $HIPNN_DATA); without it the "
        "same tests run on files of the official formats that they write themselves",
    )


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path | None:
    """The folder of real data, or None; a path that does not exist is an error, never a skip."""
    option = request.config.getoption("--data")
    if option is None:
        return None
    path = Path(option)
    if not path.is_dir():
        raise FileNotFoundError(f"--data / HIPNN_DATA names {path}, which is not a folder")
    return path


SLOW_FIRST = ("test_examples.py", "test_distributed.py", "uncertainty/test_qm9.py")
"""Modules that would keep one process busy at the end, while the other has nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow modules first; otherwise in order."""
    items.sort(key=lambda item: not str(item.path).endswith(SLOW_FIRST))


@pytest.fixture(scope="session")
def whole_qm9(tmp_path_factory: pytest.TempPathFactory) -> QM9Pack:
    """All of QM9 from the wheel, which is parsed once for all processes of a test run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "qm9.lock"):
        return QM9Pack(folder / "qm9")


@pytest.fixture(autouse=True)
def _denormal_numbers() -> Iterator[None]:
    """Every test begins as a fresh process does: commands and the trainer set flush-denormal."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """``threads(n)``: so many of PyTorch, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every test that takes this runs in both precisions."""
    return request.param


@pytest.fixture
def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Relative and absolute tolerance of the dtype, as keywords of torch.testing.assert_close."""
    return {torch.float32: dict(rtol=2e-5, atol=2e-5), torch.float64: dict(rtol=1e-10, atol=1e-10)}[
        dtype
    ]


@pytest.fixture
def molecules() -> Batch:
    """Methane, ammonia, water and ethanol (the G2 set), distorted so that no symmetry hides a bug.

    A PyG batch with z, pos (Å, float64), batch and ptr: 21 atoms, all of H C N O.
    """
    items = []
    for number, name in enumerate(("CH4", "NH3", "H2O", "CH3CH2OH")):
        atoms = ase.build.molecule(name)
        atoms.rattle(0.05, seed=number)
        items.append(Data(z=torch.tensor(atoms.numbers), pos=torch.tensor(atoms.positions)))
    return Batch.from_data_list(items)


@pytest.fixture
def small_model() -> Callable[..., HIPNN]:
    """``small_model(dtype, **options)``: a tiny HIPNN, ready to predict, whose orders all count.

    The cutoff is shorter than ethanol. Readout weights and biases are of order 1 instead of the
    initial 10^(-2n) and 0, and E^0 is set, so that an error in any of them shows.
    """

    def build(dtype: torch.dtype = torch.float64, **options: Any) -> HIPNN:
        torch.manual_seed(1)
        defaults = dict(
            species=(1, 6, 7, 8), hidden_channels=6, num_onsite=1, num_sensitivities=5, cutoff=3.0
        )
        model = HIPNN(**(defaults | options)).to(dtype).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and name.endswith(("readout.weight", "bias")):
                    parameter.uniform_(-1, 1)
        if model.hierarchical:
            model.set_e0([-0.6 - 0.3 * n for n in range(len(model.species))], sigma_e=1.7)
        return model

    return build
