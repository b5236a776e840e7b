"""Direct Preference Optimization: a causal language model learns which of two answers is preferred."""

from __future__ import annotations

import hashlib
from pathlib import Path

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.language import LANGUAGE_MODEL, above_zero, at_least_one


def pairs_signature(path: str) -> str:
    """Digest of a file of preference pairs. Raises ValueError where there is no such file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"pairs: got {path!r}, wanted a file of JSON lines with prompt, chosen and rejected")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


@protocol(
    "preference tuning",
    metrics={
        "reward_accuracy": "share of held-out pairs whose preferred answer has the higher reward; a tie is no win",
        "reward_margin": "mean over held-out pairs of the reward of the preferred minus that of the other answer",
        "dpo_loss": "mean of the DPO loss over held-out pairs",
        "learned_parameter": "median over the layers of the activation's first parameter; 0 where it has none",
    },
    settings=(
        Setting("pairs", str, "", "file of JSON lines: prompt, chosen, rejected (or HH's or SHP's form)",
                signature=f"{__name__}:pairs_signature"),
        LANGUAGE_MODEL,
        Setting("beta", float, 0.1, "strength of the tie to the reference model", above_zero),
        Setting("sft_steps", int, Tiers(smoke=2, desk=20, gpu=1000), "steps of fine-tuning on preferred answers first"),
        Setting("sft_lr", float, 1e-5, "peak learning rate of that", above_zero),
        Setting("dpo_steps", int, Tiers(smoke=2, desk=40, gpu=1000), "steps of preference tuning", at_least_one),
        Setting("dpo_lr", float, 1e-5, "peak learning rate of that", above_zero),
        Setting("pairs_a_step", int, Tiers(smoke=4, gpu=16), "pairs a step", at_least_one),
        Setting("max_length", int, Tiers(smoke=64, desk=128, gpu=512), "tokens of prompt and answer kept"),
        Setting("test_fraction", float, 0.1, "share of the prompts held out"),
        Setting("test_pairs", int, Tiers(smoke=8, desk=128, gpu=0), "held-out pairs judged; 0 takes all"),
    ),
    time_limit=8 * 3600.0,
    memory_limit_gib=24.0,
)  # fmt: skip
def preference_tuning(trial: Trial, arm: Arm) -> dict[str, float]:
    """Fine-tune on preferred answers, take the outcome as reference, then tune by DPO; both with the arm's activation.

    The reference is the arm's own model, so that an activation put into a checkpoint trained with another one is
    judged by what it learns from the pairs, not by what the exchange broke. The seed sets held-out prompts and batches.
    """
    from paperworks.papers.protocols.dpo import tune_by_preferences

    return tune_by_preferences(trial, arm)
