"""Cosine warm restarts: where cycles begin, peak and end, what is kept of them, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from paperworks.swin.swift import CosineWarmRestarts, warm_restarts

PEAK, LOW = 5e-5, 1e-9


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(2))], "lr": lr} for lr in rates])


def gone_through(schedule: CosineWarmRestarts, n: int) -> list[list[float]]:
    """The rates of the groups at the next `n` steps."""
    found = []
    for _ in range(n):
        found.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_ends_of_warm_up_and_of_cycles() -> None:
    rates = [warm_restarts(i, 1000, PEAK) for i in range(1001)]
    for start in (0, 300, 600, 900):
        assert rates[start] == LOW
        assert rates[start + 25] == pytest.approx((PEAK + LOW) / 2)
        assert rates[start + 50] == PEAK == max(rates)
    for start in (0, 300, 600):
        assert rates[start + 175] == pytest.approx((PEAK + LOW) / 2), "half of the cosine"
        assert rates[start + 299] == pytest.approx(LOW + (PEAK - LOW) * math.sin(math.pi / 500) ** 2)
        assert all(a < b for a, b in zip(rates[start : start + 50], rates[start + 1 : start + 51], strict=True))
        assert all(a > b for a, b in zip(rates[start + 50 : start + 300], rates[start + 51 : start + 301], strict=True))
    assert 0.90 < rates[999] / PEAK < 0.92, "the last cycle is cut"
    assert rates[1000] == warm_restarts(5000, 1000, PEAK) == LOW


def test_one_cycle_falls_once_over_all_of_its_steps() -> None:
    rates = [warm_restarts(i, 200, 1.0, cycle=1.0, min_lr=0) for i in range(201)]
    assert rates[10] == 1
    assert rates[105] == pytest.approx(0.5)
    assert rates[200] == 0
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_gamma_lowers_each_peak_and_never_below_the_lowest_rate() -> None:
    peaks = [warm_restarts(50 + 300 * n, 1000, PEAK, gamma=0.5) for n in range(4)]
    assert peaks == pytest.approx([PEAK, PEAK / 2, PEAK / 4, PEAK / 8])
    assert [warm_restarts(i, 1000, 1.0, min_lr=0.5, gamma=0.1) for i in range(300, 1000)] == [0.5] * 700


def test_without_warm_up_each_cycle_begins_at_its_peak() -> None:
    rates = [warm_restarts(i, 8, 1.0, warmup=0, cycle=0.5, min_lr=0) for i in range(8)]
    assert rates[::2] == pytest.approx([1, 0.5, 1, 0.5])
    assert warm_restarts(0, 19, 1.0, min_lr=0) == 1, "5 % of 19 steps are none"


def test_each_group_peaks_at_its_own_rate() -> None:
    schedule = CosineWarmRestarts(optimizer(PEAK, 1e-3), 100)
    found = gone_through(schedule, 101)
    assert found == [[warm_restarts(i, 100, peak) for peak in (PEAK, 1e-3)] for i in range(101)]
    assert found[5] == [PEAK, 1e-3]


def test_resumes_from_its_state() -> None:
    options: dict[str, Any] = {"warmup": 0.1, "cycle": 0.4, "min_lr": 1e-6, "gamma": 0.7}
    first = CosineWarmRestarts(optimizer(PEAK, 1e-3), 60, **options)
    whole = gone_through(CosineWarmRestarts(optimizer(PEAK, 1e-3), 60, **options), 60)
    begun = gone_through(first, 29)
    again = CosineWarmRestarts(optimizer(0.5, 0.5), 7, cycle=1.0)
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    again.load_state_dict(first.state_dict())
    assert begun + gone_through(again, 31) == whole
    state = first.optimizer.state_dict()
    resumed = optimizer(0.5, 0.5)
    resumed.load_state_dict(state)
    assert begun + gone_through(CosineWarmRestarts(resumed, 60, last_epoch=28, **options), 31) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "step, steps: got 0 and 0"),
        ({"warmup": 0.3}, r"warmup, cycle: got 0.3 and 0.3"),
        ({"warmup": -0.1}, r"warmup, cycle: got -0.1"),
        ({"cycle": 1.5}, r"warmup, cycle: got 0.05 and 1.5"),
        ({"min_lr": -1e-9}, "min_lr: got -1e-09"),
        ({"min_lr": 1.0}, r"min_lr: got 1.0, wanted 0 to the peak, 5e-05"),
        ({"min_lr": math.nan}, "min_lr: got nan"),
        ({"gamma": 0}, "gamma: got 0"),
        ({"gamma": 1.5}, r"gamma: got 1.5"),
        ({"steps": 3}, r"steps: got 3, too few for a cycle of 0.3"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    given = optimizer(PEAK)
    with pytest.raises(ValueError, match=message):
        CosineWarmRestarts(given, **{"steps": 100} | options)
    assert given.param_groups[0]["lr"] == PEAK, "the optimizer is left as it was"


def test_a_step_before_the_first_and_what_is_no_optimizer_are_refused() -> None:
    with pytest.raises(ValueError, match="step, steps: got -1 and 10"):
        warm_restarts(-1, 10, PEAK)
    with pytest.raises(TypeError, match="not an Optimizer"):
        CosineWarmRestarts(nn.Linear(1, 1), 10)  # type: ignore[arg-type]
