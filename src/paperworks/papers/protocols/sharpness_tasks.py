"""Sharpness-aware minimisation on sets small enough for a desk: few digits, and faces against other pictures."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


def _not_negative(value: float) -> None:
    if value < 0:
        raise ValueError(f"got {value}, wanted a number >= 0")


NETWORK = (
    Setting("width", int, Tiers(smoke=16, desk=32, gpu=64), "channels of the first of two stages", _positive),
    Setting("batch_size", int, Tiers(smoke=10, desk=20, gpu=50), "images a step", _positive),
    Setting("lr", float, 1e-3, "learning rate of AdamW; falls to zero as a cosine on few images", _positive),
    Setting("weight_decay", float, 0.05, "of matrices", _not_negative),
    Setting("rho", float, 0.05, "radius of the climb", _not_negative),
)


@protocol(
    "few images",
    metrics={
        "macro_f1": "macro F1 on the test images",
        "accuracy": "accuracy on the test images",
        "train_loss": "cross entropy on the training images after training",
        "passes": "forward and backward passes over a batch",
    },
    settings=(
        Setting(
            "data", str, "digits", "digits, imagefolder:PATH, npz:PATH, idx:PATH or cifar:PATH",
            signature="paperworks.data.images:data_signature",
        ),
        Setting("train_size", int, Tiers(smoke=20, desk=100, gpu=400), "training images, stratified", _positive),
        Setting("test_size", int, Tiers(smoke=40, desk=800), "test images, stratified", _positive),
        Setting("epochs", int, Tiers(smoke=1, desk=30, gpu=60), "passes over the training images", _positive),
        *NETWORK,
    ),
)  # fmt: skip
def few_images(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train a Swin of two stages on images of 32 pixels with the arm's recipe; the seed sets split, weights, batches.

    All arms of a seed start from the same weights and see the same batches.
    """
    from paperworks.papers.protocols.sharpness_training import train_on_few

    return train_on_few(trial, arm)


def faces_signature(_: str) -> str:
    """What the patches depend on."""
    from importlib.metadata import version

    return f"scikit-image {version('scikit-image')}"


@protocol(
    "face patches",
    metrics={
        "sharpness": "rise of the training loss within the radius, along the gradient",
        "train_loss": "cross entropy on the training patches where training stopped",
        "epochs": "passes over the training patches until then",
        "accuracy": "accuracy on the test patches",
    },
    settings=(
        Setting(
            "patches", str, "lfw", "lfw: 200 patches of scikit-image, half of them faces",
            signature="paperworks.papers.protocols.sharpness_tasks:faces_signature",
        ),
        Setting("train_size", int, Tiers(smoke=40, desk=120), "training patches", _positive),
        Setting("target_loss", float, Tiers(smoke=0.6, desk=0.1), "training ends where the loss is at most this",
                _positive),
        Setting("max_epochs", int, Tiers(smoke=2, desk=60), "or after so many passes", _positive),
        Setting("measured_rho", float, 0.05, "radius within which the rise is measured", _positive),
        *NETWORK,
    ),
)  # fmt: skip
def face_patches(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train on faces against other patches until the training loss is down to the target, then measure its sharpness.

    The loss along the climb, and test patches with the probability of a face, are kept as curves.
    """
    from paperworks.papers.protocols.sharpness_training import train_on_faces

    return train_on_faces(trial, arm)
