"""Golden sets: the anchors before the one of today, which a rollback gives back."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("golden_sets") as sets:
        sets.add_column(sa.Column("earlier_anchors", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("golden_sets") as sets:
        sets.alter_column(
            "earlier_anchors", existing_type=sa.JSON(), existing_nullable=False, server_default=None
        )


def downgrade() -> None:
    with op.batch_alter_table("golden_sets") as sets:
        sets.drop_column("earlier_anchors")
