"""One life of an ingest process, from its start to the bomb, to SIGKILL, or to the end of the stream."""

import mmap
import os
import signal
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql

from service.database import connect
from service.pipelines import PipelineSpec
from service.sources import build_source
from streams.base import FencedError, SourceError, SourceStoppedError, TrimmedSource
from streams.experiences import ExperienceStore
from streams.ingest import Ingest
from streams.manifest import ExperienceRow, Manifest
from streams.objects import S3_SCHEME, open_objects
from tests.chaos.crash_points import (
    Bomb,
    CrashingManifest,
    CrashingObjects,
    CrashingPath,
    CrashingSource,
    CrashingStore,
    SqlPoints,
    arm,
)

NEEDS_MORE = 71
"""The exit status of a last life that was left with records of which none may be trained on."""

_LIFE_SECONDS = 60
_END_SECONDS = 30.0
_QUIET_SECONDS = 0.3
_STEP_SECONDS = 0.05


@dataclass(frozen=True)
class Place:
    """Where a pipeline of a crash run lives."""

    spec: PipelineSpec
    database: str
    folder: Path
    """The experiences, or their cache."""
    remote: str
    """"s3://...", or empty."""

    def store(self) -> ExperienceStore:
        """The store as the verdict reads it."""
        return ExperienceStore(self.folder, remote=open_objects(self.remote) if self.remote else None)


@dataclass(frozen=True)
class Wanted:
    """What must have been read before the last life may end."""

    records: int
    dead_letters: int


class Pace:
    """Memory that the processes of a run share, so that production runs ahead of ingest, and not far."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 24)

    @property
    def chunks(self) -> int:
        """Chunks of every lane that may be sent."""
        return self._get(0)

    @property
    def over(self) -> bool:
        """Whether no more will be allowed."""
        return bool(self._get(8))

    @property
    def taken(self) -> int:
        """Records that are in experiences, about: whoever commits says so afterwards."""
        return self._get(16)

    def allow(self, chunks: int, *, over: bool = False) -> None:
        """Let so many more be sent."""
        struct.pack_into("qq", self._shared, 0, self.chunks + chunks, over)

    def take(self, records: int) -> None:
        """Say how many records are in experiences."""
        struct.pack_into("q", self._shared, 16, records)

    def _get(self, place: int) -> int:
        return int(struct.unpack_from("q", self._shared, place)[0])


@dataclass
class Child:
    """A forked process, and what it says."""

    pid: int
    pipe: int
    status: int | None = None

    def ended(self) -> bool:
        """Whether it has; then `status` is its exit status, negative for a signal."""
        if self.status is None:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(code)
        return self.status is not None

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> list[str]:
        """All it said, once it has ended."""
        with os.fdopen(self.pipe, "rb") as pipe:
            return pipe.read().decode().splitlines()


def fork(action: Callable[[int], int], *, seconds: int = _LIFE_SECONDS) -> Child:
    """Run in a child, which ends after so many seconds at the latest. It is given a pipe to this process.

    Forked from a process of one thread that has imported everything and opened nothing, so that a crash costs
    little and what dies is a whole process.
    """
    reads, writes = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writes)
        return Child(pid, reads)
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        os.close(reads)
        status = action(writes)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def live(place: Place, bomb: Bomb, pace: Pace, wanted: Wanted | None) -> int:
    """Ingest until the bomb goes off; without one, until all that is wanted is in experiences."""
    arm(bomb)
    engine = connect(place.database)
    points = SqlPoints(engine, bomb)
    remote = CrashingObjects(open_objects(place.remote), bomb) if place.remote.startswith(S3_SCHEME) else None
    store = CrashingStore(CrashingPath(place.folder), remote=remote)
    while True:
        source = build_source(engine, place.spec)
        assert isinstance(source, TrimmedSource)
        try:
            return _ingest(
                place.spec, engine, CrashingSource(source, bomb, points), store, bomb, pace, wanted
            )
        except FencedError:
            bomb.say("fenced")
        except SourceStoppedError:
            raise
        except SourceError:
            bomb.say("away")
            time.sleep(_STEP_SECONDS)
        finally:
            source.close()


def _ingest(
    spec: PipelineSpec,
    engine: sql.Engine,
    source: CrashingSource,
    store: ExperienceStore,
    bomb: Bomb,
    pace: Pace,
    wanted: Wanted | None,
) -> int:
    def also(connection: sql.Connection, row: ExperienceRow) -> None:
        bomb.reach("transaction: last of it")

    manifest = CrashingManifest(engine)
    ingest = Ingest(
        spec.name,
        spec.record_schema,
        source=source,
        trigger=spec.trigger,
        split=spec.split,
        store=store,
        manifest=manifest,
        also=also,
        duplicate_window=spec.duplicate_window,
        breaker=spec.circuit_breaker,
    )
    pace.take(manifest.totals(spec.name)[1])
    while wanted is None:
        row = ingest.step(_STEP_SECONDS)
        if row is not None:
            pace.take(pace.taken + row.rows)
    deadline = time.monotonic() + _END_SECONDS
    while not _is_there(manifest, ingest, spec.name, wanted) and time.monotonic() < deadline:
        ingest.step(_STEP_SECONDS)
    quiet = time.monotonic() + _QUIET_SECONDS
    while time.monotonic() < quiet:
        ingest.step(_STEP_SECONDS)
    ingest.cut("The end.")
    ingest.close()
    engine.dispose()
    return NEEDS_MORE if ingest.pending else 0


def _is_there(manifest: Manifest, ingest: Ingest, pipeline: str, wanted: Wanted) -> bool:
    _, records = manifest.totals(pipeline)
    letters = sum(manifest.count_dead_letters(pipeline).values())
    return records + ingest.pending >= wanted.records and letters >= wanted.dead_letters
