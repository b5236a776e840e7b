"""How long a reader waits for a search, and a site for its index."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial

if TYPE_CHECKING:
    import torch

    from paperworks.feed import PaperRecord, Store

__all__ = ["index_building", "search_latency"]

KEPT_ABOVE = 5000
GIVE_UP = 90.0  # seconds after which a build that has lost is not waited for
Ask = Callable[[str], object]


# --- ways to search: arms ---


def indexed(store: Store) -> Ask:
    """The search over its index, which is read once."""
    from paperworks.feed import Search

    search = Search(store)
    search.refresh()
    return search.query


def fitted_for_each_query(store: Store) -> Ask:
    """The search whose model of meaning is fitted for every query."""
    from paperworks.feed import Search
    from paperworks.feed.meaning import LSA

    asked = iter(range(1, 1_000_000))
    return lambda query: Search(store, embedder=LSA(seed=next(asked))).query(query)


def reading_every_paper(store: Store) -> Ask:
    """No index: every paper is read for every query, and the one with most of the words comes first."""
    texts = [(record.key, f"{record.title} {record.summary} {record.abstract}".lower()) for record in store.records()]

    def ask(query: str) -> list[tuple[int, str]]:
        wanted = set(re.findall(r"\w+", query.lower()))
        scored = [(sum(word in wanted for word in re.findall(r"\w+", text)), key) for key, text in texts]
        return sorted(scored, key=lambda one: (-one[0], one[1]))[:20]

    return ask


# --- the papers ---


def _filled(path: Path, papers: int, with_index: bool) -> None:
    from paperworks.data.synthetic_papers import synthetic_papers
    from paperworks.feed import PaperRecord, Search, Store

    with Store(path) as store:
        store.add(PaperRecord(**facts) for facts in synthetic_papers(papers))
        if with_index:
            Search(store).refresh()


def make_store(path: Path, papers: int) -> None:
    """A store of so many made-up papers with its index, or of the catalogue for 0. A large one is made once."""
    if papers == 0:
        from paperworks.feed import Store
        from paperworks.papers.protocols.feed_pages import carried_papers

        with Store(path) as store:
            store.add_cards(carried_papers())
        return
    if papers <= KEPT_ABOVE:
        _filled(path, papers, with_index=True)
        return
    from paperworks.lab.fingerprint import fingerprint
    from paperworks.lab.stages import kept

    def make() -> dict[str, torch.Tensor]:
        import torch

        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "feed.sqlite"
            _filled(made, papers, with_index=True)
            return {"sqlite": torch.frombuffer(bytearray(made.read_bytes()), dtype=torch.uint8)}

    code = fingerprint(f"{__name__}:_filled")
    kept({"code": code, "papers": papers}, make)["sqlite"].numpy().tofile(path)


def _queries(papers: int, n: int, seed: int) -> list[str]:
    if papers == 0:
        import numpy as np

        from paperworks.feed.evaluation import judged

        texts = [one["query"] for one in judged()]
        return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))[:n]]
    from itertools import islice

    from paperworks.data.synthetic_papers import synthetic_papers, synthetic_queries

    return synthetic_queries(list(islice(synthetic_papers(papers), 2000)), n, seed)


def timed(ask: Ask, queries: Sequence[str], patience: float) -> list[float]:
    """Milliseconds for each query, until the patience of so many seconds is at an end."""
    found: list[float] = []
    for query in queries:
        started = time.perf_counter()
        ask(query)
        found.append(1000 * (time.perf_counter() - started))
        if sum(found) > 1000 * patience:
            break
    return found


@protocol(
    "search latency",
    metrics={
        "p95_ms": "95th percentile of the time from a query to its first 20 papers with snippets, in milliseconds",
        "p50_ms": "median of that time",
    },
    settings=(
        Setting("papers", int, 0, "made-up papers; 0 for the catalogue's 45 and its judged queries"),
        Setting("queries", int, Tiers(smoke=20, desk=100), "different queries, none of them asked before"),
        Setting("patience", float, 20.0, "seconds after which no further query is asked"),
    ),
    exclusive=True,
    time_limit=600.0,
    preload=("sqlalchemy", "alembic.command"),
)
def search_latency(trial: Trial, arm: Arm) -> dict[str, float]:
    """The arm's target makes of a store the function that answers a query. The papers are the same for every seed,
    process and queries are its own; two queries before the first that counts load what is loaded late."""
    import numpy as np

    from paperworks.feed import Store

    s: dict[str, Any] = trial.settings
    queries = _queries(s["papers"], s["queries"] + 2, trial.derived_seed("queries") % 2**31)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed.sqlite"
        make_store(path, s["papers"])
        trial.progress(0.5, "queries")
        with Store(path) as store:
            trial.curve("papers", [len(store)])
            ask = arm.build(store)
            timed(ask, queries[:2], s["patience"])
            taken = timed(ask, queries[2:], s["patience"])
    trial.curve("milliseconds", taken)
    return {"p95_ms": float(np.quantile(taken, 0.95)), "p50_ms": float(np.median(taken))}


# --- building ---


def at_once(store: Store, records: Sequence[PaperRecord]) -> None:
    """All papers, then their index."""
    from paperworks.feed import Search

    store.add(records)
    Search(store).query(records[0].title)


def one_at_a_time(store: Store, records: Sequence[PaperRecord]) -> None:
    """The index made anew after each paper; given up where it has taken too long."""
    from paperworks.feed import Search
    from paperworks.feed.meaning import LSA

    started = time.perf_counter()
    for number, record in enumerate(records):
        store.add([record])
        Search(store, embedder=LSA(seed=number)).query(record.title)
        if time.perf_counter() - started > GIVE_UP:
            return


@protocol(
    "index building",
    metrics={"seconds": "time from records to the first answer, in a store that was empty"},
    settings=(Setting("papers", int, Tiers(smoke=200, desk=10_000), "made-up papers"),),
    exclusive=True,
    time_limit=600.0,
    preload=("sqlalchemy", "alembic.command"),
)
def index_building(trial: Trial, arm: Arm) -> dict[str, float]:
    """The arm's target puts records into a store and makes them found. Each seed has papers of its own."""
    from paperworks.data.synthetic_papers import synthetic_papers
    from paperworks.feed import PaperRecord, Store

    facts = synthetic_papers(trial.settings["papers"], trial.derived_seed("papers") % 2**31)
    records = [PaperRecord(**one) for one in facts]
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "feed.sqlite") as store:
        started = time.perf_counter()
        arm.build(store, records)
        return {"seconds": time.perf_counter() - started}
