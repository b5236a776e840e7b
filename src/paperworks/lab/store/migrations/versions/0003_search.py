"""What search keeps beside the papers: which of them changed, and the models that were fitted on them.

`search_changes` has one row a paper with the tick of its last change, written by triggers: a process that has seen
tick t reads the papers of later ticks and nothing else. Ticks only rise, whatever time a change is said to be of. A
change is one of what is searched or filtered by: counts of votes and comments change daily and matter to neither.
`search_models` keeps fitted models as bytes, so that another process need not fit them again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SEARCHED = ("title", "keywords", "body", "card", "area", "published", "first_seen")
SQLITE_CHANGED = " OR ".join(f"old.{name} IS NOT new.{name}" for name in SEARCHED)
POSTGRES_CHANGED = " OR ".join(f"old.{name} IS DISTINCT FROM new.{name}" for name in SEARCHED)

SQLITE = (
    "CREATE TABLE search_changes (tick INTEGER PRIMARY KEY AUTOINCREMENT, paper INTEGER NOT NULL UNIQUE)",
    """CREATE TRIGGER search_changes_insert AFTER INSERT ON papers BEGIN
        INSERT OR REPLACE INTO search_changes(paper) VALUES (new.number);
    END""",
    """CREATE TRIGGER search_changes_delete AFTER DELETE ON papers BEGIN
        INSERT OR REPLACE INTO search_changes(paper) VALUES (old.number);
    END""",
    f"""CREATE TRIGGER search_changes_update AFTER UPDATE ON papers
        WHEN {SQLITE_CHANGED} OR json_extract(old.data, '$.code') IS NOT json_extract(new.data, '$.code') BEGIN
        INSERT OR REPLACE INTO search_changes(paper) VALUES (new.number);
    END""",
)
# writers of papers lock the table, so ticks become visible in their order
POSTGRES = (
    "CREATE TABLE search_changes (paper BIGINT PRIMARY KEY, tick BIGSERIAL)",
    "CREATE INDEX search_changes_tick ON search_changes (tick)",
    """CREATE FUNCTION search_changes_keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO search_changes (paper) VALUES (CASE WHEN TG_OP = 'DELETE' THEN old.number ELSE new.number END)
        ON CONFLICT (paper) DO UPDATE SET tick = excluded.tick;
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER search_changes_keep AFTER INSERT OR DELETE ON papers
        FOR EACH ROW EXECUTE FUNCTION search_changes_keep()""",
    f"""CREATE TRIGGER search_changes_update AFTER UPDATE ON papers
        FOR EACH ROW WHEN ({POSTGRES_CHANGED} OR old.data -> 'code' IS DISTINCT FROM new.data -> 'code')
        EXECUTE FUNCTION search_changes_keep()""",
)


def upgrade() -> None:
    """From 0002 to 0003."""
    for statement in POSTGRES if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.execute(statement)
    op.execute("INSERT INTO search_changes (paper) SELECT number FROM papers ORDER BY number")
    op.create_table(
        "search_models",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("papers", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )


def downgrade() -> None:
    """From 0003 to 0002."""
    op.drop_table("search_models")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER search_changes_keep ON papers")
        op.execute("DROP TRIGGER search_changes_update ON papers")
        op.execute("DROP FUNCTION search_changes_keep")
    else:
        for event in ("insert", "delete", "update"):
            op.execute(f"DROP TRIGGER search_changes_{event}")
    op.execute("DROP TABLE search_changes")
