"""The front door: records that callers send, and updates that they ask for."""

from collections.abc import Sequence

import sqlalchemy as sa

from service.errors import (
    BacklogFullError,
    BatchTooLargeError,
    HoldfastError,
    IdempotencyKeyReusedError,
    NothingToLearnError,
    RecordsInvalidError,
)
from service.ingest import bodies
from service.ingest.sources import pushed_partition
from service.pipelines import PipelineSpec
from service.state import backlog, jobs, pipelines
from service.state.database import lock_pipeline
from service.updates import decisions
from streams.base import RequestKeyReusedError
from streams.records import LabelMap
from streams.state.manifest import Manifest
from streams.state.pushed import PushedLog, Receipt
from streams.state.tables import reading
from streams.wire.decode import Decoded, decode

SHOWN_ERRORS = 20


def push(
    engine: sa.Engine,
    pipeline: str,
    *,
    body: bytes,
    content_type: str,
    request_key: str | None,
    max_backlog_records: int,
) -> Receipt:
    """Store the records of one request durably: all of them, or none.

    A request that is repeated with its key is answered with the first receipt, a full backlog or not.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        RecordsInvalidError: the body is not a list of records, is empty, or holds one that does not fit.
        BacklogFullError: too many records wait already.
        BatchTooLargeError: so many records may never wait.
        IdempotencyKeyReusedError: the key was used before, with other records.
    """
    with reading(engine) as connection:
        spec = pipelines.load_spec(connection, pipeline)
    if not spec.pushable:
        raise RecordsInvalidError(
            f"Pipeline {pipeline!r} reads from a {spec.source.kind!r} source; it takes no records here.",
            fix="Declare a pipeline with source {kind: pushed} to send records over HTTP.",
        )
    schema = spec.record_schema
    # Names only: which ids the classes of an open set have, the ingest side alone decides.
    labels = LabelMap(schema)
    batch = bodies.batch(body, content_type)
    decoded = decode(batch, schema, labels)
    if decoded.rejected:
        raise _refused(decoded, len(batch.positions))
    log, records = PushedLog(engine), decoded.records
    try:
        full = _too_many(engine, spec, len(records), max_backlog_records)
        if full is None:
            return log.append(pipeline, schema, records, names=labels.names, request_key=request_key)
        if request_key is None:
            raise full
        first = log.recall(pipeline, schema, records, names=labels.names, request_key=request_key)
    except RequestKeyReusedError as error:
        raise IdempotencyKeyReusedError(
            f"The Idempotency-Key {request_key!r} was used before in {pipeline!r}, with other records; none "
            "of these was stored.",
            fix="Send other records under a key of their own; to repeat a request, send the same again.",
        ) from error
    if first is None:
        raise full
    return first


def _too_many(engine: sa.Engine, spec: PipelineSpec, sent: int, limit: int) -> HoldfastError | None:
    """Why no room is left for so many records; None when there is."""
    pipeline = spec.name
    if sent > limit:
        return BatchTooLargeError(
            f"{sent} records are more than may ever wait in {pipeline!r}: {limit}.",
            fix="Send fewer records a request.",
        )
    waiting = Manifest(engine).pending_records(pipeline, partition=pushed_partition(spec))
    if waiting + sent > limit:
        return BacklogFullError(
            f"{waiting} records of {pipeline!r} wait to be learnt; {limit} is the limit.",
            fix="Send these again later; see GET .../updates for what holds the pipeline up.",
        )
    return None


def _refused(decoded: Decoded, sent: int) -> RecordsInvalidError:
    errors = [
        {"record": int(bad.position), "reason": bad.reason, "detail": bad.detail}
        for bad in decoded.rejected[:SHOWN_ERRORS]
    ]
    count = len(decoded.rejected)
    first = errors[0]
    return RecordsInvalidError(
        f"{count} of {sent} records {'does' if count == 1 else 'do'} not fit; none was stored. "
        f"Record {first['record']}: {first['detail']}",
        fix="Correct or leave out the records under `errors`, and send the batch again.",
        members={"errors": errors, "rejected": count},
    )


def request_update(
    engine: sa.Engine,
    pipeline: str,
    *,
    by: str,
    request_key: str | None,
    experiences: Sequence[int] | None,
) -> str:
    """Queue an update that learns what has arrived, or what `experiences` names; answers its id.

    Raises:
        PipelineUnknownError: there is no such pipeline.
        UpdateDuplicateError: the key was used before.
        NothingToLearnError: nothing has arrived, and nothing is left over.
    """
    manifest = Manifest(engine)
    with reading(engine) as connection:
        spec = pipelines.load_spec(connection, pipeline)
    pushed = spec.source.kind == "pushed"
    # Of another source nobody knows what it holds before it is read.
    pending = manifest.pending_records(pipeline) if pushed else None
    with engine.begin() as connection:
        # So that nothing asked for again is settled between the look at its state and the change.
        lock_pipeline(connection, pipeline)
        update_id = jobs.enqueue(
            connection,
            pipeline,
            requested_by=by,
            wants_cut=experiences is None and pending != 0,
            request_key=request_key,
            asked=experiences,
        )
        if experiences is not None:
            decisions.learn_again(connection, pipeline, experiences=experiences)
        elif pending == 0 and not backlog.to_learn(connection, pipeline, limit=1):
            raise NothingToLearnError(
                f"No record of {pipeline!r} waits to be learnt, so no update was started.",
                fix="Send records with POST /v1/pipelines/{pipeline}/records first.",
            )
    return update_id
