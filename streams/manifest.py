"""What was consumed and what was cut, and the one transaction that makes a cut true.

Works on SQLite and PostgreSQL. On SQLite the engine must begin its transactions with BEGIN IMMEDIATE, so that
what a transaction read still holds when it writes. Times are epoch seconds. An absent offset and the empty
cursor both mean the beginning of a partition.
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sql

from streams import letters, states
from streams.base import FencedError
from streams.joining import WaitingPart
from streams.letters import DeadLetter
from streams.tables import (
    CLASSES,
    EXPERIENCES,
    METADATA,
    OFFSETS,
    PUSHED_BATCHES,
    PUSHED_PARTITION,
    TRIGGER_STATES,
    WAITING_PARTS,
    PushedCursor,
    reading,
)

__all__ = [
    "METADATA",
    "AlsoInTransaction",
    "Committed",
    "CutExperience",
    "DeadLetter",
    "ExperienceRow",
    "Manifest",
    "Part",
    "Span",
    "WaitingCommit",
]

_NAMED_AT_ONCE = 500
"""Names in one statement: SQLite and PostgreSQL both take so many."""


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
class CutExperience:
    """An experience whose files are written and that waits for its manifest row."""

    train: Part
    gate: Part
    audit: Part
    schema_fingerprint: str
    cut_reason: str
    trigger_state: Mapping[str, Any] = field(default_factory=dict)
    decision: Mapping[str, Any] = field(default_factory=dict)
    """The numbers that the trigger decided by."""


@dataclass(frozen=True)
class WaitingCommit:
    """Halves that wait for their label, or for their features, and must outlive the process."""

    new: Part | None
    touched: Sequence[WaitingPart]
    """Of these more is gone than the manifest knows."""
    aged_out: int
    """Features, or labels, whose other half never came: added to the stream's count."""


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
    decision: Mapping[str, Any] = field(default_factory=dict)
    train_removed_at: float | None = None
    """Epoch seconds when the retention policy removed the train part; None: it is there."""

    @property
    def rows(self) -> int:
        """Records in all three parts."""
        return self.train.rows + self.gate.rows + self.audit.rows


@dataclass(frozen=True)
class Committed:
    """What one commit made true."""

    experience: ExperienceRow | None
    new_letters: int
    """Records of the dead letters that were not stored before."""
    waiting: WaitingPart | None
    """The row of the new waiting part."""


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

    def revision(self, pipeline: str) -> int:
        """The revision of the stream: what the next commit must name."""
        with reading(self._engine) as connection:
            return states.read(connection, pipeline).revision

    def check(self, pipeline: str, *, revision: int) -> None:
        """Hold the stream to a revision.

        Raises:
            FencedError: another process has committed since.
        """
        if self.revision(pipeline) != revision:
            raise _fenced(pipeline, f"the revision {revision}")

    def classes(self, pipeline: str) -> list[str]:
        """Names of the classes that came with the stream, by class id; empty where the set is closed."""
        query = sql.select(CLASSES.c.name).where(CLASSES.c.pipeline == pipeline).order_by(CLASSES.c.class_id)
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def waiting(self, pipeline: str) -> list[WaitingPart]:
        """The stored halves that wait for their other half, oldest part first."""
        query = sql.select(WAITING_PARTS).where(WAITING_PARTS.c.pipeline == pipeline)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(WAITING_PARTS.c.sequence)).all()
        return [
            WaitingPart(row.sequence, row.digest, _unpacked(row.gone, row.rows), row.stored_at)
            for row in rows
        ]

    def count_waiting(self, pipeline: str) -> int:
        """Stored records that wait for their other half, or that are complete and not yet cut."""
        return sum(int((~part.gone).sum()) for part in self.waiting(pipeline))

    def commit(
        self,
        pipeline: str,
        moves: Mapping[str, Span],
        *,
        revision: int,
        dead_letters: Sequence[DeadLetter] = (),
        experience: CutExperience | None = None,
        classes: Sequence[str] = (),
        waiting: WaitingCommit | None = None,
        duplicates: int = 0,
        also: AlsoInTransaction | None = None,
    ) -> Committed:
        """One transaction: all of it becomes true, or none.

        The stream's revision must be `revision`, and rises by one. Every offset is moved from its start to
        its end, and must stand at its start; a move whose ends are equal only holds the offset to it. Dead
        letters already stored are left as they are. `classes` are all class names of an open set, by id.
        With an experience, its row gets the next index, the trigger's state is saved, and `also` runs last
        in the same transaction.

        Raises:
            FencedError: another process has committed, or moved an offset; nothing was changed.
        """
        now = self._clock()
        with self._engine.begin() as connection:
            if not states.raise_revision(connection, pipeline, expected=revision):
                raise _fenced(pipeline, f"the revision {revision}")
            _move_offsets(connection, pipeline, moves)
            new_letters = letters.add(connection, pipeline, dead_letters, now)
            _add_classes(connection, pipeline, classes)
            part = None if waiting is None else _save_waiting(connection, pipeline, waiting, now)
            aged_out = 0 if waiting is None else waiting.aged_out
            states.add_counts(connection, pipeline, duplicates=duplicates, aged_out=aged_out)
            row = None
            if experience is not None:
                row = _add_experience(connection, pipeline, moves, experience, now)
                _save_trigger_state(connection, pipeline, experience.trigger_state)
                if also is not None:
                    also(connection, row)
            return Committed(row, new_letters, part)

    def forget(self, pipeline: str, partitions: Sequence[str], *, revision: int) -> None:
        """Drop the offsets of partitions that are gone from the source for good.

        The stream's revision must be `revision`, and rises by one: to another process one of them may be
        there again, and read.

        Raises:
            FencedError: another process has committed since; nothing was dropped.
        """
        with self._engine.begin() as connection:
            if not states.raise_revision(connection, pipeline, expected=revision):
                raise _fenced(pipeline, f"the revision {revision}")
            for at in range(0, len(partitions), _NAMED_AT_ONCE):
                some = partitions[at : at + _NAMED_AT_ONCE]
                named = OFFSETS.c.partition.in_(some)
                connection.execute(sql.delete(OFFSETS).where(OFFSETS.c.pipeline == pipeline, named))
                letters.close(connection, pipeline, some)

    def experiences(self, pipeline: str, *, first: int = 0, limit: int | None = None) -> list[ExperienceRow]:
        """Experiences of a pipeline, oldest first, from index `first`."""
        query = sql.select(EXPERIENCES).where(
            EXPERIENCES.c.pipeline == pipeline, EXPERIENCES.c.index >= first
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(EXPERIENCES.c.index).limit(limit))
            return [_experience_row(row) for row in rows]

    def experiences_in(self, connection: sql.Connection, pipeline: str) -> list[ExperienceRow]:
        """All experiences of a pipeline, oldest first, within the caller's transaction."""
        query = sql.select(EXPERIENCES).where(EXPERIENCES.c.pipeline == pipeline)
        return [_experience_row(row) for row in connection.execute(query.order_by(EXPERIENCES.c.index))]

    def remove_train(
        self, connection: sql.Connection, pipeline: str, indices: Sequence[int], *, moment: float
    ) -> None:
        """Note that nothing needs these train parts any more: the garbage collector may have them."""
        if indices:
            connection.execute(
                sql.update(EXPERIENCES)
                .where(EXPERIENCES.c.pipeline == pipeline, EXPERIENCES.c.index.in_(indices))
                .values(train_removed_at=moment)
            )

    def latest(self, pipeline: str, *, limit: int = 1) -> list[ExperienceRow]:
        """The latest experiences, newest first."""
        query = sql.select(EXPERIENCES).where(EXPERIENCES.c.pipeline == pipeline)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(EXPERIENCES.c.index.desc()).limit(limit))
            return [_experience_row(row) for row in rows]

    def totals(self, pipeline: str) -> tuple[int, int]:
        """How many experiences there are, and how many records in them."""
        columns = EXPERIENCES.c
        rows = sql.func.sum(columns.train_rows + columns.gate_rows + columns.audit_rows)
        query = sql.select(sql.func.count(), sql.func.coalesce(rows, 0)).where(columns.pipeline == pipeline)
        with reading(self._engine) as connection:
            experiences, records = connection.execute(query).one()
        return int(experiences), int(records)

    def experience(self, pipeline: str, index: int) -> ExperienceRow | None:
        """One experience; None when there is none of that index."""
        query = sql.select(EXPERIENCES).where(
            EXPERIENCES.c.pipeline == pipeline, EXPERIENCES.c.index == index
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _experience_row(row)

    def digests(self) -> Set[str]:
        """Digests of all parts of all pipelines: what the garbage collector must keep."""
        queries = [
            sql.select(EXPERIENCES.c.train_digest).where(EXPERIENCES.c.train_removed_at.is_(None)),
            sql.select(EXPERIENCES.c.gate_digest),
            sql.select(EXPERIENCES.c.audit_digest),
            sql.select(WAITING_PARTS.c.digest),
        ]
        query = sql.union(*queries)
        with reading(self._engine) as connection:
            return set(connection.execute(query).scalars())

    def dead_letters(self, pipeline: str, limit: int = 100) -> list[DeadLetter]:
        """The latest dead letters, newest first."""
        with reading(self._engine) as connection:
            return letters.latest(connection, pipeline, limit=limit)

    def count_dead_letters(self, pipeline: str, *, replayed: bool = False) -> dict[str, int]:
        """How many dead letters there are, by reason: those not replayed, or those that were."""
        with reading(self._engine) as connection:
            return letters.counts(connection, pipeline, replayed=replayed)

    def pending_records(self, pipeline: str, *, partition: str = PUSHED_PARTITION) -> int:
        """Records of the pushed log that stand after the committed cursor of its partition: the backlog.

        Records that an ingest process has read but not yet cut count as pending.
        """
        with reading(self._engine) as connection:
            cursor = PushedCursor.parse(
                connection.execute(
                    sql.select(OFFSETS.c.cursor).where(
                        OFFSETS.c.pipeline == pipeline, OFFSETS.c.partition == partition
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


def removed_trains(connection: sql.Connection, pipeline: str) -> set[int]:
    """Experiences whose train part the retention policy removed."""
    query = sql.select(EXPERIENCES.c.index).where(
        EXPERIENCES.c.pipeline == pipeline, EXPERIENCES.c.train_removed_at.is_not(None)
    )
    return set(connection.execute(query).scalars())


def _move_offsets(connection: sql.Connection, pipeline: str, moves: Mapping[str, Span]) -> None:
    """Many at a time: a folder may hold a hundred thousand files, and the writer's lock is held meanwhile."""
    names = sorted(moves)  # one order for all writers, so that none waits in a circle
    stored = _stored_offsets(connection, pipeline, [name for name in names if not moves[name].start])
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
            raise _fenced(pipeline, _places(moved))
    if new:
        rows = [{"pipeline": pipeline, "partition": name, "cursor": moves[name].end} for name in new]
        try:
            connection.execute(sql.insert(OFFSETS), rows)
        except sql.exc.IntegrityError as error:
            raise _fenced(pipeline, _places([{"name": name, "start": ""} for name in new])) from error


def _stored_offsets(connection: sql.Connection, pipeline: str, names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for at in range(0, len(names), _NAMED_AT_ONCE):
        named = OFFSETS.c.partition.in_(names[at : at + _NAMED_AT_ONCE])
        query = sql.select(OFFSETS.c.partition).where(OFFSETS.c.pipeline == pipeline, named)
        found.update(connection.execute(query).scalars())
    return found


def _places(moved: Sequence[Mapping[str, str]]) -> str:
    shown = ", ".join(
        f"{one['start'] or 'its beginning'!r} of partition {one['name']!r}" for one in moved[:3]
    )
    return shown if len(moved) <= 3 else f"{shown} and {len(moved) - 3} more"


def _fenced(pipeline: str, place: str) -> FencedError:
    return FencedError(
        f"Pipeline {pipeline!r} does not stand at {place} any more: another ingest process works on this "
        "pipeline. Keep one of them and restart it."
    )


def _add_classes(connection: sql.Connection, pipeline: str, names: Sequence[str]) -> None:
    if not names:
        return
    query = sql.select(sql.func.count()).select_from(CLASSES).where(CLASSES.c.pipeline == pipeline)
    known = int(connection.execute(query).scalar_one())
    new = [
        {"pipeline": pipeline, "class_id": place, "name": name}
        for place, name in enumerate(names)
        if place >= known
    ]
    if new:
        connection.execute(sql.insert(CLASSES), new)


def _save_waiting(
    connection: sql.Connection, pipeline: str, change: WaitingCommit, now: float
) -> WaitingPart | None:
    table = WAITING_PARTS
    for part in change.touched:
        where = (table.c.pipeline == pipeline, table.c.sequence == part.sequence)
        if part.gone.all():
            connection.execute(sql.delete(table).where(*where))
        else:
            connection.execute(sql.update(table).where(*where).values(gone=_packed(part.gone)))
    if change.new is None:
        return None
    last = sql.select(sql.func.max(table.c.sequence)).where(table.c.pipeline == pipeline)
    sequence = 1 + (connection.execute(last).scalar() or 0)
    gone = np.zeros(change.new.rows, dtype=np.bool_)
    connection.execute(
        sql.insert(table).values(
            pipeline=pipeline,
            sequence=sequence,
            digest=change.new.digest,
            rows=change.new.rows,
            gone=_packed(gone),
            stored_at=now,
        )
    )
    return WaitingPart(sequence, change.new.digest, gone, now)


def _packed(gone: "np.typing.NDArray[np.bool_]") -> bytes:
    return np.packbits(gone).tobytes()


def _unpacked(stored: bytes, rows: int) -> "np.typing.NDArray[np.bool_]":
    return np.unpackbits(np.frombuffer(stored, np.uint8), count=rows).astype(np.bool_)


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
        decision=dict(experience.decision),
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
        "decision": dict(row.decision),
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
        decision=dict(row.decision),
        train_removed_at=row.train_removed_at,
    )


def _save_trigger_state(connection: sql.Connection, pipeline: str, state: Mapping[str, Any]) -> None:
    table = TRIGGER_STATES
    saved = sql.update(table).where(table.c.pipeline == pipeline).values(state=dict(state))
    if connection.execute(saved).rowcount == 0:
        connection.execute(sql.insert(table).values(pipeline=pipeline, state=dict(state)))
