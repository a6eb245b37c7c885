"""The service's tables, engine and migrations. SQLite (WAL) and PostgreSQL are treated alike."""

import time
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from streams.manifest import METADATA

LIVE_STATES = ("queued", "running", "review")

pipelines = sa.Table(
    "pipelines",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

updates = sa.Table(
    "updates",
    METADATA,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("pipeline", sa.String(63), nullable=False),
    sa.Column("request_key", sa.String(255)),
    sa.Column("requested_by", sa.String(255), nullable=False),
    sa.Column("wants_cut", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(255)),
    sa.Column("lease_until", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("experiences", sa.JSON, nullable=False),
    sa.Column("base_version", sa.Integer),
    sa.Column("base_revision", sa.Integer),
    sa.Column("progress", sa.JSON),
    sa.Column("outcome", sa.String(16)),
    sa.Column("reason", sa.Text),
    sa.Column("verdict", sa.JSON),
    sa.Column("accuracy", sa.JSON),
    sa.Column("version", sa.Integer),
    sa.Column("run_id", sa.String(64)),
    sa.Column("decision", sa.JSON),
    sa.Column("error", sa.Text),
    sa.UniqueConstraint("pipeline", "request_key"),
    sa.Index("ix_updates_state_created_at", "state", "created_at"),
    # The database itself holds the promise that one update of a pipeline runs at a time.
    sa.Index(
        "uq_updates_one_running",
        "pipeline",
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    ),
)

backlog = sa.Table(
    "backlog",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("experience", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("carries", sa.Integer, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("screen", sa.JSON),
)

versions = sa.Table(
    "versions",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("update_id", sa.String(40), nullable=False, unique=True),
    sa.Column("parent", sa.Integer),
    sa.Column("learnt", sa.JSON, nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("promoted_at", sa.Double),
)

champions = sa.Table(
    "champions",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
)

answers = sa.Table(
    "answers",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("experience", sa.Integer, primary_key=True),
    sa.Column("part", sa.String(8), primary_key=True),
    sa.Column("records", sa.Integer, nullable=False),
    sa.Column("bits", sa.LargeBinary, nullable=False),
)

ledger = sa.Table(
    "ledger",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("update_id", sa.String(40)),
    sa.Column("version", sa.Integer),
    sa.Column("previous_version", sa.Integer),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("previous_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)


roles = sa.Table(
    "roles",
    METADATA,
    sa.Column("role", sa.String(16), primary_key=True),
    sa.Column("instance", sa.String(255), primary_key=True),
    sa.Column("seen_at", sa.Double, nullable=False),
)


def connect(url: str) -> sa.Engine:
    """An engine whose transactions take the write lock at their start (SQLite) and survive power loss."""
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": 30})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def _prepare_sqlite(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
    # SQLAlchemy's own BEGIN below replaces the driver's, which would start transactions too late.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def now(connection: sa.Connection) -> float:
    """Seconds since the epoch, by the one clock that all workers share."""
    if connection.dialect.name == "postgresql":
        seconds = connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
        return float(seconds)
    return time.time()


def migrate(engine: sa.Engine) -> None:
    """Bring the schema to this release. Safe to run from several processes at once."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # One migrator at a time; the lock goes with the transaction.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(4242420001)"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
