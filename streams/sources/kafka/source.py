"""A Kafka topic as a source: every partition of the topic is a partition.

No consumer group is joined and nothing is committed to the broker: the cursors committed with an experience
are the only truth. A cursor is the offset of the next message, as in Kafka's own tools. Where a message holds
many records, "offset:row" is inside of one, of which `row` records were read.
"""

import math
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from streams.allowed import Allowed
from streams.base import DataLostError, LazyTexts, RawBatch, SourceContext, SourceError
from streams.sources.kafka.config import KafkaConfig
from streams.sources.kafka.topic import Fault, KafkaTopic
from streams.wire.decode import count_records

LOOK_SECONDS = 30.0
"""How often new partitions of the topic are looked for."""

PATIENCE_SECONDS = 30.0
"""How long brokers may be away before that is an error."""

_FETCH_SECONDS = 1.0
"""How long a poll waits past its own timeout for messages that are known to exist."""

_ARROW_MESSAGES = 16
"""How many messages of many records are held at a time."""

_ADVICE = "Restore the topic, or make a new pipeline for what is left, with start: oldest."
_CURSOR = re.compile(r"(\d{1,18})(?::(\d{1,18}))?", re.ASCII)


class KafkaCursor(NamedTuple):
    """The next record: the one at `row` of the message at `offset`."""

    offset: int
    row: int = 0

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The cursor that `str` wrote; None for an empty text, the beginning.

        Raises:
            SourceError: the text is not a cursor of a Kafka partition.
        """
        if not text:
            return None
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise SourceError(f"{text[:80]!r} is not a cursor of a Kafka partition, such as '1200'.")
        return cls(int(found[1]), int(found[2] or 0))

    def __str__(self) -> str:
        return f"{self.offset}:{self.row}" if self.row else str(self.offset)


class KafkaSource:
    """All partitions of one topic, including those added later."""

    def __init__(
        self,
        config: KafkaConfig,
        *,
        group: str,
        look_seconds: float = LOOK_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        allowed: Allowed | None = None,
    ) -> None:
        """`group` is named to the broker, whose access rules may ask for it; it is never joined."""
        self._config = config
        self._topic = KafkaTopic(
            config, group=group, patience_seconds=patience_seconds, allowed=allowed or Allowed()
        )
        self._look_seconds = look_seconds
        self._looked_at = 0.0
        self._opened = self._assigned = False
        self._cursors: dict[int, KafkaCursor | None] = {}
        self._reached: dict[int, int] = {}
        self._waited_for: dict[int, int] = {}
        self._begun: dict[int, int] = {}
        """Where each partition begins that held a message before any of it was read."""
        self._held: deque[Any] = deque()
        self._faults: list[Fault] = []

    def partitions(self) -> Sequence[str]:
        """Numbers of the topic's partitions.

        Raises:
            SourceError: the broker cannot be reached, or does not give the topic.
        """
        return [str(partition) for partition in self._topic.partitions()]

    def open(self, cursors: Mapping[str, str]) -> None:
        """Resume just after the cursors.

        Raises:
            DataLostError: messages after a cursor were deleted, or the topic is not the one that was read.
            SourceError: the broker cannot be reached, does not give the topic, or a cursor is not Kafka's.
        """
        self.close()
        self._cursors = {int(name): KafkaCursor.parse(text) for name, text in cursors.items()}
        self._begun = {}
        self._assign()
        self._opened = True

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """The next messages of all partitions. One without a value is an empty payload, and a dead letter.

        Raises:
            DataLostError: messages after those that were read are gone.
            SourceError: the broker refuses, or was unreachable for long. The next poll goes on from here.
        """
        if not self._opened:
            raise SourceError("The source was polled before it was opened.")
        deadline = time.monotonic() + timeout_seconds
        self._raise_fault()
        self._look_for_partitions()
        if not self._assigned:
            self._assign()
        while True:
            batches = self._next(max_records, deadline - time.monotonic())
            if batches or self._faults or time.monotonic() >= deadline:
                break
        if not batches:
            self._raise_fault()
            self._topic.check_trouble()
        return batches

    def arrived(self, cursors: Mapping[str, str]) -> Mapping[str, str]:
        """See `AnnouncingSource`."""
        return {
            str(partition): str(KafkaCursor(offset))
            for partition, offset in self._begun.items()
            if not cursors.get(str(partition))
        }

    def close(self) -> None:
        """Close the connections. Closing twice is allowed."""
        self._opened = False
        self._disconnect()

    def _disconnect(self) -> None:
        self._assigned = False
        self._held.clear()
        self._faults = []
        self._topic.disconnect()

    def _assign(self) -> None:
        """Read every partition from its cursor on, after checking that the broker still has that offset."""
        partitions = self._topic.partitions()
        self._looked_at = time.monotonic()
        for partition, cursor in self._cursors.items():
            if cursor is not None and partition not in partitions:
                raise DataLostError(
                    f"Topic {self._config.topic!r} has no partition {partition} any more, which was read up "
                    f"to offset {cursor.offset}: the topic was created again. Nothing was skipped. {_ADVICE}"
                )
        self._reached, self._waited_for = {}, {}
        for partition in partitions:
            self._cursors.setdefault(partition, None)
            self._reached[partition] = self._begin(partition)
        self._topic.assign(self._reached)
        self._assigned = True

    def _begin(self, partition: int) -> int:
        """The offset to read from, which is still there."""
        low, high = self._topic.bounds(partition)
        cursor = self._cursors[partition]
        if cursor is None:
            begun = self._begun.get(partition, 0 if self._config.start == "beginning" else low)
            if not low <= begun <= high:
                raise self._lost(partition, begun, low, high)
            if high > low:
                self._begun[partition] = begun
            return begun
        if not low <= cursor.offset <= high - (cursor.row > 0):
            raise self._lost(partition, cursor.offset, low, high)
        return cursor.offset

    def _lost(self, partition: int, offset: int, low: int, high: int) -> DataLostError:
        if offset < low:
            why = f"the oldest that Kafka still holds has offset {low}: {low - offset:,} were deleted unread"
        else:
            why = f"the partition ends at {high}: the topic was created again, or Kafka lost its newest data"
        return DataLostError(
            f"The next message wanted of {self._named(partition)} has offset {offset}, and {why}. "
            f"Nothing was skipped. {_ADVICE}"
        )

    def _look_for_partitions(self) -> None:
        due = time.monotonic() - self._looked_at >= self._look_seconds
        if not (self._assigned and due) or self._topic.troubled:
            return
        self._looked_at = time.monotonic()
        if self._topic.partitions() != sorted(self._reached):
            self._disconnect()

    def _raise_fault(self) -> None:
        """Raise the first fault of a partition; the next poll reads on from what was returned."""
        if not self._faults:
            return
        fault = self._faults[0]
        self._disconnect()
        if fault.lost:
            self._begin(fault.partition)
        raise SourceError(f"Kafka does not give {self._named(fault.partition)}: {fault.reason}.")

    def _named(self, partition: int) -> str:
        return f"partition {partition} of topic {self._config.topic!r}"

    def _next(self, max_records: int, seconds: float) -> list[RawBatch]:
        if self._config.wire == "arrow":
            if not self._held:
                self._held.extend(self._take(min(max_records, _ARROW_MESSAGES), seconds))
            return self._row_batches(max_records)
        by_partition: dict[int, list[Any]] = {}
        for message in self._take(max_records, seconds):
            by_partition.setdefault(message.partition(), []).append(message)
        return [self._batch(partition, messages) for partition, messages in by_partition.items()]

    def _take(self, count: int, seconds: float) -> Sequence[Any]:
        messages, faults = self._topic.take(count, 0)
        if not messages and not faults:
            behind = self._behind()
            until = time.monotonic() + max(seconds, _FETCH_SECONDS if behind else 0.0)
            while not messages and not faults and (left := until - time.monotonic()) > 0:
                messages, faults = self._topic.take(count, left)
            if not messages:
                # There may be no message before that end, only a transaction marker: wait for it once.
                self._waited_for.update(behind)
        self._faults += faults
        return messages

    def _behind(self) -> dict[int, int]:
        """The ends of the partitions that have messages for which no poll has waited yet."""
        ends = {partition: self._topic.known_end(partition) for partition in self._reached}
        return {
            partition: end
            for partition, end in ends.items()
            if end > self._reached[partition] and end != self._waited_for.get(partition)
        }

    def _batch(self, partition: int, messages: Sequence[Any]) -> RawBatch:
        """One record a message."""
        offsets = [message.offset() for message in messages]
        start = self._text(partition)
        self._move(partition, KafkaCursor(offsets[-1] + 1))
        return RawBatch(
            partition=str(partition),
            start=start,
            payloads=[message.value() or b"" for message in messages],
            positions=LazyTexts(lambda at: str(offsets[at] + 1), range(len(offsets))),
            wire=self._config.wire,
            arrived_at=_arrived_at(messages[0]),
        )

    def _row_batches(self, max_records: int) -> list[RawBatch]:
        """Many records a message, which may be read in several steps."""
        batches: list[RawBatch] = []
        while self._held and max_records > 0 and not (batches and self._was_replaced(self._held[0])):
            batch = self._rows(self._held[0], max_records)
            if batch is not None:
                batches.append(batch)
                max_records -= len(batch.positions)
        return batches

    def _rows(self, message: Any, most: int) -> RawBatch | None:
        """The next records of the first held message, which is dropped after its last; None: it has none."""
        partition, offset, payload = message.partition(), message.offset(), message.value() or b""
        if self._was_replaced(message):
            raise DataLostError(
                f"The message at offset {offset} of {self._named(partition)} is not the one that was read up "
                f"to {self._text(partition)}: the topic was created again. Nothing was skipped. {_ADVICE}"
            )
        cursor, start = self._cursors[partition], self._text(partition)
        first, rows = (cursor.row if cursor is not None else 0), _row_count(payload)
        stop = min(rows, first + most)
        if stop == rows:
            self._held.popleft()
        if not rows:
            self._reached[partition] = offset + 1
            return None
        end = KafkaCursor(offset + 1) if stop == rows else KafkaCursor(offset, stop)
        self._move(partition, end)
        return RawBatch(
            partition=str(partition),
            start=start,
            payloads=[payload],
            positions=[*(f"{offset}:{row}" for row in range(first + 1, stop)), str(end)],
            wire="arrow",
            skip=first,
            arrived_at=_arrived_at(message),
        )

    def _was_replaced(self, message: Any) -> bool:
        """Whether another message is at the offset of one that was partly read."""
        cursor = self._cursors[message.partition()]
        if cursor is None or not cursor.row:
            return False
        return message.offset() != cursor.offset or _row_count(message.value() or b"") <= cursor.row

    def _move(self, partition: int, cursor: KafkaCursor) -> None:
        if self._cursors[partition] is None:
            self._begun.setdefault(partition, self._reached[partition])
        self._cursors[partition] = cursor
        self._reached[partition] = cursor.offset

    def _text(self, partition: int) -> str:
        cursor = self._cursors[partition]
        return "" if cursor is None else str(cursor)


def build(config: KafkaConfig, context: SourceContext) -> KafkaSource:
    """The source that the catalog names."""
    group = config.properties.get("group.id", f"holdfast-{context.pipeline}")
    return KafkaSource(config, group=group, allowed=context.allowed)


def _row_count(payload: bytes) -> int:
    """Records in a message; 1 for an unreadable one, so that it becomes one dead letter."""
    rows = count_records(payload)
    return 1 if rows is None else rows


def _arrived_at(message: Any) -> float:
    kind, milliseconds = message.timestamp()
    return milliseconds / 1000 if kind and milliseconds >= 0 else math.nan
