"""Routes of a stream: its state, pausing and resuming it, its dead letters and their replay."""

import base64
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Path, Query

from service.api.bodies.base import ReasonRequest, moment
from service.api.bodies.streams import (
    DeadLetterContent,
    DeadLetterView,
    PartitionView,
    ReplayedView,
    ReplayRequest,
    ReplaysView,
    StreamView,
)
from service.api.limits import JsonRoute
from service.api.parameters import Engine, Limit, PipelineName
from service.ingest import replay, status
from service.ingest.status import SHOWN_PARTITIONS
from service.state import pipelines
from streams.state.tables import reading

router = APIRouter(prefix="/v1/pipelines/{pipeline}", tags=["streams"], route_class=JsonRoute)

DeadLetterId = Annotated[
    str, Path(pattern=r"^[0-9a-f]{16}$", description="The dead letter's id, 16 hex digits.")
]
OfReason = Annotated[
    str | None, Query(min_length=1, max_length=50, description="Only those with this reason.")
]
OfReplayed = Annotated[
    bool | None, Query(description="true: only those replayed; false: only those not replayed.")
]

After = Annotated[
    str | None, Query(pattern=r"^[0-9a-f]{16}$", description="Only those that come after this dead letter.")
]


@router.get("/stream", summary="State of a stream")
def show(pipeline: PipelineName, engine: Engine) -> StreamView:
    return _view(engine, pipeline)


@router.post("/stream/pause", summary="Pause a stream")
def pause(pipeline: PipelineName, body: ReasonRequest, engine: Engine) -> StreamView:
    """Ingest reads no further; what it read and has not cut is read again after the resume. Updates go on."""
    status.pause(engine, pipeline, by=body.decided_by)
    return _view(engine, pipeline)


@router.post("/stream/resume", summary="Resume a stream")
def resume(pipeline: PipelineName, body: ReasonRequest, engine: Engine) -> StreamView:
    """Also after the circuit breaker, or a source that lost data, stopped the stream."""
    status.resume(engine, pipeline, by=body.decided_by)
    return _view(engine, pipeline)


@router.get("/dead-letters", summary="List dead letters, newest first")
def list_dead_letters(
    pipeline: PipelineName,
    engine: Engine,
    limit: Limit = 100,
    reason: OfReason = None,
    replayed: OfReplayed = None,
    after: After = None,
) -> list[DeadLetterView]:
    """Payloads that were refused. For the next page, give the last id of this one as `after`."""
    found = replay.page(engine, pipeline, limit=limit, reason=reason, replayed=replayed, after=after)
    return [DeadLetterView.of(each) for each in found.dead_letters]


@router.get("/dead-letters/{dead_letter}", summary="One dead letter with its payload")
def show_dead_letter(pipeline: PipelineName, dead_letter: DeadLetterId, engine: Engine) -> DeadLetterContent:
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
        found = replay.known(connection, pipeline, dead_letter)
    return DeadLetterContent(
        dead_letter=DeadLetterView.of(found),
        text=_text(found.payload),
        base64=base64.b64encode(found.payload).decode(),
    )


@router.post("/dead-letters/replay", summary="Decode dead letters again")
def replay_dead_letters(pipeline: PipelineName, body: ReplayRequest, engine: Engine) -> ReplaysView:
    """Those that are valid now, corrected or not, go back into the stream, each at most once."""
    payload = None if body.payload is None else body.payload.encode()
    chosen, following = body.dead_letters, None
    if chosen is None:
        page = replay.page(engine, pipeline, reason=body.reason, replayed=False, after=body.after)
        # Within the page the oldest first, as they came.
        chosen, following = [each.name for each in reversed(page.dead_letters)], page.next
    found = replay.replay(engine, pipeline, chosen=chosen, payload=payload)
    done = sum(each.replayed for each in found)
    return ReplaysView(
        replayed=done,
        refused=len(found) - done,
        next=following,
        dead_letters=[
            ReplayedView(dead_letter=each.dead_letter, replayed=each.replayed, reason=each.reason)
            for each in found
        ],
    )


def _view(engine: sa.Engine, pipeline: str) -> StreamView:
    found = status.look(engine, pipeline)
    return StreamView(
        pipeline=pipeline,
        status=found.state.status,
        reason=found.state.reason,
        actor=found.state.actor,
        since=moment(found.state.since) if found.state.since else None,
        source=found.spec.source.kind,
        trigger=found.spec.trigger.kind,
        partitions=[
            PartitionView(partition=name, cursor=cursor)
            for name, cursor in sorted(found.cursors.items())[:SHOWN_PARTITIONS]
        ],
        partition_count=len(found.cursors),
        experiences=found.experiences,
        records=found.records,
        last_cut=found.last_cut,
        pending_records=int(found.state.pending.get("records", 0)),
        unmatched_records=int(found.state.pending.get("unmatched", 0)),
        backlog_records=found.backlog_records,
        duplicates=found.state.duplicates,
        held_out=found.state.held_out,
        aged_out=found.state.aged_out,
        dead_letters=found.dead_letters,
        replayed_dead_letters=found.replayed_dead_letters,
        classes=found.classes,
        warnings=found.warnings,
    )


def _text(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None
