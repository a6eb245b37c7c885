"""Event-time clock that ignores outlying timestamps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

MAX_JUMP_SECONDS = 86_400.0
FURTHEST_SECONDS = 1e15
"""A time further from 1970 than this is ignored: arithmetic on it would lose the seconds."""
RECENT = 5


def has_time(times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) which of the times (n,) are usable: neither NaN nor too far from 1970."""
    return np.abs(times) <= FURTHEST_SECONDS


class EventClock:
    """Shows the latest event time, without records that are far ahead of those just before them.

    A record moves the clock only if it is at most `max_jump_seconds` ahead of the median time of the last
    five records that had one. So the clock follows a true gap from the fourth record after it on, and a clock
    that ran ahead is set back once the median of the last five is more than that behind it.
    """

    def __init__(self, max_jump_seconds: float, state: Mapping[str, Any] | None = None) -> None:
        """`state` is that of an earlier clock, from which this one goes on."""
        self._max_jump = max_jump_seconds
        self._recent: list[float] = list((state or {}).get("recent", []))
        self._reading: float = (state or {}).get("reading", np.nan)

    @property
    def reading(self) -> float:
        """Epoch seconds; NaN before the first record that has a time."""
        return self._reading

    def copy(self) -> "EventClock":
        """An independent clock with the same state."""
        return EventClock(self._max_jump, self.state())

    def state(self) -> Mapping[str, Any]:
        """JSON-able; empty before the first record that has a time."""
        return {"recent": list(self._recent), "reading": self._reading} if self._recent else {}

    def read(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) what the clock shows after each of the next records, whose times (n,) may be NaN."""
        timed = np.flatnonzero(has_time(times))
        before = self._reading
        if not len(timed):
            return np.full(len(times), before)
        known = times[timed]
        around = np.concatenate([self._recent or [known[0]] * RECENT, known])
        medians = np.sort(sliding_window_view(around, RECENT)[:-1], axis=1)[:, RECENT // 2]
        shown = self._run(known, medians)
        self._recent = around[-RECENT:].tolist()
        self._reading = float(shown[-1])
        latest = np.searchsorted(timed, np.arange(len(times)), side="right") - 1
        return np.where(latest >= 0, shown[latest], before)

    def _run(self, known: NDArray[np.float64], medians: NDArray[np.float64]) -> NDArray[np.float64]:
        accepted = np.where(known <= medians + self._max_jump, known, -np.inf)
        start = -np.inf if np.isnan(self._reading) else self._reading
        shown = np.maximum.accumulate(np.concatenate([[start], accepted]))[1:]
        while (ahead := shown > medians + self._max_jump).any():
            index = int(ahead.argmax())
            again = accepted[index:].copy()
            again[0] = max(again[0], medians[index])
            shown[index:] = np.maximum.accumulate(again)
        return shown
