"""Holdouts: looks at each are counted, and a person may retire or pin one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Answers are kept in another order from now on; those that are missing are computed again, once.
    op.execute(sa.text("DELETE FROM answers"))
    op.create_table(
        "looks",
        sa.Column("pipeline", sa.String(length=63), nullable=False),
        sa.Column("update_id", sa.String(length=40), nullable=False),
        sa.Column("experience", sa.Integer(), nullable=False),
        sa.Column("part", sa.String(length=8), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "update_id", "experience", "part", name=op.f("pk_looks")),
    )
    op.create_table(
        "holdout_states",
        sa.Column("pipeline", sa.String(length=63), nullable=False),
        sa.Column("experience", sa.Integer(), nullable=False),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "experience", name=op.f("pk_holdout_states")),
    )


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM answers"))
    op.drop_table("holdout_states")
    op.drop_table("looks")
