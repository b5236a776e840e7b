"""The lesion protocol: outline nested tumour regions, simulated or of BraTS, with any network."""

from __future__ import annotations

from pathlib import Path

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def check_data(value: str) -> None:
    """``simulated`` or ``brats:PATH`` with a folder that exists."""
    if value == "simulated":
        return
    kind, _, path = value.partition(":")
    if kind != "brats" or not path or not Path(path).is_dir():
        raise ValueError(f"data: got {value!r}, wanted simulated or brats:PATH, a folder of cases")


def check_test(value: str) -> None:
    """Empty, or a folder that exists."""
    if value and not Path(value).is_dir():
        raise ValueError(f"test: got {value!r}, wanted a folder of cases")


def data_signature(value: str) -> str:
    """Names, sizes and times of the files that a value names."""
    folder = Path(value.removeprefix("brats:"))
    if value in ("", "simulated"):
        return value
    files = sorted(path for path in folder.rglob("*") if path.name.endswith((".nii", ".nii.gz", ".json")))
    return ";".join(f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)


@protocol(
    "lesions",
    metrics={
        "dice": "mean of the Dice scores of TC, WT and ET on images never trained on",
        "dice_tc": "Dice score of the tumour core",
        "dice_wt": "Dice score of the whole tumour",
        "dice_et": "Dice score of the enhancing tumour",
        "dice_near": "mean of the Dice scores of TC and WT, whose outlines are seen where they are",
        "far_minus_near": "Dice score of ET minus the mean of TC's and WT's",
        "parameters": "of the network, millions",
    },
    settings=(
        Setting(
            "data",
            str,
            "simulated",
            "simulated, or brats:PATH with one folder a case; PATH/folds.json is read if there",
            check_data,
            "paperworks.papers.protocols.lesions:data_signature",
        ),
        Setting(
            "test",
            str,
            "",
            "folder of further cases to score instead of the fold's",
            check_test,
            "paperworks.papers.protocols.lesions:data_signature",
        ),
        Setting("context", str, "far", "simulated: what decides on enhancement: markers far away, or the lesion near"),
        Setting("axes", int, Tiers(smoke=2, gpu=3), "spatial axes of simulated images"),
        Setting("size", int, Tiers(smoke=64, full=128), "voxels on each axis, of images or of crops"),
        Setting("feature_size", int, Tiers(smoke=12, gpu=24, full=48), "channels of the first stage"),
        Setting("train_size", int, Tiers(smoke=16, desk=320, gpu=512), "simulated images to train on"),
        Setting("test_size", int, Tiers(smoke=8, desk=96, gpu=64), "simulated images to score"),
        Setting("steps", int, Tiers(smoke=3, desk=200, gpu=1500, full=1_000_000), "updates"),
        Setting("batch_size", int, Tiers(smoke=4, gpu=2, full=1), "images an update"),
        Setting("lr", float, Tiers(smoke=4e-3, gpu=8e-4), "highest learning rate"),
        Setting("weight_decay", float, 1e-5, "of AdamW"),
        Setting("overlap", float, Tiers(smoke=0.5, full=0.7), "of the windows a whole volume is scored by"),
    ),
    time_limit=3600.0,
    preload=("torch", "scipy.ndimage"),
)
def lesions(trial: Trial, arm: Arm) -> dict[str, float]:
    """An arm's target takes (in_channels, out_channels, feature_size=, spatial_dims=) and returns a network.

    Soft Dice on three sigmoids with sums over the batch, AdamW, warm-up and cosine, in bfloat16 on a GPU. Simulated
    images are scored pooled: intersections and sizes are summed over all of them. Cases of BraTS are scored one by
    one, a region that is empty in both counting 1, and averaged; seeds then go through the five folds.
    """
    from paperworks.papers.protocols.lesions_training import train_and_score

    return train_and_score(trial, arm)
