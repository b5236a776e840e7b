"""The training loop of the lesion protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from paperworks.data.brain_tumours import CONTRASTS, FOLDS, REGIONS, BraTSVolumes, simulate_lesions
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.learning_rates import warm_up_then_cosine
from paperworks.papers.protocols.training import batches, parameter_groups
from paperworks.swin.swin_unetr import dice_score, predict_volume, soft_dice_loss

Example = tuple[Tensor, Tensor]


def _forever(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[Example]:
    while True:
        for index in batches(len(images), size, generator):
            yield images[index], labels[index]


def _crops(cases: BraTSVolumes, size: int, generator: torch.Generator) -> Iterator[Example]:
    while True:
        for batch in DataLoader(cases, size, shuffle=True, generator=generator):
            yield batch["image"], batch["label"]


def _brats(trial: Trial, **options: Any) -> BraTSVolumes:
    root = Path(trial.settings["data"].removeprefix("brats:"))
    folds = root / "folds.json"
    return BraTSVolumes(root, fold=trial.seed % FOLDS, folds=folds if folds.is_file() else None, **options)


def build(trial: Trial, arm: Arm) -> nn.Module:
    """The arm's network for the trial's images."""
    axes = trial.settings["axes"] if trial.settings["data"] == "simulated" else 3
    with trial.global_generators("weights"):
        model: nn.Module = arm.build(
            len(CONTRASTS), len(REGIONS), feature_size=trial.settings["feature_size"], spatial_dims=axes
        )
    return model.to(trial.device)


def fit(trial: Trial, model: nn.Module, examples: Iterator[Example]) -> list[float]:
    """Train on batches (images, labels); the loss of each step."""
    settings, steps = trial.settings, trial.settings["steps"]
    device = torch.device(trial.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings["weight_decay"]), lr=settings["lr"])
    schedule = warm_up_then_cosine(optimizer, steps, max(1, steps // 16))
    model.train()
    losses = []
    with trial.global_generators("training"):
        for step in range(steps):
            images, labels = next(examples)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(images.to(device))
            # pooled over the batch: an image without a region has no gradient for it by itself
            pooled = (t.transpose(0, 1).flatten(1).unsqueeze(0) for t in (logits.float(), labels.to(device)))
            loss = soft_dice_loss(*pooled)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if step % 10 == 9:
                trial.progress(0.95 * (step + 1) / steps, f"step {step + 1}/{steps}, loss {losses[-1]:.3f}")
    return losses


@torch.no_grad()
def _pooled(trial: Trial, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[list[float], Tensor]:
    """Dice scores over all images at once, and the segmentations."""
    model.eval()
    found = torch.cat([model(some.to(trial.device)).cpu() > 0 for some in images.split(16)])
    return dice_score(found.transpose(0, 1), labels.transpose(0, 1)).tolist(), found


def _by_case(trial: Trial, model: nn.Module, cases: BraTSVolumes) -> list[float]:
    """Mean over cases of the Dice scores of whole volumes."""
    scores = []
    roi = (trial.settings["size"],) * 3
    for i in range(len(cases)):
        case = cases[i]
        logits = predict_volume(model, case["image"], roi, trial.settings["overlap"])
        scores.append(dice_score(logits > 0, case["label"]).nan_to_num(1.0))
    return torch.stack(scores).mean(0).tolist()


def show(trial: Trial, image: Tensor, label: Tensor, found: Tensor, name: str) -> None:
    """Keep one picture as curves: two contrasts, and how many regions hold each voxel in truth and in what was found.

    Of a volume, the slice with most tumour.
    """
    while label.dim() > 3:
        at = int(label.sum((0, *range(1, label.dim() - 1))).argmax())
        image, label, found = image[..., at], label[..., at], found[..., at]
    trial.curve(f"{name}: width", [image.shape[-1]])
    for part, values in (
        ("FLAIR", image[0]),
        ("T1 with agent", image[1]),
        ("truth", label.sum(0)),
        ("found", found.sum(0)),
    ):
        trial.curve(f"{name}: {part}", values.flatten().tolist())


def train_and_score(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.lesions.lesions`."""
    settings, size = trial.settings, trial.settings["size"]
    model = build(trial, arm)
    order = trial.generator("batches")
    if settings["data"] == "simulated":
        shape, context = (size,) * settings["axes"], settings["context"]
        train = simulate_lesions(settings["train_size"], shape, trial.generator("training images"), context=context)
        test = simulate_lesions(settings["test_size"], shape, trial.generator("test images"), context=context)
        losses = fit(trial, model, _forever(train.images, train.labels, settings["batch_size"], order))
        scores, found = _pooled(trial, model, test.images, test.labels)
        for i in range(2):
            show(trial, test.images[i], test.labels[i], found[i], ("not enhancing", "enhancing")[i])
    else:
        train_cases = _brats(trial, split="train", crop=(size,) * 3, generator=trial.generator("crops"))
        losses = fit(trial, model, _crops(train_cases, settings["batch_size"], order))
        if settings["test"]:
            cases = BraTSVolumes(settings["test"], "all", None, augment=False)
        else:
            cases = _brats(trial, split="val", crop=None, augment=False)
        scores = _by_case(trial, model, cases)
        case = cases[0]
        logits = predict_volume(model, case["image"], (size,) * 3, settings["overlap"])
        show(trial, case["image"], case["label"], logits > 0, "enhancing")
    trial.curve("loss", losses)
    tc, wt, et = scores
    return {
        "dice": (tc + wt + et) / 3,
        "dice_tc": tc,
        "dice_wt": wt,
        "dice_et": et,
        "dice_near": (tc + wt) / 2,
        "far_minus_near": et - (tc + wt) / 2,
        "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
    }
