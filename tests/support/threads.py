"""Work that several threads start at the same moment."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def together(count: int, work: Callable[[int], T], *, seconds: float = 120.0) -> list[T]:
    """What `work(0) ... work(count - 1)` answer, all started at once; the first that raises is raised."""
    start = threading.Barrier(count)

    def run(number: int) -> T:
        start.wait(seconds)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return [future.result(seconds) for future in [pool.submit(run, number) for number in range(count)]]


def outcome(work: Callable[[], T]) -> T | Exception:
    """What `work` answers or raises."""
    try:
        return work()
    except Exception as error:
        return error
