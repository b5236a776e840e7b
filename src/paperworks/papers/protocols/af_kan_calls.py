"""Training steps to be timed: forward and backward of the networks that AF-KAN's paper compares, without optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from paperworks.lab.trial import Trial
from paperworks.papers.protocols import af_kan_arms


def network(trial: Trial, name: str, *, width: int = 64) -> nn.Module:
    """The 784-width-10 network that `af_kan_arms` has under that name, with weights of the trial's seed."""
    with trial.global_generators("weights"):
        built: nn.Module = getattr(af_kan_arms, name)(784, 10, width=width)
    return built.to(trial.device)


def training_step(trial: Trial, *, name: str, batch: int = 64) -> Callable[[], object]:
    """Forward and backward on random pixels in [-1, 1]."""
    model = network(trial, name)
    x = (2 * torch.rand(batch, 784, generator=trial.generator("input")) - 1).to(trial.device)
    gradient = torch.randn(batch, 10, generator=trial.generator("gradient")).to(trial.device)

    def step() -> object:
        model.zero_grad()
        model(x).backward(gradient)
        return model

    return step
