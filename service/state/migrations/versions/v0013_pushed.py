"""Pushed logs: running counts of records, so that neither a push nor a trim reads what was stored before."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


_COUNTS = (
    ("rows", sa.BigInteger(), "Of all batches that were ever stored."),
    ("trimmed_to", sa.Integer(), "Batches before this one are trimmed."),
)


def upgrade() -> None:
    before = "Of all batches stored before it."
    op.add_column("pushed_batches", sa.Column("rows_before", sa.BigInteger(), nullable=True, comment=before))
    with op.batch_alter_table("pushed_logs") as logs:
        for name, kind, comment in _COUNTS:
            logs.add_column(sa.Column(name, kind, nullable=False, server_default="0", comment=comment))
    _count()
    with op.batch_alter_table("pushed_batches") as batches:
        batches.alter_column(
            "rows_before", existing_type=sa.BigInteger(), existing_comment=before, nullable=False
        )
        batches.create_index("ix_pushed_batches_pipeline", ["pipeline", "created_at"])
    with op.batch_alter_table("pushed_logs") as logs:
        for name, kind, comment in _COUNTS:
            logs.alter_column(
                name,
                existing_type=kind,
                existing_nullable=False,
                existing_comment=comment,
                server_default=None,
            )


def _count() -> None:
    """Count what is there; batches that were deleted before count as nothing, which no difference shows."""
    op.execute(
        "UPDATE pushed_batches SET rows_before = counted.before FROM ("
        "SELECT pipeline, sequence, "
        "SUM(rows) OVER (PARTITION BY pipeline ORDER BY sequence) - rows AS before "
        "FROM pushed_batches) AS counted "
        "WHERE counted.pipeline = pushed_batches.pipeline AND counted.sequence = pushed_batches.sequence"
    )
    op.execute(
        "UPDATE pushed_logs SET rows = COALESCE((SELECT SUM(rows) FROM pushed_batches "
        "WHERE pushed_batches.pipeline = pushed_logs.pipeline), 0)"
    )


def downgrade() -> None:
    with op.batch_alter_table("pushed_batches") as batches:
        batches.drop_index("ix_pushed_batches_pipeline")
        batches.drop_column("rows_before")
    with op.batch_alter_table("pushed_logs") as logs:
        logs.drop_column("trimmed_to")
        logs.drop_column("rows")
