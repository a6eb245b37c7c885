"""Pipelines: declare one, send it records, read its champion, ledger and experiences, roll back."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response

from service import backlog, champions, decisions, intake, jobs, ledger, specs
from service.api.bodies import (
    ChampionView,
    EntryView,
    ExperienceView,
    LedgerView,
    PipelineView,
    RecordsReceipt,
    RollbackRequest,
    UpdateView,
)
from service.errors import ChampionMissingError
from service.pipelines import PipelineSpec, parse
from service.settings import Settings
from streams.manifest import Manifest

router = APIRouter(prefix="/v1/pipelines", tags=["pipelines"])

IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=255, description="Makes a retry safe."),
]


def engine_of(request: Request) -> sa.Engine:
    engine: sa.Engine = request.app.state.engine
    return engine


def settings_of(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


Engine = Annotated[sa.Engine, Depends(engine_of)]


@router.post(
    "",
    status_code=201,
    summary="Declare a pipeline",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": PipelineSpec.model_json_schema(
                        ref_template="#/components/schemas/{model}", mode="validation"
                    )
                }
            },
        }
    },
)
def create(document: Annotated[dict[str, Any], Body()], engine: Engine) -> PipelineView:
    """Checks the whole spec first; a pipeline that cannot work is refused with the reason."""
    spec = parse(document)
    with engine.begin() as connection:
        specs.create(connection, spec)
    return _view(engine, spec)


@router.get("", summary="List pipelines")
def list_all(engine: Engine) -> list[PipelineView]:
    with engine.begin() as connection:
        declared = [specs.load_spec(connection, name) for name in specs.names(connection)]
    return [_view(engine, spec) for spec in declared]


@router.get("/{pipeline}", summary="One pipeline and how it stands")
def show(pipeline: str, engine: Engine) -> PipelineView:
    with engine.begin() as connection:
        spec = specs.load_spec(connection, pipeline)
    return _view(engine, spec)


@router.post(
    "/{pipeline}/records",
    status_code=202,
    summary="Send records",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "properties": {"records": {"type": "array"}}}
                },
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        }
    },
)
async def push(pipeline: str, request: Request, engine: Engine, key: IdempotencyKey = None) -> RecordsReceipt:
    """All of them are stored durably before the answer, or none: one bad record refuses the request."""
    from starlette.concurrency import run_in_threadpool

    body = await request.body()
    receipt = await run_in_threadpool(
        intake.push,
        engine,
        pipeline,
        body=body,
        content_type=request.headers.get("content-type", "application/json"),
        request_key=key,
        max_backlog_records=settings_of(request).max_backlog_records,
    )
    return RecordsReceipt(accepted=receipt.records, sequence=receipt.sequence, duplicate=receipt.duplicate)


@router.get("/{pipeline}/experiences", summary="Experiences, and what became of each")
def experiences(pipeline: str, engine: Engine) -> list[ExperienceView]:
    with engine.begin() as connection:
        specs.load_spec(connection, pipeline)
        states = backlog.states(connection, pipeline)
    rows = Manifest(engine).experiences(pipeline)
    return [ExperienceView.of(row, states.get(row.index, ("waiting", ""))) for row in rows]


@router.get("/{pipeline}/updates", summary="Updates, newest first")
def updates(
    pipeline: str, engine: Engine, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[UpdateView]:
    with engine.begin() as connection:
        specs.load_spec(connection, pipeline)
        listed = jobs.of_pipeline(connection, pipeline, limit=limit)
        return [UpdateView.of(update, jobs.blocking(connection, update)) for update in listed]


@router.get("/{pipeline}/champion", summary="The version in use")
def champion(pipeline: str, engine: Engine) -> ChampionView:
    with engine.begin() as connection:
        specs.load_spec(connection, pipeline)
        return _champion(connection, pipeline)


@router.post("/{pipeline}/rollback", summary="Bring a former champion back")
def roll_back(pipeline: str, body: RollbackRequest, engine: Engine) -> ChampionView:
    with engine.begin() as connection:
        specs.load_spec(connection, pipeline)
    decisions.roll_back(engine, pipeline, version=body.version, actor=body.by, reason=body.reason)
    with engine.begin() as connection:
        return _champion(connection, pipeline)


@router.get("/{pipeline}/ledger", summary="Every decision, in order")
def read_ledger(pipeline: str, engine: Engine, response: Response) -> LedgerView:
    with engine.begin() as connection:
        specs.load_spec(connection, pipeline)
        chain = ledger.entries(connection, pipeline, limit=1_000_000)
    response.headers["Cache-Control"] = "no-store"
    return LedgerView(
        pipeline=pipeline,
        entries=[EntryView.of(entry) for entry in chain],
        intact=ledger.first_break(chain) is None,
    )


def _champion(connection: sa.Connection, pipeline: str) -> ChampionView:
    present = champions.current(connection, pipeline)
    version = champions.version(connection, pipeline, present.version) if present else None
    if present is None or version is None:
        raise ChampionMissingError(
            f"Pipeline {pipeline!r} has no champion yet.",
            fix="Send records until an update is promoted; GET .../updates shows how far it is.",
        )
    return ChampionView.of(present, version)


def _view(engine: sa.Engine, spec: PipelineSpec) -> PipelineView:
    manifest = Manifest(engine)
    pushed = spec.source.kind == "pushed"
    with engine.begin() as connection:
        present = champions.current(connection, spec.name)
        live = jobs.live(connection, spec.name)
    return PipelineView(
        spec=spec,
        experiences=len(manifest.experiences(spec.name)),
        pending_records=manifest.pending_records(spec.name) if pushed else None,
        champion_version=present.version if present else None,
        live_updates=live,
    )
