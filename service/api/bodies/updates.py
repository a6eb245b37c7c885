"""Bodies of updates and of the decisions on them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from service.api.bodies.base import Actor, Body, Index, ReasonRequest, StrictBody, moment
from service.gate import schema
from service.state import jobs

VerdictForm = Annotated[Mapping[str, Any], WithJsonSchema(schema.schema())]
"""A verdict as the gate stored it, possibly by an earlier release."""


class UpdateRequest(StrictBody):
    """What to learn now. Empty: everything that has arrived and was not learnt."""

    experiences: Annotated[list[Index], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="Learn these waiting, carried or parked experiences again."
    )
    by: Actor = "anonymous"


class UpdateAccepted(Body):
    """An update that was queued."""

    update: str = Field(description="Its id.")
    state: str
    href: str = Field(description="The path to follow it at.")


class UpdateView(Body):
    """An update: its state, and its result."""

    id: str
    pipeline: str
    state: jobs.State
    requested_by: str = Field(description="A person, or what queued it, such as `trigger`.")
    attempt: int = Field(description="Rises each time a worker takes it.")
    experiences: Sequence[int] = Field(description="What it learns; empty until a worker has taken it.")
    base_version: int | None = Field(description="The champion that the challenger is made from.")
    version: int | None = Field(description="The challenger's version.")
    outcome: str | None = Field(description="The gate's verdict: promote, review or reject.")
    reason: str | None = Field(description="The gate's reason.")
    accuracy: Mapping[str, float] | None = Field(
        description="Of the challenger on each holdout, by index of the experience."
    )
    progress: Mapping[str, Any] | None
    waits_for: str | None = Field(description="The update that must end, or be decided, before this one.")
    run_id: str | None = Field(description="The MLflow run with figures and report.")
    decision: Mapping[str, Any] | None = Field(
        description="A person's decision, with choice (approve, reject or cancel), by, reason and at."
    )
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @staticmethod
    def of(update: jobs.Update, waits_for: jobs.Update | None) -> "UpdateView":
        return UpdateView(
            id=update.id,
            pipeline=update.pipeline,
            state=update.state,
            requested_by=update.requested_by,
            attempt=update.attempt,
            experiences=update.experiences,
            base_version=update.base_version,
            version=update.version,
            outcome=update.outcome,
            reason=update.reason,
            accuracy=update.accuracy,
            progress=update.progress,
            waits_for=waits_for.id if waits_for else None,
            run_id=update.run_id,
            decision=update.decision,
            error=update.error,
            created_at=moment(update.created_at),
            started_at=moment(update.started_at) if update.started_at else None,
            finished_at=moment(update.finished_at) if update.finished_at else None,
        )


class DecisionRequest(ReasonRequest):
    """A person's answer to a review."""

    decision: Literal["approve", "reject"]


class DecisionView(Body):
    """A verdict that awaits a decision, or the decision that was made."""

    update: str
    state: jobs.State
    awaits_decision: bool
    verdict: VerdictForm | None
    decision: Mapping[str, Any] | None

    @staticmethod
    def of(update: jobs.Update) -> "DecisionView":
        return DecisionView(
            update=update.id,
            state=update.state,
            awaits_decision=update.state == "review",
            verdict=update.verdict,
            decision=update.decision,
        )
