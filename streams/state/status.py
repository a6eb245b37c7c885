"""Rows of stream states: running, failing, paused by a person, or stopped until a person resumes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sql

from streams.state.tables import STREAM_STATES

Status = Literal["running", "failing", "paused", "stopped"]
HELD: tuple[Status, ...] = ("paused", "stopped")
"""Statuses in which nothing is read until a person resumes the stream."""

SERVICE = "holdfast"
"""The actor of changes that no person made."""


@dataclass(frozen=True)
class StreamState:
    """The state of one pipeline's stream."""

    status: Status = "running"
    reason: str = ""
    """Why it is not running, and what to do; empty while it runs."""
    actor: str = SERVICE
    since: float = 0.0
    """Epoch seconds."""
    revision: int = 0
    """Rises with every commit. A process that commits on another one than it has read is fenced off."""
    pending: Mapping[str, Any] = field(default_factory=dict)
    """Records that ingest has read and not yet cut, as last noted."""
    duplicates: int = 0
    """Records dropped because their id had been seen within the window."""
    held_out: int = 0
    """Records dropped because a golden set of the pipeline holds their id."""
    aged_out: int = 0
    """Unmatched records that waited too long for their label or their features."""


def read(connection: sql.Connection, pipeline: str) -> StreamState:
    """The state of a stream; the default for one without a row."""
    query = sql.select(STREAM_STATES).where(STREAM_STATES.c.pipeline == pipeline)
    row = connection.execute(query).one_or_none()
    if row is None:
        return StreamState()
    return StreamState(
        status=row.status,
        reason=row.reason,
        actor=row.actor,
        since=row.since,
        revision=row.revision,
        pending=dict(row.pending),
        duplicates=row.duplicates,
        held_out=row.held_out,
        aged_out=row.aged_out,
    )


def set_status(
    connection: sql.Connection, pipeline: str, status: Status, *, reason: str, actor: str, now: float
) -> None:
    """Set the status of a stream. The same status and reason again change nothing."""
    present = read(connection, pipeline)
    if (present.status, present.reason) == (status, reason):
        return
    values: dict[str, Any] = {"status": status, "reason": reason, "actor": actor, "since": now}
    if status != "running":
        # Records that were read and not cut are released, and read again later.
        values["pending"] = {**present.pending, "records": 0}
    _write(connection, pipeline, values)


def set_by_service(
    connection: sql.Connection, pipeline: str, status: Status, *, reason: str, now: float
) -> None:
    """The same by the service itself, which never overwrites what a person paused.

    The condition is in the statement: between a read and a write, a person may pause.
    """
    table = STREAM_STATES
    values = {"status": status, "reason": reason, "actor": SERVICE, "since": now}
    if status != "running":
        values["pending"] = {**read(connection, pipeline).pending, "records": 0}
    other = sql.or_(table.c.status != status, table.c.reason != reason)
    mine = (table.c.pipeline == pipeline, table.c.status != "paused", other)
    if connection.execute(sql.update(table).where(*mine).values(values)).rowcount:
        return
    if connection.execute(_present(pipeline)).first() is None:
        _write(connection, pipeline, values)


def held(connection: sql.Connection) -> set[str]:
    """Pipelines whose streams are paused or stopped."""
    query = sql.select(STREAM_STATES.c.pipeline).where(STREAM_STATES.c.status.in_(HELD))
    return set(connection.execute(query).scalars())


def note_pending(connection: sql.Connection, pipeline: str, pending: Mapping[str, Any]) -> None:
    """Note what is read and not yet cut, for the stream's status."""
    _write(connection, pipeline, {"pending": dict(pending)})


def add_counts(
    connection: sql.Connection, pipeline: str, *, duplicates: int, held_out: int, aged_out: int
) -> None:
    """Add records that were dropped, or aged out, to the counts. The stream must have its row."""
    added = {"duplicates": duplicates, "held_out": held_out, "aged_out": aged_out}
    if any(added.values()):
        table = STREAM_STATES
        changed = sql.update(table).where(table.c.pipeline == pipeline)
        connection.execute(changed.values({name: table.c[name] + count for name, count in added.items()}))


def raise_revision(connection: sql.Connection, pipeline: str, *, expected: int) -> bool:
    """Raise the revision by one; False when it is not the one that the caller read."""
    table = STREAM_STATES
    moved = sql.update(table).where(table.c.pipeline == pipeline, table.c.revision == expected)
    if connection.execute(moved.values(revision=expected + 1)).rowcount == 1:
        return True
    if expected or connection.execute(_present(pipeline)).first() is not None:
        return False
    try:
        with connection.begin_nested():
            connection.execute(sql.insert(table).values(_new(pipeline) | {"revision": 1}))
    except sql.exc.IntegrityError:
        return False
    return True


def fence(connection: sql.Connection, pipeline: str) -> None:
    """Raise the revision, so that an ingest which has read the one before opens again before it commits."""
    found = read(connection, pipeline).revision
    while not raise_revision(connection, pipeline, expected=found):
        found = read(connection, pipeline).revision


def _write(connection: sql.Connection, pipeline: str, values: Mapping[str, Any]) -> None:
    table = STREAM_STATES
    changed = sql.update(table).where(table.c.pipeline == pipeline).values(**values)
    if connection.execute(changed).rowcount == 1:
        return
    try:
        with connection.begin_nested():
            connection.execute(sql.insert(table).values(_new(pipeline) | dict(values)))
    except sql.exc.IntegrityError:
        # Another process was first with the row; this change still has to be made.
        connection.execute(changed)


def _present(pipeline: str) -> sql.Select[tuple[str]]:
    return sql.select(STREAM_STATES.c.pipeline).where(STREAM_STATES.c.pipeline == pipeline)


def _new(pipeline: str) -> dict[str, Any]:
    return {
        "pipeline": pipeline,
        "revision": 0,
        "status": "running",
        "reason": "",
        "actor": SERVICE,
        "since": 0.0,
        "pending": {},
        "duplicates": 0,
        "held_out": 0,
        "aged_out": 0,
    }
