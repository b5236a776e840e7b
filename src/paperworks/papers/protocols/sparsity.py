"""Activation sparsity of a language model: sparsify a trained one, and decode with a published one."""

from __future__ import annotations

import dataclasses
from typing import Any

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.language import TASK, above_zero, at_least_one

_SIZES: dict[str, Any] = {
    "language_model": "llama",
    "batch_size": Tiers(smoke=8, desk=16, gpu=64),
    "context": Tiers(smoke=32, gpu=256),
    "layers": Tiers(smoke=2, gpu=8),
    "dim": Tiers(smoke=32, desk=64, gpu=384),
    "heads": Tiers(smoke=2, desk=4, gpu=6),
    "validation_windows": Tiers(smoke=32, desk=128, gpu=0),
}


@protocol(
    "activation sparsity",
    metrics={
        "validation_loss": "cross entropy in nats a token on held-out blocks at the end",
        "sparsity": "percent of exact zeros in x1 on the held-out blocks, mean over the layers",
        "least_sparse_layer": "percent of exact zeros in the layer that has fewest",
    },
    settings=(
        *(dataclasses.replace(s, default=_SIZES.get(s.name, s.default)) for s in TASK),
        Setting("base_steps", int, Tiers(smoke=10, desk=300, gpu=3000), "steps of the SiLU model", at_least_one),
        Setting("base_lr", float, Tiers(smoke=5e-3, gpu=1e-3), "their peak learning rate", above_zero),
        Setting("steps", int, Tiers(smoke=10, desk=200, gpu=3000), "steps of continual training", at_least_one),
        Setting("lr", float, Tiers(smoke=3e-3, gpu=5e-4), "their peak learning rate", above_zero),
    ),
    time_limit=4 * 3600.0,
    preload=("transformers.models.llama.modeling_llama",),
)
def sparsification(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train a model with SiLU, put ReLU in its place and train on by the arm's recipe; the seed sets everything else.

    All arms of a seed go on from one SiLU model and see the same windows; arms with the same training share it. A
    checkpoint of the user's (`language_model`) is taken as trained, with no base steps. Sparsity and factor by step,
    and sparsity by layer, are kept as curves.
    """
    from paperworks.papers.protocols.sparsity_training import sparsify_language_model

    return sparsify_language_model(trial, arm)


@protocol(
    "sparse decoding",
    metrics={
        "speedup": "median over rounds of dense time / sparse time to decode the same tokens",
        "sparsity": "percent of exact zeros in x1 on the documents, mean over the layers",
        "recall": "percent of the active channels that the predictors name; 100 without predictors",
        "predicted_sparsity": "percent of the channels that the predictors leave out; 0 without predictors",
    },
    settings=(
        Setting("checkpoint", str, "", "folder of a sparse model, such as prosparse-llama-2-7b"),
        Setting("documents", str, "", "folder of .txt or .jsonl files (field `text`)"),
        Setting("context", int, Tiers(smoke=32, desk=512, full=4096), "tokens of a window", at_least_one),
        Setting("windows", int, Tiers(smoke=2, desk=8, gpu=16), "windows that sparsity and recall are measured on"),
        Setting("predictor_windows", int, Tiers(smoke=4, desk=64, gpu=800), "windows that predictors are trained on"),
        Setting("new_tokens", int, Tiers(smoke=4, desk=16, gpu=64), "tokens decoded in a round", at_least_one),
        Setting("rounds", int, Tiers(smoke=6, desk=10), "interleaved rounds"),
        Setting("dtype", str, Tiers(smoke="float32", gpu="bfloat16"), "float32 or bfloat16"),
    ),
    exclusive=True,
    time_limit=4 * 3600.0,
    memory_limit_gib=120.0,
)
def sparse_decoding(trial: Trial, arm: Arm) -> dict[str, float]:
    """Decode with the checkpoint, sparse beside dense, one token at a time; the seed sets the documents used.

    An arm decodes at the checkpoint's threshold or another, with predictors trained here or without.
    """
    from paperworks.papers.protocols.sparsity_decoding import decode

    return decode(trial, arm)
