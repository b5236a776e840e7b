"""Are two faces one person? Accuracy, area under the curve and true accepts of embeddings on pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["VerificationScore", "verify_pairs"]

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class VerificationScore:
    """What pairs say of embeddings.

    Attributes:
        accuracy: mean over folds, each at the threshold that is best on the others.
        auc: probability that a pair of one person is more alike than a pair of two; ties count half.
        threshold: mean over folds of the cosine from which on a pair counts as one person.
        tar_at_far: by rate of false accepts (of all pairs), the share of pairs of one person that are accepted at the
            lowest threshold that keeps to the rate.
        accuracies: of the folds.
    """

    accuracy: float
    auc: float
    threshold: float
    tar_at_far: Mapping[float, float]
    accuracies: tuple[float, ...]


def verify_pairs(
    emb_a: Tensor,
    emb_b: Tensor,
    same: Tensor,
    folds: int = 10,
    *,
    flipped: tuple[Tensor, Tensor] | None = None,
) -> VerificationScore:
    """Score the cosine of pairs of embeddings as LFW is scored.

    Args:
        emb_a, emb_b: (P, D), not normalised.
        same: (P,) whether a pair is of one person.
        folds: parts of successive pairs, in their order, as pair files have them.
        flipped: the embeddings of the mirror images, which are added to those of the images.

    Raises ValueError for shapes that differ, fewer pairs than folds, or pairs of one kind only.
    """
    if emb_a.dim() != 2 or emb_a.shape != emb_b.shape or same.shape != emb_a.shape[:1]:
        got = f"{tuple(emb_a.shape)}, {tuple(emb_b.shape)} and {tuple(same.shape)}"
        raise ValueError(f"emb_a, emb_b, same: got the shapes {got}, wanted (P, D), (P, D) and (P,)")
    if not 2 <= folds <= len(same):
        raise ValueError(f"folds: got {folds} of {len(same)} pairs, wanted 2 to the number of pairs")
    if flipped is not None:
        if any(x.shape != emb_a.shape for x in flipped):
            shapes = [tuple(x.shape) for x in flipped]
            raise ValueError(f"flipped: got the shapes {shapes}, wanted {tuple(emb_a.shape)} twice")
        emb_a, emb_b = emb_a + flipped[0], emb_b + flipped[1]
    same = same.bool()
    if bool(same.all()) or not bool(same.any()):
        raise ValueError(f"same: got {int(same.sum())} pairs of one person of {len(same)}, wanted some of each kind")
    score = F.cosine_similarity(emb_a.detach().double(), emb_b.detach().double())
    accuracies, thresholds = [], []
    for part in torch.arange(len(score)).tensor_split(folds):
        kept = torch.ones(len(score), dtype=torch.bool)
        kept[part] = False
        threshold = best_threshold(score[kept], same[kept])
        thresholds.append(threshold)
        accuracies.append(float(((score[part] >= threshold) == same[part]).double().mean()))
    return VerificationScore(
        sum(accuracies) / folds,
        area_under_curve(score, same),
        sum(thresholds) / folds,
        {rate: true_accepts(score, same, rate) for rate in RATES},
        tuple(accuracies),
    )


def best_threshold(score: Tensor, same: Tensor) -> float:
    """The threshold of the highest accuracy: half way to the next score below, the highest where several are best."""
    order = score.argsort(descending=True, stable=True)
    sorted_score, hits = score[order], same[order].double()
    right = torch.cat([hits.new_zeros(1), hits.cumsum(0)]) + torch.cat(
        [(1 - hits).flip(0).cumsum(0).flip(0), hits.new_zeros(1)]
    )
    ends = torch.cat([sorted_score[:1] + 1, sorted_score, sorted_score[-1:] - 1])
    right = right.masked_fill(ends[:-1] == ends[1:], -1)  # a threshold cannot part equal scores
    best = int(right.argmax())
    return float((ends[best] + ends[best + 1]) / 2)


def area_under_curve(score: Tensor, same: Tensor) -> float:
    """Probability that a pair of one person scores higher than a pair of two; ties count half."""
    one, two = score[same].sort().values, score[~same].sort().values
    below = torch.searchsorted(two, one, right=False) + torch.searchsorted(two, one, right=True)
    return float(below.double().sum() / (2 * len(one) * len(two)))


def true_accepts(score: Tensor, same: Tensor, rate: float) -> float:
    """Share of pairs of one person above the lowest threshold at which at most `rate` of the other pairs are."""
    others = score[~same].sort(descending=True).values
    allowed = int(rate * len(others))
    if allowed >= len(others):
        return 1.0
    return float((score[same] > others[allowed]).double().mean())
