"""Contrastive pre-training: embedding head, the losses between subjects and inside one, and the training loop.

Two clips y, y' of each subject that share no frame; g = normalise(BN(W mean(tokens))).

- instance loss: NT-Xent over the batch between g(aug(y)) and g(aug(y')): subjects against one another;
- local-local loss: NT-Xent of each subject by itself, two augmentations of each of its clips: frames against frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ContrastiveHead", "contrastive_loss", "local_local_loss", "nt_xent", "pretrain"]


class ContrastiveHead(nn.Module):
    """Mean over tokens, a linear layer without bias, batch norm, and length 1: (B, C, ...) -> (B, out_features).

    Args:
        in_features: channels C of the feature map.
        out_features: length of the embedding.

    In training a batch needs at least two samples, as its norm has no deviation of one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 128,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, out_features, bias=False, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm1d(out_features, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Unit vectors (B, out_features) of feature maps (B, C, ...)."""
        if x.dim() < 2 or x.shape[1] != self.fc1.in_features:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, {self.fc1.in_features}, ...)")
        if self.training and x.shape[0] < 2:
            raise ValueError(f"x: got {x.shape[0]} samples, wanted at least 2: batch norm has no deviation of fewer")
        pooled = x.flatten(2).mean(2) if x.dim() > 2 else x
        return F.normalize(self.bn1(self.fc1(pooled)), dim=1)


def _temperature(value: float) -> None:
    if not value > 0:
        raise ValueError(f"temperature: got {value}, wanted a number > 0")


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.1) -> Tensor:
    """NT-Xent with cosine similarity: mean over 2 B anchors of -log softmax of the positive among 2 B - 1 candidates.

    Args:
        z1, z2: (B, F); z1[i] and z2[i] are a positive pair, the 2 B - 2 others of an anchor its negatives.
        temperature: divides the cosines.

    Raises ValueError for shapes that are not equal, no pair at all, or a temperature that is not positive.
    """
    if z1.dim() != 2 or z1.shape != z2.shape or not z1.shape[0]:
        got = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ValueError(f"z2: got the shapes {got}, wanted two equal ones (B, F) with B > 0")
    _temperature(temperature)
    return _nt_xent(z1.unsqueeze(0), z2.unsqueeze(0), temperature).mean()


def _nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The loss of each of several batches (S, B, F): (S,)."""
    n = z1.shape[1]
    z = F.normalize(torch.cat([z1, z2], 1), dim=-1)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    cosines = (z @ z.transpose(1, 2) / temperature).masked_fill(itself, -torch.inf)
    positive = torch.arange(2 * n, device=z.device).roll(n).expand(z.shape[0], -1)
    return F.cross_entropy(cosines.transpose(1, 2), positive, reduction="none").mean(1)


def local_local_loss(a: Tensor, b: Tensor, temperature: float = 0.1, reduction: str = "mean") -> Tensor:
    """`nt_xent` of every subject by itself: its clips are told apart, whatever the augmentation.

    Args:
        a, b: (B, n_clips, F); a[i, k] and b[i, k] are two augmentations of clip k of subject i.
        temperature: divides the cosines.
        reduction: over the subjects, ``"mean"`` or ``"sum"``. The published code sums.
    """
    if a.dim() != 3 or a.shape != b.shape or not a.shape[0] or a.shape[1] < 2:
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"b: got the shapes {got}, wanted two equal ones (B, n_clips, F) with n_clips > 1")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: got {reduction!r}, wanted 'mean' or 'sum'")
    _temperature(temperature)
    losses = _nt_xent(a, b, temperature)
    return losses.mean() if reduction == "mean" else losses.sum()


Embed = Callable[[Tensor], Tensor]


def contrastive_loss(
    embed: Embed,
    augment: Embed,
    first: Tensor,
    second: Tensor,
    *,
    kind: int = 3,
    temperature: float = 0.1,
    reduction: str = "mean",
) -> Tensor:
    """The pre-training loss of a batch of clip pairs.

    Args:
        embed: clips (B, C, H, W, D, T) -> embeddings (B, F), as ``lambda x: head(model(x))``.
        augment: clips -> clips, drawn anew at each call; must leave its input as it is.
        first, second: clips y and y' of the same subjects, (B, C, H, W, D, T).
        kind: 1, the instance loss; 2, the local-local loss; 3, their sum.
        temperature, reduction: of the losses.
    """
    if kind not in (1, 2, 3):
        raise ValueError(f"kind: got {kind}, wanted 1, 2 or 3")
    if first.shape != second.shape:
        raise ValueError(f"second: got the shape {tuple(second.shape)}, wanted that of first, {tuple(first.shape)}")
    parts = []
    if kind in (1, 3):
        parts.append(nt_xent(embed(augment(first)), embed(augment(second)), temperature))
    if kind in (2, 3):
        views = [torch.stack([embed(augment(first)), embed(augment(second))], 1) for _ in range(2)]
        parts.append(local_local_loss(views[0], views[1], temperature, reduction))
    return torch.stack(parts).sum()


def pretrain(
    model: nn.Module,
    head: nn.Module,
    batches: Iterable[Mapping[str, Any] | tuple[Tensor, Tensor]],
    *,
    augment: Embed,
    steps: int | None = None,
    lr: float = 5e-5,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    kind: int = 3,
    temperature: float = 0.1,
    reduction: str = "mean",
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `model` and `head` on clip pairs with AdamW, in place.

    Args:
        model: clips -> feature maps (`SwiFT` without a head, or its `forward_features`).
        head: feature maps -> embeddings, as `ContrastiveHead`.
        batches: of a loader over `FMRIClips(..., contrastive=True)` (``"image"`` and ``"other"``), or pairs of tensors;
            no subject twice in one (see `SubjectBatches`). Gone through again until there were `steps`.
        augment: see `contrastive_loss`.
        steps: number of steps; None goes through `batches` once, at a constant rate after the warm-up.
        lr, weight_decay: of AdamW.
        warmup: part of the steps in which the rate rises to `lr`; it then falls along half a cosine. Needs `steps`.
        kind, temperature, reduction: of `contrastive_loss`.
        progress: called with the number of steps done and the loss.

    Returns the loss of each step.
    """
    device = next(model.parameters()).device
    trained = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    features = getattr(model, "forward_features", model)
    schedule = None
    if steps is not None:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(i, steps, warmup))
    model.train()
    head.train()
    losses: list[float] = []
    source = batches if steps is None else itertools.islice(_again(batches), steps)
    for batch in source:
        pair = (batch["image"], batch["other"]) if isinstance(batch, Mapping) else batch
        first, second = (clips.to(device) for clips in pair)
        loss = contrastive_loss(
            lambda x: head(features(x)), augment, first, second, kind=kind, temperature=temperature, reduction=reduction
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss.detach()))
        if progress is not None:
            progress(len(losses), losses[-1])
    return losses


def rate(step: int, steps: int, warmup: float) -> float:
    """The learning rate at a step over its peak: a linear rise, then half a cosine to 0."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (step - rise) / max(1.0, steps - rise)))))


def _again(batches: Iterable[Any]) -> Iterable[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("batches: got none that can be gone through again, wanted at least one")
