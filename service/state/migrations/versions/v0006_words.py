"""Dead letters: the column `letter` is `name`, which is what it holds."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COMMENTS = (
    ("dead_letters", "name", "Hash of the position and the payload.", "Hash of the place and the payload."),
    (
        "dead_letters",
        "closed",
        "Its partition was forgotten: a later one may have the same name.",
        "Its partition was forgotten: what comes under that name is another one.",
    ),
    (
        "stream_states",
        "revision",
        "Rises with every commit; a stale one is refused.",
        "Rises with every commit: the fence.",
    ),
    (
        "stream_states",
        "aged_out",
        "Unmatched records that waited too long.",
        "Halves whose other half never came.",
    ),
)
"""Table, column, comment from now on, comment before. SQLite keeps none."""


def upgrade() -> None:
    # One statement in both databases, which renames the column in the primary key too and copies no row.
    op.execute("ALTER TABLE dead_letters RENAME COLUMN letter TO name")
    if op.get_context().dialect.supports_comments:
        for table, column, comment, before in _COMMENTS:
            op.alter_column(table, column, comment=comment, existing_comment=before)


def downgrade() -> None:
    if op.get_context().dialect.supports_comments:
        for table, column, comment, before in _COMMENTS:
            op.alter_column(table, column, comment=before, existing_comment=comment)
    op.execute("ALTER TABLE dead_letters RENAME COLUMN name TO letter")
