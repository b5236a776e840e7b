"""The training loop of the protocol that trains networks."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.nn import functional

from paperworks.data.images import load_images
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols.kan_networks import Squashed
from paperworks.papers.protocols.training import batches, evaluate, parameter_groups


def train_network(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.network_training.network_training`."""
    settings = trial.settings
    train, test = load_images(settings["data"]).split(
        trial.derived_seed("split") % 2**31, test_fraction=settings["test_fraction"]
    )
    if 0 < settings["train_size"] < len(train.labels):
        train = train.subset(settings["train_size"], trial.derived_seed("subset") % 2**31)
    with trial.global_generators("weights"):
        network = arm.build(train.images[0].numel(), train.num_classes)
        if not isinstance(network, nn.Module):
            raise TypeError(f"arm {arm.name}: built {type(network).__name__}, wanted an nn.Module")
        model = nn.Sequential(Squashed(), network).to(trial.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings["weight_decay"]), lr=settings["lr"], fused=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, settings["gamma"])
    epochs, order = settings["epochs"], trial.generator("batches")
    accuracies, seconds, loss = [], [], float("nan")
    with trial.global_generators("training"):  # for a network with dropout
        for epoch in range(epochs):
            model.train()
            for index in batches(len(train.labels), settings["batch_size"], order):
                images, labels = train.images[index].to(trial.device), train.labels[index].to(trial.device)
                start = time.perf_counter()
                optimizer.zero_grad()
                functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                seconds.append(time.perf_counter() - start)
            schedule.step()
            accuracy, loss = evaluate(model, test, trial.device)
            accuracies.append(accuracy)
            trial.progress((epoch + 1) / epochs, f"epoch {epoch + 1}/{epochs}")
    trial.curve("accuracy", accuracies)
    return {
        "accuracy": accuracies[-1],
        "loss": loss,
        "parameters": count_parameters(model, trainable=True),
        "seconds_a_step": statistics.median(seconds),
    }
