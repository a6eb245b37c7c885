"""One pipeline's ingest: a turn polls its source, cuts what is due, and tells when to come again."""

import time
from typing import Any

import sqlalchemy as sa
import structlog

from service.incidents import tell
from service.ingest import golden
from service.ingest.champion_answers import PipelineContext
from service.ingest.sources import build_source
from service.pipelines import PipelineSpec
from service.settings import Settings
from service.state import backlog, jobs
from service.state.database import now
from streams.base import FencedError, NotingSource, Source, SourceStoppedError, StreamError
from streams.ingest import Ingest, IngestConfig
from streams.state import status as stream_status
from streams.state.manifest import ExperienceRow, Manifest
from streams.state.tables import reading
from streams.store.experiences import ExperienceStore

log = structlog.get_logger(__name__)

BACKOFF_SECONDS = 5.0
LONGEST_IDLE_SECONDS = 2.0
"""Pause between two polls of a source that has brought nothing for a while."""
_IDLE_GROWTH = 1.3
_DATABASE_AWAY = (sa.exc.SQLAlchemyError,)
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
    """One pipeline's ingest, opened when first needed and again after a failure. One turn at a time."""

    def __init__(
        self, engine: sa.Engine, settings: Settings, spec: PipelineSpec, *, store: ExperienceStore
    ) -> None:
        self.name = spec.name
        self.pushed_only = spec.source.kind == "pushed" and (
            spec.label_source is None or spec.label_source.kind == "pushed"
        )
        """Whether the pushed log says when something has come: else its source must be polled."""
        self._engine = engine
        self._spec = spec
        self._store = store
        self._poll_seconds = settings.poll_seconds
        self._allowed = settings.allowed
        self._idle = settings.poll_seconds
        self._context = PipelineContext(engine, settings, spec.name)
        self._ingest: Ingest | None = None
        self._source: Source | None = None
        self.is_opening = False
        """Set by who starts the turn that opens the source; over after that turn."""
        self._asked: list[str] = []
        self._status: stream_status.Status = "running"
        self._noted: dict[str, Any] = {}
        self._note_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether its source is open: until then nobody knows what is due."""
        return self._ingest is not None

    def overdue(self) -> bool:
        """Whether there is something to do though nothing new came. Only between two turns."""
        return self._ingest is not None and self._ingest.overdue()

    def turn(self) -> float | None:
        """Poll the source once and serve requests for a cut.

        Returns:
            Seconds until the next turn; None where only news, or time, makes one worth while.

        Raises:
            SQLAlchemyError: the database does not answer, or refuses; what is read next is its state then.
        """
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
            told = tell(error, role="ingest")
            log.exception(
                "ingest failed unexpectedly, trying again", pipeline=self.name, incident=told.incident
            )
            self._failing(f"{told.text} Nothing was skipped.")
        finally:
            self.is_opening = False
        self.close()
        return BACKOFF_SECONDS

    def close(self) -> None:
        """Close the source; records that were read and not cut are read again later."""
        if self._ingest is not None:
            self._ingest.close()
            self._ingest, self._noted = None, {}

    def _turn(self) -> float | None:
        with reading(self._engine) as connection:
            self._status = stream_status.read(connection, self.name).status
            asked = jobs.wanting_cut(connection, self.name)
        if self._status in stream_status.HELD:
            self.close()
            self._release(asked)
            return None
        ingest = self._open()
        row = self._cut(ingest, asked) if asked else ingest.step(0.0)
        progressed = row is not None or ingest.progressed
        if self._status == "failing":
            self._set_status("running", "")
        self._note_pending(ingest, idle=not progressed)
        return self._pause(progressed=progressed)

    def _pause(self, *, progressed: bool) -> float | None:
        if progressed:
            self._idle = self._poll_seconds
            return 0.0
        if self.pushed_only:
            return None
        # A source that brings nothing is asked less and less often.
        self._idle = min(max(LONGEST_IDLE_SECONDS, self._poll_seconds), self._idle * _IDLE_GROWTH)
        return self._idle

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
            self._source = build_source(self._engine, self._spec, self._allowed)
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
            stream_status.set_by_service(connection, self.name, status, reason=reason, now=now(connection))

    def _note_pending(self, ingest: Ingest, *, idle: bool) -> None:
        found = {"records": ingest.pending, "unmatched": ingest.waiting, "notes": self._notes()}
        if found == self._noted or (not idle and time.monotonic() < self._note_at):
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
