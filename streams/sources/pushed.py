"""The pushed log: records that callers send, durable in SQL until an ingest process has cut them.

One row is one request: an Arrow batch, decoded from JSON once, at the edge. A batch lives until the offsets
have passed it; the row of a request that named a key outlives its payload by a day, so that a repeated
request is still recognised.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import sqlalchemy as sql

from streams.base import (
    DataLostError,
    LazyTexts,
    RawBatch,
    RecordInvalidError,
    RecordSchema,
    RequestKeyReusedError,
    SourceConfig,
    SourceContext,
    SourceError,
)
from streams.records import Records
from streams.state.tables import PUSHED_BATCHES, PUSHED_LOGS, PUSHED_PARTITION, PushedCursor, reading
from streams.wire.decode import decode_batch, encode_batch

REQUEST_KEY_SECONDS = 24 * 60 * 60.0
"""How long a request key is remembered at least."""

_POLL_INTERVAL_SECONDS = 0.1


@dataclass(frozen=True)
class Receipt:
    """What the pushed log holds of one request."""

    sequence: int
    """1, 2, 3 ... within the pipeline."""
    records: int
    duplicate: bool
    """True when a request with the same key was stored before, and this one was not."""


class PushedConfig(SourceConfig):
    """Records that callers send over HTTP."""

    kind: Literal["pushed"] = "pushed"


class PushedLog:
    """Appends to the pushed logs of all pipelines. Safe in several threads and processes at a time."""

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

        A request key seen before is answered with the first receipt, and nothing is stored. `names` are the
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
        """Make the log of a pipeline, if it has none yet."""
        found = sql.select(PUSHED_LOGS.c.pipeline).where(PUSHED_LOGS.c.pipeline == pipeline)
        with reading(self._engine) as connection:
            if connection.execute(found).one_or_none() is not None:
                return
        try:
            with self._engine.begin() as connection:
                connection.execute(sql.insert(PUSHED_LOGS).values(pipeline=pipeline, last_sequence=0))
        except sql.exc.IntegrityError:
            return  # another process was first, which is as good


class PushedSource:
    """The pushed log of one pipeline as a source: one partition, cursors "sequence:row"."""

    def __init__(
        self,
        pipeline: str,
        schema: RecordSchema,
        *,
        engine: sql.Engine,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pipeline = pipeline
        self._schema = schema
        self._engine = engine
        self._clock = clock
        self._cursor = PushedCursor(0, 0)
        self._batch: _StoredBatch | None = None

    def partitions(self) -> Sequence[str]:
        """The one partition."""
        return [PUSHED_PARTITION]

    def open(self, cursors: Mapping[str, str]) -> None:
        """Resume just after the cursor.

        Raises:
            DataLostError: a batch after the cursor was stored and is gone.
            SourceError: the cursor is not one of the pushed log.
        """
        cursor = PushedCursor.parse(cursors.get(PUSHED_PARTITION, ""))
        batches = PUSHED_BATCHES.c
        with reading(self._engine) as connection:
            last = _last_sequence(connection, self._pipeline)
            held = connection.execute(
                sql.select(batches.sequence, batches.payload.is_not(None).label("whole"))
                .where(batches.pipeline == self._pipeline, batches.sequence >= cursor.sequence)
                .order_by(batches.sequence)
            ).all()
        if cursor.sequence > last:
            raise DataLostError(
                f"The pushed log of {self._pipeline!r} ends at batch {last} and the offsets stand at "
                f"{cursor}; the database was restored from an older state: restore the newer one."
            )
        whole = {row.sequence for row in held if row.whole}
        missing = sorted({*range(max(cursor.sequence, 1), last + 1)} - whole)
        if missing:
            raise self._lost(missing[0])
        self._cursor, self._batch = cursor, None

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """The next records, of one batch at most; empty when none arrive in time.

        Raises:
            DataLostError: the next batch was stored and is gone.
            SourceError: the next batch cannot be read, or was pushed under another schema.
        """
        deadline = time.monotonic() + timeout_seconds
        start = str(self._cursor)
        while self._batch is None or self._cursor.row >= self._batch.rows:
            found = self._next_batch()
            if found is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return []
                time.sleep(min(_POLL_INTERVAL_SECONDS, left))
                continue
            self._batch = found
            self._cursor = PushedCursor(found.sequence, self._first_row(found))
        batch, first = self._batch, self._cursor.row
        stop = min(batch.rows, first + max_records)
        self._cursor = PushedCursor(batch.sequence, stop)
        return [
            RawBatch(
                partition=PUSHED_PARTITION,
                start=start,
                payloads=[batch.payload],
                positions=LazyTexts(partial(_position, batch.sequence), range(first + 1, stop + 1)),
                wire="arrow",
                skip=first,
                arrived_at=batch.created_at,
            )
        ]

    def trim(self, cursors: Mapping[str, str]) -> None:
        """Delete the batches before the one that the committed cursor stands in.

        That one stays, so that opening at the cursor can tell what follows from what is missing.
        """
        cursor = PushedCursor.parse(cursors.get(PUSHED_PARTITION, ""))
        batches = PUSHED_BATCHES.c
        consumed = (batches.pipeline == self._pipeline, batches.sequence < cursor.sequence)
        forgotten = batches.created_at < self._clock() - REQUEST_KEY_SECONDS
        with self._engine.begin() as connection:
            connection.execute(
                sql.delete(PUSHED_BATCHES).where(*consumed, batches.request_key.is_(None) | forgotten)
            )
            connection.execute(
                sql.update(PUSHED_BATCHES).where(*consumed, batches.payload.is_not(None)).values(payload=None)
            )

    def close(self) -> None:
        """Nothing to release: the engine belongs to the caller."""
        self._batch = None

    def _first_row(self, found: "_StoredBatch") -> int:
        return self._cursor.row if found.sequence == self._cursor.sequence else 0

    def _next_batch(self) -> "_StoredBatch | None":
        """The batch that the cursor stands in when it was not loaded yet, else the one after it."""
        wanted = self._cursor.sequence + (0 if self._batch is None and self._cursor.sequence else 1)
        batches = PUSHED_BATCHES.c
        with reading(self._engine) as connection:
            last = _last_sequence(connection, self._pipeline)
            row = connection.execute(
                sql.select(batches.rows, batches.payload, batches.created_at).where(
                    batches.pipeline == self._pipeline, batches.sequence == wanted
                )
            ).one_or_none()
        if wanted > last:
            return None
        if row is None or row.payload is None:
            raise self._lost(wanted)
        self._check(row.payload, wanted)
        return _StoredBatch(wanted, row.rows, row.payload, row.created_at)

    def _check(self, payload: bytes, sequence: int) -> None:
        # The sender was told that these records are safe: stop for a person rather than file a dead letter.
        try:
            decode_batch(payload, self._schema)
        except RecordInvalidError as error:
            raise SourceError(
                f"Pushed batch {sequence} of {self._pipeline!r} cannot be read: {error} Nothing was skipped."
            ) from error

    def _lost(self, sequence: int) -> DataLostError:
        return DataLostError(
            f"Pushed batch {sequence} of {self._pipeline!r} is gone. If another ingest process works on this "
            "pipeline, stop this one; if not, restore the table pushed_batches from a backup, or push the "
            "records again to a new pipeline."
        )


def build(config: PushedConfig, context: SourceContext) -> PushedSource:
    """The source that the catalog names."""
    return PushedSource(context.pipeline, context.schema, engine=context.engine)


@dataclass(frozen=True)
class _StoredBatch:
    sequence: int
    rows: int
    payload: bytes
    created_at: float


def _position(sequence: int, row: int) -> str:
    return f"{sequence}:{row}"


def _lock_log(connection: sql.Connection, pipeline: str) -> int:
    """The last sequence, held until the transaction ends.

    So sequences become visible in their order, and a reader never steps over one that is on its way. On
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
