"""Lower precision changes the matrix products, by so much, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.data import Batch

from hipnn_pyg import HIPNN
from hipnn_pyg.nn.precision import Precision, matrix_products

Model = Callable[..., HIPNN]
KERNELS = ("reference", "padded", "fused")


def energies(model: HIPNN, molecules: Batch, precision: Precision) -> Tensor:
    with torch.no_grad(), matrix_products(precision, "cpu"):
        return model.energy_terms(molecules.z, molecules.pos.float(), molecules.batch).energy


@pytest.mark.parametrize("kernel", KERNELS)
def test_bf16_changes_energies_by_a_bounded_amount(
    kernel: str, small_model: Model, molecules: Batch
) -> None:
    """bf16 has 8 bits: errors of about 1 in 256 of what the network adds to E^0, float64 sums."""
    model = small_model(torch.float32, kernel=kernel, hidden_channels=40)
    exact = small_model(torch.float64, kernel="reference", hidden_channels=40)
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        terms = exact.energy_terms(molecules.z, molecules.pos.float().double(), molecules.batch)
    scale = float(terms.terms[:, 1:].abs().sum(1).max())
    plain, half = (energies(model, molecules, p) for p in ("float32", "bf16"))
    assert plain.dtype == half.dtype == torch.float64
    error = float((half - terms.energy).abs().max()) / scale
    assert 1e-4 < error < 0.1
    assert float((plain - terms.energy).abs().max()) / scale < 1e-4 * error


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_changes_nothing(kernel: str, small_model: Model, molecules: Batch) -> None:
    model = small_model(torch.float32, kernel=kernel)
    with torch.no_grad():
        plain = model.energy_terms(molecules.z, molecules.pos.float(), molecules.batch).energy
    assert torch.equal(energies(model, molecules, "float32"), plain)


class Dtypes(TorchDispatchMode):
    """Notes which operations see bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.bfloat16:
            self.seen.add(func.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_products_see_bf16(kernel: str, small_model: Model, molecules: Batch) -> None:
    """Products, casts and views; and none at all without it."""
    model = small_model(torch.float32, kernel=kernel)
    moved = {"_to_copy", "t", "transpose", "view", "reshape", "_reshape_copy", "clone", "expand"}
    for precision, products in (("bf16", {"addmm", "mm"}), ("float32", set())):
        with Dtypes() as dtypes:
            energies(model, molecules, precision)
        if products and kernel == "padded":
            products = products | {"bmm"}
        assert dtypes.seen - moved - {"_unsafe_view", "detach"} == products


@pytest.mark.parametrize("precision", get_args(Precision))
def test_settings_are_restored(precision: Precision) -> None:
    """Also after an error; inside they are what they should be."""
    expected = {"float32": ("highest", False), "tf32": ("high", False), "bf16": ("highest", True)}

    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")

    before = settings()
    assert before == ("highest", False)
    with pytest.raises(KeyError):
        with matrix_products(precision, "cpu"):
            assert settings() == expected[precision]
            raise KeyError
    assert settings() == before


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_setting_by_the_newer_interface_stays(precision: Precision) -> None:
    """PyTorch then refuses to tell it by the older one, which only TF32 needs."""
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    try:
        setting.fp32_precision = "tf32"
        with matrix_products(precision, "cpu"):
            assert setting.fp32_precision == "tf32"
        with pytest.raises(RuntimeError, match="legacy and new"):  # control
            torch.get_float32_matmul_precision()
    finally:
        setting.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match='"float32", "tf32" or "bf16", not \'fp8\''):
        with matrix_products("fp8", "cpu"):  # type: ignore[arg-type]
            pass
