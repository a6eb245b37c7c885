"""Rows of the pushed log: records that callers send, stored until an ingest process has cut them.

One row is one request: an Arrow batch, decoded once, when the request came. A batch is kept until the offsets
have passed it; the row of a request with a key is kept a day longer than its payload, so that a repeated
request is still recognised.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import sqlalchemy as sql

from streams.base import DataLostError, RecordSchema, RequestKeyReusedError, SourceError
from streams.records import Records
from streams.state.tables import OFFSETS, PUSHED_BATCHES, PUSHED_LOGS, reading
from streams.wire.decode import encode_batch

REQUEST_KEY_SECONDS = 24 * 60 * 60.0
"""How long a request key is remembered, at least."""

_MOST_BATCHES = 1000
"""Batches that are read at once, at most."""

PUSHED_PARTITION = "pushed"
"""The one partition of the pushed log."""


class PushedCursor(NamedTuple):
    """A position in the pushed log: just after `row` records of batch `sequence`. (0, 0) is the beginning."""

    sequence: int
    row: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that `str` wrote, or the beginning for an empty text.

        Raises:
            SourceError: the text is not a cursor of the pushed log.
        """
        if not text:
            return cls(0, 0)
        try:
            sequence, row = (int(number) for number in text.split(":"))
        except ValueError as error:
            raise SourceError(
                f"{text[:80]!r} is not a cursor of the pushed log, such as '12:340'."
            ) from error
        return cls(sequence, row)

    def __str__(self) -> str:
        return f"{self.sequence}:{self.row}" if self.sequence else ""


@dataclass(frozen=True)
class Receipt:
    """Confirms that the records of one request are stored."""

    sequence: int
    """1, 2, 3 ... within the pipeline."""
    records: int
    duplicate: bool
    """True when a request with the same key was stored before, and this one was not."""


@dataclass(frozen=True)
class StoredBatch:
    """The records of one request, as stored."""

    sequence: int
    rows: int
    payload: bytes
    created_at: float
    """Epoch seconds."""


class PushedLog:
    """The pushed logs of all pipelines. Safe in several threads and processes at a time."""

    def __init__(self, engine: sql.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def append(
        self,
        pipeline: str,
        schema: RecordSchema,
        records: Records,
        *,
        names: Sequence[str] = (),
        request_key: str | None = None,
    ) -> Receipt:
        """Store the records of one request; they are durable when this returns.

        With a request key seen before, the first receipt is returned and nothing is stored. `names` are the
        class names by id, where the set of classes is open.

        Raises:
            RequestKeyReusedError: the key was seen before, with other records.
        """
        self.ensure(pipeline)
        with self._engine.begin() as connection:
            return self.append_in(connection, pipeline, schema, records, names=names, request_key=request_key)

    def append_in(
        self,
        connection: sql.Connection,
        pipeline: str,
        schema: RecordSchema,
        records: Records,
        *,
        names: Sequence[str] = (),
        request_key: str | None = None,
    ) -> Receipt:
        """`append` within the caller's transaction, after `ensure`."""
        if not len(records):
            raise ValueError("a pushed batch needs at least one record")
        payload = encode_batch(records, schema, names)
        last, rows = _lock_log(connection, pipeline)
        if request_key is not None:
            first = _find_request(connection, pipeline, request_key, payload)
            if first is not None:
                return first
        sequence = last + 1
        connection.execute(
            sql.insert(PUSHED_BATCHES).values(
                pipeline=pipeline,
                sequence=sequence,
                rows=len(records),
                rows_before=rows,
                payload=payload,
                request_key=request_key,
                request_digest=None if request_key is None else _digest(payload),
                created_at=self._clock(),
            )
        )
        stored = {"last_sequence": sequence, "rows": rows + len(records)}
        connection.execute(sql.update(PUSHED_LOGS).where(PUSHED_LOGS.c.pipeline == pipeline).values(stored))
        return Receipt(sequence, len(records), duplicate=False)

    def recall(
        self,
        pipeline: str,
        schema: RecordSchema,
        records: Records,
        *,
        request_key: str,
        names: Sequence[str] = (),
    ) -> Receipt | None:
        """The first receipt of a request that was stored before; None when the key is new.

        Raises:
            RequestKeyReusedError: the key was seen before, with other records.
        """
        payload = encode_batch(records, schema, names)
        with reading(self._engine) as connection:
            return _find_request(connection, pipeline, request_key, payload)

    def ensure(self, pipeline: str) -> None:
        """Create the log of a pipeline, if it has none yet."""
        found = sql.select(PUSHED_LOGS.c.pipeline).where(PUSHED_LOGS.c.pipeline == pipeline)
        with reading(self._engine) as connection:
            if connection.execute(found).one_or_none() is not None:
                return
        try:
            with self._engine.begin() as connection:
                empty = {"last_sequence": 0, "rows": 0, "trimmed_to": 0}
                connection.execute(sql.insert(PUSHED_LOGS).values(pipeline=pipeline, **empty))
        except sql.exc.IntegrityError:
            return  # another process was first

    def sequences(self, pipeline: str, *, first: int) -> tuple[int, set[int]]:
        """The newest sequence of a pipeline, and which from `first` on still have their payload."""
        batches = PUSHED_BATCHES.c
        query = sql.select(batches.sequence).where(
            batches.pipeline == pipeline, batches.sequence >= first, batches.payload.is_not(None)
        )
        with reading(self._engine) as connection:
            return _last_sequence(connection, pipeline), set(connection.execute(query).scalars())

    def batches(self, pipeline: str, first: int, *, most_rows: int, most_bytes: int) -> Sequence[StoredBatch]:
        """The batches from sequence `first` on: one at least, if it is stored, then up to these bounds.

        Raises:
            DataLostError: one of them was stored and is gone.
        """
        batches = PUSHED_BATCHES.c
        sizes = (
            sql.select(batches.sequence, batches.rows, sql.func.length(batches.payload).label("bytes"))
            .where(batches.pipeline == pipeline, batches.sequence >= first)
            .order_by(batches.sequence)
            .limit(_MOST_BATCHES)
        )
        with reading(self._engine) as connection:
            last = _last_sequence(connection, pipeline)
            if first > last:
                return []
            found = connection.execute(sizes).all()
            many = _leading(found, first, most_rows=most_rows, most_bytes=most_bytes)
            if not many:
                raise batch_lost(pipeline, first)
            rows = connection.execute(
                sql.select(batches.sequence, batches.rows, batches.payload, batches.created_at)
                .where(batches.pipeline == pipeline, batches.sequence.between(first, first + many - 1))
                .order_by(batches.sequence)
            )
            return [StoredBatch(*row) for row in rows]

    def trim(self, pipeline: str, *, before: int) -> None:
        """Delete the batches before this sequence; the rows of request keys stay, without their payload."""
        batches, log = PUSHED_BATCHES.c, PUSHED_LOGS.c.pipeline == pipeline
        with self._engine.begin() as connection:
            trimmed = connection.execute(sql.select(PUSHED_LOGS.c.trimmed_to).where(log)).scalar()
            if trimmed is None or trimmed >= before:
                return
            # Only what was consumed since the last trim: request keys of a whole day lie before it.
            consumed = (batches.pipeline == pipeline, batches.sequence.between(trimmed, before - 1))
            connection.execute(sql.delete(PUSHED_BATCHES).where(*consumed, batches.request_key.is_(None)))
            connection.execute(sql.update(PUSHED_BATCHES).where(*consumed).values(payload=None))
            connection.execute(sql.update(PUSHED_LOGS).where(log).values(trimmed_to=before))

    def forget_requests(self, pipeline: str, *, before: int) -> None:
        """Delete the rows of request keys that need not be remembered any more, before this sequence."""
        batches = PUSHED_BATCHES.c
        old = batches.created_at < self._clock() - REQUEST_KEY_SECONDS
        with self._engine.begin() as connection:
            connection.execute(
                sql.delete(PUSHED_BATCHES).where(batches.pipeline == pipeline, old, batches.sequence < before)
            )


def _leading(found: Sequence[Any], first: int, *, most_rows: int, most_bytes: int) -> int:
    """How many batches without a gap stay within the bounds; one at least, if it has its payload."""
    many = rows = size = 0
    for each in found:
        if each.sequence != first + many or each.bytes is None:
            break
        if many and (rows + each.rows > most_rows or size + each.bytes > most_bytes):
            break
        many, rows, size = many + 1, rows + each.rows, size + each.bytes
    return many


def batches_stored(connection: sql.Connection) -> int:
    """Batches that were ever stored, of all pipelines: a number that rises whenever anybody pushes."""
    return int(connection.execute(sql.select(sql.func.sum(PUSHED_LOGS.c.last_sequence))).scalar() or 0)


def last_sequences(connection: sql.Connection) -> dict[str, int]:
    """The newest sequence of every pipeline's log."""
    query = sql.select(PUSHED_LOGS.c.pipeline, PUSHED_LOGS.c.last_sequence)
    return {row.pipeline: row.last_sequence for row in connection.execute(query)}


def uncommitted(connection: sql.Connection) -> set[str]:
    """Pipelines whose log holds records that are not committed, where the log is their only source."""
    logs, batches, offsets = PUSHED_LOGS.c, PUSHED_BATCHES.c, OFFSETS.c
    newest = sql.and_(batches.pipeline == logs.pipeline, batches.sequence == logs.last_sequence)
    at = sql.and_(offsets.pipeline == logs.pipeline, offsets.partition == PUSHED_PARTITION)
    rows = connection.execute(
        sql.select(logs.pipeline, logs.last_sequence, batches.rows, offsets.cursor).select_from(
            PUSHED_LOGS.outerjoin(PUSHED_BATCHES, newest).outerjoin(OFFSETS, at)
        )
    )
    return {
        row.pipeline
        for row in rows
        if row.last_sequence and row.cursor != str(PushedCursor(row.last_sequence, row.rows or -1))
    }


def pending_records(connection: sql.Connection, pipeline: str, *, partition: str) -> int:
    """Records after the committed cursor of the partition that the pushed log is read as."""
    offset = sql.select(OFFSETS.c.cursor).where(
        OFFSETS.c.pipeline == pipeline, OFFSETS.c.partition == partition
    )
    cursor = PushedCursor.parse(connection.execute(offset).scalar() or "")
    stored = connection.execute(
        sql.select(PUSHED_LOGS.c.rows).where(PUSHED_LOGS.c.pipeline == pipeline)
    ).scalar()
    if not stored or not cursor.sequence:
        return stored or 0
    batches = PUSHED_BATCHES.c
    at = sql.select(batches.rows_before).where(
        batches.pipeline == pipeline, batches.sequence == cursor.sequence
    )
    before = connection.execute(at).scalar()
    # The batch of the cursor is kept; where it is gone, the log is damaged, which opening it reports.
    return 0 if before is None else max(stored - before - cursor.row, 0)


def batch_lost(pipeline: str, sequence: int) -> DataLostError:
    """The error about a stored batch that is gone."""
    return DataLostError(
        f"Pushed batch {sequence} of {pipeline!r} is gone. If another ingest process works on this "
        "pipeline, stop this one; if not, restore the table pushed_batches from a backup, or push the "
        "records again to a new pipeline."
    )


def _lock_log(connection: sql.Connection, pipeline: str) -> tuple[int, int]:
    """Lock the log until the transaction ends; its last sequence, and the rows of all its batches.

    So sequences become visible in their order, and a reader never skips one that is not committed yet. On
    SQLite the transaction itself is the lock.
    """
    log = PUSHED_LOGS.c
    query = sql.select(log.last_sequence, log.rows).where(log.pipeline == pipeline)
    row = connection.execute(query.with_for_update()).one()
    return int(row.last_sequence), int(row.rows)


def _last_sequence(connection: sql.Connection, pipeline: str) -> int:
    query = sql.select(PUSHED_LOGS.c.last_sequence).where(PUSHED_LOGS.c.pipeline == pipeline)
    return connection.execute(query).scalar() or 0


def _find_request(
    connection: sql.Connection, pipeline: str, request_key: str, payload: bytes
) -> Receipt | None:
    batches = PUSHED_BATCHES.c
    row = connection.execute(
        sql.select(batches.sequence, batches.rows, batches.request_digest).where(
            batches.pipeline == pipeline, batches.request_key == request_key
        )
    ).one_or_none()
    if row is None:
        return None
    if row.request_digest != _digest(payload):
        raise RequestKeyReusedError(
            f"The request key {request_key!r} was used before in {pipeline!r}, for batch {row.sequence} with "
            "other records; nothing was stored now. Send these under a key of their own."
        )
    return Receipt(row.sequence, row.rows, duplicate=True)


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
