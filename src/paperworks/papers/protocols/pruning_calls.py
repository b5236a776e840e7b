"""Forward passes of a pruned network, to time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from paperworks.efficiency.dimap import dimap_prune, squeeze
from paperworks.lab.nouns import at_tier
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.pruning import pruning
from paperworks.papers.protocols.pruning_training import dense_network, split


def trained(trial: Trial) -> tuple[nn.Module, torch.Tensor]:
    """The dense network of the one-shot protocol, and 64 of its test images; always of seed 0, so trained once."""
    settings = {s.name: at_tier(s.default, trial.tier) for s in pruning.settings}
    inner = copy.copy(trial)
    inner.seed, inner.settings = 0, settings
    train, test = split(inner)
    return dense_network(inner, train), test.images[:64]


def forward_pass(trial: Trial, ratio: float = 0.0, squeezed: bool = False) -> Callable[[], object]:
    """The forward pass of the trained network after pruning: dense with zeros, or squeezed."""
    model, images = trained(trial)
    if ratio:
        dimap_prune(model, ratio, permanent=True)
    if squeezed:
        model = squeeze(model)

    def call() -> object:
        with torch.no_grad():
            return model(images)

    return call
