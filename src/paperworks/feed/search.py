"""Search of the catalogue: by words, by what was meant where a word is spelled wrongly, and by meaning."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, select

from paperworks.feed import words as by_words
from paperworks.feed.evaluation import evaluate
from paperworks.feed.filters import check, conditions
from paperworks.feed.fusion import DEPTH, FLOOR, check_weights, fuse
from paperworks.feed.index import Corpus, Index
from paperworks.feed.meaning import LSA, Embedder, unit
from paperworks.feed.passages import Asked, Sentences, sentences
from paperworks.feed.records import PaperRecord
from paperworks.feed.store import Store
from paperworks.feed.tables import papers
from paperworks.feed.terms import words
from paperworks.feed.verdicts import Verdicts
from paperworks.feed.vocabulary import Reading

__all__ = ["Item", "Results", "Search"]

LONGEST = 1000
"""Characters of a query."""

MOST_WORDS = 64
"""Different words of a query that are looked for: the first."""

NEIGHBOURS = 50
"""Papers from which the similar ones are chosen."""

LIKENESS = 0.85
"""Share of likeness to the paper against difference from those chosen before, in `Search.similar`."""

KEPT_FILTERS = 32


class _Item(NamedTuple):
    paper: PaperRecord
    score: float
    parts: dict[str, float]
    snippet: str


class Item(_Item):
    """One paper that was found; as a tuple (paper, score, parts, snippet).

    Attributes:
        paper: the record.
        score: what it is ordered by.
        parts: what each list adds to the score: words, typos, meaning.
        snippet: the sentence that shows why.
        marks: where the words of the query stand in the snippet, as (start, end).
        why: one line: the words that it has, and the nearest sentence.
    """

    marks: tuple[tuple[int, int], ...]
    why: str

    def __new__(
        cls,
        paper: PaperRecord,
        score: float,
        parts: dict[str, float],
        snippet: str,
        marks: tuple[tuple[int, int], ...] = (),
        why: str = "",
    ) -> Item:
        made = super().__new__(cls, paper, score, parts, snippet)
        made.marks, made.why = marks, why
        return made


class Results(NamedTuple):
    """One page of what was found, how many there are on all pages, and the time it took in milliseconds."""

    items: list[Item]
    total: int
    took_ms: float


@dataclass(frozen=True)
class _Found:
    """The lists of a query, keys and numbers of their papers, and what the query was read as."""

    lists: dict[str, list[str]]
    numbers: dict[str, int]
    asked: Asked
    vector: NDArray[np.float32]
    corpus: Corpus


class Search:
    """Search over a store. Threads may share it; it keeps itself up to date with what is added to the store.

    Args:
        store: the catalogue.
        embedder: the model of meaning; None for `LSA`, fitted on the catalogue.
        weights: of the lists ``words``, ``typos``, ``meaning``; None for those chosen on judged queries.
        verdicts: for the filter of that name; None for those of the store.

    Raises ValueError for weights that are none.
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder | None = None,
        weights: Mapping[str, float] | None = None,
        verdicts: Verdicts | None = None,
    ) -> None:
        self.store, self.weights = store, check_weights(weights)
        self._verdicts = verdicts
        self._index = Index(store, LSA() if embedder is None else embedder)
        self._sentences = Sentences()
        self._allowed: dict[Any, tuple[list[ColumnElement[bool]], NDArray[np.int64]]] = {}
        self._lock = threading.Lock()

    @property
    def model(self) -> str:
        """The name of the model of meaning, with its fit."""
        return self._index.current().embedder.name

    def refresh(self) -> None:
        """Take in what was added to the store now, so that the next query need not: worth it after a large ingest."""
        self._index.current()

    def query(self, text: str, filters: Mapping[str, Any] | None = None, limit: int = 20, offset: int = 0) -> Results:
        """The papers that answer a query, best first; ties by id, so that pages never overlap.

        Args:
            text: up to 1000 characters, read as plain words; the last may be the beginning of one. Blank: no papers.
            filters: since and until (dates), area, author, code (bool), verdict (a status, or any); None is no filter.
            limit: papers on this page.
            offset: papers before it.

        Raises ValueError and TypeError for a text that is too long and for what is no filter, limit or offset.
        """
        started = time.perf_counter()
        _check_count("limit", limit, 1)
        _check_count("offset", offset, 0)
        found = self._find(text, check(filters))
        if found is None:
            return Results([], 0, 1000 * (time.perf_counter() - started))
        ranked = fuse(found.lists, self.weights)
        items = self._items(found, ranked[offset : offset + limit])
        return Results(items, len(ranked), 1000 * (time.perf_counter() - started))

    def lists(self, text: str) -> dict[str, list[str]]:
        """The keys of the papers in each list for a query, best first: what `query` fuses."""
        found = self._find(text, {})
        return {"words": [], "typos": [], "meaning": []} if found is None else found.lists

    def similar(self, id: str, limit: int = 10) -> list[Item]:
        """The papers nearest to one in meaning; those that repeat what a nearer one says come later.

        Maximal marginal relevance (Carbonell and Goldstein, 1998): the next is the one with the largest
        0.85 likeness to the paper - 0.15 largest likeness to one chosen before. The score is the likeness, in 0 to 1.

        Raises ValueError for a paper that is not in the catalogue and for a limit below 1.
        """
        _check_count("limit", limit, 1)
        number = self.store.number(id)
        if number is None:
            raise ValueError(f"id: got {id!r}, which is not in the catalogue")
        corpus = self._index.current()
        try:
            own = corpus.vectors.get(np.array([number], np.int64))[0]
        except KeyError:  # it came while another thread takes in what came before
            return []
        near = dict(corpus.vectors.nearest(own, max(NEIGHBOURS, 2 * limit) + 1))
        near.pop(number, None)
        if not near:
            return []
        chosen = _diverse(near, corpus.vectors.get(np.array(list(near), np.int64)), limit)
        records = self.store.numbered(chosen)
        shown = [number for number in chosen if number in records]
        told = [sentences(records[n]) for n in shown]
        closest = self._sentences.near(corpus.embedder, own, told)
        asked = Asked([], [], corpus.vocabulary)
        items = []
        for n, text, close in zip(shown, told, closest, strict=True):
            parts = {"meaning": near[n]}
            items.append(Item(records[n], near[n], parts, *asked.explain(records[n], parts, text, close)))
        return items

    def evaluate(self, judgements: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """How well judged queries are answered.

        Args:
            judgements: dicts with query, relevant (grades by arXiv id, card's id or title) and, where there are
                kinds of queries, kind. `paperworks.feed.evaluation.judged` has the project's own.

        Returns the means of ndcg@10, mrr, recall@5 and recall@20; the same ``by_kind`` and for each of the ``lists``
        alone; ``default_vs_words``, the paired bootstrap of the difference in ndcg@10 from words alone; queries,
        weights and model.

        Raises ValueError for no queries, and for papers that are not in the catalogue.
        """
        return evaluate(self, judgements)

    # how it is done

    def _find(self, text: str, filters: dict[str, Any]) -> _Found | None:
        if not isinstance(text, str):
            raise TypeError(f"text: got {type(text).__name__}, wanted a string")
        if len(text) > LONGEST:
            raise ValueError(f"text: got {len(text)} characters, wanted at most {LONGEST}")
        asked = list(dict.fromkeys(words(text)))[:MOST_WORDS]
        if not asked:
            return None
        corpus = self._index.current()
        allowed, among = self._allow(filters)
        readings = corpus.vocabulary.read(asked)
        typed = by_words.as_typed(readings, corpus.vocabulary)
        meant = by_words.as_meant(readings, corpus.vocabulary)
        numbers: dict[str, int] = {}
        lists: dict[str, list[str]] = {}
        with self.store.database.read() as connection:
            for name, terms in (("words", typed), ("typos", meant)):
                rows = by_words.nearest(connection, terms, corpus.vocabulary, allowed, DEPTH)
                numbers |= {key: number for number, key, _ in rows}
                lists[name] = [key for _, key, _ in rows]
        vector = unit(corpus.embedder.embed([_as_read(text, readings)]))[0]
        near = corpus.vectors.nearest(vector, DEPTH, among)
        keys = self._keys([number for number, _ in near], numbers)
        best = near[0][1] if near else 0.0
        near = [(number, product) for number, product in near if product >= FLOOR * best and number in keys]
        near.sort(key=lambda one: (-round(one[1], 6), keys[one[0]]))
        lists["meaning"] = [keys[number] for number, _ in near]
        numbers |= {keys[number]: number for number, _ in near}
        return _Found(lists, numbers, Asked(readings, [*typed, *meant], corpus.vocabulary), vector, corpus)

    def _keys(self, wanted: Sequence[int], known: Mapping[str, int]) -> dict[int, str]:
        found = {number: key for key, number in known.items()}
        if missing := [number for number in wanted if number not in found]:
            query = select(papers.c.number, papers.c.key).where(papers.c.number.in_(missing))
            with self.store.database.read() as connection:
                found |= {row.number: row.key for row in connection.execute(query)}
        return found

    def _allow(self, filters: dict[str, Any]) -> tuple[list[ColumnElement[bool]], NDArray[np.int64] | None]:
        """The conditions of the filters, and the numbers of the papers that meet them; None for all."""
        if not filters:
            return [], None
        if "verdict" in filters and self._verdicts is None:
            self._verdicts = Verdicts(self.store)
        told = self._verdicts.generation() if self._verdicts is not None and "verdict" in filters else ""
        key = (self._index.tick, told, tuple(sorted(filters.items())))
        with self._lock:
            kept = self._allowed.get(key)
        if kept is None:
            allowed = conditions(self.store, filters, self._verdicts)
            query = select(papers.c.number).where(*allowed).order_by(papers.c.number)
            with self.store.database.read() as connection:
                kept = (allowed, np.fromiter(connection.scalars(query), np.int64))
            with self._lock:
                while len(self._allowed) >= KEPT_FILTERS:
                    self._allowed.pop(next(iter(self._allowed)))
                self._allowed[key] = kept
        return kept

    def _items(self, found: _Found, ranked: Sequence[tuple[str, float, dict[str, float]]]) -> list[Item]:
        records = self.store.numbered(found.numbers[key] for key, _, _ in ranked)
        shown = [
            (records[found.numbers[key]], score, parts) for key, score, parts in ranked if found.numbers[key] in records
        ]
        told = [sentences(record) for record, _, _ in shown]
        by_meaning = [text if "meaning" in parts else [] for (_, _, parts), text in zip(shown, told, strict=True)]
        near = self._sentences.near(found.corpus.embedder, found.vector, by_meaning)
        return [
            Item(record, score, parts, *found.asked.explain(record, parts, text, close))
            for (record, score, parts), text, close in zip(shown, told, near, strict=True)
        ]


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, wanted a whole number")
    if value < least:
        raise ValueError(f"{name}: got {value}, wanted {least} or more")


def _as_read(text: str, readings: Sequence[Reading]) -> str:
    """The query as its words were read; as it stands where all are known."""
    if all(reading.known and not (reading.begun or reading.meant) for reading in readings):
        return text
    return " ".join(word for r in readings for word in (r.meant or r.begun[:1] or (r.word,)))


def _diverse(near: Mapping[int, float], vectors: NDArray[np.float32], limit: int) -> list[int]:
    """Maximal marginal relevance over papers by number, nearest first, with their vectors one a row."""
    numbers, likeness = list(near), np.array(list(near.values()))
    repeated = np.zeros(len(numbers))
    left = np.ones(len(numbers), bool)
    chosen: list[int] = []
    for _ in range(min(limit, len(numbers))):
        worth = np.where(left, LIKENESS * likeness - (1 - LIKENESS) * repeated, -np.inf)
        best = int(worth.argmax())
        left[best] = False
        chosen.append(numbers[best])
        repeated = np.maximum(repeated, vectors @ vectors[best])
    return chosen
