"""Search of the catalogue beside the BM25 libraries one would use instead: one query on 10,000 made-up papers.

A call answers the next of 64 queries with its ten best papers. The libraries rank by words alone; the search also
reads a misspelled word as what was meant, ranks by meaning, cuts the sentence that shows why, and reads the records
from its database. How well each answers the judged queries is said in the case's text; `quality` gives the numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import cycle, islice
from pathlib import Path

from paperworks.data.synthetic_papers import synthetic_papers, synthetic_queries
from paperworks.feed import PaperRecord, Search, Store
from paperworks.feed.evaluation import judged, ndcg
from paperworks.feed.terms import STOP_WORDS, stem, words
from paperworks.lab import registry
from paperworks.lab.benchmark import Case

METHOD = "Search, 20 items with snippets"
PAPERS, QUERIES, BEST = 10_000, 64, 10
Ask = Callable[[str], list[str]]
"""From a query to the ids of the best papers."""


def tokens(text: str) -> list[str]:
    """What the libraries index: stems without stop words, as the search's own full text has them."""
    return [stem(word) for word in words(text) if word not in STOP_WORDS]


def with_search(store: Store, weights: dict[str, float] | None = None) -> Ask:
    """The search over the store."""
    search = Search(store, weights=weights)
    search.refresh()
    return lambda query: [item.paper.key for item in search.query(query).items]


def with_rank_bm25(store: Store) -> Ask:
    """rank_bm25: every paper is scored in NumPy."""
    import numpy as np
    from rank_bm25 import BM25Okapi

    ids, texts = _texts(store)
    index = BM25Okapi([tokens(text) for text in texts])

    def ask(query: str) -> list[str]:
        scores = index.get_scores(tokens(query))
        best = np.argsort(-scores)[:BEST]
        return [ids[place] for place in best if scores[place] > 0]

    return ask


def with_bm25s(store: Store) -> Ask:
    """bm25s: scores of every word and paper are computed beforehand and added up."""
    import bm25s

    ids, texts = _texts(store)
    index = bm25s.BM25()
    index.index([tokens(text) for text in texts], show_progress=False)

    def ask(query: str) -> list[str]:
        found, scores = index.retrieve([tokens(query)], k=min(BEST, len(ids)), show_progress=False)
        return [ids[place] for place, score in zip(found[0], scores[0], strict=True) if score > 0]

    return ask


def _texts(store: Store) -> tuple[list[str], list[str]]:
    """Ids and texts; the title is counted four times and keywords twice, the weights of the search's own BM25."""
    records = list(store.records())
    return [record.key for record in records], [
        " ".join([record.title] * 4 + record.keywords * 2 + [record.summary, record.abstract]) for record in records
    ]


CONTENDERS: dict[str, Callable[[Store], Ask]] = {
    METHOD: with_search,
    "Search, words alone": partial(with_search, weights={"words": 1.0}),
    "rank_bm25 BM25Okapi": with_rank_bm25,
    "bm25s": with_bm25s,
}


@lru_cache(maxsize=1)
def made_up() -> tuple[Store, Sequence[str]]:
    """A store of made-up papers, in a folder that goes with the process, and queries."""
    folder = tempfile.TemporaryDirectory(prefix="paperworks-bench-")
    store = Store(Path(folder.name) / "feed.sqlite")
    _FOLDERS.append(folder)
    store.add(PaperRecord(**facts) for facts in synthetic_papers(PAPERS))
    return store, synthetic_queries(list(islice(synthetic_papers(PAPERS), 2000)), QUERIES)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def prepared(make: Callable[[Store], Ask]) -> Callable[[], object]:
    """The call to time: the next query of the round."""
    store, queries = made_up()
    ask, following = make(store), cycle(queries)
    return lambda: ask(next(following))


def quality(split: str = "test") -> dict[str, float]:
    """Mean nDCG@10 of each contender on the judged queries over the cards. A library that is missing is left out."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "feed.sqlite") as store:
        store.add_cards(registry.catalogue())
        keys = {record.card: record.key for record in store.records()}
        found = {}
        for name, make in CONTENDERS.items():
            try:
                ask = make(store)
            except ImportError:
                continue
            scores = [
                ndcg(ask(one["query"]), {keys[card]: grade for card, grade in one["relevant"].items()})
                for one in judged(split)
            ]
            found[name] = sum(scores) / len(scores)
        return found


def scale(papers: int, folder: str, queries: int = 200) -> dict[str, float]:
    """What so many made-up papers take: seconds to add, index and open, the database in MiB, memory, time a query.

    ``python benchmarks/daily_papers.py 1000000 FOLDER`` prints it. Seconds are of the wall clock, ``cpu_ms`` of the
    processor; the index is made in this process, memory is its largest.
    """
    import resource
    import time

    import numpy as np

    path, told, started = Path(folder) / "scale.sqlite", {}, time.perf_counter()
    with Store(path) as store:
        store.add(PaperRecord(**facts) for facts in synthetic_papers(papers))
        told["add_s"] = time.perf_counter() - started
        for step in ("index_s", "open_s"):
            search, started = Search(store), time.perf_counter()
            search.refresh()
            told[step] = time.perf_counter() - started
        asked = synthetic_queries(list(islice(synthetic_papers(papers), 2000)), queries + 4)
        taken = []
        for query in asked:
            wall, processor = time.perf_counter(), time.process_time()
            search.query(query)
            taken.append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)))
        for name, column in zip(("ms", "cpu_ms"), np.array(taken[4:]).T, strict=True):
            told |= {f"p50_{name}": float(np.median(column)), f"p95_{name}": float(np.quantile(column, 0.95))}
        told["largest_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    told["database_mib"] = path.stat().st_size / 2**20
    return told


def cases() -> list[Case]:
    """One query on 10,000 papers."""
    told = ", ".join(f"{name} {value:.3f}" for name, value in quality().items())
    return [
        Case(
            f"one query, {PAPERS:,} papers; nDCG@10 on the judged queries: {told}",
            METHOD,
            {name: partial(prepared, make) for name, make in CONTENDERS.items()},
            floor=f"the vectors of {PAPERS:,} papers read once, 128 float32 each; words: the postings of the query's "
            "terms; 20 records of about 2 KiB read from the database",
            floor_bytes=PAPERS * 128 * 4,
        )
    ]


if __name__ == "__main__":
    import json
    import sys

    sys.stdout.write(json.dumps(scale(int(sys.argv[1]), sys.argv[2]), indent=1) + "\n")
