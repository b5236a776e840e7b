"""The training of the transfer protocol."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.data.images import ImageData, load_images, resize
from paperworks.efficiency.mobiletl.activation import SignedActivation
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.measure.stored_activations import stored_activations
from paperworks.papers.protocols.mobilenets import load_weights
from paperworks.papers.protocols.training import batches
from paperworks.papers.protocols.transfer_networks import build_network, last_linear

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def run_transfer(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.transfer.transfer`."""
    settings = trial.settings
    data = load_images(settings["data"])
    if settings["weights"]:
        data = data if data.in_channels == 3 else data.convert("rgb")
    source, target = (None, data) if _is_pretrained(settings) else _halves(data)
    train, test = _split(target, trial)
    with trial.global_generators("last layer"):
        model = build_network(settings, target.num_classes, target.in_channels)
    if settings["weights"]:
        load_weights(model, settings["weights"])
    elif source is not None:
        state = trial.stage("pretrained", lambda: _pretrained(trial, source), **_identity(settings))
        last = last_linear(model)
        own = {k: v for k, v in state.items() if not k.startswith(f"{last}.")}
        model.load_state_dict(own, strict=False)
    model.to(trial.device)
    with trial.global_generators("arm"):
        model = arm.build(model).to(trial.device)
    images, labels = _batch(train, torch.arange(min(settings["batch_size"], len(train))), trial)
    stored = stored_bytes(model, images)
    cosine = gradient_cosine(model, images, labels)
    _fit(model, train, trial, settings["epochs"], settings["lr"], settings["batch_size"], "transfer")
    accuracy, loss = _evaluate(model, test, trial)
    return {"accuracy": accuracy, "loss": loss, "stored_bytes": float(stored), "gradient_cosine": cosine}


def stored_bytes(model: nn.Module, images: Tensor) -> int:
    """What a training step on `images` keeps, by a pass of a copy."""
    return stored_activations(copy.deepcopy(model).train(), images).bytes


def gradient_cosine(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Cosine of the gradient of all that trains with that of the exact backward pass, in eval mode."""
    trained = copy.deepcopy(model).eval()
    signed = [m for m in trained.modules() if isinstance(m, SignedActivation)]
    if not signed:
        return 1.0

    def gradient() -> Tensor:
        wanted = [p for p in trained.parameters() if p.requires_grad]
        found = torch.autograd.grad(functional.cross_entropy(trained(images), labels), wanted)
        return torch.cat([g.flatten() for g in found])

    by_rule = gradient()
    for module in signed:
        module.backward_rule = "exact"
    return float(functional.cosine_similarity(by_rule, gradient(), dim=0))


def _is_pretrained(settings: Mapping[str, object]) -> bool:
    """Whether the network comes with weights: from a checkpoint, or from a transformers folder or id."""
    from paperworks.papers.protocols.mobilenets import NETWORKS

    return bool(settings["weights"]) or (settings["model"] not in NETWORKS and ":" not in str(settings["model"]))


def _halves(data: ImageData) -> tuple[ImageData, ImageData]:
    """The images of the first half of the classes, and those of the second half, labelled from 0."""
    if data.num_classes < 4:
        raise ValueError(f"data: {data.name} has {data.num_classes} classes, want at least 4 to halve them")
    middle = data.num_classes // 2
    parts = []
    for first, last in ((0, middle), (middle, data.num_classes)):
        index = torch.nonzero((data.labels >= first) & (data.labels < last)).flatten()
        held = None if data.held_out is None else data.held_out[index]
        name = f"{data.name}, classes {first} to {last - 1}"
        parts.append(ImageData(name, data.images[index], data.labels[index] - first, data.classes[first:last], held))
    return parts[0], parts[1]


def _split(target: ImageData, trial: Trial) -> tuple[ImageData, ImageData]:
    seed, n = trial.derived_seed("split") % 2**31, trial.settings["labels"] * target.num_classes
    if n == 0:
        return target.split(seed, test_fraction=trial.settings["test_fraction"])
    rest = len(target) - n if target.held_out is None else int(target.held_out.sum())
    return target.split(seed, sizes=(n, rest))


def _identity(settings: Mapping[str, object]) -> dict[str, object]:
    names = ("data", "model", "width", "stem_stride", "size", "pretraining_epochs", "pretraining_lr")
    return {name: settings[name] for name in names}


def _pretrained(trial: Trial, source: ImageData) -> dict[str, Tensor]:
    settings = trial.settings
    if source.held_out is not None:
        train = torch.nonzero(~source.held_out).flatten()
        source = dataclasses.replace(source, images=source.images[train], labels=source.labels[train], held_out=None)
    with trial.global_generators("weights"):
        model = build_network(settings, source.num_classes, source.in_channels).to(trial.device)
    _fit(model, source, trial, settings["pretraining_epochs"], settings["pretraining_lr"], 32, "pretraining")
    return model.state_dict()


def _batch(data: ImageData, index: Tensor, trial: Trial) -> tuple[Tensor, Tensor]:
    """Images at the size of the settings, normalised where the weights want it, on the trial's device."""
    size = trial.settings["size"]
    images = resize(data.images[index], size, size)
    if trial.settings["weights"]:
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
        images = (images - mean) / deviation
    return images.to(trial.device), data.labels[index].to(trial.device)


def _fit(
    model: nn.Module, data: ImageData, trial: Trial, epochs: int, lr: float, batch_size: int, purpose: str
) -> None:
    """Adam without weight decay, its rate from `lr` to 0 along a cosine, step by step."""
    size = min(batch_size, len(data))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(data) // size))
    order = trial.generator(f"{purpose} batches")
    model.train()
    with trial.global_generators(f"{purpose} dropout"):
        for epoch in range(epochs):
            for index in batches(len(data), size, order):
                if len(index) < size:  # a last batch of one image has no batch statistics
                    continue
                images, labels = _batch(data, index, trial)
                loss = functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            trial.progress((epoch + 1) / epochs, f"{purpose}: epoch {epoch + 1}/{epochs}")


@torch.no_grad()
def _evaluate(model: nn.Module, data: ImageData, trial: Trial) -> tuple[float, float]:
    model.eval()
    correct, total = 0, 0.0
    for index in torch.arange(len(data)).split(256):
        images, labels = _batch(data, index, trial)
        logits = model(images)
        correct += int((logits.argmax(1) == labels).sum())
        total += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return correct / len(data), total / len(data)
