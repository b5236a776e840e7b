"""Image classification by whole networks, S-KAN's three stages included."""

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


@protocol(
    "image classification by networks",
    metrics={
        "accuracy": "test accuracy after the last epoch, of the pruned network where there is a choice",
        "loss": "test cross entropy after the last epoch",
        "parameters": "of the network that is tested",
        "multiply_adds": "of its matrix products and convolutions, one image; evaluating functions counts nothing",
    },
    settings=(
        DATA,
        Setting("epochs", int, Tiers(smoke=1, desk=15, gpu=40, full=100), "passes over the training part", _positive),
        Setting("batch_size", int, Tiers(smoke=64, gpu=128), "images a step", _positive),
        Setting("lr", float, 5e-3, "learning rate of an arm that has no `lr` of its own", _positive),
        Setting("augment", bool, Tiers(smoke=False, gpu=True), "random crops and mirror images"),
        Setting("test_fraction", float, 0.5, "part held out where the data has no test part of its own", _fraction),
        Setting("train_size", int, Tiers(smoke=200, desk=0), "training images kept, stratified; 0 keeps all"),
    ),
    time_limit=3600.0,
)
def network_classification(trial: Trial, arm: Arm) -> dict[str, float]:
    """Adam without decay, the rate held for 60 % of the steps, then on a cosine to 1 %.

    The arm's target is called with (num_classes, in_channels, image_size); an option `lr` goes to the training.
    Networks with S-KAN layers pass through their stages in the same steps and are tested pruned. All arms of a seed
    see the same batches.
    """
    from paperworks.papers.protocols.kan_image_trials import train_network

    return train_network(trial, arm)
