"""The work of the one-shot pruning protocol: a dense network kept for all arms, pruned and tested by each."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.data.images import ImageData, load_images
from paperworks.efficiency.dimap import Masks, finetune, sparse_flops
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.training import augmented, batches, evaluate, parameter_groups
from paperworks.surgery.models import ImageClassifier, load_model, model_signature
from paperworks.surgery.swin_parts import find_attentions, find_mlps

SWEEP = (0.4, 0.6, 0.7, 0.8, 0.9)
"""Ratios of the curve "accuracy by ratio"."""


def swin(num_classes: int, in_channels: int, image_size: int, *, deviation: float = 0.1) -> nn.Module:
    """A Swin of two stages of two blocks, width 32, patch 2, window 4, as transformers builds it.

    `deviation` is that of its initial weights; the library's 0.02 is meant for three times the width.
    """
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=image_size, patch_size=2, num_channels=in_channels, embed_dim=32, depths=[2, 2], num_heads=[2, 4],
        window_size=4, num_labels=num_classes, drop_path_rate=0.0, initializer_range=deviation,
    )  # fmt: skip
    return ImageClassifier(SwinForImageClassification(config))


def build(spec: str, data: ImageData, deviation: float = 0.1) -> nn.Module:
    """The network that `spec` names for `data`: "swin", or what `surgery.models.load_model` takes."""
    if spec == "swin":
        return swin(data.num_classes, data.in_channels, data.image_size, deviation=deviation)
    return load_model(spec, num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size)


def network_signature(spec: str) -> str:
    """Digest of what `spec` names outside this module."""
    return "" if spec == "swin" else model_signature(spec)


def split(trial: Trial) -> tuple[ImageData, ImageData]:
    """Training and test images of the trial's seed."""
    settings = trial.settings
    train, test = load_images(settings["data"]).split(
        trial.derived_seed("split") % 2**31, test_fraction=settings["test_fraction"]
    )
    if 0 < settings["train_size"] < len(train.labels):
        train = train.subset(settings["train_size"], trial.derived_seed("subset") % 2**31)
    return train, test


def train_dense(trial: Trial, train: ImageData) -> dict[str, Tensor]:
    """The state of a network trained with AdamW, warm-up over a tenth of the steps and a cosine to 0."""
    settings = trial.settings
    with trial.global_generators("weights"):
        model = build(settings["model"], train, settings["initial_deviation"]).to(trial.device)
    order, shifts = trial.generator("batches"), trial.generator("augmentation")
    steps = settings["epochs"] * -(-len(train.labels) // settings["batch_size"])
    groups = parameter_groups(model, settings["weight_decay"])
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["lr"], total_steps=steps + 1, pct_start=0.1)
    with trial.global_generators("training"):
        for epoch in range(settings["epochs"]):
            model.train()
            for index in batches(len(train.labels), settings["batch_size"], order):
                images = augmented(train.images[index], shifts) if settings["augment"] else train.images[index]
                optimizer.zero_grad()
                functional.cross_entropy(
                    model(images.to(trial.device)), train.labels[index].to(trial.device)
                ).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
            trial.progress(0.8 * (epoch + 1) / settings["epochs"], f"dense, epoch {epoch + 1}/{settings['epochs']}")
    return model.state_dict()


TRAINED_BY = (
    "data", "model", "initial_deviation", "epochs", "batch_size", "lr", "weight_decay", "augment", "test_fraction",
    "train_size",
)  # fmt: skip


def dense_network(trial: Trial, train: ImageData) -> nn.Module:
    """The trained network of the trial's seed, the same for all arms."""
    identity = {name: trial.settings[name] for name in TRAINED_BY}
    state = trial.stage("dense", lambda: train_dense(trial, train), **identity)
    with trial.global_generators("weights"):
        model = build(trial.settings["model"], train, trial.settings["initial_deviation"])
    model.load_state_dict(state)
    return model.to(trial.device).eval()


class Batches:
    """Batches of an epoch in random order, anew with each pass: what `finetune` takes as a loader."""

    def __init__(self, data: ImageData, size: int, generator: torch.Generator, shifts: torch.Generator | None) -> None:
        self.data, self.size, self.generator, self.shifts = data, size, generator, shifts

    def __len__(self) -> int:
        return -(-len(self.data.labels) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in batches(len(self.data.labels), self.size, self.generator):
            images = self.data.images[index]
            yield (images if self.shifts is None else augmented(images, self.shifts)), self.data.labels[index]


def dead_neurons(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Share of the hidden neurons whose row of fc1 or column of fc2 the masks remove whole."""
    dead = total = 0
    for mlp in find_mlps(model):
        row, column = masks[f"{mlp.fc1[0]}.weight"].any(1), masks[f"{mlp.fc2[0]}.weight"].any(0)
        dead += int((~(row & column)).sum())
        total += len(row)
    return dead / max(1, total)


def kept_by_depth(model: nn.Module, masks: Masks) -> dict[str, list[float]]:
    """Kept part of qkv, proj, fc1 and fc2 of each block; query, key and value counted together."""
    counts = masks.counts()

    def share(names: Iterable[str]) -> float:
        kept, total = map(sum, zip(*(counts[f"{name}.weight"] for name in names), strict=True))
        return kept / total

    attentions, mlps = find_attentions(model), find_mlps(model)
    return {
        "qkv": [share(name for name, _ in a.qkv) for a in attentions],
        "proj": [share([a.proj[0]]) for a in attentions],
        "fc1": [share([mlp.fc1[0]]) for mlp in mlps],
        "fc2": [share([mlp.fc2[0]]) for mlp in mlps],
    }


def accuracy_of(model: nn.Module, test: ImageData, device: str) -> float:
    """Test accuracy in per cent."""
    return 100 * evaluate(model, test, device)[0]


def pruned(dense: nn.Module, arm: Arm, ratio: float) -> tuple[nn.Module, Masks]:
    """A copy of the network pruned by the arm, and its masks."""
    model = copy.deepcopy(dense)
    masks: Any = arm.build(model, ratio)
    return model, masks


def prune_and_test(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.pruning.pruning`."""
    settings = trial.settings
    train, test = split(trial)
    dense = dense_network(trial, train)
    before = accuracy_of(dense, test, trial.device)
    if settings["sweep"]:
        swept = [accuracy_of(pruned(dense, arm, ratio)[0], test, trial.device) for ratio in SWEEP]
        trial.curve("ratio", (0.0, *SWEEP))
        trial.curve("accuracy by ratio", (before, *swept))
    model, masks = pruned(dense, arm, settings["ratio"])
    for kind, shares in kept_by_depth(model, masks).items():
        trial.curve(f"kept of {kind} by depth", shares)
    if settings["finetune_epochs"]:
        loader = Batches(
            train, settings["batch_size"], trial.generator("finetuning"),
            trial.generator("finetuning augmentation") if settings["augment"] else None,
        )  # fmt: skip
        finetune(
            model, masks, loader, epochs=settings["finetune_epochs"], lr=settings["finetune_lr"],
            min_lr=settings["finetune_lr"] / 100, warmup_lr=settings["finetune_lr"] / 1000,
            seed=trial.derived_seed("finetuning") % 2**31, progress=lambda f, text: trial.progress(0.8 + 0.2 * f, text),
        )  # fmt: skip
    after = accuracy_of(model, test, trial.device)
    report = sparse_flops(model, train.image_size, masks)
    return {
        "accuracy": after,
        "dense_accuracy": before,
        "points_lost": before - after,
        "macs_removed": 100 * (1 - report.macs_pruned / report.macs),
        "dead_neurons": 100 * dead_neurons(model, masks),
    }
