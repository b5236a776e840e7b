"""The list of papers that share words with a query, best first: FTS5 and BM25 on SQLite, text vectors on PostgreSQL.

What a reader types never reaches the database as query syntax: it is cut into words, and each is quoted.

SQLite: BM25 over title, keywords and body with the weights 4, 2, 1 (SQLite's own sign: smaller is better). PostgreSQL:
sum over the words of idf(word) ts_rank_cd, with the same weights, since its own ranks know no rare words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, column, func, literal_column, select, table, text

from paperworks.feed.tables import papers
from paperworks.feed.terms import STOP_WORDS
from paperworks.feed.vocabulary import Reading, Vocabulary

__all__ = ["Term", "as_meant", "as_typed", "nearest"]

WEIGHTS = (4.0, 2.0, 1.0)
"""Of title, keywords, body."""

SCANNED = 20_000
"""Papers that are ranked for one query: bounds its time. Frequent words are left out before rare ones; of a single word
that more papers have, the newest so many are ranked."""

PREFIX = 2
"""Letters from which the last word is also taken as a beginning."""

_words = table("search_words", column("rowid"), column("paper"), column("words"))


@dataclass(frozen=True)
class Term:
    """A word to look for, as itself or as the beginning of one, with the number of papers that have it."""

    word: str
    papers: int
    prefix: bool = False


def as_typed(readings: Sequence[Reading], vocabulary: Vocabulary) -> list[Term]:
    """The words as they stand, the last also as a beginning."""
    found = []
    for place, reading in enumerate(readings):
        if reading.begun:
            found += [Term(word, vocabulary.papers_with(word)) for word in reading.begun]
            continue
        count = vocabulary.papers_with(reading.word)
        begun = 0
        if place == len(readings) - 1 and len(reading.word) >= PREFIX:
            begun = max(count, vocabulary.papers_begun(reading.word))
        # a beginning of very many words says nothing, and reading them all takes long
        prefix = 0 < begun <= max(SCANNED // 4, 2 * count)
        found.append(Term(reading.word, begun if prefix else count, prefix))
    return _chosen(found, vocabulary.papers)


def as_meant(readings: Sequence[Reading], vocabulary: Vocabulary) -> list[Term]:
    """The words with unknown ones replaced by what may have been meant; none where there is nothing to replace."""
    if not any(reading.meant for reading in readings):
        return []
    found = [word for r in readings for word in (r.meant or r.begun or (r.word,))]
    return _chosen([Term(word, vocabulary.papers_with(word)) for word in found], vocabulary.papers)


def _chosen(terms: Sequence[Term], papers: int) -> list[Term]:
    """The terms worth looking for: no stop words, none that most papers have, and no more papers than are ranked."""
    known = list({term.word: term for term in terms}.values())
    telling = [term for term in known if term.word not in STOP_WORDS] or known
    rare = [term for term in telling if 2 * term.papers <= papers] or telling
    kept: list[Term] = []
    scanned = 0
    for term in sorted(rare, key=lambda term: term.papers):
        scanned += term.papers
        if kept and scanned > SCANNED:
            break
        kept.append(term)
    return [term for term in known if term in kept]


def nearest(
    connection: Connection,
    terms: Sequence[Term],
    vocabulary: Vocabulary,
    conditions: Sequence[ColumnElement[bool]],
    limit: int,
) -> list[tuple[int, str, float]]:
    """(number, key, score) of the papers that have any of the terms and meet the conditions, best first, ties by key.

    Scores are above 0. At most `limit` of them.
    """
    if not terms:
        return []
    find = _postgres if connection.dialect.name == "postgresql" else _sqlite
    return find(connection, terms, vocabulary, conditions, limit)


def _ranked(found: Any, limit: int) -> Any:
    best = (
        select(found).where(found.c.score > 0).order_by(found.c.score.desc(), found.c.number).limit(limit).cte("best")
    )
    query = select(best.c.number, papers.c.key, best.c.score).join(papers, papers.c.number == best.c.number)
    return query.order_by(best.c.score.desc(), papers.c.key)


def _sqlite(
    connection: Connection,
    terms: Sequence[Term],
    vocabulary: Vocabulary,
    conditions: Sequence[ColumnElement[bool]],
    limit: int,
) -> list[tuple[int, str, float]]:
    score = (-func.bm25(literal_column("search_words"), *WEIGHTS)).label("score")
    match = literal_column("search_words").op("MATCH")(" OR ".join(f'"{t.word}"' + "*" * t.prefix for t in terms))
    query = select(_words.c.rowid.label("number"), score).where(match)
    if conditions:
        query = query.join(papers, papers.c.number == _words.c.rowid).where(*conditions)
    found = query.order_by(_words.c.rowid.desc()).limit(SCANNED).cte("found")
    return [tuple(row) for row in connection.execute(_ranked(found, limit))]


def _postgres(
    connection: Connection,
    terms: Sequence[Term],
    vocabulary: Vocabulary,
    conditions: Sequence[ColumnElement[bool]],
    limit: int,
) -> list[tuple[int, str, float]]:
    score: Any = 0.0
    matched: Any = None
    shares = ", ".join(f"{weight / max(WEIGHTS):g}" for weight in reversed(WEIGHTS))
    weights: Any = literal_column(f"'{{0, {shares}}}'::real[]")  # of the labels D (not used), C, B, A
    for place, term in enumerate(terms):
        word = f"'{term.word}'" + ":*" * term.prefix
        one = func.to_tsquery(text("'english'"), bindparam(f"term{place}", word))
        idf = math.log(1 + (vocabulary.papers - term.papers + 0.5) / (term.papers + 0.5))
        score = score + max(idf, 1e-6) * func.ts_rank_cd(weights, _words.c.words, one, 1)
        matched = one if matched is None else matched.op("||")(one)
    query = select(_words.c.paper.label("number"), score.label("score")).where(_words.c.words.op("@@")(matched))
    if conditions:
        query = query.join(papers, papers.c.number == _words.c.paper).where(*conditions)
    found = query.order_by(_words.c.paper.desc()).limit(SCANNED).cte("found")
    return [tuple(row) for row in connection.execute(_ranked(found, limit))]
