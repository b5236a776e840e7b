"""From clips to subjects: mean scores, and a threshold that is chosen on validation subjects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["subject_scores", "youden_threshold"]


def subject_scores(logits: Tensor, subjects: Sequence[str]) -> tuple[list[str], Tensor]:
    """The mean over a subject's clips: the subjects in the order of their first clip, and their scores (S,).

    Args:
        logits: (N,), one a clip.
        subjects: N names, one a clip.

    Raises ValueError for another shape or number of names.
    """
    if logits.dim() != 1 or len(logits) != len(subjects):
        got = f"the shape {tuple(logits.shape)} for {len(subjects)} subjects"
        raise ValueError(f"logits: got {got}, wanted (N,) with one subject a clip")
    place = {name: i for i, name in enumerate(dict.fromkeys(subjects))}
    index = torch.tensor([place[name] for name in subjects], dtype=torch.long, device=logits.device)
    total = torch.zeros(len(place), dtype=logits.dtype, device=logits.device).index_add(0, index, logits)
    return list(place), total / index.bincount(minlength=len(place))


def youden_threshold(scores: Tensor | Sequence[float], y: Tensor | Sequence[float]) -> float:
    """The score from which on a subject is called positive so that sensitivity + specificity - 1 is largest.

    Choose it on validation subjects, never on those it is tested on. Of several best scores the largest.

    Args:
        scores: (S,).
        y: (S,), 0 or 1, both present.
    """
    score, label = torch.as_tensor(scores, dtype=torch.float64), torch.as_tensor(y)
    if score.dim() != 1 or score.shape != label.shape:
        raise ValueError(f"y: got the shape {tuple(label.shape)} for scores {tuple(score.shape)}, wanted (S,) and (S,)")
    if bool(score.isnan().any()):
        raise ValueError("scores: got NaN among them, wanted numbers")
    positive = label == 1
    if not bool((positive | (label == 0)).all()) or bool(positive.all()) or not bool(positive.any()):
        raise ValueError(f"y: got the values {sorted(set(label.tolist()))}, wanted both 0 and 1")
    candidates = score.unique().flip(0)
    called = score >= candidates.unsqueeze(1)
    index = called[:, positive].double().mean(1) - called[:, ~positive].double().mean(1)
    return float(candidates[index.argmax()])
