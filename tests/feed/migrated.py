"""Databases that have all tables already: to make them takes longer than most tests.

`store_url` is here what it is elsewhere, the URL of a new database of either kind with nothing in it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from postgres import Server

from paperworks.feed.store import Store
from paperworks.lab.store.schema import VERSION_TABLE

__all__ = ["store_url"]

DATABASE = "migrated"


@lru_cache(maxsize=1)
def empty_file() -> bytes:
    """The SQLite file of a store that nothing was put into."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        Store(path).close()
        return path.read_bytes()


def emptied(server: Server) -> str:
    """The URL of the server's database for these tests, with nothing in its tables."""
    if not server.execute(f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"):
        server.execute(f"CREATE DATABASE {DATABASE}")
        Store(server.url(DATABASE)).close()
    server.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{DATABASE}'")
    found = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"
    found += f" AND tablename <> '{VERSION_TABLE}'"
    tables = ", ".join(name for (name,) in server.execute(found, DATABASE))
    server.execute(f"TRUNCATE {tables} RESTART IDENTITY", DATABASE)
    return server.url(DATABASE)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of either kind with its tables and nothing in them."""
    if request.param == "postgresql":
        return emptied(request.getfixturevalue("postgres_server"))
    path = tmp_path / "store.sqlite"
    path.write_bytes(empty_file())
    return f"sqlite:///{path}"
