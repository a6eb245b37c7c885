"""When to cut an experience. A trigger is a pure rule: what it decides depends on its arguments alone.

What it has to remember is a JSON-able state, saved in the transaction of the cut that it describes, so that
a restart decides as if nothing had happened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from streams.records import Records

TriggerState = Mapping[str, Any]


@dataclass(frozen=True)
class Cut:
    """The decision to cut the oldest pending records into an experience."""

    reason: str
    """A sentence, kept with the experience."""
    records: int
    """How many; never more than are pending."""
    state: TriggerState = field(default_factory=dict)
    """The trigger's state after this cut."""


class Trigger(Protocol):
    """A rule that says when to cut."""

    def decide(self, pending: Sequence[Records], state: TriggerState) -> Cut | None:
        """The next cut of the pending records, oldest first in chunks of any size; None to wait for more.

        `state` is that of the last cut, empty before the first. However the records are chunked, and
        however often it was asked before, the same records give the same first cut.
        """
        ...

    def forced(self, pending: Sequence[Records], state: TriggerState, *, reason: str) -> Cut:
        """The cut of all pending records, asked for from outside."""
        ...


@dataclass(frozen=True)
class CountTrigger:
    """Cuts every `records` accepted records."""

    records: int

    def decide(self, pending: Sequence[Records], state: TriggerState) -> Cut | None:
        """See `Trigger`."""
        if pending_count(pending) < self.records:
            return None
        return Cut(f"{self.records:,} records have arrived.", self.records, state)

    def forced(self, pending: Sequence[Records], state: TriggerState, *, reason: str) -> Cut:
        """See `Trigger`."""
        return Cut(reason, pending_count(pending), state)


class RecordsTrigger(BaseModel):
    """Cut by number of records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["records"] = "records"
    records: int = Field(ge=1, le=10_000_000, description="Accepted records in one experience.")

    def build(self) -> Trigger:
        """The trigger that this config describes."""
        return CountTrigger(self.records)


def pending_count(pending: Sequence[Records]) -> int:
    """Number of records in all chunks."""
    return sum(len(chunk) for chunk in pending)
