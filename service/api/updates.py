"""Routes of updates: start one, follow it, cancel it, decide on it."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from service.api.bodies.base import ReasonRequest
from service.api.bodies.updates import (
    DecisionRequest,
    DecisionView,
    UpdateAccepted,
    UpdateRequest,
    UpdateView,
)
from service.api.limits import JsonRoute
from service.api.parameters import Engine, IdempotencyKey, PipelineName, UpdateId
from service.state import jobs
from service.updates import decisions, requests
from streams.state.tables import reading

router = APIRouter(prefix="/v1", tags=["updates"], route_class=JsonRoute)


@router.post("/pipelines/{pipeline}/updates", status_code=202, summary="Start an update now")
def start(
    pipeline: PipelineName,
    engine: Engine,
    response: Response,
    body: Annotated[UpdateRequest | None, Body()] = None,
    key: IdempotencyKey = None,
) -> UpdateAccepted:
    """Cuts the pending records into an experience, however few, and learns it with what still waits."""
    request = body or UpdateRequest()
    update_id = requests.request_update(
        engine, pipeline, by=request.by, request_key=key, experiences=request.experiences
    )
    href = f"/v1/updates/{update_id}"
    response.headers["Location"] = href
    return UpdateAccepted(update=update_id, state="queued", href=href)


@router.get("/updates/{update}", summary="One update")
def show(update: UpdateId, engine: Engine) -> UpdateView:
    with reading(engine) as connection:
        found = jobs.get(connection, update)
        return UpdateView.of(found, jobs.blocking(connection, found))


@router.post("/updates/{update}/cancel", summary="Cancel an update")
def cancel(update: UpdateId, body: ReasonRequest, engine: Engine) -> UpdateView:
    """Ends an update that is queued or learning, within seconds, and parks its experiences."""
    return UpdateView.of(decisions.cancel(engine, update, by=body.decided_by), None)


@router.get("/updates/{update}/decision", summary="The verdict to decide on, or the decision")
def show_decision(update: UpdateId, engine: Engine) -> DecisionView:
    with reading(engine) as connection:
        found = jobs.get(connection, update)
    return DecisionView.of(found)


@router.post("/updates/{update}/decision", summary="Approve or reject an update in review")
def decide(update: UpdateId, body: DecisionRequest, engine: Engine) -> DecisionView:
    """An update in review takes one decision. Its reason goes to the ledger."""
    decisions.decide_review(engine, update, choice=body.decision, by=body.decided_by)
    with reading(engine) as connection:
        found = jobs.get(connection, update)
    return DecisionView.of(found)
