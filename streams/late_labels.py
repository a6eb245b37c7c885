"""Late labels in the ingest loop: joins features with labels, drops duplicates, stores unmatched records.

`streams.joining` decides which records belong together. This module adds what the loop needs around it: the
duplicate window, the count of dropped records, and the file of unmatched records that a commit names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.base import RawBatch, RecordSchema
from streams.duplicates import DuplicateWindow
from streams.held_out import HeldOut
from streams.joining import Join, Joined, Pair, WaitingChange, WaitingPart
from streams.records import FEATURES_ONLY, Records
from streams.state.experiences import Part
from streams.state.waiting import WaitingCommit
from streams.store.experiences import ExperienceStore
from streams.triggers.base import Features
from streams.wire.decode import Decoded

_MAX_UNCOMMITTED = 50_000
"""With this many records read since the last commit, one is made, whether or not a cut is due."""


@dataclass(frozen=True)
class Completed:
    """The outcome of one batch, or of one stored part."""

    records: Records
    """Records that are complete now, without duplicates and without those of golden sets."""
    pairs: Sequence[Pair]
    """The records that each of `records` was joined from."""
    features: Features
    """(n, *shape) features that came without their label, matched since or not."""


@dataclass(frozen=True)
class LateCommit:
    """The part of a commit that concerns late labels. Goes to `LateLabels.committed` once it is made."""

    moves: dict[str, str]
    """The new offset of each partition."""
    duplicates: int
    held_out: int
    """Records that were dropped when they became complete, because a golden set holds their id."""
    waiting: WaitingCommit
    change: WaitingChange
    upto: int | None
    """Arrival number of the last record that the commit covers; None: it covers all."""
    now: float


class LateLabels:
    """The unmatched records of one ingest. Not thread-safe."""

    def __init__(
        self, schema: RecordSchema, *, store: ExperienceStore, seen_ids: DuplicateWindow, held_out: HeldOut
    ) -> None:
        """Adds the ids of complete records to `seen_ids`; the caller notes there what was committed."""
        self._schema = schema
        self._store = store
        self._seen_ids = seen_ids
        self._held_out = held_out
        self._join = Join(schema)
        self._dropped: list[int] = []
        """Arrival numbers of the dropped records that no commit has counted yet."""
        self._dropped_pairs: list[Pair] = []
        """Pairs that turned out to be duplicates and that no commit has covered yet."""
        self._held_pairs: list[Pair] = []
        """Pairs whose id a golden set holds and that no commit has covered yet."""

    @property
    def waiting(self) -> int:
        """Unmatched records: features that wait for a label, and labels that wait for features."""
        return self._join.waiting

    def restore(self, part: WaitingPart, *, now: float) -> Completed:
        """Read a stored part again; call before `add`, oldest part first.

        Raises:
            ExperienceDamagedError: its file is missing or damaged.
        """
        records = self._store.records(part.digest, self._schema)
        joined = self._join.restore(part, records, now=now)
        return self._completed(joined, records.take(~part.gone))

    def add(self, batch: RawBatch, decoded: Decoded, *, came_at: float) -> Completed:
        """Take in the records of one batch, which came at `came_at` in epoch seconds."""
        records, indices, first = decoded.records, decoded.indices, self._join.next_arrival
        if self._seen_ids.wanted and len(records):
            known = self._seen_ids.knows(records.ids)
            self._dropped += (indices[known] + first).tolist()
            records, indices = records.take(~known), indices[~known]
        joined = self._join.add(
            batch.partition,
            records,
            indices=indices,
            positions=batch.positions,
            came_at=came_at,
            # A repeat in a later batch is found by the duplicate window.
            once=self._seen_ids.wanted,
        )
        return self._completed(joined, records)

    def polled(self, *, found: bool) -> None:
        """Note that the source was polled, and that all it gave was added."""
        self._join.polled(found=found)

    def commit_due(self, now: float) -> bool:
        """Whether a commit is to be made without a cut: much was read since the last, or records aged out."""
        return self._join.unsettled >= _MAX_UNCOMMITTED or self._join.overdue(now)

    def prepare(self, pairs: Sequence[Pair], *, cut: bool, now: float) -> LateCommit:
        """Store the unmatched records that the next commit covers, and return what it must contain.

        With a cut, `pairs` are those in the experience, and the commit ends at the record that completed the
        last of them; without one it covers everything that was read.
        """
        join = self._join
        upto = join.last_arrival(pairs) if cut else None
        last = self._last(upto)
        again = self._upto(self._dropped_pairs, last)
        held = self._upto(self._held_pairs, last)
        change = join.change([*pairs, *again, *held], upto=upto, now=now)
        new = None
        if change.keep is not None:
            new = Part(self._store.write(change.keep, self._schema), len(change.keep))
        return LateCommit(
            moves=change.moves,
            duplicates=sum(arrival <= last for arrival in self._dropped),
            held_out=len(held),
            waiting=WaitingCommit(new, change.touched, change.aged_out),
            change=change,
            upto=upto,
            now=now,
        )

    def committed(self, commit: LateCommit, part: WaitingPart | None) -> None:
        """Note that the commit is made; `part` is the row of the unmatched records that it stored."""
        last = self._last(commit.upto)
        self._join.done(commit.change, part, upto=commit.upto, now=commit.now)
        self._dropped = [arrival for arrival in self._dropped if arrival > last]
        self._dropped_pairs = self._after(self._dropped_pairs, last)
        self._held_pairs = self._after(self._held_pairs, last)

    def _upto(self, pairs: Sequence[Pair], last: int) -> list[Pair]:
        return [pair for pair in pairs if self._join.last_arrival([pair]) <= last]

    def _after(self, pairs: Sequence[Pair], last: int) -> list[Pair]:
        return [pair for pair in pairs if self._join.last_arrival([pair]) > last]

    def _last(self, upto: int | None) -> int:
        return self._join.next_arrival - 1 if upto is None else upto

    def _completed(self, joined: Joined, came: Records) -> Completed:
        records, pairs = joined.records, joined.pairs
        self._dropped += joined.repeated
        if len(records):
            kept, held = self._held_out.sift(records.ids, self._seen_ids)
            again = _chosen(pairs, ~(kept | held))
            # Count as many as were sent: unjoined, each of the two would have been dropped.
            self._dropped += [
                self._join.last_arrival([pair]) for pair in again for one in pair if one is not None
            ]
            self._dropped_pairs += again
            self._held_pairs += _chosen(pairs, held)
            if not kept.all():
                records, pairs = records.take(kept), _chosen(pairs, kept)
        if came.carries is None:
            return Completed(records, pairs, came.features[:0])
        early = (came.carries == FEATURES_ONLY) & ~self._held_out.among(came.ids)
        return Completed(records, pairs, came.features[early])


def _chosen(pairs: Sequence[Pair], chosen: NDArray[np.bool_]) -> list[Pair]:
    return [pair for pair, is_chosen in zip(pairs, chosen, strict=True) if is_chosen]


def late_labels(
    schema: RecordSchema, *, store: ExperienceStore, seen_ids: DuplicateWindow, held_out: HeldOut
) -> LateLabels | None:
    """The unmatched records of a stream whose labels may come late; None: they may not."""
    if not schema.late_labels:
        return None
    return LateLabels(schema, store=store, seen_ids=seen_ids, held_out=held_out)
