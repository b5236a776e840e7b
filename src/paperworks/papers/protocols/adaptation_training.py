"""The foundation, the rotated task and the training loop of the adaptation protocols."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperworks.data.images import ImageData, load_images
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.adaptation_arms import Adaptation, perceptron, tensor_bytes
from paperworks.papers.protocols.training import batches, evaluate
from paperworks.surgery.recording import Recorder


class Task(NamedTuple):
    """The images of one seed: upright and rotated, to train with and to test with."""

    train: ImageData
    rotated_train: ImageData
    test: ImageData
    rotated_test: ImageData


def rotated(images: Tensor, degrees: float) -> Tensor:
    """(N, C, H, W) images turned counter-clockwise about their centre: bilinear, black where nothing was."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = images.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp_(0, 1)


def _with(data: ImageData, images: Tensor) -> ImageData:
    return ImageData(data.name, images, data.labels, data.classes)


def load_task(trial: Trial) -> Task:
    """The split of the trial's seed, and the same images rotated."""
    settings = trial.settings
    data = load_images(settings["data"])
    data.image_size  # noqa: B018 - says so where images are not square, which a rotation about the centre wants
    train, test = data.split(trial.derived_seed("split") % 2**31, test_fraction=settings["test_fraction"])
    angle = settings["angle"]
    return Task(train, _with(train, rotated(train.images, angle)), test, _with(test, rotated(test.images, angle)))


def foundation(trial: Trial, task: Task, kind: str) -> nn.Module:
    """The network that all arms of a seed start from, trained on upright images or with a half of them rotated."""
    settings = trial.settings
    with trial.global_generators("weights"):
        network = perceptron(task.train.images[0].numel(), settings["hidden"], task.train.num_classes)

    def make() -> dict[str, Tensor]:
        images = task.train.images
        if kind == "mixture":
            turned = torch.rand(len(images), generator=trial.generator("mixture")).argsort() % 2 == 0
            images = torch.where(turned[:, None, None, None], task.rotated_train.images, images)
        trained = network.to(trial.device).train()
        optimizer = torch.optim.Adam(trained.parameters(), lr=settings["foundation_lr"])
        order = trial.generator("foundation batches")
        for _ in range(settings["foundation_epochs"]):
            _epoch(trial, trained, _with(task.train, images), optimizer, order)
        return trained.state_dict()

    names = ("data", "hidden", "angle", "foundation_epochs", "foundation_lr", "batch_size", "test_fraction")
    network.load_state_dict(trial.stage("foundation", make, kind=kind, **{name: settings[name] for name in names}))
    return network.to(trial.device).eval()


def _epoch(
    trial: Trial,
    network: nn.Module,
    data: ImageData,
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    arm: Adaptation | None = None,
) -> None:
    for index in batches(len(data.labels), trial.settings["batch_size"], order):
        images, labels = data.images[index].to(trial.device), data.labels[index].to(trial.device)
        loss = F.cross_entropy(network(images), labels)
        if arm is not None and arm.gates is not None:
            loss = loss + arm.gates.sparsity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_adapter(trial: Trial, arm: Adaptation, task: Task) -> list[float]:
    """Adam on rotated images, without weight decay; the test accuracy on rotated images after each epoch."""
    if arm.prepare is not None:
        arm.prepare(task.rotated_train.images.to(trial.device))
    if not arm.trained:
        return [evaluate(arm.network, task.rotated_test, trial.device)[0]]
    optimizer = torch.optim.Adam(arm.trained, lr=arm.lr)
    order = trial.generator("batches")
    epochs, accuracies = trial.settings["epochs"], []
    for epoch in range(epochs):
        if arm.anneal is not None:
            arm.anneal(epoch / max(1, epochs - 1))
        arm.network.train()
        _epoch(trial, arm.network, task.rotated_train, optimizer, order, arm)
        accuracies.append(evaluate(arm.network, task.rotated_test, trial.device)[0])
        trial.progress((epoch + 1) / epochs, f"epoch {epoch + 1}/{epochs}")
    return accuracies


def adapt(trial: Trial, arm: Arm, kind: str) -> dict[str, float]:
    """Build the foundation and the arm's adapter, train the adapter, and test it."""
    task = load_task(trial)
    network = foundation(trial, task, kind)
    with trial.global_generators("adapter"):  # LoRA draws its first factor
        adapted: Adaptation = arm.build(network)
    adapted.network.to(trial.device)
    accuracies = train_adapter(trial, adapted, task)
    trial.curve("rotated accuracy by epoch", accuracies)
    soft = accuracies[-1]
    upright = evaluate(adapted.network, task.test, trial.device)[0]
    return {
        "accuracy": soft,
        "upright_accuracy": upright,
        "parameters": float(sum(p.numel() for p in adapted.trained)),
        "file_bytes": float(_saved_bytes(adapted)),
        **_gate_metrics(trial, adapted, task, soft),
    }


def _gate_metrics(trial: Trial, arm: Adaptation, task: Task, soft: float) -> dict[str, float]:
    if arm.gates is None:
        share = _strong_share(arm.network, task.rotated_test.images.to(trial.device))
        return {"hard_accuracy": soft, "hard_gap": 0.0, "strong_share": share, "open_share": 1.0}
    report = arm.gates.report([(task.rotated_test.images.to(trial.device), task.rotated_test.labels)])
    for name, gate in arm.gates.gates.items():
        trial.curve(f"thresholds of {name}", gate.tau.detach()[0].tolist())
        trial.curve(f"gains of {name}", gate.gain.detach()[0].tolist())
    arm.gates.harden()
    hard = evaluate(arm.network, task.rotated_test, trial.device)[0]
    arm.gates.harden(False)
    return {
        "hard_accuracy": hard,
        "hard_gap": abs(hard - soft),
        "strong_share": max(site.strong_share for site in report.sites.values()),
        "open_share": max(site.open_share for site in report.sites.values()),
    }


@torch.no_grad()
def _strong_share(network: nn.Module, images: Tensor) -> float:
    """As `SiteReport.strong_share`, larger of the layers, for a network without gates."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]
    with Recorder(network, names, at="output") as recorder:
        network.eval()(images)
    means = [outputs[0].mean(0) for outputs in recorder.values.values()]
    return max(float((mean > mean.max() / 2).double().mean()) for mean in means)


def _saved_bytes(arm: Adaptation) -> int:
    if arm.save is None:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        arm.save(Path(folder))
        return tensor_bytes(Path(folder))
