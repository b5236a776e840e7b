"""The learning rate of the small trainings: a linear warm-up, then half a cosine down to zero."""

from __future__ import annotations

import math

import torch


def rate_at(done: float, warmup: float, whole: float = 1.0) -> float:
    """Share of the peak rate where `done` of `whole` is behind; it rises over `warmup`. In steps, or parts of one."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(whole - warmup, 1e-9)))


def warm_up_then_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """`rate_at` by step; while it rises a step counts as done, so that the first one is not at zero."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate_at(i + (i < warmup), warmup, steps))
