"""Triggers: the config of each, and the watch that follows the records from one cut to the next."""

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
"""State that a trigger keeps after a cut: JSON-able, saved in the transaction of the cut."""
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
    """The champion, as a judge of arriving records."""

    @property
    def version(self) -> int:
        """The champion's version."""
        ...

    @property
    def error_rate(self) -> float:
        """Its error rate on the holdout, 0..1."""
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
class TriggerContext:
    """Inputs of a trigger other than the records, each asked for when it is needed."""

    reference: Callable[[], Features | None] = _no_reference
    """Features (n, *shape) of the last experience's train part; None before the first."""
    judge: Callable[[], Judge | None] = _no_judge
    """None while there is no champion."""
    costs: Callable[[], Sequence[tuple[int, float]]] = _no_costs
    """(records, training seconds) of past updates, oldest first."""


class Watch(Protocol):
    """Follows the pending records from one cut to the next; after its cut a new one takes over.

    However the records are chunked, the same records in the same context give the same first cut.
    """

    def see(self, records: Records, arrived_at: float, now: float) -> Cut | None:
        """Follow the next pending records, oldest first, complete and labelled.

        A cut may be due in the middle of them. `arrived_at` is when the source received them, in epoch
        seconds; where it is NaN, `now` is used.
        """
        ...

    def see_features(self, features: Features) -> None:
        """Follow the features (n, *shape) of records whose labels have not come."""
        ...

    def due(self, now: float) -> Cut | None:
        """The cut that is due because time has passed, or because of features without labels."""
        ...

    def forced(self, reason: str, now: float) -> Cut:
        """A cut of everything seen, on request."""
        ...


class RecordWatch(ABC):
    """Base of all watches: counts the records, and makes forced cuts."""

    kind: str

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.seen = 0
        """Records taken in since the last cut."""
        self.noticed = 0
        """How many records had to be seen before the cut was due."""
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
        """The cut that becomes due with one of these records, of which there is at least one.

        During the call, `seen` and `arrived_at` do not include these records.
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

    def lasting_at(self, records: int) -> TriggerState:
        """The part of the state that stays true when another trigger cuts so many records, or this one later.

        As it is after that many records, none of them before the latest chunk; after more than were followed,
        as it is now.
        """
        return {}

    def _state_now(self, now: float) -> TriggerState:
        """The state after a cut of everything seen."""
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
        """A cut of this many records, due once `noticed` were seen (by default the same number)."""
        self.noticed = records if noticed is None else noticed
        return Cut(reason, records, {"trigger": self.kind, "records": records, **numbers}, state or {})


class TriggerConfig(BaseModel):
    """The configuration of a trigger. Every trigger has its own kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @property
    def least_records(self) -> int:
        """Fewest records that it ever cuts."""
        return 1

    @property
    def declared_records(self) -> tuple[int, int | None]:
        """Fewest and most records of an experience, as far as they are declared; (1, None): they are not.

        A cut that a person asks for may have fewer.
        """
        return 1, None

    def watch(self, state: TriggerState, context: TriggerContext) -> RecordWatch:
        """A watch that begins just after the cut that saved this state; the state is empty before the first.

        It asks for nothing of the context before the first record.
        """
        raise NotImplementedError(f"The trigger {self.kind} has no watch.")
