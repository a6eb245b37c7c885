"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_answers()
    _create_backlog()
    _create_champions()
    _create_dead_letters()
    _create_experiences()
    _create_ledger()
    _create_offsets()
    _create_pipelines()
    _create_pushed_batches()
    _create_pushed_logs()
    _create_roles()
    _create_trigger_states()
    _create_updates()
    _create_versions()


def _create_answers() -> None:
    op.create_table(
        "answers",
        sa.Column("pipeline", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("experience", sa.Integer(), nullable=False),
        sa.Column("part", sa.String(length=8), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("bits", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "version", "experience", "part", name=op.f("pk_answers")),
    )


def _create_backlog() -> None:
    op.create_table(
        "backlog",
        sa.Column("pipeline", sa.String(length=63), nullable=False),
        sa.Column("experience", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("carries", sa.Integer(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("screen", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("pipeline", "experience", name=op.f("pk_backlog")),
    )


def _create_champions() -> None:
    op.create_table(
        "champions",
        sa.Column("pipeline", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", name=op.f("pk_champions")),
    )


def _create_dead_letters() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("partition", sa.String(length=200), nullable=False),
        sa.Column("position", sa.String(length=500), nullable=False),
        sa.Column("reason", sa.String(length=50), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "partition", "position", name=op.f("pk_dead_letters")),
    )
    op.create_index(
        op.f("ix_dead_letters_pipeline"), "dead_letters", ["pipeline", "created_at"], unique=False
    )


def _create_experiences() -> None:
    op.create_table(
        "experiences",
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("train_digest", sa.String(length=64), nullable=False),
        sa.Column("train_rows", sa.Integer(), nullable=False),
        sa.Column("gate_digest", sa.String(length=64), nullable=False),
        sa.Column("gate_rows", sa.Integer(), nullable=False),
        sa.Column("audit_digest", sa.String(length=64), nullable=False),
        sa.Column("audit_rows", sa.Integer(), nullable=False),
        sa.Column("schema_fingerprint", sa.String(length=64), nullable=False),
        sa.Column("positions", sa.JSON(), nullable=False),
        sa.Column("cut_reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "index", name=op.f("pk_experiences")),
    )


def _create_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("pipeline", sa.String(length=63), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("update_id", sa.String(length=40), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("previous_version", sa.Integer(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("previous_hash", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "sequence", name=op.f("pk_ledger")),
    )


def _create_offsets() -> None:
    op.create_table(
        "offsets",
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("partition", sa.String(length=200), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "partition", name=op.f("pk_offsets")),
    )


def _create_pipelines() -> None:
    op.create_table(
        "pipelines",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pipelines")),
    )


def _create_pushed_batches() -> None:
    op.create_table(
        "pushed_batches",
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column(
            "payload", sa.LargeBinary(), nullable=True, comment="Null once it was consumed and trimmed."
        ),
        sa.Column("request_key", sa.String(length=200), nullable=True),
        sa.Column(
            "request_digest",
            sa.String(length=64),
            nullable=True,
            comment="sha256 of a keyed request's payload.",
        ),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "sequence", name=op.f("pk_pushed_batches")),
        sa.UniqueConstraint("pipeline", "request_key", name=op.f("uq_pushed_batches_pipeline_request_key")),
    )


def _create_pushed_logs() -> None:
    op.create_table(
        "pushed_logs",
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("last_sequence", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", name=op.f("pk_pushed_logs")),
    )


def _create_roles() -> None:
    op.create_table(
        "roles",
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("role", "instance", name=op.f("pk_roles")),
    )


def _create_trigger_states() -> None:
    op.create_table(
        "trigger_states",
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", name=op.f("pk_trigger_states")),
    )


def _create_updates() -> None:
    op.create_table(
        "updates",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("pipeline", sa.String(length=63), nullable=False),
        sa.Column("request_key", sa.String(length=255), nullable=True),
        sa.Column("requested_by", sa.String(length=255), nullable=False),
        sa.Column("wants_cut", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("asked", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("experiences", sa.JSON(), nullable=False),
        sa.Column("base_version", sa.Integer(), nullable=True),
        sa.Column("base_revision", sa.Integer(), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("verdict", sa.JSON(), nullable=True),
        sa.Column("accuracy", sa.JSON(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("decision", sa.JSON(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_updates")),
        sa.UniqueConstraint("pipeline", "request_key", name=op.f("uq_updates_pipeline_request_key")),
    )
    op.create_index("ix_updates_state_created_at", "updates", ["state", "created_at"], unique=False)
    op.create_index(
        "uq_updates_one_running",
        "updates",
        ["pipeline"],
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("pipeline", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("update_id", sa.String(length=40), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("learnt", sa.JSON(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("promoted_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("pipeline", "version", name=op.f("pk_versions")),
        sa.UniqueConstraint("update_id", name=op.f("uq_versions_update_id")),
    )
