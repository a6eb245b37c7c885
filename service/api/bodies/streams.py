"""Bodies of records, streams and dead letters."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from service.api.bodies.base import Body, StrictBody, moment
from streams.state.dead_letters import DeadLetter
from streams.state.status import Status

DeadLetterId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class RecordsReceipt(Body):
    """Records that are stored durably and will be learnt exactly once."""

    accepted: int
    sequence: int = Field(description="Number of the batch in the pipeline's pushed log: 1, 2, 3 ...")
    duplicate: bool = Field(description="True: this Idempotency-Key had stored them before.")


class PartitionView(Body):
    """How far one partition of a source has been consumed."""

    partition: str
    cursor: str = Field(description="The source goes on just after it.")


class StreamView(Body):
    """The state of a stream."""

    pipeline: str
    status: Status = Field(
        description="running; failing: ingest tries again by itself; paused or stopped: until a person "
        "resumes it."
    )
    reason: str = Field(description="Why it does not run, and what to do; empty while it runs.")
    actor: str = Field(description="Who set the status; `holdfast` where no person did.")
    since: datetime | None = Field(description="null: it has run from the beginning.")
    source: str = Field(description="The source's kind.")
    trigger: str = Field(description="The trigger's kind.")
    partitions: Sequence[PartitionView] = Field(description="The first thousand, by name.")
    partition_count: int
    experiences: int
    records: int = Field(description="Records in experiences.")
    last_cut: str | None = Field(description="Why the newest experience was cut.")
    pending_records: int = Field(description="Read and not yet cut, as ingest last reported.")
    unmatched_records: int = Field(description="Features that wait for a label, and labels for features.")
    backlog_records: int | None = Field(description="Pushed and not yet cut; null: nothing is pushed here.")
    duplicates: int = Field(description="Records dropped because their id had come within the window.")
    held_out: int = Field(description="Records dropped because a golden set holds their id.")
    aged_out: int = Field(description="Features or labels dropped because no match came in time.")
    dead_letters: Mapping[str, int] = Field(description="By reason; without those that were replayed.")
    replayed_dead_letters: int = Field(description="Dead letters that were put back into the stream.")
    classes: int = Field(description="Classes known so far.")
    warnings: Sequence[str] = Field(
        description="What is wrong while it runs, and what to do; such as that most records are refused."
    )


class DeadLetterView(Body):
    """A payload that was refused, and why."""

    id: str = Field(description="Unique within the pipeline: 16 hex digits.")
    partition: str
    position: str = Field(description="Where the payload stood in its partition.")
    reason: str = Field(description="A code, such as out-of-range.")
    detail: str = Field(description="The reason in a sentence.")
    bytes: int = Field(description="Size of the payload as it was sent.")
    kept_bytes: int = Field(description="Of these, the number stored: of a long payload, only the head.")
    wire: str = Field(description="Format of the payload: json, msgpack, csv or arrow.")
    created_at: datetime
    replayed_at: datetime | None

    @staticmethod
    def of(dead_letter: DeadLetter) -> "DeadLetterView":
        replayed_at = dead_letter.replayed_at
        return DeadLetterView(
            id=dead_letter.name,
            partition=dead_letter.partition,
            position=dead_letter.position,
            reason=dead_letter.reason,
            detail=dead_letter.detail,
            bytes=dead_letter.whole_bytes,
            kept_bytes=len(dead_letter.payload),
            wire=str(dead_letter.form.get("wire", "json")),
            created_at=moment(dead_letter.created_at),
            replayed_at=None if replayed_at is None else moment(replayed_at),
        )


class DeadLetterContent(Body):
    """A dead letter with its payload."""

    dead_letter: DeadLetterView
    text: str | None = Field(description="The payload, where it is UTF-8 text.")
    base64: str = Field(description="The payload.")


class ReplayRequest(StrictBody):
    """Which dead letters to decode again; those that are valid now go back into the stream."""

    dead_letters: Annotated[list[DeadLetterId], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="Their ids; none: all that were not replayed, a thousand at a time."
    )
    reason: Annotated[str, StringConstraints(min_length=1, max_length=50)] | None = Field(
        None, description="Without ids: only those with this reason."
    )
    after: DeadLetterId | None = Field(
        None, description="Without ids: continue after this one, the `next` of the answer before."
    )
    payload: str | None = Field(None, description="For one dead letter: the corrected record.")


class ReplayedView(Body):
    """The result for one dead letter."""

    dead_letter: str = Field(description="Its id.")
    replayed: bool
    reason: str = Field(description="Why it is still refused; empty when it was replayed.")


class ReplaysView(Body):
    """The result for every dead letter of the request."""

    replayed: int
    refused: int
    dead_letters: Sequence[ReplayedView]
    next: str | None = Field(description="There are more: ask again with this as `after`.")
