"""Seed masks from tags, on digit mosaics: what a desk can train of weakly supervised segmentation."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


def _digits(value: str) -> None:
    if not value.isdigit() or len(set(value)) != len(value):
        raise ValueError(f"got {value!r}, wanted different digits such as 01")


@protocol(
    "seeds from tags",
    metrics={
        "miou": "mean IoU of the seeds on test mosaics; the background is the method's own map, or without one the "
        "constant that suits them best",
        "miou_constant": "the same with the best constant for every method",
        "recall": "share of the objects' pixels that the seeds give their class",
        "map": "mean average precision of the tags",
    },
    settings=(
        Setting("size", int, Tiers(smoke=32, gpu=128), "side of the images", _positive),
        Setting("patch", int, Tiers(smoke=2, gpu=4), "side of a patch", _positive),
        Setting("digits", str, Tiers(smoke="01", gpu="0123456789"), "digits that occur", _digits),
        Setting("most", int, Tiers(smoke=2, gpu=3), "digits in an image at most", _positive),
        Setting("texture", float, Tiers(smoke=0.2, gpu=1.0), "contrast of the background"),
        Setting("signs", int, Tiers(smoke=1, gpu=2), "1 for lighter digits alone, 2 for darker ones too", _positive),
        Setting("train_size", int, Tiers(smoke=32, desk=900, gpu=10000), "training images", _positive),
        Setting("test_size", int, Tiers(smoke=12, desk=160, gpu=1000), "test images", _positive),
        Setting("width", int, Tiers(smoke=16, gpu=48), "channels of the first stage, doubled by each", _positive),
        Setting("depth", int, Tiers(smoke=1, gpu=2), "blocks in a stage", _positive),
        Setting("stages", int, Tiers(smoke=3, gpu=4), "stages", _positive),
        Setting("window", int, 4, "side of the windows", _positive),
        Setting("single_epochs", int, Tiers(smoke=1, desk=6, gpu=10), "passes over images of one digit: which is it?",
                _positive),
        Setting("tag_epochs", int, Tiers(smoke=1, desk=4, gpu=20), "passes with the loss of the tags alone", _positive),
        Setting("epochs", int, Tiers(smoke=1, desk=3, gpu=20), "passes with all losses of the method", _positive),
        Setting("batch_size", int, Tiers(smoke=16, desk=25, gpu=128), "images a step", _positive),
        Setting("lr", float, Tiers(smoke=6e-3, gpu=1e-3), "peak learning rate", _positive),
        Setting("share", float, 0.1, "of it for the backbone in the last part", _positive),
        Setting("gsc", float, 1.0, "weight of the consistency"),
        Setting("ccl", float, 0.1, "weight of the contrast"),
    ),
)  # fmt: skip
def seeds_from_tags(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train the arm's network from tags and score its seeds on other mosaics; the seed sets images and weights.

    Every network first learns single digits, as others are pretrained on pictures of one object, then tags; these two
    parts are shared by all arms of one backbone. The last part has the arm's own losses. All arms see the same images.
    For the figure, three test images, their masks, and seeds are kept as curves.
    """
    from paperworks.papers.protocols.mosaics_training import train_from_tags

    return train_from_tags(trial, arm)
