"""The store: facts that hold on SQLite and on PostgreSQL, and those of SQLite's file."""

import os
import platform
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone
from math import copysign, inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, inspect, text

from paperworks.lab.records import Comparison, Machine, TrialResult, TrialSpec, Verdict
from paperworks.lab.store import Store, StoreError, database, open_store, schema
from paperworks.lab.store.tables import metadata, pack, restored, storable, unpack

MORNING = datetime(2026, 4, 24, 8, 30, 0, 123456, tzinfo=UTC)
MACHINE = Machine("m1", "a CPU", 2, 23.5, "Debian", "3.11.7", "", {"torch": "2.13.0"})


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database of either kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'store.sqlite'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url) as opened:
        yield opened


def spec(seed: int = 0, **changes: Any) -> TrialSpec:
    return TrialSpec("paperworks.papers.ash:accuracy", "f" * 64, seed=seed, **changes)


def done(of: TrialSpec, value: float = 0.5, at: datetime = MORNING) -> TrialResult:
    return TrialResult(of.key, "done", {"accuracy": value}, {"loss": [2.0, 1.5]}, "", 1.25, 1 << 40, "m1", at)


def failed(of: TrialSpec, error: str = "ValueError", at: datetime = MORNING) -> TrialResult:
    return TrialResult(of.key, "error", error=error, finished=at)


def verdict(at: datetime = MORNING, **changes: Any) -> Verdict:
    return Verdict(**({"paper": "ash", "claim": "c1", "kind": "measured", "status": "holds", "tier": "desk",
                       "device": "cpu", "seeds": 10, "created": at} | changes))  # fmt: skip


def later(minutes: float) -> datetime:
    return MORNING + timedelta(minutes=minutes)


@contextmanager
def connection(url: str) -> Iterator[Connection]:
    opened = database.Database(url)
    try:
        with opened.engine.connect() as made:
            yield made
    finally:
        opened.close()


# trials


def test_a_trial_comes_back_as_it_was_put(store: Store) -> None:
    asked = spec(
        3, arm_target="a:b", arm_options={"k": 2}, settings={"data": "imagefolder:/x"}, label="ASH", machine="m1"
    )
    store.put_trial(asked, done(asked))
    assert store.trial(asked.key) == done(asked)
    assert store.specs([asked.key]) == {asked.key: asked}
    assert store.trial("0" * 64) is None


def test_results_survive_closing(url: str) -> None:
    with open_store(url) as store:
        store.put_trial(spec(), done(spec()))
        store.put_verdict(verdict())
        store.put_machine(MACHINE)
    with open_store(url) as store:
        assert store.trial(spec().key) == done(spec())
        assert store.latest_verdicts() == [verdict()]
        assert store.machines() == {"m1": MACHINE}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (done(spec(), 0.5), failed(spec(), at=later(1)), 0),  # an error never replaces a done result
        (failed(spec()), done(spec(), at=later(1)), 1),
        (failed(spec(), at=later(1)), done(spec()), 1),  # a done one is better than a later error
        (failed(spec(), "a"), failed(spec(), "b", later(1)), 1),
        (failed(spec(), "a", later(1)), failed(spec(), "b"), 0),
        (done(spec(), 0.5), done(spec(), 0.6, later(1)), 1),
        (done(spec(), 0.5, later(1)), done(spec(), 0.6), 0),
        (done(spec(), 0.5), done(spec(), 0.6), 1),
    ],
)
def test_which_of_two_results_is_kept(store: Store, first: TrialResult, second: TrialResult, kept: int) -> None:
    store.put_trial(spec(), first)
    store.put_trial(spec(), second)
    assert store.trial(spec().key) == (first, second)[kept]


def test_the_specification_kept_is_that_of_the_result_kept(store: Store) -> None:
    store.put_trial(spec(label="first"), done(spec()))
    store.put_trial(spec(label="second"), failed(spec(), at=later(1)))
    assert store.specs([spec().key])[spec().key].label == "first"
    store.put_trial(spec(label="third"), done(spec(), at=later(1)))
    assert store.specs([spec().key])[spec().key].label == "third"


def test_many_keys_in_the_order_asked(store: Store) -> None:
    specs = [spec(seed) for seed in range(1203)]
    for one in specs[::3]:
        store.put_trial(one, done(one, one.seed))
    keys = [one.key for one in reversed(specs)]
    found = store.trials(iter(keys))
    assert list(found) == [one.key for one in reversed(specs[::3])]
    assert all(found[one.key].metrics["accuracy"] == one.seed for one in specs[::3])
    assert list(store.specs(keys)) == list(found)
    assert store.trials([]) == {} == store.specs([])


def test_numbers_that_json_lacks_come_back(store: Store) -> None:
    values = {"a": inf, "b": -inf, "c": nan, "d": -0.0, "e": 1e16, "f": 1e300, "g": 5e-324, "h": 0.1, "i": 3.0}
    asked = spec(settings={"limit": inf, "big": 1e22, "small": 1e-5, "whole": 2, "one": 1.0, "zero": -0.0})
    store.put_trial(asked, replace(done(asked), metrics=values, curves={"loss": list(values.values())}))
    result, again = store.trial(asked.key), store.specs([asked.key])[asked.key]
    assert result is not None
    assert list(map(repr, result.curves["loss"])) == list(map(repr, values.values()))
    assert {name: repr(value) for name, value in result.metrics.items()} == {n: repr(v) for n, v in values.items()}
    assert copysign(1, result.metrics["d"]) == -1
    assert again == asked
    assert again.key == asked.key
    assert {n: type(v) for n, v in again.settings.items()} == {n: type(v) for n, v in asked.settings.items()}


HARD_TEXTS = [
    "żółć 你好 😀 \u202e",
    "before\x00after",
    "lone \udcff surrogates \ud800",
    "\x1a0000 looks like a mark, \x1a too, \\u0000 too",
    "\x1a=inf",
    "line\r\n" * 200_000,
    "",
]


@pytest.mark.parametrize("hard", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_any_text_comes_back(store: Store, hard: str) -> None:
    asked = spec(settings={hard[:50]: hard}, label=hard)
    result = replace(failed(asked, hard), machine=hard)
    store.put_trial(asked, result)
    assert store.trial(asked.key) == result
    assert store.specs([asked.key]) == {asked.key: asked}
    said = verdict(claim=hard[:50], reason=hard, settings={"x": hard})
    store.put_verdict(said)
    assert store.history("ash", hard[:50], settings={"x": hard}) == [said]
    store.put_machine(replace(MACHINE, id=hard[:50], cpu=hard))
    assert store.machines([hard[:50]])[hard[:50]].cpu == hard


ANY_TEXT = st.text(st.characters(exclude_categories=()))
JSON_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(ANY_TEXT)
def test_storable_text_is_utf8_without_nul_and_is_restored(some: str) -> None:
    assert b"\x00" not in storable(some).encode()
    assert restored(storable(some)) == some


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(ANY_TEXT, JSON_DATA, max_size=4), ANY_TEXT)
def test_any_json_data_and_text_round_trips(store: Store, data: dict[str, Any], error: str) -> None:
    assert repr(unpack(pack(data))) == repr(data)
    asked = spec(settings=data)
    store.put_trial(asked, failed(asked, error))
    assert store.trial(asked.key) == failed(asked, error)
    back = store.specs([asked.key])[asked.key]
    assert (back, back.key) == (asked, asked.key)


def test_times_come_back_in_utc(store: Store) -> None:
    tokyo = datetime(2026, 1, 1, 3, 0, tzinfo=timezone(timedelta(hours=9)))
    store.put_trial(spec(), done(spec(), at=tokyo))
    result = store.trial(spec().key)
    assert result is not None
    assert result.finished == tokyo
    assert result.finished.tzinfo is UTC
    store.put_verdict(verdict(tokyo))
    assert store.latest_verdicts()[0].created == tokyo


def test_bad_records_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="result: got the key"):
        store.put_trial(spec(1), done(spec(2)))
    with pytest.raises(ValueError, match="result.status: got 'running'"):
        store.put_trial(spec(), replace(done(spec()), status="running"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted a datetime with a time zone"):
        store.put_trial(spec(), done(spec(), at=datetime(2026, 1, 1)))
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.put_trial(spec(), replace(done(spec()), machine=MORNING))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keys: got the string 'abc'"):
        store.trials("abc")
    assert store.trials([spec(n).key for n in range(3)]) == {}


# verdicts


def test_an_unchanged_verdict_is_not_stored_twice(store: Store) -> None:
    assert store.put_verdict(verdict(seconds=3.0)) is True
    assert store.checked([verdict().question]) == {verdict().question: MORNING}
    assert store.put_verdict(verdict(later(5), seconds=9.0)) is False
    assert store.history("ash", "c1") == [verdict(seconds=3.0)]
    assert store.checked([verdict().question]) == {verdict().question: later(5)}
    assert store.put_verdict(verdict(later(2))) is False
    assert store.checked([verdict().question, "?"]) == {verdict().question: later(5)}


def test_a_verdict_that_flips_and_flips_back_is_three_verdicts(store: Store) -> None:
    told = [verdict(), verdict(later(1), status="fails"), verdict(later(2))]
    assert [store.put_verdict(v) for v in told] == [True, True, True]
    assert store.history("ash", "c1") == told
    assert store.latest_verdicts() == [told[-1]]


def test_a_verdict_comes_back_with_all_its_numbers(store: Store) -> None:
    comparison = Comparison(
        "accuracy", "holds", 0.1, low=-inf, high=inf, p=nan, effect=-0.0, level=1e-17, margin=1e17,
        method_values={"0": 0.5, "1": nan}, baseline_values={"0": -inf},
    )  # fmt: skip
    put = verdict(comparisons=(comparison, Comparison("", "fails")), trials=("k1", "k2"), settings={"b": 1, "a": "é"})
    store.put_verdict(put)
    [got] = store.latest_verdicts()
    assert repr(sorted(asdict(got).items())) == repr(sorted(asdict(put).items()))
    assert (got.question, got.content) == (put.question, put.content)
    assert store.put_verdict(replace(got, created=later(1))) is False


def test_latest_verdicts_are_filtered(store: Store) -> None:
    ash, control = verdict(), verdict(control=True, status="fails")
    smoke, gpu = verdict(tier="smoke"), verdict(device="cuda")
    mine, sdm = verdict(settings={"data": "x", "n": 2}), verdict(paper="sdm", claim="a")
    for one in (sdm, mine, gpu, smoke, control, ash):
        store.put_verdict(one)
        store.put_verdict(replace(one, reason="again", created=later(1)))
    found = store.latest_verdicts()
    assert all(v.reason == "again" for v in found)
    assert {v.question for v in found} == {v.question for v in (ash, smoke, gpu, mine, sdm)}
    assert [(v.paper, v.tier, v.device) for v in found] == sorted((v.paper, v.tier, v.device) for v in found)

    def questions(**filters: Any) -> set[str]:
        return {v.question for v in store.latest_verdicts(**filters)}

    assert questions(paper="sdm") == {sdm.question}
    assert questions(tier="smoke") == {smoke.question}
    assert questions(control=True) == {control.question}
    assert len(questions(control=None)) == 6
    assert questions(settings={"n": 2, "data": "x"}) == {mine.question}
    assert questions(settings={}, paper="ash", tier="desk") == {ash.question, gpu.question}
    assert questions(paper="none") == set()
    assert len(store.history("ash", "c1")) == 8
    assert len(store.history("ash", "c1", device="cuda")) == 2
    assert len(store.history("ash", "c1", tier="desk", settings={}, device="cpu")) == 2
    assert len(store.history("ash", "c1", control=True)) == 2
    assert store.history("ash", "c2") == []


# machines


def test_machines(store: Store) -> None:
    other = replace(MACHINE, id="m2", cores=64)
    store.put_machine(MACHINE)
    store.put_machine(other)
    store.put_machine(MACHINE)
    assert store.machines() == {"m1": MACHINE, "m2": other}
    assert store.machines(["m2", "m9"]) == {"m2": other}
    assert store.machines([]) == {}


# several at once

WRITER = """
import sys
from paperworks.lab.records import TrialResult, TrialSpec, Verdict
from paperworks.lab.store import open_store
url, first, count, every = sys.argv[1], *map(int, sys.argv[2:])
print("ready", flush=True)
sys.stdin.readline()
with open_store(url) as store:
    new = 0
    for seed in range(first, first + count):
        spec = TrialSpec("m:f", "code", seed=seed)
        store.put_trial(spec, TrialResult(spec.key, "done", {"seed": float(seed)}, error="é" * 2000))
        print(spec.key, flush=True)
        if every and seed % every == 0:
            new += store.put_verdict(Verdict("p", "c", "exact", "holds", "desk", "cpu", reason=str(seed)))
            store.put_verdict(Verdict("p", f"same {seed - first}", "exact", "holds", "desk", "cpu"))
    print("new", new, flush=True)
"""


def writer(url: str, first: int, count: int, every: int = 0) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", WRITER, url, str(first), str(count), str(every)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def start_together(processes: "list[subprocess.Popen[str]]") -> None:
    """Imports done, all are let go at once: the first thing they do is to open the new database."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def test_two_processes_writing_at_once_lose_nothing(url: str) -> None:
    processes = [writer(url, 0, 500, every=10), writer(url, 10_000, 500, every=10)]
    start_together(processes)
    printed = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    keys = [word for words in printed for word in words if len(word) == 64]
    with open_store(url) as store:
        assert len(store.trials(keys)) == len(keys) == 1000
        told = store.history("p", "c")
        assert [words[-1] for words in printed] == ["50", "50"]
        assert sorted(int(v.reason) for v in told) == [*range(0, 500, 10), *range(10_000, 10_500, 10)]
        # the same answer from both is one verdict
        assert [len(store.history("p", f"same {seed}")) for seed in range(0, 500, 10)] == [1] * 50
    with connection(url) as opened:
        numbers = opened.execute(text("SELECT number FROM verdicts WHERE claim = 'c' ORDER BY number")).scalars()
        assert list(numbers) == list(range(1, 101))


def test_processes_that_open_a_new_database_at_once(url: str) -> None:
    processes = [writer(url, 10 * n, 1) for n in range(4)]
    start_together(processes)
    printed = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    with open_store(url) as store:
        assert len(store.trials([words[0] for words in printed])) == 4


def test_a_killed_process_loses_at_most_the_write_it_was_in(url: str) -> None:
    process = writer(url, 0, 100_000)
    start_together([process])
    assert process.stdout is not None
    keys = [process.stdout.readline().strip() for _ in range(60)]
    process.send_signal(signal.SIGKILL)
    keys += [line for line in process.communicate()[0].splitlines() if len(line) == 64]
    assert process.returncode == -signal.SIGKILL
    with open_store(url) as store:
        assert len(store.trials(keys)) == len(keys) < 100_000
        store.put_trial(spec(), done(spec()))
        assert store.trial(spec().key) == done(spec())
    if url.startswith("sqlite"):
        with connection(url) as opened:
            assert opened.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"


def test_threads_share_a_store(store: Store) -> None:
    def work(worker: int) -> int:
        for seed in range(25):
            one = spec(100 * worker + seed)
            store.put_trial(one, done(one))
            assert store.trial(one.key) == done(one)
        return sum(store.put_verdict(verdict(claim=f"c{n}")) for n in range(10))

    with ThreadPoolExecutor(12) as pool:
        appended = list(pool.map(work, range(12)))
    assert sum(appended) == 10
    assert len(store.trials([spec(100 * worker + seed).key for worker in range(12) for seed in range(25)])) == 300


def test_threads_open_a_new_database_at_once(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(open_store, [url] * 6))
    for number, store in enumerate(stores):
        store.put_trial(spec(number), done(spec(number)))
    assert len(stores[0].trials([spec(n).key for n in range(6)])) == 6
    for store in stores:
        store.close()


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    for call in (lambda: store.trial("x"), lambda: store.put_machine(MACHINE), store.latest_verdicts):
        with pytest.raises(StoreError, match="the store is closed"):
            call()


# migrations


def shape(opened: Connection) -> dict[str, Any]:
    """What the database says of its tables."""
    seen = inspect(opened)
    tables = [name for name in seen.get_table_names() if name != schema.VERSION_TABLE]
    return {
        name: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in seen.get_columns(name)],
            "primary key": seen.get_pk_constraint(name),
            "foreign keys": seen.get_foreign_keys(name),
            "checks": [(c["name"], c["sqltext"]) for c in seen.get_check_constraints(name)],
            "unique": seen.get_unique_constraints(name),
            "indexes": seen.get_indexes(name),
        }
        for name in sorted(tables)
    }


def test_migrations_make_what_the_tables_say_and_take_it_back(url: str) -> None:
    with connection(url) as opened:
        context = MigrationContext.configure(
            opened, opts={"version_table": schema.VERSION_TABLE, "compare_type": True, "render_as_batch": True}
        )
        assert compare_metadata(context, metadata) == []
        migrated = shape(opened)
        assert {"trials", "verdicts", "machines"} <= set(migrated)
        opened.rollback()
        with opened.begin():
            command.downgrade(schema.config(opened), "base")
        assert shape(opened) == {}
        opened.rollback()
        with opened.begin():
            metadata.create_all(opened)
        assert shape(opened) == migrated
        opened.rollback()
        with opened.begin():
            metadata.drop_all(opened)
    with open_store(url) as store:  # and up again
        store.put_trial(spec(), done(spec()))
        assert store.trial(spec().key) == done(spec())


def test_every_migration_goes_down_and_up(url: str) -> None:
    with connection(url) as opened:
        steps = [script.revision for script in ScriptDirectory.from_config(schema.config(opened)).walk_revisions()]
        for run, revision in [
            *((command.downgrade, revision) for revision in [*steps[1:], "base"]),
            *((command.upgrade, revision) for revision in reversed(steps)),
        ]:
            with opened.begin():
                run(schema.config(opened), revision)
            with opened.begin():
                assert schema.is_current(opened) == (revision == steps[0])


def test_a_newer_schema_is_refused(url: str) -> None:
    with connection(url) as opened, opened.begin():
        opened.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"its schema is 9999, this version knows up to \d{4}: pip install --upgrade"):
        open_store(url)


def test_a_new_migration_can_be_drafted(tmp_path: Path) -> None:
    """The template makes a module that runs."""
    scripts = tmp_path / "migrations"
    (scripts / "versions").mkdir(parents=True)
    source = Path(schema.__file__).parent / "migrations"
    (scripts / "script.py.mako").write_text((source / "script.py.mako").read_text())
    made = ScriptDirectory(str(scripts)).generate_revision("0001", "papers and subscriptions", imports="")
    assert made is not None
    assert made.revision == "0001"
    assert made.module.upgrade.__doc__ == "From an empty database to 0001."
    made.module.upgrade()


# SQLite's file


def test_sqlite_is_set_up_for_several_writers(tmp_path: Path) -> None:
    with connection(str(tmp_path / "new" / "folder" / "a.sqlite")) as opened:
        values = [opened.execute(text(f"PRAGMA {name}")).scalar_one()
                  for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")]  # fmt: skip
    assert values == ["wal", 30_000, 1, 1]


def test_where_the_database_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERWORKS_DB", raising=False)
    monkeypatch.setattr(database.platformdirs, "user_data_path", lambda *a, **k: tmp_path / "data" / a[0])
    default = tmp_path / "data" / "paperworks" / "paperworks.sqlite"
    with open_store() as store:
        assert store.location == str(default)
        assert repr(store) == f"Store({str(default)!r})"
    assert default.exists()
    monkeypatch.setenv("PAPERWORKS_DB", "")
    assert database.locate().database == str(default)
    monkeypatch.setenv("PAPERWORKS_DB", f"sqlite:///{tmp_path}/from variable é%20?.sqlite".replace("?", ""))
    assert database.locate().database == f"{tmp_path}/from variable é%20.sqlite"
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
    with pytest.raises(StoreError, match=r"notes.txt: is not an SQLite database"):
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
    with pytest.raises(StoreError, match="a.sqlite: is damaged"), open_store(path) as store:
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
        with pytest.raises(StoreError, match="a.sqlite: stays locked by another process"):
            store.put_trial(spec(), done(spec()))
        other.execute("COMMIT")
        other.close()
        store.put_trial(spec(), done(spec()))


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


@pytest.mark.skipif(platform.system() == "Windows" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.touch(0o400)
    with pytest.raises(StoreError, match="a.sqlite: cannot be written"):
        open_store(path)


def test_postgres_without_psycopg_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"pip install 'paperworks\[postgres\]'"):
        open_store("postgresql://localhost/papers")
