"""Features and labels that come as separate records, joined by record id.

A half that waits for its other half must outlive the process, though the offsets move past it. So with every
commit the halves that were read and are in no experience go into a *waiting part*: a file like any other,
named by its sha256, whose row in the manifest carries a bit for each of its records that is gone by now: in
an experience, or aged out. A restart reads the waiting parts first and then goes on at the offsets; every
half is in exactly one of: a waiting part, an experience, the count of those that aged out.

A half ages by event time where it has one, against the watermark of what is read, else by the time since it
was taken in. So nothing ages out because the ingest was away or reads a backlog: the other half may be in
what it has not read yet. Two halves whose event times are further apart never meet, however they are read.
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
"""The arrival of what a waiting part held when this process began."""


@dataclass
class WaitingPart:
    """One stored file of halves, and which of them are gone."""

    sequence: int
    digest: str
    gone: NDArray[np.bool_]
    """(rows,)."""
    stored_at: float = 0.0
    """When it was, in epoch seconds."""


@dataclass(slots=True, eq=False)
class _Half:
    """One record as it came: complete, only features, or only a label."""

    id: str
    time: float
    carries: int
    arrival: int
    came_at: float
    block: Records
    row: int
    part: WaitingPart | None = None
    part_row: int = -1


Pair = tuple[_Half, _Half | None]
"""The half with the features, and the one with the label; None: the first carries both."""


@dataclass(frozen=True)
class Joined:
    """Records that became complete, in the order of their completion."""

    records: Records
    pairs: Sequence[Pair]
    repeated: Sequence[int]
    """Arrivals of halves that were dropped, because the same half of the same id waits already."""


@dataclass(frozen=True)
class WaitingChange:
    """What a commit must make durable beside the experience."""

    moves: dict[str, str]
    """How far each partition is done."""
    keep: Records | None
    """Halves to be stored as a new waiting part; None: there are none."""
    touched: Sequence[WaitingPart]
    """Parts of which more is gone, as they are after the commit; those that are all gone lose their row."""
    used: Sequence[_Half] = field(default=(), repr=False)
    aged: Sequence[_Half] = field(default=(), repr=False)
    kept: Sequence[_Half] = field(default=(), repr=False)

    @property
    def aged_out(self) -> int:
        """Features that never got a label, and labels that never got features."""
        return len(self.aged)


class Join:
    """The halves of one pipeline. Not thread-safe."""

    def __init__(self, schema: RecordSchema) -> None:
        if schema.labels_within_seconds is None:
            raise ValueError("a join needs the time within which labels come")
        self._schema = schema
        self._within = schema.labels_within_seconds
        self._features: dict[str, _Half] = {}
        self._labels: dict[str, _Half] = {}
        self._loose: deque[_Half] = deque()
        """Halves that no waiting part holds yet, in the order of their arrival."""
        self._log: deque[tuple[str, int, Sequence[str]]] = deque()
        """Partition, first arrival and positions of what was read since the last commit."""
        self._next = 0
        self._settled = 0
        """The arrival that the next commit begins at."""
        self._watermark = Watermark()
        self._step = self._within / 100
        self._began_at: float | None = None
        """When stored halves were taken up, until all that came meanwhile is read."""
        self._aged_at = (-math.inf, -math.inf)

    @property
    def waiting(self) -> int:
        """Halves that wait for their other half."""
        return len(self._features) + len(self._labels)

    @property
    def next_arrival(self) -> int:
        """The number that the first of what is read next will have."""
        return self._next

    @property
    def unsettled(self) -> int:
        """Payloads read that no commit has passed, whatever became of them: what a crash would read again."""
        return self._next - self._settled

    def restore(self, part: WaitingPart, records: Records, *, now: float) -> Joined:
        """Take up a stored part; call before `add`, oldest part first.

        Those of its halves that age by the clock go on ageing once all that came meanwhile is read.
        """
        self._began_at = now
        alive = np.flatnonzero(~part.gone)
        halves = _halves(records.take(alive), [_STORED] * len(alive), min(part.stored_at, now))
        for half, row in zip(halves, alive.tolist(), strict=True):
            half.part, half.part_row = part, row
        joined = self._match(halves)
        self._watermark.recall(_latest_time(halves))
        return joined

    def add(
        self,
        partition: str,
        records: Records,
        *,
        places: NDArray[np.int64],
        positions: Sequence[str],
        came_at: float,
        once: bool = False,
    ) -> Joined:
        """Take in what was read of one batch.

        `records` (n,) are those accepted, `places` (n,) their places among `positions`, which name all that
        the batch held. `came_at` is when the batch was taken in, in epoch seconds. With `once`, what
        comes again after its record became complete in this batch is a repetition, and waits for nothing.
        """
        first, self._next = self._next, self._next + len(positions)
        if len(positions):
            self._log.append((partition, first, positions))
        halves = _halves(records, (places + first).tolist(), came_at)
        self._watermark.see(partition, _latest_time(halves))
        return self._match(halves, once=once)

    def polled(self, *, found: bool) -> None:
        """The source was asked for more, and all that it gave was added."""
        self._watermark.polled(found=found)
        if not found:
            self._began_at = None

    def _match(self, halves: Sequence[_Half], *, once: bool = False) -> Joined:
        pairs: list[Pair] = []
        repeated: list[int] = []
        completed: set[str] = set()
        for half in halves:
            if half.id in completed:
                repeated.append(half.arrival)
                continue
            pair = self._pair(half)
            if pair is not None:
                pairs.append(pair)
                if once:
                    completed.add(half.id)
            elif self._waits_already(half):
                repeated.append(half.arrival)
                continue
            else:
                self._table(half)[half.id] = half
            if half.part is None:
                self._loose.append(half)
        return Joined(_records(pairs, self._schema), pairs, repeated)

    def _table(self, half: _Half) -> dict[str, _Half]:
        return self._labels if half.carries == LABEL_ONLY else self._features

    def _waits_already(self, half: _Half) -> bool:
        return half.id in self._table(half)

    def _pair(self, half: _Half) -> Pair | None:
        """What this half completes; the half that waited for it waits no longer."""
        if half.carries == COMPLETE:
            return half, None
        if half.carries == LABEL_ONLY:
            features = self._taken(self._features, half)
            return None if features is None else (features, half)
        label = self._taken(self._labels, half)
        return None if label is None else (half, label)

    def _taken(self, table: dict[str, _Half], half: _Half) -> _Half | None:
        """The other half of this one, which waits no longer; None: there is none, or it is too far apart."""
        other = table.get(half.id)
        if other is None or abs(other.time - half.time) > self._within:  # NaN, no time, is never apart
            return None
        return table.pop(half.id)

    def change(self, cut: Sequence[Pair], *, upto: int | None, now: float) -> WaitingChange:
        """What a commit that cuts these pairs must make durable; the join itself changes in `done`.

        `upto` is the arrival that the commit ends at; None: everything that was read. Halves after it are
        read again after a crash, and need nothing.
        """
        last = self._last(upto)
        used = [half for pair in cut for half in pair if half is not None]
        aged = self._aged(last, now)
        touched: dict[int, WaitingPart] = {}
        for half in [*used, *aged]:
            if half.part is not None:
                part = half.part
                after = touched.setdefault(part.sequence, replace(part, gone=part.gone.copy()))
                after.gone[half.part_row] = True
        gone = {half.arrival for half in [*used, *aged] if half.part is None}
        loose = takewhile(lambda half: half.arrival <= last, self._loose)
        kept = [half for half in loose if half.arrival not in gone]
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
        """The commit of this change is made; `part` is the row of what `change.keep` asked for."""
        last = self._last(upto)
        for half in [*change.used, *change.aged]:
            if half.part is not None:
                half.part.gone[half.part_row] = True
        for half in change.aged:
            del self._table(half)[half.id]
        if change.keep is not None:
            for row, half in enumerate(change.kept):
                half.part, half.part_row = part, row
                # Of the batch that it came in, most others are gone: let go of it.
                half.block, half.row = change.keep, row
        while self._loose and self._loose[0].arrival <= last:
            self._loose.popleft()
        self._settled = max(self._settled, last + 1)
        while self._log and self._log[0][1] <= last:
            partition, first, positions = self._log.popleft()
            if first + len(positions) > last + 1:
                self._log.appendleft((partition, last + 1, positions[last + 1 - first :]))
        if self._look_due(now):
            self._aged_at = (self._watermark.reading, now)

    def last_arrival(self, cut: Sequence[Pair]) -> int:
        """The arrival that completed the last of these pairs: what a commit that cuts them ends at."""
        return max((half.arrival for pair in cut for half in pair if half is not None), default=_STORED)

    def _moves(self, last: int) -> dict[str, str]:
        moves: dict[str, str] = {}
        for partition, first, positions in self._log:
            if first > last:
                break
            moves[partition] = positions[min(len(positions), last + 1 - first) - 1]
        return moves

    def _look_due(self, now: float) -> bool:
        """Whether enough time has gone by that more halves may be too old: not every commit looks at all."""
        time, clock = self._aged_at
        return self._watermark.reading > time + self._step or now > clock + self._step

    def overdue(self, now: float) -> bool:
        """Whether halves that waited too long are to be let go, though nothing is to be cut."""
        if self._aged(self._next - 1, now):
            return True
        if self._look_due(now):
            self._aged_at = (self._watermark.reading, now)
        return False

    def _aged(self, last: int, now: float) -> list[_Half]:
        """Halves that waited too long. Those that this process read after `last` are left alone."""
        if not self._look_due(now):
            return []
        read_to, began_at = self._watermark.reading, self._began_at
        return [
            half
            for table in (self._features, self._labels)
            for half in table.values()
            if half.arrival <= last and self._age(half, now, read_to, began_at) > self._within
        ]

    def _age(self, half: _Half, now: float, read_to: float, began_at: float | None) -> float:
        if _timely(half):
            return read_to - half.time
        return now - (half.came_at if began_at is None else max(half.came_at, began_at))


def _timely(half: _Half) -> bool:
    """Whether a half ages by its event time: it has one, and not one that only a wrong clock can give.

    One clock that is fast by more than a day must not make all other halves look old.
    """
    return half.time <= half.came_at + _DAY_SECONDS


def _latest_time(halves: Sequence[_Half]) -> float:
    return max((half.time for half in halves if _timely(half)), default=-math.inf)


def _halves(block: Records, arrivals: Sequence[int], came_at: float) -> list[_Half]:
    carries = [COMPLETE] * len(block) if block.carries is None else block.carries.tolist()
    columns = zip(block.ids.to_pylist(), block.times.tolist(), carries, arrivals, strict=True)
    return [
        _Half(name, time, carried, arrival, came_at, block, row)
        for row, (name, time, carried, arrival) in enumerate(columns)
    ]


def _records(pairs: Sequence[Pair], schema: RecordSchema) -> Records:
    """Complete records: features, time, key and groups of the one half, the label of the other."""
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


def _stack(halves: Sequence[_Half], schema: RecordSchema) -> Records:
    """The rows of these halves as records, taken block by block."""
    chunks: list[Records] = []
    start = 0
    for place in range(1, len(halves) + 1):
        if place == len(halves) or halves[place].block is not halves[start].block:
            rows = np.array([half.row for half in halves[start:place]], dtype=np.int64)
            chunks.append(halves[start].block.take(rows))
            start = place
    return join_records(chunks, schema)
