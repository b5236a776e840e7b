"""Image classification by a network of its own for every arm: pixels as one vector in [-1, 1]."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.images import DATA


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


def _fraction(value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"got {value}, wanted a number between 0 and 1")


def _decay(value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"got {value}, wanted a number in (0, 1]")


@protocol(
    "training of networks",
    metrics={
        "accuracy": "test accuracy after the last epoch",
        "loss": "test cross entropy after the last epoch",
        "parameters": "trainable parameters of the network",
        "seconds_a_step": "median time of a training step on the host: forward, backward and optimizer",
    },
    settings=(
        DATA,
        Setting("epochs", int, Tiers(smoke=1, desk=30), "passes over the training part", _positive),
        Setting("batch_size", int, Tiers(smoke=32, gpu=64), "images a step", _positive),
        Setting("lr", float, 1e-3, "learning rate of AdamW in the first epoch", _positive),
        Setting("gamma", float, Tiers(smoke=0.95, gpu=0.8), "factor of the learning rate after each epoch", _decay),
        Setting("weight_decay", float, 1e-4, "decay of matrices, of nothing else"),
        Setting("test_fraction", float, 0.5, "part held out where the data has no test part of its own", _fraction),
        Setting("train_size", int, Tiers(smoke=200, desk=0), "training images kept, stratified; 0 keeps all"),
    ),
    time_limit=7200.0,
)
def network_training(trial: Trial, arm: Arm) -> dict[str, float]:
    """AdamW and an exponential schedule; the seed sets split, weights and batches.

    The arm's target is a builder `(in_features, num_classes) -> nn.Module` of a network that takes (N, in_features).
    All arms of a seed see the same batches. Accuracy by epoch is kept as a curve.
    """
    from paperworks.papers.protocols.network_trials import train_network

    return train_network(trial, arm)
