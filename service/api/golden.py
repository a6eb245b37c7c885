"""Routes that take the records of golden sets, and the labels of relabelled holdouts."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool

from service.api.bodies.base import ReasonRequest
from service.api.bodies.holdouts import GoldenAdded, GoldenRequest
from service.api.bodies.records import LABELLED, RECORD, records_body
from service.api.limits import RecordsRoute
from service.api.parameters import MAX_INTEGER, Configured, Engine, PipelineName
from service.errors import RecordsInvalidError
from service.ingest import golden, relabel
from service.ingest.golden import Added
from service.storage import store_location

router = APIRouter(prefix="/v1/pipelines", tags=["holdouts"], route_class=RecordsRoute)


@router.post(
    "/{pipeline}/holdouts", status_code=201, summary="Add a golden set", openapi_extra=records_body(RECORD)
)
async def add(
    pipeline: PipelineName,
    request: Request,
    engine: Engine,
    settings: Configured,
    asked: Annotated[GoldenRequest, Query()],
) -> GoldenAdded:
    """Records that are never trained on, and that every later update is compared on. All, or none."""
    body = await request.body()

    def added() -> Added:
        return golden.add(
            engine,
            store_location(settings).open(),
            pipeline,
            name=asked.name,
            margin=asked.margin,
            body=body,
            content_type=request.headers.get("content-type", ""),
            by=asked.decided_by,
        )

    try:
        return GoldenAdded.of(await run_in_threadpool(added))
    except RecursionError as error:
        raise _too_deep() from error


@router.post(
    "/{pipeline}/holdouts/{experience}/relabel",
    status_code=201,
    summary="Correct the labels of a past holdout",
    openapi_extra=records_body(LABELLED),
)
async def correct(
    pipeline: PipelineName,
    experience: Annotated[int, Path(ge=0, le=MAX_INTEGER, description="Index of the experience.")],
    request: Request,
    engine: Engine,
    settings: Configured,
    asked: Annotated[ReasonRequest, Query()],
) -> GoldenAdded:
    """Records of the holdout by id, with their right labels. A golden set replaces it."""
    body = await request.body()

    def relabelled() -> Added:
        return relabel.relabel(
            engine,
            store_location(settings).open(),
            pipeline,
            experience,
            body=body,
            content_type=request.headers.get("content-type", ""),
            by=asked.decided_by,
        )

    try:
        return GoldenAdded.of(await run_in_threadpool(relabelled))
    except RecursionError as error:
        raise _too_deep() from error


def _too_deep() -> RecordsInvalidError:
    return RecordsInvalidError(
        "The body is nested too deeply to be a list of records.",
        fix="Nest features no deeper than the pipeline's shape, or send them flat.",
    )
