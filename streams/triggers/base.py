"""What a trigger is: a config, and the watch that it keeps over the records between two cuts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from streams.records import Records

TriggerState = Mapping[str, Any]
"""What a trigger remembers over a cut: JSON-able, saved in the transaction of the cut."""
Features = NDArray[np.float32] | NDArray[np.uint8]


@dataclass(frozen=True)
class Cut:
    """The decision to cut the oldest pending records into an experience."""

    reason: str
    """A sentence with the numbers, kept with the experience."""
    records: int
    """How many, counted from the oldest; never more than were seen."""
    decision: Mapping[str, Any]
    """JSON-able: the trigger's kind, and every number that led to the cut."""
    state: TriggerState
    """The trigger's state after this cut."""


class Judge(Protocol):
    """The champion's answers."""

    @property
    def version(self) -> int:
        """The champion's version."""
        ...

    @property
    def error_rate(self) -> float:
        """Its error on the holdout, 0..1, as known to the gate."""
        ...

    def wrong(self, features: Features, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) which records (n, *shape) with these labels (n,) it answers wrongly."""
        ...


def _no_reference() -> Features | None:
    return None


def _no_judge() -> Judge | None:
    return None


def _no_costs() -> Sequence[tuple[int, float]]:
    return ()


@dataclass(frozen=True)
class Surroundings:
    """What a trigger may ask for besides the records."""

    reference: Callable[[], Features | None] = _no_reference
    """Features (n, *shape) of the last experience's train part; None before the first."""
    judge: Callable[[], Judge | None] = _no_judge
    """None while there is no champion."""
    costs: Callable[[], Sequence[tuple[int, float]]] = _no_costs
    """(records, training seconds) of past updates, oldest first."""


class Watch(Protocol):
    """Follows the pending records from one cut to the next; after its cut a new one takes over.

    However the records are chunked, the same records in the same surroundings give the same first cut.
    """

    def see(self, records: Records, arrived_at: float, now: float) -> Cut | None:
        """Take in the next pending records, oldest first, complete and labelled.

        A cut may be due in the middle of them. `arrived_at` is when the source took them in, in epoch
        seconds; NaN where it does not know: then `now` counts.
        """
        ...

    def see_features(self, features: Features) -> None:
        """Take in the features (n, *shape) of records whose labels have not come."""
        ...

    def due(self, now: float) -> Cut | None:
        """The cut that time alone makes due, or that features without labels did."""
        ...

    def forced(self, reason: str, now: float) -> Cut:
        """The cut of all that was seen, asked for from outside."""
        ...


class RecordWatch(ABC):
    """What all watches share: counting, and the cut that is forced."""

    kind: str

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.seen = 0
        """Records taken in since the last cut."""
        self.noticed = 0
        """How many records had to be seen for the cut that was given."""
        self.arrived_at = math.nan
        """When the latest records arrived; NaN before the first."""

    def see(self, records: Records, arrived_at: float, now: float) -> Cut | None:
        """See `Watch`."""
        if not len(records):
            return self.due(now)
        arrival = now if math.isnan(arrived_at) else arrived_at
        cut = self._follow(records, arrival)
        self.seen += len(records)
        self.arrived_at = arrival
        return cut

    @abstractmethod
    def _follow(self, records: Records, arrival: float) -> Cut | None:
        """The cut that becomes due with one of these records, of which there is one at least.

        Meanwhile `seen` and `arrived_at` are as they were before these records.
        """

    def see_features(self, features: Features) -> None:
        """See `Watch`."""
        return None

    def due(self, now: float) -> Cut | None:
        """See `Watch`."""
        return None

    def forced(self, reason: str, now: float) -> Cut:
        """See `Watch`."""
        decision = {"trigger": self.kind, "forced": True, "records": self.seen}
        return Cut(reason, self.seen, decision, self._state_now(now))

    def _state_now(self, now: float) -> TriggerState:
        """The state after a cut of all that was seen."""
        return {}

    def _cut(
        self,
        records: int,
        reason: str,
        *,
        noticed: int | None = None,
        state: TriggerState | None = None,
        **numbers: Any,
    ) -> Cut:
        """A cut of so many records, due once `noticed` of them were seen (by default the same)."""
        self.noticed = records if noticed is None else noticed
        return Cut(reason, records, {"trigger": self.kind, "records": records, **numbers}, state or {})


class TriggerConfig(BaseModel):
    """What a pipeline says about its trigger; every trigger has its own kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @property
    def least_records(self) -> int:
        """With fewer records it never cuts, whatever else happens."""
        return 1

    def watch(self, state: TriggerState, surroundings: Surroundings) -> RecordWatch:
        """A watch that begins just after the cut which left this state; it is empty before the first.

        Nothing of the surroundings is asked for before the first record.
        """
        raise NotImplementedError(f"The trigger {self.kind} has no watch.")
