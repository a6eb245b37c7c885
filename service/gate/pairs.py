"""Answers of two models on the same holdout records, record by record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
"""(n,) right/wrong of one model on a holdout's records, in their order."""
Counts = NDArray[np.int64]
AT_ONCE = 64
"""Holdouts whose bits are counted together, so many that they stay in the processor's cache."""


@dataclass(frozen=True)
class Details:
    """One model's answers on each record of a holdout, beyond right or wrong; all (n,), in holdout order."""

    predicted: NDArray[np.int32]
    """Class id of the answer."""
    confidence: NDArray[np.float32]
    """Probability of the answer."""
    brier: NDArray[np.float32]
    """Sum over the classes of (probability - truth)^2, between 0 and 2 (Brier 1950)."""
    score: NDArray[np.float32] | None = None
    """Probability of class 1; None: the stream has not two classes."""

    def __len__(self) -> int:
        return len(self.predicted)

    def first(self, records: int) -> "Details":
        """The details of the first `records` records."""
        return Details(
            self.predicted[:records],
            self.confidence[:records],
            self.brier[:records],
            None if self.score is None else self.score[:records],
        )


@dataclass(frozen=True)
class Relabelled:
    """The near duplicates of one class of a holdout."""

    label: int
    records: int
    """Records of the class that have a near duplicate."""
    relabelled: int
    """Of these, the records whose near duplicate carries another label."""
    usual: float
    """Share of the class's records whose nearest record in the same holdout carries another label."""


@dataclass(frozen=True)
class NearDuplicates:
    """How many records of a holdout have a near duplicate in the new data, and how those are labelled."""

    records: int
    """Records of the holdout that have a near duplicate (see `service.gate.obsolete`)."""
    relabelled: int
    """Of these, the records whose near duplicate carries another label."""
    usual: float
    """Share of the holdout's records whose nearest record in the same holdout carries another label."""
    classes: tuple[Relabelled, ...] = ()
    """The same of each class; empty: they were not counted by class."""


@dataclass(frozen=True)
class Column:
    """A group column of a holdout: its values, and the index of each record's value."""

    values: tuple[str, ...]
    indices: NDArray[np.integer[Any]]
    """(n,) index into `values` of each record's value; a small integer type makes the gate faster."""

    @staticmethod
    def of(column: NDArray[np.str_]) -> "Column":
        """A column from the (n,) value of each record."""
        values, indices = np.unique(column, return_inverse=True)
        return Column(tuple(map(str, values)), indices.astype(np.min_scalar_type(max(len(values) - 1, 0))))

    def __post_init__(self) -> None:
        if len(self.sizes) > len(self.values):
            raise ValueError(f"a group column of {len(self.values)} values has a record with another")

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(values,) number of records with each value."""
        return np.bincount(self.indices, minlength=len(self.values)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class PairedAnswers:
    """Right/wrong bits of two models on the same holdout records, in the same order."""

    experience: int
    baseline: NDArray[np.bool_] | None
    """(n,) of the champion (or of the majority class, where there is no champion); None: it is missing."""
    challenger: NDArray[np.bool_] | None
    """(n,)."""
    margin: float | None = None
    """This holdout's own margin; None: the pipeline's."""
    looks: int = 0
    """Earlier updates that were compared on it."""
    failures: int = 0
    """Of these, the ones whose audit did not pass."""
    failure_runs: int = 0
    """Runs of such audits, one right after the other."""
    near_duplicates: NearDuplicates | None = None
    """Near duplicates of its records in the new data; None: they were not counted."""
    labels: NDArray[np.int64] | None = None
    """(n,) class ids; None: no guard asked for them."""
    groups: Mapping[str, Column] = field(default_factory=dict)
    """By the name of the group column."""
    baseline_details: Details | None = None
    challenger_details: Details | None = None
    traffic: float | None = None
    """Share of today's traffic that its records stand for; None: unknown."""

    n: int = field(init=False, repr=False, compare=False)
    """Records; 0 where the baseline is missing."""
    problem: str | None = field(init=False, repr=False, compare=False)
    """Why the answers cannot be paired, and what to do; None: they can, even where there are none."""

    def __post_init__(self) -> None:
        # Once, not in each guard: there are thousands of holdouts.
        object.__setattr__(self, "n", 0 if self.baseline is None else len(self.baseline))
        object.__setattr__(self, "problem", self._problem())

    @property
    def is_empty(self) -> bool:
        """Whether both models answered, on no record."""
        if self.baseline is None or self.challenger is None:
            return False
        return not len(self.baseline) and not len(self.challenger)

    def _problem(self) -> str | None:
        if self.baseline is None:
            return "the baseline's answers are missing; predict its holdout again"
        if self.challenger is None:
            return "the challenger's answers are missing; predict its holdout again"
        if self.baseline.dtype.kind != "b" or self.baseline.ndim != 1:
            return "the baseline's answers are not right/wrong bits; predict its holdout again"
        if self.challenger.dtype.kind != "b" or self.challenger.ndim != 1:
            return "the challenger's answers are not right/wrong bits; predict its holdout again"
        if len(self.baseline) != len(self.challenger):
            return (
                f"{len(self.baseline)} answers of the baseline against {len(self.challenger)} of the "
                "challenger cannot be paired; predict its holdout again with both"
            )
        return None


def counts(sound: Sequence[PairedAnswers]) -> NDArray[np.int64]:
    """(4, holdouts) records, right by the baseline, right by the challenger, right by both."""
    some = [_counts_of_few(sound[first : first + AT_ONCE]) for first in range(0, len(sound), AT_ONCE)]
    return np.concatenate(some, axis=1)


def _counts_of_few(sound: Sequence[PairedAnswers]) -> NDArray[np.int64]:
    n = np.array([each.n for each in sound])
    starts = np.cumsum(n) - n
    before = np.concatenate([each.baseline for each in sound if each.baseline is not None])
    after = np.concatenate([each.challenger for each in sound if each.challenger is not None])
    # Bits are summed five times as fast in a small type, where it holds the largest count.
    counter = np.uint16 if n.max() < 2**16 else np.int64
    right = [
        np.add.reduceat(bits.view(np.uint8), starts, dtype=counter)
        for bits in (before, after, before & after)
    ]
    return np.array([n, *right], dtype=np.int64)
