"""The front door: records that callers send, and updates that they ask for."""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from service import backlog, decisions, jobs, specs
from service.database import lock_pipeline
from service.errors import (
    BacklogFullError,
    IdempotencyKeyReusedError,
    NothingToLearnError,
    RecordsInvalidError,
)
from streams.base import RequestKeyReusedError
from streams.manifest import Manifest
from streams.pushed import PushedLog, Receipt
from streams.tables import reading
from streams.wire import Decoded, decode_json

MAX_BODY_BYTES = 256 * 2**20
SHOWN_ERRORS = 20


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    records: list[msgspec.Raw]


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
        IdempotencyKeyReusedError: the key was used before, with other records.
    """
    with reading(engine) as connection:
        spec = specs.load_spec(connection, pipeline)
    if spec.source.kind != "pushed":
        raise RecordsInvalidError(
            f"Pipeline {pipeline!r} reads from a {spec.source.kind!r} source; it takes no records here.",
            fix="Declare a pipeline with source {kind: pushed} to send records over HTTP.",
        )
    payloads = _payloads(body, content_type)
    decoded = decode_json(payloads, spec.record_schema, positions=[str(row) for row in range(len(payloads))])
    if decoded.rejected:
        raise _refused(decoded, len(payloads))
    log, schema, records = PushedLog(engine), spec.record_schema, decoded.records
    try:
        full = _too_many(engine, pipeline, len(payloads), max_backlog_records)
        if full is None:
            return log.append(pipeline, schema, records, request_key=request_key)
        first = log.recall(pipeline, schema, records, request_key=request_key) if request_key else None
    except RequestKeyReusedError as error:
        raise IdempotencyKeyReusedError(
            f"The Idempotency-Key {request_key!r} was used before in {pipeline!r}, with other records; none "
            "of these was stored.",
            fix="Send other records under a key of their own; to repeat a request, send the same again.",
        ) from error
    if first is None:
        raise full
    return first


def _too_many(engine: sa.Engine, pipeline: str, sent: int, limit: int) -> BacklogFullError | None:
    """Why no room is left for so many records; None when there is."""
    if sent > limit:
        return BacklogFullError(
            f"{sent} records are more than may ever wait in {pipeline!r}: {limit}.",
            fix="Send fewer records a request.",
        )
    waiting = Manifest(engine).pending_records(pipeline)
    if waiting + sent > limit:
        return BacklogFullError(
            f"{waiting} records of {pipeline!r} wait to be learnt; {limit} is the limit.",
            fix="Send these again later; see GET .../updates for what holds the pipeline up.",
        )
    return None


def _payloads(body: bytes, content_type: str) -> list[bytes]:
    """The JSON text of each record in a request body."""
    media_type = content_type.split(";")[0].strip().lower()
    if media_type == "application/x-ndjson":
        payloads = [line for line in body.splitlines() if line.strip()]
    elif media_type in ("application/json", ""):
        try:
            envelope = msgspec.json.decode(body, type=_Envelope)
        except msgspec.DecodeError as error:
            if not isinstance(error, msgspec.ValidationError):
                raise RecordsInvalidError(
                    f"The body is not JSON: {error}.",
                    fix="Send UTF-8 text as RFC 8259 has it; NaN and Infinity are no numbers there.",
                ) from error
            raise RecordsInvalidError(
                f"The body is not an object with a list of records: {error}.",
                fix='Send {"records": [{"id": "a1", "features": [...], "label": "..."}, ...]}.',
            ) from error
        payloads = [bytes(raw) for raw in envelope.records]
    else:
        raise RecordsInvalidError(
            f"Records of type {media_type!r} are not understood.",
            fix="Send application/json or application/x-ndjson.",
        )
    if not payloads:
        raise RecordsInvalidError(
            "The batch is empty: there is no record in it.",
            fix="Send at least one record, or nothing at all.",
        )
    return payloads


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
        spec = specs.load_spec(connection, pipeline)
    pushed = spec.source.kind == "pushed"
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
