"""The bone protocol: a labelled volume of bones from two X-rays, simulated or projected from CT, with any network."""

from __future__ import annotations

from pathlib import Path

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def check_data(value: str) -> None:
    """``simulated`` or ``xray:PATH`` with a path that exists."""
    if value == "simulated":
        return
    kind, _, path = value.partition(":")
    if kind != "xray" or not path or not Path(path).exists():
        raise ValueError(f"data: got {value!r}, wanted simulated or xray:PATH, a data_list.json or a folder of CT")


def data_signature(value: str) -> str:
    """Names, sizes and times of the files that a value names."""
    if value == "simulated":
        return value
    path = Path(value.removeprefix("xray:"))
    folder = path if path.is_dir() else path.parent
    files = sorted(p for p in folder.rglob("*") if p.name.endswith((".nii", ".nii.gz", ".json", ".npy", ".csv")))
    return ";".join(f"{p.relative_to(folder)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)


@protocol(
    "bones",
    metrics={
        "dice": "mean Dice score of the labels of each volume never trained on, averaged over volumes",
        "bone_dice": "Dice score of all bones together",
        "identified": "share of bones whose middle is within 20 mm of where it should be",
        "off": "distance between the middles of the same bone, mm",
        "hd95": "95th percentile of the distances between the surfaces of all bones together, mm",
        "shadow": "Dice score of the shadows at 45 degrees, an angle that no view has",
        "disagreement_auc": "how well the disagreement of the two views tells wrong voxels from right ones, near bone",
        "parameters": "of the network, millions",
    },
    settings=(
        Setting(
            "data",
            str,
            "simulated",
            "simulated, or xray:PATH with the paper's data_list.json, or a folder of TotalSegmentator cases or of CTs",
            check_data,
            "paperworks.papers.protocols.bones:data_signature",
        ),
        Setting("kind", str, "spine", "simulated: spine, hip or rib"),
        Setting("labels", str, Tiers(smoke="one", gpu="each"), "simulated: one for all bones, or each its own"),
        Setting("classes", int, 55, "of real data, background included"),
        Setting("cache", str, "", "folder for the X-rays of CTs"),
        Setting("size", int, Tiers(smoke=32, gpu=64, full=128), "voxels of x and y"),
        Setting("height", int, Tiers(smoke=64, full=160), "voxels of z"),
        Setting("feature_size", int, Tiers(smoke=4, desk=8, gpu=16, full=96), "channels of the first stage"),
        Setting("blocks", int, Tiers(smoke=2, gpu=6, full=18), "of attention in the third stage; the others have 2"),
        Setting("train_size", int, Tiers(smoke=2, desk=32, gpu=400), "simulated volumes to train on"),
        Setting("test_size", int, Tiers(smoke=2, desk=8, gpu=32), "simulated volumes to score"),
        Setting("steps", int, Tiers(smoke=2, desk=100, gpu=2000, full=1_000_000), "updates"),
        Setting("batch_size", int, 1, "volumes an update"),
        Setting("lr", float, Tiers(smoke=2e-2, gpu=1e-3, full=3e-5), "highest learning rate"),
        Setting("weight_decay", float, Tiers(smoke=0.05, full=0.5), "of AdamW"),
        Setting("drop_path", float, Tiers(smoke=0.0, full=0.2), "of the last block of attention"),
        Setting("kl_weight", float, 1.0, "of the divergence between the views"),
    ),
    time_limit=3600.0,
    preload=("torch", "scipy.ndimage"),
)
def bones(trial: Trial, arm: Arm) -> dict[str, float]:
    """An arm's target takes the options of `SwinX2S` and returns a network of two views.

    Dice, cross-entropy and divergence of the views, AdamW, warm-up and cosine, gradients of norm 1, in bfloat16 on a
    GPU. Arms of one seed see the same volumes in the same order.
    """
    from paperworks.papers.protocols.bones_training import train_and_score

    return train_and_score(trial, arm)
