"""The result of decoding: records, and the payloads that were refused, each with its reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streams.base import RawBatch, RecordInvalidError, RecordSchema, select
from streams.records import Records, empty_records

Reason = Literal[
    "malformed",
    "wrong-shape",
    "not-finite",
    "out-of-range",
    "unknown-label",
    "bad-label",
    "too-many-classes",
    "missing-group",
    "unknown-group",
    "bad-group",
    "bad-id",
    "bad-split-key",
    "bad-time",
    "schema-mismatch",
]
"""Every code that a dead letter can carry."""

PAYLOAD_CAP_BYTES = 64 * 1024
"""How much of a refused payload is kept."""

_SHOWN_NAMES = 20


@dataclass(frozen=True)
class Rejected:
    """A payload that did not become a record."""

    position: str
    """The cursor of the payload."""
    reason: str
    """A code, one of `Reason`."""
    detail: str
    """A sentence that the sender can act on."""
    index: int
    """The index of the payload in the batch: `position` is `batch.positions[index]`."""
    payload_of: Callable[[int], bytes] = field(repr=False, compare=False)
    """The payload at an index, made when it is needed: who refuses a whole request needs few of them."""

    @cached_property
    def whole(self) -> bytes:
        """The payload as it was sent; for a row of an Arrow payload, the row as a JSON record."""
        return self.payload_of(self.index)

    @property
    def payload(self) -> bytes:
        """The first 64 KB of `whole`."""
        return self.whole[:PAYLOAD_CAP_BYTES]


@dataclass(frozen=True)
class Decoded:
    """The result of one batch of payloads: every position is either accepted or rejected.

    Except that an Arrow payload refused as a whole is one `Rejected`, at the last of its positions.
    """

    records: Records
    positions: Sequence[str]
    """One cursor a record."""
    rejected: Sequence[Rejected]
    """In the order of the batch."""
    indices: NDArray[np.int64]
    """(n,) the index of each record in the batch, ascending."""


class Fault(NamedTuple):
    """Why a record is refused."""

    reason: str
    detail: str


class Faults:
    """The refused rows of a batch, and why. Of several faults of a row, the first one counts."""

    def __init__(self, found: Mapping[int, Fault] | None = None) -> None:
        self._found = dict(found or {})

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, row: int) -> bool:
        return row in self._found

    def add(self, row: int, error: RecordInvalidError) -> None:
        """Refuse one row."""
        self._found.setdefault(row, Fault(error.reason, str(error)))

    def add_where(
        self, bad: NDArray[np.bool_], reason: str, detail: str | Callable[[int], str], *, first: int = 0
    ) -> None:
        """Refuse rows by a mask (n,) that begins at row `first`; `detail` may depend on the mask's index."""
        for index in np.flatnonzero(bad).tolist():
            if first + index not in self._found:
                sentence = detail if isinstance(detail, str) else detail(index)
                self._found[first + index] = Fault(reason, sentence)

    def good(self, count: int) -> NDArray[np.int64]:
        """Indices among 0 .. count - 1 of the rows that are not refused."""
        kept = np.ones(count, dtype=np.bool_)
        kept[list(self._found)] = False
        return np.flatnonzero(kept)

    def within(self, start: int, stop: int) -> "Faults":
        """The faults of a range of rows, counted from its start."""
        return Faults({row - start: fault for row, fault in self._found.items() if start <= row < stop})

    def in_order(self) -> Sequence[tuple[int, Fault]]:
        """All faults, by row."""
        return sorted(self._found.items())


def assemble(
    records: Records,
    indices: NDArray[np.int64],
    faults: Faults,
    *,
    positions: Sequence[str],
    payload_of: Callable[[int], bytes],
) -> Decoded:
    """The result of a batch: the records at these indices, and a `Rejected` for every fault."""
    rejected = [
        Rejected(positions[index], fault.reason, fault.detail, index, payload_of)
        for index, fault in faults.in_order()
    ]
    return Decoded(records, positions if not rejected else select(positions, indices), rejected, indices)


def all_refused(batch: RawBatch, schema: RecordSchema, error: RecordInvalidError) -> Decoded:
    """Refuse every payload of the batch for one reason.

    A payload of many records is one rejection at its last position, after which the partition is read on.
    """
    faults = Faults()
    last = len(batch.positions) - 1
    for index in [last] if batch.wire == "arrow" else range(len(batch.payloads)):
        faults.add(index, error)
    nowhere = np.empty(0, dtype=np.int64)
    return assemble(
        empty_records(schema),
        nowhere,
        faults,
        positions=batch.positions,
        payload_of=lambda index: batch.payloads[0 if batch.wire == "arrow" else index],
    )


def difference(
    *,
    missing: Sequence[str] = (),
    unknown: Sequence[str] = (),
    twice: Sequence[str] = (),
    other_type: Sequence[str] = (),
) -> str:
    """How columns differ from those that are declared, such as "missing: a, b; unknown: c"."""
    kinds = (("missing", missing), ("unknown", unknown), ("twice", twice), ("of another type", other_type))
    return "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds if names)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:100] or "''" for name in names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"
