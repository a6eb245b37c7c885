"""Records that a producer sends twice, known by their id over a declared window.

The window is counted in accepted records and ends at the border of an experience: an id is known when it
stands in one of the latest experiences that together hold at least `window` records, or among the records
that are not yet cut. So what is known follows from what was committed, and a restart knows the same.

Ids are kept as two hashes of 64 bits, 24 bytes a record: were they random, two of a billion ids would share
both with a probability below 1e-20. They are not cryptographic: who chooses the ids can make two that do.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.hashing import hash_texts

_Columns = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]
"""First hash (sorted), second hash, ordinal: the number of the record among all accepted."""


class DuplicateWindow:
    """The ids seen lately. Not thread-safe."""

    def __init__(self, window: int) -> None:
        """`window` accepted records back at least; 0 knows nothing."""
        self._window = window
        self._runs: list[_Columns] = []
        self._next = 0
        self._ends: list[int] = []

    @property
    def wanted(self) -> bool:
        """Whether anything is to be known at all."""
        return self._window > 0

    def committed(self, rows: int) -> None:
        """The oldest `rows` records that are not yet in an experience now are in one, of their own."""
        if not self.wanted:
            return
        self._ends.append((self._ends[-1] if self._ends else 0) + rows)
        self._next = max(self._next, self._ends[-1])
        self._expire()

    def knows(self, ids: pa.StringArray) -> NDArray[np.bool_]:
        """(n,) whether each id is known; none is known any better afterwards."""
        first, second = _hashes(ids)
        known = np.zeros(len(ids), dtype=np.bool_)
        for run in self._runs:
            known |= self._in_run(run, first, second)
        return known

    def add(self, ids: pa.StringArray) -> NDArray[np.bool_]:
        """(n,) whether each id is new; the new ones are known from now on."""
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
        """So many records come whose ids are not to be known."""
        self._next += count

    def _in_run(
        self, run: _Columns, first: NDArray[np.uint64], second: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        firsts, seconds, ordinals = run
        place = np.searchsorted(firsts, first)
        inside = np.minimum(place, len(firsts) - 1)
        return np.asarray(
            (firsts[inside] == first) & (seconds[inside] == second) & (ordinals[inside] >= self._oldest)
        )

    @property
    def _oldest(self) -> int:
        """The ordinal that the window begins at: the start of the first experience that reaches into it."""
        total = self._ends[-1] if self._ends else 0
        place = int(np.searchsorted(self._ends, total - self._window, side="right"))
        return self._ends[place - 1] if place else 0

    def _insert(self, columns: _Columns) -> None:
        """Runs are sorted, each at least twice the next, so that a look asks few of them."""
        run = _sorted(columns)
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            # The newer first: of an id that came back after its time, the later place counts.
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
        # Whole experiences before the window say nothing any more but where it begins.
        place = int(np.searchsorted(self._ends, oldest, side="left"))
        if oldest and place:
            del self._ends[:place]


def _hashes(ids: pa.StringArray) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    return hash_texts(ids), hash_texts(ids, swapped=True)


def _first_of_each(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Of equal ids within one batch only the first is new."""
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
