"""Where a process is ended: every write boundary of the ingest, by name, and the bomb that goes off there."""

import os
import threading
from collections.abc import Callable, Mapping

CRASHED = 70
"""The exit status of a process that the bomb ended."""

STATEMENT = "transaction: after a statement"
MOST: Mapping[str, int] = {
    "source: opened": 1,
    "poll: before": 6,
    "poll: after": 6,
    "decode: before": 4,
    "decode: after": 4,
    "file: before open": 6,
    "file: after open": 6,
    "file: part written": 30,
    "file: before fsync": 6,
    "file: after fsync": 6,
    "file: before rename": 6,
    "file: after rename": 6,
    "files: between parts": 4,
    "folder: before fsync": 2,
    "folder: after fsync": 2,
    "transaction: begun": 3,
    STATEMENT: 16,
    "transaction: last of it": 2,
    "transaction: before commit": 3,
    "transaction: after commit": 3,
    "trim: before": 3,
    "trim: after": 3,
}
"""Every boundary, and the highest occurrence that a bomb may wait for."""
UPLOADS: Mapping[str, int] = {"upload: before": 6, "upload: after": 6}
"""More of them, where the experiences lie in S3."""
TRIMS: Mapping[str, int] = {"trim: in its transaction": 4}
"""More of them, where the log is trimmed in the database."""
FORGETS: Mapping[str, int] = {"forget: before": 1, "forget: after commit": 1}
"""More of them, where files go once they are read."""


def boundaries(*, uploads: bool, trims: bool, forgets: bool) -> Mapping[str, int]:
    """Those of one run, each with its highest occurrence."""
    found = dict(MOST)
    for wanted, more in ((uploads, UPLOADS), (trims, TRIMS), (forgets, FORGETS)):
        found |= more if wanted else {}
    return found


class Bomb:
    """Ends the process the n-th time that a boundary is reached: nothing is flushed or rolled back."""

    def __init__(self, boundary: str = "", occurrence: int = 1, *, report: int = -1) -> None:
        """`report` is an open descriptor that is told where the process ended."""
        self._boundary = boundary
        self._left = occurrence
        self._report = report
        self._lock = threading.Lock()

    def reach(self, boundary: str, *, detail: str = "", last: Callable[[], object] | None = None) -> None:
        """`last` is done before the end, such as handing over what a buffer holds."""
        with self._lock:
            if boundary != self._boundary:
                return
            self._left -= 1
            if self._left:
                return
            if last is not None:
                last()
            self.say(f"died {detail or boundary}")
            os._exit(CRASHED)

    def say(self, what: str) -> None:
        """Tell the parent."""
        os.write(self._report, f"{what}\n".encode())
