"""GateConfig: what a pipeline requires of a challenger."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.gate.batch_evidence import ShiftEvidence
from service.gate.presets import Preset, resolved

Share = Annotated[float, Field(gt=0, lt=1)]
Metric = Literal["macro_f1", "balanced_accuracy", "auc", "brier"]
Attack = Literal["fgsm", "pgd", "corruptions"]


class GateConfig(BaseModel):
    """What a pipeline requires of a challenger. Shares are between 0 and 1: 0.02 is two points."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Preset = Field(
        "balanced",
        description="Sets defaults of the other fields: cautious lets less be lost, eager asks a person less "
        "often; fields given next to it win.",
    )
    accept: bool = Field(
        False,
        description="Declare a gate that would ask about most harmless updates, or that nothing can pass.",
    )
    margin: float = Field(
        0.02, gt=0, lt=1, description="A block of past experiences may truly lose less than this."
    )
    small_margin: Share | None = Field(
        None,
        description="The same of blocks of several experiences, each too small to be judged alone; "
        "unset: `margin`.",
    )
    single_margin: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="Widest margin of a past experience by itself, which follows from its records; one whose "
        "records settle none so small is judged with its neighbours.",
    )
    rare_classes: bool = Field(
        True,
        description="Guard the recall of each class that is rarer than `margin`, and so could be lost whole.",
    )
    rare_margin: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Widest margin of a rare class's recall, which follows from its records.",
    )
    alpha: float = Field(0.05, gt=0, le=0.1, description="Error rate of each promise.")
    alarm_alpha: float = Field(
        0.01,
        gt=0,
        le=0.1,
        description="Chance that an update which lost nothing is rejected for a loss on past experiences; "
        "the same on the new one.",
    )
    planned_churn: float = Field(
        0.12,
        gt=0,
        le=0.5,
        description="Largest share of its answers that a harmless update is planned to flip: blocks hold as "
        "many records as that takes.",
    )
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
        description="Looks at the sealed audit parts that their blocks are sized for; one a promotion. Later "
        "looks go on, each with less of alpha.",
    )
    holdout_looks: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Updates that a holdout may be compared in; then it is exhausted, and no evidence.",
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
    first_gain: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="How far the first version's balanced accuracy must truly exceed that of always saying "
        "the commonest class.",
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
        description="When the batch is shifted, in addition to a note: strict halves every excess "
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

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, document: Any) -> Any:
        return resolved(document)

    def for_shift(self, shift: ShiftEvidence | None) -> "GateConfig":
        """The config for a batch with this shift: where `on_shift` is strict, half of each allowed excess."""
        if self.on_shift != "strict" or shift is None or shift.verdict != "shifted":
            return self
        excesses = ("label_error_excess", "anomaly_excess", "suspect_excess", "planted_excess")
        return self.model_copy(update={name: getattr(self, name) / 2 for name in excesses})

    @property
    def repeats(self) -> int:
        """How many times each update is learnt again, with other seeds."""
        return 0 if self.seeds is None else self.seeds - 1

    @property
    def needs_details(self) -> bool:
        """Whether a guard needs more of each record than right or wrong."""
        return self.calibration is not None or bool(self.metrics)

    @property
    def needs_champion(self) -> bool:
        """Whether the champion must answer again, next to the challenger."""
        return self.robustness is not None or self.latency_ratio is not None

    @property
    def needs_records(self) -> bool:
        """Whether a guard needs the records' labels and groups."""
        return self.groups is not None or self.needs_details or self.rare_classes
