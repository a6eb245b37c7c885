"""What was consumed and what was cut, and the one transaction that makes a cut true.

Works on SQLite and PostgreSQL. On SQLite the engine must begin its transactions with BEGIN IMMEDIATE, so that
what a transaction read still holds when it writes. Times are epoch seconds. An absent offset and the empty
cursor both mean the beginning of a partition.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite

from streams.base import FencedError
from streams.tables import (
    DEAD_LETTERS,
    EXPERIENCES,
    METADATA,
    OFFSETS,
    PUSHED_BATCHES,
    PUSHED_PARTITION,
    TRIGGER_STATES,
    PushedCursor,
    reading,
)

__all__ = [
    "METADATA",
    "AlsoInTransaction",
    "CutExperience",
    "DeadLetter",
    "ExperienceRow",
    "Manifest",
    "Part",
    "Span",
]


@dataclass(frozen=True)
class Part:
    """One stored file of an experience."""

    digest: str
    rows: int


@dataclass(frozen=True)
class Span:
    """What was consumed of a partition: from just after `start` up to and with `end`."""

    start: str
    end: str


@dataclass(frozen=True)
class DeadLetter:
    """A payload that did not become a record."""

    partition: str
    position: str
    reason: str
    detail: str
    payload: bytes
    created_at: float = 0.0
    """Epoch seconds; set when it is stored."""


@dataclass(frozen=True)
class CutExperience:
    """An experience whose files are written and that waits for its manifest row."""

    train: Part
    gate: Part
    audit: Part
    schema_fingerprint: str
    cut_reason: str
    trigger_state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperienceRow:
    """One experience as the manifest knows it."""

    pipeline: str
    index: int
    train: Part
    gate: Part
    audit: Part
    schema_fingerprint: str
    positions: Mapping[str, Span]
    cut_reason: str
    created_at: float
    """Epoch seconds."""

    @property
    def rows(self) -> int:
        """Records in all three parts."""
        return self.train.rows + self.gate.rows + self.audit.rows


AlsoInTransaction = Callable[[sql.Connection, ExperienceRow], None]


class Manifest:
    """Reads and commits of the data side over one engine."""

    def __init__(self, engine: sql.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def cursors(self, pipeline: str) -> dict[str, str]:
        """Where each partition was committed; partitions still at their beginning are left out."""
        query = sql.select(OFFSETS.c.partition, OFFSETS.c.cursor).where(OFFSETS.c.pipeline == pipeline)
        with reading(self._engine) as connection:
            return {row.partition: row.cursor for row in connection.execute(query) if row.cursor}

    def trigger_state(self, pipeline: str) -> dict[str, Any]:
        """The trigger's state as of the last cut; empty before the first."""
        query = sql.select(TRIGGER_STATES.c.state).where(TRIGGER_STATES.c.pipeline == pipeline)
        with reading(self._engine) as connection:
            return dict(connection.execute(query).scalar() or {})

    def commit(
        self,
        pipeline: str,
        moves: Mapping[str, Span],
        *,
        dead_letters: Sequence[DeadLetter] = (),
        experience: CutExperience | None = None,
        also: AlsoInTransaction | None = None,
    ) -> ExperienceRow | None:
        """One transaction: all of it becomes true, or none.

        Every offset is moved from its start to its end, and must stand at its start; a move whose ends are
        equal only holds the offset to it. Dead letters already stored are left as they are. With an
        experience, its row gets the next index, the trigger's state is saved, and `also` runs last in the
        same transaction.

        Returns:
            The row of the experience; None without one.

        Raises:
            FencedError: another process has moved an offset; nothing was changed.
        """
        if not moves:
            raise ValueError("a commit must name at least one offset: it is what fences two writers")
        now = self._clock()
        with self._engine.begin() as connection:
            for partition in sorted(moves):  # one order for all writers, so that none waits in a circle
                _move_offset(connection, pipeline, partition, moves[partition])
            _add_dead_letters(connection, pipeline, dead_letters, now)
            if experience is None:
                return None
            row = _add_experience(connection, pipeline, moves, experience, now)
            _save_trigger_state(connection, pipeline, experience.trigger_state)
            if also is not None:
                also(connection, row)
            return row

    def experiences(self, pipeline: str) -> list[ExperienceRow]:
        """All experiences of a pipeline, oldest first."""
        query = sql.select(EXPERIENCES).where(EXPERIENCES.c.pipeline == pipeline)
        with reading(self._engine) as connection:
            return [_experience_row(row) for row in connection.execute(query.order_by(EXPERIENCES.c.index))]

    def experience(self, pipeline: str, index: int) -> ExperienceRow | None:
        """One experience; None when there is none of that index."""
        query = sql.select(EXPERIENCES).where(
            EXPERIENCES.c.pipeline == pipeline, EXPERIENCES.c.index == index
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _experience_row(row)

    def digests(self) -> set[str]:
        """Digests of all parts of all pipelines: what the garbage collector must keep."""
        columns = (EXPERIENCES.c.train_digest, EXPERIENCES.c.gate_digest, EXPERIENCES.c.audit_digest)
        query = sql.union(*(sql.select(column) for column in columns))
        with reading(self._engine) as connection:
            return set(connection.execute(query).scalars())

    def dead_letters(self, pipeline: str, limit: int = 100) -> list[DeadLetter]:
        """The latest dead letters, newest first."""
        letters = DEAD_LETTERS.c
        query = (
            sql.select(DEAD_LETTERS)
            .where(letters.pipeline == pipeline)
            .order_by(letters.created_at.desc(), letters.partition, letters.position.desc())
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return [
                DeadLetter(row.partition, row.position, row.reason, row.detail, row.payload, row.created_at)
                for row in connection.execute(query)
            ]

    def count_dead_letters(self, pipeline: str) -> dict[str, int]:
        """How many dead letters there are, by reason."""
        query = (
            sql.select(DEAD_LETTERS.c.reason, sql.func.count())
            .where(DEAD_LETTERS.c.pipeline == pipeline)
            .group_by(DEAD_LETTERS.c.reason)
        )
        with reading(self._engine) as connection:
            return {reason: count for reason, count in connection.execute(query)}

    def pending_records(self, pipeline: str) -> int:
        """Records of the pushed log that stand after the committed cursor: the backlog.

        Records that an ingest process has read but not yet cut count as pending.
        """
        with reading(self._engine) as connection:
            cursor = PushedCursor.parse(
                connection.execute(
                    sql.select(OFFSETS.c.cursor).where(
                        OFFSETS.c.pipeline == pipeline, OFFSETS.c.partition == PUSHED_PARTITION
                    )
                ).scalar()
                or ""
            )
            batches = PUSHED_BATCHES.c
            first = sql.case((batches.sequence == cursor.sequence, cursor.row), else_=0)
            query = sql.select(sql.func.coalesce(sql.func.sum(batches.rows - first), 0)).where(
                batches.pipeline == pipeline, batches.sequence >= cursor.sequence
            )
            return int(connection.execute(query).scalar_one())


def _move_offset(connection: sql.Connection, pipeline: str, partition: str, span: Span) -> None:
    where = (
        OFFSETS.c.pipeline == pipeline,
        OFFSETS.c.partition == partition,
        OFFSETS.c.cursor == span.start,
    )
    if connection.execute(sql.update(OFFSETS).where(*where).values(cursor=span.end)).rowcount == 1:
        return
    try:
        if not span.start:
            row = {"pipeline": pipeline, "partition": partition, "cursor": span.end}
            connection.execute(sql.insert(OFFSETS).values(row))
            return
    except sql.exc.IntegrityError as error:
        raise _fenced(pipeline, partition, span) from error
    raise _fenced(pipeline, partition, span)


def _fenced(pipeline: str, partition: str, span: Span) -> FencedError:
    return FencedError(
        f"Partition {partition!r} of pipeline {pipeline!r} does not stand at "
        f"{span.start or 'its beginning'!r} any more: another ingest process works on this "
        "pipeline. Keep one of them and restart it."
    )


def _add_dead_letters(
    connection: sql.Connection, pipeline: str, letters: Sequence[DeadLetter], now: float
) -> None:
    if not letters:
        return
    # A dead letter may be stored before its offset can move, and is then met again after a restart.
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    rows = [
        {
            "pipeline": pipeline,
            "partition": letter.partition,
            "position": letter.position,
            "reason": letter.reason,
            "detail": letter.detail.replace("\0", "\\0"),
            "payload": letter.payload,
            "created_at": now,
        }
        for letter in letters
    ]
    connection.execute(insert(DEAD_LETTERS).on_conflict_do_nothing(), rows)


def _add_experience(
    connection: sql.Connection,
    pipeline: str,
    moves: Mapping[str, Span],
    experience: CutExperience,
    now: float,
) -> ExperienceRow:
    last = sql.select(sql.func.max(EXPERIENCES.c.index)).where(EXPERIENCES.c.pipeline == pipeline)
    index = connection.execute(last).scalar()
    row = ExperienceRow(
        pipeline=pipeline,
        index=0 if index is None else index + 1,
        train=experience.train,
        gate=experience.gate,
        audit=experience.audit,
        schema_fingerprint=experience.schema_fingerprint,
        positions=dict(moves),
        cut_reason=experience.cut_reason,
        created_at=now,
    )
    try:
        connection.execute(sql.insert(EXPERIENCES).values(_experience_values(row)))
    except sql.exc.IntegrityError as error:
        raise FencedError(
            f"Experience {row.index} of pipeline {pipeline!r} was written by another ingest process: keep "
            "one of them and restart it."
        ) from error
    return row


def _experience_values(row: ExperienceRow) -> dict[str, Any]:
    return {
        "pipeline": row.pipeline,
        "index": row.index,
        "train_digest": row.train.digest,
        "train_rows": row.train.rows,
        "gate_digest": row.gate.digest,
        "gate_rows": row.gate.rows,
        "audit_digest": row.audit.digest,
        "audit_rows": row.audit.rows,
        "schema_fingerprint": row.schema_fingerprint,
        "positions": {name: [span.start, span.end] for name, span in row.positions.items()},
        "cut_reason": row.cut_reason,
        "created_at": row.created_at,
    }


def _experience_row(row: sql.Row[Any]) -> ExperienceRow:
    return ExperienceRow(
        pipeline=row.pipeline,
        # A row is a tuple too, whose `index` is the method.
        index=row._mapping["index"],
        train=Part(row.train_digest, row.train_rows),
        gate=Part(row.gate_digest, row.gate_rows),
        audit=Part(row.audit_digest, row.audit_rows),
        schema_fingerprint=row.schema_fingerprint,
        positions={name: Span(start, end) for name, (start, end) in row.positions.items()},
        cut_reason=row.cut_reason,
        created_at=row.created_at,
    )


def _save_trigger_state(connection: sql.Connection, pipeline: str, state: Mapping[str, Any]) -> None:
    table = TRIGGER_STATES
    saved = sql.update(table).where(table.c.pipeline == pipeline).values(state=dict(state))
    if connection.execute(saved).rowcount == 0:
        connection.execute(sql.insert(table).values(pipeline=pipeline, state=dict(state)))
