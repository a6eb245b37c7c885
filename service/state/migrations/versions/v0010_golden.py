"""Golden sets: permanent holdouts of curated records, and the count of records that they keep out."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "golden_sets",
        sa.Column("pipeline", sa.String(length=63), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("margin", sa.Double(), nullable=True, comment="Null: no right answer may be lost."),
        sa.Column("since_version", sa.Integer(), nullable=True),
        sa.Column("anchor_version", sa.Integer(), nullable=True),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.Column("added_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "number", name=op.f("pk_golden_sets")),
        sa.UniqueConstraint("pipeline", "name", name=op.f("uq_golden_sets_pipeline_name")),
    )
    with op.batch_alter_table("stream_states") as states:
        states.add_column(
            sa.Column(
                "held_out",
                sa.BigInteger(),
                nullable=False,
                server_default="0",
                comment="Dropped: a golden set holds their id.",
            )
        )


def downgrade() -> None:
    with op.batch_alter_table("stream_states") as states:
        states.drop_column("held_out")
    op.drop_table("golden_sets")
