"""Adam by one kernel is PyTorch's Adam: weights, state, and what a checkpoint holds."""

from __future__ import annotations

import copy

import pytest
import torch

from hipnn_pyg.ops import cpu
from hipnn_pyg.train.adam import VectorAdam


def pair(size: int, dtype: torch.dtype) -> tuple[VectorAdam, torch.optim.Adam]:
    torch.manual_seed(0)
    start = torch.randn(size, dtype=dtype)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    return VectorAdam(ours, lr=1e-2), torch.optim.Adam([theirs], lr=1e-2, fused=True)


def weights(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    (parameter,) = optimizer.param_groups[0]["params"]
    return parameter


@pytest.mark.parametrize("size", [1, 16, 1_003])
def test_equals_pytorch(size: int, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    ours, theirs = pair(size, dtype)
    before = weights(ours).detach().clone()
    for step in range(20):
        gradient = torch.randn(size, dtype=dtype) * 10.0 ** (step % 5 - 2)
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)  # a schedule
            weights(optimizer).grad = gradient.clone()
        ours.update()
        theirs.step()
    assert ours.own
    torch.testing.assert_close(weights(ours), weights(theirs), **tolerance)
    assert not torch.allclose(weights(ours), before, atol=1e-3)  # control
    mine, other = (o.state_dict()["state"][0] for o in (ours, theirs))
    assert mine.keys() == other.keys() and float(mine["step"]) == float(other["step"]) == 20
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(mine[name], other[name], **tolerance)


def test_goes_on_from_pytorchs_state(dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    ours, theirs = pair(50, dtype)
    for step in range(6):
        if step == 3:  # and back
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        gradient = torch.randn(50, dtype=dtype)
        for optimizer in (ours, theirs):
            weights(optimizer).grad = gradient.clone()
        ours.update()
        theirs.step()
    torch.testing.assert_close(weights(ours), weights(theirs), **tolerance)


def test_without_kernels_it_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "adam", None)  # calling it would fail
    ours, theirs = pair(7, torch.float64)
    ours.own = False
    for optimizer in (ours, theirs):
        for _ in range(3):
            weights(optimizer).grad = torch.ones(7, dtype=torch.float64)
            optimizer.update() if optimizer is ours else optimizer.step()
    assert torch.equal(weights(ours), weights(theirs))
    assert VectorAdam(torch.nn.Parameter(torch.ones(3, dtype=torch.float16))).own is False


def test_no_gradient_no_step() -> None:
    ours, _ = pair(7, torch.float64)
    weights(ours).grad = torch.ones(7, dtype=torch.float64)
    ours.update()
    before = weights(ours).detach().clone()
    weights(ours).grad = None
    ours.update()
    assert torch.equal(weights(ours), before)
    assert float(ours.state[weights(ours)]["step"]) == 1


def test_steps_of_another_dtype_are_refused() -> None:
    ours, _ = pair(7, torch.float64)
    for _ in range(2):
        weights(ours).grad = torch.ones(7, dtype=torch.float64)
        ours.update()
    ours.state[weights(ours)]["step"] = torch.tensor(2.0, dtype=torch.float64)
    with pytest.raises(TypeError, match="counts its steps in float32, not in torch.float64"):
        ours.update()
