"""How well a search answers the judged queries of the catalogue: one fold of the queries a seed."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperworks.lab.nouns import Arm, Setting, protocol
from paperworks.lab.trial import Trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from paperworks.feed import Search, Store

__all__ = ["KINDS", "fold", "retrieval", "search", "with_minilm", "with_random_vectors"]

KINDS = ("name", "words", "paraphrase", "typo")


def search(store: Store, weights: Mapping[str, float] | None = None) -> Search:
    """The search as it comes, or with other weights of its lists."""
    from paperworks.feed import Search

    return Search(store, weights=weights)


def with_minilm(store: Store) -> Search:
    """The search with a sentence encoder in place of latent semantic analysis."""
    from paperworks.feed import Search
    from paperworks.feed.meaning import MiniLM

    return Search(store, embedder=MiniLM())


class RandomVectors:
    """An encoder that says nothing: a vector drawn for every text."""

    name = "random"

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Rows of unit length, the same for the same text."""
        import numpy as np

        from paperworks.feed.meaning import unit

        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
        drawn = [np.random.default_rng(seed).standard_normal(64) for seed in seeds]
        return unit(np.array(drawn).reshape(len(texts), 64))


def with_random_vectors(store: Store, weights: Mapping[str, float] | None = None) -> Search:
    """The search whose meaning is drawn at random."""
    from paperworks.feed import Search

    return Search(store, embedder=RandomVectors(), weights=weights)


def fold(queries: list[dict[str, Any]], folds: int, number: int) -> list[dict[str, Any]]:
    """The queries of one of `folds` disjoint parts, each with as many of every kind as any other, give or take one."""
    chosen = []
    for kind in KINDS:
        of_kind = sorted((one for one in queries if one["kind"] == kind), key=lambda one: _digest(one["query"]))
        chosen += of_kind[number % folds :: folds]
    return chosen


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def judged_signature(split: str) -> str:
    """Digest of the judged queries of a half, and of what the catalogue says of its papers."""
    from paperworks.feed.evaluation import judged
    from paperworks.feed.store import card_record
    from paperworks.papers.protocols.feed_pages import carried_papers

    return _digest([judged(split), [asdict(card_record(card)) for card in carried_papers()]])


def _half(value: str) -> None:
    if value not in ("test", "tune"):
        raise ValueError(f"got {value!r}, wanted test or tune")


@protocol(
    "retrieval",
    metrics={
        "ndcg@10": "normalised discounted cumulative gain of the first ten papers, mean over the fold's queries",
        "mrr": "mean reciprocal rank of the first relevant paper",
        "recall@5": "share of the relevant papers among the first five",
    },
    settings=(
        Setting(
            "judged", str, "test", "half of the judged queries: test, or tune, on which weights were chosen", _half,
            "paperworks.papers.protocols.feed_retrieval:judged_signature",
        ),
        Setting("folds", int, 10, "parts that the queries are divided into"),
    ),
)  # fmt: skip
def retrieval(trial: Trial, arm: Arm) -> dict[str, float]:
    """The arm's target makes a search of a store that has the catalogue's 45 papers.

    The folds have no query in common, so the differences of two arms over folds are as independent as the queries are.
    """
    from paperworks.feed import Store
    from paperworks.feed.evaluation import judged
    from paperworks.papers.protocols.feed_pages import carried_papers

    queries = fold(judged(trial.settings["judged"]), trial.settings["folds"], trial.seed)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "feed.sqlite") as store:
        store.add_cards(carried_papers())
        found = arm.build(store).evaluate(queries)
    trial.curve("nDCG@10 by kind", [found["by_kind"][kind]["ndcg@10"] for kind in KINDS])
    return {name: found[name] for name in ("ndcg@10", "mrr", "recall@5")}
