"""The catalogue's tables, on the same metadata and in the same database as the lab's.

Beside them the migrations make what full text search needs, under names that begin with ``search_`` and that differ
between the databases: see the migration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import ARRAY, REAL
from sqlalchemy.types import TypeDecorator, TypeEngine

from paperworks.lab.store.tables import AnyText, Document, Moment, metadata

Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only where the type is INTEGER


class Vector(TypeDecorator[Any]):
    """A vector of float32: bytes on SQLite, an array of reals on PostgreSQL, which pgvector can compare."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """REAL[] where there is one."""
        return dialect.type_descriptor(ARRAY(REAL()) if dialect.name == "postgresql" else LargeBinary())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Towards the database."""
        if value is None:
            return None
        vector = np.asarray(value, dtype="<f4")
        return vector.tolist() if dialect.name == "postgresql" else vector.tobytes()

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """From the database."""
        if value is None:
            return None
        return np.asarray(value, dtype="<f4") if dialect.name == "postgresql" else np.frombuffer(value, dtype="<f4")


def _paper() -> Column[int]:
    return Column("paper", Number, ForeignKey("papers.number", ondelete="CASCADE"), primary_key=True)


papers = Table(
    "papers",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("key", AnyText, nullable=False, unique=True),
    Column("title_key", String(22), nullable=False, index=True),
    Column("card", AnyText, index=True),
    Column("area", AnyText, index=True),
    Column("published", Date, index=True),
    Column("first_seen", Date, index=True),
    Column("upvotes", Integer),
    Column("title", AnyText, nullable=False),
    Column("keywords", AnyText, nullable=False),
    Column("body", AnyText, nullable=False),
    Column("data", Document, nullable=False),
    Column("changed", Moment, nullable=False, index=True),
    sqlite_autoincrement=True,
)
"""One row a paper. `data` is the record; the columns beside it are for queries, title, keywords and body for search."""

aliases = Table(
    "aliases",
    metadata,
    Column("key", AnyText, primary_key=True),
    Column("paper", Number, ForeignKey("papers.number", ondelete="CASCADE"), nullable=False, index=True),
)
"""Ids under which a paper was kept before it got its arXiv id: they still resolve."""

paper_versions = Table(
    "paper_versions",
    metadata,
    _paper(),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("source", AnyText, nullable=False),
    Column("data", Document, nullable=False),
    Column("seen", Moment, nullable=False),
)
"""What was known of a paper after each change, numbered from 1."""

feed_days = Table(
    "feed_days",
    metadata,
    Column("day", Date, primary_key=True),
    _paper(),
    Column("rank", Integer),
)
"""The days on which a paper stood in the feed, with its place in the list."""

events = Table(
    "events",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("paper", Number, ForeignKey("papers.number", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, CheckConstraint("kind IN ('vote', 'comment', 'view', 'run')", name="kind"), nullable=False),
    Column("person", AnyText),
    Column("at", Moment, nullable=False),
    Index(None, "paper", "at"),
    Index(None, "at"),
)
"""What readers did. A run is a verdict that was measured."""

votes = Table(
    "votes",
    metadata,
    _paper(),
    Column("person", AnyText, primary_key=True),
    Column("at", Moment, nullable=False),
)
"""One vote a paper and person."""

scores = Table(
    "scores",
    metadata,
    _paper(),
    Column("half_life", Integer, primary_key=True, autoincrement=False),
    Column("value", Float(53), nullable=False),
    Column("at", Moment, nullable=False),
)
"""The decayed sum of a paper's events at the time `at`, by half-life in hours."""

embeddings = Table(
    "embeddings",
    metadata,
    _paper(),
    Column("model", AnyText, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("vector", Vector, nullable=False),
)
"""The vector of a paper's text under a model; `digest` is of the text."""

subscribers = Table(
    "subscribers",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("email", AnyText, nullable=False, unique=True),
    Column(
        "status",
        Text,
        CheckConstraint("status IN ('pending', 'active', 'unsubscribed', 'suppressed')", name="status"),
        nullable=False,
    ),
    Column("preferences", Document, nullable=False),
    Column("created", Moment, nullable=False),
    Column("confirmed", Moment),
    Column("changed", Moment, nullable=False),
)
"""Who asked for the digest. Nothing is sent to a subscriber who is not active."""

tokens = Table(
    "tokens",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("subscriber", String(32), ForeignKey("subscribers.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("purpose", Text, nullable=False),
    Column("expires", Moment, nullable=False),
    Column("used", Moment),
)
"""Tokens sent by mail, as SHA-256."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("subscriber", String(32), ForeignKey("subscribers.id", ondelete="CASCADE"), nullable=False),
    Column("period", Text, nullable=False),
    Column(
        "status", Text, CheckConstraint("status IN ('sending', 'sent', 'failed', 'nothing')", name="status"),
        nullable=False,
    ),
    Column("message_id", AnyText, nullable=False),
    Column("papers", Document, nullable=False),
    Column("reason", AnyText, nullable=False),
    Column("started", Moment, nullable=False),
    Column("finished", Moment),
    UniqueConstraint("subscriber", "period"),
)  # fmt: skip
"""One row a subscriber and period, written before the message is sent: a crash leaves `sending`, and it is not sent
again."""
