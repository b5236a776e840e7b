"""The nearest vectors found by PostgreSQL itself, where its server has the extension pgvector.

The vectors are those of the table `embeddings` and take no memory here. Up to 20,000 papers they are compared
one by one; above, an HNSW index (Malkov and Yashunin, 2016) finds nearly all of the nearest. With a filter they are
compared one by one, among the papers that meet it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Connection

from paperworks.feed.store import Store
from paperworks.feed.tables import embeddings
from paperworks.feed.vectors import Vectors
from paperworks.lab.store.database import StoreError

__all__ = ["PgVectors", "is_there", "vectors_for"]

EXACT = 20_000
"""Papers up to which every vector is compared."""

SEARCHED = 400
"""Candidates that the index keeps while it searches."""

Matrix = NDArray[np.float32]
Numbers = NDArray[np.int64]


def is_there(store: Store) -> bool:
    """Whether the store's database can compare vectors; the extension is made in it where the server offers it."""
    if store.database.engine.name != "postgresql":
        return False
    made = sa.text("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
    offered = sa.text("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
    with store.database.read() as connection:
        if connection.scalar(made):
            return True
        if not connection.scalar(offered):
            return False
    with contextlib.suppress(StoreError):  # who may not make it goes without
        store.database.write(lambda connection: connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector")))
        return True
    return False


def vectors_for(store: Store, model: str, dimensions: int, papers: int, *, int8: bool) -> Vectors | PgVectors:
    """Where the vectors of a model are looked for: in the database, or in memory."""
    return PgVectors(store, model, dimensions) if is_there(store) else Vectors(dimensions, papers, int8=int8)


class PgVectors:
    """The vectors of one model in the database, with the methods of `Vectors`.

    Args:
        store: the catalogue, on PostgreSQL with pgvector.
        model: name of the embedder.
        dimensions: of a vector.
    """

    def __init__(self, store: Store, model: str, dimensions: int) -> None:
        self.store, self.model, self.dimensions = store, model, dimensions
        self.nbytes = 0

    def __len__(self) -> int:
        query = sa.select(sa.func.count()).select_from(embeddings).where(embeddings.c.model == self.model)
        with self.store.database.read() as connection:
            return int(connection.scalar(query) or 0)

    def put(self, numbers: Numbers, vectors: Matrix) -> None:
        """Nothing: what is kept in the database is there already."""

    def drop(self, numbers: Numbers) -> None:
        """Nothing: they went with their papers."""

    def get(self, numbers: Numbers) -> Matrix:
        """The vectors of these papers, which must be known (KeyError), one a row."""
        query = sa.select(embeddings.c.paper, embeddings.c.vector).where(
            embeddings.c.model == self.model, embeddings.c.paper.in_(numbers.tolist())
        )
        with self.store.database.read() as connection:
            found = {row.paper: row.vector for row in connection.execute(query)}
        if len(found) < len(set(numbers.tolist())):
            raise KeyError(f"numbers: got {numbers.tolist()[:5]}, of which some have no vector")
        return np.array([found[number] for number in numbers.tolist()], np.float32).reshape(-1, self.dimensions)

    def nearest(self, query: Matrix, limit: int, among: Numbers | None = None) -> list[tuple[int, float]]:
        """As for `Vectors.nearest`."""
        if not query.any():
            return []
        # the casts and the model are written out: only so does the planner know the index
        product = f"(vector::vector({self.dimensions}) <#> CAST(:query AS vector({self.dimensions})))"
        chosen = "" if among is None else "AND paper = ANY(:among)"
        statement = (
            f"SELECT paper, -{product} AS product FROM embeddings WHERE model = '{_literal(self.model)}' {chosen} "
            f"ORDER BY {product} LIMIT :limit"
        )
        values: dict[str, Any] = {"query": "[" + ",".join(map(repr, query.tolist())) + "]", "limit": limit}
        if among is not None:
            values["among"] = among.tolist()
        with self.store.database.read() as connection:
            connection.execute(sa.text(f"SET LOCAL hnsw.ef_search = {max(limit, SEARCHED)}"))
            rows: Sequence[Any] = connection.execute(sa.text(statement), values).all()
        return sorted(((row.paper, row.product) for row in rows if row.product > 0), key=lambda one: (-one[1], one[0]))

    def prepare(self) -> None:
        """Make the index where there are many vectors, and drop those of models that are no longer kept."""
        if len(self) > EXACT:
            with contextlib.suppress(StoreError):
                self.store.database.write(self._make_index)

    def _make_index(self, connection: Connection) -> None:
        name = "search_near_" + hashlib.sha256(self.model.encode()).hexdigest()[:12]
        known = sa.text("SELECT indexname FROM pg_indexes WHERE indexname LIKE 'search\\_near\\_%'")
        for other in connection.scalars(known).all():
            if other != name:
                connection.execute(sa.text(f'DROP INDEX "{other}"'))
        connection.execute(
            sa.text(
                f"CREATE INDEX IF NOT EXISTS {name} ON embeddings USING hnsw "
                f"((vector::vector({self.dimensions})) vector_ip_ops) WHERE model = '{_literal(self.model)}'"
            )
        )


def _literal(text: str) -> str:
    """A text within the quotes of a literal, colons kept from being read as parameters."""
    return text.replace("'", "''").replace(":", "\\:")
