"""Trigger that cuts when the waiting of records has cost as much as training would.

The waiting is the area under the curve of the number of pending records: its unit is the record-second. The
training is forecast in seconds. `record_seconds_per_training_second` turns the latter into the former:

    waiting [record s]  >=  forecast [s]  x  record_seconds_per_training_second [record s / s]

At a steady rate and fixed training costs this is the cut that costs least in sum, waiting and training
together: the economic order quantity (Harris 1913). Modyn has the same idea, but multiplies where its units
require a division, and never resets the waiting (its commit c961257a).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from streams.records import Records
from streams.triggers.base import Cut, RecordWatch, TriggerConfig, TriggerContext, TriggerState
from streams.triggers.event_time import MAX_JUMP_SECONDS, EventClock, has_time

LATEST_UPDATES = 100
FEW_UPDATES = 3
"""From so many updates on, a line is fitted."""


class CostTrigger(TriggerConfig):
    """Cut when the waiting of the pending records outweighs the training that they would cost."""

    kind: Literal["cost"] = "cost"
    record_seconds_per_training_second: float = Field(
        1000.0,
        gt=0,
        le=1e12,
        description="Waiting that is as bad as a second of training; 1000: 100 records for 10 seconds.",
    )
    first: int = Field(
        1000, ge=1, le=10_000_000, description="Records of an experience while no update has ended."
    )
    at_least: int = Field(100, ge=1, le=10_000_000, description="Fewer records are not cut.")

    @property
    def least_records(self) -> int:
        return self.at_least

    def watch(self, state: TriggerState, context: TriggerContext) -> RecordWatch:
        """See `TriggerConfig`."""
        return CostWatch(self, state, context)


class CostWatch(RecordWatch):
    """Adds up the waiting: by event time for records that have one, else by arrival.

    A record waits from the moment that it reaches the loop. The event time at that moment is the
    clock's reading, so that a straggler with an old time does not count as if it had waited since then.
    """

    def __init__(self, config: CostTrigger, state: TriggerState, context: TriggerContext) -> None:
        super().__init__(config.kind)
        self._config = config
        self._context = context
        self._clock = EventClock(MAX_JUMP_SECONDS, state.get("clock"))
        self._timed = 0
        self._waited = 0.0

    def _follow(self, records: Records, arrival: float) -> Cut | None:
        before = self._clock.copy()
        waited = self._waiting(records.times, arrival)
        counts = self.seen + np.arange(1, len(records) + 1)
        forecast = forecast_seconds(self._context.costs(), counts)
        if forecast is None:
            due = counts >= self._config.first
        else:
            due = (counts >= self._config.at_least) & (waited >= forecast * self._rate)
        if not due.any():
            return None
        index = int(due.argmax())
        before.read(records.times[: index + 1])
        seconds = None if forecast is None else float(forecast[index])
        return self._worth_it(int(counts[index]), float(waited[index]), seconds, before)

    def due(self, now: float) -> Cut | None:
        """See `Watch`. Records go on waiting when none arrives."""
        if self.seen < self._config.at_least:
            return None
        forecast = forecast_seconds(self._context.costs(), np.array([self.seen]))
        waited = self._waited + self.seen * max(0.0, now - self.arrived_at)
        if forecast is None or waited < forecast[0] * self._rate:
            return None
        return self._worth_it(self.seen, waited, float(forecast[0]), self._clock)

    @property
    def _rate(self) -> float:
        return self._config.record_seconds_per_training_second

    def _waiting(self, times: NDArray[np.float64], arrival: float) -> NDArray[np.float64]:
        """(n,) record-seconds that the pending records have waited, when each of these records arrives."""
        before = self._clock.reading
        event_ticks = np.diff(self._clock.read(times), prepend=before)
        arrival_ticks = np.zeros(len(times))
        arrival_ticks[0] = arrival - self.arrived_at
        timed = has_time(times)
        timed_before = self._timed + np.cumsum(timed) - timed
        others_before = self.seen + np.arange(len(times)) - timed_before
        # A clock that is set back takes nothing off, and one that does not run yet (NaN) adds nothing.
        grown = timed_before * np.fmax(event_ticks, 0.0) + others_before * np.fmax(arrival_ticks, 0.0)
        # Added one by one, in one order: the same sum to the last bit, however the records are chunked.
        waited = np.cumsum(np.concatenate([[self._waited], grown]))[1:]
        self._timed += int(timed.sum())
        self._waited = float(waited[-1])
        return waited

    def _worth_it(self, count: int, waited: float, forecast: float | None, clock: EventClock) -> Cut:
        if forecast is None:
            reason = f"{count:,} records have arrived, and no update has measured yet what training costs."
        else:
            reason = (
                f"{count:,} records have waited for {waited:,.0f} record-seconds, as much as {forecast:.1f} "
                f"seconds of training are worth at {self._rate:g} record-seconds each."
            )
        return self._cut(
            count,
            reason,
            state={"clock": clock.state()},
            waited_record_seconds=waited,
            forecast_training_seconds=forecast,
            record_seconds_per_training_second=self._rate,
        )

    def _state_now(self, now: float) -> TriggerState:
        return {"clock": self._clock.state()}


def forecast_seconds(
    costs: Sequence[tuple[int, float]], counts: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """(n,) training seconds of updates of these numbers of records (n,); None without any known cost.

    A line through the latest updates by Theil and Sen, which is robust against a share of outliers. With few
    updates, or all of one size, the last one's seconds a record.
    """
    usable = [(records, seconds) for records, seconds in costs if records > 0 and 0 <= seconds < np.inf]
    if not usable:
        return None
    sizes, seconds = (
        np.array(column, dtype=np.float64) for column in zip(*usable[-LATEST_UPDATES:], strict=True)
    )
    first, second = np.triu_indices(len(sizes), k=1)
    differ = sizes[first] != sizes[second]
    if len(sizes) < FEW_UPDATES or not differ.any():
        return counts.astype(np.float64) * float(seconds[-1] / sizes[-1])
    rises = (seconds[second] - seconds[first])[differ] / (sizes[second] - sizes[first])[differ]
    slope = max(0.0, float(np.median(rises)))
    fixed = max(0.0, float(np.median(seconds - slope * sizes)))
    return fixed + slope * counts.astype(np.float64)
