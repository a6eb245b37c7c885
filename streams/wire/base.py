"""What decoding gives: records, and the payloads that were refused, each with its reason."""

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
    place: int
    """The place of the payload in the batch: `position` is `batch.positions[place]`."""
    payload_of: Callable[[int], bytes] = field(repr=False, compare=False)
    """The payload at a place. Whoever refuses a whole request never needs all of them."""

    @cached_property
    def whole(self) -> bytes:
        """What was sent; of a row of an Arrow payload, its JSON form."""
        return self.payload_of(self.place)

    @property
    def payload(self) -> bytes:
        """The first 64 KB of it."""
        return self.whole[:PAYLOAD_CAP_BYTES]


@dataclass(frozen=True)
class Decoded:
    """What became of a batch of payloads: every position is either accepted or rejected.

    Only an Arrow payload that is refused as a whole is one `Rejected`, at the last of its positions.
    """

    records: Records
    positions: Sequence[str]
    """One cursor a record."""
    rejected: Sequence[Rejected]
    """In the order of the batch."""
    places: NDArray[np.int64]
    """(n,) the place of each record in the batch, ascending."""


class Fault(NamedTuple):
    """Why a record is refused."""

    reason: str
    detail: str


class Faults:
    """The rows of a batch that are refused, and why. Of several faults of a row, the first one stands."""

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
        """Refuse the rows of a mask (n,) that begins at row `first`. A detail may be told of each place."""
        for place in np.flatnonzero(bad).tolist():
            if first + place not in self._found:
                told = detail if isinstance(detail, str) else detail(place)
                self._found[first + place] = Fault(reason, told)

    def good(self, count: int) -> NDArray[np.int64]:
        """Those of the rows 0 .. count - 1 that are not refused."""
        kept = np.ones(count, dtype=np.bool_)
        kept[list(self._found)] = False
        return np.flatnonzero(kept)

    def within(self, start: int, stop: int) -> "Faults":
        """The faults of a stretch of rows, counted from its start."""
        return Faults({row - start: fault for row, fault in self._found.items() if start <= row < stop})

    def in_order(self) -> Sequence[tuple[int, Fault]]:
        """All faults, by row."""
        return sorted(self._found.items())


def assemble(
    records: Records,
    places: NDArray[np.int64],
    faults: Faults,
    *,
    positions: Sequence[str],
    payload_of: Callable[[int], bytes],
) -> Decoded:
    """The outcome of a batch: the records at these places, and a `Rejected` for every fault."""
    rejected = [
        Rejected(positions[place], fault.reason, fault.detail, place, payload_of)
        for place, fault in faults.in_order()
    ]
    return Decoded(records, positions if not rejected else select(positions, places), rejected, places)


def all_refused(batch: RawBatch, schema: RecordSchema, error: RecordInvalidError) -> Decoded:
    """Every payload of the batch is refused for one reason.

    A payload of many records is one rejection at its last position: the partition can be read on behind it.
    """
    faults = Faults()
    last = len(batch.positions) - 1
    for place in [last] if batch.wire == "arrow" else range(len(batch.payloads)):
        faults.add(place, error)
    nowhere = np.empty(0, dtype=np.int64)
    return assemble(
        empty_records(schema),
        nowhere,
        faults,
        positions=batch.positions,
        payload_of=lambda place: batch.payloads[0 if batch.wire == "arrow" else place],
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
