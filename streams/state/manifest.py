"""Manifest: reads what ingest has committed, and makes each commit in one transaction.

Works on SQLite and PostgreSQL. On SQLite the engine must begin its transactions with BEGIN IMMEDIATE, so that
what a transaction has read is unchanged when it writes. Times are epoch seconds. A missing offset and the
empty cursor both mean the beginning of a partition.
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sql

from streams.joining import WaitingPart
from streams.state import dead_letters as dead_letter_rows
from streams.state import experiences as experience_rows
from streams.state import offsets as offset_rows
from streams.state import pushed as pushed_rows
from streams.state import status as stream_status
from streams.state import waiting as waiting_rows
from streams.state.dead_letters import DeadLetter
from streams.state.experiences import CutExperience, ExperienceRow, Part, Span
from streams.state.offsets import NAMED_AT_ONCE, fenced
from streams.state.pushed import PUSHED_PARTITION
from streams.state.tables import (
    CLASSES,
    EXPERIENCES,
    METADATA,
    OFFSETS,
    TRIGGER_STATES,
    WAITING_PARTS,
    reading,
)
from streams.state.waiting import WaitingCommit

__all__ = [
    "METADATA",
    "AlsoInTransaction",
    "Commit",
    "Committed",
    "CutExperience",
    "DeadLetter",
    "ExperienceRow",
    "Manifest",
    "Part",
    "Span",
    "WaitingCommit",
]


@dataclass(frozen=True)
class Commit:
    """Changes of one transaction of ingest. Everything that is left out stays as it is."""

    revision: int
    """The stream's revision that this commit follows; the commit raises it by one."""
    moves: Mapping[str, Span] = field(default_factory=dict)
    """Offsets by partition. Each must be at the start of its span, and moves to the end. A span whose ends
    are equal moves nothing: it only requires that the offset is there."""
    dead_letters: Sequence[DeadLetter] = ()
    """Dead letters to store; those already stored stay as they are."""
    experience: CutExperience | None = None
    """Gets the next index, and its trigger state is saved."""
    classes: Sequence[str] = ()
    """All class names of an open set, by class id; empty where none is new."""
    waiting: WaitingCommit | None = None
    duplicates: int = 0
    """Records dropped because their id had been seen: added to the stream's count."""
    held_out: int = 0
    """Records dropped because a golden set holds their id: the same."""


@dataclass(frozen=True)
class Committed:
    """Result of one commit."""

    experience: ExperienceRow | None
    new_dead_letters: int
    """Records of the dead letters that were not stored before."""
    waiting: WaitingPart | None
    """The row of the new waiting part."""


AlsoInTransaction = Callable[[sql.Connection, ExperienceRow], None]


class Manifest:
    """Reads and commits of the data side, over one engine."""

    def __init__(self, engine: sql.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def cursors(self, pipeline: str) -> dict[str, str]:
        """The committed cursor of each partition; partitions still at their beginning are left out."""
        query = sql.select(OFFSETS.c.partition, OFFSETS.c.cursor).where(OFFSETS.c.pipeline == pipeline)
        with reading(self._engine) as connection:
            return {row.partition: row.cursor for row in connection.execute(query) if row.cursor}

    def trigger_state(self, pipeline: str) -> dict[str, Any]:
        """The trigger's state as of the last cut; empty before the first."""
        query = sql.select(TRIGGER_STATES.c.state).where(TRIGGER_STATES.c.pipeline == pipeline)
        with reading(self._engine) as connection:
            return dict(connection.execute(query).scalar() or {})

    def revision(self, pipeline: str) -> int:
        """The revision of the stream, which the next commit must follow."""
        with reading(self._engine) as connection:
            return stream_status.read(connection, pipeline).revision

    def check(self, pipeline: str, *, revision: int) -> None:
        """Check that the stream is still at a revision.

        Raises:
            FencedError: another process has committed since.
        """
        if self.revision(pipeline) != revision:
            raise fenced(pipeline, f"the revision {revision}")

    def classes(self, pipeline: str) -> list[str]:
        """Names of the classes that came with the stream, by class id; empty where the set is closed."""
        query = sql.select(CLASSES.c.name).where(CLASSES.c.pipeline == pipeline).order_by(CLASSES.c.class_id)
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def waiting(self, pipeline: str) -> list[WaitingPart]:
        """The stored parts of unmatched records, oldest first."""
        with reading(self._engine) as connection:
            return waiting_rows.read(connection, pipeline)

    def count_waiting(self, pipeline: str) -> int:
        """How many stored records are unmatched, or complete and not yet cut."""
        return sum(int((~part.gone).sum()) for part in self.waiting(pipeline))

    def commit(self, pipeline: str, commit: Commit, *, also: AlsoInTransaction | None = None) -> Committed:
        """Make one commit in one transaction: either all of it is stored, or nothing.

        With an experience, `also` runs last in the same transaction.

        Raises:
            FencedError: another process has committed, or moved an offset; nothing was changed.
        """
        now = self._clock()
        waiting = commit.waiting
        with self._engine.begin() as connection:
            if not stream_status.raise_revision(connection, pipeline, expected=commit.revision):
                raise fenced(pipeline, f"the revision {commit.revision}")
            offset_rows.move(connection, pipeline, commit.moves)
            new_dead_letters = dead_letter_rows.add(connection, pipeline, commit.dead_letters, now)
            _add_classes(connection, pipeline, commit.classes)
            part = None if waiting is None else waiting_rows.save(connection, pipeline, waiting, now)
            aged_out = 0 if waiting is None else waiting.aged_out
            stream_status.add_counts(
                connection,
                pipeline,
                duplicates=commit.duplicates,
                held_out=commit.held_out,
                aged_out=aged_out,
            )
            row = None
            if commit.experience is not None:
                row = experience_rows.add(connection, pipeline, commit.moves, commit.experience, now)
                _save_trigger_state(connection, pipeline, commit.experience.trigger_state)
                if also is not None:
                    also(connection, row)
            return Committed(row, new_dead_letters, part)

    def forget(self, pipeline: str, partitions: Sequence[str], *, revision: int) -> None:
        """Delete the offsets of partitions that are gone from the source for good.

        The stream's revision must be `revision`, and rises by one: another process may have found one of the
        partitions again, and read it.

        Raises:
            FencedError: another process has committed since; nothing was deleted.
        """
        with self._engine.begin() as connection:
            if not stream_status.raise_revision(connection, pipeline, expected=revision):
                raise fenced(pipeline, f"the revision {revision}")
            for at in range(0, len(partitions), NAMED_AT_ONCE):
                some = partitions[at : at + NAMED_AT_ONCE]
                named = OFFSETS.c.partition.in_(some)
                connection.execute(sql.delete(OFFSETS).where(OFFSETS.c.pipeline == pipeline, named))
                dead_letter_rows.close(connection, pipeline, some)

    def experiences(self, pipeline: str, *, first: int = 0, limit: int | None = None) -> list[ExperienceRow]:
        """Experiences of a pipeline, oldest first, from index `first`."""
        query = sql.select(EXPERIENCES).where(
            EXPERIENCES.c.pipeline == pipeline, EXPERIENCES.c.index >= first
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(EXPERIENCES.c.index).limit(limit))
            return [experience_rows.read(row) for row in rows]

    def experiences_in(self, connection: sql.Connection, pipeline: str) -> list[ExperienceRow]:
        """All experiences of a pipeline, oldest first, within the caller's transaction."""
        query = sql.select(EXPERIENCES).where(EXPERIENCES.c.pipeline == pipeline)
        return [experience_rows.read(row) for row in connection.execute(query.order_by(EXPERIENCES.c.index))]

    def remove_train(
        self, connection: sql.Connection, pipeline: str, indices: Sequence[int], *, moment: float
    ) -> None:
        """Mark these train parts as removed: the garbage collector may then delete their files."""
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
            return [experience_rows.read(row) for row in rows]

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
        return None if row is None else experience_rows.read(row)

    def digests(self) -> Set[str]:
        """Digests of all parts of all pipelines, which the garbage collector must keep."""
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
            return dead_letter_rows.latest(connection, pipeline, limit=limit)

    def count_dead_letters(self, pipeline: str, *, replayed: bool = False) -> dict[str, int]:
        """How many dead letters there are, by reason: those not replayed, or those that were."""
        with reading(self._engine) as connection:
            return dead_letter_rows.counts(connection, pipeline, replayed=replayed)

    def pending_records(self, pipeline: str, *, partition: str = PUSHED_PARTITION) -> int:
        """The backlog: records of the pushed log after the committed cursor of its partition.

        Records that an ingest process has read but not yet cut are counted.
        """
        with reading(self._engine) as connection:
            return pushed_rows.pending_records(connection, pipeline, partition=partition)


def removed_trains(connection: sql.Connection, pipeline: str) -> set[int]:
    """Experiences whose train part the retention policy removed."""
    query = sql.select(EXPERIENCES.c.index).where(
        EXPERIENCES.c.pipeline == pipeline, EXPERIENCES.c.train_removed_at.is_not(None)
    )
    return set(connection.execute(query).scalars())


def _add_classes(connection: sql.Connection, pipeline: str, names: Sequence[str]) -> None:
    if not names:
        return
    query = sql.select(sql.func.count()).select_from(CLASSES).where(CLASSES.c.pipeline == pipeline)
    known = int(connection.execute(query).scalar_one())
    new = [
        {"pipeline": pipeline, "class_id": class_id, "name": name}
        for class_id, name in enumerate(names)
        if class_id >= known
    ]
    if new:
        connection.execute(sql.insert(CLASSES), new)


def _save_trigger_state(connection: sql.Connection, pipeline: str, state: Mapping[str, Any]) -> None:
    table = TRIGGER_STATES
    saved = sql.update(table).where(table.c.pipeline == pipeline).values(state=dict(state))
    if connection.execute(saved).rowcount == 0:
        connection.execute(sql.insert(table).values(pipeline=pipeline, state=dict(state)))
