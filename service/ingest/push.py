"""Records that callers send over HTTP: decoded, checked, and stored in the pushed log."""

import sqlalchemy as sa

from service.errors import (
    BacklogFullError,
    BatchTooLargeError,
    HoldfastError,
    IdempotencyKeyReusedError,
    RecordsInvalidError,
)
from service.ingest import bodies
from service.ingest.sources import pushed_partition
from service.pipelines import PipelineSpec
from service.state import pipelines
from streams.base import RawBatch, RequestKeyReusedError
from streams.records import LabelMap, Records
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
    max_backlog_bytes: int | None = None,
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
    # Names only: ingest alone gives the classes of an open set their ids.
    labels = LabelMap(spec.record_schema)
    records = _decoded(spec, labels, bodies.batch(body, content_type))
    log, schema = PushedLog(engine), spec.record_schema
    if max_backlog_bytes is not None:
        max_backlog_records = min(max_backlog_records, max_backlog_bytes // spec.record_bytes)
    try:
        full = _problem(engine, spec, len(records), max_backlog_records)
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


def _decoded(spec: PipelineSpec, labels: LabelMap, batch: RawBatch) -> Records:
    """The records of a batch, all of which must fit the schema.

    Raises:
        RecordsInvalidError: it names the first records that do not fit.
    """
    decoded = decode(batch, spec.record_schema, labels)
    if decoded.rejected:
        raise refused(decoded, len(batch.positions))
    return decoded.records


def _problem(engine: sa.Engine, spec: PipelineSpec, sent: int, limit: int) -> HoldfastError | None:
    """Why there is no room for so many records; None when there is."""
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


def refused(decoded: Decoded, sent: int) -> RecordsInvalidError:
    """The refusal of a request of `sent` records, with the first that do not fit."""
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
