"""What the database holds: tables, and column types that behave alike on SQLite and PostgreSQL.

Further tables of the project are declared on the same `metadata` and made by the same migrations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine

MARK = "\x1a"
"""Starts what PostgreSQL's text or JSON cannot hold: four hexadecimal digits of a character, or ``=`` and a number."""

_UNSTORABLE = re.compile("[\x00\x1a\ud800-\udfff]")
_MARKED = re.compile("\x1a([0-9a-f]{4})")


def storable(text: str) -> str:
    """`text` with NUL, lone surrogates and the mark itself written as marks; `restored` is the inverse."""
    return _UNSTORABLE.sub(lambda found: f"{MARK}{ord(found[0]):04x}", text)


def restored(text: str) -> str:
    """The text that `storable` was given."""
    return _MARKED.sub(lambda found: chr(int(found[1], 16)), text)


def pack(value: Any) -> Any:
    """`value` as JSON data from which `unpack` gives equal data on either database. Tuples become lists.

    Floats that JSON lacks (NaN, infinities) and those that JSONB, which keeps numbers as decimals, gives back as
    integers (1e16 and beyond) or without their sign (-0.0) are written as marked text.
    """
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(str(name)): pack(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [pack(one) for one in value]
    if isinstance(value, float):
        signed_zero = value == 0 and math.copysign(1, value) < 0
        lost = signed_zero or not math.isfinite(value) or abs(value) >= 1e16
        return f"{MARK}={float(value)!r}" if lost else value
    return value


def unpack(value: Any) -> Any:
    """The data that `pack` was given."""
    if isinstance(value, str):
        return float(value[2:]) if value.startswith(MARK + "=") else restored(value)
    if isinstance(value, dict):
        return {restored(name): unpack(one) for name, one in value.items()}
    if isinstance(value, list):
        return [unpack(one) for one in value]
    return value


class AnyText(TypeDecorator[str]):
    """Text of any Python string, NUL and lone surrogates included."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Towards the database."""
        return None if value is None else storable(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """From the database."""
        return None if value is None else restored(value)


class Document(TypeDecorator[Any]):
    """JSON data of any Python strings and floats: JSON on SQLite, JSONB on PostgreSQL."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """JSONB where there is one."""
        return dialect.type_descriptor(JSONB() if dialect.name == "postgresql" else JSON())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Towards the database."""
        return pack(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """From the database."""
        return unpack(value)


class Moment(TypeDecorator[datetime]):
    """A point in time: an aware datetime in, the same in UTC out. A naive one is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Towards the database."""
        if value is None:
            return None
        if value.utcoffset() is None:
            raise ValueError(f"time: got {value!r}, wanted a datetime with a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database; SQLite has no time zones and keeps UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""Of every table of the project. Constraints have names by rule, so that a later migration can alter them."""

trials = Table(
    "trials",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("spec", Document, nullable=False),
    Column("status", Text, CheckConstraint("status IN ('done', 'error')", name="status"), nullable=False),
    Column("metrics", Document, nullable=False),
    Column("curves", Document, nullable=False),
    Column("error", AnyText, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("peak_memory", BigInteger, nullable=False),
    Column("machine", AnyText, nullable=False),
    Column("finished", Moment, nullable=False),
)
"""One row a trial: what was asked and the result that counts."""

verdicts = Table(
    "verdicts",
    metadata,
    Column("question", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("content", String(64), nullable=False),
    Column("paper", AnyText, nullable=False),
    Column("claim", AnyText, nullable=False),
    Column("status", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("device", AnyText, nullable=False),
    Column("settings_digest", String(64), nullable=False),
    Column("control", Boolean, nullable=False),
    Column("data", Document, nullable=False),
    Column("created", Moment, nullable=False),
    Column("checked", Moment, nullable=False),
    Index(None, "paper", "claim"),
)
"""The answers to each question, numbered from 1 as they changed. The columns beside `data` are for queries."""

machines = Table(
    "machines",
    metadata,
    Column("id", AnyText, primary_key=True),
    Column("data", Document, nullable=False),
)
"""The machines that results came from."""
