"""The ingest role: cuts every pipeline's stream into experiences, and queues their updates."""

import threading
import time

import sqlalchemy as sa
import structlog

from service import backlog, jobs, specs
from service.database import connect
from service.errors import PipelineUnreadableError
from service.pipelines import PipelineSpec
from service.roles import Presence
from service.settings import Settings
from streams.base import FencedError, StreamError
from streams.catalog import SOURCES
from streams.experiences import ExperienceStore
from streams.ingest import Ingest
from streams.manifest import ExperienceRow, Manifest
from streams.tables import reading

log = structlog.get_logger(__name__)

BACKOFF_SECONDS = 5.0


class PipelineIngest:
    """One pipeline's ingest, opened when first needed and again after a failure."""

    def __init__(self, engine: sa.Engine, settings: Settings, spec: PipelineSpec) -> None:
        self._engine = engine
        self._settings = settings
        self._spec = spec
        self._ingest: Ingest | None = None
        self._not_before = 0.0
        self._asked: list[str] = []

    def turn(self) -> bool:
        """One look at the source and at what was asked for; whether an experience was cut."""
        if time.monotonic() < self._not_before:
            return False
        try:
            return self._turn()
        except FencedError:
            log.warning("another ingest process moved this pipeline", pipeline=self._spec.name)
        except StreamError:
            # It may be the source's bad day; the offsets stand, so nothing is skipped meanwhile.
            log.exception("ingest failed, trying again", pipeline=self._spec.name)
        self.close()
        self._not_before = time.monotonic() + BACKOFF_SECONDS
        return False

    def close(self) -> None:
        if self._ingest is not None:
            self._ingest.close()
            self._ingest = None

    def _turn(self) -> bool:
        ingest = self._open()
        with reading(self._engine) as connection:
            asked = jobs.wanting_cut(connection, self._spec.name)
        if not asked:
            return ingest.step(0.0) is not None
        self._asked = asked
        try:
            row = ingest.cut("asked for through the API")
        finally:
            self._asked = []
        if row is None:
            with self._engine.begin() as connection:
                jobs.cut_done(connection, asked)
        return row is not None

    def _open(self) -> Ingest:
        if self._ingest is None:
            source = SOURCES[self._spec.source.kind].build(
                self._spec.source,
                pipeline=self._spec.name,
                schema=self._spec.record_schema,
                engine=self._engine,
            )
            self._ingest = Ingest(
                self._spec.name,
                self._spec.record_schema,
                source=source,
                trigger=self._spec.trigger.build(),
                split=self._spec.split,
                store=ExperienceStore(self._settings.experiences),
                manifest=Manifest(self._engine),
                also=self._queue,
            )
        return self._ingest

    def _queue(self, connection: sa.Connection, row: ExperienceRow) -> None:
        """In the transaction of the experience: it waits to be learnt, and an update will learn it."""
        backlog.add(connection, row.pipeline, row.index)
        if self._asked:
            jobs.cut_done(connection, self._asked)
        else:
            jobs.ensure_queued(connection, row.pipeline, requested_by="trigger")
        log.info("experience cut", pipeline=row.pipeline, experience=row.index, reason=row.cut_reason)


def serve(settings: Settings, stop: threading.Event) -> None:
    """Ingest every declared pipeline until `stop` is set."""
    engine = connect(settings.database)
    open_pipelines: dict[str, PipelineIngest | None] = {}
    with Presence(engine, "ingest"):
        log.info("ingest ready")
        while not stop.is_set():
            try:
                _open_new(engine, settings, open_pipelines)
                busy = [pipeline.turn() for pipeline in open_pipelines.values() if pipeline]
            except sa.exc.OperationalError:
                log.exception("database unreachable, trying again")
                busy = []
                stop.wait(1.0)
            if not any(busy):
                stop.wait(settings.poll_seconds)
    for pipeline in open_pipelines.values():
        if pipeline:
            pipeline.close()
    engine.dispose()


def _open_new(
    engine: sa.Engine, settings: Settings, open_pipelines: dict[str, PipelineIngest | None]
) -> None:
    """Take up pipelines declared since the last look; one that this release cannot read stops no other."""
    with reading(engine) as connection:
        for name in specs.names(connection):
            if name in open_pipelines:
                continue
            try:
                open_pipelines[name] = PipelineIngest(engine, settings, specs.load_spec(connection, name))
            except PipelineUnreadableError:
                open_pipelines[name] = None
                log.exception("pipeline left out until the next start", pipeline=name)
