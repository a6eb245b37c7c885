"""Updates: start one, follow it, cancel it, decide on it."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from service.api.bodies import (
    CancelRequest,
    DecisionRequest,
    DecisionView,
    UpdateAccepted,
    UpdateRequest,
    UpdateView,
)
from service.api.limits import JsonRoute
from service.api.parameters import Engine, IdempotencyKey, PipelineName, UpdateId
from service.ingest import push as intake
from service.state import jobs
from service.updates import decisions
from streams.state.tables import reading

router = APIRouter(prefix="/v1", tags=["updates"], route_class=JsonRoute)


@router.post("/pipelines/{pipeline}/updates", status_code=202, summary="Learn now")
def start(
    pipeline: PipelineName,
    engine: Engine,
    response: Response,
    body: Annotated[UpdateRequest | None, Body()] = None,
    key: IdempotencyKey = None,
) -> UpdateAccepted:
    """Cuts what has arrived into an experience, however small, and learns it with what is left over."""
    request = body or UpdateRequest()
    update_id = intake.request_update(
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


@router.post("/updates/{update}/cancel", summary="Cancel")
def cancel(update: UpdateId, body: CancelRequest, engine: Engine) -> UpdateView:
    """Ends an update that waits or learns; its trainer stops within seconds. Its experiences are parked."""
    return UpdateView.of(decisions.cancel(engine, update, actor=body.by, reason=body.reason), None)


@router.get("/updates/{update}/decision", summary="What there is to decide, or was decided")
def show_decision(update: UpdateId, engine: Engine) -> DecisionView:
    with reading(engine) as connection:
        found = jobs.get(connection, update)
    return _view(found)


@router.post("/updates/{update}/decision", summary="Approve or reject")
def decide(update: UpdateId, body: DecisionRequest, engine: Engine) -> DecisionView:
    """Only an update in review takes a decision, and only one. The reason goes to the ledger."""
    decisions.decide_review(engine, update, choice=body.decision, actor=body.by, reason=body.reason)
    with reading(engine) as connection:
        found = jobs.get(connection, update)
    return _view(found)


def _view(update: jobs.Update) -> DecisionView:
    return DecisionView(
        update=update.id,
        state=update.state,
        awaits_decision=update.state == "review",
        verdict=update.verdict,
        decision=update.decision,
    )
