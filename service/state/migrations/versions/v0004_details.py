"""Answers on holdouts: details of each record beyond right or wrong."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("answers") as answers:
        answers.add_column(
            sa.Column(
                "details", sa.LargeBinary(), nullable=True, comment="Of each record, beyond right or wrong."
            )
        )
