"""Joins features and labels that come as separate records, by record id.

A record that holds only features, or only a label, is unmatched until its counterpart comes. It must outlive
the process, because the offsets move past it. So every commit stores the unmatched records that were read in
a *waiting part*: a file named by its sha256, whose row in the manifest has a bit for each of its records that
is gone since, into an experience or because it aged out. A restart reads the waiting parts first and then
goes on at the offsets. Every unmatched record is in exactly one of: a waiting part, an experience, the count
of those that aged out.

An unmatched record ages by event time where it has one, against the watermark, else by the time since it was
read. So nothing ages out while the ingest is down or reads a backlog: the counterpart may be in what was not
read yet. Features and a label whose event times are further apart than the limit are never joined.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from streams.base import RecordSchema
from streams.records import COMPLETE, LABEL_ONLY, Records, join_records
from streams.watermark import Watermark

_DAY_SECONDS = 86_400.0
_STORED = -1
"""The arrival number of records that a waiting part held when this process began."""


@dataclass
class WaitingPart:
    """One stored file of unmatched records, and which of them are gone."""

    sequence: int
    digest: str
    gone: NDArray[np.bool_]
    """(rows,)."""
    stored_at: float = 0.0
    """Epoch seconds."""


@dataclass(slots=True, eq=False)
class _Entry:
    """One record as it came: complete, features only, or label only."""

    id: str
    time: float
    carries: int
    arrival: int
    came_at: float
    block: Records
    row: int
    part: WaitingPart | None = None
    part_row: int = -1


Pair = tuple[_Entry, _Entry | None]
"""The record with the features, and the one with the label; None: the first holds both."""


@dataclass(frozen=True)
class Joined:
    """Records that became complete, in the order of their completion."""

    records: Records
    pairs: Sequence[Pair]
    repeated: Sequence[int]
    """Arrival numbers of dropped records: one of the same kind and id was waiting already."""


@dataclass(frozen=True)
class WaitingChange:
    """What a commit must store next to the experience."""

    moves: dict[str, str]
    """How far each partition is done."""
    keep: Records | None
    """Unmatched records for a new waiting part; None: there are none."""
    touched: Sequence[WaitingPart]
    """Older parts of which more is gone, as they are after the commit."""
    used: Sequence[_Entry] = field(default=(), repr=False)
    aged: Sequence[_Entry] = field(default=(), repr=False)
    kept: Sequence[_Entry] = field(default=(), repr=False)

    @property
    def aged_out(self) -> int:
        """Features that never got a label, and labels that never got features."""
        return len(self.aged)


class Join:
    """The unmatched records of one pipeline. Not thread-safe."""

    def __init__(self, schema: RecordSchema) -> None:
        if schema.labels_within_seconds is None:
            raise ValueError("a join needs the time within which labels come")
        self._schema = schema
        self._within = schema.labels_within_seconds
        self._features: dict[str, _Entry] = {}
        self._labels: dict[str, _Entry] = {}
        self._unstored: deque[_Entry] = deque()
        """Records that no waiting part holds yet, in the order of their arrival."""
        self._log: deque[tuple[str, int, Sequence[str]]] = deque()
        """Partition, first arrival and positions of what was read since the last commit."""
        self._next = 0
        self._settled = 0
        """The arrival that the next commit begins at."""
        self._watermark = Watermark()
        self._step = self._within / 100
        self._began_at: float | None = None
        """When stored parts were read again, until everything that came meanwhile is read; else None."""
        self._aged_at = (-math.inf, -math.inf)

    @property
    def waiting(self) -> int:
        """How many records are unmatched."""
        return len(self._features) + len(self._labels)

    @property
    def next_arrival(self) -> int:
        """The arrival number of the next record read."""
        return self._next

    @property
    def unsettled(self) -> int:
        """Payloads read since the last commit: those that a crash would read again."""
        return self._next - self._settled

    def restore(self, part: WaitingPart, records: Records, *, now: float) -> Joined:
        """Read a stored part again; call before `add`, oldest part first.

        Records of it that age by the clock go on ageing once everything that came meanwhile is read.
        """
        self._began_at = now
        alive = np.flatnonzero(~part.gone)
        entries = _entries(records.take(alive), [_STORED] * len(alive), min(part.stored_at, now))
        for entry, row in zip(entries, alive.tolist(), strict=True):
            entry.part, entry.part_row = part, row
        joined = self._match(entries)
        self._watermark.recall(_latest_time(entries))
        return joined

    def add(
        self,
        partition: str,
        records: Records,
        *,
        indices: NDArray[np.int64],
        positions: Sequence[str],
        came_at: float,
        once: bool = False,
    ) -> Joined:
        """Take in what was read of one batch.

        `records` (n,) are those accepted, `indices` (n,) where they are among `positions`, the cursors of
        everything in the batch. `came_at` is when the batch was read, in epoch seconds. With `once`, a record
        whose id became complete earlier in this batch is a repeat, and is dropped.
        """
        first, self._next = self._next, self._next + len(positions)
        if len(positions):
            self._log.append((partition, first, positions))
        entries = _entries(records, (indices + first).tolist(), came_at)
        self._watermark.see(partition, _latest_time(entries))
        return self._match(entries, once=once)

    def polled(self, *, found: bool) -> None:
        """Note that the source was polled, and that all it gave was added."""
        self._watermark.polled(found=found)
        if not found:
            self._began_at = None

    def _match(self, entries: Sequence[_Entry], *, once: bool = False) -> Joined:
        pairs: list[Pair] = []
        repeated: list[int] = []
        completed: set[str] = set()
        for entry in entries:
            if entry.id in completed:
                repeated.append(entry.arrival)
                continue
            pair = self._pair(entry)
            if pair is not None:
                pairs.append(pair)
                if once:
                    completed.add(entry.id)
            elif self._waits_already(entry):
                repeated.append(entry.arrival)
                continue
            else:
                self._table(entry)[entry.id] = entry
            if entry.part is None:
                self._unstored.append(entry)
        return Joined(_records(pairs, self._schema), pairs, repeated)

    def _table(self, entry: _Entry) -> dict[str, _Entry]:
        return self._labels if entry.carries == LABEL_ONLY else self._features

    def _waits_already(self, entry: _Entry) -> bool:
        return entry.id in self._table(entry)

    def _pair(self, entry: _Entry) -> Pair | None:
        """The pair that this record completes, taken from those that wait; None: it completes none."""
        if entry.carries == COMPLETE:
            return entry, None
        if entry.carries == LABEL_ONLY:
            features = self._taken(self._features, entry)
            return None if features is None else (features, entry)
        label = self._taken(self._labels, entry)
        return None if label is None else (entry, label)

    def _taken(self, table: dict[str, _Entry], entry: _Entry) -> _Entry | None:
        """The counterpart of this record, taken from the table; None: there is none within the limit."""
        other = table.get(entry.id)
        if other is None or abs(other.time - entry.time) > self._within:  # NaN, no time, is never apart
            return None
        return table.pop(entry.id)

    def change(self, cut: Sequence[Pair], *, upto: int | None, now: float) -> WaitingChange:
        """What a commit that cuts these pairs must store; the join itself changes in `done`.

        `upto` is the arrival number that the commit ends at; None: it covers everything that was read.
        Records after it are read again after a crash, and are not stored.
        """
        last = self._last(upto)
        used = [entry for pair in cut for entry in pair if entry is not None]
        aged = self._aged(last, now)
        touched: dict[int, WaitingPart] = {}
        for entry in [*used, *aged]:
            if entry.part is not None:
                part = entry.part
                after = touched.setdefault(part.sequence, replace(part, gone=part.gone.copy()))
                after.gone[entry.part_row] = True
        gone = {entry.arrival for entry in [*used, *aged] if entry.part is None}
        unstored = takewhile(lambda entry: entry.arrival <= last, self._unstored)
        kept = [entry for entry in unstored if entry.arrival not in gone]
        return WaitingChange(
            moves=self._moves(last),
            keep=_stack(kept, self._schema) if kept else None,
            touched=list(touched.values()),
            used=used,
            aged=aged,
            kept=kept,
        )

    def _last(self, upto: int | None) -> int:
        return self._next - 1 if upto is None else upto

    def done(self, change: WaitingChange, part: WaitingPart | None, *, upto: int | None, now: float) -> None:
        """Note that the commit of this change is made; `part` is the row of the new waiting part."""
        last = self._last(upto)
        for entry in [*change.used, *change.aged]:
            if entry.part is not None:
                entry.part.gone[entry.part_row] = True
        for entry in change.aged:
            del self._table(entry)[entry.id]
        if change.keep is not None:
            for row, entry in enumerate(change.kept):
                entry.part, entry.part_row = part, row
                # Most others of the batch that it came in are gone: release that batch.
                entry.block, entry.row = change.keep, row
        while self._unstored and self._unstored[0].arrival <= last:
            self._unstored.popleft()
        self._settled = max(self._settled, last + 1)
        while self._log and self._log[0][1] <= last:
            partition, first, positions = self._log.popleft()
            if first + len(positions) > last + 1:
                self._log.appendleft((partition, last + 1, positions[last + 1 - first :]))
        if self._check_due(now):
            self._aged_at = (self._watermark.reading, now)

    def last_arrival(self, cut: Sequence[Pair]) -> int:
        """The arrival number that completed the last of these pairs: a commit that cuts them ends there."""
        return max((entry.arrival for pair in cut for entry in pair if entry is not None), default=_STORED)

    def _moves(self, last: int) -> dict[str, str]:
        moves: dict[str, str] = {}
        for partition, first, positions in self._log:
            if first > last:
                break
            moves[partition] = positions[min(len(positions), last + 1 - first) - 1]
        return moves

    def _check_due(self, now: float) -> bool:
        """Whether enough time has passed since the ages were last checked: not every commit checks them."""
        time, clock = self._aged_at
        return self._watermark.reading > time + self._step or now > clock + self._step

    def overdue(self, now: float) -> bool:
        """Whether a record has waited too long, so that a commit is due without a cut."""
        if self._aged(self._next - 1, now):
            return True
        if self._check_due(now):
            self._aged_at = (self._watermark.reading, now)
        return False

    def _aged(self, last: int, now: float) -> list[_Entry]:
        """Records that waited too long, except those that this process read after `last`."""
        if not self._check_due(now):
            return []
        read_to, began_at = self._watermark.reading, self._began_at
        return [
            entry
            for table in (self._features, self._labels)
            for entry in table.values()
            if entry.arrival <= last and self._age(entry, now, read_to, began_at) > self._within
        ]

    def _age(self, entry: _Entry, now: float, read_to: float, began_at: float | None) -> float:
        if _has_timely_event(entry):
            return read_to - entry.time
        return now - (entry.came_at if began_at is None else max(entry.came_at, began_at))


def _has_timely_event(entry: _Entry) -> bool:
    """Whether a record ages by its event time: it has one that is at most a day ahead of its arrival.

    One clock that is fast by more than a day must not make all other records look old.
    """
    return entry.time <= entry.came_at + _DAY_SECONDS


def _latest_time(entries: Sequence[_Entry]) -> float:
    return max((entry.time for entry in entries if _has_timely_event(entry)), default=-math.inf)


def _entries(block: Records, arrivals: Sequence[int], came_at: float) -> list[_Entry]:
    carries = [COMPLETE] * len(block) if block.carries is None else block.carries.tolist()
    columns = zip(block.ids.to_pylist(), block.times.tolist(), carries, arrivals, strict=True)
    return [
        _Entry(name, time, carried, arrival, came_at, block, row)
        for row, (name, time, carried, arrival) in enumerate(columns)
    ]


def _records(pairs: Sequence[Pair], schema: RecordSchema) -> Records:
    """Complete records: features, time, key and groups of the one record, the label of the other."""
    found = _stack([features for features, _ in pairs], schema)
    labels = [(label or features).block.labels[(label or features).row] for features, label in pairs]
    return Records(
        ids=found.ids,
        features=found.features,
        labels=np.array(labels, dtype=np.int64),
        times=found.times,
        split_keys=found.split_keys,
        groups=found.groups,
    )


def _stack(entries: Sequence[_Entry], schema: RecordSchema) -> Records:
    """The rows of these entries as records, taken block by block."""
    chunks: list[Records] = []
    start = 0
    for index in range(1, len(entries) + 1):
        if index == len(entries) or entries[index].block is not entries[start].block:
            rows = np.array([entry.row for entry in entries[start:index]], dtype=np.int64)
            chunks.append(entries[start].block.take(rows))
            start = index
    return join_records(chunks, schema)
