"""The catalogue of papers: records, the days of the feed, events, search, subscribers and deliveries.

Full text is kept by the database itself. SQLite: `search_words`, an FTS5 table over the columns of `papers`, with
triggers. PostgreSQL: `search_words`, a table of text vectors with a GIN index, kept by a trigger.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
VECTOR = sa.LargeBinary().with_variant(ARRAY(REAL()), "postgresql")

SQLITE = (
    """CREATE VIRTUAL TABLE search_words USING fts5(
        title, keywords, body, content='papers', content_rowid='number', tokenize='porter unicode61')""",
    """CREATE TRIGGER search_words_insert AFTER INSERT ON papers BEGIN
        INSERT INTO search_words(rowid, title, keywords, body) VALUES (new.number, new.title, new.keywords, new.body);
    END""",
    """CREATE TRIGGER search_words_delete AFTER DELETE ON papers BEGIN
        INSERT INTO search_words(search_words, rowid, title, keywords, body)
        VALUES ('delete', old.number, old.title, old.keywords, old.body);
    END""",
    """CREATE TRIGGER search_words_update AFTER UPDATE OF title, keywords, body ON papers BEGIN
        INSERT INTO search_words(search_words, rowid, title, keywords, body)
        VALUES ('delete', old.number, old.title, old.keywords, old.body);
        INSERT INTO search_words(rowid, title, keywords, body) VALUES (new.number, new.title, new.keywords, new.body);
    END""",
)
POSTGRES = (
    """CREATE TABLE search_words (
        paper BIGINT PRIMARY KEY REFERENCES papers (number) ON DELETE CASCADE, words tsvector NOT NULL)""",
    "CREATE INDEX search_words_gin ON search_words USING gin (words)",
    # without accents and punctuation: the parser would keep a word with a point or a stroke in it as an address
    r"""CREATE FUNCTION search_words_of(written text) RETURNS tsvector LANGUAGE sql IMMUTABLE AS $$
        SELECT to_tsvector('english', regexp_replace(
            regexp_replace(normalize(written, NFKD), '[\u0300-\u036f]', '', 'g'), '[!-/\:-@\[-`{-~]+', ' ', 'g'))
    $$""",
    """CREATE FUNCTION search_words_keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO search_words VALUES (new.number, setweight(search_words_of(new.title), 'A')
            || setweight(search_words_of(new.keywords), 'B') || setweight(search_words_of(new.body), 'C'))
        ON CONFLICT (paper) DO UPDATE SET words = excluded.words;
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER search_words_keep AFTER INSERT OR UPDATE OF title, keywords, body ON papers
        FOR EACH ROW EXECUTE FUNCTION search_words_keep()""",
)


def _paper() -> sa.Column[int]:
    return sa.Column("paper", NUMBER, nullable=False)


def _of(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_paper_papers")
    return sa.ForeignKeyConstraint(["paper"], ["papers.number"], name=name, ondelete="CASCADE")


def _by(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_subscriber_subscribers")
    return sa.ForeignKeyConstraint(["subscriber"], ["subscribers.id"], name=name, ondelete="CASCADE")


def _key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"pk_{table}"))


def _papers() -> None:
    op.create_table(
        "papers",
        sa.Column("number", NUMBER, nullable=False, autoincrement=True),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("title_key", sa.String(22), nullable=False),
        sa.Column("card", sa.Text()),
        sa.Column("area", sa.Text()),
        sa.Column("published", sa.Date()),
        sa.Column("first_seen", sa.Date()),
        sa.Column("upvotes", sa.Integer()),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("keywords", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.Column("changed", MOMENT, nullable=False),
        _key("papers", "number"),
        sa.UniqueConstraint("key", name=op.f("uq_papers_key")),
        sqlite_autoincrement=True,
    )
    for column in ("title_key", "card", "area", "published", "first_seen", "changed"):
        op.create_index(op.f(f"ix_papers_{column}"), "papers", [column])
    op.create_table(
        "aliases", sa.Column("key", sa.Text(), nullable=False), _paper(), _key("aliases", "key"), _of("aliases")
    )
    op.create_index(op.f("ix_aliases_paper"), "aliases", ["paper"])
    op.create_table(
        "paper_versions",
        _paper(),
        sa.Column("version", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.Column("seen", MOMENT, nullable=False),
        _key("paper_versions", "paper", "version"),
        _of("paper_versions"),
    )
    op.create_table(
        "feed_days",
        sa.Column("day", sa.Date(), nullable=False),
        _paper(),
        sa.Column("rank", sa.Integer()),
        _key("feed_days", "day", "paper"),
        _of("feed_days"),
    )


def _readers() -> None:
    op.create_table(
        "events",
        sa.Column("id", NUMBER, nullable=False, autoincrement=True),
        _paper(),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("person", sa.Text()),
        sa.Column("at", MOMENT, nullable=False),
        _key("events", "id"),
        _of("events"),
        sa.CheckConstraint("kind IN ('vote', 'comment', 'view', 'run')", name=op.f("ck_events_kind")),
    )
    op.create_index(op.f("ix_events_paper_at"), "events", ["paper", "at"])
    op.create_index(op.f("ix_events_at"), "events", ["at"])
    op.create_table(
        "votes",
        _paper(),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        _key("votes", "paper", "person"),
        _of("votes"),
    )
    op.create_table(
        "scores",
        _paper(),
        sa.Column("half_life", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("value", sa.Float(53), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        _key("scores", "paper", "half_life"),
        _of("scores"),
    )
    op.create_table(
        "embeddings",
        _paper(),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("vector", VECTOR, nullable=False),
        _key("embeddings", "paper", "model"),
        _of("embeddings"),
    )


def _subscribers() -> None:
    op.create_table(
        "subscribers",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("preferences", DOCUMENT, nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("confirmed", MOMENT),
        sa.Column("changed", MOMENT, nullable=False),
        _key("subscribers", "id"),
        sa.UniqueConstraint("email", name=op.f("uq_subscribers_email")),
        sa.CheckConstraint(
            "status IN ('pending', 'active', 'unsubscribed', 'suppressed')", name=op.f("ck_subscribers_status")
        ),
    )
    op.create_table(
        "tokens",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("subscriber", sa.String(32), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("expires", MOMENT, nullable=False),
        sa.Column("used", MOMENT),
        _key("tokens", "digest"),
        _by("tokens"),
    )
    op.create_index(op.f("ix_tokens_subscriber"), "tokens", ["subscriber"])
    op.create_table(
        "deliveries",
        sa.Column("id", NUMBER, nullable=False, autoincrement=True),
        sa.Column("subscriber", sa.String(32), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("papers", DOCUMENT, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("started", MOMENT, nullable=False),
        sa.Column("finished", MOMENT),
        _key("deliveries", "id"),
        _by("deliveries"),
        sa.UniqueConstraint("subscriber", "period", name=op.f("uq_deliveries_subscriber_period")),
        sa.CheckConstraint("status IN ('sending', 'sent', 'failed', 'nothing')", name=op.f("ck_deliveries_status")),
    )


def upgrade() -> None:
    """From 0001 to 0002."""
    _papers()
    _readers()
    _subscribers()
    for statement in POSTGRES if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.execute(statement)


def downgrade() -> None:
    """From 0002 to 0001."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER search_words_keep ON papers")
        op.execute("DROP FUNCTION search_words_keep")
        op.execute("DROP FUNCTION search_words_of")
    else:
        for event in ("insert", "delete", "update"):
            op.execute(f"DROP TRIGGER search_words_{event}")
    op.execute("DROP TABLE search_words")
    for table in ("deliveries", "tokens", "subscribers"):
        op.drop_table(table)
    for table in ("embeddings", "scores", "votes", "events", "feed_days", "paper_versions", "aliases", "papers"):
        op.drop_table(table)
