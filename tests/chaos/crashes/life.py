"""One life of an ingest process, from its start to the bomb, to SIGKILL, or to the end of the stream."""

import time
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql

from service.ingest.pipeline import ingest_config
from service.ingest.sources import build_source
from service.pipelines import PipelineSpec
from service.state.database import connect
from streams.allowed import LOOPBACK, Allowed, Trim
from streams.base import FencedError, SourceError, SourceStoppedError, TrimmedSource
from streams.ingest import Ingest
from streams.state.manifest import ExperienceRow, Manifest
from streams.store.experiences import ExperienceStore
from streams.store.objects import S3_SCHEME, open_objects
from tests.chaos.crashes.points import Bomb
from tests.chaos.crashes.processes import Pace
from tests.chaos.crashes.shells import (
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


def live(place: Place, bomb: Bomb, pace: Pace, wanted: Wanted | None) -> int:
    """Ingest until the bomb goes off; without one, until all that is wanted is in experiences."""
    arm(bomb)
    engine = connect(place.database)
    points = SqlPoints(engine, bomb)
    remote = CrashingObjects(open_objects(place.remote), bomb) if place.remote.startswith(S3_SCHEME) else None
    allowed = Allowed(
        roots=("/", getattr(place.spec.source, "location", "/")), trims=tuple(map(Trim, LOOPBACK))
    )
    store = CrashingStore(CrashingPath(place.folder), remote=remote)
    while True:
        source = build_source(engine, place.spec, allowed)
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
        ingest_config(spec),
        source=source,
        store=store,
        manifest=manifest,
        also=also,
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
