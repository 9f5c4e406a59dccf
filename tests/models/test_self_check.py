"""The self-check passes right kernels, remembers them, and names what a wrong one gets wrong."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hipnn_pyg import ops
from hipnn_pyg.models import self_check as self_check_module
from hipnn_pyg.models.self_check import SelfCheckError, self_check
from hipnn_pyg.ops.network import Network


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new machine and process."""
    monkeypatch.setenv("HIPNN_CACHE", str(tmp_path))
    monkeypatch.setattr(self_check_module, "_passed", set())
    return tmp_path


def in_another_process(kernel: Any) -> bool:
    """Whether one of this machine compares anew."""
    self_check_module._passed.clear()
    return self_check(kernel)


@pytest.mark.parametrize("kernel", ["fused", "padded"])
def test_right_kernels_pass_and_are_remembered(kernel: str, own_cache: Path) -> None:
    assert self_check(kernel)  # type: ignore[arg-type]
    assert len(list(own_cache.glob(f"checked-{kernel}-*.json"))) == 1
    assert not in_another_process(kernel)
    assert self_check(kernel, force=True)  # type: ignore[arg-type]


def test_other_kernels_are_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert self_check("padded") and not in_another_process("padded")
    monkeypatch.setattr("hipnn_pyg.models.self_check._source", lambda: b"other kernels")
    assert in_another_process("padded")


def test_without_a_cache_it_is_compared_once_in_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HIPNN_CACHE", str(tmp_path / "file" / "cache"))
    assert self_check("padded") and not self_check("padded")
    assert in_another_process("padded")
    assert self_check("padded", force=True)


def test_a_machine_is_asked_for_its_name_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions ask each time, and all of /proc/cpuinfo takes long to read."""
    asked, flags = [], ops.cpu.cpu_flags
    monkeypatch.setattr(ops.cpu, "cpu_flags", lambda: (asked.append(1), flags())[1])
    self_check("padded")
    in_another_process("padded")
    assert len(asked) == 2  # control: to find the record
    self_check("padded")
    assert len(asked) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(mode: Any) -> None:
    """As in predictions, which may be a machine's first command."""
    with mode():
        assert self_check("fused") and not self_check("fused")
        assert not torch.is_grad_enabled()


def test_without_a_home_or_with_one_that_may_not_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container of another user's."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    def closed(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "home", nowhere)
        patch.delenv("HIPNN_CACHE")
        patch.delenv("XDG_CACHE_HOME", raising=False)
        assert self_check("padded") and in_another_process("padded")
    assert in_another_process("padded") and not in_another_process("padded")  # control
    monkeypatch.setattr(Path, "exists", closed)
    assert in_another_process("padded") and in_another_process("padded")
    with pytest.raises(ops.KernelUnavailableError, match="cannot be looked for.*Permission"):
        ops.cpu.library.__wrapped__()


def test_a_wrong_kernel_is_refused_and_not_remembered(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ops.cpu.dense_backward

    def wrong(*arguments: object) -> Tensor:
        return right(*arguments) * (1 + 1e-2)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ops.cpu, "dense_backward", wrong)
        with pytest.raises(SelfCheckError, match="differs from the reference in the gradient in"):
            self_check("fused")
    assert not list(own_cache.glob("checked-*"))
    assert self_check("fused")  # control: without the fault it passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fault_below_the_rounding_of_float32(
    dtype: torch.dtype, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is none there, and is refused in float64."""
    right = ops.cpu.dense_backward

    def wrong(z: Tensor, *rest: Any) -> Tensor:
        return right(z, *rest) * (1 + 1e-6 * (z.dtype == dtype))

    monkeypatch.setattr(ops.cpu, "dense_backward", wrong)
    if dtype == torch.float32:
        assert self_check("fused")
    else:
        with pytest.raises(SelfCheckError, match=r"float64\) by \S+e-0[67], more than 1e-09"):
            self_check("fused")


def test_a_wrong_chain_rule_is_refused(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs without autograd is compared too."""
    right = ops.cpu.readout_backward
    monkeypatch.setattr(
        ops.cpu, "readout_backward", lambda *arguments: right(*arguments) * (1 + 1e-2)
    )
    with pytest.raises(SelfCheckError, match="without autograd: the gradient in"):
        self_check("fused")


def test_a_wrong_step_is_refused(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What learns from many molecules in one call is compared too."""
    right = Network.learn

    def wrong(self: Network, *arguments: Any) -> list[Tensor]:
        found = right(self, *arguments)
        arguments[3].total.mul_(1 + 1e-2)
        return found

    monkeypatch.setattr(Network, "learn", wrong)
    with pytest.raises(SelfCheckError, match="in one call: the gradient in"):
        self_check("fused")


def test_a_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.cpu.interact

    def wrong(*arguments: object) -> tuple[Tensor, Tensor | None]:
        received, environments = right(*arguments)  # type: ignore[arg-type]
        return received * torch.tensor(float("nan")), environments

    monkeypatch.setattr(ops.cpu, "interact", wrong)
    with pytest.raises(SelfCheckError, match="the energy"):
        self_check("fused")
