"""Losses of SwinFace: CosFace on a sample of the identities, an age loss that changes its shape, and their sum.

CosFace (1801.09414): s (cos - m) for the own class, s cos for the others. Age, with d = o - y and u the share of the
training that is done: L = (1 - u) / 2 d^2 + u (1 - exp(-d^2 / (2 sigma^2))), from squares to CLAP's error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CosFaceHead", "TaskBatch", "age_loss", "cosface_logits", "epsilon_error", "multitask_loss"]

IGNORED = -1
"""Label of a sample whose class is not known; an age that is not known is NaN."""


def cosface_logits(cos: Tensor, labels: Tensor, scale: float = 64.0, margin: float = 0.4) -> Tensor:
    """scale (cos - margin) in the column of a row's label, scale cos elsewhere. `cos` itself is left as it is.

    Args:
        cos: cosines (B, classes).
        labels: (B,) whole numbers; -1 for a row without a class, which gets no margin.
    """
    if cos.dim() != 2:
        raise ValueError(f"cos: got the shape {tuple(cos.shape)}, wanted (B, classes)")
    _check_classes("labels", labels, cos.shape[0], cos.shape[1])
    known = labels != IGNORED
    own = F.one_hot(labels.clamp_min(0), cos.shape[1]).bool() & known[:, None]
    return scale * torch.where(own, cos - margin, cos)


def _check_classes(name: str, labels: Tensor, rows: int, classes: int) -> None:
    if labels.shape != (rows,) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        got = f"the shape {tuple(labels.shape)} and {labels.dtype}"
        raise ValueError(f"{name}: got {got}, wanted whole numbers ({rows},)")
    if labels.device.type != "meta" and len(labels) and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < IGNORED or high >= classes:
            got = f"{low} to {high}"
            raise ValueError(f"{name}: got {got}, wanted 0 to {classes - 1}, or {IGNORED} for what is not known")


class CosFaceHead(nn.Module):
    """CosFace logits of embeddings for a sample of the classes, the own ones among them (Partial FC, 2010.05222).

    Args:
        embedding_size, num_classes: sizes of `weight` (num_classes, embedding_size), a direction a class.
        sample_rate: share of the classes that a call has; 1 for all.
        scale, margin: of `cosface_logits`.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        sample_rate: float = 1.0,
        *,
        scale: float = 64.0,
        margin: float = 0.4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embedding_size < 1 or num_classes < 1:
            got = f"{embedding_size} and {num_classes}"
            raise ValueError(f"embedding_size, num_classes: got {got}, wanted positive numbers")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate: got {sample_rate}, wanted 0 < sample_rate <= 1")
        self.sample_rate, self.scale, self.margin = sample_rate, scale, margin
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_size, device=device, dtype=dtype))
        nn.init.normal_(self.weight, std=0.01)

    def extra_repr(self) -> str:
        """Sizes and the sample."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, sample_rate={self.sample_rate}"

    def forward(
        self, embeddings: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, sampled) and the labels' columns among them, ready for `F.cross_entropy(ignore_index=-1)`.

        Args:
            embeddings: (B, embedding_size); they and the weights are normalised here.
            labels: (B,) classes; -1 where none is known.
            generator: of the sample, on the CPU; torch's global one by default. More own classes than the sample's
                size are all taken.
        """
        if embeddings.dim() != 2 or embeddings.shape[1] != self.weight.shape[1]:
            raise ValueError(f"embeddings: got the shape {tuple(embeddings.shape)}, wanted (B, {self.weight.shape[1]})")
        _check_classes("labels", labels, embeddings.shape[0], self.weight.shape[0])
        weight: Tensor = self.weight
        if self.sample_rate < 1:
            columns = self._sample(labels, generator)
            weight = weight.index_select(0, columns)
            place = torch.searchsorted(columns, labels.clamp_min(0).contiguous())
            labels = torch.where(labels == IGNORED, labels, place)
        cos = F.linear(F.normalize(embeddings), F.normalize(weight)).clamp(-1, 1)
        return cosface_logits(cos, labels, self.scale, self.margin), labels

    def _sample(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Classes in rising order."""
        count = self.weight.shape[0]
        own = labels[labels != IGNORED].unique()
        scores = torch.rand(count, generator=generator).to(labels.device)
        scores[own] = 2.0
        return scores.topk(max(len(own), round(self.sample_rate * count), 1)).indices.sort().values


def age_loss(pred: Tensor, target: Tensor, progress: float, sigma: float = 3.0) -> Tensor:
    """Mean of (1 - u) / 2 d^2 + u (1 - exp(-d^2 / (2 sigma^2))) over the ages that are known, in float32 or more.

    Args:
        pred: years (B,) or (B, 1).
        target: years (B,) or (B, 1); NaN for what is not known.
        progress: u, from 0 at the start of training to 1 at its end.
        sigma: years.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress: got {progress}, wanted 0 to 1")
    if sigma <= 0:
        raise ValueError(f"sigma: got {sigma}, wanted a number > 0")
    if pred.numel() != target.numel() or any(x.dim() > 2 or (x.dim() == 2 and x.shape[1] != 1) for x in (pred, target)):
        raise ValueError(
            f"target: got the shape {tuple(target.shape)} for {tuple(pred.shape)}, wanted (B,) or (B, 1) for both"
        )
    precision = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    pred, target = pred.reshape(-1).to(precision), target.reshape(-1).to(precision)
    known = ~target.isnan()
    square = (pred - torch.where(known, target, pred.detach())) ** 2
    loss = (1 - progress) / 2 * square + progress * -torch.expm1(-square / (2 * sigma**2))
    return (loss * known).sum() / known.sum().clamp_min(1)


def epsilon_error(pred: Tensor, mean: Tensor, std: Tensor) -> float:
    """CLAP's error 1 - mean exp(-(x - mu)^2 / (2 s^2)) of ages `pred` where people said `mean`, give or take `std`."""
    pred, mean, std = (x.detach().reshape(-1).double() for x in (pred, mean, std))
    if not len(pred) == len(mean) == len(std) or not len(pred):
        raise ValueError(f"mean, std: got {len(mean)} and {len(std)} for {len(pred)} ages, wanted one each, 1 or more")
    if bool((std <= 0).any()):
        raise ValueError(f"std: got {float(std.min())}, wanted numbers > 0")
    return float(1 - torch.exp(-((pred - mean) ** 2) / (2 * std**2)).mean())


class TaskBatch(NamedTuple):
    """Which rows of a batch have a task's labels, and the labels.

    Attributes:
        rows: a slice, or an index tensor (whole numbers, or bool for each row).
        target: (rows,) classes, or years; -1 or NaN for what is not known.
    """

    rows: slice | Tensor
    target: Tensor


def multitask_loss(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, TaskBatch],
    progress: float,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """The loss of every task in `batch` on its rows, and ``"total"``, their weighted sum.

    Args:
        outputs: of `SwinFace`. Identities are learned through `CosFaceHead`: put its logits under a name of theirs.
        batch: by task; ``"age"`` gets `age_loss`, every other task cross-entropy, averaged over the labels known.
        progress: share of the training that is done, 0 to 1.
        weights: by task, 1 by default.

    Raises ValueError for a task without outputs, or targets that do not fit.
    """
    weights = dict(weights or {})
    if not batch or batch.keys() - outputs.keys():
        got = sorted(batch)
        raise ValueError(f"batch: got the tasks {got}, wanted one or more of {', '.join(outputs)}")
    if unknown := weights.keys() - batch.keys():
        raise ValueError(f"weights: got {sorted(unknown)}, wanted tasks of the batch: {', '.join(batch)}")
    found: dict[str, Tensor] = {}
    for task, (rows, target) in batch.items():
        taken = outputs[task][rows]
        if len(taken) != len(target):
            raise ValueError(f"batch: got {len(target)} targets of {task!r} for {len(taken)} rows, wanted one a row")
        if task == "age":
            found[task] = age_loss(taken, target, progress)
        else:
            _check_classes(f"batch: target of {task!r}", target, len(taken), taken.shape[1])
            total = F.cross_entropy(taken, target, ignore_index=IGNORED, reduction="sum")
            found[task] = total / (target != IGNORED).sum().clamp_min(1)
    weighted = [weights.get(task, 1.0) * loss for task, loss in found.items()]
    return found | {"total": torch.stack(weighted).sum()}
