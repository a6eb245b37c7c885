"""Reads the pushed log of one pipeline: the records that callers sent over HTTP."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import sqlalchemy as sql

from streams.allowed import Allowed
from streams.base import (
    DataLostError,
    LazyTexts,
    RawBatch,
    RecordInvalidError,
    RecordSchema,
    SourceConfig,
    SourceContext,
    SourceError,
)
from streams.state.pushed import PUSHED_PARTITION, PushedCursor, PushedLog, StoredBatch, batch_lost
from streams.wire.decode import decode_batch

_POLL_INTERVAL_SECONDS = 0.1


class PushedConfig(SourceConfig):
    """Records that callers send over HTTP."""

    kind: Literal["pushed"] = "pushed"

    def refusal(self, allowed: Allowed) -> str | None:
        """See `SourceConfig`. It names nothing outside the installation."""
        return None


class PushedSource:
    """The pushed log of one pipeline: one partition, cursors "sequence:row"."""

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
        self._log = PushedLog(engine, clock=clock)
        self._cursor = PushedCursor(0, 0)
        self._batch: StoredBatch | None = None

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
        last, stored = self._log.sequences(self._pipeline, first=cursor.sequence)
        if cursor.sequence > last:
            raise DataLostError(
                f"The pushed log of {self._pipeline!r} ends at batch {last} and the committed cursor is "
                f"{cursor}; the database was restored from an older state: restore the newer one."
            )
        missing = {*range(max(cursor.sequence, 1), last + 1)} - stored
        if missing:
            raise batch_lost(self._pipeline, min(missing))
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
        """Delete the batches before the one that holds the committed cursor.

        That one stays: opening at the cursor needs it to notice missing batches.
        """
        cursor = PushedCursor.parse(cursors.get(PUSHED_PARTITION, ""))
        self._log.trim(self._pipeline, before=cursor.sequence)

    def close(self) -> None:
        """Nothing to release: the engine belongs to the caller."""
        self._batch = None

    def _first_row(self, found: StoredBatch) -> int:
        return self._cursor.row if found.sequence == self._cursor.sequence else 0

    def _next_batch(self) -> StoredBatch | None:
        """The batch of the cursor where it is not loaded yet, else the next one; None: none is stored yet."""
        wanted = self._cursor.sequence + (0 if self._batch is None and self._cursor.sequence else 1)
        found = self._log.batch(self._pipeline, wanted)
        if found is not None:
            self._check(found.payload, wanted)
        return found

    def _check(self, payload: bytes, sequence: int) -> None:
        # The sender has a receipt for these records: stop for a person rather than file a dead letter.
        try:
            decode_batch(payload, self._schema)
        except RecordInvalidError as error:
            raise SourceError(
                f"Pushed batch {sequence} of {self._pipeline!r} cannot be read: {error} Nothing was skipped."
            ) from error


def build(config: PushedConfig, context: SourceContext) -> PushedSource:
    """The source that the catalog names."""
    return PushedSource(context.pipeline, context.schema, engine=context.engine)


def _position(sequence: int, row: int) -> str:
    return f"{sequence}:{row}"
