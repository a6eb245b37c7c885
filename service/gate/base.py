"""The values that the gate works on: evidence in, findings and a verdict out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.gate.batch_evidence import MOST_WORST as MOST_WORST
from service.gate.batch_evidence import DataEvidence as DataEvidence
from service.gate.batch_evidence import Deviation as Deviation
from service.gate.batch_evidence import Screen as Screen
from service.gate.batch_evidence import ShiftEvidence as ShiftEvidence
from service.gate.batch_evidence import SuspectKind as SuspectKind
from service.gate.batch_evidence import Suspects as Suspects
from service.gate.batch_evidence import WorstRecord as WorstRecord
from service.gate.config import Attack as Attack
from service.gate.config import GateConfig as GateConfig
from service.gate.config import Metric as Metric
from service.gate.config import Share as Share
from service.gate.golden import GoldenAnswers as GoldenAnswers
from service.gate.pairs import Bits as Bits
from service.gate.pairs import Column as Column
from service.gate.pairs import Counts as Counts
from service.gate.pairs import Details as Details
from service.gate.pairs import NearDuplicates as NearDuplicates
from service.gate.pairs import PairedAnswers as PairedAnswers
from service.gate.pairs import Relabelled as Relabelled
from service.gate.pairs import counts

Answer = Literal["pass", "fail", "undecided"]
Outcome = Literal["promote", "review", "reject"]

VERDICT_SCHEMA = "holdfast.verdict/1"
GATE_VERSION = 2
"""Stored with every verdict. Raised by every change after which the same evidence and configuration may give
another finding: another answer, number or sentence."""
BUDGET = "budget"
"""Name of the guard that judges the sealed audit parts."""
DISPUTE = "dispute"
"""Name of the finding that turns a rejection into a question: holdouts stopped two updates in a row."""
TRAFFIC = "traffic"
"""Name of the finding that does so for a loss that little of the traffic would see."""
PROMISE = "promise"
"""What notes on the promises of a promotion are about."""


class PastExperience(NamedTuple):
    """An experience that the champion learnt, retired or not, by which blocks are made."""

    experience: int
    records: int
    """Of the part that is compared, at most as many as are judged of one holdout."""
    archived: bool = False
    """Fewer of its records are judged, as part of the archive."""


@dataclass(frozen=True)
class Freeze:
    """Promotion is stopped: an audit did not pass, and no person has lifted the freeze yet."""

    update_id: str
    """Whose audit it was."""
    last_audited: int | None
    """The newest version whose audit passed; None: none ever did."""


@dataclass(frozen=True)
class Audit:
    """The sealed audit parts: the challenger against each experience's anchor.

    `decide` looks at it only for an update that would be promoted. An audit reveals whether it passed, and
    nothing else, so that its error rate can be shared out over all that later looks may follow from.
    """

    answers: tuple[PairedAnswers, ...]
    """One for each experience that the champion learnt. The baseline is its anchor; looks are past audits."""
    last_audited: int | None = None
    """The newest version of the champion's lineage whose audit passed."""
    gate: tuple[PairedAnswers, ...] = ()
    """The gate parts, against the same anchors: more records for the alarm on one experience."""
    history: tuple[PastExperience, ...] = ()
    """As `Evidence.history`, with the sealed records."""


@dataclass(frozen=True)
class Disturbed:
    """Right/wrong bits of both models on the same holdout records, disturbed in one way.

    An attack disturbs them by each model's own gradients.
    """

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
    """Cost of making and of running the challenger. None: it was not measured."""

    train_right: int | None = None
    """Training records that the challenger answers right."""
    train_records: int = 0
    """Training records in all."""
    seconds: float | None = None
    """Duration of learning."""
    champion_bytes: int | None = None
    """Size of the served network."""
    challenger_bytes: int | None = None
    champion_rounds: tuple[float, ...] = ()
    """Seconds for the same batch in each round; both models take turns."""
    challenger_rounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Everything a verdict rests on."""

    data: DataEvidence
    past: tuple[PairedAnswers, ...] = ()
    """One for each past holdout, challenger against champion."""
    new: tuple[PairedAnswers, ...] = ()
    """One for each experience that this update learnt."""
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
    """One for each way of disturbing records; empty: not asked."""
    running: Running | None = None
    """None: nothing was measured."""
    repeats: tuple[Repeat, ...] = ()
    """One for each other seed; empty: not asked."""
    shift: ShiftEvidence | None = None
    """None: there is no champion yet, or the batch was not compared."""
    history: tuple[PastExperience, ...] = ()
    """Every experience that the champion learnt, retired ones too, in the order in which it learnt them, with
    the records of their gate parts: blocks follow from it. What is compared and not in it comes after, by
    number."""
    classes: tuple[str, ...] = ()
    """Names by class id; empty: findings name the ids."""
    golden: tuple[GoldenAnswers, ...] = ()
    """One for each golden set that is not retired."""
    disputed: tuple[int, ...] = ()
    """Experiences of the retention findings that failed in the verdict right before, against the same
    champion."""
    kept: tuple[int, ...] = ()
    """Experiences of whose holdouts a person said that the labels are still true."""
    kept_shifted: tuple[int, ...] = ()
    """Of these, the ones that were kept when batches were shifted already, against the same champion."""
    data_findings: tuple["Finding", ...] = ()
    """What the data guard found on `data`, where it judged before learning; empty: `decide` asks it."""

    @cached_property
    def past_counts(self) -> Counts:
        """(4, past) `counts` of `past`; zeros where there are no answers that can be paired."""
        counted = np.zeros((4, len(self.past)), dtype=np.int64)
        if paired := [place for place, each in enumerate(self.past) if each.n and each.problem is None]:
            counted[:, paired] = counts([self.past[place] for place in paired])
        return counted


class Finding(NamedTuple):
    """One guard's answer, with its numbers and a sentence that a person can act on."""

    guard: str
    answer: Answer
    sentence: str
    experience: int | None = None
    # The union keeps whole numbers whole when a stored finding is read back.
    numbers: Mapping[str, int | float] = {}
    experiences: tuple[int, ...] = ()
    """Those that were judged together; empty: it is about `experience` alone, or about none."""

    @property
    def about(self) -> frozenset[int]:
        """Every experience that it is about."""
        alone = () if self.experience is None else (self.experience,)
        return frozenset(self.experiences or alone)

    def storable(self) -> "Finding":
        """The finding with the numbers that JSON can hold; evidence that is no number is left to words."""
        return self._replace(numbers=_json_numbers(self.numbers))


def failed_on(findings: Sequence[Finding]) -> tuple[int, ...]:
    """Experiences of the retention findings that failed, by number; the next verdict's `disputed`."""
    failed = [each for each in findings if each.guard == "retention" and each.answer == "fail"]
    return tuple(sorted(frozenset[int]().union(*(each.about for each in failed))))


@dataclass(frozen=True)
class Note:
    """Information that does not influence the outcome."""

    about: str
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The outcome for an update, with all findings."""

    outcome: Outcome
    reason: str
    """One sentence: the finding that decided."""
    findings: tuple[Finding, ...]
    notes: tuple[Note, ...] = ()
    worst: tuple[WorstRecord, ...] = ()
    """Records to look at of a batch that the data guard stopped, at most `MOST_WORST`."""

    @property
    def audit(self) -> tuple[Finding, ...]:
        """Findings on the sealed audit parts; empty: no audit was made."""
        return tuple(each for each in self.findings if each.guard == BUDGET and "look" in each.numbers)

    @property
    def cause(self) -> str | None:
        """Guard of the finding that decided a review or a rejection; None: promoted."""
        open_ = (each for each in self.findings if each.answer != "pass")
        return next((each.guard for each in open_ if each.sentence == self.reason), None)

    @property
    def freezes(self) -> bool:
        """Whether an audit was made and did not pass, which stops promotion."""
        return any(each.answer != "pass" for each in self.audit)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, `verdict.json`; `schema.schema` describes it."""
        findings = [each._asdict() | {"numbers": _json_numbers(each.numbers)} for each in self.findings]
        notes = [asdict(each) | {"numbers": _json_numbers(each.numbers)} for each in self.notes]
        bare = asdict(replace(self, findings=(), notes=()))
        return {"schema": VERDICT_SCHEMA, **bare, "findings": findings, "notes": notes}


def _json_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """The finite numbers: JSON has no NaN and no infinity."""
    return {
        key: value
        for key, value in numbers.items()
        if isinstance(value, int) or (isinstance(value, float) and isfinite(value))
    }
