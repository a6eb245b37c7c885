"""The exactly-once ingest loop: poll, decode, cut, write, commit, trim.

Files are written before the transaction that names them, and the offsets move in that same transaction. A
crash before it leaves orphan files and unmoved offsets: the same records are read again and give the same
files. A crash after it finds the offsets moved. So every record is in exactly one experience, or is a dead
letter, or was a duplicate within the declared window, or is in a golden set, or is unmatched and waits, or
aged out unmatched.
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.base import (
    AnnouncingSource,
    ForgettingSource,
    RawBatch,
    RecordSchema,
    Source,
    SourceError,
    TrimmedSource,
    select,
)
from streams.breaker import BadShare, CircuitBreaker
from streams.commits import Committer, experience_of
from streams.duplicates import DuplicateWindow
from streams.held_out import HeldOut
from streams.joining import Pair
from streams.late_labels import Completed, LateLabels, late_labels
from streams.pending import Chunk, Pending, part_records, records_at_once
from streams.recall import recall_ids
from streams.records import Records
from streams.split import PARTS, Split, parts_of
from streams.state.dead_letters import DeadLetter, dead_letter_of
from streams.state.manifest import (
    AlsoInTransaction,
    Committed,
    CutExperience,
    ExperienceRow,
    Manifest,
    Part,
    WaitingCommit,
)
from streams.store.experiences import ExperienceStore
from streams.triggers.catalog import Cut, TriggerConfig, TriggerContext
from streams.wire.decode import Decoded, decode

_FORGET_SECONDS = 60.0


@dataclass(frozen=True)
class IngestConfig:
    """The settings of one pipeline's ingest."""

    pipeline: str
    schema: RecordSchema
    trigger: TriggerConfig
    split: Split
    duplicate_window: int = 0
    """How many accepted records back a repeated id is dropped; 0: none is."""
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)


class Ingest:
    """The ingest loop of one pipeline. Of two at a time, the slower one gets `FencedError` and must stop.

    After any exception but `SourceError` it must be closed, and another one opened.
    """

    progressed = False
    """Whether the last step read or cut anything: if so, there may be more at once."""

    def __init__(
        self,
        config: IngestConfig,
        *,
        source: Source,
        store: ExperienceStore,
        manifest: Manifest,
        also: AlsoInTransaction | None = None,
        context: TriggerContext | None = None,
        held_out: Callable[[], HeldOut] = HeldOut,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the source at the committed cursors. `also` runs in the transaction of every experience.
        `held_out` is called once the stream's revision is read: whoever adds ids later raises that revision.

        Raises:
            SourceError: the source cannot be opened; `DataLostError` where it no longer holds what comes
                after the cursors.
            FencedError: another process has committed while this one was opening.
            ExperienceDamagedError: a stored file that must be read again is missing or damaged.
        """
        pipeline, schema = config.pipeline, config.schema
        self._pipeline = pipeline
        self._schema = schema
        self._source = source
        self._split = config.split
        self._store = store
        self._manifest = manifest
        self._clock = clock
        self._bad_share = BadShare(config.breaker, pipeline)
        self._committer = Committer(pipeline, schema, manifest=manifest, also=also)
        self._seen_ids = DuplicateWindow(config.duplicate_window)
        self._held_out = held_out()
        self._late = late_labels(schema, store=store, seen_ids=self._seen_ids, held_out=self._held_out)
        self._refused: list[DeadLetter] = []
        self._came = self._newly_refused = 0
        self._untrimmed, self._forget_at = False, 0.0
        self._read = dict(self._committer.cursors)
        self._pending = Pending(
            config.trigger,
            replace(context or TriggerContext(), reference=self._reference),
            state=manifest.trigger_state(pipeline),
        )
        recall_ids(self._seen_ids, pipeline, schema, manifest=manifest, store=store)
        self._recall_unmatched()
        self._polled = records_at_once(schema)
        with self._committer.fenced_if_lost():
            source.open(self._committer.cursors)
        self._note_arrivals()

    @property
    def pending(self) -> int:
        """Complete, accepted records that were read and are not yet in an experience."""
        return len(self._pending)

    @property
    def waiting(self) -> int:
        """Unmatched records: features that wait for a label, and labels that wait for features."""
        return self._late.waiting if self._late else 0

    def step(self, timeout_seconds: float) -> ExperienceRow | None:
        """Read on unless a cut is already due, and cut at most one experience.

        Returns:
            The experience that was cut and committed; None when the trigger waits for more.

        Raises:
            FencedError: another process took the pipeline over. Close this one; no record is lost.
            SourceError: the source cannot be read. The step can be tried again, but for
                `SourceStoppedError`: then a person must look first.
        """
        cut = self._pending.due(self._clock())
        self.progressed = cut is not None
        if cut is None:
            self.progressed = self._poll(timeout_seconds)
            cut = self._pending.due(self._clock())
        if cut is None:
            self._commit_rest()
            return None
        return self._cut(cut)

    def overdue(self) -> bool:
        """Whether a step has something to do though nothing new came: time alone makes a cut due."""
        now = self._clock()
        return self._pending.due(now) is not None or bool(self._late and self._late.commit_due(now))

    def cut(self, reason: str) -> ExperienceRow | None:
        """Cut everything that the source holds now into one experience, whatever the trigger says.

        Returns:
            The experience; None when no record is pending, or when all that are pending fall in the gate and
            audit parts: these stay pending until one to train on arrives.
        """
        self.progressed = False
        while not self._pending.full and self._poll(0.0):
            self._commit_rest()
        cut = self._pending.cut_of_all(reason, self._clock())
        if cut is None:
            self._commit_rest()
            return None
        return self._cut(cut)

    def close(self) -> None:
        """Close the source. The next ingest reads the pending records again. Closing twice is allowed."""
        self._source.close()

    def _poll(self, timeout_seconds: float) -> bool:
        """Read on and decode; True where anything came."""
        with self._committer.fenced_if_lost():
            batches = self._source.poll(self._polled, timeout_seconds)
        self._note_arrivals()
        for batch in batches:
            self._add(batch)
        if self._late is not None:
            self._late.polled(found=bool(batches))
        return bool(batches)

    def _note_arrivals(self) -> None:
        """Commit which partitions there are, so that one that goes before it is read is noticed."""
        if isinstance(self._source, AnnouncingSource):
            arrived = self._source.arrived(self._committer.cursors)
            if arrived:
                self._commit(arrived)

    def _add(self, batch: RawBatch) -> None:
        decoded = decode(batch, self._schema, self._committer.labels)
        self._refused.extend(dead_letter_of(batch, bad) for bad in decoded.rejected)
        self._came += len(batch.positions)
        self._read[batch.partition] = batch.positions[-1]
        if self._late is None:
            self._take(batch, decoded)
        else:
            self._take_completed(self._late.add(batch, decoded, came_at=self._clock()), batch)

    def _take(self, batch: RawBatch, decoded: Decoded) -> None:
        """Queue complete records to be cut, without duplicates and without those of golden sets.

        The trigger does not see these, so that none of them is counted towards a cut.
        """
        records, positions = decoded.records, decoded.positions
        if not len(records):
            return
        if len(batch.ids):
            # These ids are file names and offsets, which a later file of the same name has as well.
            held = self._held_out.among(records.ids)
            kept = ~held
            self._seen_ids.pass_over(int(kept.sum()))
        else:
            kept, held = self._held_out.sift(records.ids, self._seen_ids)
        if not kept.all():
            records, positions = records.take(kept), select(positions, np.flatnonzero(kept))
        before = np.cumsum(kept, dtype=np.int64)
        chunk = self._chunk(batch, records, positions=positions)
        self._pending.append(replace(chunk, dropped=before[~(kept | held)], held_out=before[held]))

    def _take_completed(self, completed: Completed, batch: RawBatch | None) -> None:
        """Queue records that became complete, and show the trigger features whose label is still to come."""
        if len(completed.features):
            # They show a shift as soon as they come, whether or not a label ever does.
            self._pending.see_features(completed.features)
        if len(completed.records):
            self._pending.append(self._chunk(batch, completed.records, pairs=completed.pairs))

    def _chunk(
        self,
        batch: RawBatch | None,
        records: Records,
        *,
        positions: Sequence[str] = (),
        pairs: Sequence[Pair] = (),
    ) -> Chunk:
        return Chunk(
            partition=batch.partition if batch else "",
            records=records,
            positions=positions,
            parts=parts_of(records.split_keys, self._split),
            arrived_at=batch.arrived_at if batch else np.nan,
            pairs=pairs,
        )

    def _cut(self, cut: Cut) -> ExperienceRow:
        taken = self._pending.taken_by(cut)
        experience = self._write(taken, cut)
        if self._late is None:
            # Each partition moves to its last record in the cut, and not past payloads refused after that: so
            # the slice is the same wherever a poll happened to end.
            moves = {chunk.partition: chunk.positions[-1] for chunk in taken if len(chunk)}
            row = self._commit(moves, experience=experience, dropped=taken).experience
        else:
            pairs = [pair for chunk in taken for pair in chunk.pairs]
            row = self._commit_late(self._late, pairs, experience).experience
        assert row is not None, "a commit with an experience returns its row"
        self._pending.cut_made(cut)
        self._seen_ids.committed(row.rows)
        self._follow_up()
        return row

    def _commit_rest(self) -> None:
        """Commit what needs no cut: dead letters, so that they are seen, and unmatched records.

        A partition moves on past dropped records and dead letters when nothing of it is pending; else its
        offset stays, and the same dead letters are met again after a restart, which changes nothing. With
        late labels it moves on when enough was read that many unmatched records are stored at a time.
        """
        late = self._late
        if late is not None and late.commit_due(self._clock()):
            self._commit_late(late, [], None)
        else:
            idle = self._pending.idle()
            touched = {chunk.partition for chunk in idle} | {each.partition for each in self._refused}
            pending = self._pending.partitions
            moves = {name: self._settled(name, pending) for name in touched}
            if moves:
                self._commit(moves, dropped=idle)
                self._pending.drop_idle()
        self._follow_up()

    def _settled(self, partition: str, pending: Set[str]) -> str:
        """The cursor up to which a partition needs no cut."""
        if self._late is not None or partition in pending:
            return self._committer.cursors.get(partition, "")
        return self._read[partition]

    def _commit_late(
        self, late: LateLabels, pairs: Sequence[Pair], experience: CutExperience | None
    ) -> Committed:
        prepared = late.prepare(pairs, cut=experience is not None, now=self._clock())
        committed = self._commit(
            prepared.moves,
            experience=experience,
            duplicates=prepared.duplicates,
            held_out=prepared.held_out,
            waiting=prepared.waiting,
        )
        late.committed(prepared, committed.waiting)
        return committed

    def _commit(
        self,
        moves: Mapping[str, str],
        *,
        experience: CutExperience | None = None,
        dropped: Sequence[Chunk] = (),
        duplicates: int = 0,
        held_out: int = 0,
        waiting: WaitingCommit | None = None,
    ) -> Committed:
        committed = self._committer.commit(
            moves,
            dead_letters=self._refused,
            experience=experience,
            duplicates=duplicates + sum(len(chunk.dropped) for chunk in dropped),
            held_out=held_out + sum(len(chunk.held_out) for chunk in dropped),
            waiting=waiting,
        )
        self._refused = []
        self._newly_refused += committed.new_dead_letters
        self._untrimmed = True
        return committed

    def _follow_up(self) -> None:
        """Trim the source and check the circuit breaker after a commit.

        Called once this process holds nothing that is committed. Both may raise; the step is then retried.
        """
        if self._untrimmed and isinstance(self._source, TrimmedSource):
            self._source.trim(self._committer.cursors)
        self._untrimmed = False
        self._forget_partitions()
        came, refused = self._came, self._newly_refused
        self._came = self._newly_refused = 0
        self._bad_share.note(came, refused)

    def _forget_partitions(self) -> None:
        """Once a minute, delete the offsets of partitions that are gone for good."""
        if not isinstance(self._source, ForgettingSource) or self._clock() < self._forget_at:
            return
        self._forget_at = self._clock() + _FORGET_SECONDS
        self._committer.forget(self._source.forget(self._committer.cursors))

    def _write(self, taken: Sequence[Chunk], cut: Cut) -> CutExperience:
        # The order of partitions is fixed, so that a slice does not depend on which of them answered first.
        ordered = sorted(taken, key=lambda chunk: chunk.partition)
        parts = [part_records(ordered, part, self._schema) for part in range(len(PARTS))]
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._store.write_parts, parts, self._schema)
            self._read_ahead(writing, most=2 * cut.records)
            digests = writing.result()
        return experience_of(cut, self._schema, list(map(Part, digests, map(len, parts))))

    def _read_ahead(self, writing: Future[list[str]], *, most: int) -> None:
        """Read and decode the next records while the disk is busy; they queue behind those pending.

        `most` bounds the pending records, those being cut included: otherwise a fast source and a slow disk
        would make memory grow from cut to cut.
        """
        if self._late is not None:
            return  # which unmatched records a commit must store depends on what was read before it
        while not writing.done() and self.pending < most and not self._pending.full:
            try:
                if not self._poll(0.0):
                    return
            except SourceError:
                # The cut is not affected; the poll of the next step raises it again.
                return

    def _reference(self) -> NDArray[Any] | None:
        """The features of the last experience's train part."""
        last = self._manifest.latest(self._pipeline)
        if not last or last[0].train_removed_at is not None:
            return None
        return self._store.open(last[0].train.digest, index=last[0].index).inputs

    def _recall_unmatched(self) -> None:
        if self._late is not None:
            for part in self._manifest.waiting(self._pipeline):
                self._take_completed(self._late.restore(part, now=self._clock()), None)
