"""Evidence in, findings and a verdict out: the values that the gate works on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Answer = Literal["pass", "fail", "undecided"]
Outcome = Literal["promote", "review", "reject"]

Bits = NDArray[np.bool_]
"""(n,) right/wrong of one model on a holdout's records, in their order."""

VERDICT_SCHEMA = "holdfast.verdict/1"


class GateConfig(BaseModel):
    """What a pipeline asks of a challenger. Shares are between 0 and 1: 0.02 is two points."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float = Field(0.02, gt=0, lt=1, description="A past holdout may truly lose less than this.")
    alpha: float = Field(0.05, gt=0, le=0.1, description="Error rate of each promise.")
    learning_margin: float = Field(
        0.02, gt=0, lt=1, description="The new experience may be answered worse than by the champion by less."
    )
    first_update: Literal["gate", "review"] = Field(
        "gate",
        description="gate: the first version is promoted when it beats the majority class; "
        "review: a person decides.",
    )
    label_error_excess: float = Field(
        0.10,
        gt=0,
        lt=1,
        description="Stop a batch whose label errors exceed the reference by more.",
    )
    anomaly_excess: float = Field(
        0.20,
        gt=0,
        lt=1,
        description="Stop a batch whose anomalies exceed the reference by more.",
    )
    suspect_excess: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Stop a batch in which outliers, or mislabelled records, truly exceed the share in past "
        "holdouts by more.",
    )
    planted_excess: float = Field(
        0.01, ge=0, lt=1, description="The same for records that are alike only by a rare mark."
    )
    on_shift: Literal["note", "review"] = Field(
        "note", description="When the batch is shifted: note it with the verdict, or let a person decide too."
    )
    shift_alpha: float = Field(
        0.001, gt=0, le=0.1, description="Chance that a batch which is not shifted is called so."
    )


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


@dataclass(frozen=True)
class Screen:
    """How a batch looks by itself, at several sample sizes, so that batches of any size can be compared.

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
    """Its place among the flattened features."""
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
    """What past holdouts and the champion make of a batch's records."""

    records: int
    """Records of the batch that were looked at; 0: they, or the past holdouts', are too few."""
    reference_records: int
    rates: Mapping[SuspectKind, float] = field(default_factory=dict)
    """Share of the records looked at."""
    reference_rates: Mapping[SuspectKind, float] = field(default_factory=dict)
    """The same share among the past holdouts."""
    worst: tuple[WorstRecord, ...] = ()
    """Up to `MOST_WORST` of each kind, the worst first."""
    dead_features: tuple[int, ...] = ()
    """Features that vary in the past holdouts and are constant in the batch."""
    far_features: tuple[int, ...] = ()
    """Features with a value more than a hundred times as large as any in the past holdouts."""


@dataclass(frozen=True)
class ShiftEvidence:
    """What the battery of `streams.shift` says about the batch against the newest past holdouts."""

    verdict: Literal["shifted", "same", "undecided"]
    alpha: float
    """Chance of `shifted` when both are samples of one distribution, at most."""
    p_values: Mapping[str, float]
    """By test, corrected for all comparisons."""
    distance: float
    """Largest KS distance of a feature, 0..1."""
    feature: int | None
    """Where that is."""
    reference_records: int
    window_records: int
    label_shift: float
    """Total variation between the shares of the labels that both came with, 0..1."""
    prior_shift: float | None = None
    """The same by the champion's answers (BBSE); None: it cannot tell the classes apart."""
    estimated_accuracy: float | None = None
    """Of the champion on the batch, by its confidence."""
    reference_accuracy: float | None = None
    """Of the champion on the past holdouts that it was compared with."""


@dataclass(frozen=True)
class DataEvidence:
    """What the data guard sees of a batch, before anything is learnt from it."""

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


@dataclass(frozen=True)
class Evidence:
    """Everything a verdict rests on."""

    data: DataEvidence
    past: tuple[PairedAnswers, ...] = ()
    """One a past holdout, challenger against champion."""
    new: tuple[PairedAnswers, ...] = ()
    """One an experience that this update learnt."""
    first: bool = False
    """No champion yet: the baseline of `new` is the majority class."""
    learnt: bool = True
    """False: the data guard stopped the batch before it was learnt."""
    shift: ShiftEvidence | None = None
    """None: there is no champion yet, or the batch was not compared."""


@dataclass(frozen=True)
class Finding:
    """One guard's answer, with its numbers and a sentence that a person can act on."""

    guard: str
    answer: Answer
    sentence: str
    experience: int | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """Something to know that does not decide."""

    about: str
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What the gate says, and why."""

    outcome: Outcome
    reason: str
    """One sentence: the finding that decided."""
    findings: tuple[Finding, ...]
    notes: tuple[Note, ...] = ()
    worst: tuple[WorstRecord, ...] = ()
    """Of a batch that the data guard stopped: the records to look at, at most `MOST_WORST`."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, `verdict.json`."""
        return {"schema": VERDICT_SCHEMA, **asdict(self)}
