"""Records that were read and are not yet cut, in the order in which they became complete."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.base import RecordSchema
from streams.joining import Pair
from streams.records import Records, empty_records


def _none() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Chunk:
    """Accepted, complete records that came together, in order."""

    partition: str
    """Where they came from; with late labels, where the half came from that completed them."""
    records: Records
    positions: Sequence[str]
    """One cursor a record; empty with late labels, where the join knows how far each partition is done."""
    parts: NDArray[np.uint8]
    """(n,) the part of each record, as its place in `PARTS`."""
    arrived_at: float
    """Epoch seconds; NaN where the source does not know."""
    dropped: NDArray[np.int64] = field(default_factory=_none)
    """Sorted: for each duplicate that was dropped, how many of these records stand before it."""
    pairs: Sequence[Pair] = ()
    """With late labels: what the join must hear of when a record is cut. One a record."""

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the records in memory."""
        return self.records.nbytes

    def head(self, count: int) -> "Chunk":
        """The first `count` records, and the duplicates that came before the last of them."""
        return replace(
            self,
            records=self.records.take(slice(count)),
            positions=self.positions[:count],
            parts=self.parts[:count],
            dropped=self.dropped[self.dropped < count],
            pairs=self.pairs[:count],
        )

    def tail(self, count: int) -> "Chunk":
        """The rest: what is read again when a process ends after the head was committed."""
        return replace(
            self,
            records=self.records.take(slice(count, None)),
            positions=self.positions[count:],
            parts=self.parts[count:],
            dropped=self.dropped[self.dropped >= count] - count,
            pairs=self.pairs[count:],
        )


def part_records(chunks: Sequence[Chunk], part: int, schema: RecordSchema) -> Records:
    """The records of one part, in order: each row is copied once, straight to its place."""
    chosen = [np.flatnonzero(chunk.parts == part) for chunk in chunks]
    picked = [(chunk.records, rows) for chunk, rows in zip(chunks, chosen, strict=True) if len(rows)]
    if not picked:
        return empty_records(schema)
    ids = _texts([records.ids for records, _ in picked], picked)
    plain = all(records.split_keys is records.ids for records, _ in picked)
    return Records(
        ids=ids,
        features=_rows([records.features for records, _ in picked], picked),
        labels=_rows([records.labels for records, _ in picked], picked),
        times=_rows([records.times for records, _ in picked], picked),
        split_keys=ids if plain else _texts([records.split_keys for records, _ in picked], picked),
        groups={
            name: _texts([records.groups[name] for records, _ in picked], picked) for name in schema.groups
        },
    )


Picked = Sequence[tuple[Records, NDArray[np.int64]]]


def _rows(columns: Sequence[NDArray[Any]], picked: Picked) -> NDArray[Any]:
    counts = [len(rows) for _, rows in picked]
    found = np.empty((sum(counts), *columns[0].shape[1:]), dtype=columns[0].dtype)
    start = 0
    for column, (_, rows) in zip(columns, picked, strict=True):
        # The rows are inside, which "clip" lets numpy take on trust; it then writes without a buffer.
        np.take(column, rows, axis=0, out=found[start : start + len(rows)], mode="clip")
        start += len(rows)
    return found


def _texts(columns: Sequence[pa.StringArray], picked: Picked) -> pa.StringArray:
    return pa.concat_arrays(
        [column.take(pa.array(rows)) for column, (_, rows) in zip(columns, picked, strict=True)]
    )


def divide(chunks: Sequence[Chunk], count: int) -> tuple[list[Chunk], list[Chunk]]:
    """The oldest `count` records, and the rest: with it the duplicates after the last of each partition.

    So each partition is cut at a record, and what stands before that record is all that the cut accounts for.
    """
    taken: list[Chunk] = []
    left: list[Chunk] = []
    for place, chunk in enumerate(chunks):
        if count <= len(chunk):
            taken.append(chunk.head(count))
            left = [chunk.tail(count), *chunks[place + 1 :]]
            break
        taken.append(chunk)
        count -= len(chunk)
    taken, trailing = _settled(taken)
    return taken, [chunk for chunk in (*trailing, *left) if len(chunk) or len(chunk.dropped)]


def _settled(taken: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    """The chunks up to the last record of each partition, and the duplicates that stand after it."""
    kept: list[Chunk] = []
    trailing: list[Chunk] = []
    ended: set[str] = set()
    for chunk in reversed(taken):
        if chunk.partition not in ended:
            if len(chunk):
                ended.add(chunk.partition)
            if not len(chunk) or (chunk.dropped >= len(chunk)).any():
                trailing.append(chunk.tail(len(chunk)))
                chunk = chunk.head(len(chunk))
        if len(chunk) or len(chunk.dropped):
            kept.append(chunk)
    return kept[::-1], trailing[::-1]
