"""What Alembic runs around the migrations: on the connection, and in the transaction, of `schema.config`."""

from alembic import context

from paperworks.lab.store.schema import VERSION_TABLE, is_for_search
from paperworks.lab.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # SQLite alters a table by copying it
    render_as_batch=True,
    transactional_ddl=True,
    compare_type=True,
    include_name=lambda name, kind, parents: not is_for_search(name),
)

with context.begin_transaction():
    context.run_migrations()
