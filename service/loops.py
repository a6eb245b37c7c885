"""Loops that must not end: each survives every failure, shows it, and is started again where it ended."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from service.incidents import number

log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0
"""Seconds between two turns that fail: twice as long each time, up to the longest."""
SLOW_SECONDS = 60.0
"""A turn that has taken longer is shown as a trouble."""
MOST_SHOWN = 20

Item = TypeVar("Item")
Turn = Callable[[], float | None]
"""One turn of a loop: seconds until the next, 0 for at once; None: the loop is done."""


@dataclass(frozen=True)
class Trouble:
    """A loop that fails, or whose turn takes long."""

    loop: str
    reason: str
    seconds: float
    """Since when, seconds ago."""


@dataclass
class _State:
    """What a loop is doing. Times are monotonic."""

    turning_since: float | None = None
    failing_since: float | None = None
    failures: int = 0
    reason: str = ""
    wake: threading.Event = field(default_factory=threading.Event)


class Loop:
    """Calls `turn` until `stop` is set, whatever it raises.

    A turn that fails is tried again after a pause that grows with every failure in a row. Its log line has
    the traceback; what is shown elsewhere is the error's type and an incident number, which the line has too.
    """

    def __init__(
        self, name: str, turn: Turn, stop: threading.Event, *, end: Callable[[], None] | None = None
    ) -> None:
        self.name = name
        self.turn = turn
        self.end = end
        self.done = False
        """Whether a turn said so, or the process stops."""
        self._stop = stop
        self._state = _State()

    def run(self) -> None:
        """Turn until `stop` is set, or the loop is done; `end` is called afterwards."""
        while not self._stop.is_set():
            pause = self._once()
            if pause is None:
                break
            if pause > 0:
                self._state.wake.wait(pause)
                self._state.wake.clear()
        self.done = True
        if self.end is not None:
            self.end()

    def wake(self) -> None:
        """End the present pause."""
        self._state.wake.set()

    def _once(self) -> float | None:
        state = self._state
        state.turning_since = time.monotonic()
        try:
            pause = self.turn()
        except Exception as error:
            return self._failed(error)
        finally:
            state.turning_since = None
        if state.failures:
            log.info("loop works again", loop=self.name, failures=state.failures)
            state.failures, state.failing_since, state.reason = 0, None, ""
        return pause

    def _failed(self, error: Exception) -> float:
        state, incident = self._state, number()
        state.failures += 1
        if state.failing_since is None:
            state.failing_since = time.monotonic()
        state.reason = f"{type(error).__name__}, incident {incident} of the log"
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (state.failures - 1))
        # One traceback a trouble: the same one every second would hide everything else.
        tell = log.exception if state.failures == 1 else log.warning
        tell(
            "loop failed, trying again",
            loop=self.name,
            incident=incident,
            error=type(error).__name__,
            failures=state.failures,
            pause_seconds=pause,
        )
        return pause

    def trouble(self) -> Trouble | None:
        """What is wrong with it now; None: nothing."""
        state, moment = self._state, time.monotonic()
        since, turning = state.failing_since, state.turning_since
        if since is not None:
            return Trouble(self.name, state.reason, moment - since)
        if turning is not None and moment - turning > SLOW_SECONDS:
            return Trouble(self.name, "its turn has not ended yet", moment - turning)
        return None


class Loops:
    """The loops of one process, each in a thread of its own."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._running: dict[str, tuple[Loop, threading.Thread]] = {}

    def start(self, name: str, turn: Turn, *, end: Callable[[], None] | None = None) -> Loop:
        """Start a loop under a name that no running one has."""
        loop = Loop(name, turn, self._stop, end=end)
        thread = threading.Thread(target=loop.run, name=name, daemon=True)
        self._running[name] = (loop, thread)
        thread.start()
        return loop

    def tend(self) -> None:
        """Forget loops that are done, and start those again whose thread has died."""
        for name, (loop, thread) in list(self._running.items()):
            if thread.is_alive():
                continue
            del self._running[name]
            if not loop.done and not self._stop.is_set():
                log.error("loop ended by itself, started again", loop=name)
                self.start(name, loop.turn, end=loop.end)

    def wake(self, name: str) -> None:
        """End the present pause of a loop."""
        if name in self._running:
            self._running[name][0].wake()

    def is_running(self, name: str) -> bool:
        """Whether a loop of this name runs."""
        found = self._running.get(name)
        return found is not None and found[1].is_alive()

    def troubles(self) -> list[Trouble]:
        """The loops that fail or hang, the longest first; the first `MOST_SHOWN`."""
        found = [each for loop, _ in list(self._running.values()) if (each := loop.trouble()) is not None]
        return sorted(found, key=lambda each: -each.seconds)[:MOST_SHOWN]

    def join(self, seconds: float) -> list[str]:
        """Wait for all loops to end, so long in all; the names of those that did not."""
        deadline = time.monotonic() + seconds
        for loop, _ in self._running.values():
            loop.wake()
        for _, thread in self._running.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        return [name for name, (_, thread) in self._running.items() if thread.is_alive()]


def for_all(items: Iterable[Item], do: Callable[[Item], object], *, what: str) -> list[Item]:
    """Call `do` with every item, whatever it raises for one of them; returns those that it failed for.

    `what` names the items in the log: one traceback, then a line an item.
    """
    failed: list[Item] = []
    for item in items:
        try:
            do(item)
        except Exception as error:
            tell = log.warning if failed else log.exception
            tell("one failed, the others go on", what=what, item=str(item), error=type(error).__name__)
            failed.append(item)
    return failed
