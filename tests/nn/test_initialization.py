"""Initial values (Sec. II.F): Glorot uniform weights, zero biases, decaying readouts."""

from __future__ import annotations

import math

import pytest
import reference
import torch

from hipnn_pyg import HIPNN
from hipnn_pyg.nn import glorot_
from hipnn_pyg.units import Bohr


@pytest.fixture
def model() -> HIPNN:
    torch.manual_seed(0)
    return HIPNN(hidden_channels=40, num_interactions=3)


def assert_glorot(weight: torch.Tensor, fan_in: int, fan_out: int, scale: float = 1.0) -> None:
    """Uniform in (-a, a): the bound, the mean and the standard deviation a / sqrt(3)."""
    weight, bound = weight.detach(), scale * reference.glorot_bound(fan_in, fan_out)
    count = weight.numel()
    assert 1 - 20 / count < float(weight.abs().max()) / bound <= 1 + 1e-6
    assert abs(float(weight.mean())) < 5 * bound / math.sqrt(3 * count)
    # the standard error of the variance of a uniform distribution is 0.894 / sqrt(count)
    assert float(weight.var(correction=0)) / (bound**2 / 3) == pytest.approx(
        1, abs=5 * 0.894 / math.sqrt(count)
    )


def test_glorot_bound_is_checked() -> None:
    weight = torch.empty(200, 100)
    glorot_(weight, 100, 200)
    assert_glorot(weight, 100, 200)
    with pytest.raises(AssertionError):  # control: another fan is seen
        assert_glorot(weight, 100, 300)


def test_weights_are_glorot_uniform(model: HIPNN) -> None:
    for n, block in enumerate(model.blocks):
        num_in = 40 if n else 5
        assert_glorot(block.interaction.V, 20 * num_in, 40)
        assert_glorot(block.interaction.W.weight, num_in, 40)
        assert_glorot(block.interaction.residual.W.weight, 40, 40)
        for layer in block.onsite:
            assert_glorot(layer.W.weight, 40, 40)
            assert_glorot(layer.residual.W.weight, 40, 40)
    assert_glorot(model.blocks[0].interaction.residual.M.weight, 5, 40)


def test_biases_are_zero(model: HIPNN) -> None:
    biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 1 + 3 * (2 + 3 * 2 + 1)  # b^0; B and B~ of each layer, and b^n
    assert not any(bool(bias.any()) for bias in biases)
    assert all(bool(value.any()) for name, value in model.named_parameters() if "W.weight" in name)


def test_readouts_decay_by_order() -> None:
    """|w~^n| is Glorot times 10^(-2n), n = 1, 2, 3."""
    torch.manual_seed(0)
    model = HIPNN(hidden_channels=2000, num_interactions=3, num_onsite=0, num_sensitivities=1)
    for n, block in enumerate(model.blocks, start=1):
        assert_glorot(block.readout.weight, 2000, 1, scale=10.0 ** (-2 * n))


def test_defaults_are_the_papers_lengths(model: HIPNN) -> None:
    assert model.cutoff == pytest.approx(15 * Bohr) == pytest.approx(7.9377, abs=1e-4)
    for block in model.blocks:
        sensitivity = block.interaction.sensitivity
        assert sensitivity.cutoff == model.cutoff
        assert float(sensitivity.mu.detach().min()) == pytest.approx(1.7 * Bohr)
        assert float(sensitivity.mu.detach().max()) == pytest.approx(10 * Bohr)
        assert float(sensitivity.sigma.detach()[0]) == pytest.approx(68 * Bohr)


def test_the_seed_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(HIPNN(hidden_channels=4).parameters())

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
