"""The training loop of the language modelling protocol."""

from __future__ import annotations

import statistics

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


def train_language_model(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.language.language_modelling`."""
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
        report = replace_activations(model, arm.build)
        if not report.replaced:
            raise ValueError(f"language_model: {settings['language_model']!r} has no activation that can be replaced")
        model.to(trial.device)
    train, held_out = held_out_split(tokens.encode(text), context, trial.derived_seed("split") % 2**31)
    inputs, targets = all_windows(held_out, context)
    if 0 < settings["validation_windows"] < len(inputs):
        kept = torch.linspace(0, len(inputs) - 1, settings["validation_windows"]).long()
        inputs, targets = inputs[kept], targets[kept]
    steps: int = settings["steps"]
    optimizer = torch.optim.AdamW(parameter_groups(model, settings["weight_decay"]), lr=settings["lr"])
    schedule = warm_up_then_cosine(optimizer, steps)
    order = trial.generator("batches")
    evaluated = {max(1, round(steps * part / EVALUATIONS)) for part in range(1, EVALUATIONS + 1)}
    losses: list[float] = []
    with trial.global_generators("training"):  # for a checkpoint with dropout
        for step in range(1, steps + 1):
            model.train()
            batch = sample_windows(train, batch_size=settings["batch_size"], length=context, generator=order)
            optimizer.zero_grad()
            loss = next_token_losses(model, *(part.to(trial.device) for part in batch)).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            if step in evaluated:
                losses.append(validation_loss(model, (inputs, targets), trial.device, settings["batch_size"]))
                trial.progress(step / steps, f"step {step}/{steps}, validation loss {losses[-1]:.3f}")
    learned = learned_parameters(report)
    trial.curve("validation loss", losses)
    trial.curve("learned parameter by depth", learned)
    return {"validation_loss": losses[-1], "learned_parameter": statistics.median(learned) if learned else 0.0}
