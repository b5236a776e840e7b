"""The task and the training loop that every protocol over a small language model shares."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperworks.data.text import all_windows, load_text, sample_windows, split_blocks
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.language_models import (
    CharacterTokens,
    Size,
    Tokens,
    check_context,
    is_made_here,
    load_checkpoint,
    make_language_model,
    next_token_losses,
    warm_up_then_cosine,
)
from paperworks.papers.protocols.training import learned_parameters, parameter_groups
from paperworks.surgery.activations import replace_activations

BLOCK = 4096
EVALUATIONS = 4
GRADIENT_NORM = 1.0

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of the targets in nats."""
    return next_token_losses(model, inputs, targets).mean()


def held_out_split(tokens: Tensor, context: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Training and validation runs of a text: blocks of about a page, smaller where the text is short."""
    return split_blocks(tokens, seed, block=max(2 * context, min(BLOCK, len(tokens) // 20)))


@torch.no_grad()
def validation_loss(model: nn.Module, windows: tuple[Tensor, Tensor], device: str, batch_size: int) -> float:
    """Mean cross entropy in nats a token over `windows`, inputs and targets (W, length)."""
    model.eval()
    total = 0.0
    for start in range(0, len(windows[0]), batch_size):
        inputs, targets = (part[start : start + batch_size].to(device) for part in windows)
        total += float(next_token_losses(model, inputs, targets).double().sum())
    return total / windows[1].numel()


@dataclass(frozen=True)
class LanguageTask:
    """A model with what it is trained and validated on.

    Attributes:
        model: on the trial's device, returns `.logits` for `input_ids`.
        tokens: its tokens.
        train: runs of the training text, int64 tokens.
        validation: held-out inputs and targets, int64 (W, context) each.
    """

    model: nn.Module
    tokens: Tokens
    train: list[Tensor]
    validation: tuple[Tensor, Tensor]


def language_task(trial: Trial) -> LanguageTask:
    """The model and the text of the trial's settings; the seed sets the weights and the held-out blocks.

    Reads the settings `language_model`, `text`, `context`, `validation_windows` and, for a model made here, `layers`,
    `dim` and `heads`: see `paperworks.papers.protocols.language.TASK`.
    """
    settings = trial.settings
    context: int = settings["context"]
    text = load_text(settings["text"])
    with trial.global_generators("weights"):
        tokens: Tokens
        if is_made_here(settings["language_model"]):
            tokens = CharacterTokens(text)
            size = Size(context, settings["layers"], settings["dim"], settings["heads"])
            model = make_language_model(settings["language_model"], tokens.size, size)
        else:
            model, tokens = load_checkpoint(settings["language_model"])
            check_context(model, context)
    train, held_out = held_out_split(tokens.encode(text), context, trial.derived_seed("split") % 2**31)
    inputs, targets = all_windows(held_out, context)
    if 0 < settings["validation_windows"] < len(inputs):
        kept = torch.linspace(0, len(inputs) - 1, settings["validation_windows"]).long()
        inputs, targets = inputs[kept], targets[kept]
    return LanguageTask(model.to(trial.device), tokens, train, (inputs, targets))


def task_loss(task: LanguageTask, trial: Trial) -> float:
    """The validation loss of the task's model, in nats a token."""
    return validation_loss(task.model, task.validation, trial.device, trial.settings["batch_size"])


def fit(
    task: LanguageTask,
    trial: Trial,
    *,
    steps: int,
    lr: float,
    loss: Loss | None = None,
    weight_decay: float | None = None,
    batch_size: int | None = None,
    purpose: str = "batches",
) -> list[float]:
    """Train the task's model in place with AdamW and return the validation losses, at most four, the last at the end.

    The learning rate rises for a tenth of the steps and falls along half a cosine; gradients are clipped to norm 1.

    Args:
        steps: optimiser steps.
        lr: peak learning rate.
        loss: function of (model, inputs, targets), int64 (B, context) twice, to the scalar that is minimised; the mean
            cross entropy by default.
        weight_decay: of matrices, of nothing else; the setting `weight_decay` by default.
        batch_size: windows a step; the setting `batch_size` by default.
        purpose: names the random windows: one seed and purpose always draw the same.
    """
    loss = loss or mean_loss
    model, settings = task.model, trial.settings
    context = task.validation[0].shape[1]
    windows = settings["batch_size"] if batch_size is None else batch_size
    decay = settings["weight_decay"] if weight_decay is None else weight_decay
    optimizer = torch.optim.AdamW(parameter_groups(model, decay), lr=lr)
    schedule = warm_up_then_cosine(optimizer, steps)
    order = trial.generator(purpose)
    evaluated = {max(1, round(steps * part / EVALUATIONS)) for part in range(1, EVALUATIONS + 1)}
    losses: list[float] = []
    with trial.global_generators("training"):  # for a checkpoint with dropout
        for step in range(1, steps + 1):
            model.train()
            batch = sample_windows(task.train, batch_size=windows, length=context, generator=order)
            optimizer.zero_grad()
            loss(model, *(part.to(trial.device) for part in batch)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            if step in evaluated:
                losses.append(task_loss(task, trial))
                trial.progress(step / steps, f"step {step}/{steps}, validation loss {losses[-1]:.3f}")
    return losses


def train_language_model(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.language.language_modelling`."""
    settings = trial.settings
    task = language_task(trial)
    with trial.global_generators("activation"):
        report = replace_activations(task.model, arm.build)
    if not report.replaced:
        raise ValueError(f"language_model: {settings['language_model']!r} has no activation that can be replaced")
    task.model.to(trial.device)
    losses = fit(task, trial, steps=settings["steps"], lr=settings["lr"])
    learned = learned_parameters(report)
    trial.curve("validation loss", losses)
    trial.curve("learned parameter by depth", learned)
    return {"validation_loss": losses[-1], "learned_parameter": statistics.median(learned) if learned else 0.0}
