"""Adapting a frozen network to a rotated half of its own task: the paper's digits, with any adapter."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


def _foundation(value: str) -> None:
    if value not in ("mixture", "upright"):
        raise ValueError(f"got {value!r}, wanted mixture or upright")


def _fraction(value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"got {value}, wanted a number between 0 and 1")


TASK = (
    Setting(
        "data", str, "digits?size=16", "digits, idx:PATH (MNIST's files), imagefolder:PATH, npz:PATH or cifar:PATH, "
        "with options such as ?size=16&mode=gray", signature="paperworks.data.images:data_signature",
    ),
    Setting("hidden", int, Tiers(smoke=32, desk=128), "units of each of the two hidden layers", _positive),
    Setting("angle", float, 45.0, "degrees, counter-clockwise, of the rotated images"),
    Setting("foundation_epochs", int, Tiers(smoke=2, desk=15), "passes that the foundation is trained for", _positive),
    Setting("foundation_lr", float, 1e-3, "Adam's learning rate of the foundation", _positive),
    Setting("epochs", int, Tiers(smoke=1, desk=30), "passes of an adapter over the rotated images", _positive),
    Setting("batch_size", int, 64, "images a step", _positive),
    Setting("test_fraction", float, 0.499, "part held out where the data has no test part of its own", _fraction),
)  # fmt: skip


@protocol(
    "adaptation",
    metrics={
        "accuracy": "test accuracy on rotated images, soft gates",
        "hard_accuracy": "the same with hard gates; the same number for an arm without gates",
        "hard_gap": "distance between the two",
        "upright_accuracy": "test accuracy on images as they were, with the adapter left on",
        "parameters": "numbers that the adapter trains",
        "file_bytes": "size of the saved adapter's tensors; 0 for the base",
        "strong_share": "larger of the two layers' share of units whose mean output is above half of the largest one's",
        "open_share": "larger of the two layers' share of unit-image pairs with an open hard gate; 1 without",
    },
    settings=(
        *TASK,
        Setting("foundation", str, "mixture", "mixture (half of the images rotated) or upright", _foundation),
    ),
    preload=("peft", "sklearn.datasets"),
)  # fmt: skip
def adaptation(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train a foundation once for all arms of a seed, freeze it, adapt it to rotated images only, and test it.

    An arm's target takes the foundation and returns an `Adaptation`. Rotated accuracy by epoch is kept as a curve.
    """
    from paperworks.papers.protocols.adaptation_training import adapt

    return adapt(trial, arm, trial.settings["foundation"])


@protocol(
    "what the foundation lacks",
    metrics={
        "growth": "how much the rotated accuracy that the reference is ahead by grows, from a foundation that has seen "
        "rotated images to one that has not",
        "mixture_gap": "accuracy of the reference minus the arm's, foundation trained on the mixture",
        "upright_gap": "the same with a foundation trained on upright images only",
    },
    settings=(
        *TASK,
        Setting(
            "reference", str, "", "package.module:function(options) of the adapter that the arm is compared with",
            signature="paperworks.papers.protocols.timing:call_signature",
        ),
    ),
    preload=("peft", "sklearn.datasets"),
)  # fmt: skip
def feature_gap(trial: Trial, arm: Arm) -> dict[str, float]:
    """The arm and a reference on two foundations of the same seed."""
    from paperworks.papers.protocols.adaptation_training import adapt

    reference = Arm.parse(trial.settings["reference"])
    gaps = {}
    for foundation in ("mixture", "upright"):
        accuracies = [adapt(trial, a, foundation)["accuracy"] for a in (reference, arm)]
        gaps[foundation] = accuracies[0] - accuracies[1]
    return {
        "growth": gaps["upright"] - gaps["mixture"],
        "mixture_gap": gaps["mixture"],
        "upright_gap": gaps["upright"],
    }
