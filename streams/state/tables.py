"""The SQL tables of the data side. The service adds its own to the same metadata and owns the migrations."""

from contextlib import AbstractContextManager

import sqlalchemy as sql

METADATA = sql.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

OFFSETS = sql.Table(
    "offsets",
    METADATA,
    sql.Column("pipeline", sql.String(200), primary_key=True),
    sql.Column("partition", sql.String(500), primary_key=True),
    sql.Column("cursor", sql.Text, nullable=False),
)
EXPERIENCES = sql.Table(
    "experiences",
    METADATA,
    sql.Column("pipeline", sql.String(200), primary_key=True),
    sql.Column("index", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("train_digest", sql.String(64), nullable=False),
    sql.Column("train_rows", sql.Integer, nullable=False),
    sql.Column("gate_digest", sql.String(64), nullable=False),
    sql.Column("gate_rows", sql.Integer, nullable=False),
    sql.Column("audit_digest", sql.String(64), nullable=False),
    sql.Column("audit_rows", sql.Integer, nullable=False),
    sql.Column("schema_fingerprint", sql.String(64), nullable=False),
    sql.Column("positions", sql.JSON, nullable=False),
    sql.Column("cut_reason", sql.Text, nullable=False),
    sql.Column("decision", sql.JSON, nullable=False, server_default="{}", comment="What the trigger saw."),
    sql.Column("created_at", sql.Double, nullable=False),
    sql.Column("train_removed_at", sql.Double, nullable=True, comment="By the retention policy."),
)
DEAD_LETTERS = sql.Table(
    "dead_letters",
    METADATA,
    sql.Column("pipeline", sql.String(200), primary_key=True),
    sql.Column("name", sql.String(16), primary_key=True, comment="Hash of the position and the payload."),
    sql.Column("partition", sql.String(500), nullable=False),
    sql.Column("position", sql.String(500), nullable=False),
    sql.Column("reason", sql.String(50), nullable=False),
    sql.Column("detail", sql.Text, nullable=False),
    sql.Column("payload", sql.LargeBinary, nullable=False),
    sql.Column("whole_bytes", sql.BigInteger, nullable=False, comment="Of the payload before it was capped."),
    sql.Column("form", sql.JSON, nullable=False, comment="Wire, and for tables the columns."),
    sql.Column("created_at", sql.Double, nullable=False),
    sql.Column("replayed_at", sql.Double, nullable=True),
    sql.Column(
        "closed",
        sql.Boolean,
        nullable=False,
        server_default=sql.false(),
        comment="Its partition was forgotten: a later one may have the same name.",
    ),
    sql.Index(None, "pipeline", "created_at"),
)
STREAM_STATES = sql.Table(
    "stream_states",
    METADATA,
    sql.Column("pipeline", sql.String(200), primary_key=True),
    sql.Column(
        "revision", sql.Integer, nullable=False, comment="Rises with every commit; a stale one is refused."
    ),
    sql.Column("status", sql.String(16), nullable=False, comment="running, failing, paused or stopped."),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("actor", sql.String(255), nullable=False),
    sql.Column("since", sql.Double, nullable=False),
    sql.Column("pending", sql.JSON, nullable=False, comment="What ingest has read and not yet cut."),
    sql.Column("duplicates", sql.BigInteger, nullable=False, comment="Dropped: their id had been seen."),
    sql.Column(
        "held_out",
        sql.BigInteger,
        nullable=False,
        server_default="0",
        comment="Dropped: a golden set holds their id.",
    ),
    sql.Column("aged_out", sql.BigInteger, nullable=False, comment="Unmatched records that waited too long."),
)
CLASSES = sql.Table(
    "classes",
    METADATA,
    sql.Column("pipeline", sql.String(200), primary_key=True),
    sql.Column("class_id", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("name", sql.String(200), nullable=False),
    sql.UniqueConstraint("pipeline", "name"),
)
WAITING_PARTS = sql.Table(
    "waiting_parts",
    METADATA,
    sql.Column("pipeline", sql.String(200), primary_key=True),
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("digest", sql.String(64), nullable=False),
    sql.Column("rows", sql.Integer, nullable=False),
    sql.Column("gone", sql.LargeBinary, nullable=False, comment="A bit a row: joined, or aged out."),
    sql.Column("stored_at", sql.Double, nullable=False),
)
TRIGGER_STATES = sql.Table(
    "trigger_states",
    METADATA,
    sql.Column("pipeline", sql.String(200), primary_key=True),
    sql.Column("state", sql.JSON, nullable=False),
)
PUSHED_LOGS = sql.Table(
    "pushed_logs",
    METADATA,
    sql.Column("pipeline", sql.String(200), primary_key=True),
    sql.Column("last_sequence", sql.Integer, nullable=False),
    sql.Column("rows", sql.BigInteger, nullable=False, comment="Of all batches that were ever stored."),
    sql.Column("trimmed_to", sql.Integer, nullable=False, comment="Batches before this one are trimmed."),
)
PUSHED_BATCHES = sql.Table(
    "pushed_batches",
    METADATA,
    sql.Column("pipeline", sql.String(200), primary_key=True),
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("rows", sql.Integer, nullable=False),
    sql.Column("rows_before", sql.BigInteger, nullable=False, comment="Of all batches stored before it."),
    sql.Column("payload", sql.LargeBinary, nullable=True, comment="Null once it was consumed and trimmed."),
    sql.Column("request_key", sql.String(200), nullable=True),
    sql.Column(
        "request_digest", sql.String(64), nullable=True, comment="sha256 of a keyed request's payload."
    ),
    sql.Column("created_at", sql.Double, nullable=False),
    sql.UniqueConstraint("pipeline", "request_key"),
    sql.Index(None, "pipeline", "created_at"),
)


def reading(engine: sql.Engine) -> AbstractContextManager[sql.Connection]:
    """A transaction that only reads.

    On SQLite, where other transactions take the write lock at their start, it neither waits for a writer nor
    blocks one. The engine must honour the option `sqlite_begin`.
    """
    return engine.execution_options(sqlite_begin="DEFERRED").begin()
