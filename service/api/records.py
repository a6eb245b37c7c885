"""The route that takes records, which are stored durably before the answer."""

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from service.api.bodies.records import RECORD, records_body
from service.api.bodies.streams import RecordsReceipt
from service.api.limits import RecordsRoute
from service.api.parameters import Engine, IdempotencyKey, PipelineName, settings_of
from service.errors import RecordsInvalidError
from service.ingest.push import push

router = APIRouter(prefix="/v1/pipelines", tags=["records"], route_class=RecordsRoute)


@router.post(
    "/{pipeline}/records",
    status_code=202,
    summary="Send records",
    openapi_extra=records_body(RECORD),
)
async def send(
    pipeline: PipelineName, request: Request, engine: Engine, key: IdempotencyKey = None
) -> RecordsReceipt:
    """All records are stored durably before the answer, or none: one bad record refuses the request."""
    body = await request.body()
    # Decoding and the durable write block, so they run outside the event loop.
    try:
        receipt = await run_in_threadpool(
            push,
            engine,
            pipeline,
            body=body,
            content_type=request.headers.get("content-type", ""),
            request_key=key,
            max_backlog_records=settings_of(request).max_backlog_records,
            max_backlog_bytes=settings_of(request).max_backlog_bytes,
        )
    except RecursionError as error:
        raise RecordsInvalidError(
            "The body is nested too deeply to be a list of records.",
            fix="Nest features no deeper than the pipeline's shape, or send them flat.",
        ) from error
    return RecordsReceipt(accepted=receipt.records, sequence=receipt.sequence, duplicate=receipt.duplicate)
