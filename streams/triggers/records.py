"""Triggers that cut by number of records, or by windows of event time."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from streams.records import Records
from streams.triggers.base import Cut, RecordWatch, TriggerConfig, TriggerContext, TriggerState
from streams.triggers.event_time import MAX_JUMP_SECONDS, EventClock

TEN_YEARS = 10 * 366 * 86_400


class RecordsTrigger(TriggerConfig):
    """Cut by number of records."""

    kind: Literal["records"] = "records"
    records: int = Field(ge=1, le=10_000_000, description="Accepted records in one experience.")

    @property
    def least_records(self) -> int:
        return self.records

    @property
    def declared_records(self) -> tuple[int, int | None]:
        return self.records, self.records

    def watch(self, state: TriggerState, context: TriggerContext) -> RecordWatch:
        """See `TriggerConfig`."""
        return RecordsWatch(self)


class RecordsWatch(RecordWatch):
    """Counts records until there are enough."""

    def __init__(self, config: RecordsTrigger) -> None:
        super().__init__(config.kind)
        self._records = config.records

    def _follow(self, records: Records, arrival: float) -> Cut | None:
        if self.seen + len(records) < self._records:
            return None
        return self._cut(self._records, f"{self._records:,} records have arrived.")


class SecondsTrigger(TriggerConfig):
    """Cut by event time, in windows that follow each other without a gap from the first record's time on."""

    kind: Literal["seconds"] = "seconds"
    seconds: float = Field(ge=0.001, le=TEN_YEARS, description="Event time of one experience.")
    lateness_seconds: float = Field(
        0.0, ge=0, le=TEN_YEARS, description="How long stragglers are waited for after the end of a window."
    )
    max_jump_seconds: float = Field(
        MAX_JUMP_SECONDS,
        gt=0,
        le=TEN_YEARS,
        description="A record further ahead of the median time of the last five does not move the clock.",
    )

    def watch(self, state: TriggerState, context: TriggerContext) -> RecordWatch:
        """See `TriggerConfig`."""
        return SecondsWatch(self, state)


class SecondsWatch(RecordWatch):
    """Waits for the first record at or after the end of the window, and cuts everything before it."""

    def __init__(self, config: SecondsTrigger, state: TriggerState) -> None:
        super().__init__(config.kind)
        self._config = config
        self._clock = EventClock(config.max_jump_seconds, state.get("clock"))
        self._start: float = state.get("start", math.nan)

    def _follow(self, records: Records, arrival: float) -> Cut | None:
        before = self._clock.copy()
        readings = self._clock.read(records.times)
        index = self._next_event(readings, 0)
        while index < len(readings):
            reading = float(readings[index])
            if reading >= self._end:
                ended, self._start = self._end, self._after(reading)
                if self.seen + index:
                    before.read(records.times[:index])
                    return self._ended(self.seen + index, ended, reading, before)
            else:
                # The first time of this window, or the clock was set back: the window begins here.
                self._start = reading
            index = self._next_event(readings, index + 1)
        return None

    def _next_event(self, readings: NDArray[np.float64], index: int) -> int:
        """The next index at which the window ends or begins again."""
        rest = readings[index:]
        if math.isnan(self._start):
            events = ~np.isnan(rest)
        else:
            events = (rest >= self._end) | (rest < self._start - self._config.max_jump_seconds)
        return index + int(events.argmax()) if events.any() else len(readings)

    @property
    def _end(self) -> float:
        """The event time at which a record ends the window."""
        return self._start + self._config.seconds + self._config.lateness_seconds

    def _after(self, reading: float) -> float:
        """The start of the window that this reading is in; windows without a record are skipped."""
        passed = (reading - self._config.lateness_seconds - self._start) // self._config.seconds
        return self._start + max(1.0, passed) * self._config.seconds

    def _ended(self, count: int, ended: float, reading: float, clock: EventClock) -> Cut:
        config = self._config
        waited = f", and {config.lateness_seconds:g} for stragglers" if config.lateness_seconds else ""
        return self._cut(
            count,
            f"{count:,} records came in a window of {config.seconds:g} seconds of event time{waited}.",
            noticed=count + 1,
            state={"start": self._start, "clock": clock.state()},
            ended=ended,
            reading=reading,
        )

    def _state_now(self, now: float) -> TriggerState:
        start = {} if math.isnan(self._start) else {"start": self._start}
        return {**start, "clock": self._clock.state()}
