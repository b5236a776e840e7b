"""Seed masks from tags, on PASCAL VOC 2012."""

from __future__ import annotations

import hashlib
from pathlib import Path

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def voc_signature(spec: str) -> str:
    """Names, sizes and modification times of the lists, annotations and masks."""
    if not spec:
        return ""
    from paperworks.data.voc import voc_folder

    folder, digest = voc_folder(spec), hashlib.sha256()
    for part in ("ImageSets", "Annotations", "SegmentationClass", "SegmentationClassAug"):
        for path in sorted((folder / part).rglob("*.*")):
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def file_signature(spec: str) -> str:
    """Size and modification time where `spec` is a file, else `spec`."""
    path = Path(spec).expanduser()
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}" if spec and path.is_file() else spec


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


_HERE = "paperworks.papers.protocols.mosaics_voc"


@protocol(
    "seeds on VOC",
    metrics={
        "miou": "mean IoU of the seeds on the images of `train`; background as in the protocol on mosaics",
        "map": "mean average precision of the tags of `val`",
    },
    settings=(
        Setting("data", str, "", "the folder VOCdevkit/VOC2012", signature=f"{_HERE}:voc_signature"),
        Setting("weights", str, "", "timm, or a file of Swin-T's weights in timm's layout (.safetensors, .pth)",
                signature=f"{_HERE}:file_signature"),
        Setting("peer_weights", str, "", "DeiT-S: a transformers id or folder"),
        Setting("split", str, "train_aug", "list of training images: train_aug (10,582) or train (1,464)"),
        Setting("size", int, Tiers(smoke=64, gpu=224), "side of the crops", _positive),
        Setting("epochs", int, Tiers(smoke=1, gpu=10, full=30), "passes over the training images", _positive),
        Setting("batch_size", int, Tiers(smoke=2, gpu=16), "images a step", _positive),
        Setting("lr", float, 5e-5, "of the backbone; ten times that for new layers; falls as (1 - progress)^0.9",
                _positive),
        Setting("weight_decay", float, 0.05, "of matrices and filters"),
        Setting("scales", int, Tiers(smoke=1, gpu=4), "1: the image as it is; 4: 0.5, 1, 1.5 and 2 times", _positive),
        Setting("limit", int, Tiers(smoke=0, gpu=0), "images that are scored in each list; 0 for all"),
        Setting("width", int, Tiers(smoke=16, gpu=96), "channels of the first stage, where no weights are named",
                _positive),
        Setting("gsc", float, 1.0, "weight of the consistency"),
        Setting("ccl", float, 0.1, "weight of the contrast"),
        Setting("workers", int, Tiers(smoke=0, gpu=8), "processes that read images"),
    ),
    time_limit=2 * 86400.0,
    memory_limit_gib=64.0,
)  # fmt: skip
def seeds_on_voc(trial: Trial, arm: Arm) -> dict[str, float]:
    """Random scale, crop, mirror image and colours; AdamW; the norm of the gradient clipped at 1."""
    from paperworks.papers.protocols.mosaics_voc_training import train_on_voc

    return train_on_voc(trial, arm)
