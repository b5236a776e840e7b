"""Trending after random events, beside the sum over all of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import numpy as np

from paperworks.data.synthetic_papers import synthetic_papers
from paperworks.feed import PaperRecord, Store
from paperworks.feed.ranking import HALF_LIVES, WEIGHTS
from paperworks.feed.trends import trending

__all__ = ["recomputed_scores", "trending_differences"]

NOW = datetime(2026, 4, 24, 18, 30, tzinfo=UTC)
DAYS = 20


@contextmanager
def store_with_events(rng: np.random.Generator, n_papers: int, n_events: int) -> Iterator[Store]:
    """A store of papers that entered the feed on random days, and events that came in no order of time."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "feed.sqlite") as store:
        entered = [(NOW - timedelta(days=int(days))).date() for days in rng.integers(0, DAYS, n_papers)]
        facts = synthetic_papers(n_papers, seed=int(rng.integers(2**31)))
        records = [PaperRecord(**one, first_seen=day) for one, day in zip(facts, entered, strict=True)]
        store.add(records, NOW)
        for number in range(n_events):
            at = NOW - timedelta(seconds=float(rng.random() * DAYS * 86_400))
            # A third of the papers gets most of the events; a person may vote once for each.
            paper = records[int(rng.integers(n_papers) * rng.random() ** 2)]
            store.event(paper.key, str(rng.choice(list(WEIGHTS))), at, f"reader {number % 40}")
        yield store


def recomputed_scores(store: Store, half_life: float) -> dict[str, float]:
    """S(now) of every paper from all its events: sum of w 2^(-age / h), and the source's votes on the day of entry."""
    found = {}
    for record in store.records():
        counted = [(WEIGHTS[kind], at) for kind, _, at in store.history(record.key)]
        if record.first_seen is not None:
            counted.append((float(record.upvotes or 0), datetime.combine(record.first_seen, time(), UTC)))
        ages = [(weight, (NOW - at).total_seconds() / 3600) for weight, at in counted]
        if score := math.fsum(weight * 2 ** (-age / half_life) for weight, age in ages):
            found[record.key] = score
    return found


def trending_differences(rng: np.random.Generator, n_papers: int = 60, n_events: int = 400) -> dict[str, float]:
    """By half-life the largest difference of a score, and how many places of the order are another's; the events."""
    found: dict[str, float] = {}
    with store_with_events(rng, n_papers, n_events) as store:
        for window, half_life in HALF_LIVES.items():
            scores = recomputed_scores(store, half_life)
            order = sorted(scores, key=lambda key: (-scores[key], key))
            listed = trending(store, NOW, window, limit=n_papers)
            differences = [abs(score - scores.get(record.key, math.inf)) for record, score in listed]
            wrong = sum(a != b for a, b in zip([r.key for r, _ in listed], order, strict=False))
            found[f"half-life {half_life} h: largest difference"] = max(differences)
            found[f"half-life {half_life} h: wrong places"] = wrong + abs(len(listed) - len(order))
        found["events"] = sum(len(store.history(record.key)) for record in store.records())
    return found
