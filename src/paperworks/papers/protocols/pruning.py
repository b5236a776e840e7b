"""One-shot pruning: train a network once a seed, prune it by every arm, test it, with or without training on."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.images import _fraction, _positive

DATA = Setting(
    "data",
    str,
    "digits?size=16",
    "digits, imagefolder:PATH, npz:PATH, idx:PATH or cifar:PATH, with ?size= a multiple of what the model takes",
    signature="paperworks.data.images:data_signature",
)
MODEL = Setting(
    "model",
    str,
    "swin",
    "swin (a small one for images of 16 pixels and more), package.module:factory, or a transformers id or folder",
    signature="paperworks.papers.protocols.pruning_training:network_signature",
)
RATIO = Setting("ratio", float, 0.8, "part of the prunable weights that goes", _fraction)


def _not_negative(value: float) -> None:
    if value < 0:
        raise ValueError(f"got {value}, wanted 0 or more")


@protocol(
    "one-shot pruning",
    metrics={
        "accuracy": "test accuracy in per cent after pruning, and after fine-tuning where finetune_epochs > 0",
        "dense_accuracy": "test accuracy in per cent before pruning",
        "points_lost": "dense_accuracy - accuracy",
        "macs_removed": "per cent of the multiply-adds that go, counted layer by layer from the masks",
        "dead_neurons": "per cent of the hidden neurons of the MLPs whose row of fc1 or column of fc2 is all 0",
    },
    settings=(
        DATA,
        MODEL,
        RATIO,
        Setting("initial_deviation", float, 0.1, "standard deviation of the initial weights of `swin`", _positive),
        Setting("epochs", int, Tiers(smoke=1, desk=12, gpu=100), "passes of the dense training", _positive),
        Setting("batch_size", int, Tiers(smoke=32, gpu=128), "images a step", _positive),
        Setting("lr", float, Tiers(smoke=3e-3, gpu=1e-3), "peak learning rate of the dense training", _positive),
        Setting("weight_decay", float, 0.05, "decay of matrices and filters, of nothing else"),
        Setting("augment", bool, Tiers(smoke=False, gpu=True), "random crops and mirror images"),
        Setting("test_fraction", float, 0.5, "part held out where the data has no test part of its own", _fraction),
        Setting("train_size", int, Tiers(smoke=200, desk=0), "training images kept, stratified; 0 keeps all"),
        Setting("sweep", bool, False, "keep the accuracy at other ratios, too, as a curve"),
        Setting("finetune_epochs", int, 0, "passes after pruning, with the removed weights at 0", _not_negative),
        Setting("finetune_lr", float, 2e-4, "peak learning rate after pruning", _positive),
    ),
    time_limit=3600.0,
    preload=("transformers.models.swin.modeling_swin",),
)
def pruning(trial: Trial, arm: Arm) -> dict[str, float]:
    """The arm's target is called as `target(model, ratio)`, prunes in place and returns `Masks`.

    The seed sets split, weights and batches; all arms of a seed prune the same trained network. The kept part
    of each layer, and with `sweep` the accuracy by ratio, are kept as curves.
    """
    from paperworks.papers.protocols.pruning_training import prune_and_test

    return prune_and_test(trial, arm)
