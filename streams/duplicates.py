"""Duplicate window: recognises records that a producer sends twice, by their id.

The window is counted in accepted records and ends at the border of an experience: an id is known when it
is in one of the latest experiences that together hold at least `window` records, or among the records that
are not yet cut. What is known depends only on what was committed, so it is the same after a restart.

Ids are kept as two hashes of 64 bits, 24 bytes a record: were they random, two of a billion ids would share
both with a probability below 1e-20. They are not cryptographic: whoever chooses the ids can make two that do.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.hashing import hash_texts

_Columns = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]
"""First hash (sorted), second hash, ordinal: the number of the record among all accepted."""


class DuplicateWindow:
    """The ids within the window. Not thread-safe."""

    def __init__(self, window: int) -> None:
        """`window`: how many accepted records back an id is known, at least; 0: none is."""
        self.window = window
        """How many accepted records back an id is known, at least."""
        self._runs: list[_Columns] = []
        self._next = 0
        self._ends: list[int] = []

    @property
    def wanted(self) -> bool:
        """Whether the window is longer than 0."""
        return self.window > 0

    def committed(self, rows: int) -> None:
        """Note that the oldest `rows` records outside of experiences were committed as one experience."""
        if not self.wanted:
            return
        self._ends.append((self._ends[-1] if self._ends else 0) + rows)
        self._next = max(self._next, self._ends[-1])
        self._expire()

    def knows(self, ids: pa.StringArray) -> NDArray[np.bool_]:
        """(n,) whether each id is known. Adds none of them."""
        first, second = _hashes(ids)
        known = np.zeros(len(ids), dtype=np.bool_)
        for run in self._runs:
            known |= self._in_run(run, first, second)
        return known

    def add(self, ids: pa.StringArray) -> NDArray[np.bool_]:
        """Add ids; (n,) whether each was new."""
        first, second = _hashes(ids)
        new = _first_of_each(first, second)
        for run in self._runs:
            new &= ~self._in_run(run, first, second)
        count = int(new.sum())
        if count:
            ordinals = np.arange(self._next, self._next + count)
            self._insert((first[new], second[new], ordinals))
            self._next += count
        return new

    def pass_over(self, count: int) -> None:
        """Count records whose ids are not added."""
        self._next += count

    def _in_run(
        self, run: _Columns, first: NDArray[np.uint64], second: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        firsts, seconds, ordinals = run
        index = np.searchsorted(firsts, first)
        inside = np.minimum(index, len(firsts) - 1)
        return np.asarray(
            (firsts[inside] == first) & (seconds[inside] == second) & (ordinals[inside] >= self._oldest)
        )

    @property
    def _oldest(self) -> int:
        """The ordinal that the window begins at: the start of the first experience that reaches into it."""
        total = self._ends[-1] if self._ends else 0
        index = int(np.searchsorted(self._ends, total - self.window, side="right"))
        return self._ends[index - 1] if index else 0

    def _insert(self, columns: _Columns) -> None:
        """Runs are sorted, each at least twice the next, so that a look asks few of them."""
        run = _sorted(columns)
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            # The newer run first: of an id that came again after it had expired, the later ordinal counts.
            run = _sorted(_joined([run, self._runs.pop()]))
        self._runs.append(run)

    def _expire(self) -> None:
        oldest = self._oldest
        kept = []
        for run in self._runs:
            alive = run[2] >= oldest
            share = alive.mean()
            if share > 0.5:
                kept.append(run)
            elif share > 0:
                kept.append((run[0][alive], run[1][alive], run[2][alive]))
        self._runs = kept
        # Of the experiences before the window, only the end of the last one is still needed.
        index = int(np.searchsorted(self._ends, oldest, side="left"))
        if oldest and index:
            del self._ends[:index]


def _hashes(ids: pa.StringArray) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    return hash_texts(ids), hash_texts(ids, swapped=True)


def _first_of_each(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Mask of first occurrences: of equal ids within one batch only the first is new."""
    order = np.lexsort((second, first))
    new = np.ones(len(first), dtype=np.bool_)
    same = (first[order[1:]] == first[order[:-1]]) & (second[order[1:]] == second[order[:-1]])
    # lexsort is stable, so the first of equals in the batch stays the first of equals in the order.
    new[order[1:][same]] = False
    return new


def _joined(runs: Sequence[_Columns]) -> _Columns:
    first, second, ordinals = (np.concatenate(columns) for columns in zip(*runs, strict=True))
    return first, second, ordinals


def _sorted(columns: _Columns) -> _Columns:
    order = np.argsort(columns[0], kind="stable")
    return columns[0][order], columns[1][order], columns[2][order]
