"""Migrations: bring a database to the tables of this version.

A new migration is drafted from the difference between `tables.metadata` and a database at the newest one, and then
read and put right by hand (types spelled out as SQL's own, see the first migration)::

    with Database(path).engine.connect() as connection:
        alembic.command.revision(schema.config(connection), "what changes", autogenerate=True, rev_id="0002")
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

VERSION_TABLE = "paperworks_version"
"""Of its own name: a shared PostgreSQL database may hold another project's ``alembic_version``."""

_ALONE = threading.Lock()  # Alembic keeps the running environment in module globals


def is_for_search(name: str | None) -> bool:
    """Whether a table or index is one that full text search needs: each database has its own, see migration 0002."""
    return name is not None and name.startswith("search_")


class NewerSchemaError(Exception):
    """The database has been migrated beyond what this version knows."""


def config(connection: Connection) -> Config:
    """Alembic's configuration for the migrations of this package, run on `connection`."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def is_current(connection: Connection) -> bool:
    """Whether the database is at the newest migration. Raises NewerSchemaError where it is beyond."""
    scripts = ScriptDirectory.from_config(config(connection))
    known = {script.revision for script in scripts.walk_revisions()}
    heads = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    for revision in heads:
        if revision not in known:
            raise NewerSchemaError(f"its schema is {revision}, this version knows up to {scripts.get_current_head()}")
    return set(heads) == set(scripts.get_heads())


def upgrade(connection: Connection) -> None:
    """Run the missing migrations inside the transaction that `connection` is in."""
    with _ALONE:
        command.upgrade(config(connection), "head")
