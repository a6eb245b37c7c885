"""Records in memory, as columns of equal length in the schema's types, and the rules for their texts.

Decoders build them; the store and the pushed log write them. Texts stay in Arrow memory, so that a column of
them needs no Python object for each text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streams.base import RecordInvalidError, RecordSchema

MAX_TEXT_LENGTH = 200
"""Longest id, split key or group value, in characters."""

UNLABELLED = -1
"""The label of a record whose label has not come yet."""

COMPLETE, FEATURES_ONLY, LABEL_ONLY = 0, 1, 2
"""Contents of a record, if the schema allows late labels."""


@dataclass(frozen=True)
class Records:
    """Accepted records, in order, as columns."""

    ids: pa.StringArray
    """(n,)."""
    features: NDArray[np.float32] | NDArray[np.uint8]
    """(n, *shape) in the schema's dtype; zeros where only a label came."""
    labels: NDArray[np.int64]
    """(n,) dense class ids; `UNLABELLED` where only features came."""
    times: NDArray[np.float64]
    """(n,) epoch seconds; NaN where a record has none."""
    split_keys: pa.StringArray
    """(n,). Records that share a key always land in the same part."""
    groups: Mapping[str, pa.StringArray]
    """One column (n,) for each group of the schema."""
    carries: NDArray[np.uint8] | None = None
    """(n,) `COMPLETE`, `FEATURES_ONLY` or `LABEL_ONLY`; None: all are complete."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, where: slice | NDArray[np.bool_] | NDArray[np.int64]) -> "Records":
        """The records that a slice, a mask or a list of indices selects."""
        ids = take_texts(self.ids, where)
        return Records(
            ids=ids,
            features=self.features[where],
            labels=self.labels[where],
            times=self.times[where],
            split_keys=ids if self.split_keys is self.ids else take_texts(self.split_keys, where),
            groups={name: take_texts(column, where) for name, column in self.groups.items()},
            carries=None if self.carries is None else self.carries[where],
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all columns in memory."""
        texts = [self.ids, *self.groups.values()]
        if self.split_keys is not self.ids:
            texts.append(self.split_keys)
        numbers = self.features.nbytes + self.labels.nbytes + self.times.nbytes
        return int(numbers + sum(column.nbytes for column in texts))


_FRACTION = re.compile(r"[+-]?\d*\.\d*[1-9]\d*([eE][+-]?\d+)?|[+-]?\d+(\.\d*)?[eE][+-]?\d+")

ON_SCALE = (
    "looks like a number on a scale, and only classes are learnt, no quantities: cut the scale into classes, "
    "such as 'low' and 'high', or name this number among the declared classes if it is one of a few"
)
"""What is wrong with a label for which `on_scale` is true."""


def on_scale(name: str) -> bool:
    """Whether a label is written as a number with a fraction or an exponent, as a measured quantity is."""
    return _FRACTION.fullmatch(name) is not None


class LabelMap:
    """Class names and their dense ids. An open one gives a name that is new the next id."""

    def __init__(self, schema: RecordSchema, names: Sequence[str] | None = None) -> None:
        """`names` are the classes known so far; by default those that the schema declares."""
        self._names = list(schema.classes if names is None else names)
        self._ids = {name: index for index, name in enumerate(self._names)}
        self._room = schema.max_classes if schema.open_classes else 0

    @property
    def names(self) -> Sequence[str]:
        """All classes, by id."""
        return tuple(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def id_of(self, name: str) -> int | None:
        """The id of a class, new ones included; None where the set is closed or full, or the name a number
        on a scale."""
        found = self._ids.get(name)
        if found is None and len(self._names) < self._room and not on_scale(name):
            found = self._ids[name] = len(self._names)
            self._names.append(name)
        return found


def empty_records(schema: RecordSchema) -> Records:
    """No records, in the schema's types."""
    none = text_column([])
    return Records(
        ids=none,
        features=np.empty((0, *schema.shape), dtype=schema.dtype),
        labels=np.empty(0, dtype=np.int64),
        times=np.empty(0, dtype=np.float64),
        split_keys=none,
        groups={name: none for name in schema.groups},
        carries=np.empty(0, dtype=np.uint8) if schema.late_labels else None,
    )


def join_records(chunks: Sequence[Records], schema: RecordSchema) -> Records:
    """The records of all chunks, in order."""
    if not chunks:
        return empty_records(schema)
    if len(chunks) == 1:
        return chunks[0]
    ids = pa.concat_arrays([chunk.ids for chunk in chunks])
    plain = all(chunk.split_keys is chunk.ids for chunk in chunks)
    whole = all(chunk.carries is None for chunk in chunks)
    return Records(
        ids=ids,
        features=np.concatenate([chunk.features for chunk in chunks]),
        labels=np.concatenate([chunk.labels for chunk in chunks]),
        times=np.concatenate([chunk.times for chunk in chunks]),
        split_keys=ids if plain else pa.concat_arrays([chunk.split_keys for chunk in chunks]),
        groups={name: pa.concat_arrays([chunk.groups[name] for chunk in chunks]) for name in schema.groups},
        carries=None if whole else np.concatenate([_carried(chunk) for chunk in chunks]),
    )


def _carried(chunk: Records) -> NDArray[np.uint8]:
    return np.zeros(len(chunk), dtype=np.uint8) if chunk.carries is None else chunk.carries


def text_column(values: Sequence[str]) -> pa.StringArray:
    """Texts as a column (n,), also when there are none."""
    return pa.array(values, pa.string())


def take_texts(
    column: pa.StringArray, where: slice | NDArray[np.bool_] | NDArray[np.int64]
) -> pa.StringArray:
    """The texts that a slice, a mask or a list of indices selects."""
    if isinstance(where, slice):
        start, stop, step = where.indices(len(column))
        if step == 1:
            return column.slice(start, max(0, stop - start))
        where = np.arange(start, stop, step)
    chosen = pa.array(where)
    return column.filter(chosen) if where.dtype == np.bool_ else column.take(chosen)


def compact(column: pa.StringArray) -> pa.StringArray:
    """The texts in memory of their own, so that their written bytes depend on nothing around them."""
    _, offsets_buffer, data = column.buffers()
    if not len(column):
        return text_column([])
    offsets = text_offsets(column)
    first, last = int(offsets[0]), int(offsets[-1])
    if offsets_buffer.size == offsets.nbytes and first == 0 and data is not None and data.size == last:
        return column
    texts = pa.py_buffer(b"") if data is None else data.slice(first, last - first)
    return pa.StringArray.from_buffers(len(column), pa.py_buffer(offsets - first), texts)


def check_texts(column: pa.StringArray, *, what: str, reason: str) -> None:
    """Check that texts are not empty, not too long, and without NUL.

    NUL is refused because numpy drops it at the end of a text and PostgreSQL cannot store it; half a
    surrogate pair because it has no UTF-8.

    Raises:
        RecordInvalidError: with the given reason code.
    """
    if not len(column):
        return
    shortest, longest = _extreme_lengths(column)
    if shortest < 1:
        raise RecordInvalidError(f"The {what} is empty: send 1 to {MAX_TEXT_LENGTH} characters.", reason)
    # A text has at least as many bytes as characters, so most columns need no count of characters.
    if longest > MAX_TEXT_LENGTH:
        characters = pc.max(pc.utf8_length(column)).as_py()
        if characters > MAX_TEXT_LENGTH:
            raise RecordInvalidError(
                f"The {what} has {characters} characters; {MAX_TEXT_LENGTH} is the most.", reason
            )
    if _holds_nul(column):
        raise not_plain(what, reason)


def _extreme_lengths(column: pa.StringArray) -> tuple[int, int]:
    """Bytes of the shortest and of the longest text; 1 stands for those that are null."""
    lengths = np.diff(text_offsets(column))
    if column.null_count:
        lengths[column.is_null().to_numpy(zero_copy_only=False)] = 1
    return int(lengths.min()), int(lengths.max())


def _holds_nul(column: pa.StringArray) -> bool:
    _, _, data = column.buffers()
    if data is None or not len(column):
        return False
    ends = text_offsets(column)
    return not np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]].all()


def text_offsets(column: pa.StringArray) -> NDArray[np.int32]:
    """(n + 1,) where each text begins in the column's bytes, and where the last one ends."""
    _, offsets, _ = column.buffers()
    # Limited by count, because a buffer may be longer than its content.
    return np.frombuffer(offsets, dtype=np.int32, count=len(column) + 1, offset=4 * column.offset)


def not_plain(what: str, reason: str) -> RecordInvalidError:
    """The refusal of a text that cannot be stored everywhere."""
    return RecordInvalidError(f"The {what} holds a NUL or half a surrogate pair: send plain text.", reason)
