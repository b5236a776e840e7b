"""What search knows of all papers beside the database: their words and their vectors, kept up with what is added.

The database says which papers changed (see migration 0003), so that nothing is read twice. A fit of `LSA` and the
vectors of every model are kept there too: another process, or the next one, reads them instead of making them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, Select, delete, func, insert, select

from paperworks.feed.meaning import LSA, Embedder, unit
from paperworks.feed.pgvector import PgVectors, vectors_for
from paperworks.feed.store import Store
from paperworks.feed.tables import embeddings, papers
from paperworks.feed.vectors import Vectors
from paperworks.feed.vocabulary import Vocabulary
from paperworks.lab.store.database import StoreError

__all__ = ["Corpus", "Index", "text_of"]

GROWTH = 1.2
"""A fit serves until the catalogue is so many times as large as it was fitted on."""

SAMPLE = 20_000
"""Papers that a fit reads: of more, so many at even distances."""

INT8_ABOVE = 500_000
"""Papers from which vectors are kept in 8 bits."""

BLOCK = 2000
"""Papers that are read, embedded and kept at once."""

_own = sa.MetaData()  # made by a migration alone, see there
changes = sa.Table("search_changes", _own, sa.Column("tick", sa.BigInteger), sa.Column("paper", sa.BigInteger))
models = sa.Table(
    "search_models",
    _own,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text),
    sa.Column("papers", sa.Integer),
    sa.Column("data", sa.LargeBinary),
)


def text_of(title: str, keywords: str, body: str) -> str:
    """The text of a paper that is turned into a vector. The title counts twice."""
    return f"{title}. {title}. {body}\n{keywords}"


@dataclass(frozen=True)
class Corpus:
    """The words and the vectors of all papers, and the model of the vectors."""

    vocabulary: Vocabulary
    vectors: Vectors | PgVectors
    embedder: Embedder
    fitted: int
    """Papers that there were when the model was fitted."""


class Index:
    """The corpus of a store, brought up to date when it is asked for. Threads may share it.

    Args:
        store: the catalogue.
        embedder: an `LSA` is fitted on the catalogue, and again when that grew by a fifth; any other is used as it is.
    """

    def __init__(self, store: Store, embedder: Embedder) -> None:
        self.store, self.given = store, embedder
        self.tick = -1
        """Changes of the papers that are known, as the database counts them."""
        self._corpus: Corpus | None = None
        self._lock = threading.Lock()

    def current(self) -> Corpus:
        """The corpus with every change of the papers. While one thread works on it, others get it as it was."""
        with self.store.database.read() as connection:
            tick = int(connection.scalar(select(func.max(changes.c.tick))) or 0)
        corpus = self._corpus
        if corpus is not None and tick == self.tick:
            return corpus
        if not self._lock.acquire(blocking=corpus is None):
            assert corpus is not None
            return corpus
        try:
            if self._corpus is None or tick > self.tick:
                self._corpus = self._renewed(self._corpus, tick)
                self.tick = tick
            return self._corpus
        finally:
            self._lock.release()

    def _renewed(self, corpus: Corpus | None, tick: int) -> Corpus:
        total = len(self.store)
        if corpus is None or (isinstance(self.given, LSA) and total > GROWTH * corpus.fitted):
            return self._built(total)
        changed = select(changes.c.paper).where(changes.c.tick > self.tick, changes.c.tick <= tick)
        with self.store.database.read() as connection:
            numbers = list(connection.scalars(changed.order_by(changes.c.paper)))
        found: set[int] = set()
        for start in range(0, len(numbers), BLOCK):
            asked = papers.c.number.in_(numbers[start : start + BLOCK])
            found.update(self._read(corpus, self._rows(_texts().where(asked))))
        corpus.vectors.drop(np.array([n for n in numbers if n not in found], np.int64))
        return corpus

    def _built(self, total: int) -> Corpus:
        embedder, fitted = self._model(total)
        width = _checked(embedder, ["a"]).shape[1]
        vectors = vectors_for(self.store, embedder.name, width, total, int8=total > INT8_ABOVE)
        corpus = Corpus(Vocabulary(), vectors, embedder, fitted)
        last = 0
        while rows := self._rows(_texts().where(papers.c.number > last).limit(BLOCK)):
            self._read(corpus, rows)
            last = rows[-1].number
        if isinstance(vectors, PgVectors):
            vectors.prepare()
        return corpus

    def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        with self.store.database.read() as connection:
            return connection.execute(query).all()

    def _read(self, corpus: Corpus, rows: Sequence[Row[Any]]) -> list[int]:
        """Take the words and the vectors of these papers in; the vectors from the database where they are kept."""
        if not rows:
            return []
        numbers = [row.number for row in rows]
        texts = [text_of(row.title, row.keywords, row.body) for row in rows]
        corpus.vocabulary.add(texts, (f"{row.title}, {row.keywords}" for row in rows))
        digests = [hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() for text in texts]
        model, width = corpus.embedder.name, corpus.vectors.dimensions
        kept = {row.paper: row for row in self._rows(_vectors(model, numbers))}
        found = np.zeros((len(rows), width), np.float32)
        missing = []
        for place, number in enumerate(numbers):
            row = kept.get(number)
            if row is not None and row.digest == digests[place] and len(row.vector) == width:
                found[place] = row.vector
            else:
                missing.append(place)
        if missing:
            found[missing] = _checked(corpus.embedder, [texts[place] for place in missing])
            values = [
                {"paper": numbers[p], "model": model, "digest": digests[p], "vector": found[p]} for p in missing
            ]  # fmt: skip
            # who may only read, or a paper that went away meanwhile: the vectors are still in memory
            with contextlib.suppress(StoreError):
                self.store.database.write(lambda connection: self._keep(connection, values))
        corpus.vectors.put(np.array(numbers, np.int64), found)
        return numbers

    def _keep(self, connection: Connection, values: list[dict[str, Any]]) -> None:
        row = self.store.database.insert(embeddings)
        new = {"digest": row.excluded.digest, "vector": row.excluded.vector}
        connection.execute(row.on_conflict_do_update(index_elements=["paper", "model"], set_=new), values)

    # the model

    def _model(self, total: int) -> tuple[Embedder, int]:
        """The embedder and the number of papers it was fitted on: as given, as kept in the database, or fitted now."""
        if not isinstance(self.given, LSA):
            return self.given, total
        if (kept := self._kept_model(self.given, total)) is not None:
            return kept
        made = self.given.fit(list(self._sample(total)))
        with contextlib.suppress(StoreError):
            self.store.database.write(lambda connection: _keep_model(connection, made, total))
        return made, total

    def _kept_model(self, lsa: LSA, total: int) -> tuple[LSA, int] | None:
        rows = self._rows(select(models).where(models.c.name == lsa.family))
        if not rows or not rows[0].papers <= GROWTH * total or not total <= GROWTH * rows[0].papers:
            return None
        with contextlib.suppress(ValueError, KeyError, OSError):
            return lsa.from_bytes(rows[0].data, rows[0].version), rows[0].papers
        return None

    def _sample(self, total: int) -> Iterator[str]:
        every = max(1, -(-total // SAMPLE))
        last = 0
        while rows := self._rows(_texts().where(papers.c.number > last, papers.c.number % every == 0).limit(BLOCK)):
            yield from (text_of(row.title, row.keywords, row.body) for row in rows)
            last = rows[-1].number


def _checked(embedder: Embedder, texts: list[str]) -> NDArray[np.float32]:
    """The vectors of texts. Raises ValueError where an embedder gives none."""
    found = np.asarray(embedder.embed(texts))
    if found.ndim != 2 or len(found) != len(texts) or not np.isfinite(found).all():
        raise ValueError(
            f"embedder: {embedder.name} gave an array of shape {found.shape} for {len(texts)} texts, wanted finite "
            f"vectors, one a row"
        )
    return unit(found)


def _texts() -> Select[Any]:
    return select(papers.c.number, papers.c.title, papers.c.keywords, papers.c.body).order_by(papers.c.number)


def _vectors(model: str, numbers: Sequence[int]) -> Select[Any]:
    query = select(embeddings.c.paper, embeddings.c.digest, embeddings.c.vector).where(embeddings.c.model == model)
    # one range is read far quicker than as many numbers
    return query.where(embeddings.c.paper.between(min(numbers), max(numbers)))


def _keep_model(connection: Connection, made: LSA, total: int) -> None:
    """Keep a fit in the place of the one before, whose vectors stay until the next: queries still run on them."""
    last = connection.scalar(select(models.c.version).where(models.c.name == made.family))
    connection.execute(delete(models).where(models.c.name == made.family))
    row = {"name": made.family, "version": made.name, "papers": total, "data": made.to_bytes()}
    connection.execute(insert(models).values(row))
    ours = embeddings.c.model.startswith(made.family + "-", autoescape=True)
    connection.execute(delete(embeddings).where(ours, embeddings.c.model.not_in([made.name, last or made.name])))
