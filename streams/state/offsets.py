"""Rows of offsets: each moves only from the cursor that the process has read."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sql

from streams.base import FencedError
from streams.state.experiences import Span
from streams.state.tables import OFFSETS

NAMED_AT_ONCE = 500
"""Names in one statement, which both SQLite and PostgreSQL accept."""


def move(connection: sql.Connection, pipeline: str, moves: Mapping[str, Span]) -> None:
    """Move the offsets of partitions, many in one statement: a folder may hold a hundred thousand files.

    Raises:
        FencedError: an offset is not at the start of its span; the transaction must end without a commit.
    """
    names = sorted(moves)  # the same order in all writers, so that none deadlock
    stored = _stored(connection, pipeline, [name for name in names if not moves[name].start])
    new = [name for name in names if not moves[name].start and name not in stored]
    moved = [
        {"of": pipeline, "name": name, "start": moves[name].start, "end": moves[name].end}
        for name in names
        if moves[name].start or name in stored
    ]
    if moved:
        where = (
            OFFSETS.c.pipeline == sql.bindparam("of"),
            OFFSETS.c.partition == sql.bindparam("name"),
            OFFSETS.c.cursor == sql.bindparam("start"),
        )
        update = sql.update(OFFSETS).where(*where).values(cursor=sql.bindparam("end"))
        if connection.execute(update, moved).rowcount != len(moved):
            raise fenced(pipeline, _shown(moved))
    if new:
        rows = [{"pipeline": pipeline, "partition": name, "cursor": moves[name].end} for name in new]
        try:
            connection.execute(sql.insert(OFFSETS), rows)
        except sql.exc.IntegrityError as error:
            raise fenced(pipeline, _shown([{"name": name, "start": ""} for name in new])) from error


def _stored(connection: sql.Connection, pipeline: str, names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for at in range(0, len(names), NAMED_AT_ONCE):
        named = OFFSETS.c.partition.in_(names[at : at + NAMED_AT_ONCE])
        query = sql.select(OFFSETS.c.partition).where(OFFSETS.c.pipeline == pipeline, named)
        found.update(connection.execute(query).scalars())
    return found


def _shown(moved: Sequence[Mapping[str, str]]) -> str:
    shown = ", ".join(
        f"{one['start'] or 'its beginning'!r} of partition {one['name']!r}" for one in moved[:3]
    )
    return shown if len(moved) <= 3 else f"{shown} and {len(moved) - 3} more"


def fenced(pipeline: str, position: str) -> FencedError:
    """The error of a process that finds the pipeline no longer at this position."""
    return FencedError(
        f"Pipeline {pipeline!r} is no longer at {position}: another ingest process works on this "
        "pipeline. Keep one of them and restart it."
    )
