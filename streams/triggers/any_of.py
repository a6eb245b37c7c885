"""Trigger that cuts when any of several triggers would, within bounds on records and time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from streams.records import Records
from streams.triggers.base import Cut, Features, RecordWatch, TriggerConfig, TriggerContext, TriggerState
from streams.triggers.cost import CostTrigger
from streams.triggers.event_time import MAX_JUMP_SECONDS, EventClock
from streams.triggers.performance import PerformanceTrigger
from streams.triggers.records import TEN_YEARS, RecordsTrigger, SecondsTrigger
from streams.triggers.shift import ShiftTrigger

SIMPLE_TRIGGERS: tuple[type[TriggerConfig], ...] = (
    RecordsTrigger,
    SecondsTrigger,
    ShiftTrigger,
    PerformanceTrigger,
    CostTrigger,
)
"""All kinds of triggers but any-of."""


def with_kind(document: Any) -> Any:
    """A trigger as declared; one that names no kind counts records."""
    if isinstance(document, Mapping) and "kind" not in document:
        return {"kind": "records", **document}
    return document


if TYPE_CHECKING:
    SimpleTrigger = TriggerConfig
else:
    SimpleTrigger = Annotated[
        Union[SIMPLE_TRIGGERS],  # noqa: UP007
        Field(discriminator="kind"),
        BeforeValidator(with_kind),
    ]


class AnyOfTrigger(TriggerConfig):
    """Cut when any of several triggers would, within bounds."""

    kind: Literal["any-of"] = "any-of"
    any: tuple[SimpleTrigger, ...] = Field(
        min_length=1, max_length=8, description="The triggers; each of any kind but any-of."
    )
    min_records: int = Field(1, ge=1, le=10_000_000, description="A cut of fewer records waits for more.")
    min_seconds: float = Field(
        0.0,
        ge=0,
        le=TEN_YEARS,
        description="A cut sooner than this after the last one waits; by event time where records have it.",
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        le=TEN_YEARS,
        description="A pending record waits no longer than this after its arrival, whatever the minima say.",
    )

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.max_seconds is not None and self.max_seconds < self.min_seconds:
            raise ValueError("max_seconds must not be below min_seconds")
        return self

    @property
    def least_records(self) -> int:
        least = min(trigger.least_records for trigger in self.any)
        return self.min_records if self.max_seconds is not None else max(self.min_records, least)

    @property
    def declared_records(self) -> tuple[int, int | None]:
        fewest, most = zip(*(trigger.declared_records for trigger in self.any), strict=True)
        bounds = [bound for bound in most if bound is not None]
        # A minimum of seconds may delay a cut for any number of records, and a maximum may hasten it.
        least = 1 if self.max_seconds is not None else max(self.min_records, min(fewest))
        return least, max(self.min_records, min(bounds)) if bounds and not self.min_seconds else None

    def watch(self, state: TriggerState, context: TriggerContext) -> RecordWatch:
        """See `TriggerConfig`."""
        return AnyOfWatch(self, state, context)


@dataclass(frozen=True)
class _Fired:
    """The first child trigger to fire, and the minima that delayed its cut."""

    index: int
    cut: Cut
    held_by: tuple[str, ...]


class AnyOfWatch(RecordWatch):
    """Lets every trigger follow the records until one fires, and cuts once the minima allow it.

    After a cut the trigger that made it goes on from its own state, and the others start again, with what
    lasts of theirs.
    """

    def __init__(self, config: AnyOfTrigger, state: TriggerState, context: TriggerContext) -> None:
        super().__init__(config.kind)
        self._config = config
        kept: Mapping[str, TriggerState] = state.get("triggers", {})
        states = [kept.get(str(index), {}) for index in range(len(config.any))]
        self._children = [child.watch(each, context) for child, each in zip(config.any, states, strict=True)]
        self._clock = EventClock(MAX_JUMP_SECONDS, state.get("clock"))
        self._last_reading = self._clock.reading
        self._last_arrival: float = state.get("arrival", math.nan)
        self._oldest = math.nan
        self._fired: _Fired | None = None

    def _follow(self, records: Records, arrival: float) -> Cut | None:
        before = self._clock.copy()
        if not self.seen:
            self._oldest = arrival
        elif self._overdue(arrival):
            return self._too_old(arrival, before)
        readings = np.concatenate([[before.reading], self._clock.read(records.times)])
        self._let_children_see(records, arrival, readings)
        if self._fired is None:
            return None
        allowed = self._allowed(readings, arrival)
        # An index counts the records of this chunk in the cut: 0 cuts everything before it, and none of it.
        first = max(self._fired.cut.records - self.seen, 0)
        if not allowed[first:].any():
            return None
        index = first + int(allowed[first:].argmax())
        before.read(records.times[:index])
        return self._cut_of(self._fired, self.seen + index, arrival, before)

    def see_features(self, features: Features) -> None:
        """See `Watch`."""
        if self._fired is None:
            for child in self._children:
                child.see_features(features)

    def due(self, now: float) -> Cut | None:
        """See `Watch`. A record may have waited for too long, or a minimum may be reached."""
        if not self.seen:
            return None
        if self._overdue(now):
            return self._too_old(now, self._clock)
        reading = self._clock.reading + max(0.0, now - self.arrived_at)
        if self._fired is None:
            fired = ((index, child.due(now)) for index, child in enumerate(self._children))
            first = next(((index, cut) for index, cut in fired if cut is not None), None)
            if first is not None:
                self._fired = _Fired(*first, self._held_by(self.seen, reading, now))
        if self._fired is None or self._held_by(self.seen, reading, now):
            return None
        return self._cut_of(self._fired, self.seen, now, self._clock)

    def _let_children_see(self, records: Records, arrival: float, readings: NDArray[np.float64]) -> None:
        """Find the first child to fire. Of two at the same record, the one declared first."""
        if self._fired is not None:
            return
        found = []
        for index, child in enumerate(self._children):
            cut = child.see(records, arrival, arrival)
            if cut is not None:
                found.append((child.noticed, index, cut))
        if found:
            _, index, cut = min(found, key=lambda entry: entry[:2])
            reading = float(readings[max(cut.records - self.seen, 0)])
            self._fired = _Fired(index, cut, self._held_by(cut.records, reading, arrival))

    def _elapsed(self, reading: float, arrival: float) -> float:
        """Seconds since the last cut, by event time if both ends have it; infinite before the first."""
        by_event, by_arrival = reading - self._last_reading, arrival - self._last_arrival
        return next((found for found in (by_event, by_arrival) if not math.isnan(found)), math.inf)

    def _held_by(self, records: int, reading: float, arrival: float) -> tuple[str, ...]:
        """The minima that forbid a cut of so many records."""
        fewer = records < self._config.min_records
        sooner = self._elapsed(reading, arrival) < self._config.min_seconds
        return ("min_records",) * fewer + ("min_seconds",) * sooner

    def _allowed(self, readings: NDArray[np.float64], arrival: float) -> NDArray[np.bool_]:
        """(n + 1,) whether the minima allow a cut of all before this chunk and 0, 1 .. n of its records."""
        counts = self.seen + np.arange(len(readings))
        elapsed = readings - self._last_reading
        by_arrival = np.full(len(readings), arrival - self._last_arrival)
        elapsed = np.where(np.isnan(elapsed), np.where(np.isnan(by_arrival), np.inf, by_arrival), elapsed)
        return (counts >= self._config.min_records) & (elapsed >= self._config.min_seconds)

    def _overdue(self, at: float) -> bool:
        longest = self._config.max_seconds
        return longest is not None and at - self._oldest >= longest

    def _too_old(self, at: float, clock: EventClock) -> Cut:
        waited = at - self._oldest
        return self._cut(
            self.seen,
            f"The oldest of {self.seen:,} records has waited for {waited:,.0f} seconds, of which "
            f"{self._config.max_seconds:g} are allowed.",
            noticed=self.seen + 1,
            state=self._state(self.seen, at, clock),
            waited_seconds=waited,
            max_seconds=self._config.max_seconds,
            held=None if self._fired is None else _decision_of(self._fired),
        )

    def _cut_of(self, fired: _Fired, records: int, at: float, clock: EventClock) -> Cut:
        own = {fired.index: fired.cut.state} if records == fired.cut.records else {}
        held = f" Held by {' and '.join(fired.held_by)} until {records:,} records." if fired.held_by else ""
        state = self._state(records, at, clock, own)
        return self._cut(records, fired.cut.reason + held, state=state, **_decision_of(fired))

    def _state(
        self, records: int, at: float, clock: EventClock, own: Mapping[int, TriggerState] | None = None
    ) -> TriggerState:
        """After a cut of so many records; `own` has the state of the child that made it just there."""
        # Once one has fired, no child follows more than the rest of that chunk, which may be of any length.
        followed = records if self._fired is None else min(records, self._fired.cut.records)
        lasting = {index: child.lasting_at(followed) for index, child in enumerate(self._children)}
        states = {**lasting, **(own or {})}
        triggers = {str(index): state for index, state in states.items() if state}
        return {"clock": clock.state(), "arrival": at, "triggers": triggers}

    def _state_now(self, now: float) -> TriggerState:
        return self._state(self.seen, now, self._clock)


def _decision_of(fired: _Fired) -> dict[str, Any]:
    return {
        "child": fired.cut.decision["trigger"],
        "index": fired.index,
        "held_by": list(fired.held_by),
        "decision": dict(fired.cut.decision),
    }
