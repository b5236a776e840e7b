"""Made-up papers: the same for the same seed, distinct, of a length and a spread of words that papers have."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from paperworks.data.synthetic_papers import synthetic_papers, synthetic_queries
from paperworks.feed import PaperRecord


def test_the_same_seed_gives_the_same_papers_however_many_are_asked_for() -> None:
    some = list(synthetic_papers(1500, seed=3))
    assert some[:70] == list(synthetic_papers(70, seed=3))
    assert some == list(islice(synthetic_papers(1_000_000, seed=3), 1500))
    assert some[0] != next(synthetic_papers(1, seed=4))
    assert list(synthetic_papers(0)) == []


def test_they_are_records_with_ids_of_their_own() -> None:
    made = list(synthetic_papers(2500))
    records = [PaperRecord(**facts) for facts in made]
    assert len({record.key for record in records}) == len({record.title for record in records}) == 2500
    assert all(80 <= len(record.abstract.split()) <= 220 for record in records)
    assert all(1 <= len(record.authors or []) <= 8 for record in records)
    assert all(record.id and record.id >= "8001" for record in records), "no paper is from the 2080s"


def test_words_follow_zipfs_law() -> None:
    counts = Counter(word for facts in synthetic_papers(3000) for word in facts["abstract"].lower().split())
    frequencies = np.array(sorted(counts.values(), reverse=True), dtype=float)
    ranks = np.arange(1, len(frequencies) + 1)
    middle = slice(10, 3000)
    slope = np.polyfit(np.log(ranks[middle]), np.log(frequencies[middle]), 1)[0]
    assert -1.4 < slope < -0.7
    assert len(frequencies) > 15_000


def test_papers_of_one_topic_share_more_words() -> None:
    made = list(synthetic_papers(400))
    bags = [set(facts["abstract"].lower().split()) for facts in made]
    topics = [tuple(facts["keywords"]) for facts in made]
    alike = {True: [], False: []}  # type: dict[bool, list[float]]
    for a in range(0, 400, 2):
        for b in range(a):
            alike[topics[a] == topics[b]].append(len(bags[a] & bags[b]) / len(bags[a] | bags[b]))
    assert np.mean(alike[True]) > 1.3 * np.mean(alike[False])


def test_queries_come_from_the_papers() -> None:
    made = list(synthetic_papers(50))
    queries = synthetic_queries(made, 40, seed=1)
    assert queries == synthetic_queries(made, 40, seed=1) != synthetic_queries(made, 40, seed=2)
    words = {word.strip(".").lower() for facts in made for word in f"{facts['title']} {facts['abstract']}".split()}
    known = [all(word in words for word in query.split()) for query in queries]
    assert all(known[i] for i in range(40) if i % 4 != 3)
    assert not all(known), "every fourth has a slip"
    assert {1, 2, 3, 4} == {len(query.split()) for query in queries}


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"n: got -1"):
        next(synthetic_papers(-1))
    with pytest.raises(ValueError, match=r"papers: got none"):
        synthetic_queries([], 3)
