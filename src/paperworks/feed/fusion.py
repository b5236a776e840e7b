"""One order of papers from several: weighted reciprocal rank fusion, and the weights that were chosen for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from paperworks.feed.ranking import rrf

__all__ = ["DEPTH", "FLOOR", "PARTS", "WEIGHTS", "check_weights", "fuse"]

PARTS = ("words", "typos", "meaning")
"""The lists: papers that share words with the query, with what may have been meant by unknown words, and in meaning."""

WEIGHTS: Mapping[str, float] = {"words": 1.0, "typos": 1.0, "meaning": 1.0}
"""Chosen on the tuning half of the judged queries (`evaluation.choose_weights`): of 0.25 to 4 for meaning 1 is best;
that of typos makes no difference from 0.25 to 4."""

K = 60
"""Of the ranks; 1 to 60 differ by less than 0.005 in nDCG@10 on the tuning half."""

DEPTH = 200
"""Papers of each list that take part: a query finds at most three times as many."""

FLOOR = 0.3
"""Papers whose dot product with the query is below this share of the best one's are not in the list of meaning."""


def check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """One weight a list; those not given are 0. Raises ValueError for other names and for what is no weight."""
    found = dict(WEIGHTS if weights is None else weights)
    for name, weight in found.items():
        if name not in PARTS:
            raise ValueError(f"weights: got {name!r}, wanted {', '.join(PARTS)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"weights: got {weight!r} for {name}, wanted a number from 0")
    if not any(found.values()):
        raise ValueError("weights: got none above 0, wanted at least one")
    return {name: float(found.get(name, 0.0)) for name in PARTS}


def fuse(
    lists: Mapping[str, Sequence[str]], weights: Mapping[str, float], k: float = K
) -> list[tuple[str, float, dict[str, float]]]:
    """(key, score, what each list adds to it), best first: score = sum over the lists of weight / (k + rank).

    Ties: the one named in the earlier list, then by key. A list of weight 0 takes no part.
    """
    names = [name for name in PARTS if weights[name] > 0]
    parts: dict[str, dict[str, float]] = {}
    for name in names:
        for rank, key in enumerate(lists[name], 1):
            parts.setdefault(key, {})[name] = weights[name] / (k + rank)
    fused = rrf([lists[name] for name in names], k, [weights[name] for name in names])
    return [(key, score, parts[key]) for key, score in fused]
