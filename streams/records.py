"""Records in memory: columns of equal length, already in the schema's types, and the rules they keep.

Decoders build them, the store and the pushed log write them; nothing here knows a wire format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.base import RecordInvalidError, RecordSchema

MAX_TEXT_LENGTH = 200
"""Longest id, split key or group value, in characters."""


@dataclass(frozen=True)
class Records:
    """Accepted records, in order, as columns."""

    ids: NDArray[np.str_]
    """(n,)."""
    features: NDArray[np.float32] | NDArray[np.uint8]
    """(n, *shape) in the schema's dtype."""
    labels: NDArray[np.int64]
    """(n,) dense class ids."""
    times: NDArray[np.float64]
    """(n,) epoch seconds; NaN where a record has none."""
    split_keys: NDArray[np.str_]
    """(n,). Records that share a key always land in the same part."""
    groups: Mapping[str, NDArray[np.str_]]
    """One column (n,) for each group of the schema."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, where: slice | NDArray[np.bool_] | NDArray[np.int64]) -> "Records":
        """The records that a slice, a mask or a list of places selects."""
        return Records(
            ids=self.ids[where],
            features=self.features[where],
            labels=self.labels[where],
            times=self.times[where],
            split_keys=self.split_keys[where],
            groups={name: column[where] for name, column in self.groups.items()},
        )


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
    )


def join_records(chunks: Sequence[Records], schema: RecordSchema) -> Records:
    """The records of all chunks, in order."""
    if not chunks:
        return empty_records(schema)
    if len(chunks) == 1:
        return chunks[0]
    return Records(
        ids=np.concatenate([chunk.ids for chunk in chunks]),
        features=np.concatenate([chunk.features for chunk in chunks]),
        labels=np.concatenate([chunk.labels for chunk in chunks]),
        times=np.concatenate([chunk.times for chunk in chunks]),
        split_keys=np.concatenate([chunk.split_keys for chunk in chunks]),
        groups={name: np.concatenate([chunk.groups[name] for chunk in chunks]) for name in schema.groups},
    )


def text_column(values: Sequence[str]) -> NDArray[np.str_]:
    """Texts as an array (n,), also when there are none."""
    return np.array(values, dtype=np.str_)


def checked_texts(values: Sequence[str], *, what: str, reason: str) -> NDArray[np.str_]:
    """Texts as an array (n,), refusing those that are empty, too long, or cannot be stored everywhere.

    NUL is refused because numpy drops it at the end of a text and PostgreSQL cannot store it; half a
    surrogate pair because it has no UTF-8.

    Raises:
        RecordInvalidError: with the given reason code.
    """
    lengths = [len(value) for value in values]
    if min(lengths, default=1) < 1:
        raise RecordInvalidError(f"The {what} is empty: send 1 to {MAX_TEXT_LENGTH} characters.", reason)
    if max(lengths, default=1) > MAX_TEXT_LENGTH:
        raise RecordInvalidError(
            f"The {what} has {max(lengths)} characters; {MAX_TEXT_LENGTH} is the most.", reason
        )
    together = "".join(values)
    if "\0" in together or not _has_utf8(together):
        raise RecordInvalidError(f"The {what} holds a NUL or half a surrogate pair: send plain text.", reason)
    return text_column(values)


def _has_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def stored_features(
    values: NDArray[np.float64], schema: RecordSchema
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Values (n, *shape) in the type they are stored in.

    Raises:
        RecordInvalidError: a value that the type cannot hold (not-finite, out-of-range).
    """
    if schema.dtype == "uint8":
        if not np.isfinite(values).all():
            raise RecordInvalidError("A feature is not a finite number.", "not-finite")
        if not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
            raise RecordInvalidError("A feature is not a whole number from 0 to 255.", "out-of-range")
        return values.astype(np.uint8)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def check_values(records: Records, schema: RecordSchema) -> None:
    """Hold the rules on numbers that do not depend on a wire format.

    Raises:
        RecordInvalidError: with the reason code of the first rule that a record breaks.
    """
    if np.isinf(records.times).any():
        raise RecordInvalidError("The time is not a finite number of seconds.", "bad-time")
    if not ((records.labels >= 0) & (records.labels < len(schema.classes))).all():
        raise RecordInvalidError("A label is not the id of a declared class.", "unknown-label")
    features = records.features
    if schema.dtype != "uint8" and not np.isfinite(features).all():
        raise RecordInvalidError(f"A feature is not finite, or too large for {schema.dtype}.", "not-finite")
    # Compared in the stored type: a float32 sent as decimal text must pass a limit it equals.
    stored = np.dtype(schema.dtype)
    if schema.minimum is not None and (features < _limit(schema.minimum, stored)).any():
        raise RecordInvalidError(f"A feature is below the declared minimum {schema.minimum}.", "out-of-range")
    if schema.maximum is not None and (features > _limit(schema.maximum, stored)).any():
        raise RecordInvalidError(f"A feature is above the declared maximum {schema.maximum}.", "out-of-range")


def _limit(value: float, stored: np.dtype[np.float32] | np.dtype[np.uint8]) -> float:
    return float(np.float32(value)) if stored == np.float32 else value
