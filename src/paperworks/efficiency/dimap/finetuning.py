"""Training a pruned model on: AdamW with warm-up and cosine, removed weights exactly 0 (arXiv 2404.13648)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.efficiency.dimap.masks import Masks, masked_by

__all__ = ["History", "finetune", "learning_rate"]

Loss = Callable[[Any, Tensor], Tensor]


@dataclass
class History:
    """What a fine-tuning recorded, an entry an epoch: mean training loss, last learning rate, what `evaluate` gave."""

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return len(self.loss)


def learning_rate(step: int, steps: int, *, lr: float, min_lr: float, warmup_lr: float, warmup: int) -> float:
    """The rate of step 0 .. steps - 1: linear from `warmup_lr` to `lr` in `warmup` steps, then a cosine to `min_lr`."""
    if step < warmup:
        return warmup_lr + (lr - warmup_lr) * step / warmup
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def finetune(
    model: nn.Module,
    masks: Masks,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int = 30,
    lr: float = 2e-5,
    min_lr: float = 2e-7,
    warmup_epochs: int | None = None,
    warmup_lr: float = 2e-8,
    weight_decay: float = 1e-8,
    clip_norm: float | None = 5.0,
    loss: Loss | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> History:
    """Train a pruned model in place with the paper's schedule; defaults are its numbers for a batch of 1024.

    Removed weights are exactly 0 after every step, whether the masks are attached or the weights were zeroed
    (``permanent=True``), and the optimizer keeps no state that could bring them back.

    Args:
        model: pruned by `dimap_prune`; takes images, gives logits or an object with `.logits`.
        masks: what `dimap_prune` returned.
        loader: gives (images, labels) with labels as class indices or as probabilities (mixup); sized. Augmentation is
            its part. Where it has a `generator`, its state is kept in the checkpoint.
        epochs, lr, min_lr, warmup_lr, weight_decay: of AdamW and its schedule, which moves every step.
        warmup_epochs: None for half of `epochs`, as 15 of 30.
        clip_norm: largest norm of the gradient, as in Swin's recipe; None for no limit.
        loss: (model output, labels) -> scalar; cross entropy of the logits by default.
        evaluate: called after each epoch with the model in eval mode, for numbers to record.
        checkpoint: file written after each epoch, replaced in one step; if it exists, training goes on from there.
        seed: of the dropout and drop path of each epoch.
        progress: called with the fraction done and a text.

    Raises:
        ValueError: numbers out of range, masks that do not fit, an empty loader, a checkpoint of another run, a loss
            that is not finite.
    """
    warmup_epochs = epochs // 2 if warmup_epochs is None else warmup_epochs
    if epochs < 1 or not 0 <= warmup_epochs <= epochs:
        raise ValueError(f"epochs: got {epochs} with {warmup_epochs} of warm-up, wanted at least 1 and at most as many")
    if not 0 <= min_lr <= lr:
        raise ValueError(f"lr: got {lr} with min_lr={min_lr}, wanted 0 <= min_lr <= lr")
    per_epoch = len(loader)  # type: ignore[arg-type]
    if per_epoch == 0:
        raise ValueError("loader: got an empty one, wanted at least one batch")
    removed = _removed_weights(model, masks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    history = History()
    run = {"epochs": epochs, "per_epoch": per_epoch, "lr": lr, "min_lr": min_lr, "warmup_lr": warmup_lr,
           "warmup_epochs": warmup_epochs, "weight_decay": weight_decay, "seed": seed}  # fmt: skip
    generator = getattr(loader, "generator", None)
    if checkpoint is not None and Path(checkpoint).exists():
        _resume(Path(checkpoint), run, model, optimizer, history, generator)
        _zero(removed)
    device = next(model.parameters()).device
    while history.epochs < epochs:
        first = history.epochs * per_epoch
        rates = [
            learning_rate(step, epochs * per_epoch, lr=lr, min_lr=min_lr, warmup_lr=warmup_lr,
                          warmup=warmup_epochs * per_epoch)
            for step in range(first, first + per_epoch)
        ]  # fmt: skip
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed * 1_000_003 + history.epochs)
            mean = _epoch(model, removed, loader, optimizer, rates, loss or _cross_entropy, clip_norm)
        history.loss.append(mean)
        history.lr.append(rates[-1])
        if evaluate is not None:
            model.eval()
            history.evaluations.append({name: float(value) for name, value in evaluate(model).items()})
        if checkpoint is not None:
            _save(Path(checkpoint), run, model, optimizer, history, generator)
        if progress is not None:
            progress(history.epochs / epochs, f"epoch {history.epochs}/{epochs}, loss {mean:.4g}")
    return history


def _cross_entropy(output: Any, labels: Tensor) -> Tensor:
    return functional.cross_entropy(getattr(output, "logits", output), labels)


def _epoch(
    model: nn.Module,
    removed: list[tuple[nn.Parameter, Tensor]],
    loader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    loss: Loss,
    clip_norm: float | None,
) -> float:
    """One pass; the mean loss over images."""
    model.train()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for rate, (images, labels) in zip(rates, loader, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = loss(model(images.to(device)), labels.to(device))
        if not torch.isfinite(value):
            raise ValueError(f"loss: got {value.item()}, wanted a finite number; try a smaller lr")
        optimizer.zero_grad()
        value.backward()
        # no gradient: the moments of AdamW stay 0 there, and the norm is that of the weights which exist
        for parameter, gone in removed:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(gone, 0)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        _zero(removed)
        total, count = total + float(value.detach()) * len(images), count + len(images)
    return total / count


def _removed_weights(model: nn.Module, masks: Masks) -> list[tuple[nn.Parameter, Tensor]]:
    """(parameter, True where removed) of the weights that no attached mask already guards; they are set to 0."""
    removed = []
    for _, layer, mask in masks.layers(model):
        attached = masked_by(layer)
        if attached is None:
            assert isinstance(layer.weight, nn.Parameter)
            removed.append((layer.weight, ~mask))
        else:
            attached.weight_mask = mask
    _zero(removed)
    return removed


@torch.no_grad()
def _zero(removed: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, gone in removed:
        parameter.masked_fill_(gone, 0)


def _save(
    path: Path,
    run: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: History,
    generator: torch.Generator | None,
) -> None:
    state = {"run": run, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": asdict(history),
             "generator": None if generator is None else generator.get_state()}  # fmt: skip
    partial = path.with_name(path.name + ".part")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(
    path: Path,
    run: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: History,
    generator: torch.Generator | None,
) -> None:
    """Take over what `_save` wrote. Nothing but tensors and plain values is unpickled."""
    state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    if state.get("run") != run:
        raise ValueError(f"checkpoint: {path} is of a run with {state.get('run')}, wanted {run}; remove the file")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    vars(history).update(state["history"])
    if generator is not None and state["generator"] is not None:
        generator.set_state(state["generator"].cpu())
