"""Reads the pushed log of one pipeline: the records that callers sent over HTTP."""

import time
from collections import deque
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
_MOST_BYTES = 4 << 20
"""Of the batches that are read at once; a larger one is read by itself."""
_FORGET_SECONDS = 60.0


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
        self._past = False
        """Whether all records of the batch at the cursor were given out."""
        self._loaded: deque[StoredBatch] = deque()
        """The first may be given out in part."""
        self._checked = 0
        self._forget_at = 0.0

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
        self._cursor, self._past, self._checked = cursor, not cursor.sequence, 0
        self._loaded.clear()

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """The next records, each request's by itself; empty when none arrive in time.

        Raises:
            DataLostError: the next batch was stored and is gone.
            SourceError: the next batch cannot be read, or was pushed under another schema.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._loaded:
            self._load(max_records)
            left = deadline - time.monotonic()
            if self._loaded or left <= 0:
                break
            time.sleep(min(_POLL_INTERVAL_SECONDS, left))
        found: list[RawBatch] = []
        while self._loaded and max_records > 0:
            try:
                found.append(self._next(max_records))
            except SourceError:
                if not found:
                    raise
                # What came before it would be lost; the next poll raises it again.
                return found
            max_records -= len(found[-1].positions)
        return found

    def _load(self, max_records: int) -> None:
        """Read the next batches."""
        most = {"most_rows": max_records, "most_bytes": _MOST_BYTES}
        if not self._past:
            self._loaded.extend(self._log.batches(self._pipeline, self._cursor.sequence, **most))
            if self._loaded and self._cursor.row >= self._loaded[0].rows:
                self._loaded.popleft()
                self._past = True
        if not self._loaded:
            self._loaded.extend(self._log.batches(self._pipeline, self._cursor.sequence + 1, **most))

    def _next(self, most: int) -> RawBatch:
        batch = self._loaded[0]
        first = self._cursor.row if batch.sequence == self._cursor.sequence else 0
        if batch.sequence != self._checked:
            self._check(batch)
        start, stop = str(self._cursor), min(batch.rows, first + most)
        self._cursor, self._past = PushedCursor(batch.sequence, stop), stop == batch.rows
        if self._past:
            self._loaded.popleft()
        return RawBatch(
            partition=PUSHED_PARTITION,
            start=start,
            payloads=[batch.payload],
            positions=LazyTexts(partial(_position, batch.sequence), range(first + 1, stop + 1)),
            wire="arrow",
            skip=first,
            arrived_at=batch.created_at,
        )

    def trim(self, cursors: Mapping[str, str]) -> None:
        """Delete the batches before the one that holds the committed cursor.

        That one stays: opening at the cursor needs it to notice missing batches.
        """
        cursor = PushedCursor.parse(cursors.get(PUSHED_PARTITION, ""))
        self._log.trim(self._pipeline, before=cursor.sequence)
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + _FORGET_SECONDS
            self._log.forget_requests(self._pipeline, before=cursor.sequence)

    def close(self) -> None:
        """Nothing to release: the engine belongs to the caller."""
        self._loaded.clear()

    def _check(self, batch: StoredBatch) -> None:
        # The sender has a receipt for these records: stop for a person rather than file a dead letter.
        try:
            decode_batch(batch.payload, self._schema)
        except RecordInvalidError as error:
            raise SourceError(
                f"Pushed batch {batch.sequence} of {self._pipeline!r} cannot be read: {error} "
                "Nothing was skipped."
            ) from error
        self._checked = batch.sequence


def build(config: PushedConfig, context: SourceContext) -> PushedSource:
    """The source that the catalog names."""
    return PushedSource(context.pipeline, context.schema, engine=context.engine)


def _position(sequence: int, row: int) -> str:
    return f"{sequence}:{row}"
