"""Trigger that cuts when the distribution of the features has shifted since the last experience."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from streams.records import Records
from streams.triggers.base import Cut, Features, RecordWatch, TriggerConfig, TriggerContext, TriggerState

if TYPE_CHECKING:
    from streams.shift import Columns, Shift

MOST_EARLY = 100_000
"""Most records that are remembered because their features came before their label."""


class ShiftTrigger(TriggerConfig):
    """Cut when the last records' features differ from the last experience's, by a test on each feature."""

    kind: Literal["shift"] = "shift"
    window: int = Field(1000, ge=50, le=10_000, description="Latest records that are compared.")
    every: int = Field(
        1000, ge=1, le=100_000, description="Records from one look to the next, counted from the cut."
    )
    alpha: float = Field(
        0.001, gt=0, le=0.1, description="Chance of a false alarm at each look, on independent records."
    )
    confirm: bool = Field(False, description="Whether it takes two looks in a row to cut.")
    first: int = Field(
        2000, ge=50, le=10_000_000, description="Records of an experience that has no reference before it."
    )
    reference_records: int = Field(
        2000, ge=50, le=10_000, description="At most so many of the reference are compared, drawn evenly."
    )
    features: int = Field(
        256, ge=1, le=4096, description="At most so many feature values are compared, spread evenly."
    )

    def watch(self, state: TriggerState, context: TriggerContext) -> RecordWatch:
        """See `TriggerConfig`."""
        return ShiftWatch(self, context)


class ShiftWatch(RecordWatch):
    """Keeps the last `window` rows of features, and compares them with the reference at every look."""

    def __init__(self, config: ShiftTrigger, context: TriggerContext) -> None:
        super().__init__(config.kind)
        self._config = config
        self._context = context
        self._asked = False
        self._reference: Columns | None = None
        self._columns: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._rows: NDArray[np.generic] = np.empty((0, 0), dtype=np.float32)
        self._count = 0
        self._shifted_before = False
        self._early: OrderedDict[bytes, int] = OrderedDict()
        self._alarm: Cut | None = None

    def _follow(self, records: Records, arrival: float) -> Cut | None:
        if self._alarm is not None:
            return self._cut_of_alarm(noticed=self.seen + 1)
        if not self._has_reference():
            first = self._config.first
            if self.seen + len(records) < first:
                return None
            return self._cut(
                first, f"{first:,} records have arrived; there is nothing to compare them with.", first=True
            )
        indices = self._new_indices(records.features)
        fresh = records.features if len(indices) == len(records) else records.features[indices]
        for taken, shift in self._looks(fresh):
            if self._is_alarm(shift):
                return self._alarmed(self.seen + int(indices[taken - 1]) + 1, shift)
        return None

    def see_features(self, features: Features) -> None:
        """See `Watch`."""
        if self._alarm is not None or not len(features) or not self._has_reference():
            return
        for row in features:
            digest = _digest(row)
            self._early[digest] = self._early.pop(digest, 0) + 1
        while len(self._early) > MOST_EARLY:
            self._early.popitem(last=False)
        for _, shift in self._looks(features):
            if self._is_alarm(shift):
                self._alarm = self._alarmed(max(self.seen, 1), shift)
                return

    def due(self, now: float) -> Cut | None:
        """See `Watch`. Features without labels may have made a cut due."""
        return self._cut_of_alarm(noticed=self.seen) if self._alarm is not None and self.seen else None

    def _cut_of_alarm(self, noticed: int) -> Cut | None:
        self.noticed = noticed
        return self._alarm

    def _has_reference(self) -> bool:
        """Whether there is a reference that is large enough for a decision."""
        if not self._asked:
            self._asked = True
            reference = self._context.reference()
            if reference is not None and len(reference):
                self._compare_with(reference)
        return self._reference is not None

    def _compare_with(self, reference: Features) -> None:
        # Not at the top of the module: a config must be readable without scipy.
        from streams.shift import Columns, can_decide, subsample

        config = self._config
        rows = _flat(subsample(reference, config.reference_records))
        self._columns = _spread(rows.shape[1], config.features)
        if can_decide(len(rows), config.window, len(self._columns), config.alpha):
            self._reference = Columns.of(rows[:, self._columns])
            self._rows = np.empty((config.window, len(self._columns)), dtype=rows.dtype)

    def _new_indices(self, features: Features) -> NDArray[np.int64]:
        """Indices of the records whose features were not seen before, while they waited for their label."""
        if not self._early:
            return np.arange(len(features))
        indices = []
        for index, row in enumerate(features):
            digest = _digest(row)
            waiting = self._early.get(digest, 0)
            if not waiting:
                indices.append(index)
            elif waiting == 1:
                del self._early[digest]
            else:
                self._early[digest] = waiting - 1
        return np.array(indices, dtype=np.int64)

    def _looks(self, features: Features) -> "Iterator[tuple[int, Shift]]":
        """Add the rows (n, *shape); for each look, how many rows were added by then, and the result."""
        from streams.shift import battery

        assert self._reference is not None, "looks begin once there is a reference"
        rows = _flat(features)
        every, window = self._config.every, self._config.window
        taken = 0
        while taken < len(rows):
            step = min(every - self._count % every, len(rows) - taken)
            self._keep(rows[taken : taken + step])
            taken += step
            if self._count % every == 0 and self._count >= window:
                yield taken, battery(self._reference, self._rows, alpha=self._config.alpha)

    def _keep(self, rows: NDArray[np.generic]) -> None:
        """Write the rows over the oldest ones: their order does not matter to the battery."""
        window = self._config.window
        kept = rows[-window:, self._columns]
        self._count += len(rows)
        self._rows[np.arange(self._count - len(kept), self._count) % window] = kept

    def _is_alarm(self, shift: "Shift") -> bool:
        shifted = shift.verdict == "shifted"
        alarm = shifted and (self._shifted_before or not self._config.confirm)
        self._shifted_before = shifted
        return alarm

    def _alarmed(self, records: int, shift: "Shift") -> Cut:
        config = self._config
        assert shift.feature is not None, "an alarm has a feature that differs"
        feature = int(self._columns[shift.feature])
        twice = " in two looks in a row" if config.confirm else ""
        numbers: dict[str, Any] = {
            "verdict": shift.verdict,
            "distance": shift.distance,
            "feature": feature,
            "p_value": shift.p_value,
            "alpha": config.alpha,
            "compared_features": shift.features,
            "window_records": shift.window_records,
            "reference_records": shift.reference_records,
            "looked_at": self._count,
            "confirmed": config.confirm,
        }
        return self._cut(
            records,
            f"The last {config.window:,} records differ from the experience before{twice}: feature {feature} "
            f"by {shift.distance:.2f} of 1 (KS), p {shift.p_value:.1g} against {config.alpha:g}.",
            **numbers,
        )


def _flat(features: NDArray[np.generic]) -> NDArray[np.generic]:
    """(n, values)."""
    return features.reshape(len(features), math.prod(features.shape[1:]))


def _spread(size: int, most: int) -> NDArray[np.int64]:
    """Indices of at most `most` features, spread evenly."""
    if size <= most:
        return np.arange(size)
    return np.arange(most) * size // most


def _digest(row: Features) -> bytes:
    return blake2b(row.tobytes(), digest_size=16).digest()
