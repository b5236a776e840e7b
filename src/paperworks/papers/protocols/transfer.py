"""Transfer: a pretrained network of inverted residual blocks learns other classes, trained in part or whole."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.images import _fraction, _positive


def _not_negative(value: float) -> None:
    if value < 0:
        raise ValueError(f"got {value}, wanted 0 or more")


@protocol(
    "transfer",
    metrics={
        "accuracy": "test accuracy on the target classes after the last epoch",
        "loss": "test cross entropy after the last epoch",
        "stored_bytes": "activations that one training step keeps for its backward pass, in bytes",
        "gradient_cosine": "cosine of the first step's gradient with that of the exact backward pass",
    },
    settings=(
        Setting(
            "data",
            str,
            Tiers(smoke="digits"),
            "digits, imagefolder:PATH, npz:PATH, idx:PATH or cifar:PATH",
            signature="paperworks.data.images:data_signature",
        ),
        Setting(
            "model",
            str,
            "mobilenet-v3-small",
            "mobilenet-v2, mobilenet-v3-small, mobilenet-v3-large, package.module:factory, a transformers folder or id",
            signature="paperworks.papers.protocols.transfer_networks:network_signature",
        ),
        Setting(
            "weights",
            str,
            "",
            "checkpoint (.pth, .pt, .safetensors) of torchvision or timm for model; without one the first half of the "
            "classes is the pretraining, and the second half the target",
            signature="paperworks.papers.protocols.transfer_networks:weights_signature",
        ),
        Setting("width", float, 0.5, "width multiplier of the MobileNets here", _positive),
        Setting("stem_stride", int, 1, "stride of their first convolution; checkpoints have 2", _positive),
        Setting("size", int, Tiers(smoke=16, desk=32), "side in pixels that images are brought to", _positive),
        Setting("labels", int, Tiers(smoke=4, desk=20), "labelled images a target class; 0 takes all", _not_negative),
        Setting("test_fraction", float, 0.5, "part held out where labels=0 and no test part is published", _fraction),
        Setting("pretraining_epochs", int, Tiers(smoke=1, desk=4), "passes over the source classes", _positive),
        Setting("pretraining_lr", float, 3e-3, "peak learning rate of pretraining", _positive),
        Setting("epochs", int, Tiers(smoke=1, desk=6), "passes over the labelled images", _positive),
        Setting("lr", float, 1e-2, "peak learning rate of Adam, cosine to 0", _positive),
        Setting("batch_size", int, 10, "images a step in transfer", _positive),
    ),
    time_limit=3600.0,
)
def transfer(trial: Trial, arm: Arm) -> dict[str, float]:
    """Pretrain (or load) a network, give it a new last layer, prepare it as the arm says, train, test.

    The arm's target takes the network and returns it with `requires_grad` as it wants to train. The seed sets the
    pretrained weights, the labelled images and the batches; the arms of a seed share them. Images are normalised by
    ImageNet's mean and deviation where weights are given.
    """
    from paperworks.papers.protocols.transfer_training import run_transfer

    return run_transfer(trial, arm)
