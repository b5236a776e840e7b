"""Image classification: train one network, with one activation function at every site, and test it."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial

DATA = Setting(
    "data",
    str,
    "digits",
    "digits, imagefolder:PATH, npz:PATH, idx:PATH (MNIST's layout) or cifar:PATH",
    signature="paperworks.data.images:data_signature",
)
MODEL = Setting(
    "model",
    str,
    Tiers(smoke="convnet", gpu="resnet18"),
    "a network of paperworks.papers.protocols.networks, package.module:factory, or a transformers id or folder",
    signature="paperworks.papers.protocols.networks:network_signature",
)


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


def _fraction(value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"got {value}, wanted a number between 0 and 1")


def _optimizer(value: str) -> None:
    if value not in ("adamw", "sgd"):
        raise ValueError(f"got {value!r}, wanted adamw or sgd")


TRAINING = (
    Setting("epochs", int, Tiers(smoke=1, desk=20, gpu=30, full=200), "passes over the training part", _positive),
    Setting("batch_size", int, Tiers(smoke=64, gpu=128), "images a step", _positive),
    Setting("lr", float, Tiers(smoke=2e-3, full=0.1), "peak learning rate", _positive),
    Setting("weight_decay", float, Tiers(smoke=1e-4, full=5e-4), "decay of matrices and filters, of nothing else"),
    Setting("optimizer", str, Tiers(smoke="adamw", full="sgd"), "adamw, or sgd with momentum 0.9", _optimizer),
    Setting("schedule", str, Tiers(smoke="constant", gpu="cosine"), "constant or cosine"),
    Setting("augment", bool, Tiers(smoke=False, gpu=True), "random crops and mirror images"),
    Setting("test_fraction", float, 0.5, "part held out where the data has no test part of its own", _fraction),
    Setting("train_size", int, Tiers(smoke=200, desk=0), "training images kept, stratified; 0 keeps all"),
    Setting("evaluate_every", int, 1, "epochs between two tests; 0 tests after the last epoch only"),
    Setting("target_accuracy", float, 0.85, "test accuracy that epochs_to_target waits for", _fraction),
)


@protocol(
    "image classification",
    metrics={
        "accuracy": "test accuracy after the last epoch",
        "loss": "test cross entropy after the last epoch",
        "epochs_to_target": "epochs until the test accuracy first reached target_accuracy; epochs + 1 if it never did",
        "learned_parameter": "median over the layers of the activation's first parameter; 0 where it has none",
    },
    settings=(DATA, MODEL, *TRAINING),
    time_limit=3600.0,
)
def classification(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train the network of the settings with the arm's activation; the seed sets split, weights and batches.

    All arms of a seed start from the same weights and see the same batches. Accuracy by epoch, and the activation's
    parameters by depth, are kept as curves.
    """
    from paperworks.papers.protocols.training import train_classifier

    return train_classifier(trial, arm)
