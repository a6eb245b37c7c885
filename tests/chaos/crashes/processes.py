"""The processes of a crash run: how they are forked and killed, what they share, and who produces."""

import faulthandler
import mmap
import os
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.crashes.files import CHUNKS_A_FILE
from tests.chaos.crashes.streams import Stream

_LIFE_SECONDS = 60
_PRODUCER_SECONDS = 600
_WAIT_SECONDS = 60.0


class Pace:
    """Memory that the processes of a run share, so that production runs ahead of ingest, and not far."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 24)

    @property
    def chunks(self) -> int:
        """Chunks of every lane that may be sent."""
        return self._get(0)

    @property
    def over(self) -> bool:
        """Whether no more will be allowed."""
        return bool(self._get(8))

    @property
    def taken(self) -> int:
        """Records that are in experiences, about: whoever commits says so afterwards."""
        return self._get(16)

    def allow(self, chunks: int, *, over: bool = False) -> None:
        """Let so many more be sent."""
        struct.pack_into("qq", self._shared, 0, self.chunks + chunks, over)

    def take(self, records: int) -> None:
        """Say how many records are in experiences."""
        struct.pack_into("q", self._shared, 16, records)

    def _get(self, place: int) -> int:
        return int(struct.unpack_from("q", self._shared, place)[0])


@dataclass
class Child:
    """A forked process, and what it says."""

    pid: int
    pipe: int
    status: int | None = None

    def ended(self) -> bool:
        """Whether it has; then `status` is its exit status, negative for a signal."""
        if self.status is None:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(code)
        return self.status is not None

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def tell_where_it_is(self) -> None:
        """Have its stacks written to stderr, if it goes on."""
        if not self.ended():
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(0.5)

    def said(self) -> list[str]:
        """All it said, once it has ended."""
        with os.fdopen(self.pipe, "rb") as pipe:
            return pipe.read().decode().splitlines()


def fork(action: Callable[[int], int], *, seconds: int = _LIFE_SECONDS) -> Child:
    """Run in a child, which ends after so many seconds at the latest. It is given a pipe to this process.

    Forked from a process of one thread that has imported everything and opened nothing, so that a crash costs
    little and what dies is a whole process.
    """
    reads, writes = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writes)
        return Child(pid, reads)
    status = 1
    try:
        for number in (signal.SIGALRM, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(seconds)
        faulthandler.register(signal.SIGUSR1)
        os.close(reads)
        status = action(writes)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Production:
    """The producer's process. It goes on where it was, however it ended."""

    def __init__(self, stream: Stream, folder: Path, pace: Pace, *, lag: int) -> None:
        """`lag`: so many chunks later comes the second lane."""
        self._stream, self._pace, self._lag = stream, pace, lag
        self._journal = folder / "sent"
        self._journal.touch()
        self._child: Child | None = None

    def sent(self) -> set[tuple[int, int]]:
        """Lane and number of every chunk that was sent for sure."""
        lines = (line.split() for line in self._journal.read_text().splitlines())
        return {(int(lane), int(number)) for lane, number in lines}

    def start(self) -> None:
        self._child = fork(lambda _pipe: self._produce(), seconds=_PRODUCER_SECONDS)

    def check(self) -> None:
        if self._child is not None and self._child.ended() and self._child.status not in (0, -signal.SIGKILL):
            raise AssertionError(f"the producer ended with {self._child.status}")

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.said()
            self._child = None

    def finish(self) -> None:
        """Send the rest of the last files, and wait for the end."""
        self._pace.allow(-self._pace.chunks % CHUNKS_A_FILE or CHUNKS_A_FILE, over=True)
        if self._child is None or self._child.ended():
            self.start()
        child = self._child
        assert child is not None
        wait_until(child.ended, "end of the producer")
        self.check()
        self.kill()

    def _produce(self) -> int:
        done = self.sent()
        with self._journal.open("ab", buffering=0) as journal:
            for lane, number in self._order():
                if (lane, number) not in done:
                    self._stream.send(lane, number)
                    journal.write(f"{lane} {number}\n".encode())
        return 0

    def _order(self) -> Iterator[tuple[int, int]]:
        number = 0
        while self._may_send(number):
            yield 0, number
            if number >= self._lag:
                yield 1, number - self._lag
            number += 1
        for last in range(max(0, number - self._lag), number):
            yield 1, last

    def _may_send(self, number: int) -> bool:
        while number >= self._pace.chunks:
            if self._pace.over:
                # Said together with the last that is allowed.
                return number < self._pace.chunks
            time.sleep(0.002)
        return True


def wait_until(what: Callable[[], bool], hint: str) -> None:
    """Wait for what is near.

    Raises:
        AssertionError: it does not come.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while not what():
        if time.monotonic() > deadline:
            raise AssertionError(f"within {_WAIT_SECONDS:.0f} seconds there was no {hint}")
        time.sleep(0.005)
