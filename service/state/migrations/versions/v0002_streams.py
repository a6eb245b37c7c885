"""Streams: their states and classes, records that wait for a match, and dead letters that can be replayed."""

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("offsets") as offsets:
        offsets.alter_column("partition", existing_type=sa.String(200), type_=sa.String(500))
    with op.batch_alter_table("experiences") as experiences:
        experiences.add_column(
            sa.Column(
                "decision", sa.JSON(), nullable=False, server_default="{}", comment="What the trigger saw."
            )
        )
        experiences.add_column(
            sa.Column("train_removed_at", sa.Double(), nullable=True, comment="By the retention policy.")
        )
    _prepare_dead_letters()
    _name_letters()
    _finish_dead_letters()
    _create_tables()


def _prepare_dead_letters() -> None:
    with op.batch_alter_table("dead_letters") as letters:
        letters.alter_column("partition", existing_type=sa.String(200), type_=sa.String(500))
        letters.add_column(sa.Column("letter", sa.String(16), nullable=True))
        letters.add_column(sa.Column("whole_bytes", sa.BigInteger(), nullable=True))
        letters.add_column(sa.Column("form", sa.JSON(), nullable=True))
        letters.add_column(sa.Column("replayed_at", sa.Double(), nullable=True))
        letters.add_column(
            sa.Column(
                "closed",
                sa.Boolean(),
                nullable=False,
                server_default=sa.false(),
                comment="Its partition was forgotten: what comes under that name is another one.",
            )
        )


def _finish_dead_letters() -> None:
    with op.batch_alter_table("dead_letters") as letters:
        letters.alter_column(
            "letter",
            existing_type=sa.String(16),
            nullable=False,
            comment="Hash of the place and the payload.",
        )
        letters.alter_column(
            "whole_bytes",
            existing_type=sa.BigInteger(),
            nullable=False,
            comment="Of the payload before it was capped.",
        )
        letters.alter_column(
            "form", existing_type=sa.JSON(), nullable=False, comment="Wire, and for tables the columns."
        )
        letters.drop_constraint(op.f("pk_dead_letters"), type_="primary")
        letters.create_primary_key(op.f("pk_dead_letters"), ["pipeline", "letter"])


def _create_tables() -> None:
    op.create_table(
        "stream_states",
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False, comment="Rises with every commit: the fence."),
        sa.Column(
            "status", sa.String(length=16), nullable=False, comment="running, failing, paused or stopped."
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("pending", sa.JSON(), nullable=False, comment="What ingest has read and not yet cut."),
        sa.Column("duplicates", sa.BigInteger(), nullable=False, comment="Dropped: their id had been seen."),
        sa.Column("aged_out", sa.BigInteger(), nullable=False, comment="Halves whose other half never came."),
        sa.PrimaryKeyConstraint("pipeline", name=op.f("pk_stream_states")),
    )
    op.create_table(
        "classes",
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("class_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "class_id", name=op.f("pk_classes")),
        sa.UniqueConstraint("pipeline", "name", name=op.f("uq_classes_pipeline_name")),
    )
    op.create_table(
        "waiting_parts",
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("gone", sa.LargeBinary(), nullable=False, comment="A bit a row: joined, or aged out."),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "sequence", name=op.f("pk_waiting_parts")),
    )


def _name_letters() -> None:
    """Give dead letters of the earlier release their ids and their form: all of them were JSON."""
    letters = sa.table(
        "dead_letters",
        *(sa.column(name) for name in ("pipeline", "partition", "position", "letter")),
        sa.column("payload", sa.LargeBinary),
        sa.column("whole_bytes", sa.BigInteger),
        sa.column("form", sa.JSON),
    )
    connection = op.get_bind()
    places = (letters.c.pipeline, letters.c.partition, letters.c.position)
    for pipeline, partition, position in connection.execute(sa.select(*places)).all():
        place = f"{partition}\0{position}\0".encode("utf-8", "surrogatepass")
        where = (
            letters.c.pipeline == pipeline,
            letters.c.partition == partition,
            letters.c.position == position,
        )
        payload = connection.execute(sa.select(letters.c.payload).where(*where)).scalar_one()
        connection.execute(
            sa.update(letters)
            .where(*where)
            .values(
                letter=hashlib.sha256(place + payload).hexdigest()[:16],
                whole_bytes=sa.func.length(letters.c.payload),
                form={"wire": "json"},
            )
        )
