"""Tables, engine and migrations of the service, on SQLite (WAL) or PostgreSQL."""

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.errors import DatabaseAwayError, DatabaseRevisionError, SettingsError
from streams.state.manifest import METADATA
from streams.state.tables import reading

LIVE_STATES = ("queued", "running", "review")

LOCK_SECONDS = 30.0
"""How long a transaction waits for SQLite's one writer."""

_PIPELINE_LOCKS = 42424
"""First key of the advisory locks of pipelines; the second is a hash of the name."""

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
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("not_before", sa.Double, nullable=False),
    sa.Column("owner", sa.String(255)),
    sa.Column("lease_until", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("asked", sa.JSON(none_as_null=True)),
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
    sa.Column("cause", sa.String(64)),
    sa.UniqueConstraint("pipeline", "request_key"),
    sa.Index("ix_updates_state_created_at", "state", "created_at"),
    sa.Index("ix_updates_pipeline_finished_at", "pipeline", "finished_at"),
    # The database itself holds the promise that one update of a pipeline runs at a time.
    sa.Index(
        "uq_updates_one_running",
        "pipeline",
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    ),
)

update_inputs = sa.Table(
    "update_inputs",
    METADATA,
    sa.Column("update_id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(16), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, comment="sha256 of the document's bytes."),
    sa.Column("created_at", sa.Double, nullable=False),
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
    sa.Column("details", sa.LargeBinary, comment="Of each record, beyond right or wrong."),
)

looks = sa.Table(
    "looks",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("update_id", sa.String(40), primary_key=True),
    sa.Column("experience", sa.Integer, primary_key=True),
    sa.Column("part", sa.String(8), primary_key=True),
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

holdout_states = sa.Table(
    "holdout_states",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("experience", sa.Integer, primary_key=True),
    sa.Column("retired", sa.Boolean, nullable=False),
    sa.Column("pinned", sa.Boolean, nullable=False),
    sa.Column("margin", sa.Double),
    sa.Column("kept", sa.Boolean, nullable=False),
    sa.Column("kept_through", sa.Integer),
    sa.Column("traffic", sa.Double),
)

golden_sets = sa.Table(
    "golden_sets",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("records", sa.Integer, nullable=False),
    sa.Column("margin", sa.Double, comment="Null: no right answer may be lost."),
    sa.Column("since_version", sa.Integer),
    sa.Column("anchor_version", sa.Integer),
    sa.Column("earlier_anchors", sa.JSON, nullable=False),
    sa.Column("retired", sa.Boolean, nullable=False),
    sa.Column("added_at", sa.Double, nullable=False),
    sa.UniqueConstraint("pipeline", "name"),
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
    sa.Column("troubles", sa.JSON, nullable=False, server_default="[]"),
)


def connect(url: str) -> sa.Engine:
    """An engine whose transactions take the write lock at their start (SQLite) and survive power loss.

    Raises:
        SettingsError: the URL names another kind of database, or its driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        # Neither the URL nor the library's message about it: both hold the password.
        raise SettingsError(
            "HOLDFAST_DATABASE_URL is not a database URL.",
            fix="Write it as postgresql://user:password@host/name or sqlite:////folder/file.db.",
        ) from error
    if parsed.get_backend_name() == "postgresql":
        return _connect_postgresql(parsed)
    if parsed.get_backend_name() != "sqlite":
        raise SettingsError(
            f"HOLDFAST_DATABASE_URL names a {parsed.get_backend_name()!r} database.",
            fix="Holdfast keeps its tables in SQLite or PostgreSQL.",
        )
    engine = sa.create_engine(parsed, connect_args={"timeout": LOCK_SECONDS})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _connect_postgresql(url: sa.URL) -> sa.Engine:
    try:
        return sa.create_engine(
            # The plain scheme would pick another driver, which is not ours.
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            # What waited for a lock must see what the one before it wrote, whatever the server's default.
            isolation_level="READ COMMITTED",
        )
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"The database is PostgreSQL, and its driver is missing: {error}.",
            fix="Install it: pip install 'holdfast-cl[postgres]'.",
        ) from error


def _prepare_sqlite(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
    # SQLAlchemy's own BEGIN below replaces the driver's, which would start transactions too late.
    connection.isolation_level = None
    cursor = connection.cursor()
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _write_ahead(cursor: sa.engine.interfaces.DBAPICursor) -> None:
    """Turn the write-ahead log on, trying again while another process does so.

    Of processes that open a new file at once, SQLite lets one do it and refuses the others without waiting.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _begin(connection: sa.Connection) -> None:
    # The write lock at the start, so that no transaction fails to get it in the middle; `reading` asks for
    # none.
    mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    connection.exec_driver_sql(f"BEGIN {mode}")


_REFUSALS = ("42501", "25006")
"""PostgreSQL's codes of a missing right and of a database that may only be read."""
_OWN_MISTAKE = re.compile(r"no such (table|column)|near |.*syntax error")
"""Begins what SQLite says of a statement that is wrong, as an operational error."""


def _is_unavailable(error: sa.exc.DBAPIError | sa.exc.TimeoutError) -> bool:
    """Whether an error says that the database cannot be used, and not that a statement is wrong."""
    if isinstance(error, sa.exc.InterfaceError | sa.exc.TimeoutError):
        return True
    if getattr(error.orig, "sqlstate", None) in _REFUSALS:
        return True
    # By itself, this is SQLite's answer to a file that is not a database.
    if type(error) is sa.exc.DatabaseError:
        return True
    return isinstance(error, sa.exc.OperationalError) and not _OWN_MISTAKE.match(str(error.orig))


@contextmanager
def answering(engine: sa.Engine) -> Iterator[None]:
    """For commands that use the database once: say in one sentence why it cannot be used.

    Raises:
        DatabaseAwayError: in the block, the database could not be reached, or refused this user.
    """
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        if not _is_unavailable(error):
            raise
        cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise DatabaseAwayError(
            # A query may hold a password too.
            f"The database {engine.url.set(query={}).render_as_string(hide_password=True)} cannot be used: "
            f"{cause}.",
            fix="Start it, grant this user its rights, or correct HOLDFAST_DATABASE_URL, and try again.",
        ) from error


def require(url: str, *, migrated: bool) -> None:
    """Look once whether this release can use the database, so that a process can end with one sentence.

    Args:
        migrated: False: an older or an empty one will do, since the process migrates it.

    Raises:
        SettingsError: as `connect`.
        DatabaseAwayError: as `answering`.
        DatabaseRevisionError: it is of a newer release, or not migrated to this one.
    """
    engine = connect(url)
    try:
        with answering(engine), reading(engine) as connection:
            found = _revision(connection)
            if migrated and found != ScriptDirectory.from_config(_alembic()).get_current_head():
                raise DatabaseRevisionError(
                    "The database is empty, or of an older release.",
                    fix="Stop all roles, run `holdfast migrate`, and start them again.",
                )
    finally:
        engine.dispose()


def _revision(connection: sa.Connection) -> str | None:
    """The migration that the database is at; None: it is empty.

    Raises:
        DatabaseRevisionError: this release does not know that migration.
    """
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}
    if found is None or found in known:
        return found
    raise DatabaseRevisionError(
        f"A newer release migrated this database (to {found}), and this one cannot read it.",
        fix="Install that release, or restore the database from a copy (see the page on upgrades).",
    )


def _alembic() -> Config:
    config = Config()
    # The option is a format string, so a per cent sign in the path must be written twice.
    scripts = str(Path(__file__).parent / "migrations").replace("%", "%%")
    config.set_main_option("script_location", scripts)
    return config


def lock_pipeline(connection: sa.Connection, pipeline: str) -> None:
    """Lock a pipeline until the transaction ends: decisions about it are taken one after another.

    Taken first in every transaction that moves a champion, appends to a ledger or ends an update, so that
    none of them waits in a circle. On SQLite the transaction itself is the lock.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(
            sa.text("SELECT pg_advisory_xact_lock(:space, hashtext(:pipeline))"),
            {"space": _PIPELINE_LOCKS, "pipeline": pipeline},
        )


def now(connection: sa.Connection) -> float:
    """Seconds since the epoch, by the database's clock where workers may run on several machines."""
    if connection.dialect.name == "postgresql":
        seconds = connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
        return float(seconds)
    return time.time()


def migrate(engine: sa.Engine, *, revision: str = "head") -> None:
    """Bring the schema to this release, or an older one. Safe to run from several processes at once.

    Raises:
        DatabaseRevisionError: it is of a newer release.
    """
    config = _alembic()
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # One migrator at a time; the lock goes with the transaction.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(4242420001)"))
        _revision(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
