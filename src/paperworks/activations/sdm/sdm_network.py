"""Training an SDM network: a causal language model whose next-token loss is weighted by document-level verification.

Section 4.3 of the paper.  The model is frozen; only `VerifiedHead.positive` learns.  A binary verification layer (an
`SDMClassifier` on [mean_t h, h_last] of a whole document) gives the similarity and the distance of what the model
now generates from each training prompt, and those are the q and d of every token of that document in Eq. 32.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .classifier import SDMClassifier
from .verified_head import VerifiedHead

TaskCheck = Callable[["VerifiedDocument", list[int]], bool]


@dataclass(frozen=True)
class VerifiedDocument:
    """A prompt with a completion, as token ids, and whether the completion is right.

    label: verification label, 1 for a right completion, 0 for a wrong (or constructed) one.  task_label: whatever a
    task check needs to judge another completion of the same prompt.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    label: int
    task_label: Any = None

    def __post_init__(self) -> None:
        if self.label not in (0, 1):
            raise ValueError(f"label must be 0 or 1, got {self.label!r}")
        if not len(self.prompt) or not len(self.completion):
            raise ValueError(
                f"prompt and completion need at least one token each, got {len(self.prompt)} and {len(self.completion)}"
            )


@dataclass
class SDMNetworkRun:
    """A trained head with its course.

    head: of the best epoch.  best_epoch: 0 is the untrained head.  accepted: admitted documents of D_ca with
    verification 1 and a right task answer, before training and after every epoch.  losses: mean training loss of
    every epoch.
    """

    head: VerifiedHead
    best_epoch: int = 0
    accepted: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


@contextmanager
def _frozen(model: Any) -> Any:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _device(model: Any) -> torch.device:
    parameter: Tensor = next(iter(model.parameters()))
    return parameter.device


def hidden_states(model: Any, sequences: Sequence[Sequence[int]], batch_size: int = 8) -> list[Tensor]:
    """Last hidden states (T_i, D), float32, of token sequences under a `transformers` causal model.

    Sequences are padded on the right and masked, which causal attention makes exact.
    """
    found: list[Tensor] = []
    with _frozen(model):
        for i in range(0, len(sequences), batch_size):
            batch = [torch.as_tensor(list(s), dtype=torch.long) for s in sequences[i : i + batch_size]]
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(_device(model))
            lengths = torch.tensor([len(s) for s in batch], device=ids.device)
            mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
            states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            found += [h[: len(s)].float() for h, s in zip(states, batch, strict=True)]
    return found


def document_features(model: Any, sequences: Sequence[Sequence[int]], batch_size: int = 8) -> NDArray[np.float32]:
    """[mean_t h, h_last] of whole documents, (N, 2 D) float32: the input of the verification layer."""
    states = hidden_states(model, sequences, batch_size)
    return np.stack([torch.cat([h.mean(0), h[-1]]).cpu().numpy() for h in states])


def greedy_completions(
    model: Any, head: VerifiedHead, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int = 8
) -> list[list[int]]:
    """Greedy completions of prompts by a model with a verified head, each up to and with its end token.

    Prompts of one length are generated together, so that no padding enters the model.
    """
    config = model.generation_config
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())
    pad = config.pad_token_id if config.pad_token_id is not None else min(ends, default=0)
    completions: list[list[int]] = [[] for _ in prompts]
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    with _frozen(model), head.installed(model):
        for length, rows in by_length.items():
            for start in range(0, len(rows), batch_size):
                chosen = rows[start : start + batch_size]
                ids = torch.tensor([list(prompts[i]) for i in chosen], device=_device(model))
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=pad,
                )
                for i, tokens in zip(chosen, out[:, length:].tolist(), strict=True):
                    stop = next((t + 1 for t, token in enumerate(tokens) if token in ends), len(tokens))
                    completions[i] = tokens[:stop]
    return completions


def fit_verifier(
    model: Any, documents: Sequence[VerifiedDocument], classifier: SDMClassifier | None = None, batch_size: int = 8
) -> SDMClassifier:
    """Fit the binary verification layer on the documents as given (force-decoded) and their labels."""
    features = document_features(model, [[*d.prompt, *d.completion] for d in documents], batch_size)
    return (classifier or SDMClassifier()).fit(features, np.array([d.label for d in documents]))


def beta_schedule(batches: int, beta: float) -> list[float]:
    """The regulariser's weight for each batch of an epoch: linear from 0 towards beta, in steps of beta / batches."""
    return [beta * i / batches for i in range(batches)]


def train_sdm_network(
    model: Any,
    verifier: SDMClassifier,
    documents: Sequence[VerifiedDocument],
    calibration: Sequence[VerifiedDocument],
    *,
    max_new_tokens: int,
    epochs: int = 5,
    batch_size: int = 50,
    lr: float = 1e-5,
    beta: float = 0.1,
    seed: int = 0,
    task_check: TaskCheck | None = None,
    generation_batch: int = 8,
    folder: str | Path | None = None,
) -> SDMNetworkRun:
    """Train the positive half of a verified head on the right documents (Eq. 32).

    Before every epoch the current head completes the training prompts greedily, and the verification layer gives q
    and d of each completed document (distance eCDFs of its D_tr); all tokens of the document share them.  The best
    epoch has the most admitted documents of `calibration` with verification 1 (and a right answer by `task_check`);
    an epoch must beat the ones before it, the untrained head included.

    Args:
        model: a `transformers` causal language model; it is left as it was.
        verifier: fitted on labels 0 and 1 (`fit_verifier`).
        documents: training documents; those with label 1 are trained on, token by token of their completions.
        calibration: documents whose prompts choose the best epoch.
        max_new_tokens: longest completion to generate.
        epochs, batch_size (tokens), lr: of Adam.
        beta: largest weight of the regulariser, reached linearly within each epoch.
        seed: of the shuffles; an epoch's shuffle depends on the seed and its number only.
        task_check: (document, generated ids) -> whether the generated answer is right for the task.
        generation_batch: documents generated or embedded at once.
        folder: where to keep progress after every epoch; a run that was cut off goes on from there.

    Raises:
        ValueError: no document with label 1, a verifier of other classes, settings out of range, or a folder that
            holds a run with other settings.
    """
    right = [d for d in documents if d.label == 1]
    _check_run(verifier, right, epochs, batch_size, lr, beta)
    head = VerifiedHead(model.get_output_embeddings()).to(_device(model)).float()
    optimizer = torch.optim.Adam(head.positive.parameters(), lr=lr)
    settings = {"batch_size": batch_size, "lr": lr, "beta": beta, "seed": seed, "n": len(right)}
    progress = _Progress(None if folder is None else Path(folder), settings, head, optimizer)
    course = progress.resume()
    states, targets, owners = _training_tokens(model, right, generation_batch)

    def count_accepted() -> int:
        return _accepted(model, head, verifier, calibration, max_new_tokens, generation_batch, task_check)

    if not course.accepted:
        course.accepted.append(count_accepted())
        progress.save(course)
    for epoch in range(len(course.accepted), epochs + 1):
        generated = _generated_features(model, head, right, max_new_tokens, generation_batch)[0]
        _, q, d = verifier.state_.training_evidence(generated)
        evidence = [torch.as_tensor(e, dtype=torch.float32, device=states.device)[owners] for e in (q, d)]
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(targets))).to(states.device)
        course.losses.append(_epoch(head, optimizer, states, targets, evidence, order.split(batch_size), beta))
        course.accepted.append(count_accepted())
        if course.accepted[-1] > course.accepted[course.best_epoch]:
            course.best_epoch = epoch
            progress.keep_best()
        progress.save(course)
    progress.restore_best()
    return course


def _epoch(
    head: VerifiedHead,
    optimizer: torch.optim.Optimizer,
    states: Tensor,
    targets: Tensor,
    evidence: list[Tensor],
    batches: Sequence[Tensor],
    beta: float,
) -> float:
    losses = []
    for rows, weight in zip(batches, beta_schedule(len(batches), beta), strict=True):
        optimizer.zero_grad()
        loss = head.loss(states[rows], targets[rows], evidence[0][rows], evidence[1][rows], weight)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()) * len(rows))
    return sum(losses) / len(targets)


def _training_tokens(
    model: Any, documents: Sequence[VerifiedDocument], batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For every completion token: the hidden state that predicts it, its id, and its document's number."""
    all_states = hidden_states(model, [[*d.prompt, *d.completion] for d in documents], batch_size)
    states = torch.cat([h[len(d.prompt) - 1 : -1] for h, d in zip(all_states, documents, strict=True)])
    targets = torch.tensor([t for d in documents for t in d.completion], device=states.device)
    lengths = torch.tensor([len(d.completion) for d in documents])
    return states, targets, torch.repeat_interleave(lengths).to(states.device)


def _generated_features(
    model: Any, head: VerifiedHead, documents: Sequence[VerifiedDocument], max_new_tokens: int, batch_size: int
) -> tuple[NDArray[np.float32], list[list[int]]]:
    """Features of the documents with the head's own completions, and those completions."""
    completed = greedy_completions(model, head, [d.prompt for d in documents], max_new_tokens, batch_size)
    sequences = [[*d.prompt, *c] for d, c in zip(documents, completed, strict=True)]
    return document_features(model, sequences, batch_size), completed


def _accepted(
    model: Any,
    head: VerifiedHead,
    verifier: SDMClassifier,
    documents: Sequence[VerifiedDocument],
    max_new_tokens: int,
    batch_size: int,
    task_check: TaskCheck | None,
) -> int:
    features, completed = _generated_features(model, head, documents, max_new_tokens, batch_size)
    result = verifier.select(features)
    accepted = result.admitted & (result.prediction == 1)
    if task_check is not None:
        accepted &= np.array([bool(task_check(d, c)) for d, c in zip(documents, completed, strict=True)])
    return int(accepted.sum())


def _check_run(
    verifier: SDMClassifier, right: Sequence[VerifiedDocument], epochs: int, batch_size: int, lr: float, beta: float
) -> None:
    if not right:
        raise ValueError("documents must hold at least one document with label 1, got none")
    classes = getattr(verifier, "classes_", np.array([])).tolist()
    if classes != [0, 1]:
        raise ValueError(f"verifier must be fitted on the labels [0, 1], got {classes}")
    if epochs < 0 or batch_size < 1:
        raise ValueError(f"epochs must be >= 0 and batch_size >= 1, got {epochs} and {batch_size}")
    if not (lr > 0 and beta >= 0 and math.isfinite(lr) and math.isfinite(beta)):
        raise ValueError(f"lr must be positive and beta at least 0, got {lr} and {beta}")


class _Progress:
    """The trained weights, Adam's moments and the course of a run, in a folder after every epoch.

    The numbers of an epoch go into a file of their own; the JSON that names it is replaced last, in one step.
    """

    def __init__(
        self, folder: Path | None, settings: dict[str, Any], head: VerifiedHead, optimizer: torch.optim.Optimizer
    ) -> None:
        self.folder, self.settings, self.head, self.optimizer = folder, settings, head, optimizer
        self.best = {name: p.detach().clone() for name, p in head.positive.named_parameters()}

    def keep_best(self) -> None:
        self.best = {name: p.detach().clone() for name, p in self.head.positive.named_parameters()}

    def restore_best(self) -> None:
        self.head.positive.load_state_dict(self.best)

    def resume(self) -> SDMNetworkRun:
        run = SDMNetworkRun(self.head)
        if self.folder is None or not (self.folder / "run.json").exists():
            return run
        from safetensors.torch import load_file

        record = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        if record["settings"] != self.settings:
            raise ValueError(f"folder {self.folder} holds a run with {record['settings']}, wanted {self.settings}")
        tensors = load_file(self.folder / record["tensors"], device=str(next(self.head.positive.parameters()).device))
        parts: dict[str, dict[str, Tensor]] = {"weight": {}, "best": {}, "exp_avg": {}, "exp_avg_sq": {}, "step": {}}
        for key, tensor in tensors.items():
            part, name = key.split(".", 1)
            parts[part][name] = tensor
        self.head.positive.load_state_dict(parts["weight"])
        self.best = parts["best"]
        for name, parameter in self.head.positive.named_parameters():
            if name in parts["step"]:
                moments = {k: parts[k][name] for k in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": parts["step"][name].cpu(), **moments}
        run.best_epoch, run.accepted, run.losses = (record[k] for k in ("best_epoch", "accepted", "losses"))
        return run

    def save(self, run: SDMNetworkRun) -> None:
        if self.folder is None:
            return
        from safetensors.torch import save_file

        tensors = {f"best.{name}": t for name, t in self.best.items()}
        for name, parameter in self.head.positive.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            tensors |= {f"{key}.{name}": t for key, t in self.optimizer.state.get(parameter, {}).items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = f"epoch-{len(run.losses)}.safetensors"
        save_file({k: t.detach().cpu().clone() for k, t in tensors.items()}, self.folder / file)
        course = {"best_epoch": run.best_epoch, "accepted": run.accepted, "losses": run.losses}
        record = course | {"settings": self.settings, "tensors": file}
        (self.folder / "run.json.new").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(self.folder / "run.json.new", self.folder / "run.json")
        for old in self.folder.glob("epoch-*.safetensors"):
            if old.name != file:
                old.unlink()
