"""Measurements on a batch before it is learnt: screens, suspect records, distribution shift."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Screen:
    """Label errors and distances within a batch, at sample sizes that batches of any size share.

    Both numbers come from neighbours *within* the batch. A shifted batch keeps them; broken pixels or
    shuffled labels do not.
    """

    sizes: tuple[int, ...]
    """Sample sizes, rising."""
    label_errors: tuple[float, ...]
    """At each size, the share of records whose label differs from their neighbours' majority."""
    distance_limits: tuple[float, ...]
    """At each size, the 99th percentile of the distance to the nearest neighbours."""


SuspectKind = Literal["planted", "outliers", "mislabelled"]
MOST_WORST = 20
"""Records that a person is shown, at most."""


@dataclass(frozen=True)
class Deviation:
    """A feature of one record that lies far outside what is usual."""

    feature: int
    """Index among the flattened features."""
    value: float
    low: float
    """1st percentile of the past holdouts."""
    high: float
    """99th percentile."""


@dataclass(frozen=True)
class WorstRecord:
    """A record that a person should look at."""

    record: str
    """Its record id."""
    kind: str
    """What is suspect about it: a `SuspectKind`, or `values`."""
    score: float
    """The larger the worse, among records of its kind."""
    reason: str
    label: int | None = None
    """Class id that it came with."""
    deviations: tuple[Deviation, ...] = ()
    """Its most unusual features, the farthest first."""


@dataclass(frozen=True)
class Suspects:
    """Suspect records of a batch, found by comparison with past holdouts and the champion's answers."""

    records: int
    """Records of the batch that were examined; 0: the batch, or the past holdouts, have too few."""
    reference_records: int
    rates: Mapping[SuspectKind, float] = field(default_factory=dict)
    """Share of the examined records."""
    expected_rates: Mapping[SuspectKind, float] = field(default_factory=dict)
    """The share expected in a clean batch whose labels the champion doubts as much as this one's."""
    worst: tuple[WorstRecord, ...] = ()
    """Up to `MOST_WORST` of each kind, the worst first."""
    dead_features: tuple[int, ...] = ()
    """Features that vary in the past holdouts and are constant in the batch."""
    far_features: tuple[int, ...] = ()
    """Features with a value more than a hundred times as large as any in the past holdouts."""


@dataclass(frozen=True)
class ShiftEvidence:
    """Result of the shift tests (`streams.shift`) of the batch against the newest past holdouts."""

    verdict: Literal["shifted", "same", "undecided"]
    alpha: float
    """Chance of `shifted` when both are samples of one distribution, at most."""
    p_values: Mapping[str, float]
    """By test, corrected for all comparisons."""
    distance: float
    """Largest KS distance of a feature, 0..1."""
    feature: int | None
    """Index of that feature."""
    reference_records: int
    window_records: int
    label_shift: float
    """Total variation between the shares of the labels that both came with, 0..1."""
    prior_shift: float | None = None
    """The same by the champion's answers (BBSE); None: it cannot tell the classes apart."""
    estimated_accuracy: float | None = None
    """Accuracy of the champion on the batch, estimated from its confidence."""
    reference_accuracy: float | None = None
    """Accuracy of the champion on the past holdouts that the batch was compared with."""


@dataclass(frozen=True)
class DataEvidence:
    """What the data guard judges: a batch before anything is learnt from it."""

    records: int
    nonfinite_records: int
    """Records with a NaN or infinite feature."""
    misshapen: str | None = None
    """What is wrong with the batch's shape, dtype or class ids; None: nothing."""
    sample: int = 0
    """Records that the two rates below were estimated on; 0: no reference to compare with, or too few."""
    label_error_rate: float = 0.0
    reference_label_error_rate: float = 0.0
    anomaly_rate: float = 0.0
    reference_anomaly_rate: float = 0.0
    has_reference: bool = False
    suspects: Suspects | None = None
    """None: there is no champion yet, or the batch cannot be read."""
    worst: tuple[WorstRecord, ...] = ()
    """Records with broken values."""
