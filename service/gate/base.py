"""Evidence in, findings and a verdict out: the values that the gate works on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Answer = Literal["pass", "fail", "undecided"]
Outcome = Literal["promote", "review", "reject"]

Bits = NDArray[np.bool_]
"""(n,) right/wrong of one model on a holdout's records, in their order."""

Share = Annotated[float, Field(gt=0, lt=1)]
Metric = Literal["macro_f1", "balanced_accuracy", "auc", "brier"]
Attack = Literal["fgsm", "pgd", "corruptions"]

VERDICT_SCHEMA = "holdfast.verdict/1"
GATE_VERSION = 1
"""Stored with every verdict. Raised by every change after which the same evidence and configuration may give
another finding: another answer, number or sentence."""
BUDGET = "budget"
"""The guard of the sealed audit parts."""


class GateConfig(BaseModel):
    """What a pipeline asks of a challenger. Shares are between 0 and 1: 0.02 is two points."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float = Field(0.02, gt=0, lt=1, description="A past holdout may truly lose less than this.")
    small_margin: Share | None = Field(
        None,
        description="The same of all past holdouts that are too small to be judged alone, taken together; "
        "unset: `margin`.",
    )
    alpha: float = Field(0.05, gt=0, le=0.1, description="Error rate of each promise.")
    learning_margin: float = Field(
        0.02, gt=0, lt=1, description="The new experience may be answered worse than by the champion by less."
    )
    learning_gain: Share | None = Field(
        None,
        description="The new experience must be answered better than by the champion by more than this; "
        "unset asks only that it is not answered worse.",
    )
    budget: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="A past experience may truly lose less than this over all updates since it was learnt.",
    )
    audits: int = Field(
        50,
        ge=1,
        le=10_000,
        description="Looks at the sealed audit parts that alpha is shared out over; one a promotion.",
    )
    holdout_looks: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Updates that a holdout may be compared in; then it is worn out, and no evidence.",
    )
    max_holdouts: int = Field(
        50,
        ge=1,
        le=10_000,
        description="Past holdouts judged whole: the newest, and all pinned ones; others are archived.",
    )
    holdout_records: int = Field(
        5000, ge=1, le=10_000_000, description="Records of one holdout that are judged, at most."
    )
    archive_records: int = Field(
        5000,
        ge=1,
        le=10_000_000,
        description="Records of all archived holdouts together, sampled evenly over holdouts and classes.",
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
    on_shift: Literal["note", "strict", "review"] = Field(
        "note",
        description="When the batch is shifted, beside a note with the verdict: strict halves every excess "
        "that the data guard allows, review lets a person decide.",
    )
    shift_alpha: float = Field(
        0.001, gt=0, le=0.1, description="Chance that a batch which is not shifted is called so."
    )
    groups: Share | None = Field(
        None,
        description="Each value of each group column may truly lose less than this, on every holdout; "
        "0.05 is a good start, unset asks nothing.",
    )
    negative_flips: Share | None = Field(
        None,
        description="Share of records that may turn from right to wrong, whatever is gained elsewhere; "
        "unset asks nothing.",
    )
    calibration: Annotated[float, Field(gt=0, lt=2)] | None = Field(
        None,
        description="A holdout's Brier score (0 best, 2 worst) may truly rise by less than this; 0.01 is a "
        "good start, unset asks nothing.",
    )
    metrics: Mapping[Metric, Share] = Field(
        default_factory=dict,
        description="Metrics beyond accuracy, each with what a holdout may truly lose of it: macro_f1, "
        "balanced_accuracy, auc (two classes), brier.",
    )
    robustness: Share | None = Field(
        None,
        description="Accuracy on disturbed holdout records may truly fall by less than this; 0.05 is a good "
        "start, unset asks nothing.",
    )
    robustness_against: tuple[Attack, ...] = Field(
        ("fgsm", "pgd", "corruptions"),
        min_length=1,
        description="How records are disturbed: fgsm, pgd, corruptions.",
    )
    robustness_epsilon: float = Field(
        0.1,
        gt=0,
        le=10,
        description="How far fgsm and pgd may move a feature, in units of the scaled input (mostly standard "
        "deviations).",
    )
    robustness_records: int = Field(
        400, ge=100, le=5000, description="Holdout records that are disturbed, at most."
    )
    train_gap: Share | None = Field(
        None,
        description="Accuracy on the training records may lie so far above that on the new holdouts; unset "
        "only reports it.",
    )
    latency_ratio: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="How many times the champion's time an answer may take; unset asks nothing."
    )
    size_ratio: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None,
        description="How many times the champion's bytes the served network may have; unset asks nothing.",
    )
    update_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Seconds that learning may take; unset asks nothing."
    )

    seeds: Annotated[int, Field(ge=2, le=32)] | None = Field(
        None,
        description="Seeds that learn each update, in parallel where trainers are idle; the strategy's own "
        "makes the challenger. 3 is a good start, unset asks nothing.",
    )
    seeds_margin: float = Field(
        0.03,
        gt=0,
        lt=1,
        description="With another seed, all holdouts together may truly be answered worse by less than this.",
    )
    seeds_disagreement: float = Field(
        0.15, gt=0, lt=1, description="Share of holdout records that another seed may answer otherwise."
    )

    def routed(self, shift: "ShiftEvidence | None") -> "GateConfig":
        """What is asked of a batch that came with this shift."""
        if self.on_shift != "strict" or shift is None or shift.verdict != "shifted":
            return self
        excesses = ("label_error_excess", "anomaly_excess", "suspect_excess", "planted_excess")
        return self.model_copy(update={name: getattr(self, name) / 2 for name in excesses})

    @property
    def repeats(self) -> int:
        """How often an update is learnt again, with other seeds."""
        return 0 if self.seeds is None else self.seeds - 1

    @property
    def needs_details(self) -> bool:
        """Whether a guard asks for more of each record than right or wrong."""
        return self.calibration is not None or bool(self.metrics)

    @property
    def needs_champion(self) -> bool:
        """Whether the champion must answer again, beside the challenger."""
        return self.robustness is not None or self.latency_ratio is not None

    @property
    def needs_records(self) -> bool:
        """Whether a guard asks for the records' own labels and groups."""
        return self.groups is not None or self.needs_details


@dataclass(frozen=True)
class Details:
    """What one model said of each record of a holdout, beyond right or wrong; all (n,), in their order."""

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
        """The same of the first so many records."""
        return Details(
            self.predicted[:records],
            self.confidence[:records],
            self.brier[:records],
            None if self.score is None else self.score[:records],
        )


@dataclass(frozen=True)
class Twins:
    """Records of a holdout that have a twin among those now learnt, nearer than their own kind usually is."""

    records: int
    """Records of the holdout that have one."""
    relabelled: int
    """Of these, those whose twin carries another label."""
    usual: float
    """Share of the holdout's records whose nearest record in the same holdout carries another label."""


@dataclass(frozen=True)
class Column:
    """A group column of a holdout: which of its values each record has."""

    values: tuple[str, ...]
    places: NDArray[np.integer[Any]]
    """(n,) of each record, the place of its value in `values`; in a small type the gate is faster."""

    @staticmethod
    def of(column: NDArray[np.str_]) -> "Column":
        """Of the (n,) value of each record."""
        values, places = np.unique(column, return_inverse=True)
        return Column(tuple(map(str, values)), places.astype(np.min_scalar_type(max(len(values) - 1, 0))))

    def __post_init__(self) -> None:
        if len(self.sizes) > len(self.values):
            raise ValueError(f"a group column of {len(self.values)} values has a record with another")

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(values,) records of each."""
        return np.bincount(self.places, minlength=len(self.values)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.places)


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
    twins: Twins | None = None
    """How the records now learnt that resemble this holdout's are labelled; None: nobody looked."""
    labels: NDArray[np.int64] | None = None
    """(n,) class ids; None: no guard asked for them."""
    groups: Mapping[str, Column] = field(default_factory=dict)
    """By the name of the group column."""
    baseline_details: Details | None = None
    challenger_details: Details | None = None

    @property
    def n(self) -> int:
        """Records; 0 where the baseline is missing."""
        return 0 if self.baseline is None else len(self.baseline)

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing to say, and nothing is missing."""
        if self.baseline is None or self.challenger is None:
            return False
        return not len(self.baseline) and not len(self.challenger)

    @property
    def unpaired(self) -> str | None:
        """Why the answers cannot be paired, and what to do; None: they can, be they none at all."""
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
    expected_rates: Mapping[SuspectKind, float] = field(default_factory=dict)
    """The share among the past holdouts, had the champion doubted their labels as it doubts this batch's."""
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
class Freeze:
    """Promotion stopped: an audit did not pass, and no person has lifted that yet."""

    update_id: str
    """Whose audit it was."""
    last_audited: int | None
    """The newest version whose audit passed; None: none ever did."""


@dataclass(frozen=True)
class Audit:
    """The sealed audit parts: the challenger against each experience's anchor.

    Only an update that would be promoted is looked at (`decide`), so that all an audit ever tells the
    following updates is that it passed, and a sum of error rates over the looks is a bound.
    """

    answers: tuple[PairedAnswers, ...]
    """One an experience that the champion learnt; the baseline is its anchor, `looks` are earlier audits."""
    last_audited: int | None = None
    """The newest version of the champion's lineage whose audit passed."""


@dataclass(frozen=True)
class Disturbed:
    """Right/wrong bits on the same holdout records, disturbed in one way; by each model's own gradients
    where it is an attack."""

    way: str
    """Such as "fgsm", "pgd" or "blur"."""
    baseline: NDArray[np.bool_] | None
    challenger: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Repeat:
    """The same update, learnt once more with another seed; answers by experience, past and new holdouts."""

    seed: int
    right: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)
    """(n,) whether it answers a record right."""
    same: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)
    """(n,) whether it answers the class that the challenger does."""
    failure: str | None = None
    """Why nothing was learnt with this seed; None: it was."""


@dataclass(frozen=True)
class Running:
    """What a challenger cost to make, and costs to run. None: it was not measured."""

    train_right: int | None = None
    """Training records that the challenger answers right,"""
    train_records: int = 0
    """of so many."""
    seconds: float | None = None
    """That learning took."""
    champion_bytes: int | None = None
    """Of the served network."""
    challenger_bytes: int | None = None
    champion_rounds: tuple[float, ...] = ()
    """Seconds that the same batch took, round by round, in turns with the challenger."""
    challenger_rounds: tuple[float, ...] = ()


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
    attempt: int | None = None
    """Which try of the same experiences against the same champion this is: 1, 2 ... The tries share alpha
    (`stats.spent`). None: there is one only, with all of it."""
    audit: Audit | None = None
    """None: nothing is sealed, or there is no champion yet."""
    freeze: Freeze | None = None
    """None: promotion is not frozen."""
    champion: int | None = None
    """The version in use."""
    disturbed: tuple[Disturbed, ...] = ()
    """One a way of disturbing; empty: nobody asked."""
    running: Running | None = None
    """None: nothing was measured."""
    repeats: tuple[Repeat, ...] = ()
    """One another seed; empty: nobody asked."""
    shift: ShiftEvidence | None = None
    """None: there is no champion yet, or the batch was not compared."""


class Finding(NamedTuple):
    """One guard's answer, with its numbers and a sentence that a person can act on."""

    guard: str
    answer: Answer
    sentence: str
    experience: int | None = None
    numbers: Mapping[str, float] = {}


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

    @property
    def audit(self) -> tuple[Finding, ...]:
        """What the sealed audit parts said; empty: they were not looked at."""
        return tuple(each for each in self.findings if each.guard == BUDGET and "look" in each.numbers)

    @property
    def freezes(self) -> bool:
        """Whether an audit was made and did not pass, which stops promotion."""
        return any(each.answer != "pass" for each in self.audit)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, `verdict.json`; `form.schema` describes it."""
        findings = [each._asdict() | {"numbers": _whole(each.numbers)} for each in self.findings]
        notes = [asdict(each) | {"numbers": _whole(each.numbers)} for each in self.notes]
        bare = asdict(replace(self, findings=(), notes=()))
        return {"schema": VERDICT_SCHEMA, **bare, "findings": findings, "notes": notes}


def _whole(numbers: Mapping[str, float]) -> dict[str, float]:
    """What JSON has a form for: evidence that is no number is told by its sentence alone."""
    return {
        key: value
        for key, value in numbers.items()
        if isinstance(value, int) or (isinstance(value, float) and isfinite(value))
    }
