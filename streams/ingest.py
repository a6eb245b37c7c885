"""The exactly-once loop: poll, decode, cut, write, commit, trim.

Files are written before the transaction that names them, and the offsets move in that same transaction. A
crash before it leaves orphan files and unmoved offsets: the same records are read again and give the same
files. A crash after it finds the offsets moved. So every record is in exactly one experience, or is a dead
letter. A record that a producer sends twice is two records; they share their id, hence their part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from streams.base import RawBatch, RecordSchema, Source, TrimmedSource
from streams.experiences import ExperienceStore
from streams.hashing import hash_texts
from streams.manifest import (
    AlsoInTransaction,
    CutExperience,
    DeadLetter,
    ExperienceRow,
    Manifest,
    Part,
    Span,
)
from streams.records import Records, join_records, text_column
from streams.triggers import Cut, Trigger, pending_count
from streams.wire import decode

PartName = Literal["train", "gate", "audit"]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

PARTS: tuple[PartName, ...] = ("train", "gate", "audit")
TRAIN, GATE, AUDIT = range(3)

POLL_RECORDS = 5_000
MAX_EXPERIENCE_BYTES = 256 * 1024 * 1024
"""A forced cut stops reading on when its features reach this size."""


class Split(BaseModel):
    """Shares of the records that are put aside at arrival and never trained on.

    A change moves the border between the parts: a record sent again after it may then land elsewhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: Share = Field(0.25, description="Share that every update is judged on.")
    audit: Share = Field(0.05, description="Sealed share, read only when the erosion budget is checked.")

    @field_validator("gate")
    @classmethod
    def _judges(cls, gate: float) -> float:
        if gate == 0:
            raise ValueError("gate must be above 0: without a holdout there is nothing to judge an update by")
        return gate

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.gate + self.audit >= 1.0:
            raise ValueError("gate and audit together must be below 1: the rest is what is trained on")
        return self


def part_of(split_key: str, split: Split) -> PartName:
    """The part that a split key belongs to: always the same one, whenever and wherever it is asked."""
    return PARTS[int(parts_of(text_column([split_key]), split)[0])]


def parts_of(split_keys: pa.StringArray, split: Split) -> NDArray[np.uint8]:
    """(n,) the parts of many split keys, each as its place in `PARTS`."""
    places = hash_texts(split_keys) / 2.0**64
    return np.where(
        places < split.audit, AUDIT, np.where(places < split.audit + split.gate, GATE, TRAIN)
    ).astype(np.uint8)


@dataclass(frozen=True)
class _Chunk:
    """Accepted records of one partition that are not yet cut, in order."""

    partition: str
    records: Records
    positions: Sequence[str]
    parts: NDArray[np.uint8]
    """(n,) the part of each record, as its place in `PARTS`."""

    def head(self, count: int) -> "_Chunk":
        return replace(
            self,
            records=self.records.take(slice(count)),
            positions=self.positions[:count],
            parts=self.parts[:count],
        )

    def tail(self, count: int) -> "_Chunk":
        return replace(
            self,
            records=self.records.take(slice(count, None)),
            positions=self.positions[count:],
            parts=self.parts[count:],
        )


class Ingest:
    """The loop of one pipeline. One at a time: of two, the slower one meets `FencedError` and must stop."""

    def __init__(
        self,
        pipeline: str,
        schema: RecordSchema,
        *,
        source: Source,
        trigger: Trigger,
        split: Split,
        store: ExperienceStore,
        manifest: Manifest,
        also: AlsoInTransaction | None = None,
    ) -> None:
        """Open the source at the committed cursors. `also` runs in the transaction of every experience.

        Raises:
            DataLostError: the source no longer holds what comes after the cursors.
        """
        self._pipeline = pipeline
        self._schema = schema
        self._source = source
        self._trigger = trigger
        self._split = split
        self._store = store
        self._manifest = manifest
        self._also = also
        self._committed = manifest.cursors(pipeline)
        self._state = manifest.trigger_state(pipeline)
        self._chunks: list[_Chunk] = []
        self._refused: list[DeadLetter] = []
        self._read = dict(self._committed)
        source.open(self._committed)

    @property
    def pending(self) -> int:
        """Accepted records that were read and are not yet in an experience."""
        return pending_count(self._pending())

    def step(self, timeout_seconds: float) -> ExperienceRow | None:
        """One turn: read on unless a cut is already due, and cut at most one experience.

        Returns:
            The experience that was cut and committed; None when the trigger waits for more.

        Raises:
            FencedError: another process took the pipeline over. Close this one; nothing of it is lost.
            SourceError: the source cannot be read. The step can be tried again.
        """
        cut = self._decide()
        if cut is None:
            self._poll(timeout_seconds)
            cut = self._decide()
        if cut is None:
            self._commit_dead_letters()
            return None
        return self._cut(cut)

    def cut(self, reason: str) -> ExperienceRow | None:
        """Cut everything that the source holds now into one experience, whatever the trigger says.

        Returns:
            The experience; None when no record is pending, or when all that are pending fall in the gate and
            audit parts: these stay pending until one to train on arrives.
        """
        most = MAX_EXPERIENCE_BYTES // (self._schema.size * np.dtype(self._schema.dtype).itemsize)
        while self.pending < most and self._poll(0.0):
            pass
        cut = None
        if self.pending:
            cut = self._with_training_records(
                self._trigger.forced(self._pending(), self._state, reason=reason)
            )
        if cut is None:
            self._commit_dead_letters()
            return None
        return self._cut(cut)

    def close(self) -> None:
        """Release the source. What is pending is read again by the next ingest. Closing twice is allowed."""
        self._source.close()

    def _pending(self) -> list[Records]:
        return [chunk.records for chunk in self._chunks]

    def _poll(self, timeout_seconds: float) -> bool:
        """Read on and decode; whether anything came."""
        batches = self._source.poll(POLL_RECORDS, timeout_seconds)
        for batch in batches:
            self._add(batch)
        return bool(batches)

    def _add(self, batch: RawBatch) -> None:
        decoded = decode(batch, self._schema)
        self._refused.extend(
            DeadLetter(batch.partition, letter.position, letter.reason, letter.detail, letter.payload)
            for letter in decoded.rejected
        )
        self._read[batch.partition] = batch.positions[-1]
        if len(decoded.records):
            parts = parts_of(decoded.records.split_keys, self._split)
            chunk = _Chunk(batch.partition, decoded.records, decoded.positions, parts)
            self._chunks.append(chunk)

    def _decide(self) -> Cut | None:
        cut = self._trigger.decide(self._pending(), self._state)
        return None if cut is None else self._with_training_records(cut)

    def _with_training_records(self, cut: Cut) -> Cut | None:
        """The cut, made longer up to the first record that is trained on; None while there is no such record.

        The length depends on the records alone, never on how they were polled.
        """
        before = 0
        for chunk in self._chunks:
            trained = np.flatnonzero(chunk.parts == TRAIN)
            if len(trained):
                return replace(cut, records=max(cut.records, before + int(trained[0]) + 1))
            before += len(chunk.records)
        return None

    def _cut(self, cut: Cut) -> ExperienceRow:
        taken, left = _divide(self._chunks, cut.records)
        experience = self._write(taken, cut)
        # Each partition moves to its last record in the cut, not past payloads that were refused after it: so
        # the slice is the same wherever a poll happened to end.
        ends = {chunk.partition: chunk.positions[-1] for chunk in taken}
        moves = {partition: self._span(partition, end) for partition, end in ends.items()}
        row = self._manifest.commit(
            self._pipeline, moves, dead_letters=self._refused, experience=experience, also=self._also
        )
        assert row is not None, "a commit with an experience returns its row"
        self._chunks, self._state, self._refused = left, dict(cut.state), []
        self._committed_now(moves)
        return row

    def _commit_dead_letters(self) -> None:
        """Store what was refused without waiting for a cut, so that it is seen and memory stays bounded.

        A partition moves on when nothing of it is pending; else its offset stays, and the same dead letters
        are met again after a restart, which changes nothing.
        """
        if not self._refused:
            return
        waiting = {chunk.partition for chunk in self._chunks}
        moves = {}
        for partition in {letter.partition for letter in self._refused}:
            end = self._committed.get(partition, "") if partition in waiting else self._read[partition]
            moves[partition] = self._span(partition, end)
        self._manifest.commit(self._pipeline, moves, dead_letters=self._refused)
        self._refused = []
        self._committed_now(moves)

    def _span(self, partition: str, end: str) -> Span:
        return Span(self._committed.get(partition, ""), end)

    def _committed_now(self, moves: Mapping[str, Span]) -> None:
        self._committed.update({partition: span.end for partition, span in moves.items()})
        if isinstance(self._source, TrimmedSource):
            self._source.trim(self._committed)

    def _write(self, taken: Sequence[_Chunk], cut: Cut) -> CutExperience:
        # The order of partitions is fixed, so that a slice does not depend on which of them answered first.
        ordered = sorted(taken, key=lambda chunk: chunk.partition)
        records = join_records([chunk.records for chunk in ordered], self._schema)
        parts = np.concatenate([chunk.parts for chunk in ordered])
        written = {}
        for place, name in enumerate(PARTS):
            part = records.take(parts == place)
            written[name] = Part(self._store.write(part, self._schema), len(part))
        return CutExperience(
            train=written["train"],
            gate=written["gate"],
            audit=written["audit"],
            schema_fingerprint=self._schema.fingerprint(),
            cut_reason=cut.reason,
            trigger_state=cut.state,
        )


def _divide(chunks: Sequence[_Chunk], count: int) -> tuple[list[_Chunk], list[_Chunk]]:
    """The oldest `count` records, and the rest."""
    taken: list[_Chunk] = []
    for place, chunk in enumerate(chunks):
        if count < len(chunk.records):
            if count:
                return [*taken, chunk.head(count)], [chunk.tail(count), *chunks[place + 1 :]]
            return taken, list(chunks[place:])
        taken.append(chunk)
        count -= len(chunk.records)
    return taken, []
