"""The store in SQLite's file: where it is, how it is set up, and what is said of a file that is none."""

import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import platformdirs
import pytest
from sqlalchemy import Connection, text

from paperworks.lab.records import Machine, TrialResult, TrialSpec
from paperworks.lab.store import StoreError, database, open_store, schema

MACHINE = Machine("m1", "a CPU", 2, 23.5, "Debian", "3.11.7", "", {"torch": "2.13.0"})
SPEC = TrialSpec("m:f", "code")


@contextmanager
def connection(url: str) -> Iterator[Connection]:
    opened = database.Database(url)
    try:
        with opened.engine.connect() as made:
            yield made
    finally:
        opened.close()


def test_sqlite_is_set_up_for_several_writers(tmp_path: Path) -> None:
    with connection(str(tmp_path / "new" / "folder" / "a.sqlite")) as opened:
        values = [opened.execute(text(f"PRAGMA {name}")).scalar_one()
                  for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")]  # fmt: skip
    assert values == ["wal", 30_000, 1, 1]


def test_a_write_holds_the_lock_from_its_start(tmp_path: Path) -> None:
    """One that took it later could fail for good: what it has read may be outdated by then."""
    path = tmp_path / "a.sqlite"
    other = sqlite3.connect(path, isolation_level=None, timeout=0)

    def work(_: Connection) -> None:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")

    with closing(database.Database(path)) as opened:
        opened.write(work)
        other.execute("BEGIN IMMEDIATE")
    other.close()


def test_where_the_database_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERWORKS_DB", raising=False)
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *a, **k: tmp_path / "data" / a[0])
    default = tmp_path / "data" / "paperworks" / "paperworks.sqlite"
    with open_store() as store:
        assert store.location == str(default)
        assert repr(store) == f"Store({str(default)!r})"
    assert default.exists()
    monkeypatch.setenv("PAPERWORKS_DB", "")
    assert database.locate().database == str(default)
    monkeypatch.setenv("PAPERWORKS_DB", f"sqlite:///{tmp_path}/from variable é.sqlite")
    assert database.locate().database == f"{tmp_path}/from variable é.sqlite"
    monkeypatch.setenv("PAPERWORKS_DB", "postgres://me:secret@db.example:5433/papers")
    assert database.locate().drivername == "postgresql+psycopg"
    assert database.locate("~/x.sqlite").database == str(Path.home() / "x.sqlite")
    assert database.locate(Path("x%y?.sqlite")).database == "x%y?.sqlite"
    with open_store(tmp_path / "x%y?#.sqlite") as store:
        store.put_machine(MACHINE)
    assert (tmp_path / "x%y?#.sqlite").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "wanted a file or a URL"),
        (":memory:", "wanted a file or a URL"),
        ("sqlite://", "wanted sqlite:///path/to/file"),
        ("sqlite:///:memory:", "wanted sqlite:///path/to/file"),
        ("mysql://me:secret@host/x", "got the scheme 'mysql', wanted sqlite"),
        ("postgresql+asyncpg://host/x", "got the scheme 'postgresql\\+asyncpg'"),
        ("postgresql://me:secret@host:port/x", "url: not understood, wanted sqlite"),
    ],
)
def test_urls_that_are_not_understood(bad: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_store(bad)
    assert "secret" not in str(caught.value)


def test_an_argument_of_another_type() -> None:
    with pytest.raises(TypeError, match="url: got int, wanted a path or a URL"):
        open_store(3)  # type: ignore[arg-type]


def test_files_that_are_no_database_are_named(tmp_path: Path) -> None:
    text_file = tmp_path / "notes.txt"
    text_file.write_text("not a database\n" * 100)
    with pytest.raises(StoreError, match=r"notes\.txt: is not an SQLite database"):
        open_store(text_file)
    assert text_file.read_text() == "not a database\n" * 100
    with pytest.raises(StoreError, match=f"{tmp_path}: cannot be opened"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match="its folder cannot be made"):
        open_store(text_file / "below" / "a.sqlite")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    open_store(path).close()
    path.write_bytes(path.read_bytes()[:4096] + b"\x55" * 8192)
    with pytest.raises(StoreError, match=r"a\.sqlite: is damaged"), open_store(path) as store:
        store.machines()


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "empty.sqlite"
    path.touch()
    with open_store(path) as store:
        assert store.latest_verdicts() == []


def test_a_write_waits_for_another_and_gives_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
    path = tmp_path / "a.sqlite"
    with open_store(path) as store:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        assert store.machines() == {}  # reading goes on
        threading.Timer(0.4, other.execute, ["COMMIT"]).start()
        store.put_machine(MACHINE)
        assert store.machines() == {"m1": MACHINE}
        monkeypatch.setattr(database, "WAITS", (0.01, 0.01))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"a\.sqlite: stays locked by another process"):
            store.put_trial(SPEC, TrialResult(SPEC.key, "done"))
        other.execute("COMMIT")
        other.close()
        store.put_trial(SPEC, TrialResult(SPEC.key, "done"))


def test_an_open_store_needs_no_lock_when_it_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.sqlite"
    open_store(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(database, "WAITS", ())
    with open_store(path) as store:
        assert store.machines() == {}
    other.close()


def test_rows_survive_a_migration_that_copies_the_table_they_refer_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.sqlite"
    with connection(str(path)) as opened, opened.begin():
        opened.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
        opened.execute(text("CREATE TABLE child (of INTEGER REFERENCES parent (id) ON DELETE CASCADE)"))
        opened.execute(text("INSERT INTO parent VALUES (1)"))
        opened.execute(text("INSERT INTO child VALUES (1)"))

    def copy(opened: Connection) -> None:
        opened.execute(text("CREATE TABLE copied (id INTEGER PRIMARY KEY, name TEXT)"))
        opened.execute(text("INSERT INTO copied (id) SELECT id FROM parent"))
        opened.execute(text("DROP TABLE parent"))
        opened.execute(text("ALTER TABLE copied RENAME TO parent"))

    stand_in = SimpleNamespace(is_current=lambda _: False, upgrade=copy, NewerSchemaError=schema.NewerSchemaError)
    monkeypatch.setattr(database, "schema", stand_in)
    with connection(str(path)) as opened:
        assert opened.execute(text("SELECT of FROM child")).scalars().all() == [1]
        assert opened.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
    stand_in.upgrade = lambda opened: opened.execute(text("DELETE FROM parent"))
    with pytest.raises(StoreError, match="leaves 1 rows that refer to nothing"):
        open_store(path)
    with sqlite3.connect(path) as raw:  # and nothing of that migration stays
        assert raw.execute("SELECT id FROM parent").fetchall() == [(1,)]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.touch(0o400)
    with pytest.raises(StoreError, match=r"a\.sqlite: cannot be written"):
        open_store(path)


def test_postgres_without_psycopg_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"pip install 'paperworks\[postgres\]'"):
        open_store("postgresql://localhost/papers")
