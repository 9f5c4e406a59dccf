"""Learning-rate schedules against traces written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import Adam

from hipnn_pyg import HIPNN
from hipnn_pyg.train import PlateauAnnealing, Training, WarmupCosine
from hipnn_pyg.train.recipe import recipe
from hipnn_pyg.train.schedule import Schedule


def new_optimizer(rate: float = 8.0) -> Adam:
    return Adam([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def trace(
    schedule: Schedule, optimizer: Adam, validation_mae: list[float]
) -> tuple[list[float], int | None]:
    """Learning rate after each epoch and the epoch (from 1) at which training stops."""
    best, rates = math.inf, []
    for epoch, mae in enumerate(validation_mae, start=1):
        stop = schedule.after_epoch(mae < best)
        best = min(best, mae)
        rates.append(optimizer.param_groups[0]["lr"])
        if stop:
            return rates, epoch
    return rates, None


# epoch, validation MAE, learning rate afterwards; t_init = 5, t_patience = 3, decay = 1/2
HAND_TRACE = [
    (1, 9.0, 8.0),  # a first best
    (2, 9.5, 8.0),
    (3, 9.5, 8.0),
    (4, 9.5, 8.0),  # 3 epochs without a best, but t_init holds
    (5, 9.5, 4.0),  # t_init is over and the best is 4 epochs old: lowered
    (6, 9.5, 4.0),
    (7, 8.0, 4.0),  # a new best after the first lowering: forgiven
    (8, 8.5, 4.0),
    (9, 8.0, 4.0),  # equal is not better
    (10, 8.5, 2.0),  # the best of epoch 7 is 3 epochs old: lowered
    (11, 8.5, 2.0),
    (12, 7.0, 2.0),  # a new best between two lowerings
    (13, 7.5, 2.0),
    (14, 7.5, 2.0),
    (15, 7.5, 1.0),  # lowered once since the best of epoch 12
    (16, 7.5, 1.0),
    (17, 7.5, 1.0),  # only 2 epochs after the last lowering
    (18, 7.5, 0.5),  # lowered a second time without a new best: the end
    (19, 1.0, 0.5),  # never seen
]


def test_plateau_annealing_by_hand() -> None:
    optimizer = new_optimizer()
    schedule = PlateauAnnealing(optimizer, t_init=5, t_patience=3, decay=0.5)
    rates, stopped = trace(schedule, optimizer, [mae for _, mae, _ in HAND_TRACE])
    assert rates == [rate for _, _, rate in HAND_TRACE[:18]]
    assert stopped == 18


def test_plateau_annealing_survives_a_restart_in_every_epoch() -> None:
    optimizer = new_optimizer()
    schedule = PlateauAnnealing(optimizer, t_init=5, t_patience=3, decay=0.5)
    best = math.inf
    for epoch, mae, rate in HAND_TRACE[:18]:
        fresh_optimizer = new_optimizer()
        fresh = PlateauAnnealing(fresh_optimizer, t_init=5, t_patience=3, decay=0.5)
        fresh.load_state_dict(schedule.state_dict())
        fresh_optimizer.load_state_dict(optimizer.state_dict())
        schedule, optimizer = fresh, fresh_optimizer
        assert schedule.after_epoch(mae < best) is (epoch == 18)
        best = min(best, mae)
        assert optimizer.param_groups[0]["lr"] == rate


def test_the_paper_recipe_takes_its_settings(small_model: Callable[..., HIPNN]) -> None:
    """A best in epoch 1 alone: lowered in epoch 7, when t_init ends, and 3 epochs later."""
    optimizer, config = new_optimizer(), Training(recipe="paper", t_init=7, t_patience=3, decay=0.3)
    schedule, average = recipe(config, small_model(), optimizer, 100)
    rates, stopped = trace(schedule, optimizer, [1.0, *range(2, 20)])
    assert rates == pytest.approx([8.0] * 6 + [2.4] * 3 + [0.72], rel=1e-14)
    assert stopped == 10 and average is None


def test_the_fast_recipe_takes_its_settings(small_model: Callable[..., HIPNN]) -> None:
    """4 of 100 steps to a peak of 2, half of it after half of the others."""
    optimizer, config = new_optimizer(), Training(learning_rate=2.0, warmup_steps=4)
    schedule, average = recipe(config, small_model(), optimizer, 100)
    assert schedule.rates(53)[[0, 4, 52]].tolist() == pytest.approx([0.4, 2.0, 1.0], rel=1e-12)
    assert average is not None


def test_constant_while_it_improves() -> None:
    optimizer = new_optimizer()
    schedule = PlateauAnnealing(optimizer, t_init=2, t_patience=1)
    rates, stopped = trace(schedule, optimizer, [10.0 - epoch for epoch in range(9)])
    assert set(rates) == {8.0} and stopped is None


def test_defaults_are_the_papers() -> None:
    """Without any improvement: held 100 epochs, lowered once, stopped 50 epochs later."""
    optimizer = new_optimizer(1e-3)
    rates, stopped = trace(PlateauAnnealing(optimizer), optimizer, [1.0] * 400)
    assert rates[98] == 1e-3 and rates[99] == 5e-4 and rates[148] == 5e-4 and rates[149] == 2.5e-4
    assert stopped == 150


def test_warmup_cosine_by_hand() -> None:
    """40 steps, 4 of warm-up, then 36 of cosine; every value below is a known cosine."""
    optimizer = new_optimizer()
    schedule = WarmupCosine(optimizer, peak=2.0, warmup_steps=4, total_steps=40)
    rates = []
    for _ in range(41):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.after_step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    by_hand = {
        10: 1 + math.sqrt(3) / 2,  # a sixth of the way: 30 degrees
        13: 1 + math.sqrt(0.5),  # a quarter: 45 degrees
        16: 1.5,  # a third: 60 degrees
        22: 1.0,  # half: 90 degrees
        28: 0.5,
        40: 0.0,
    }
    assert {step: rates[step] for step in by_hand} == pytest.approx(by_hand, abs=1e-12)
    assert 0 < rates[39] < 0.01
    schedule.after_step()
    assert optimizer.param_groups[0]["lr"] == 0.0  # and stays there
    assert schedule.after_epoch(False) is False


def test_warmup_takes_at_most_a_tenth() -> None:
    schedule = WarmupCosine(new_optimizer(), peak=1.0, warmup_steps=500, total_steps=100)
    assert schedule.warmup_steps == 10
    assert schedule.factor(10) == 1.0 and schedule.factor(9) == pytest.approx(10 / 11)


def test_warmup_cosine_restart() -> None:
    first, second = new_optimizer(), new_optimizer()
    schedule = WarmupCosine(first, 1.0, 2, 30)
    for _ in range(13):
        schedule.after_step()
    resumed = WarmupCosine(second, 1.0, 2, 30)
    assert second.param_groups[0]["lr"] != first.param_groups[0]["lr"]
    resumed.load_state_dict(schedule.state_dict())
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"]
