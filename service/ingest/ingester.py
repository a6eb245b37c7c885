"""The ingest role: reads every pipeline's stream, cuts it into experiences, and queues updates."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
import structlog

from service.errors import PipelineUnreadableError
from service.ingest import golden
from service.ingest.champion_answers import PipelineContext
from service.ingest.retention import Upkeep
from service.ingest.sources import build_source
from service.pipelines import PipelineSpec
from service.settings import Settings
from service.state import backlog, jobs, pipelines
from service.state.database import connect, now
from service.state.presence import Presence
from service.storage import store_location
from streams.base import FencedError, NotingSource, Source, SourceStoppedError, StreamError
from streams.ingest import Ingest, IngestConfig
from streams.state import status as stream_status
from streams.state.manifest import ExperienceRow, Manifest
from streams.state.tables import reading
from streams.store.experiences import ExperienceStore

log = structlog.get_logger(__name__)

BACKOFF_SECONDS = 5.0
_AWAY_SECONDS = 1.0
_DATABASE_AWAY = (sa.exc.OperationalError, sa.exc.TimeoutError)
_FAULT = "A fault inside Holdfast: see the log of the ingest role; nothing was skipped."
PENDING_SECONDS = 1.0
"""Pause between two writes of what is read and not yet cut."""


def ingest_config(spec: PipelineSpec) -> IngestConfig:
    """The pipeline's declaration as configuration of the ingest loop."""
    return IngestConfig(
        spec.name,
        spec.record_schema,
        spec.trigger,
        spec.split,
        duplicate_window=spec.duplicate_window,
        breaker=spec.circuit_breaker,
    )


class PipelineIngest:
    """One pipeline's ingest, opened when first needed and again after a failure."""

    def __init__(
        self, engine: sa.Engine, settings: Settings, spec: PipelineSpec, *, store: ExperienceStore
    ) -> None:
        self.name = spec.name
        self._engine = engine
        self._spec = spec
        self._store = store
        self._poll_seconds = settings.poll_seconds
        self._context = PipelineContext(engine, settings, spec.name)
        self._ingest: Ingest | None = None
        self._source: Source | None = None
        self._not_before = 0.0
        self._asked: list[str] = []
        self._status: stream_status.Status = "running"
        self._noted: dict[str, Any] = {}
        self._note_at = 0.0

    def turn(self) -> bool:
        """Poll the source once and serve requests for a cut; True if an experience was cut."""
        if time.monotonic() < self._not_before:
            return False
        try:
            return self._turn()
        except FencedError:
            log.warning("another ingest process moved this pipeline", pipeline=self.name)
        except SourceStoppedError as error:
            log.error("stream stopped until a person resumes it", pipeline=self.name, reason=str(error))
            self._set_status("stopped", str(error))
        except StreamError as error:
            # The source may recover; the offsets do not move, so nothing is skipped meanwhile.
            if self._status == "failing":
                log.warning("ingest still fails, trying again", pipeline=self.name, reason=str(error))
            else:
                log.exception("ingest failed, trying again", pipeline=self.name)
            self._failing(str(error))
        except _DATABASE_AWAY:
            # Whether the last commit was made is not known: the state is read again from the database.
            self.close()
            raise
        except Exception as error:
            # A fault of ours, which a person must see, and which must stop no other pipeline.
            log.exception("ingest failed unexpectedly, trying again", pipeline=self.name)
            self._failing(f"{_FAULT} {type(error).__name__}: {error}")
        self.close()
        self._not_before = time.monotonic() + BACKOFF_SECONDS
        return False

    def run(self, stop: threading.Event) -> None:
        """Poll until `stop` is set."""
        try:
            while not stop.is_set():
                try:
                    busy = self.turn()
                except _DATABASE_AWAY:
                    log.exception("database unreachable, trying again", pipeline=self.name)
                    stop.wait(_AWAY_SECONDS)
                    continue
                if not busy:
                    stop.wait(self._poll_seconds)
        finally:
            self.close()

    def close(self) -> None:
        """Close the source; records that were read and not cut are read again later."""
        if self._ingest is not None:
            self._ingest.close()
            self._ingest, self._noted = None, {}

    def _turn(self) -> bool:
        with reading(self._engine) as connection:
            self._status = stream_status.read(connection, self.name).status
            asked = jobs.wanting_cut(connection, self.name)
        if self._status in stream_status.HELD:
            self.close()
            self._release(asked)
            return False
        ingest = self._open()
        row = self._cut(ingest, asked) if asked else ingest.step(0.0)
        if self._status == "failing":
            self._set_status("running", "")
        self._note_pending(ingest)
        return row is not None

    def _cut(self, ingest: Ingest, asked: list[str]) -> ExperienceRow | None:
        self._asked = asked
        try:
            row = ingest.cut("asked for through the API")
        finally:
            self._asked = []
        if row is None:
            self._release(asked)
        return row

    def _release(self, asked: list[str]) -> None:
        """Release updates that wait for a cut which will not come: they learn what has been cut."""
        if asked:
            with self._engine.begin() as connection:
                jobs.cut_done(connection, asked)

    def _open(self) -> Ingest:
        if self._ingest is None:
            self._source = build_source(self._engine, self._spec)
            self._ingest = Ingest(
                ingest_config(self._spec),
                source=self._source,
                store=self._store,
                manifest=Manifest(self._engine),
                also=self._queue,
                context=self._context.trigger_context(),
                held_out=lambda: golden.held_out(self._engine, self._store, self.name),
            )
        return self._ingest

    def _failing(self, reason: str) -> None:
        if self._status == "failing":
            # It failed twice: updates that wait for a cut run without what the source holds.
            with reading(self._engine) as connection:
                asked = jobs.wanting_cut(connection, self.name)
            self._release(asked)
        self._set_status("failing", reason)

    def _set_status(self, status: stream_status.Status, reason: str) -> None:
        with self._engine.begin() as connection:
            # A person's pause stays, whatever happens meanwhile.
            if stream_status.read(connection, self.name).status != "paused":
                stream_status.set_status(
                    connection,
                    self.name,
                    status,
                    reason=reason,
                    actor=stream_status.SERVICE,
                    now=now(connection),
                )

    def _note_pending(self, ingest: Ingest) -> None:
        found = {"records": ingest.pending, "unmatched": ingest.waiting, "notes": self._notes()}
        if found == self._noted or time.monotonic() < self._note_at:
            return
        self._noted, self._note_at = found, time.monotonic() + PENDING_SECONDS
        with self._engine.begin() as connection:
            stream_status.note_pending(connection, self.name, found)

    def _notes(self) -> list[str]:
        return list(self._source.notes()) if isinstance(self._source, NotingSource) else []

    def _queue(self, connection: sa.Connection, row: ExperienceRow) -> None:
        """In the experience's transaction: add it to the backlog, and queue an update that learns it."""
        backlog.add(connection, row.pipeline, row.index)
        if self._asked:
            jobs.cut_done(connection, self._asked)
        else:
            jobs.ensure_queued(connection, row.pipeline, requested_by="trigger")
        log.info("experience cut", pipeline=row.pipeline, experience=row.index, reason=row.cut_reason)


def serve(settings: Settings, stop: threading.Event) -> None:
    """Ingest every declared pipeline until `stop` is set.

    Each has its own thread, so that a source that blocks, such as a broker that does not answer, delays no
    other pipeline.
    """
    engine = connect(settings.database)
    store = store_location(settings).open()
    upkeep = Upkeep(engine, settings, store)
    threads: dict[str, threading.Thread | None] = {}
    with Presence(engine, "ingest"):
        log.info("ingest ready")
        while not stop.is_set():
            try:
                for pipeline in _new(engine, settings, store, threads):
                    thread = threading.Thread(
                        target=pipeline.run, args=(stop,), name=f"ingest-{pipeline.name}"
                    )
                    threads[pipeline.name] = thread
                    thread.start()
                upkeep.turn()
            except _DATABASE_AWAY:
                log.exception("database unreachable, trying again")
                stop.wait(_AWAY_SECONDS)
            stop.wait(settings.poll_seconds)
        for started in threads.values():
            if started is not None:
                started.join()
    engine.dispose()


def _new(
    engine: sa.Engine, settings: Settings, store: ExperienceStore, known: dict[str, threading.Thread | None]
) -> Iterator[PipelineIngest]:
    """Pipelines declared since the last call; one that this release cannot read stops no other."""
    with reading(engine) as connection:
        found = {name: _spec(connection, name) for name in pipelines.names(connection) if name not in known}
    for name, spec in found.items():
        if spec is None:
            known[name] = None
        else:
            yield PipelineIngest(engine, settings, spec, store=store)


def _spec(connection: sa.Connection, name: str) -> PipelineSpec | None:
    try:
        return pipelines.load_spec(connection, name)
    except PipelineUnreadableError:
        log.exception("pipeline left out until the next start", pipeline=name)
        return None
