"""Language modelling: train one causal language model, with one activation function in every MLP, and validate it."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial

LANGUAGE_MODEL = Setting(
    "language_model",
    str,
    "gpt2",
    "gpt2, llama, mamba or mamba2 (small, random weights), a folder saved by transformers, or a transformers id",
    signature="paperworks.papers.protocols.language_models:language_model_signature",
)
TEXT = Setting(
    "text",
    str,
    Tiers(smoke="topics", gpu="docstrings"),
    "docstrings or topics (both come with Python), or text:PATH, a file or a folder of .txt files",
    signature="paperworks.data.sources:data_signature",
)


def at_least_one(value: float) -> None:
    """Raise ValueError for a number below one."""
    if value < 1:
        raise ValueError(f"got {value}, wanted 1 or more")


def above_zero(value: float) -> None:
    """Raise ValueError for a number that is not above zero."""
    if not value > 0:
        raise ValueError(f"got {value}, wanted a number > 0")


TASK = (
    TEXT,
    LANGUAGE_MODEL,
    Setting("batch_size", int, Tiers(smoke=16, gpu=64), "windows a step", at_least_one),
    Setting("weight_decay", float, 0.01, "decay of matrices, of nothing else"),
    Setting("context", int, Tiers(smoke=32, gpu=256), "tokens of a window", at_least_one),
    Setting("layers", int, Tiers(smoke=2, gpu=6), "blocks of a model made here", at_least_one),
    Setting("dim", int, Tiers(smoke=64, gpu=384), "width of a model made here", at_least_one),
    Setting("heads", int, Tiers(smoke=4, gpu=6), "attention heads of a model made here", at_least_one),
    Setting("validation_windows", int, Tiers(smoke=32, desk=256, gpu=0), "held-out windows; 0 takes all"),
)
"""What `language_task` and `fit` of `paperworks.papers.protocols.language_training` read."""


@protocol(
    "language modelling",
    metrics={
        "validation_loss": "cross entropy in nats a token on held-out blocks after the last step",
        "learned_parameter": "median over the layers of the activation's first parameter; 0 where it has none",
    },
    settings=(
        *TASK,
        Setting("steps", int, Tiers(smoke=5, desk=500, gpu=3000), "optimiser steps", at_least_one),
        Setting("lr", float, Tiers(smoke=5e-3, gpu=1e-3), "peak learning rate of AdamW", above_zero),
    ),
    time_limit=4 * 3600.0,
    preload=("transformers.models.gpt2.modeling_gpt2",),
)
def language_modelling(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train the model of the settings with the arm's activation; the seed sets held-out blocks, weights and batches.

    A model made here reads characters, a checkpoint the tokens of its own tokenizer. All arms of a seed start from the
    same weights and see the same windows. The validation loss through training is kept as a curve.
    """
    from paperworks.papers.protocols.language_training import train_language_model

    return train_language_model(trial, arm)
