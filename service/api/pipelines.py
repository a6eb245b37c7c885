"""Routes of pipelines: declare one, read its champion, ledger and experiences, roll back."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Body, Query

from service.api.bodies.pipelines import (
    ChampionView,
    EntryView,
    ExperienceView,
    GatePlanView,
    LedgerView,
    OutcomesView,
    PipelineView,
    RollbackRequest,
)
from service.api.bodies.updates import UpdateView
from service.api.limits import JsonRoute
from service.api.parameters import MAX_INTEGER, Configured, Engine, Limit, PipelineName
from service.declaration import gate_plan, require_hope
from service.errors import ChampionMissingError
from service.ingest.sources import pushed_partition, require_allowed
from service.pipelines import PipelineSpec, parse
from service.state import backlog, champions, jobs, ledger, outcomes, pipelines
from service.updates import decisions
from streams.state.manifest import Manifest
from streams.state.tables import reading

router = APIRouter(prefix="/v1/pipelines", tags=["pipelines"], route_class=JsonRoute)

First = Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Index of the first experience.")]
After = Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Sequence of the last entry already read.")]


@router.post(
    "",
    status_code=201,
    summary="Declare a pipeline",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PipelineDeclaration"}}},
        }
    },
)
def create(document: Annotated[dict[str, Any], Body()], engine: Engine, settings: Configured) -> PipelineView:
    """A pipeline that cannot work is refused, with every reason under `errors`.

    So is a gate that would ask a person about most harmless updates, unless it says `accept: true`.
    """
    spec = parse(document)
    require_allowed(spec, settings)
    with engine.begin() as connection:
        # First, so that a name which is taken is refused as such.
        pipelines.create(connection, spec)
        require_hope(spec)
    return _view(engine, spec, outcomes.Outcomes(), plan=True)


@router.get("", summary="List pipelines")
def list_all(engine: Engine) -> list[PipelineView]:
    with reading(engine) as connection:
        names = pipelines.names(connection)
        declared = [pipelines.load_spec(connection, name) for name in names]
        counted = outcomes.latest(connection, names)
    return [_view(engine, spec, counted[spec.name]) for spec in declared]


@router.get("/{pipeline}", summary="One pipeline and its state")
def show(pipeline: PipelineName, engine: Engine) -> PipelineView:
    with reading(engine) as connection:
        spec = pipelines.load_spec(connection, pipeline)
        counted = outcomes.latest(connection, [pipeline])
    return _view(engine, spec, counted[pipeline], plan=True)


@router.get("/{pipeline}/experiences", summary="Experiences and their states")
def experiences(
    pipeline: PipelineName, engine: Engine, first: First = 0, limit: Limit = 1000
) -> list[ExperienceView]:
    """Oldest first, from the experience with index `first`."""
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
        states = backlog.states(connection, pipeline)
    rows = Manifest(engine).experiences(pipeline, first=first, limit=limit)
    return [ExperienceView.of(row, states.get(row.index, ("waiting", ""))) for row in rows]


@router.get("/{pipeline}/updates", summary="Updates, newest first")
def updates(pipeline: PipelineName, engine: Engine, limit: Limit = 100) -> list[UpdateView]:
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
        listed = jobs.of_pipeline(connection, pipeline, limit=limit)
        return [UpdateView.of(update, jobs.blocking(connection, update)) for update in listed]


@router.get("/{pipeline}/champion", summary="The version in use")
def champion(pipeline: PipelineName, engine: Engine) -> ChampionView:
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
        return _champion(connection, pipeline)


@router.post("/{pipeline}/rollback", summary="Bring a former champion back")
def roll_back(pipeline: PipelineName, body: RollbackRequest, engine: Engine) -> ChampionView:
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
    decisions.roll_back(engine, pipeline, version=body.version, by=body.decided_by)
    with reading(engine) as connection:
        return _champion(connection, pipeline)


@router.get("/{pipeline}/ledger", summary="Read the ledger")
def read_ledger(pipeline: PipelineName, engine: Engine, after: After = 0, limit: Limit = 1000) -> LedgerView:
    """Every decision, oldest first, from the entry after `after`.

    `intact`: each entry of the page follows from the one before, and the last page ends at the champion.
    """
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
        # One more on either side: what the page follows, and whether there is another page.
        found = ledger.entries(connection, pipeline, after=max(after - 1, 0), limit=limit + 2)
        before = [entry for entry in found if entry.sequence <= after][-1:]
        rest = found[len(before) :]
        page, is_last = rest[:limit], len(rest) <= limit
        ends = not is_last or ledger.ends_at_champion(connection, pipeline)
    follows = ledger.first_break(page, after=before[0] if before else None) is None
    return LedgerView(
        pipeline=pipeline,
        entries=[EntryView.of(entry) for entry in page],
        next_after=None if is_last else page[-1].sequence,
        intact=follows and ends and (bool(before) or not after or not page),
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


def _view(
    engine: sa.Engine, spec: PipelineSpec, counted: outcomes.Outcomes, *, plan: bool = False
) -> PipelineView:
    manifest = Manifest(engine)
    pushed = pushed_partition(spec) if spec.pushable else None
    with reading(engine) as connection:
        present = champions.current(connection, spec.name)
        live = jobs.live(connection, spec.name)
    return PipelineView(
        spec=spec,
        gate_plan=GatePlanView.of(gate_plan(spec)) if plan else None,
        experiences=manifest.totals(spec.name)[0],
        pending_records=manifest.pending_records(spec.name, partition=pushed) if pushed else None,
        dead_letters=manifest.count_dead_letters(spec.name),
        champion_version=present.version if present else None,
        live_updates=live,
        outcomes=OutcomesView.of(counted),
    )
