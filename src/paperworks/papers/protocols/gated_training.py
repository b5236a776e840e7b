"""The training of the picture crops protocol."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.data.images import load_images
from paperworks.data.picture_crops import picture_crops
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.training import batches
from paperworks.swin.gated_swinrmt import GatedSwinRMT
from paperworks.swin.gated_swinrmt.windows import MapWindows

WIDEST = 1024
"""Channels for which truncated normal weights of deviation 0.02 were meant."""
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def images_of(trial: Trial, size: int) -> tuple[Split, int]:
    """(training images, labels, test images, labels) of `size` pixels, and the number of classes."""
    settings = trial.settings
    if settings["data"] == "pictures":
        train = picture_crops(settings["train_size"], size, trial.generator(f"training crops of {size}"))
        test = picture_crops(settings["test_size"], size, trial.generator(f"test crops of {size}"), held_out=True)
        return (train.images, train.labels, test.images, test.labels), len(train.classes)
    data = load_images(settings["data"])
    small = data.resize(size)
    parts = small.split(trial.derived_seed("split") % 2**31, test_fraction=0.5)
    limits = (settings["train_size"], settings["test_size"])
    kept = [
        part.subset(limit, trial.derived_seed("subset") % 2**31) if limit < len(part) else part
        for part, limit in zip(parts, limits, strict=True)
    ]
    (first, second) = (_standardised(part.images) for part in kept)
    return (first, kept[0].labels, second, kept[1].labels), data.num_classes


def _standardised(images: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(images, (1, 2, 3), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp(min=1e-6)


def small_network(trial: Trial, arm: Arm, channels: int, classes: int) -> GatedSwinRMT:
    """The arm's backbone at the size of the settings; weights of the deviation that 0.02 is at full width."""
    width, stages = trial.settings["width"], trial.settings["stages"]
    depths = (2,) * stages if stages > 2 else (2, *(1,) * (stages - 1))
    with trial.global_generators("weights"):
        model: GatedSwinRMT = arm.build(
            classes,
            in_chans=channels,
            embed_dims=tuple(width * 2**i for i in range(stages)),
            depths=depths,
            num_heads=tuple(2 * 2**i for i in range(stages)),
            mlp_ratios=(2,) * stages,
            window_size=trial.settings["window"],
            drop_path_rate=0.0,
            projection=2 * width,
        )
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02 * math.sqrt(WIDEST / module.in_features))
    return model.to(trial.device)


def parameter_groups(model: GatedSwinRMT, weight_decay: float) -> list[dict[str, object]]:
    """Decayed matrices and filters, and what is spared."""
    spared = model.no_weight_decay()
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name not in spared], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in spared], "weight_decay": 0.0},
    ]


def _trained(trial: Trial, arm: Arm, size: int, done: float) -> tuple[GatedSwinRMT, float, Tensor]:
    """The network trained on images of `size`, its test accuracy, and the test images."""
    settings, device = trial.settings, trial.device
    (images, labels, test, test_labels), classes = images_of(trial, size)
    model = small_network(trial, arm, images.shape[1], classes)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings["weight_decay"]), lr=settings["lr"], fused=True)
    epochs, order = settings["epochs"], trial.generator(f"batches of {size}")
    steps = epochs * -(-len(labels) // settings["batch_size"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["lr"], total_steps=steps + 1, pct_start=0.2)
    accuracies = []
    for epoch in range(epochs):
        model.train()
        for index in batches(len(labels), settings["batch_size"], order):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index].to(device)), labels[index].to(device)).backward()
            optimizer.step()
            schedule.step()
        trial.progress(done + (epoch + 1) / epochs / 2, f"{size} pixels, epoch {epoch + 1}/{epochs}")
    model.eval()
    with torch.no_grad():
        for some, answers in zip(test.split(256), test_labels.split(256), strict=True):
            accuracies.append((model(some.to(device)).argmax(1).cpu() == answers).float())
    return model, float(torch.cat(accuracies).mean()), test


def train_at_both_sizes(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.gated_crops.picture_classification`."""
    model, large, test = _trained(trial, arm, trial.settings["size"], 0.0)
    trial.curve("test image", test[0, 0].flatten().tolist())
    trial.curve("attention", attention_of_a_token(model, test[:1].to(trial.device)).flatten().tolist())
    _, small, _ = _trained(trial, arm, 4 * trial.settings["window"], 0.5)
    return {"accuracy": large, "accuracy_one_window": small, "windowed_minus_one_window": large - small}


@torch.no_grad()
def attention_of_a_token(model: GatedSwinRMT, image: Tensor) -> Tensor:
    """What the token in the middle of the map takes of every other in the first block, mean over heads: (h, w)."""
    seen: list[Tensor] = []
    attention = model.stages[0][0].attn  # type: ignore[index]
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.forward_features(image)
    hook.remove()
    height, width = model.map_sizes((image.shape[2], image.shape[3]))[0]
    token = (height // 2) * width + width // 2
    if model.variant == "rmt":
        return attention.attention_map(seen[0])[0].mean(0)[token].view(height, width).cpu()
    windows = MapWindows.adapted((height, width), (model.window_size,) * 2, shifted=False)
    places = windows.cut(torch.arange(height * width).view(1, height, width, 1)).flatten(1)
    window = int((places == token).any(1).nonzero())
    masks = windows.masks(image.device)
    weights = attention.attention_map(seen[0], masks)[window].mean(0)[places[window] == token]
    found = torch.zeros(height * width)
    found[places[window]] = weights[0].cpu()
    return found.view(height, width)
