"""Direct Preference Optimization (Rafailov et al., arXiv 2305.18290) of a causal language model.

    loss = -log S( r(chosen) - r(rejected) ),    r(answer) = beta log [ pi(answer | prompt) / pi_ref(answer | prompt) ]

pi_ref is the model as it was before. Its log-probabilities never change, so they are computed once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.data.preferences import PreferencePair, read_preference_pairs
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.language_models import (
    ByteTokens,
    Size,
    Tokens,
    check_context,
    is_made_here,
    load_checkpoint,
    make_language_model,
    warm_up_then_cosine,
)
from paperworks.papers.protocols.training import batches, learned_parameters, parameter_groups
from paperworks.surgery.activations import ReplacementReport, replace_activations

GRADIENT_NORM = 1.0
SMALL = {"layers": 2, "dim": 64, "heads": 4}


@dataclass(frozen=True)
class Answer:
    """Prompt and answer as tokens (N,); the answer begins at `start`, which is at least 1."""

    ids: Tensor
    start: int


@dataclass(frozen=True)
class TokenPair:
    """Both answers to one prompt."""

    chosen: Answer
    rejected: Answer


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The DPO loss of every pair and its reward margin r(chosen) - r(rejected), (B,) each.

    Args:
        policy: (B, 2) log-probabilities of the preferred and the other answer under the model.
        reference: (B, 2) the same under the reference model.
        beta: strength of the tie to the reference, above 0.
    """
    rewards = beta * (policy - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    return -functional.logsigmoid(margin), margin


def tokenize_pair(pair: PreferencePair, tokens: Tokens, max_length: int) -> TokenPair:
    """`pair` in at most `max_length` tokens: the end of a long prompt is kept, and the beginning of a long answer.

    An end token closes each answer that is kept whole. Raises ValueError for an empty answer.
    """
    end = [] if tokens.end is None else [tokens.end]
    prompt = tokens.encode(pair.prompt)
    if not len(prompt):  # something has to stand before the first token of the answer
        prompt = torch.tensor(end or [0])
    answers = []
    for text in (pair.chosen, pair.rejected):
        answer = torch.cat([tokens.encode(text), torch.tensor(end, dtype=torch.int64)])
        if not len(answer):
            raise ValueError(f"pairs: got an empty answer to {pair.prompt[-40:]!r}, wanted at least one token")
        answers.append(answer)
    longest = max(map(len, answers))
    if len(prompt) + longest > max_length:
        prompt = prompt[-max(max_length // 2, max_length - longest) :]
    room = max_length - len(prompt)
    chosen, rejected = (Answer(torch.cat([prompt, answer[:room]]), len(prompt)) for answer in answers)
    return TokenPair(chosen, rejected)


def answer_log_probabilities(model: nn.Module, answers: Sequence[Answer], device: str) -> tuple[Tensor, Tensor]:
    """log pi(answer | prompt) of every answer (B,), summed over its tokens, and how many tokens those are (B,)."""
    ids = nn.utils.rnn.pad_sequence([answer.ids for answer in answers], batch_first=True)
    lengths = torch.tensor([len(answer.ids) for answer in answers])
    starts = torch.tensor([answer.start for answer in answers])
    place = torch.arange(ids.shape[1])
    attended = (place < lengths[:, None]).long()
    # The token at `place` is predicted at the place before it.
    counted = ((place >= starts[:, None]) & (place < lengths[:, None]))[:, 1:].to(device)
    ids, attended = ids.to(device), attended.to(device)
    logits = model(input_ids=ids, attention_mask=attended).logits[:, :-1].float()
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return -(losses.view_as(counted) * counted).sum(1), counted.sum(1)


def pair_log_probabilities(model: nn.Module, pairs: Sequence[TokenPair], device: str) -> Tensor:
    """(B, 2) log-probabilities of the preferred and the other answer of every pair, in one pass."""
    found, _ = answer_log_probabilities(model, [a for pair in pairs for a in (pair.chosen, pair.rejected)], device)
    return found.view(-1, 2)


@torch.no_grad()
def all_log_probabilities(model: nn.Module, pairs: Sequence[TokenPair], device: str, size: int) -> Tensor:
    """(N, 2) the same, without gradient and `size` pairs at a time."""
    model.eval()
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return torch.cat([pair_log_probabilities(model, part, device) for part in parts])


def split_by_prompt(
    pairs: Sequence[PreferencePair], generator: torch.Generator, test_fraction: float
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs; all pairs of a prompt are on one side. At least one prompt is held out.

    Raises ValueError for fewer than two prompts or a fraction outside (0, 1).
    """
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    if len(prompts) < 2:
        raise ValueError(f"pairs: got {len(prompts)} prompt, wanted at least two: one is held out")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: got {test_fraction}, wanted a number between 0 and 1")
    n_held = min(max(1, round(len(prompts) * test_fraction)), len(prompts) - 1)
    held = {prompts[i] for i in torch.randperm(len(prompts), generator=generator)[:n_held].tolist()}
    return [p for p in pairs if p.prompt not in held], [p for p in pairs if p.prompt in held]


def _prepared(trial: Trial, arm: Arm) -> tuple[ReplacementReport, Tokens]:
    settings = trial.settings
    spec: str = settings["language_model"]
    with trial.global_generators("weights"):
        model: nn.Module
        tokens: Tokens
        if is_made_here(spec):
            tokens = ByteTokens()
            model = make_language_model(spec, tokens.size, Size(settings["max_length"], **SMALL))
        else:
            model, tokens = load_checkpoint(spec)
            check_context(model, settings["max_length"])
        report = replace_activations(model, arm.build)
        if not report.replaced:
            raise ValueError(f"language_model: {spec!r} has no activation that can be replaced")
        report.model.to(trial.device)
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # the ratio to the reference is of two networks, not of two dropout masks
            module.p = 0.0
    return report, tokens


def _chosen_indices(n: int, size: int, steps: int, generator: torch.Generator) -> list[list[int]]:
    """The pairs of every step: epochs in random order, as many as the steps need."""

    def endless() -> Iterator[Tensor]:
        while True:
            yield from batches(n, size, generator)

    return [index.tolist() for _, index in zip(range(steps), endless(), strict=False)]


def _optimise(
    model: nn.Module, steps: Sequence[list[int]], lr: float, loss: Callable[[list[int]], Tensor],
    report: Callable[[int, float], None],
) -> None:  # fmt: skip
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=lr)
    schedule = warm_up_then_cosine(optimizer, len(steps))
    for step, index in enumerate(steps):
        model.train()
        optimizer.zero_grad()
        value = loss(index)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        report(step + 1, float(value.detach()))


def tune_by_preferences(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.preferences.preference_tuning`."""
    settings, device = trial.settings, trial.device
    size: int = settings["pairs_a_step"]
    report, tokens = _prepared(trial, arm)
    model = report.model
    pairs = read_preference_pairs(Path(settings["pairs"]).expanduser(), on_error="skip")
    train, test = (
        [tokenize_pair(pair, tokens, settings["max_length"]) for pair in part]
        for part in split_by_prompt(pairs, trial.generator("split"), settings["test_fraction"])
    )
    test = test[: settings["test_pairs"] or None]

    sft_steps = _chosen_indices(len(train), size, settings["sft_steps"], trial.generator("fine-tuning"))
    dpo_steps = _chosen_indices(len(train), size, settings["dpo_steps"], trial.generator("preferences"))
    total = len(sft_steps) + len(dpo_steps)
    curves: dict[str, list[float]] = {"fine-tuning loss": [], "DPO loss": []}

    def reported(name: str, before: int) -> Callable[[int, float], None]:
        def report_step(step: int, value: float) -> None:
            curves[name].append(value)
            trial.progress(0.95 * (before + step) / total, f"{name} {value:.3f}")

        return report_step

    def likelihood_loss(index: list[int]) -> Tensor:
        found, counts = answer_log_probabilities(model, [train[i].chosen for i in index], device)
        return -found.sum() / counts.sum()

    if sft_steps:
        _optimise(model, sft_steps, settings["sft_lr"], likelihood_loss, reported("fine-tuning loss", 0))
    used = sorted({i for index in dpo_steps for i in index})
    reference = dict(zip(used, all_log_probabilities(model, [train[i] for i in used], device, size), strict=True))
    reference_test = all_log_probabilities(model, test, device, size)

    def preference_loss(index: list[int]) -> Tensor:
        against = torch.stack([reference[i] for i in index])
        found = pair_log_probabilities(model, [train[i] for i in index], device)
        return dpo_loss(found, against, settings["beta"])[0].mean()

    _optimise(model, dpo_steps, settings["dpo_lr"], preference_loss, reported("DPO loss", len(sft_steps)))
    found = all_log_probabilities(model, test, device, size)
    losses, margins = dpo_loss(found, reference_test, settings["beta"])
    learned = learned_parameters(report)
    for name, values in {**curves, "learned parameter by depth": learned}.items():
        trial.curve(name, values)
    return {
        "reward_accuracy": float((margins > 0).float().mean()),
        "reward_margin": float(margins.mean()),
        "dpo_loss": float(losses.mean()),
        "learned_parameter": statistics.median(learned) if learned else 0.0,
    }
