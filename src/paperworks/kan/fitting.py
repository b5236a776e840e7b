"""Fit an S-KAN to values by least squares, in its three stages."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paperworks.kan.selectable import SelectionSchedule, selecting_layers


@dataclass
class History:
    """What happened in `fit_skan`.

    Attributes:
        losses: mean squared error of each step, before its update (of the batch where there are batches).
        stages: the stage of each step.
        choices: (D,) a layer.
        weights: alpha (D, M) a layer at the end of the second stage: the nearer the largest of a row to 1, the less
            the pruning changes.
        loss_before, loss_after: error on all of the data right before and right after the pruning. The loss jumps
            where the weights were not one-hot; the third stage has to win that back. NaN where no pruning happened.
    """

    losses: list[float] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    choices: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    loss_before: float = math.nan
    loss_after: float = math.nan

    @property
    def jump(self) -> float:
        """loss_after - loss_before."""
        return self.loss_after - self.loss_before

    @property
    def decided(self) -> float:
        """Mean over the nodes of the largest weight at the end of the second stage."""
        return float(torch.cat([w.max(-1).values for w in self.weights]).mean()) if self.weights else math.nan


def held_then_cosine(step: int, start: int, steps: int) -> float:
    """Factor of the learning rate at a step: 1 until `start`, then a cosine to 0.01 at the last of `steps`."""
    if step < start:
        return 1.0
    part = (step - start) / max(1, steps - start - 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def fit_skan(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 2000,
    lr: float = 2e-2,
    schedule: SelectionSchedule | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, str, float], object] | None = None,
    batch_size: int | None = None,
    entropy_weight: float = 0.0,
) -> History:
    """Fit `model` to (x, y) by Adam on the mean squared error, through the stages of `schedule`.

    The rate is `lr` in the first two stages. The third has an optimiser of its own, of the parameters that are left,
    and a rate that falls on a cosine from `lr` to `lr` / 100.

    Args:
        model: `SKAN`, or any module with S-KAN layers.
        x, y: inputs (N, D) and targets (N, O).
        steps: optimiser steps; those of `schedule` where it is given.
        generator: draws the batches, where there are any.
        callback: called after every step with its number, its stage and its loss.
        batch_size: rows a step, drawn anew; None takes all.
        entropy_weight: lambda of the penalty lambda sum_d H(alpha_d) of the first two stages.

    Raises ValueError where x and y have different lengths or none, or where `schedule` belongs to another model.
    """
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x, y: got {len(x)} and {len(y)} rows, wanted the same number, at least one")
    schedule = schedule or SelectionSchedule(model, steps)
    if schedule.model is not model:
        raise ValueError("schedule: belongs to another model, wanted one made for this model")
    steps, start = schedule.total_steps, schedule.full_steps + schedule.selective_steps
    history, layers = History(), selecting_layers(model)
    optimizer, stage = _adam(model, lr), schedule.stage
    for step in range(schedule.taken, steps):
        rows = slice(None) if batch_size is None else torch.randint(len(x), (batch_size,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = lr * held_then_cosine(step, start, steps)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x[rows]), y[rows])
        total = loss
        if entropy_weight and stage != "prune":
            total = loss + entropy_weight * torch.stack([layer.entropy() for layer in layers]).sum()
        total.backward()
        optimizer.step()
        history.losses.append(loss.item())
        history.stages.append(stage)
        if callback is not None:
            callback(step, stage, history.losses[-1])
        prunes = schedule.taken + 1 >= start and not schedule.choices
        if prunes:
            history.loss_before = _error(model, x, y)
        stage = schedule.step(x)
        if prunes:
            history.loss_after = _error(model, x, y)
            history.choices, history.weights = schedule.choices, schedule.weights
            optimizer = _adam(model, lr)
    return history


def _adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr, fused=True)


@torch.no_grad()
def _error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(nn.functional.mse_loss(model(x), y))
