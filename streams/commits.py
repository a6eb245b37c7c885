"""Commits of one ingest process, fenced by the revision of the stream that it has read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from streams.base import DataLostError, FencedError, RecordSchema
from streams.records import LabelMap
from streams.split import PARTS
from streams.state.manifest import (
    AlsoInTransaction,
    Commit,
    Committed,
    CutExperience,
    DeadLetter,
    Manifest,
    Part,
    Span,
    WaitingCommit,
)
from streams.triggers.catalog import Cut


class Committer:
    """Commits the progress of one pipeline, as long as no other process does. Not thread-safe."""

    def __init__(
        self,
        pipeline: str,
        schema: RecordSchema,
        *,
        manifest: Manifest,
        also: AlsoInTransaction | None = None,
    ) -> None:
        """`also` runs in the transaction of every experience."""
        self._pipeline = pipeline
        self._manifest = manifest
        self._also = also
        # Read first: a commit of another process while the rest is read then fences this one.
        self._revision = manifest.revision(pipeline)
        self._cursors = manifest.cursors(pipeline)
        self.labels = LabelMap(schema, manifest.classes(pipeline) or None)
        """The classes by id. Those that are new are stored with the next commit."""
        self._classes_stored = len(self.labels)

    @property
    def cursors(self) -> Mapping[str, str]:
        """The committed cursor of each partition."""
        return self._cursors

    def commit(
        self,
        moves: Mapping[str, str],
        *,
        dead_letters: Sequence[DeadLetter],
        experience: CutExperience | None = None,
        duplicates: int = 0,
        held_out: int = 0,
        waiting: WaitingCommit | None = None,
    ) -> Committed:
        """Move the offsets of these partitions to these cursors, and store the rest in the same transaction.

        Raises:
            FencedError: another process has committed; nothing was changed.
        """
        labels = self.labels
        names = labels.names if len(labels) > self._classes_stored else ()
        committed = self._manifest.commit(
            self._pipeline,
            Commit(
                self._revision,
                {name: Span(self._cursors.get(name, ""), end) for name, end in moves.items()},
                dead_letters=dead_letters,
                experience=experience,
                classes=names,
                waiting=waiting,
                duplicates=duplicates,
                held_out=held_out,
            ),
            also=self._also,
        )
        self._revision += 1
        self._classes_stored = len(labels)
        self._cursors.update(moves)
        return committed

    def forget(self, partitions: Sequence[str]) -> None:
        """Drop the offsets of partitions that the source no longer has.

        Raises:
            FencedError: another process has committed; nothing was dropped.
        """
        if partitions:
            self._manifest.forget(self._pipeline, partitions, revision=self._revision)
            self._revision += 1
        for partition in partitions:
            del self._cursors[partition]

    @contextmanager
    def fenced_if_lost(self) -> Iterator[None]:
        """Distinguish lost data from data that another process has committed and trimmed meanwhile.

        Raises:
            FencedError: the source misses data, and another process has committed: nothing is lost.
            DataLostError: the source misses data, and no other process has committed.
        """
        try:
            yield
        except DataLostError as error:
            try:
                self._manifest.check(self._pipeline, revision=self._revision)
            except FencedError as fenced:
                raise fenced from error
            raise


def experience_of(cut: Cut, schema: RecordSchema, parts: Sequence[Part]) -> CutExperience:
    """What a commit stores of a cut whose parts are written, in the order of `PARTS`."""
    written = dict(zip(PARTS, parts, strict=True))
    return CutExperience(
        train=written["train"],
        gate=written["gate"],
        audit=written["audit"],
        schema_fingerprint=schema.fingerprint(),
        cut_reason=cut.reason,
        trigger_state=cut.state,
        decision=cut.decision,
    )
