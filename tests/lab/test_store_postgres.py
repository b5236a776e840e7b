"""The store on a real PostgreSQL server: what only a server can do to it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from postgres import Server
from sqlalchemy import Connection, make_url, text

import paperworks.feed.tables  # noqa: F401  (its tables are on the same metadata)
from paperworks.lab.records import TrialResult, TrialSpec, Verdict
from paperworks.lab.store import StoreError, database, open_store
from paperworks.lab.store.schema import is_for_search
from paperworks.lab.store.tables import metadata

SPECS = [TrialSpec("m:f", "code", seed=seed) for seed in range(40)]


def done(spec: TrialSpec) -> TrialResult:
    return TrialResult(spec.key, "done", {"accuracy": 0.5})


def test_documents_are_jsonb_that_sql_can_ask(postgres_url: str, postgres_server: Server) -> None:
    name = str(make_url(postgres_url).database)
    with open_store(postgres_url) as store:
        spec = TrialSpec("m:f", "code", settings={"data": "żółć\x00", "limit": 1e-5})
        store.put_trial(spec, done(spec))
    types = dict(postgres_server.execute(
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'trials'", name
    ))  # fmt: skip
    assert (types["spec"], types["metrics"], types["finished"]) == ("jsonb", "jsonb", "timestamp with time zone")
    asked = "SELECT spec->'settings'->>'limit' FROM trials WHERE spec @> '{\"target\": \"m:f\"}'"
    assert postgres_server.execute(asked, name) == [("0.00001",)]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_schemes_that_mean_psycopg(postgres_url: str, scheme: str) -> None:
    with open_store(postgres_url.replace("postgresql", scheme, 1)) as store:
        store.put_trial(SPECS[0], done(SPECS[0]))
        assert list(store.trials([SPECS[0].key])) == [SPECS[0].key]


def test_another_projects_migrations_in_the_same_database_are_left_alone(
    postgres_url: str, postgres_server: Server
) -> None:
    name = str(make_url(postgres_url).database)
    postgres_server.execute("CREATE TABLE alembic_version (version_num varchar(32))", name)
    postgres_server.execute("INSERT INTO alembic_version VALUES ('of another project')", name)
    open_store(postgres_url).close()
    open_store(postgres_url).close()
    assert postgres_server.execute("SELECT * FROM alembic_version", name) == [("of another project",)]
    tables = postgres_server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name)
    kept = {row[0] for row in tables if not is_for_search(row[0])}
    assert kept == {"alembic_version", "paperworks_version", *metadata.tables}


def test_a_failed_migration_leaves_nothing_behind(postgres_url: str, postgres_server: Server) -> None:
    name = str(make_url(postgres_url).database)
    postgres_server.execute("CREATE TABLE machines (of_another_project int)", name)
    with pytest.raises(StoreError, match='relation "machines" already exists'):
        open_store(postgres_url)
    tables = postgres_server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name)
    assert tables == [("machines",)]


def test_a_server_that_cannot_be_reached_is_named_without_the_password(postgres_server: Server) -> None:
    with pytest.raises(StoreError, match=r"postgresql\+psycopg://me:\*\*\*@/x.*: cannot be reached") as caught:
        open_store(f"postgresql://me:secret@/x?host={postgres_server.folder}/nowhere")
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreError, match=r"@127\.0\.0\.1:9/x: cannot be reached .*refused"):
        open_store("postgresql://me:secret@127.0.0.1:9/x")


def test_a_database_that_does_not_exist_is_said(postgres_server: Server) -> None:
    with pytest.raises(StoreError, match='database "nowhere" does not exist'):
        open_store(postgres_server.url("nowhere"))


def test_an_encoding_that_cannot_hold_every_text_is_refused(postgres_server: Server) -> None:
    postgres_server.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    try:
        with pytest.raises(StoreError, match="its encoding is LATIN1, wanted UTF8"):
            open_store(postgres_server.url("latin"))
    finally:
        postgres_server.execute("DROP DATABASE latin WITH (FORCE)")


def test_serialization_failures_are_tried_again(postgres_url: str, postgres_server: Server) -> None:
    """At the strictest isolation most of these writers collide."""
    name = str(make_url(postgres_url).database)
    postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    with open_store(postgres_url) as store, ThreadPoolExecutor(4) as pool:

        def tell(number: int) -> bool:
            store.put_trial(SPECS[number], done(SPECS[number]))
            return store.put_verdict(Verdict("p", "c", "exact", "holds", "desk", "cpu", reason=str(number)))

        assert all(pool.map(tell, range(40)))
        assert len(store.trials([spec.key for spec in SPECS])) == 40
        assert sorted(int(v.reason) for v in store.history("p", "c")) == list(range(40))


def test_a_write_goes_through_when_its_connection_was_ended(postgres_url: str, postgres_server: Server) -> None:
    name = str(make_url(postgres_url).database)
    opened = database.Database(postgres_url)
    tries = []

    def work(connection: Connection) -> int:
        tries.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        if len(tries) == 1:
            postgres_server.execute(f"SELECT pg_terminate_backend({tries[0]})", name)
        return int(connection.execute(text("SELECT 42")).scalar_one())

    assert opened.write(work) == 42
    assert len(set(tries)) == 2
    opened.close()


def test_writes_wait_for_a_server_that_restarts_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    try:
        server.start()
        with open_store(server.url("postgres")) as store:
            store.put_trial(SPECS[0], done(SPECS[0]))
            server.stop()
            again = threading.Timer(0.3, server.start)
            again.start()
            store.put_trial(SPECS[1], done(SPECS[1]))
            again.join()
            assert len(store.trials([spec.key for spec in SPECS])) == 2
            server.stop()
            monkeypatch.setattr(database, "WAITS", (0.01, 0.01))
            for call in (lambda: store.put_trial(SPECS[0], done(SPECS[0])), store.latest_verdicts):
                with pytest.raises(StoreError, match=r"failed .*No such file or directory"):
                    call()
    finally:
        server.remove()
