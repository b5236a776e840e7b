"""Face or no face: the real pictures that come with scikit-image, by a small SwinFace."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.faces_tasks import positive


@protocol(
    "face or no face",
    metrics={"accuracy": "on the other pictures, half of them faces", "parameters": "of the network"},
    settings=(
        Setting(
            "patches", str, "lfw", "lfw: 200 patches of scikit-image, half of them faces",
            signature="paperworks.papers.protocols.sharpness_tasks:faces_signature",
        ),
        Setting("train_size", int, Tiers(smoke=12, desk=40), "training pictures, beside their mirror images", positive),
        Setting("size", int, 32, "side of the pictures in pixels", positive),
        Setting("steps", int, Tiers(smoke=2, desk=60), "updates", positive),
        Setting("batch_size", int, Tiers(smoke=4, desk=16), "pictures a step", positive),
        Setting("width", int, Tiers(smoke=8, desk=16), "channels of the first of three stages", positive),
        Setting("lr", float, 2e-3, "learning rate of AdamW at its highest", positive),
    ),
)  # fmt: skip
def face_or_not(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train a small SwinFace on a few pictures, test it on the others; all arms of a seed see the same."""
    from paperworks.papers.protocols.faces_training import train_on_patches

    return train_on_patches(trial, arm)
