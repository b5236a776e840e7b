"""The work of the protocol on image classification by whole networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from paperworks.data.images import load_images
from paperworks.kan.fitting import held_then_cosine
from paperworks.kan.selectable import SelectionSchedule, compacted, selecting_layers
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols.function_trials import HELD
from paperworks.papers.protocols.training import augmented, batches, evaluate


def train_network(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.kan_images.network_classification`."""
    settings = trial.settings
    train, test = load_images(settings["data"]).split(
        trial.derived_seed("split") % 2**31, test_fraction=settings["test_fraction"]
    )
    if 0 < settings["train_size"] < len(train.labels):
        train = train.subset(settings["train_size"], trial.derived_seed("subset") % 2**31)
    options = dict(arm.options)
    lr = options.pop("lr", settings["lr"])
    with trial.global_generators("weights"):
        model = Arm(arm.name, arm.target, options).build(train.num_classes, train.in_channels, train.image_size)
    model.to(trial.device)
    epochs, size = settings["epochs"], settings["batch_size"]
    steps = epochs * -(-len(train.labels) // size)
    start, step = round(HELD * steps), 0
    schedule = SelectionSchedule(model, steps) if selecting_layers(model) else None
    optimizer = _adam(model, lr)
    order, shifts = trial.generator("batches"), trial.generator("augmentation")
    for epoch in range(epochs):
        model.train()
        for index in batches(len(train.labels), size, order):
            images = train.images[index]
            images = (augmented(images, shifts) if settings["augment"] else images).to(trial.device)
            for group in optimizer.param_groups:
                group["lr"] = lr * held_then_cosine(step, start, steps)
            optimizer.zero_grad()
            functional.cross_entropy(model(images), train.labels[index].to(trial.device)).backward()
            optimizer.step()
            step += 1
            if schedule is not None:
                chosen = bool(schedule.choices)
                schedule.step(train.images[:512].to(trial.device))
                optimizer = optimizer if bool(schedule.choices) == chosen else _adam(model, lr)
        trial.progress((epoch + 1) / epochs, f"epoch {epoch + 1}/{epochs}")
    if schedule is not None:
        for at, choice in enumerate(schedule.choices):
            trial.curve(f"choice of layer {at}", choice.tolist())
        model = compacted(model)
    accuracy, loss = evaluate(model, test, trial.device)
    return {
        "accuracy": accuracy,
        "loss": loss,
        "parameters": float(count_parameters(model, trainable=True)),
        "multiply_adds": float(count_multiply_adds(model.eval(), test.images[:1].to(trial.device)).macs),
    }


def _adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr, fused=True)
