"""Roles: which loops of a process fail or hang."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("roles") as roles:
        roles.add_column(sa.Column("troubles", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    with op.batch_alter_table("roles") as roles:
        roles.drop_column("troubles")
