"""Holdouts: a person may say that the labels of one are still true, and what traffic it stands for."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("holdout_states") as states:
        states.add_column(sa.Column("kept", sa.Boolean(), nullable=False, server_default=sa.false()))
        states.add_column(sa.Column("kept_through", sa.Integer(), nullable=True))
        states.add_column(sa.Column("traffic", sa.Double(), nullable=True))
    with op.batch_alter_table("holdout_states") as states:
        states.alter_column("kept", existing_type=sa.Boolean(), existing_nullable=False, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("holdout_states") as states:
        states.drop_column("traffic")
        states.drop_column("kept_through")
        states.drop_column("kept")
