"""Bodies of pipelines, their experiences, champions and ledgers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from service.api.bodies.base import Body, ReasonRequest, moment
from service.api.parameters import MAX_INTEGER
from service.gate.proportions import exact_interval
from service.pipelines import PipelineSpec
from service.state import champions, ledger
from service.state.outcomes import LATEST, Outcomes
from streams.state.manifest import ExperienceRow

if TYPE_CHECKING:
    from service.gate.simulation.declared import DeclaredPlan

Bound = Literal["about", "at least", "at most"]


class AskedView(Body):
    """How often a person is asked about updates that lose nothing, by simulation."""

    churn: float = Field(description="Share of the answers that each update flips.")
    per_100: float = Field(
        description="Updates asked about, of the first 100; a mean over simulated pipelines."
    )
    low: float = Field(description="With `high` the 95 % interval of this mean.")
    high: float
    bound: Bound = Field(
        description="about: these settings ask so often; else at least, or at most so often."
    )


class GatePlanView(Body):
    """What the gate means for the experiences that the trigger declares."""

    sentence: str = Field(description="The plan in one line.")
    records: int | None = Field(
        description="Records of an experience that the numbers are for; null: the trigger declares none."
    )
    records_bound: Bound = Field(
        description="about: experiences have so many; else at least, or at most so many."
    )
    gate_records: int | None = Field(description="Of these, records that every later update is judged on.")
    sealed_records: int | None = Field(description="Of these, records that only audits read.")
    asked: Sequence[AskedView] = Field(
        description="One entry a churn; empty: no figure is known for these settings."
    )
    unseen_loss: float | None = Field(
        description="Share of its right answers that one experience may lose without being seen."
    )
    halved_at: int | None = Field(
        description="Records of an experience that halve both; null: not known, or none do."
    )
    notes: Sequence[str] = Field(description="Promises that are never kept with what is declared.")
    hopeless: str | None = Field(
        description="Why most harmless updates wait for a person; null: they do not, or it is not known."
    )

    @staticmethod
    def of(plan: "DeclaredPlan") -> "GatePlanView":
        return GatePlanView(
            sentence=plan.sentence,
            records=plan.records,
            records_bound=plan.records_bound,
            gate_records=plan.gate_records,
            sealed_records=plan.sealed_records,
            asked=[
                AskedView(churn=churn, per_100=rate.mean, low=rate.low, high=rate.high, bound=rate.bound)
                for churn, rate in plan.asked
            ],
            unseen_loss=plan.unseen_loss,
            halved_at=plan.halved_at,
            notes=plan.notes,
            hopeless=plan.hopeless,
        )


class RateView(Body):
    """How many updates had one outcome, and how many of 100 that is."""

    count: int = Field(description="Updates that were counted.")
    per_100: float | None = Field(description="Of 100 updates; null: none was judged yet.")
    low: float = Field(description="Of 100 updates in the long run, at least: exact 95 % interval.")
    high: float = Field(description="Of 100 updates in the long run, at most.")

    @staticmethod
    def of(count: int, judged: int) -> "RateView":
        low, high = (round(100 * limit, 2) for limit in exact_interval(count, judged))
        per_100 = round(100 * count / judged, 2) if judged else None
        return RateView(count=count, per_100=per_100, low=low, high=high)


class LeftOutView(Body):
    """Updates that ended without a verdict since the oldest one that is counted."""

    nothing_to_learn: int = Field(description="No record had arrived.")
    failed: int = Field(description="An error, or a champion that was moved meanwhile.")
    cancelled: int = Field(description="By a person.")


class OutcomesView(Body):
    """What the gate decided of the latest updates, whatever a person decided afterwards."""

    updates: int = Field(description=f"Latest updates with a verdict, at most {LATEST}.")
    promoted: RateView
    asked: RateView = Field(description="The gate asked a person.")
    rejected: RateView
    asked_by: Mapping[str, RateView] = Field(
        description="Guard of the finding that decided, and the questions that it caused; they add up to "
        "`asked`. `unknown`: the stored verdict does not say."
    )
    rejected_by: Mapping[str, RateView] = Field(description="The same of rejections.")
    left_out: LeftOutView

    @staticmethod
    def of(outcomes: Outcomes) -> "OutcomesView":
        judged = outcomes.judged

        def rates(by_cause: Mapping[str, int]) -> dict[str, RateView]:
            return {cause: RateView.of(count, judged) for cause, count in by_cause.items()}

        return OutcomesView(
            updates=judged,
            promoted=RateView.of(outcomes.promoted, judged),
            asked=RateView.of(sum(outcomes.asked.values()), judged),
            rejected=RateView.of(sum(outcomes.rejected.values()), judged),
            asked_by=rates(outcomes.asked),
            rejected_by=rates(outcomes.rejected),
            left_out=LeftOutView(
                nothing_to_learn=outcomes.nothing_to_learn,
                failed=outcomes.failed,
                cancelled=outcomes.cancelled,
            ),
        )


class PipelineView(Body):
    """A pipeline and its current state."""

    spec: PipelineSpec = Field(description="As declared, with every default.")
    gate_plan: GatePlanView | None = Field(
        description="What the gate means for what is declared; null in a list of pipelines."
    )
    experiences: int = Field(description="Experiences cut so far.")
    pending_records: int | None = Field(
        description="Pushed records not yet cut into an experience; null: none can be pushed."
    )
    dead_letters: Mapping[str, int] = Field(
        description="Records that did not fit, by reason; without those that were replayed."
    )
    champion_version: int | None = Field(description="null: no version was promoted yet.")
    live_updates: int = Field(description="Updates queued, running, or awaiting a decision.")
    outcomes: OutcomesView


class ExperienceView(Body):
    """An experience: its records, and what became of it."""

    index: int
    state: str = Field(
        description="waiting: for its first update; carried: rejected, goes into the next update; review: "
        "awaits a decision; learnt: by the champion; parked: until a person asks for it again."
    )
    note: str = Field(description="Why it is in that state.")
    train_records: int = Field(description="Records to learn from.")
    gate_records: int = Field(description="Holdout records that each update is compared on.")
    audit_records: int = Field(description="Holdout records that only audits read.")
    digest: str = Field(description="sha256 of the train part.")
    cut_reason: str = Field(description="Why it was cut there.")
    cut_decision: Mapping[str, Any] = Field(description="What the trigger measured.")
    created_at: datetime
    train_removed_at: datetime | None = Field(
        description="When the retention policy removed its train part; null: it is kept."
    )

    @staticmethod
    def of(row: ExperienceRow, state: tuple[str, str]) -> "ExperienceView":
        return ExperienceView(
            index=row.index,
            state=state[0],
            note=state[1],
            train_records=row.train.rows,
            gate_records=row.gate.rows,
            audit_records=row.audit.rows,
            digest=row.train.digest,
            cut_reason=row.cut_reason,
            cut_decision=row.decision,
            created_at=moment(row.created_at),
            train_removed_at=None if row.train_removed_at is None else moment(row.train_removed_at),
        )


class RollbackRequest(ReasonRequest):
    """Which former champion to bring back."""

    version: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = Field(
        None, description="null: the champion that the present one was made from."
    )


class ChampionView(Body):
    """The version in use."""

    pipeline: str
    version: int
    revision: int = Field(description="Rises by one with every promotion or rollback.")
    since: datetime
    model_uri: str = Field(description="Where MLflow serves it from.")
    learnt: Sequence[int] = Field(description="Experiences that it and its ancestors learnt.")
    update: str = Field(description="The update that made it.")

    @staticmethod
    def of(champion: champions.Champion, version: champions.Version) -> "ChampionView":
        return ChampionView(
            pipeline=champion.pipeline,
            version=champion.version,
            revision=champion.revision,
            since=moment(champion.since),
            model_uri=f"models:/{champion.pipeline}/{champion.version}",
            learnt=version.learnt,
            update=version.update_id,
        )


class EntryView(Body):
    """One decision in the ledger."""

    sequence: int = Field(description="1, 2, 3 ... within the pipeline.")
    action: ledger.Action
    actor: str = Field(description="Who decided; `gate` where no person did.")
    reason: str
    update: str | None = Field(description="The update decided on, where there is one.")
    version: int | None = Field(description="The version decided on.")
    previous_version: int | None = Field(description="The champion before the decision.")
    at: datetime
    hash: str = Field(description="sha256 over every other field.")
    previous_hash: str = Field(description="The hash of the entry before.")

    @staticmethod
    def of(entry: ledger.Entry) -> "EntryView":
        return EntryView(
            sequence=entry.sequence,
            action=entry.action,
            actor=entry.actor,
            reason=entry.reason,
            update=entry.update_id,
            version=entry.version,
            previous_version=entry.previous_version,
            at=moment(entry.at),
            hash=entry.hash,
            previous_hash=entry.previous_hash,
        )


class LedgerView(Body):
    """A page of the decisions of a pipeline, in order."""

    pipeline: str
    entries: Sequence[EntryView]
    next_after: int | None = Field(description="The `after` of the next page; null: this is the last.")
    intact: bool = Field(
        description="Whether each entry of the page follows from the one before, and the last page ends at "
        "the champion."
    )
