"""Trials, verdicts and machines.

Types are spelled out here rather than taken from `tables`: a migration stays what it was when the tables go on.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """From an empty database to 0001."""
    op.create_table(
        "trials",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("metrics", DOCUMENT, nullable=False),
        sa.Column("curves", DOCUMENT, nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("peak_memory", sa.BigInteger(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("finished", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_trials")),
        sa.CheckConstraint("status IN ('done', 'error')", name=op.f("ck_trials_status")),
    )
    op.create_table(
        "verdicts",
        sa.Column("question", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("paper", sa.Text(), nullable=False),
        sa.Column("claim", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("settings_digest", sa.String(64), nullable=False),
        sa.Column("control", sa.Boolean(), nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("checked", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("question", "number", name=op.f("pk_verdicts")),
    )
    op.create_index(op.f("ix_verdicts_paper_claim"), "verdicts", ["paper", "claim"])
    op.create_table(
        "machines",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_machines")),
    )


def downgrade() -> None:
    """From 0001 to an empty database."""
    op.drop_table("machines")
    op.drop_index(op.f("ix_verdicts_paper_claim"), table_name="verdicts")
    op.drop_table("verdicts")
    op.drop_table("trials")
