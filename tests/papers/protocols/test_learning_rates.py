"""The rate of the small trainings: its rise, its fall, and the first and last step."""

from __future__ import annotations

import pytest
import torch

from paperworks.papers.protocols.learning_rates import rate_at, warm_up_then_cosine


def test_rates_rise_and_fall() -> None:
    assert rate_at(0.05, 0.1) == 0.5
    assert rate_at(0.1, 0.1) == 1
    assert rate_at(0.55, 0.1) == pytest.approx(0.5)
    assert rate_at(1.0, 0.0) == pytest.approx(0)
    assert rate_at(55, 10, 100) == pytest.approx(rate_at(0.55, 0.1))


@pytest.mark.parametrize(
    ("steps", "warmup", "wanted"),
    [(6, 2, [0.5, 1, 1, 0.8535534, 0.5, 0.1464466, 0]), (1, 1, [1, 1]), (2, 1, [1, 1, 0])],
)
def test_no_step_is_at_zero(steps: int, warmup: int, wanted: list[float]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warm_up_then_cosine(optimizer, steps, warmup)
    found = []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(wanted)
    assert min(found[:steps]) > 0
