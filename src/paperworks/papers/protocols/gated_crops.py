"""Backbones of Gated-SwinRMT on pictures small enough for a desk: with several windows a map, and with one."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


def crops_signature(spec: str) -> str:
    """What the crops, or the user's images, depend on."""
    if spec == "pictures":
        from importlib.metadata import version

        return f"scikit-image {version('scikit-image')}"
    from paperworks.data.sources import data_signature

    return data_signature(spec)


@protocol(
    "picture crops",
    metrics={
        "accuracy": "test accuracy, maps of several windows",
        "accuracy_one_window": "test accuracy of a network trained on smaller images, whose maps fit one window",
        "windowed_minus_one_window": "the first minus the second",
    },
    settings=(
        Setting(
            "data", str, "pictures", "pictures (crops of scikit-image's), imagefolder:PATH or cifar:PATH",
            signature="paperworks.papers.protocols.gated_crops:crops_signature",
        ),
        Setting("size", int, Tiers(smoke=32, gpu=96), "side of the images; the small ones are as wide as a window",
                _positive),
        Setting("window", int, Tiers(smoke=4, gpu=7), "nominal side of the windows", _positive),
        Setting("train_size", int, Tiers(smoke=28, desk=600, gpu=20000), "training images", _positive),
        Setting("test_size", int, Tiers(smoke=28, desk=420, gpu=5000), "test images", _positive),
        Setting("epochs", int, Tiers(smoke=1, desk=12, gpu=20), "passes over the training images", _positive),
        Setting("batch_size", int, Tiers(smoke=14, desk=50, gpu=128), "images a step", _positive),
        Setting("lr", float, Tiers(smoke=3e-3, gpu=1e-3), "peak learning rate, cosine to zero", _positive),
        Setting("weight_decay", float, 0.05, "of matrices and filters; none of norms, biases, depthwise filters"),
        Setting("width", int, Tiers(smoke=24, gpu=64), "channels of the first stage, doubled by each", _positive),
        Setting("stages", int, Tiers(smoke=2, gpu=3), "stages of two blocks; the last of two has one", _positive),
    ),
)  # fmt: skip
def picture_classification(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train the arm's network on large and on small images; the seed sets crops, weights and batches.

    All arms of a seed see the same images in the same order. For the figure, the first test image and what a token of
    the first stage attends to are kept as curves.
    """
    from paperworks.papers.protocols.gated_training import train_at_both_sizes

    return train_at_both_sizes(trial, arm)
