"""The migrations make what the tables say, on SQLite and on PostgreSQL, and go down again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

import paperworks.feed.tables  # noqa: F401  (its tables are on the same metadata)
from paperworks.lab.records import TrialResult, TrialSpec
from paperworks.lab.store import StoreError, database, open_store, schema
from paperworks.lab.store.tables import metadata


@contextmanager
def connection(url: str) -> Iterator[Connection]:
    opened = database.Database(url)
    try:
        with opened.engine.connect() as made:
            yield made
    finally:
        opened.close()


def shape(opened: Connection) -> dict[str, Any]:
    """What the database says of its tables."""
    seen = inspect(opened)
    others = {schema.VERSION_TABLE, "sqlite_sequence"}
    tables = [name for name in seen.get_table_names() if name not in others and not schema.is_for_search(name)]
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


def test_migrations_make_what_the_tables_say_and_take_it_back(store_url: str) -> None:
    with connection(store_url) as opened:
        context = MigrationContext.configure(
            opened,
            opts={
                "version_table": schema.VERSION_TABLE,
                "compare_type": True,
                "render_as_batch": True,
                "include_name": lambda name, kind, parents: not schema.is_for_search(name),
            },
        )
        assert compare_metadata(context, metadata) == []
        migrated = shape(opened)
        assert {"trials", "verdicts", "machines", "papers", "subscribers"} <= set(migrated)
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
    with open_store(store_url) as store:  # and up again
        spec = TrialSpec("m:f", "code")
        store.put_trial(spec, TrialResult(spec.key, "done"))
        assert list(store.trials([spec.key])) == [spec.key]


def test_every_migration_goes_down_and_up(store_url: str) -> None:
    with connection(store_url) as opened:
        steps = [script.revision for script in ScriptDirectory.from_config(schema.config(opened)).walk_revisions()]
        for run, revision in [
            *((command.downgrade, revision) for revision in [*steps[1:], "base"]),
            *((command.upgrade, revision) for revision in reversed(steps)),
        ]:
            with opened.begin():
                run(schema.config(opened), revision)
            with opened.begin():
                assert schema.is_current(opened) == (revision == steps[0])


def test_a_newer_schema_is_refused(store_url: str) -> None:
    with connection(store_url) as opened, opened.begin():
        opened.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"its schema is 9999, this version knows up to \d{4}: pip install --upgrade"):
        open_store(store_url)


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
