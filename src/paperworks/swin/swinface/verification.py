"""Are two faces one person? Accuracy, area under the curve and true accepts of embeddings on pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.swin.swinface.evaluation import predict
from paperworks.swin.swinface.network import SwinFace
from paperworks.swin.swinface.tasks import RECOGNITION

__all__ = [
    "VerificationScore", "embed", "pair_scores", "template_embeddings", "true_accepts", "verify_pairs",
]  # fmt: skip

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def embed(model: SwinFace, images: Iterable[Tensor], flip: bool = True) -> Tensor:
    """Identity embeddings (N, embedding_size), not normalised, of batches of faces, on the CPU.

    Args:
        model: in eval mode meanwhile.
        images: batches (B, 3, img_size, img_size) in [-1, 1].
        flip: add the embedding of the mirror image, as published tests do.
    """
    batches = (torch.cat([x, x.flip(-1)]) if flip else x for x in images)
    sizes: list[int] = []

    def counted() -> Iterable[Tensor]:
        for x in batches:
            sizes.append(len(x))
            yield x

    found = predict(model, counted(), [RECOGNITION])[RECOGNITION]
    if not flip:
        return found
    return torch.cat([part.unflatten(0, (2, -1)).sum(0) for part in found.split(sizes)])


def template_embeddings(
    embeddings: Tensor, templates: Tensor, media: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One embedding for each template: the sum over its media of the mean over a medium's pictures, of length 1.

    Args:
        embeddings: (N, D), not normalised: their length says how sure the network is.
        templates, media: (N,) whole numbers; pictures of one medium in one template are frames of one video.
        weights: (N,) of the pictures, e.g. the detector's scores.

    Returns the templates that there are, in rising order, and their embeddings (T, D), float64.
    """
    n = len(embeddings)
    if embeddings.dim() != 2 or any(
        x.shape != (n,) for x in (templates, media, *([] if weights is None else [weights]))
    ):
        got = f"{tuple(embeddings.shape)}, {tuple(templates.shape)} and {tuple(media.shape)}"
        raise ValueError(f"embeddings, templates, media, weights: got the shapes {got}, wanted (N, D) and (N,)")
    x = embeddings.double() if weights is None else embeddings.double() * weights.double()[:, None]
    both, place, counts = torch.stack([templates, media], 1).unique(dim=0, return_inverse=True, return_counts=True)
    means = x.new_zeros(len(both), x.shape[1]).index_add_(0, place, x) / counts[:, None]
    names, owner = both[:, 0].unique(return_inverse=True)
    return names, F.normalize(x.new_zeros(len(names), x.shape[1]).index_add_(0, owner, means))


def pair_scores(embeddings: Tensor, pairs: Tensor, chunk: int = 100_000) -> Tensor:
    """Cosines (P,), float64, of the rows of normalised `embeddings` (N, D) that `pairs` (P, 2) names."""
    if embeddings.dim() != 2 or pairs.dim() != 2 or pairs.shape[1] != 2:
        got = f"{tuple(embeddings.shape)} and {tuple(pairs.shape)}"
        raise ValueError(f"embeddings, pairs: got the shapes {got}, wanted (N, D) and (P, 2)")
    x = embeddings.double()
    return torch.cat([(x[part[:, 0]] * x[part[:, 1]]).sum(1) for part in pairs.split(chunk)])


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
