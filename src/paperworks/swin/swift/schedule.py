"""The published code's optional learning rate: cosine cycles, each with a warm-up of its own.

Cycle n is T = 0.3 of the training's steps. Its first W = 0.05 of them rise from the lowest rate to peak gamma^n, and
at its step i >= W

    rate = low + (peak gamma^n - low) (1 + cos(pi (i - W) / (T - W))) / 2.

The code's `WarmupCosineSchedule` is something else: it never reads its number of steps, and swings without restarts.
"""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["CosineWarmRestarts", "warm_restarts"]


def warm_restarts(
    step: int,
    steps: int,
    peak: float,
    *,
    warmup: float = 0.05,
    cycle: float = 0.3,
    min_lr: float = 1e-9,
    gamma: float = 1.0,
) -> float:
    """The learning rate of a step, counted from 0; `min_lr` once all are done.

    Args:
        step: how many steps were taken before.
        steps: of the whole training.
        peak: the highest rate of the first cycle.
        warmup: part of `steps` in which each cycle rises, rounded down to whole steps.
        cycle: part of `steps` of a cycle, its warm-up included, rounded down. 1 is a single cycle. Where cycles do not
            fill the steps the last one is cut: with 0.3 and 0.05 training ends at 0.9 of the peak.
        min_lr: the lowest rate, where each cycle begins and ends.
        gamma: factor of the peak from one cycle to the next.

    Raises ValueError for parts that leave a cycle no step after its warm-up, or a number out of range.
    """
    if steps < 1 or step < 0:
        raise ValueError(f"step, steps: got {step} and {steps}, wanted step >= 0 and steps > 0")
    if not 0 <= warmup < cycle <= 1:
        raise ValueError(f"warmup, cycle: got {warmup} and {cycle}, wanted 0 <= warmup < cycle <= 1")
    if not 0 <= min_lr <= peak:
        raise ValueError(f"min_lr: got {min_lr}, wanted 0 to the peak, {peak}")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma: got {gamma}, wanted 0 < gamma <= 1")
    rise, length = int(warmup * steps), int(cycle * steps)
    if rise >= length:
        raise ValueError(f"steps: got {steps}, too few for a cycle of {cycle} with a warm-up of {warmup} of them")
    if step >= steps:
        return min_lr
    n, i = divmod(step, length)
    height = max(0.0, peak * gamma**n - min_lr)
    return min_lr + height * (i / rise if i < rise else (1 + math.cos(math.pi * (i - rise) / (length - rise))) / 2)


class CosineWarmRestarts(LRScheduler):
    """`warm_restarts` of an optimizer, stepped after each of its steps; each group peaks at the rate it comes with.

    Args:
        optimizer: its groups' rates become those of step 0, `min_lr` where there is a warm-up.
        steps, warmup, cycle, min_lr, gamma: of `warm_restarts`.
        last_epoch: steps taken before, less one; -1 begins anew.

    All of them are in the `state_dict`, so that a training resumes as it began.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        *,
        warmup: float = 0.05,
        cycle: float = 0.3,
        min_lr: float = 1e-9,
        gamma: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self.steps, self.warmup, self.cycle, self.min_lr, self.gamma = steps, warmup, cycle, min_lr, gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of the groups at the step `last_epoch`."""
        options = {"warmup": self.warmup, "cycle": self.cycle, "min_lr": self.min_lr, "gamma": self.gamma}
        return [warm_restarts(self.last_epoch, self.steps, float(peak), **options) for peak in self.base_lrs]
