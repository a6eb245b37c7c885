"""Updates: what fixes their challenger and verdict is stored with them.

Updates of earlier releases have no such rows: what they were judged by is not known any more.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "update_inputs",
        sa.Column("update_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False, comment="sha256 of the document's bytes."),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("update_id", "name", name=op.f("pk_update_inputs")),
    )


def downgrade() -> None:
    op.drop_table("update_inputs")
