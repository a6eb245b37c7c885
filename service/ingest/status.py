"""The state of a stream as people see it, and the pause and resume that they ask for."""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from service.errors import StreamConflictError
from service.ingest.sources import pushed_partition
from service.pipelines import PipelineSpec
from service.state import pipelines
from service.state.database import lock_pipeline, now
from service.state.ledger import By
from streams.state import status as stream_status
from streams.state.manifest import Manifest
from streams.state.status import StreamState
from streams.state.tables import reading

SHOWN_PARTITIONS = 1000


@dataclass(frozen=True)
class Stream:
    """A stream's state as the database has it."""

    spec: PipelineSpec
    state: StreamState
    cursors: Mapping[str, str]
    experiences: int
    records: int
    last_cut: str | None
    backlog_records: int | None
    dead_letters: Mapping[str, int]
    replayed_dead_letters: int
    classes: int


def look(engine: sa.Engine, pipeline: str) -> Stream:
    """The state of a pipeline's stream.

    Raises:
        PipelineUnknownError: there is no such pipeline.
    """
    with reading(engine) as connection:
        spec = pipelines.load_spec(connection, pipeline)
        state = stream_status.read(connection, pipeline)
    manifest = Manifest(engine)
    experiences, records = manifest.totals(pipeline)
    last = manifest.latest(pipeline)
    pushed = pushed_partition(spec)
    return Stream(
        spec=spec,
        state=state,
        cursors=manifest.cursors(pipeline),
        experiences=experiences,
        records=records,
        last_cut=last[0].cut_reason if last else None,
        backlog_records=manifest.pending_records(pipeline, partition=pushed) if spec.pushable else None,
        dead_letters=manifest.count_dead_letters(pipeline),
        replayed_dead_letters=sum(manifest.count_dead_letters(pipeline, replayed=True).values()),
        classes=len(manifest.classes(pipeline)) or len(spec.record_schema.classes),
    )


def pause(engine: sa.Engine, pipeline: str, *, by: By) -> None:
    """Stop reading until a person resumes.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        StreamConflictError: the stream is held already.
    """
    with engine.begin() as connection:
        pipelines.load_spec(connection, pipeline)
        lock_pipeline(connection, pipeline)
        state = stream_status.read(connection, pipeline)
        if state.status in stream_status.HELD:
            raise StreamConflictError(
                f"The stream of {pipeline!r} is {state.status} already: {state.reason}",
                fix="Resume it when it may go on.",
                members={"status": state.status},
            )
        stream_status.set_status(
            connection, pipeline, "paused", reason=by.reason, actor=by.actor, now=now(connection)
        )


def resume(engine: sa.Engine, pipeline: str, *, by: By) -> None:
    """Read again.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        StreamConflictError: the stream is not held.
    """
    with engine.begin() as connection:
        pipelines.load_spec(connection, pipeline)
        lock_pipeline(connection, pipeline)
        state = stream_status.read(connection, pipeline)
        if state.status not in stream_status.HELD:
            raise StreamConflictError(
                f"The stream of {pipeline!r} is {state.status}, not held.",
                fix="There is nothing to resume; GET .../stream shows its state.",
                members={"status": state.status},
            )
        stream_status.set_status(
            connection,
            pipeline,
            "running",
            reason=f"Resumed: {by.reason}",
            actor=by.actor,
            now=now(connection),
        )
