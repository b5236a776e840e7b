"""The training loop of the image classification protocol."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.data.images import ImageData, load_images
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.networks import build_network
from paperworks.surgery.activations import ReplacementReport, replace_activations


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices and filters are decayed; biases, gains and the parameters of activations are not."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    spared = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index batches of one epoch in random order."""
    yield from torch.randperm(n, generator=generator).split(size)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random shifts by up to an eighth of the size (zero padding) and random mirror images, one draw an image."""
    n, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = functional.pad(images, (pad, pad, pad, pad))
    down, right = (torch.randint(0, 2 * pad + 1, (n, 1), generator=generator) for _ in range(2))
    rows = (down + torch.arange(height)).to(images.device)
    columns = (right + torch.arange(width)).to(images.device)
    mirrored = torch.rand(n, 1, generator=generator).to(images.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    picture = torch.arange(n, device=images.device)[:, None, None]
    return padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def evaluate(model: nn.Module, data: ImageData, device: str, batch_size: int = 512) -> tuple[float, float]:
    """Accuracy and mean cross entropy on `data`."""
    model.eval()
    correct, loss = 0, 0.0
    for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True):
        logits = model(images.to(device))
        correct += int((logits.argmax(1).cpu() == labels).sum())
        loss += float(functional.cross_entropy(logits, labels.to(device), reduction="sum"))
    return correct / len(data.labels), loss / len(data.labels)


def learned_parameters(report: ReplacementReport) -> list[float]:
    """The mean of the first parameter of each replaced activation, by depth; empty where they have none."""
    found = []
    for name in report.replaced:
        parameter = next(report.model.get_submodule(name).parameters(), None)
        if parameter is not None:
            found.append(float(parameter.detach().float().mean()))
    return found


def train_classifier(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.images.classification`."""
    settings = trial.settings
    train, test = load_images(settings["data"]).split(
        trial.derived_seed("split") % 2**31, test_fraction=settings["test_fraction"]
    )
    if 0 < settings["train_size"] < len(train.labels):
        train = train.subset(settings["train_size"], trial.derived_seed("subset") % 2**31)
    with trial.global_generators("weights"):
        model = build_network(settings["model"], train)
        report = replace_activations(model, arm.build)
        if not report.replaced:
            raise ValueError(f"model: {settings['model']!r} has no activation module that can be replaced")
        model.to(trial.device)
    optimizer: torch.optim.Optimizer
    groups = parameter_groups(model, settings["weight_decay"])
    if settings["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(groups, lr=settings["lr"], momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=settings["lr"], fused=True)
    epochs: int = settings["epochs"]
    schedule = None
    if settings["schedule"] == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order, shifts = trial.generator("batches"), trial.generator("augmentation")
    accuracies: dict[int, float] = {}
    loss, every = float("nan"), settings["evaluate_every"] or epochs
    with trial.global_generators("training"):  # for a network with dropout
        for epoch in range(epochs):
            model.train()
            for index in batches(len(train.labels), settings["batch_size"], order):
                images = train.images[index]
                if settings["augment"]:
                    images = augmented(images, shifts)
                logits = model(images.to(trial.device))
                optimizer.zero_grad()
                functional.cross_entropy(logits, train.labels[index].to(trial.device)).backward()
                optimizer.step()
            if schedule is not None:
                schedule.step()
            if (epoch + 1) % every == 0 or epoch + 1 == epochs:
                accuracies[epoch + 1], loss = evaluate(model, test, trial.device)
            trial.progress((epoch + 1) / epochs, f"epoch {epoch + 1}/{epochs}")
    reached = [epoch for epoch, accuracy in accuracies.items() if accuracy >= settings["target_accuracy"]]
    learned = learned_parameters(report)
    trial.curve("epoch", list(accuracies))
    trial.curve("accuracy", list(accuracies.values()))
    trial.curve("learned parameter by depth", learned)
    return {
        "accuracy": accuracies[epochs],
        "loss": loss,
        "epochs_to_target": float(reached[0] if reached else epochs + 1),
        "learned_parameter": statistics.median(learned) if learned else 0.0,
    }
