"""How good a search is: measures over judged queries, and the queries that this project has judged.

Grades are whole numbers; 0, or not named, is not relevant. nDCG (Järvelin and Kekäläinen, 2002): the gain of a paper at
rank r is (2^grade - 1) / log2(r + 1), the sum over the first ten divided by that of the best order.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import select

from paperworks.feed.fusion import PARTS, fuse
from paperworks.feed.records import title_key
from paperworks.feed.store import Store
from paperworks.feed.tables import papers

if TYPE_CHECKING:
    from paperworks.feed.search import Search

__all__ = [
    "MEASURES",
    "choose_weights",
    "evaluate",
    "judged",
    "measures",
    "ndcg",
    "paired_bootstrap",
    "recall",
    "reciprocal_rank",
]

MEASURES = ("ndcg@10", "mrr", "recall@5", "recall@20")

GRID = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Weights that are tried for each list beside 1 for words."""

Grades = Mapping[str, int]


def judged(split: str | None = None) -> list[dict[str, Any]]:
    """The judged queries of the project: dicts with query, kind, split, and relevant (grades by a card's id).

    Args:
        split: ``tune``, on which weights are chosen, or ``test``, whose numbers are told; None for both.
    """
    listed = tomllib.loads(files("paperworks.feed").joinpath("judged.toml").read_text(encoding="utf-8"))["query"]
    found = [{"query": one["text"], **{name: one[name] for name in ("kind", "split", "relevant")}} for one in listed]
    if split not in (None, *{one["split"] for one in found}):
        raise ValueError(f"split: got {split!r}, wanted tune, test or None")
    return [one for one in found if split in (None, one["split"])]


def ndcg(ranked: Sequence[str], grades: Grades, depth: int = 10) -> float:
    """Normalised discounted cumulative gain of the first `depth`; 0 where nothing is relevant."""
    best = _gain(sorted(grades.values(), reverse=True)[:depth])
    return _gain([grades.get(id, 0) for id in ranked[:depth]]) / best if best else 0.0


def _gain(grades: Sequence[int]) -> float:
    return math.fsum((2**grade - 1) / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))


def reciprocal_rank(ranked: Sequence[str], grades: Grades) -> float:
    """1 / rank of the first relevant one; 0 where there is none."""
    return next((1 / rank for rank, id in enumerate(ranked, 1) if grades.get(id, 0) > 0), 0.0)


def recall(ranked: Sequence[str], grades: Grades, depth: int) -> float:
    """Share of the relevant ones that stand among the first `depth`; 0 where nothing is relevant."""
    relevant = {id for id, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranked[:depth])) / len(relevant) if relevant else 0.0


def measures(ranked: Sequence[str], grades: Grades) -> dict[str, float]:
    """All of `MEASURES` for one query."""
    return {
        "ndcg@10": ndcg(ranked, grades),
        "mrr": reciprocal_rank(ranked, grades),
        "recall@5": recall(ranked, grades, 5),
        "recall@20": recall(ranked, grades, 20),
    }


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> dict[str, float]:
    """The mean of a - b over queries, with the percentile interval of resampled queries.

    Returns difference, low, high, and p, the two-sided share of resamples on the other side of 0. Raises ValueError
    where `a` and `b` are not as long.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a, b: got {len(a)} and {len(b)} queries, wanted as many, and at least one")
    difference = np.asarray(a, float) - np.asarray(b, float)
    generator = np.random.default_rng(seed)
    means = difference[generator.integers(0, len(difference), (resamples, len(difference)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    p = min(1.0, 2 * float(min((means <= 0).mean(), (means >= 0).mean())))
    return {"difference": float(difference.mean()), "low": float(low), "high": float(high), "p": p}


def grades_of(store: Store, relevant: Grades) -> dict[str, int]:
    """Grades by the paper's key, of grades by arXiv id, card's id, id made from a title, or title.

    Raises ValueError for one that the catalogue does not have, and for a grade that is none.
    """
    found: dict[str, int] = {}
    for id, grade in relevant.items():
        if isinstance(grade, bool) or not isinstance(grade, int) or grade < 0:
            raise ValueError(f"relevant: got the grade {grade!r} for {id!r}, wanted a whole number from 0")
        number = store.number(id)
        title = papers.c.number == number if number is not None else papers.c.title_key == title_key(id)
        with store.database.read() as connection:
            key = connection.scalar(select(papers.c.key).where(title).order_by(papers.c.number).limit(1))
        if key is None:
            raise ValueError(f"relevant: got {id!r}, which is not in the catalogue")
        found[str(key)] = grade
    return found


def evaluate(search: Search, judgements: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """See `Search.evaluate`."""
    asked = list(judgements)
    if not asked:
        raise ValueError("judgements: got none, wanted at least one query")
    grades = [grades_of(search.store, one["relevant"]) for one in asked]
    lists = [search.lists(one["query"]) for one in asked]
    kinds = [str(one.get("kind", "")) for one in asked]
    ways = {"default": search.weights} | {name: {**dict.fromkeys(PARTS, 0.0), name: 1.0} for name in PARTS}
    told = {}
    scored = {}
    for name, weights in ways.items():
        ranked = [[key for key, _, _ in fuse(one, weights)] for one in lists]
        scored[name] = [measures(keys, grade) for keys, grade in zip(ranked, grades, strict=True)]
        told[name] = _mean(scored[name]) | {
            "by_kind": {
                kind: _mean([one for one, its in zip(scored[name], kinds, strict=True) if its == kind])
                for kind in dict.fromkeys(kinds)
            }
        }
    gain = [[one["ndcg@10"] for one in scored[name]] for name in ("default", "words")]
    return {
        **told.pop("default"),
        "queries": len(asked),
        "lists": told,
        "default_vs_words": paired_bootstrap(*gain),
        "weights": dict(search.weights),
        "model": search.model,
    }


def _mean(scored: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scored])) for name in MEASURES}


def choose_weights(search: Search, judgements: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], float]:
    """The weights of `GRID` with the best mean nDCG@10, 1 for words, and that nDCG. Ties: the smaller weights."""
    asked = list(judgements)
    grades = [grades_of(search.store, one["relevant"]) for one in asked]
    lists = [search.lists(one["query"]) for one in asked]
    best: tuple[float, dict[str, float]] = (-1.0, {})
    for typos in GRID:
        for meaning in GRID:
            weights = {"words": 1.0, "typos": typos, "meaning": meaning}
            ranked = [[key for key, _, _ in fuse(one, weights)] for one in lists]
            mean = float(np.mean([ndcg(keys, grade) for keys, grade in zip(ranked, grades, strict=True)]))
            best = max(best, (mean, weights), key=lambda found: round(found[0], 6))
    return best[1], best[0]
