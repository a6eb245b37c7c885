"""Holdouts: a person may set a margin for a single one."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("holdout_states") as states:
        states.add_column(sa.Column("margin", sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("holdout_states") as states:
        states.drop_column("margin")
