"""Streams: how one stands, pausing and resuming it, its dead letters and their replay."""

import base64
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Path, Query

from service.api.bodies import (
    DeadLetterView,
    DeadLetterWhole,
    HoldRequest,
    PartitionView,
    ReplayedView,
    ReplayRequest,
    ReplaysView,
    StreamView,
    moment,
)
from service.api.limits import JsonRoute
from service.api.parameters import Engine, Limit, PipelineName
from service.ingest import replay as replays
from service.ingest import status
from service.ingest.status import SHOWN_PARTITIONS
from service.state import pipelines
from streams.state.tables import reading

router = APIRouter(prefix="/v1/pipelines/{pipeline}", tags=["streams"], route_class=JsonRoute)

Letter = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", description="The letter's name, 16 hex digits.")]
OfReason = Annotated[str | None, Query(min_length=1, max_length=50, description="Only of this reason.")]
OfReplayed = Annotated[bool | None, Query(description="Only those replayed, or not replayed.")]

After = Annotated[
    str | None, Query(pattern=r"^[0-9a-f]{16}$", description="Only those that come after this letter.")
]


@router.get("/stream", summary="How a stream stands")
def show(pipeline: PipelineName, engine: Engine) -> StreamView:
    return _view(engine, pipeline)


@router.post("/stream/pause", summary="Read no further")
def pause(pipeline: PipelineName, body: HoldRequest, engine: Engine) -> StreamView:
    """What was read and not yet cut is read again when the stream is resumed; updates go on."""
    status.pause(engine, pipeline, actor=body.by, reason=body.reason)
    return _view(engine, pipeline)


@router.post("/stream/resume", summary="Read on")
def resume(pipeline: PipelineName, body: HoldRequest, engine: Engine) -> StreamView:
    """Also after the circuit breaker, or a source that lost data, stopped the stream."""
    status.resume(engine, pipeline, actor=body.by, reason=body.reason)
    return _view(engine, pipeline)


@router.get("/dead-letters", summary="Payloads that did not become records, newest first")
def dead_letters(
    pipeline: PipelineName,
    engine: Engine,
    limit: Limit = 100,
    reason: OfReason = None,
    replayed: OfReplayed = None,
    after: After = None,
) -> list[DeadLetterView]:
    """For the next page, give the last letter of this one as `after`."""
    found = replays.page(engine, pipeline, limit=limit, reason=reason, replayed=replayed, after=after)
    return [DeadLetterView.of(letter) for letter in found.letters]


@router.get("/dead-letters/{letter}", summary="One dead letter, with what it holds")
def dead_letter(pipeline: PipelineName, letter: Letter, engine: Engine) -> DeadLetterWhole:
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
        found = replays.known(connection, pipeline, letter)
    return DeadLetterWhole(
        letter=DeadLetterView.of(found),
        text=_text(found.payload),
        base64=base64.b64encode(found.payload).decode(),
    )


@router.post("/dead-letters/replay", summary="Decode dead letters again")
def replay(pipeline: PipelineName, body: ReplayRequest, engine: Engine) -> ReplaysView:
    """Those that fit now, mended or not, go back into the stream, each at most once."""
    payload = None if body.payload is None else body.payload.encode()
    chosen, following = body.letters, None
    if chosen is None:
        page = replays.page(engine, pipeline, reason=body.reason, replayed=False, after=body.after)
        # Within the page the oldest first, as they came.
        chosen, following = [letter.name for letter in reversed(page.letters)], page.next
    found = replays.replay(engine, pipeline, chosen=chosen, payload=payload)
    done = sum(each.replayed for each in found)
    return ReplaysView(
        replayed=done,
        refused=len(found) - done,
        next=following,
        letters=[
            ReplayedView(letter=each.letter, replayed=each.replayed, reason=each.reason) for each in found
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
        waiting_halves=int(found.state.pending.get("waiting", 0)),
        backlog_records=found.backlog_records,
        duplicates=found.state.duplicates,
        aged_out=found.state.aged_out,
        dead_letters=found.dead_letters,
        replayed_letters=found.replayed_letters,
        classes=found.classes,
    )


def _text(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None
