"""F1 by class and its mean over classes, on a whole set, with bootstrap intervals."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["confusion", "f1_intervals", "macro_f1", "per_class_f1"]


def confusion(logits_or_pred: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Counts (num_classes, num_classes), rows the truth, columns what was predicted.

    Args:
        logits_or_pred: (N, num_classes) scores, or (N,) predicted classes.
        target: (N,) classes.

    Raises ValueError or TypeError where these do not fit together.
    """
    pred = logits_or_pred
    if pred.dim() == 2:
        if pred.shape[1] != num_classes:
            raise ValueError(f"logits_or_pred: got {pred.shape[1]} columns, wanted num_classes={num_classes}")
        pred = pred.argmax(1)
    for name, value in (("logits_or_pred", pred), ("target", target)):
        if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
            raise TypeError(f"{name}: got {value.dtype}, wanted classes as whole numbers")
        if value.numel() and not (int(value.min()) >= 0 and int(value.max()) < num_classes):
            raise ValueError(f"{name}: got {int(value.min())} to {int(value.max())}, wanted 0 to {num_classes - 1}")
    if pred.dim() != 1 or pred.shape != target.shape:
        got = f"{tuple(logits_or_pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"logits_or_pred, target: got the shapes {got}, wanted (N, {num_classes}) or (N,), and (N,)")
    pairs = target.long().cpu() * num_classes + pred.long().cpu()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def _f1(counts: Tensor) -> Tensor:
    """F1 of each class from (..., K, K) counts: 2 TP / (2 TP + FP + FN), and 0 where a class is in neither."""
    hits = counts.diagonal(dim1=-2, dim2=-1).double()
    total = counts.sum(-1).double() + counts.sum(-2).double()
    return torch.where(total > 0, 2 * hits / total.clamp(min=1), 0.0)


def per_class_f1(logits_or_pred: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """F1 of each class, (num_classes,) float64; 0 for a class that is neither in `target` nor predicted."""
    return _f1(confusion(logits_or_pred, target, num_classes))


def macro_f1(logits_or_pred: Tensor, target: Tensor, num_classes: int) -> float:
    """Mean of the F1 of all classes, absent ones included: scikit-learn's macro average over labels 0 to K - 1.

    Of the whole set: the mean over batches of their macro F1 is another number.
    """
    return float(per_class_f1(logits_or_pred, target, num_classes).mean())


def f1_intervals(
    logits_or_pred: Tensor,
    target: Tensor,
    num_classes: int,
    generator: torch.Generator,
    *,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[Tensor, tuple[float, float]]:
    """Bootstrap percentile intervals: of each class's F1 (num_classes, 2), and of the macro F1.

    Items are drawn with replacement; only their cells of the confusion matrix matter, so counts are drawn.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level, resamples: got {level} and {resamples}, wanted a number in (0, 1), and 1 or more")
    counts = confusion(logits_or_pred, target, num_classes).flatten()
    n = int(counts.sum())
    if n == 0:
        raise ValueError("target: got no item, wanted one or more")
    cells = torch.multinomial(counts.double(), resamples * n, replacement=True, generator=generator)
    rows = torch.arange(resamples).repeat_interleave(n)
    drawn = torch.bincount(rows * len(counts) + cells, minlength=resamples * len(counts))
    f1 = _f1(drawn.view(resamples, num_classes, num_classes))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=f1.dtype)
    low, high = torch.quantile(f1.mean(1), ends).tolist()
    return torch.quantile(f1, ends, dim=0).t(), (low, high)
