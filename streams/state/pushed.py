"""Rows of the pushed log: records that callers send, stored until an ingest process has cut them.

One row is one request: an Arrow batch, decoded once, when the request came. A batch is kept until the offsets
have passed it; the row of a request with a key is kept a day longer than its payload, so that a repeated
request is still recognised.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import sqlalchemy as sql

from streams.base import DataLostError, RecordSchema, RequestKeyReusedError, SourceError
from streams.records import Records
from streams.state.tables import OFFSETS, PUSHED_BATCHES, PUSHED_LOGS, reading
from streams.wire.decode import encode_batch

REQUEST_KEY_SECONDS = 24 * 60 * 60.0
"""How long a request key is remembered, at least."""

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
        last = _lock_log(connection, pipeline)
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
                payload=payload,
                request_key=request_key,
                request_digest=None if request_key is None else _digest(payload),
                created_at=self._clock(),
            )
        )
        connection.execute(
            sql.update(PUSHED_LOGS).where(PUSHED_LOGS.c.pipeline == pipeline).values(last_sequence=sequence)
        )
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
                connection.execute(sql.insert(PUSHED_LOGS).values(pipeline=pipeline, last_sequence=0))
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

    def batch(self, pipeline: str, sequence: int) -> StoredBatch | None:
        """One batch; None where there is none of that sequence yet.

        Raises:
            DataLostError: it was stored and is gone.
        """
        batches = PUSHED_BATCHES.c
        query = sql.select(batches.rows, batches.payload, batches.created_at).where(
            batches.pipeline == pipeline, batches.sequence == sequence
        )
        with reading(self._engine) as connection:
            last = _last_sequence(connection, pipeline)
            row = connection.execute(query).one_or_none()
        if sequence > last:
            return None
        if row is None or row.payload is None:
            raise batch_lost(pipeline, sequence)
        return StoredBatch(sequence, row.rows, row.payload, row.created_at)

    def trim(self, pipeline: str, *, before: int) -> None:
        """Delete the batches before this sequence, but for request keys that must still be remembered."""
        batches = PUSHED_BATCHES.c
        consumed = (batches.pipeline == pipeline, batches.sequence < before)
        forgotten = batches.created_at < self._clock() - REQUEST_KEY_SECONDS
        with self._engine.begin() as connection:
            connection.execute(
                sql.delete(PUSHED_BATCHES).where(*consumed, batches.request_key.is_(None) | forgotten)
            )
            connection.execute(
                sql.update(PUSHED_BATCHES).where(*consumed, batches.payload.is_not(None)).values(payload=None)
            )


def pending_records(connection: sql.Connection, pipeline: str, *, partition: str) -> int:
    """Records after the committed cursor of the partition that the pushed log is read as."""
    offset = sql.select(OFFSETS.c.cursor).where(
        OFFSETS.c.pipeline == pipeline, OFFSETS.c.partition == partition
    )
    cursor = PushedCursor.parse(connection.execute(offset).scalar() or "")
    batches = PUSHED_BATCHES.c
    first = sql.case((batches.sequence == cursor.sequence, cursor.row), else_=0)
    query = sql.select(sql.func.coalesce(sql.func.sum(batches.rows - first), 0)).where(
        batches.pipeline == pipeline, batches.sequence >= cursor.sequence
    )
    return int(connection.execute(query).scalar_one())


def batch_lost(pipeline: str, sequence: int) -> DataLostError:
    """The error about a stored batch that is gone."""
    return DataLostError(
        f"Pushed batch {sequence} of {pipeline!r} is gone. If another ingest process works on this "
        "pipeline, stop this one; if not, restore the table pushed_batches from a backup, or push the "
        "records again to a new pipeline."
    )


def _lock_log(connection: sql.Connection, pipeline: str) -> int:
    """Lock the log until the transaction ends; its last sequence.

    So sequences become visible in their order, and a reader never skips one that is not committed yet. On
    SQLite the transaction itself is the lock.
    """
    query = sql.select(PUSHED_LOGS.c.last_sequence).where(PUSHED_LOGS.c.pipeline == pipeline)
    return int(connection.execute(query.with_for_update()).scalar_one())


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
