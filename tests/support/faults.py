"""Faults injected into the calls that a function makes, discovered while it runs."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

OURS = tuple(str(Path(__file__).parents[2] / package) for package in ("service", "streams"))


class Injected(RuntimeError):
    """The fault."""


class Faults:
    """Counts the calls made from Holdfast's own code in this thread, and fails one of them.

    Calls between two functions of one module are not counted: what they call is.
    """

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls = 0
        self._fail_at = fail_at

    def run(self, function: Callable[[], Any]) -> Any:
        """Call the function; raises `Injected`, unless it catches it, where the chosen call is reached."""
        sys.setprofile(self._seen)
        try:
            return function()
        finally:
            sys.setprofile(None)

    def _seen(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or frame.f_back is None:
            return
        caller, callee = frame.f_back.f_code.co_filename, frame.f_code.co_filename
        if not caller.startswith(OURS) or caller == callee:
            return
        if frame.f_code.co_name == "__exit__":
            return  # to fail before it begins would leave a transaction open, which no real fault does
        if "weakref" in callee or frame.f_code.co_name == "__del__":
            return  # called by the garbage collector, wherever it runs
        self.calls += 1
        if self.calls == self._fail_at:
            raise Injected(f"a fault in {frame.f_code.co_qualname}")
