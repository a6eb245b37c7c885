"""What the API takes and gives, as typed bodies: the OpenAPI description is made from them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from service.api.parameters import MAX_INTEGER
from service.gate import schema
from service.pipelines import PipelineSpec
from service.state import champions, jobs, ledger
from streams.state import status as stream_status
from streams.state.dead_letters import DeadLetter
from streams.state.manifest import ExperienceRow


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character: send plain text")
    return text


Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=2000),
    AfterValidator(_storable),
    Field(description="Why, for whoever reads it later. Must not be empty."),
]
Actor = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_storable),
    Field(description="Who decides."),
]
VerdictForm = Annotated[Mapping[str, Any], WithJsonSchema(schema.schema())]
"""As the gate wrote it, whichever version of Holdfast that was."""
LetterName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Index = Annotated[int, Field(ge=0, le=MAX_INTEGER)]


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class PipelineView(Body):
    """A pipeline and how it stands."""

    spec: PipelineSpec
    experiences: int
    pending_records: int | None = Field(description="Pushed records not yet cut into an experience.")
    dead_letters: Mapping[str, int] = Field(
        description="Records that did not fit, by reason; without those that were replayed."
    )
    champion_version: int | None
    live_updates: int = Field(description="Updates queued, running, or awaiting a decision.")


class RecordsReceipt(Body):
    """Records that are stored durably and will be learnt exactly once."""

    accepted: int
    sequence: int
    duplicate: bool = Field(description="True: this Idempotency-Key had stored them before.")


class PartitionView(Body):
    """How far one partition of a source is done."""

    partition: str
    cursor: str = Field(description="The source goes on just after it.")


class StreamView(Body):
    """How a stream stands."""

    pipeline: str
    status: stream_status.Status = Field(
        description="running; failing: tried again by itself; paused or stopped: until it is resumed."
    )
    reason: str = Field(description="Why it does not run, and what to do; empty while it does.")
    actor: str
    since: datetime | None
    source: str
    trigger: str
    partitions: Sequence[PartitionView] = Field(description="The first thousand, by name.")
    partition_count: int
    experiences: int
    records: int = Field(description="Records in experiences.")
    last_cut: str | None = Field(description="Why the newest experience was cut.")
    pending_records: int = Field(description="Read and not yet cut, as ingest said last.")
    waiting_halves: int = Field(description="Features without a label, and labels without features.")
    backlog_records: int | None = Field(description="Pushed and not yet cut; null: nothing is pushed here.")
    duplicates: int = Field(description="Dropped: their id had been seen within the window.")
    aged_out: int = Field(description="Features, or labels, whose other half never came.")
    dead_letters: Mapping[str, int] = Field(description="By reason; without those that were replayed.")
    replayed_letters: int = Field(description="Dead letters that became records after all.")
    classes: int


class HoldRequest(Body):
    """Why a stream is paused, or resumed."""

    reason: Reason
    by: Actor = "anonymous"


class DeadLetterView(Body):
    """A payload that did not become a record."""

    letter: str = Field(description="Its name within the pipeline.")
    partition: str
    position: str
    reason: str
    detail: str
    bytes: int = Field(description="Size of what was sent.")
    kept_bytes: int
    wire: str
    created_at: datetime
    replayed_at: datetime | None

    @staticmethod
    def of(letter: DeadLetter) -> "DeadLetterView":
        return DeadLetterView(
            letter=letter.name,
            partition=letter.partition,
            position=letter.position,
            reason=letter.reason,
            detail=letter.detail,
            bytes=letter.whole_bytes,
            kept_bytes=len(letter.payload),
            wire=str(letter.form.get("wire", "json")),
            created_at=moment(letter.created_at),
            replayed_at=None if letter.replayed_at is None else moment(letter.replayed_at),
        )


class DeadLetterWhole(Body):
    """A dead letter and what it holds."""

    letter: DeadLetterView
    text: str | None = Field(description="The payload, where it is UTF-8 text.")
    base64: str = Field(description="The payload.")


class ReplayRequest(Body):
    """Which dead letters to decode again, and put back into the stream where they fit now."""

    letters: Annotated[list[LetterName], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="Their names; none: all that were not replayed, a thousand at a time."
    )
    reason: Annotated[str, StringConstraints(min_length=1, max_length=50)] | None = Field(
        None, description="Without names: only those of this reason."
    )
    after: LetterName | None = Field(
        None, description="Without names: go on where an answer ended that said `next`."
    )
    payload: str | None = Field(None, description="For one letter: the record, mended.")


class ReplayedView(Body):
    """What became of one letter."""

    letter: str
    replayed: bool
    reason: str = Field(description="Why it still is no record; empty when it is one.")


class ReplaysView(Body):
    """What became of the letters."""

    replayed: int
    refused: int
    letters: Sequence[ReplayedView]
    next: str | None = Field(description="There are more: ask again with this as `after`.")


class UpdateRequest(Body):
    """What to learn now. Empty: everything that has arrived and was not learnt."""

    experiences: Annotated[list[Index], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="Learn these waiting, carried or parked experiences again."
    )
    by: Actor = "anonymous"


class UpdateAccepted(Body):
    update: str
    state: str
    href: str


class UpdateView(Body):
    """An update: where it stands, and what came of it."""

    id: str
    pipeline: str
    state: jobs.State
    requested_by: str
    attempt: int
    experiences: Sequence[int]
    base_version: int | None
    version: int | None
    outcome: str | None = Field(description="The gate's verdict: promote, review or reject.")
    reason: str | None
    accuracy: Mapping[str, float] | None = Field(description="Of the challenger on each holdout.")
    progress: Mapping[str, Any] | None
    waits_for: str | None = Field(description="The update that must end, or be decided, before this one.")
    run_id: str | None = Field(description="The MLflow run with figures and report.")
    decision: Mapping[str, Any] | None = Field(
        description="What a person decided, with by, reason and at: approve or reject a review, or cancel."
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


class DecisionRequest(Body):
    """A person's answer to a review."""

    decision: Literal["approve", "reject"]
    reason: Reason
    by: Actor = "anonymous"


class CancelRequest(Body):
    """Why an update is to end."""

    reason: Reason
    by: Actor = "anonymous"


class DecisionView(Body):
    """What there is to decide, or what was decided."""

    update: str
    state: jobs.State
    awaits_decision: bool
    verdict: VerdictForm | None
    decision: Mapping[str, Any] | None


class DecisionReason(Body):
    """Why a person does something that the ledger keeps."""

    reason: Reason
    by: Actor = "anonymous"


class HoldoutMargin(DecisionReason):
    """How much a past holdout may truly lose."""

    margin: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        description="A share: 0.05 is 5 points. null: what the pipeline says."
    )


class FreezeView(Body):
    """An audit that stopped promotion."""

    update: str = Field(description="Whose audit did not pass.")
    last_audited: int | None = Field(description="The newest version whose audit passed.")


class HoldoutView(Body):
    """A past holdout: records of an experience that the champion learnt, never trained on."""

    experience: int
    records: int
    judged_records: int = Field(description="Of these, how many updates are compared on.")
    sealed_records: int = Field(description="Of the audit part.")
    looks: int = Field(description="Updates that were compared on it.")
    looks_left: int
    audits: int = Field(description="Looks at the sealed part.")
    audits_left: int
    anchor_version: int = Field(description="The version right after it was learnt.")
    retired: bool
    pinned: bool
    margin: float = Field(description="What it may truly lose: its own margin, or else the pipeline's.")


class HoldoutsView(Body):
    """The past holdouts of a pipeline."""

    pipeline: str
    freeze: FreezeView | None = Field(description="Not null: promotion is frozen.")
    holdouts: Sequence[HoldoutView]


class RollbackRequest(Body):
    """Which former champion to bring back."""

    version: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = Field(
        None, description="None: the one before this."
    )
    reason: Reason
    by: Actor = "anonymous"


class ChampionView(Body):
    """The version in use."""

    pipeline: str
    version: int
    revision: int
    since: datetime
    model_uri: str = Field(description="Where MLflow serves it from.")
    learnt: Sequence[int] = Field(description="Experiences that it and its ancestors learnt.")
    update: str

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

    sequence: int
    action: ledger.Action
    actor: str
    reason: str
    update: str | None
    version: int | None
    previous_version: int | None
    at: datetime
    hash: str
    previous_hash: str

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
    """The decisions of a pipeline, in order."""

    pipeline: str
    entries: Sequence[EntryView]
    next_after: int | None = Field(description="The `after` of the next page; null: this is the last.")
    intact: bool = Field(description="Whether the chain of hashes holds, over the whole ledger.")


class ExperienceView(Body):
    """An experience: what it holds, and what became of it."""

    index: int
    state: str
    note: str
    train_records: int
    gate_records: int
    audit_records: int
    digest: str
    cut_reason: str
    cut_decision: Mapping[str, Any] = Field(description="What the trigger saw, in numbers.")
    created_at: datetime
    train_removed_at: datetime | None = Field(description="When the retention policy let its records go.")

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


def moment(seconds: float) -> datetime:
    """Epoch seconds as a time with its zone."""
    return datetime.fromtimestamp(seconds, UTC)


class Alive(Body):
    """The process answers."""

    status: Literal["alive"] = "alive"


class RoleView(Body):
    """One process of the service."""

    role: str
    instance: str = Field(description="Host and process id.")
    seconds_ago: float = Field(description="When it was last heard of.")


class Ready(Body):
    """The database answers, and these roles were heard of in the last ten seconds."""

    status: Literal["ready"] = "ready"
    roles: Sequence[RoleView]
