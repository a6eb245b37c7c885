"""Pending records: complete, not yet cut, in order; and the trigger that decides when they are."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.base import RecordSchema
from streams.joining import Pair
from streams.records import Records, empty_records
from streams.split import TRAIN
from streams.triggers.base import Features
from streams.triggers.catalog import Cut, TriggerConfig, TriggerContext

MAX_EXPERIENCE_BYTES = 256 * 1024 * 1024
"""Pending records of this size are cut, whatever the trigger says: one experience is one file in memory."""

_SEEN_AT_A_TIME = 8_192
_POLL_BYTES = 32 * 1024 * 1024
_MOST_POLLED, _LEAST_POLLED = 65_536, 256


def _none() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Chunk:
    """Accepted, complete records of one batch, in order."""

    partition: str
    """Where they came from; with late labels, the partition of the record that completed them."""
    records: Records
    positions: Sequence[str]
    """One cursor a record; empty with late labels, where the join keeps the cursors."""
    parts: NDArray[np.uint8]
    """(n,) the part of each record, as its index in `PARTS`."""
    arrived_at: float
    """Epoch seconds; NaN where the source does not know."""
    dropped: NDArray[np.int64] = field(default_factory=_none)
    """Sorted: for each duplicate that was dropped, how many of these records come before it."""
    held_out: NDArray[np.int64] = field(default_factory=_none)
    """The same of records that were dropped because a golden set holds their id."""
    pairs: Sequence[Pair] = ()
    """With late labels, one a record: what it was joined from, which the join needs when it is cut."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit: neither a record nor one that was dropped."""
        return not (len(self) or len(self.dropped) or len(self.held_out))

    @property
    def trails(self) -> bool:
        """Whether anything was dropped after the last record."""
        return bool((self.dropped >= len(self)).any() or (self.held_out >= len(self)).any())

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the records in memory."""
        return self.records.nbytes

    def head(self, count: int) -> "Chunk":
        """The first `count` records, and what was dropped before the last of them."""
        return replace(
            self,
            records=self.records.take(slice(count)),
            positions=self.positions[:count],
            parts=self.parts[:count],
            dropped=self.dropped[self.dropped < count],
            held_out=self.held_out[self.held_out < count],
            pairs=self.pairs[:count],
        )

    def tail(self, count: int) -> "Chunk":
        """The rest, which a restart reads again once the head is committed."""
        return replace(
            self,
            records=self.records.take(slice(count, None)),
            positions=self.positions[count:],
            parts=self.parts[count:],
            dropped=self.dropped[self.dropped >= count] - count,
            held_out=self.held_out[self.held_out >= count] - count,
            pairs=self.pairs[count:],
        )


def records_at_once(schema: RecordSchema) -> int:
    """Records of one poll at most: as many as 32 MiB of features hold, within bounds."""
    record_bytes = schema.size * np.dtype(schema.dtype).itemsize
    return min(_MOST_POLLED, max(_LEAST_POLLED, _POLL_BYTES // record_bytes))


def part_records(chunks: Sequence[Chunk], part: int, schema: RecordSchema) -> Records:
    """The records of one part, in order: each row is copied once."""
    chosen = [np.flatnonzero(chunk.parts == part) for chunk in chunks]
    picked = [(chunk.records, rows) for chunk, rows in zip(chunks, chosen, strict=True) if len(rows)]
    if not picked:
        return empty_records(schema)
    ids = _texts([records.ids for records, _ in picked], picked)
    plain = all(records.split_keys is records.ids for records, _ in picked)
    return Records(
        ids=ids,
        features=_rows([records.features for records, _ in picked], picked),
        labels=_rows([records.labels for records, _ in picked], picked),
        times=_rows([records.times for records, _ in picked], picked),
        split_keys=ids if plain else _texts([records.split_keys for records, _ in picked], picked),
        groups={
            name: _texts([records.groups[name] for records, _ in picked], picked) for name in schema.groups
        },
    )


Picked = Sequence[tuple[Records, NDArray[np.int64]]]


def _rows(columns: Sequence[NDArray[Any]], picked: Picked) -> NDArray[Any]:
    counts = [len(rows) for _, rows in picked]
    found = np.empty((sum(counts), *columns[0].shape[1:]), dtype=columns[0].dtype)
    start = 0
    for column, (_, rows) in zip(columns, picked, strict=True):
        # All rows are within bounds; with "clip" numpy does not check that, and writes without a buffer.
        np.take(column, rows, axis=0, out=found[start : start + len(rows)], mode="clip")
        start += len(rows)
    return found


def _texts(columns: Sequence[pa.StringArray], picked: Picked) -> pa.StringArray:
    return pa.concat_arrays(
        [column.take(pa.array(rows)) for column, (_, rows) in zip(columns, picked, strict=True)]
    )


def divide(chunks: Sequence[Chunk], count: int) -> tuple[list[Chunk], list[Chunk]]:
    """The oldest `count` records, and the rest: with it what was dropped after the last of each partition.

    So each partition is cut just after a record, and the cut accounts for everything up to that record.
    """
    taken: list[Chunk] = []
    left: list[Chunk] = []
    for index, chunk in enumerate(chunks):
        if count <= len(chunk):
            taken.append(chunk.head(count))
            left = [chunk.tail(count), *chunks[index + 1 :]]
            break
        taken.append(chunk)
        count -= len(chunk)
    taken, trailing = _settled(taken)
    return taken, [chunk for chunk in (*trailing, *left) if not chunk.empty]


def _settled(taken: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    """The chunks up to the last record of each partition, and what was dropped after it."""
    kept: list[Chunk] = []
    trailing: list[Chunk] = []
    ended: set[str] = set()
    for chunk in reversed(taken):
        if chunk.partition not in ended:
            if len(chunk):
                ended.add(chunk.partition)
            if not len(chunk) or chunk.trails:
                trailing.append(chunk.tail(len(chunk)))
                chunk = chunk.head(len(chunk))
        if not chunk.empty:
            kept.append(chunk)
    return kept[::-1], trailing[::-1]


class Pending:
    """The pending records of one ingest, and the trigger that watches them. Not thread-safe."""

    def __init__(self, trigger: TriggerConfig, context: TriggerContext, *, state: Mapping[str, Any]) -> None:
        """`state` is what the trigger saved at the last cut."""
        self._trigger = trigger
        self._context = context
        self._chunks: list[Chunk] = []
        self._begin_watch(state)

    def _begin_watch(self, state: Mapping[str, Any]) -> None:
        self._watch = self._trigger.watch(state, self._context)
        self._shown = 0
        self._due: Cut | None = None

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self._chunks)

    @property
    def full(self) -> bool:
        """Whether there is as much as one experience may hold."""
        return sum(chunk.nbytes for chunk in self._chunks) >= MAX_EXPERIENCE_BYTES

    @property
    def partitions(self) -> Set[str]:
        """Partitions of which a record is pending."""
        return {chunk.partition for chunk in self._chunks if len(chunk)}

    def append(self, chunk: Chunk) -> None:
        """Add records after all that are pending."""
        self._chunks.append(chunk)

    def see_features(self, features: Features) -> None:
        """Show the trigger features (n, *shape) whose label is still to come."""
        self._watch.see_features(features)

    def due(self, now: float) -> Cut | None:
        """The cut that is due at `now` in epoch seconds; None while no record to train on would be in it."""
        for records, arrived_at in self._unseen():
            self._due = self._watch.see(records, arrived_at, now)
            self._shown += len(records)
            if self._due is not None:
                break
        if self._due is None:
            self._due = self._watch.due(now)
        if self._due is None and self.full:
            most = MAX_EXPERIENCE_BYTES // 2**20
            reason = f"The records that wait have reached {most} MB, the most in one experience."
            self._due = replace(self._watch.forced(reason, now), decision={"trigger": "size"})
        return None if self._due is None else self._with_training_records(self._due)

    def cut_of_all(self, reason: str, now: float) -> Cut | None:
        """A cut of everything that is pending; None while there is no record to train on."""
        if not self._chunks:
            return None
        forced = self._watch.forced(reason, now)
        # The watch has not seen records that came after its own cut, or just now.
        decision = {**forced.decision, "records": len(self)}
        return self._with_training_records(replace(forced, records=len(self), decision=decision))

    def taken_by(self, cut: Cut) -> list[Chunk]:
        """The records of a cut. They stay pending until `cut_made` is called."""
        return divide(self._chunks, cut.records)[0]

    def cut_made(self, cut: Cut) -> None:
        """Remove the records of a committed cut, and let the trigger watch those that follow."""
        self._chunks = divide(self._chunks, cut.records)[1]
        self._begin_watch(cut.state)

    def idle(self) -> list[Chunk]:
        """What was dropped of partitions of which no record is pending."""
        waiting = self.partitions
        return [chunk for chunk in self._chunks if chunk.partition not in waiting]

    def drop_idle(self) -> None:
        """Remove what `idle` returned, once it is committed."""
        waiting = self.partitions
        self._chunks = [chunk for chunk in self._chunks if chunk.partition in waiting]

    def _unseen(self) -> Iterator[tuple[Records, float]]:
        """Records that the watch has not seen, a few at a time; after a cut the next watch gets the rest."""
        if self._due is not None:
            return
        before = 0
        for chunk in self._chunks:
            start = max(0, self._shown - before)
            for first in range(start, len(chunk), _SEEN_AT_A_TIME):
                yield chunk.records.take(slice(first, first + _SEEN_AT_A_TIME)), chunk.arrived_at
            before += len(chunk)

    def _with_training_records(self, cut: Cut) -> Cut | None:
        """The cut, made longer up to the first record that is trained on; None while there is no such record.

        The length depends on the records alone, never on how they were polled.
        """
        before = 0
        for chunk in self._chunks:
            trained = np.flatnonzero(chunk.parts == TRAIN)
            if len(trained):
                return replace(cut, records=max(cut.records, before + int(trained[0]) + 1))
            before += len(chunk)
        return None
