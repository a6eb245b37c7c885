"""Routes of past holdouts: list them, set marks and margins; and the route that lifts a freeze."""

from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Path

from service.api.bodies.base import ReasonRequest
from service.api.bodies.holdouts import (
    FreezeView,
    GoldenMargin,
    GoldenView,
    HoldoutMargin,
    HoldoutsView,
    HoldoutTraffic,
    HoldoutView,
)
from service.api.bodies.pipelines import EntryView
from service.api.limits import JsonRoute
from service.api.parameters import MAX_INTEGER, Engine, PipelineName
from service.state import champions, freezes, golden, holdouts, pipelines
from service.updates import decisions, golden_sets
from service.updates.past import records_judged
from streams.state.manifest import Manifest
from streams.state.tables import reading

router = APIRouter(prefix="/v1/pipelines", tags=["holdouts"], route_class=JsonRoute)

Experience = Annotated[int, Path(ge=0, le=MAX_INTEGER, description="Index of the experience.")]
Golden = Annotated[str, Path(pattern=r"^[a-z][a-z0-9-]{0,62}$", description="Name of the golden set.")]


@router.get("/{pipeline}/holdouts", summary="List past holdouts")
def list_all(pipeline: PipelineName, engine: Engine) -> HoldoutsView:
    """Holdouts of experiences that the champion learnt, oldest first, and golden sets."""
    with reading(engine) as connection:
        return _view(connection, engine, pipeline)


@router.post("/{pipeline}/holdouts/golden/{name}/margin", summary="Set the margin of a golden set")
def set_golden_margin(pipeline: PipelineName, name: Golden, body: GoldenMargin, engine: Engine) -> EntryView:
    """What an update may lose on it, from the next one on. Who set it and why goes to the ledger."""
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
    return EntryView.of(
        golden_sets.set_margin(engine, pipeline, name, margin=body.margin, by=body.decided_by)
    )


@router.post("/{pipeline}/holdouts/golden/{name}/{marking}", summary="Retire or restore a golden set")
def mark_golden(
    pipeline: PipelineName,
    name: Golden,
    marking: golden_sets.GoldenMarking,
    body: ReasonRequest,
    engine: Engine,
) -> EntryView:
    """Updates are not compared on a retired set; its records stay out of training."""
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
    return EntryView.of(golden_sets.mark(engine, pipeline, name, marking=marking, by=body.decided_by))


@router.post("/{pipeline}/holdouts/{experience}/margin", summary="Give a holdout a margin of its own")
def set_margin(
    pipeline: PipelineName, experience: Experience, body: HoldoutMargin, engine: Engine
) -> EntryView:
    """What an update may lose on it, from the next one on. Who set it and why goes to the ledger."""
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
    return EntryView.of(
        decisions.set_holdout_margin(engine, pipeline, experience, margin=body.margin, by=body.decided_by)
    )


@router.post("/{pipeline}/holdouts/{experience}/traffic", summary="Say what traffic a holdout stands for")
def set_traffic(
    pipeline: PipelineName, experience: Experience, body: HoldoutTraffic, engine: Engine
) -> EntryView:
    """A loss that less than the margin of the traffic would see becomes a question from then on."""
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
    return EntryView.of(
        decisions.set_holdout_traffic(engine, pipeline, experience, traffic=body.traffic, by=body.decided_by)
    )


@router.post("/{pipeline}/holdouts/{experience}/{marking}", summary="Retire, pin or keep, or undo it")
def mark(
    pipeline: PipelineName,
    experience: Experience,
    marking: decisions.Marking,
    body: ReasonRequest,
    engine: Engine,
) -> EntryView:
    """Updates are not compared on a retired holdout; a pinned one is always judged whole.

    Of a kept one a person says that its labels are still true, so that its rejections are no question.
    """
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
    return EntryView.of(
        decisions.mark_holdout(engine, pipeline, experience, marking=marking, by=body.decided_by)
    )


@router.post("/{pipeline}/unfreeze", summary="Lift a freeze")
def unfreeze(pipeline: PipelineName, body: ReasonRequest, engine: Engine) -> EntryView:
    """Allows promotion after an audit that did not pass; so does a rollback to the last audited version."""
    with reading(engine) as connection:
        pipelines.load_spec(connection, pipeline)
    return EntryView.of(decisions.unfreeze(engine, pipeline, by=body.decided_by))


def _golden(connection: sa.Connection, pipeline: str) -> list[GoldenView]:
    looks = holdouts.count_looks(connection, pipeline, part="golden")
    sets = golden.of_pipeline(connection, pipeline)
    return [GoldenView.of(each, looks.get(each.number, 0)) for each in sets]


def _view(connection: sa.Connection, engine: sa.Engine, pipeline: str) -> HoldoutsView:
    spec = pipelines.load_spec(connection, pipeline)
    champion = champions.current(connection, pipeline)
    lineage = champions.lineage(connection, pipeline, champion.version if champion else None)
    learnt = tuple(lineage[-1].learnt) if lineage else ()
    found = holdouts.marks(connection, pipeline)
    marks = {index: found.get(index, holdouts.UNMARKED) for index in learnt}
    judged = records_judged(learnt, marks, spec.gate)
    looks = holdouts.count_looks(connection, pipeline)
    audits = holdouts.count_audits(connection, pipeline)
    freeze = freezes.current(connection, pipeline)
    rows = {row.index: row for row in Manifest(engine).experiences(pipeline)}
    return HoldoutsView(
        pipeline=pipeline,
        freeze=FreezeView(update=freeze.update_id, last_audited=freeze.last_audited) if freeze else None,
        holdouts=[
            HoldoutView(
                experience=index,
                records=rows[index].gate.rows,
                judged_records=min(rows[index].gate.rows, judged.get(index, 0)),
                sealed_records=rows[index].audit.rows,
                looks=looks.get(index, 0),
                looks_left=max(0, spec.gate.holdout_looks - looks.get(index, 0)),
                audits=audits[index].looks if index in audits else 0,
                failed_audits=audits[index].failures if index in audits else 0,
                anchor_version=next(each.version for each in lineage if index in each.learnt),
                retired=marks[index].retired,
                pinned=marks[index].pinned,
                kept=marks[index].kept,
                traffic=marks[index].traffic,
                margin=marks[index].margin or spec.gate.margin,
            )
            for index in sorted(learnt)
        ],
        golden=_golden(connection, pipeline),
    )
