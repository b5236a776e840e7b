"""Class-incremental learning: digits in five tasks of two classes, one pass, tested on all ten classes at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.images import DATA


def learner(activation: str, options: Mapping[str, Any] | None = None, lr: float = 0.01) -> tuple[Arm, float]:
    """An arm of this protocol: the activation of the hidden layer and the learning rate of Adagrad."""
    return Arm("activation", activation, options or {}), lr


@protocol(
    "class-incremental learning",
    metrics={
        "accuracy": "accuracy over all classes after the last task",
        "forgetting": "mean over the earlier tasks of the accuracy right after the task minus that at the end",
    },
    settings=(
        DATA,
        Setting("hidden", int, Tiers(smoke=100, desk=1000), "units of the hidden layer"),
        Setting("batch_size", int, 16, "images a step"),
        Setting("classes_a_task", int, 2, "classes that arrive together"),
    ),
)
def class_incremental(trial: Trial, arm: Arm) -> dict[str, float]:
    """One hidden layer with row-centred, unit-norm weights for every arm; Adagrad, one pass, no replay."""
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.utils import parametrize

    from paperworks.activations.ash import CentredUnitRows
    from paperworks.data.images import load_images

    activation, lr = arm.build()
    train, test = load_images(trial.settings["data"]).split(trial.derived_seed("split") % 2**31, test_fraction=0.5)
    features = train.images[0].numel()
    with trial.global_generators("weights"):
        hidden = nn.Linear(features, trial.settings["hidden"], bias=False)
        parametrize.register_parametrization(hidden, "weight", CentredUnitRows())
        model = nn.Sequential(
            nn.Flatten(), hidden, activation.build(), nn.Linear(trial.settings["hidden"], train.num_classes)
        ).to(trial.device)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=lr)
    step = trial.settings["classes_a_task"]
    order = torch.randperm(train.num_classes, generator=trial.generator("tasks"))
    batches = trial.generator("batches")

    @torch.no_grad()
    def accuracy(classes: torch.Tensor) -> float:
        kept = torch.isin(test.labels, classes)
        predicted = model(test.images[kept].to(trial.device)).argmax(1).cpu()
        return float((predicted == test.labels[kept]).float().mean())

    tasks = order.split(step)
    after = []
    for t, classes in enumerate(tasks):
        of_task = torch.isin(train.labels, classes).nonzero()[:, 0]
        of_task = of_task[torch.randperm(len(of_task), generator=batches)]
        for index in of_task.split(trial.settings["batch_size"]):
            optimizer.zero_grad()
            logits = model(train.images[index].to(trial.device))
            functional.cross_entropy(logits, train.labels[index].to(trial.device)).backward()
            optimizer.step()
        after.append(accuracy(classes))
        trial.progress((t + 1) / len(tasks), f"task {t + 1}/{len(tasks)}")
    final = accuracy(torch.arange(train.num_classes))
    lost = [before - accuracy(classes) for before, classes in zip(after[:-1], tasks[:-1], strict=True)]
    return {"accuracy": final, "forgetting": sum(lost) / len(lost)}
