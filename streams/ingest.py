"""The exactly-once loop: poll, decode, cut, write, commit, trim.

Files are written before the transaction that names them, and the offsets move in that same transaction. A
crash before it leaves orphan files and unmoved offsets: the same records are read again and give the same
files. A crash after it finds the offsets moved. So every record is in exactly one experience, or is a dead
letter, or was a duplicate within the declared window, or waits for its label, or aged out without one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.base import (
    AnnouncingSource,
    DataLostError,
    FencedError,
    ForgettingSource,
    RawBatch,
    RecordSchema,
    Source,
    SourceError,
    TrimmedSource,
    select,
)
from streams.breaker import BadShare, CircuitBreaker
from streams.duplicates import DuplicateWindow
from streams.joining import Join, Joined, Pair
from streams.pending import Chunk, divide, part_records
from streams.records import FEATURES_ONLY, LabelMap, Records
from streams.split import PARTS, TRAIN, Split, parts_of
from streams.state.dead_letters import DeadLetter, letter_of
from streams.state.manifest import (
    AlsoInTransaction,
    Commit,
    Committed,
    CutExperience,
    ExperienceRow,
    Manifest,
    Part,
    Span,
    WaitingCommit,
)
from streams.store.experiences import ExperienceStore
from streams.triggers.catalog import Cut, Surroundings, TriggerConfig
from streams.wire.decode import Decoded, decode

MAX_EXPERIENCE_BYTES = 256 * 1024 * 1024
"""Pending records of this size are cut, whatever the trigger says: one experience is one file in memory."""

_POLL_BYTES = 32 * 1024 * 1024
_MOST_POLLED, _LEAST_POLLED = 65_536, 256
_SEEN_AT_A_TIME = 8_192
_FORGET_SECONDS = 60.0
_LOOSE_HALVES = 50_000
"""Late labels only: with so many payloads read that no commit has passed, one is made, cut or no cut."""


class Ingest:
    """The loop of one pipeline. One at a time: of two, the slower one meets `FencedError` and must stop.

    After any exception but `SourceError` it must be closed, and another one opened.
    """

    def __init__(
        self,
        pipeline: str,
        schema: RecordSchema,
        *,
        source: Source,
        trigger: TriggerConfig,
        split: Split,
        store: ExperienceStore,
        manifest: Manifest,
        also: AlsoInTransaction | None = None,
        surroundings: Surroundings | None = None,
        duplicate_window: int = 0,
        breaker: CircuitBreaker | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the source at the committed cursors. `also` runs in the transaction of every experience.

        Raises:
            SourceError: the source cannot be opened; `DataLostError` where it no longer holds what comes
                after the cursors.
            FencedError: another process has committed between the look at the cursors and the opening.
            ExperienceDamagedError: a stored file that must be read again is missing or damaged.
        """
        self._pipeline = pipeline
        self._schema = schema
        self._record_bytes = schema.size * np.dtype(schema.dtype).itemsize
        self._source = source
        self._trigger = trigger
        self._split = split
        self._store = store
        self._manifest = manifest
        self._also = also
        self._clock = clock
        self._surroundings = replace(surroundings or Surroundings(), reference=self._reference)
        self._bad_share = BadShare(breaker or CircuitBreaker(), pipeline)
        self._revision = manifest.revision(pipeline)
        self._committed = manifest.cursors(pipeline)
        self._labels = LabelMap(schema, manifest.classes(pipeline) or None)
        self._classes_stored = len(self._labels)
        self._seen_ids = DuplicateWindow(duplicate_window)
        self._join = Join(schema) if schema.late_labels else None
        self._chunks: list[Chunk] = []
        self._refused: list[DeadLetter] = []
        self._came = self._newly_refused = 0
        self._untrimmed = False
        self._forget_at = 0.0
        self._dropped: list[int] = []
        self._dropped_pairs: list[Pair] = []
        self._read = dict(self._committed)
        self._begin_watch(manifest.trigger_state(pipeline))
        self._recall_ids(duplicate_window)
        self._recall_halves()
        self._polled = min(_MOST_POLLED, max(_LEAST_POLLED, _POLL_BYTES // self._record_bytes))
        with self._lost_to_nobody():
            source.open(self._committed)
        self._note_arrivals()

    @property
    def pending(self) -> int:
        """Complete, accepted records that were read and are not yet in an experience."""
        return sum(len(chunk) for chunk in self._chunks)

    @property
    def waiting(self) -> int:
        """Records that wait for their label, and labels that wait for their record."""
        return self._join.waiting if self._join else 0

    def step(self, timeout_seconds: float) -> ExperienceRow | None:
        """One turn: read on unless a cut is already due, and cut at most one experience.

        Returns:
            The experience that was cut and committed; None when the trigger waits for more.

        Raises:
            FencedError: another process took the pipeline over. Close this one; nothing of it is lost.
            SourceError: the source cannot be read. The step can be tried again, but for
                `SourceStoppedError`: then a person must look first.
        """
        cut = self._decide()
        if cut is None:
            self._poll(timeout_seconds)
            cut = self._decide()
        if cut is None:
            self._commit_rest()
            return None
        return self._cut(cut)

    def cut(self, reason: str) -> ExperienceRow | None:
        """Cut everything that the source holds now into one experience, whatever the trigger says.

        Returns:
            The experience; None when no record is pending, or when all that are pending fall in the gate and
            audit parts: these stay pending until one to train on arrives.
        """
        while self._bytes() < MAX_EXPERIENCE_BYTES and self._poll(0.0):
            self._commit_rest()
        cut = None
        if self._chunks:
            forced = self._watch.forced(reason, self._clock())
            # The watch may have seen less: what came after its own cut, or just now.
            decision = {**forced.decision, "records": self.pending}
            cut = self._with_training_records(replace(forced, records=self.pending, decision=decision))
        if cut is None:
            self._commit_rest()
            return None
        return self._cut(cut)

    def close(self) -> None:
        """Release the source. What is pending is read again by the next ingest. Closing twice is allowed."""
        self._source.close()

    def _poll(self, timeout_seconds: float) -> bool:
        """Read on and decode; whether anything came."""
        with self._lost_to_nobody():
            batches = self._source.poll(self._polled, timeout_seconds)
        self._note_arrivals()
        for batch in batches:
            self._add(batch)
        if self._join is not None:
            self._join.polled(found=bool(batches))
        return bool(batches)

    def _note_arrivals(self) -> None:
        """Commit which partitions came: of one that goes before it is read, nothing else would tell."""
        if isinstance(self._source, AnnouncingSource):
            arrived = self._source.arrived(self._committed)
            if arrived:
                self._commit(arrived)

    @contextmanager
    def _lost_to_nobody(self) -> Iterator[None]:
        """What this process misses may be what another one has committed and trimmed meanwhile.

        Raises:
            FencedError: it is so: nothing is lost, and nobody has to look.
        """
        try:
            yield
        except DataLostError as error:
            try:
                self._manifest.check(self._pipeline, revision=self._revision)
            except FencedError as fenced:
                raise fenced from error
            raise

    def _add(self, batch: RawBatch) -> None:
        decoded = decode(batch, self._schema, self._labels)
        self._refused.extend(letter_of(batch, bad) for bad in decoded.rejected)
        self._came += len(batch.positions)
        self._read[batch.partition] = batch.positions[-1]
        if self._join is None:
            self._take(batch, decoded)
        else:
            self._take_halves(self._join, batch, decoded)

    def _take(self, batch: RawBatch, decoded: Decoded) -> None:
        """What came complete waits to be cut, but for what came before."""
        records, positions = decoded.records, decoded.positions
        dropped = np.zeros(0, dtype=np.int64)
        if len(batch.ids):
            # Named by where they stand, which a later file of the same name has as well.
            self._seen_ids.pass_over(len(records))
        elif self._seen_ids.wanted and len(records):
            new = self._seen_ids.add(records.ids)
            if not new.all():
                dropped = np.cumsum(new, dtype=np.int64)[~new]
                records, positions = records.take(new), select(positions, np.flatnonzero(new))
        if len(records) or len(dropped):
            self._append(batch, records, positions=positions, dropped=dropped)

    def _take_halves(self, join: Join, batch: RawBatch, decoded: Decoded) -> None:
        """What came waits for its other half; what became complete waits to be cut."""
        records, places, first = decoded.records, decoded.places, join.next_arrival
        if self._seen_ids.wanted and len(records):
            known = self._seen_ids.knows(records.ids)
            self._dropped += (places[known] + first).tolist()
            records, places = records.take(~known), places[~known]
        joined = join.add(
            batch.partition,
            records,
            places=places,
            positions=batch.positions,
            came_at=self._clock(),
            # What comes again in a later batch, the window knows.
            once=self._seen_ids.wanted,
        )
        self._see_apart(records)
        self._take_joined(join, joined, batch=batch)

    def _see_apart(self, records: Records) -> None:
        """Features tell of a shift as soon as they come, whether or not a label ever does."""
        if records.carries is not None:
            apart = records.features[records.carries == FEATURES_ONLY]
            if len(apart):
                self._watch.see_features(apart)

    def _take_joined(self, join: Join, joined: Joined, *, batch: RawBatch | None) -> None:
        records, pairs = joined.records, joined.pairs
        self._dropped += joined.repeated
        if self._seen_ids.wanted and len(records):
            new = self._seen_ids.add(records.ids)
            again = [pair for pair, is_new in zip(pairs, new, strict=True) if not is_new]
            # As many as were sent: apart, each of the two halves would have been dropped as well.
            self._dropped += [
                join.last_arrival([pair]) for pair in again for half in pair if half is not None
            ]
            self._dropped_pairs += again
            records = records.take(new)
            pairs = [pair for pair, is_new in zip(pairs, new, strict=True) if is_new]
        if len(records):
            self._append(batch, records, pairs=pairs)

    def _append(
        self,
        batch: RawBatch | None,
        records: Records,
        *,
        positions: Sequence[str] = (),
        dropped: NDArray[np.int64] | None = None,
        pairs: Sequence[Pair] = (),
    ) -> None:
        self._chunks.append(
            Chunk(
                partition=batch.partition if batch else "",
                records=records,
                positions=positions,
                parts=parts_of(records.split_keys, self._split),
                arrived_at=batch.arrived_at if batch else np.nan,
                dropped=np.zeros(0, dtype=np.int64) if dropped is None else dropped,
                pairs=pairs,
            )
        )

    def _begin_watch(self, state: Mapping[str, Any]) -> None:
        self._watch = self._trigger.watch(state, self._surroundings)
        self._shown = 0
        self._due: Cut | None = None

    def _decide(self) -> Cut | None:
        """The cut that is due, if any, as long as there is something to train on in it."""
        now = self._clock()
        for records, arrived_at in self._unseen():
            self._due = self._watch.see(records, arrived_at, now)
            self._shown += len(records)
            if self._due is not None:
                break
        if self._due is None:
            self._due = self._watch.due(now)
        if self._due is None and self._bytes() >= MAX_EXPERIENCE_BYTES:
            most = MAX_EXPERIENCE_BYTES // 2**20
            reason = f"The records that wait have reached {most} MB, the most in one experience."
            self._due = replace(self._watch.forced(reason, now), decision={"trigger": "size"})
        return None if self._due is None else self._with_training_records(self._due)

    def _unseen(self) -> Iterator[tuple[Records, float]]:
        """What the watch has not seen, a little at a time: the rest may have to be shown to the next one."""
        if self._due is not None:
            return
        before = 0
        for chunk in self._chunks:
            start = max(0, self._shown - before)
            for place in range(start, len(chunk), _SEEN_AT_A_TIME):
                yield chunk.records.take(slice(place, place + _SEEN_AT_A_TIME)), chunk.arrived_at
            before += len(chunk)

    def _bytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks)

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

    def _cut(self, cut: Cut) -> ExperienceRow:
        taken, left = divide(self._chunks, cut.records)
        before = len(self._chunks)
        experience = self._write(taken, cut)
        if self._join is None:
            # Each partition moves to its last record in the cut, not past payloads that were refused after
            # it: so the slice is the same wherever a poll happened to end.
            moves = {chunk.partition: chunk.positions[-1] for chunk in taken if len(chunk)}
            duplicates = sum(len(chunk.dropped) for chunk in taken)
            row = self._commit(moves, experience=experience, duplicates=duplicates).experience
        else:
            pairs = [pair for chunk in taken for pair in chunk.pairs]
            row = self._commit_halves(self._join, pairs, experience).experience
        assert row is not None, "a commit with an experience returns its row"
        self._chunks = [*left, *self._chunks[before:]]
        self._seen_ids.committed(row.rows)
        self._begin_watch(cut.state)
        self._follow_up()
        return row

    def _commit_rest(self) -> None:
        """Without a cut: store what was refused, so that it is seen, and halves that only this process holds.

        A partition moves on past duplicates and what was refused when nothing of it is pending; else its
        offset stays, and the same dead letters are met again after a restart, which changes nothing. With
        late labels it moves on when enough was read that many halves are stored at a time.
        """
        join = self._join
        if join is not None and (join.unsettled >= _LOOSE_HALVES or join.overdue(self._clock())):
            self._commit_halves(join, [], None)
        else:
            waiting = {chunk.partition for chunk in self._chunks if len(chunk)}
            idle = [chunk for chunk in self._chunks if chunk.partition not in waiting]
            touched = {chunk.partition for chunk in idle} | {letter.partition for letter in self._refused}
            moves = {name: self._settled(name, waiting) for name in touched}
            if moves:
                self._commit(moves, duplicates=sum(len(chunk.dropped) for chunk in idle))
                self._chunks = [chunk for chunk in self._chunks if chunk.partition in waiting]
        self._follow_up()

    def _settled(self, partition: str, waiting: Set[str]) -> str:
        """How far a partition is done without a cut."""
        if self._join is not None or partition in waiting:
            return self._committed.get(partition, "")
        return self._read[partition]

    def _commit_halves(
        self, join: Join, pairs: Sequence[Pair], experience: CutExperience | None
    ) -> Committed:
        upto = join.last_arrival(pairs) if experience is not None else None
        last = join.next_arrival - 1 if upto is None else upto
        again = [pair for pair in self._dropped_pairs if join.last_arrival([pair]) <= last]
        now = self._clock()
        change = join.change([*pairs, *again], upto=upto, now=now)
        new = None
        if change.keep is not None:
            new = Part(self._store.write(change.keep, self._schema), len(change.keep))
        committed = self._commit(
            change.moves,
            experience=experience,
            duplicates=sum(arrival <= last for arrival in self._dropped),
            waiting=WaitingCommit(new, change.touched, change.aged_out),
        )
        join.done(change, committed.waiting, upto=upto, now=now)
        self._dropped = [arrival for arrival in self._dropped if arrival > last]
        self._dropped_pairs = [pair for pair in self._dropped_pairs if join.last_arrival([pair]) > last]
        return committed

    def _commit(
        self,
        moves: Mapping[str, str],
        *,
        experience: CutExperience | None = None,
        duplicates: int = 0,
        waiting: WaitingCommit | None = None,
    ) -> Committed:
        names = self._labels.names if len(self._labels) > self._classes_stored else ()
        commit = Commit(
            self._revision,
            {name: Span(self._committed.get(name, ""), end) for name, end in moves.items()},
            dead_letters=self._refused,
            experience=experience,
            classes=names if self._schema.open_classes else (),
            waiting=waiting,
            duplicates=duplicates,
        )
        committed = self._manifest.commit(self._pipeline, commit, also=self._also)
        self._revision += 1
        self._classes_stored = len(self._labels)
        self._refused = []
        self._committed.update(moves)
        self._newly_refused += committed.new_dead_letters
        self._untrimmed = True
        return committed

    def _follow_up(self) -> None:
        """What a commit brings with it, once this process holds nothing any more that is committed: both may
        raise, and the step may then be tried again."""
        if self._untrimmed and isinstance(self._source, TrimmedSource):
            self._source.trim(self._committed)
        self._untrimmed = False
        self._forget_partitions()
        came, refused = self._came, self._newly_refused
        self._came = self._newly_refused = 0
        self._bad_share.note(came, refused)

    def _forget_partitions(self) -> None:
        """Now and then, let go of the offsets of partitions that are gone for good."""
        if not isinstance(self._source, ForgettingSource) or self._clock() < self._forget_at:
            return
        self._forget_at = self._clock() + _FORGET_SECONDS
        gone = self._source.forget(self._committed)
        if gone:
            self._manifest.forget(self._pipeline, gone, revision=self._revision)
            self._revision += 1
        for partition in gone:
            del self._committed[partition]

    def _write(self, taken: Sequence[Chunk], cut: Cut) -> CutExperience:
        # The order of partitions is fixed, so that a slice does not depend on which of them answered first.
        ordered = sorted(taken, key=lambda chunk: chunk.partition)
        parts = [part_records(ordered, place, self._schema) for place in range(len(PARTS))]
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._store.write_parts, parts, self._schema)
            self._read_ahead(writing, most=2 * cut.records)
            digests = writing.result()
        written = dict(zip(PARTS, map(Part, digests, map(len, parts)), strict=True))
        return CutExperience(
            train=written["train"],
            gate=written["gate"],
            audit=written["audit"],
            schema_fingerprint=self._schema.fingerprint(),
            cut_reason=cut.reason,
            trigger_state=cut.state,
            decision=cut.decision,
        )

    def _read_ahead(self, writing: Future[list[str]], *, most: int) -> None:
        """Read and decode what comes next while the disk is busy: it waits behind what is pending.

        `most` records, what is being cut among them: with a fast source and a slow disk, memory would grow
        from cut to cut.
        """
        if self._join is not None:
            return  # which halves a commit must store is settled by what was read before it
        while not writing.done() and self.pending < most and self._bytes() < MAX_EXPERIENCE_BYTES:
            try:
                if not self._poll(0.0):
                    return
            except SourceError:
                # What is being cut is not touched by it; the next step's own poll meets it again.
                return

    def _reference(self) -> NDArray[Any] | None:
        """The features of the last experience's train part."""
        last = self._manifest.latest(self._pipeline)
        if not last or last[0].train_removed_at is not None:
            return None
        return self._store.open(last[0].train.digest, index=last[0].index).inputs

    def _recall_ids(self, window: int) -> None:
        recalled: list[ExperienceRow] = []
        index = len(self._manifest.experiences(self._pipeline)) if window else 0
        while index and sum(row.rows for row in recalled) < window:
            index -= 1
            row = self._manifest.experience(self._pipeline, index)
            assert row is not None, "indices have no gaps"
            recalled.append(row)
        for row in reversed(recalled):
            for part in (row.train, row.gate, row.audit):
                if part is not row.train or row.train_removed_at is None:
                    self._seen_ids.add(self._store.records(part.digest, self._schema).ids)
            self._seen_ids.committed(row.rows)

    def _recall_halves(self) -> None:
        if self._join is None:
            return
        for part in self._manifest.waiting(self._pipeline):
            records = self._store.records(part.digest, self._schema)
            self._see_apart(records.take(~part.gone))
            joined = self._join.restore(part, records, now=self._clock())
            self._take_joined(self._join, joined, batch=None)
