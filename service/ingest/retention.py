"""Upkeep of the store: removes records that nothing needs any more, and files that no row names.

The train part of an experience is needed until the champion has learnt it, and longer: by updates that wait,
run or await a person; by a rollback to the champion before this one, after which it is learnt again; by the
duplicate window, which knows ids from it; and as the reference that a shift is measured against. Strategies
own copies of what they replay. Gate and audit parts are never removed: what was learnt is judged by them.
"""

import time
from collections.abc import Sequence, Set

import sqlalchemy as sa
import structlog

from service.loops import for_all
from service.pipelines import PipelineSpec
from service.settings import Settings
from service.state import backlog, champions, golden, jobs, pipelines
from service.state.database import lock_pipeline, now
from streams.state.manifest import ExperienceRow, Manifest
from streams.state.tables import reading
from streams.store.experiences import ExperienceStore

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 1.0


class Upkeep:
    """Removes what is not needed, every `upkeep_seconds`. Several processes may run it at once."""

    def __init__(self, engine: sa.Engine, settings: Settings, store: ExperienceStore) -> None:
        self._engine = engine
        self._settings = settings
        self._store = store
        self._next = time.monotonic() + settings.upkeep_seconds

    def turn(self) -> float:
        """Run if it is time; seconds until it is worth asking again."""
        if time.monotonic() >= self._next:
            # Before the run: one that fails is tried at the next time, by the loop that calls this.
            self._next = time.monotonic() + self._settings.upkeep_seconds
            self.run()
        return min(_LOOK_SECONDS, max(0.0, self._next - time.monotonic()))

    def run(self) -> list[str]:
        """Run now; returns the names of the removed files."""
        with reading(self._engine) as connection:
            names = pipelines.names(connection)
            kept = golden.digests(connection)
        for_all(names, self._remove_unneeded, what="pipeline")
        removed = self._store.collect_garbage(
            Manifest(self._engine).digests() | kept, grace_seconds=self._settings.orphan_grace_seconds
        )
        if removed:
            log.info("files removed that nothing needs", files=len(removed))
        return removed

    def _remove_unneeded(self, pipeline: str) -> None:
        with reading(self._engine) as connection:
            spec = pipelines.load_spec(connection, pipeline)
        if spec.retention.keep_experiences is None:
            return
        manifest = Manifest(self._engine)
        with reading(self._engine) as connection:
            if not _unneeded(connection, spec, manifest.experiences_in(connection, pipeline)):
                return
        with self._engine.begin() as connection:
            lock_pipeline(connection, pipeline)
            # Looked at again: an update may have begun to need one meanwhile.
            unneeded = _unneeded(connection, spec, manifest.experiences_in(connection, pipeline))
            manifest.remove_train(connection, pipeline, unneeded, moment=now(connection))
        if unneeded:
            log.info("train parts removed", pipeline=pipeline, experiences=unneeded)


def _unneeded(connection: sa.Connection, spec: PipelineSpec, rows: Sequence[ExperienceRow]) -> list[int]:
    """Experiences whose train part nothing needs."""
    keep = spec.retention.keep_experiences
    champion = champions.current(connection, spec.name)
    if keep is None or champion is None:
        return []
    settled = _settled(connection, spec.name, champion.version)
    learnt = [row for row in rows if row.index in settled]
    busy = jobs.experiences_of_live(connection, spec.name)
    window = _in_window(rows, spec.duplicate_window)
    return [
        row.index
        for row in learnt[:-keep]
        if row.train_removed_at is None
        and row.index not in busy
        and row.index not in window
        and row.index != rows[-1].index
    ]


def _settled(connection: sa.Connection, pipeline: str, number: int) -> Set[int]:
    """Experiences learnt by both the champion and its parent, to which a rollback returns."""
    lineage = champions.lineage(connection, pipeline, number)
    states = backlog.states(connection, pipeline)
    if len(lineage) < 2:
        return set()
    both = set(lineage[-1].learnt) & set(lineage[-2].learnt)
    return {index for index in both if states.get(index, ("waiting", ""))[0] == "learnt"}


def _in_window(rows: Sequence[ExperienceRow], window: int) -> Set[int]:
    """The newest experiences that together hold the duplicate window."""
    found: set[int] = set()
    seen = 0
    for row in reversed(rows):
        if seen >= window:
            break
        found.add(row.index)
        seen += row.rows
    return found
