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
NEARLY_ALL = 0.5
"""Share of all records of a stream, from which on those that were refused are warned about at once."""


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
    warnings: tuple[str, ...] = ()
    """What is wrong while it runs, and what to do."""


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
    refused = manifest.count_dead_letters(pipeline)
    pushed = pushed_partition(spec)
    return Stream(
        spec=spec,
        state=state,
        cursors=manifest.cursors(pipeline),
        experiences=experiences,
        records=records,
        last_cut=last[0].cut_reason if last else None,
        backlog_records=manifest.pending_records(pipeline, partition=pushed) if spec.pushable else None,
        dead_letters=refused,
        replayed_dead_letters=sum(manifest.count_dead_letters(pipeline, replayed=True).values()),
        classes=len(manifest.classes(pipeline)) or len(spec.record_schema.classes),
        warnings=(
            *_refusals(manifest, pipeline, refused, taken=records + _held(state)),
            *state.pending.get("notes", ()),
        ),
    )


def _held(state: StreamState) -> int:
    """Records that were read, fit, and are in no experience."""
    waiting = sum(int(state.pending.get(name, 0)) for name in ("records", "unmatched"))
    return waiting + state.duplicates + state.held_out + state.aged_out


def _refusals(
    manifest: Manifest, pipeline: str, refused: Mapping[str, int], *, taken: int
) -> tuple[str, ...]:
    """A warning where nearly all records were refused: the circuit breaker waits for a whole window."""
    count = sum(refused.values())
    if not count or count <= NEARLY_ALL * (count + taken):
        return ()
    newest = manifest.dead_letters(pipeline, limit=1)
    example = f" The newest: {newest[0].detail}" if newest else ""
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(refused.items()))
    all_of = "All" if not taken else f"{count} of"
    return (
        f"{all_of} {count + taken} records that were read do not fit ({reasons}).{example} Look at the dead "
        "letters; correct the declaration in a new pipeline, or what is sent.",
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
