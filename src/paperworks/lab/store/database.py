"""Where the database is, its connections, and transactions that are tried again after a conflict."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import platformdirs
from sqlalchemy import URL, Connection, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError, StatementError

from paperworks.lab.store import schema

VARIABLE = "PAPERWORKS_DB"
BUSY_SECONDS = 30
WAITS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds before each further attempt of a transaction, each shortened at random by up to a half."""

SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
POSTGRES_BUSY = {"40001", "40P01", "55P03", "57P01", "57P02", "57P03"}
"""Serialization failure, deadlock, lock not available, and a server that shuts down or starts."""

MIGRATION_LOCK = 0x7061706572  # "paper": the advisory lock that PostgreSQL migrations take

T = TypeVar("T")


class StoreError(OSError):
    """The database cannot be opened, read or written; the message names it and says why."""


def locate(url: str | Path | None = None) -> URL:
    """The database meant by `url`, else by the environment's PAPERWORKS_DB, else the file in the user's data folder.

    Raises ValueError for anything but a path, ``sqlite:///path`` or ``postgresql://...``.
    """
    if url is None:
        default = platformdirs.user_data_path("paperworks", appauthor=False) / "paperworks.sqlite"
        url = os.environ.get(VARIABLE) or default
    if not isinstance(url, str | Path):
        raise TypeError(f"url: got {type(url).__name__}, wanted a path or a URL")
    if isinstance(url, Path) or "://" not in url:
        if not str(url) or str(url) == ":memory:":
            raise ValueError(f"url: got {str(url)!r}, wanted a file or a URL")
        return URL.create("sqlite", database=str(Path(url).expanduser()))
    wanted = "wanted sqlite:///path/to/file or postgresql://user@host/database"
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(f"url: not understood, {wanted}") from None  # it may hold a password: not shown
    name = found.drivername
    if name in ("sqlite", "sqlite+pysqlite"):
        if found.database in (None, "", ":memory:") or found.query or found.host:
            raise ValueError(f"url: got {url!r}, {wanted}")
        return URL.create("sqlite", database=str(Path(str(found.database)).expanduser()))
    if name in ("postgresql", "postgres", "postgresql+psycopg"):
        return found.set(drivername="postgresql+psycopg")
    raise ValueError(f"url: got the scheme {name!r}, {wanted}")


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, max_overflow=-1)

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # a transaction that reads first and writes later cannot wait for another writer: it takes the lock at once
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


def _postgres_engine(url: URL) -> Engine:
    options: dict[str, Any] = {"client_encoding": "utf8"}
    if "connect_timeout" not in url.query:
        options["connect_timeout"] = 10
    try:
        return create_engine(url, connect_args=options, pool_pre_ping=True)
    except ImportError as error:
        raise ImportError(
            f"PostgreSQL needs psycopg ({error}): pip install 'paperworks[postgres]'", name="psycopg"
        ) from error


class Database:
    """Connections to one database that is at the newest migration. Threads may share it; a forked process may not.

    Args:
        url: a path, ``sqlite:///path``, ``postgresql://...``, or None for `locate`'s default.

    Raises:
        ValueError: `url` is not understood.
        StoreError: the database cannot be reached, is no database, or has a newer schema.
        ImportError: PostgreSQL is asked for and psycopg is not installed.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        self.url = locate(url)
        self._ready = self._closed = False
        if self.url.drivername == "sqlite":
            self.location = str(self.url.database)
            try:
                Path(self.location).absolute().parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{self.location}: its folder cannot be made: {error}") from error
            self.engine = _sqlite_engine(self.url)
        else:
            self.location = self.url.render_as_string(hide_password=True)
            self.engine = _postgres_engine(self.url)
        self._writer = self.engine.execution_options(writes=True)
        try:
            self.migrate()
        except BaseException:
            self.engine.dispose()
            raise
        self._ready = True

    def migrate(self) -> None:
        """Make what is missing and bring an older database up to date; opening one does. Raises StoreError."""
        self._attempt(self._prepare)

    def _prepare(self) -> None:
        try:
            with self.engine.connect() as connection:
                if self.engine.name == "postgresql":
                    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
                    if encoding != "UTF8":
                        raise StoreError(f"{self.location}: its encoding is {encoding}, wanted UTF8")
                if schema.is_current(connection):
                    return
            with self._writer.connect() as connection:
                self._migrate(connection)
        except schema.NewerSchemaError as error:
            raise StoreError(f"{self.location}: {error}: pip install --upgrade paperworks") from error

    def _migrate(self, connection: Connection) -> None:
        if self.engine.name == "sqlite":
            # Altering a table drops the old one, which with foreign keys on would delete the rows that refer to it.
            # The switch has no effect inside a transaction, and the connection never goes back to the pool.
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            raw.execute("PRAGMA foreign_keys = OFF").close()
            connection.detach()
        with connection.begin():
            if self.engine.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            if schema.is_current(connection):  # another process was first
                return
            schema.upgrade(connection)
            if self.engine.name == "sqlite" and (
                broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            ):
                raise StoreError(f"{self.location}: a migration leaves {len(broken)} rows that refer to nothing")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for queries. Raises StoreError."""
        self._check_open()
        try:
            with self.engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            self._explain(error)

    def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, run in a transaction of its own, and again after a conflict with another process.

        `work` has to be of the kind that may be run twice. Raises StoreError.
        """
        self._check_open()

        def transaction() -> T:
            with self._writer.begin() as connection:
                return work(connection)

        return self._attempt(transaction)

    def insert(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        """An INSERT that has ``on_conflict_do_update`` and ``on_conflict_do_nothing``."""
        return postgresql.insert(table) if self.engine.name == "postgresql" else sqlite.insert(table)

    def close(self) -> None:
        """Close the connections. Later reads and writes raise StoreError; closing twice is no error."""
        self._closed = True
        self.engine.dispose()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.location}: the store is closed")

    def _attempt(self, call: Callable[[], T]) -> T:
        for wait in WAITS:
            try:
                return call()
            except SQLAlchemyError as error:
                if not self._passing(error):
                    self._explain(error)
            time.sleep(wait * random.SystemRandom().uniform(0.5, 1))
        try:
            return call()
        except SQLAlchemyError as error:
            self._explain(error)

    def _passing(self, error: SQLAlchemyError) -> bool:
        """Whether the same transaction may succeed a moment later."""
        if not isinstance(error, DBAPIError):
            return False
        code, state = getattr(error.orig, "sqlite_errorcode", None), getattr(error.orig, "sqlstate", None)
        if code is not None:
            return code & 0xFF in SQLITE_BUSY
        # a server that was there and is away is waited for, one that never answered is not
        away = error.connection_invalidated or (isinstance(error, OperationalError) and state is None)
        return state in POSTGRES_BUSY or (away and self._ready)

    def _explain(self, error: SQLAlchemyError) -> NoReturn:
        """Raise `error` in words; a TypeError or ValueError that refused a value goes on as it is."""
        if isinstance(error, StatementError) and isinstance(error.orig, TypeError | ValueError):
            raise error.orig
        if not isinstance(error, DBAPIError):
            raise StoreError(f"{self.location}: failed ({error})") from error
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        reason = {
            sqlite3.SQLITE_NOTADB: "is not an SQLite database",
            sqlite3.SQLITE_CORRUPT: "is damaged",
            sqlite3.SQLITE_CANTOPEN: "cannot be opened",
            sqlite3.SQLITE_READONLY: "cannot be written",
            sqlite3.SQLITE_FULL: "cannot be written",
        }.get(code, "stays locked by another process" if code in SQLITE_BUSY else "")
        if not reason:
            reason = "failed" if self._ready or self.engine.name == "sqlite" else "cannot be reached"
        raise StoreError(f"{self.location}: {reason} ({str(error.orig).strip()})") from error
