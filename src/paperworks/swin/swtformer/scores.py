"""How good localisation maps and scores are: mean intersection over union, and mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SeedScore", "multilabel_map", "seed_miou"]

IGNORED = 255


@dataclass(frozen=True, eq=False)
class SeedScore:
    """Mean intersection over union, pooled over a set of images.

    Attributes:
        miou: mean of `per_class` without its NaN, in [0, 1].
        per_class: float64 (K + 1,), the background first; NaN for a class in neither truth nor prediction.
        best_threshold: the background constant that gave the largest mean; None where map 0 was the background.
    """

    miou: float
    per_class: Tensor
    best_threshold: float | None = None


def _counts(maps: Sequence[Tensor], masks: Sequence[Tensor], labels: Sequence[Tensor], edges: Tensor | None) -> Tensor:
    """Pixels by truth, best labelled class and number of thresholds below its value: (K + 1, K + 1, T + 1) int64.

    Without edges the third axis is 0 where the background's map is at least as large, else 1.
    """
    classes = maps[0].shape[0]
    last = 1 if edges is None else len(edges)
    counts = torch.zeros(classes * classes * (last + 1), dtype=torch.int64)
    for i, (given, mask, label) in enumerate(zip(maps, masks, labels, strict=True)):
        found, truth = given.detach().cpu(), mask.detach().cpu().long()
        if found.shape != (classes, *truth.shape) or truth.dim() != 2:
            raise ValueError(
                f"maps: got {tuple(found.shape)} at {i}, wanted ({classes}, H, W) of mask {tuple(truth.shape)}"
            )
        if label.shape != (classes - 1,):
            raise ValueError(f"labels: got the shape {tuple(label.shape)} at {i}, wanted ({classes - 1},)")
        known = truth != IGNORED
        if bool(((truth < 0) | (truth >= classes))[known].any()):
            raise ValueError(f"masks: got other values than 0 to {classes - 1} and {IGNORED} at {i}")
        absent = ~label.detach().cpu().bool()[:, None, None]
        value, best = found[1:].masked_fill(absent, -torch.inf).max(0)
        if edges is None:
            place = (value > found[0]).long()
        else:
            place = torch.searchsorted(edges, value.double().contiguous())
        index = (truth * classes + best + 1) * (last + 1) + place
        counts += torch.bincount(index[known], minlength=len(counts))
    return counts.view(classes, classes, last + 1)


def _ious(confusion: Tensor) -> Tensor:
    """(..., K + 1) from counts by truth and prediction."""
    hit = confusion.diagonal(dim1=-2, dim2=-1).double()
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    return torch.where(union > 0, hit / union, torch.nan)


def seed_miou(
    maps: Sequence[Tensor],
    masks: Sequence[Tensor],
    labels: Sequence[Tensor],
    thresholds: Sequence[float] | None = None,
) -> SeedScore:
    """Mean intersection over union of the masks that the maps' largest values give.

    Args:
        maps: of each image, (K + 1, H, W), the background first.
        masks: of each image, the truth (H, W), integers 0 (background) to K; 255 is left out.
        labels: of each image, (K,) of 0 and 1; a class without a label is never predicted.
        thresholds: None: a pixel is background where map 0 is at least as large as every class. Else each constant in
            turn stands in place of map 0, and the best mean counts.

    Raises ValueError for lists of different length, none at all, shapes that differ, or values that are no class.
    """
    if not len(maps) or not len(maps) == len(masks) == len(labels):
        raise ValueError(f"maps: got {len(maps)}, {len(masks)} masks and {len(labels)} labels, wanted the same number")
    edges = None if thresholds is None else torch.tensor(sorted(thresholds), dtype=torch.float64)
    if edges is not None and not len(edges):
        raise ValueError("thresholds: got none, wanted some numbers, or None")
    counts = _counts(maps, masks, labels, edges)
    # a pixel whose class exceeds t of the ascending thresholds is foreground under the first t of them
    above = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:].movedim(-1, 0).clone()
    above[:, :, 0] = counts.sum((1, 2)) - above.sum(2)
    ious = _ious(above)
    means = ious.nanmean(1)
    best = 0 if edges is None else int(means.nan_to_num(-1).argmax())
    return SeedScore(float(means[best]), ious[best], None if edges is None else float(edges[best]))


def multilabel_map(scores: Tensor, labels: Tensor) -> float:
    """Mean over the classes with a positive of the average precision: sum of precision x gain in recall.

    Equal scores count at once, as one threshold.

    Args:
        scores: (N, K).
        labels: (N, K) of 0 and 1.

    Raises ValueError for shapes that differ or labels without any positive.
    """
    if scores.dim() != 2 or scores.shape != labels.shape:
        raise ValueError(f"labels: got the shape {tuple(labels.shape)}, wanted that of scores, {tuple(scores.shape)}")
    truth = labels.detach().cpu().double()
    found = []
    for score, positive in zip(scores.detach().cpu().double().unbind(1), truth.unbind(1), strict=True):
        if not positive.any():
            continue
        value, order = score.sort(descending=True)
        hits = positive[order].cumsum(0)
        last = torch.cat([value[1:] != value[:-1], torch.ones(1, dtype=torch.bool)])
        hits, number = hits[last], torch.arange(1, len(value) + 1)[last]
        gained = torch.diff(hits, prepend=hits.new_zeros(1))
        found.append(float((gained * hits / number).sum() / hits[-1]))
    if not found:
        raise ValueError("labels: got no positive at all, wanted a class with one")
    return sum(found) / len(found)
