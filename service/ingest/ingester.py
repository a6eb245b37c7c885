"""The ingest role: reads every pipeline's stream, cuts it into experiences, and queues updates.

One look at the database serves all pipelines: it finds those of which something was pushed or asked, and only
these get a turn. A pipeline whose source must be polled has a loop of its own, which polls ever less often
while nothing comes.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
import structlog

from service.errors import PipelineUnreadableError
from service.ingest.pipeline import PipelineIngest
from service.ingest.retention import Upkeep
from service.loops import Loop, Loops
from service.pipelines import PipelineSpec
from service.settings import Settings
from service.state import jobs, pipelines
from service.state.database import connect
from service.state.presence import Presence
from service.storage import store_location
from streams.state import pushed
from streams.state import status as stream_status
from streams.state.tables import reading
from streams.store.experiences import ExperienceStore

log = structlog.get_logger(__name__)

ALL_SECONDS = 1.0
"""Pause between two looks at what seldom changes: which pipelines there are, and which are held."""
MOST_OPENING = 8
"""Pipelines that are opened at a time: at the start of the role all of them are."""
STOP_SECONDS = 5.0


def serve(settings: Settings, stop: threading.Event) -> None:
    """Ingest every declared pipeline until `stop` is set.

    Each pipeline that has something to do has its own thread, so that a source that blocks, such as a broker
    that does not answer, delays no other pipeline.
    """
    engine = connect(settings.database)
    store = store_location(settings).open()
    loops = Loops(stop)
    ingester = Ingester(engine, settings, store, loops)
    loops.start("upkeep", Upkeep(engine, settings, store).turn)
    with Presence(engine, "ingest", loops.troubles):
        log.info("ingest ready")
        Loop("ingest", ingester.turn, stop).run()
        for name in loops.join(STOP_SECONDS):
            log.warning("loop did not end in time", loop=name)
    ingester.close()
    engine.dispose()


@dataclass
class _Known:
    """A pipeline, and what was known of it when its last turns began."""

    ingest: PipelineIngest
    sequence: int = -1
    """The newest of its pushed log; -1: it must be opened to know what is due."""
    held: bool = False


@dataclass
class Ingester:
    """Looks for pipelines with something to do, and starts their loops."""

    engine: sa.Engine
    settings: Settings
    store: ExperienceStore
    loops: Loops
    _known: dict[str, _Known] = field(default_factory=dict)
    _unreadable: set[str] = field(default_factory=set)
    _stored: int = -1
    _sequences: Mapping[str, int] = field(default_factory=dict)
    _held: set[str] = field(default_factory=set)
    _all_at: float = 0.0

    def turn(self) -> float:
        """Look once; start or wake what has something to do. Returns seconds until the next look."""
        self.loops.tend()
        with reading(self.engine) as connection:
            asked = jobs.pipelines_wanting_cut(connection)
            stored = pushed.batches_stored(connection)
            if stored != self._stored:
                self._sequences = pushed.last_sequences(connection)
            every = time.monotonic() >= self._all_at
            if every:
                self._held = stream_status.held(connection)
                self._add_new(connection)
        self._stored = stored
        if every:
            self._all_at = time.monotonic() + ALL_SECONDS
        opening = sum(known.ingest.is_opening for known in self._known.values())
        for name, known in self._known.items():
            held = name in self._held
            if self._runs(name):
                if name in asked or held != known.held:
                    known.held = held
                    self.loops.wake(_loop_name(name))
            elif name in asked or held != known.held or (not held and self._has_work(known, every, opening)):
                known.sequence, known.held = self._sequences.get(name, 0), held
                known.ingest.is_opening = known.ingest.pushed_only and not known.ingest.is_open
                opening += known.ingest.is_opening
                self.loops.start(_loop_name(name), known.ingest.turn)
        return self.settings.poll_seconds

    def _has_work(self, known: _Known, every: bool, opening: int) -> bool:
        """Whether a pipeline whose loop does not run needs it: to open, to poll, for news, or by time."""
        ingest = known.ingest
        if not ingest.pushed_only:
            return True
        if self._sequences.get(ingest.name, 0) > known.sequence:
            return ingest.is_open or opening < MOST_OPENING
        return every and ingest.overdue()

    def _runs(self, name: str) -> bool:
        return self.loops.is_running(_loop_name(name))

    def _add_new(self, connection: sa.Connection) -> None:
        """Pipelines declared since the last look; one that this release cannot read stops no other.

        One whose records all come from its pushed log, and are all committed, is not opened until more come.
        """
        names = [each for each in pipelines.names(connection) if each not in self._known]
        names = [each for each in names if each not in self._unreadable]
        uncommitted = pushed.uncommitted(connection) if names else set()
        for name in names:
            spec = _spec(connection, name)
            if spec is None:
                self._unreadable.add(name)
                continue
            ingest = PipelineIngest(self.engine, self.settings, spec, store=self.store)
            idle = ingest.pushed_only and spec.label_source is None and name not in uncommitted
            self._known[name] = _Known(ingest, self._sequences.get(name, 0) if idle else -1)

    def close(self) -> None:
        """Close the sources of all pipelines whose loops have ended."""
        for name, known in self._known.items():
            if not self._runs(name):
                known.ingest.close()


def _loop_name(pipeline: str) -> str:
    return f"ingest-{pipeline}"


def _spec(connection: sa.Connection, name: str) -> PipelineSpec | None:
    try:
        return pipelines.load_spec(connection, name)
    except PipelineUnreadableError:
        log.exception("pipeline left out until the next start", pipeline=name)
        return None
