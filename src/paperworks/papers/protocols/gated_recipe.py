"""The whole training recipe of Gated-SwinRMT on the user's pictures."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def pictures_signature(spec: str) -> str:
    """What the listed pictures, or the images, depend on."""
    scheme, _, root = spec.partition(":")
    if scheme == "miniimagenet":
        from paperworks.data.picture_crops import listing_signature

        return listing_signature(root)
    from paperworks.data.sources import data_signature

    return data_signature(spec) if spec else ""


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


@protocol(
    "whole recipe",
    metrics={
        "top1": "top-1 accuracy on centre crops, per cent",
        "top5": "top-5 accuracy on centre crops, per cent",
    },
    settings=(
        Setting(
            "data", str, "", "miniimagenet:PATH or cifar:PATH",
            signature="paperworks.papers.protocols.gated_recipe:pictures_signature",
        ),
        Setting("size", int, Tiers(smoke=32, gpu=224), "side of the images", _positive),
        Setting("epochs", int, Tiers(smoke=1, gpu=30, full=300), "passes over the training images", _positive),
        Setting("warmup", int, Tiers(smoke=0, full=5), "epochs in which the learning rate rises"),
        Setting("batch_size", int, Tiers(smoke=8, gpu=128), "images a step", _positive),
        Setting("lr", float, 1e-3, "peak learning rate for 1024 images a step; it falls in proportion", _positive),
        Setting("weight_decay", float, 0.05, "of matrices and filters; none of norms, biases, depthwise filters"),
        Setting("width", int, Tiers(smoke=16, gpu=128), "channels of the first stage, doubled by each", _positive),
        Setting("workers", int, Tiers(smoke=0, gpu=8), "processes that read pictures"),
    ),
    time_limit=7 * 86400.0,
    memory_limit_gib=64.0,
)  # fmt: skip
def whole_recipe(trial: Trial, arm: Arm) -> dict[str, float]:
    """AdamW with warm-up and cosine, label smoothing, RandAugment, mixup, CutMix, random erasing: the same for all."""
    from paperworks.papers.protocols.gated_pictures import train_on_pictures

    return train_on_pictures(trial, arm)
