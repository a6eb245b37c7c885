"""How often the gate asks a person, of a pipeline that loses nothing: whole lifetimes, judged by `decide`.

Every question of a harmless lifetime is one without need. A person approves at once, and lifts every freeze.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.gate.base import (
    Audit,
    DataEvidence,
    Evidence,
    GateConfig,
    PairedAnswers,
    PastExperience,
    Verdict,
    failed_on,
)
from service.gate.decide import decide
from service.gate.holdouts import archive, records_judged

Bits = NDArray[np.bool_]
_CLASSES = 10


@dataclass(frozen=True)
class HarmlessLifetime:
    """A pipeline whose updates lose nothing. Shares are between 0 and 1."""

    records: int
    """Records of each experience."""
    churn: float
    """Share of the past records whose answer flips from one champion to its challenger, as often back."""
    better: float = 0.0
    """The champion answers new data worse than past data by this much, and the challenger learns it."""
    updates: int = 100
    gate: float = 0.25
    """Share of an experience that every later update is judged on (`split.gate`)."""
    audit: float = 0.2
    """Share that is sealed (`split.audit`)."""
    accuracy: float = 0.9
    """Accuracy of every model on what it has learnt."""
    majority: float = 0.12
    """Share of the largest class, which the first version is compared with."""
    rare: float = 0.01
    """Share of a class that is rare enough to be guarded by itself; the other eight are alike."""
    max_carries: int = 2
    """Later updates that a rejected experience goes with; then it is parked."""

    def problem(self) -> str | None:
        """Why such a lifetime is impossible; None: it is possible."""
        if self.churn / 2 > min(self.accuracy, 1 - self.accuracy):
            return "more answers would flip back and forth than are right, or wrong, to begin with"
        if not self.better < self.accuracy:
            return "the champion would answer less than nothing of the new data right"
        if min(self.gate_records, self.sealed_records) < 1:
            return "an experience has no record in its gate part, or none in its sealed part"
        return None

    @property
    def shares(self) -> list[float]:
        """Shares of the classes: the rare one, the largest, and the others."""
        others = (1 - self.rare - self.majority) / (_CLASSES - 2)
        return [self.rare, self.majority, *[others] * (_CLASSES - 2)]

    @property
    def gate_records(self) -> int:
        return round(self.records * self.gate)

    @property
    def sealed_records(self) -> int:
        return round(self.records * self.audit)


@dataclass
class Asked:
    """What became of the updates of one lifetime."""

    updates: int = 0
    promoted: int = 0
    asked: int = 0
    rejected: int = 0
    freezes: int = 0
    """Audits that did not pass, of an update that was asked about or rejected."""
    causes: Counter[str] = field(default_factory=Counter)
    """Guard of the finding that decided -> updates that it asked about."""


def lifetime_of(lifetime: HarmlessLifetime, config: GateConfig, *, seed: int) -> Asked:
    """One lifetime; the same seed gives the same lifetime.

    Raises:
        ValueError: such a lifetime is impossible (`HarmlessLifetime.problem`).
    """
    if wrong := lifetime.problem():
        raise ValueError(wrong)
    pipeline = Pipeline(lifetime, config, np.random.default_rng(seed))
    for _ in range(lifetime.updates):
        pipeline.update()
    return pipeline.seen


def lifetimes(
    lifetime: HarmlessLifetime,
    config: GateConfig,
    *,
    many: int,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> list[Asked]:
    """So many independent lifetimes; `progress` is called after each."""
    found = []
    for number in range(many):
        found.append(lifetime_of(lifetime, config, seed=seed + number))
        progress()
    return found


@dataclass(frozen=True)
class Rate:
    """So many of 100 updates, with a 95 % interval over lifetimes."""

    mean: float
    low: float
    high: float


def per_100(found: Sequence[Asked], what: Callable[[Asked], int]) -> Rate:
    """How many of 100 updates, on average over the lifetimes; the interval by resampling whole lifetimes."""
    shares = np.array([100 * what(each) / each.updates for each in found])
    drawn = np.random.default_rng(0).choice(shares, (_RESAMPLES, len(shares))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Rate(float(shares.mean()), float(low), float(high))


_RESAMPLES = 2000


def causes_per_100(found: Sequence[Asked]) -> Mapping[str, float]:
    """Guard that decided -> updates that it asked about, of 100; the most frequent first."""
    total: Counter[str] = sum((each.causes for each in found), Counter())
    updates = sum(each.updates for each in found)
    return {cause: 100 * count / updates for cause, count in total.most_common()}


class Pipeline:
    """The state of one lifetime: answers of the champion and of the anchors, and what was counted."""

    def __init__(self, lifetime: HarmlessLifetime, config: GateConfig, random: np.random.Generator) -> None:
        self.lifetime, self.config, self.random = lifetime, config, random
        self.seen = Asked()
        self.version = 0
        self.last_audited: int | None = None
        self.learnt: list[int] = []
        # (experiences, records) each, in the order of `learnt`.
        self.gate = np.empty((0, lifetime.gate_records), dtype=np.bool_)
        self.labels = np.empty((0, lifetime.gate_records), dtype=np.int64)
        self.sealed = np.empty((0, lifetime.sealed_records), dtype=np.bool_)
        self.anchors = np.empty((0, lifetime.sealed_records), dtype=np.bool_)
        self.gate_anchors = np.empty((0, lifetime.gate_records), dtype=np.bool_)
        self.looks: Counter[int] = Counter()
        self.audits: Counter[int] = Counter()
        self.failures: Counter[int] = Counter()
        self.failure_runs: Counter[int] = Counter()
        self.last_failed: set[int] = set()
        self.waiting: dict[int, int] = {}
        """Rejected experience -> updates that it went with; it goes with the next one too."""
        self.tries = 0
        self.disputed: tuple[int, ...] = ()
        self.next = 0

    def update(self) -> Verdict:
        """One update: the experiences that wait and a new one are learnt, judged and, mostly, promoted."""
        new = [*self.waiting, self.next]
        self.next += 1
        gate, sealed = self.flipped(self.gate), self.flipped(self.sealed)
        labels = self.random.choice(_CLASSES, (len(new), self.lifetime.gate_records), p=self.lifetime.shares)
        new_gate = np.stack([self._new(each) for each in labels], axis=1)
        evidence = self._evidence(new, gate, sealed, new_gate, labels)
        verdict = decide(evidence, self.config)
        self._count(new, evidence, verdict)
        self.disputed = failed_on(verdict.findings) if verdict.outcome == "reject" else ()
        if verdict.outcome == "reject":
            self._reject(new)
            return verdict
        self.version += 1
        if verdict.audit and not verdict.freezes:
            self.last_audited = self.version
        new_sealed = self.random.random((len(new), self.lifetime.sealed_records)) < self.lifetime.accuracy
        self.gate = np.concatenate([gate, new_gate[1]])
        self.labels = np.concatenate([self.labels, labels])
        self.sealed = np.concatenate([sealed, new_sealed])
        self.anchors = np.concatenate([self.anchors, new_sealed])
        self.gate_anchors = np.concatenate([self.gate_anchors, new_gate[1]])
        self.learnt += new
        self.waiting, self.tries = {}, 0
        return verdict

    def flipped(self, right: Bits) -> Bits:
        """The challenger's answers on past records: as accurate as the champion's, but some flipped."""
        lifetime = self.lifetime
        lost, gained = lifetime.churn / 2 / lifetime.accuracy, lifetime.churn / 2 / (1 - lifetime.accuracy)
        return right ^ (self.random.random(right.shape, dtype=np.float32) < np.where(right, lost, gained))

    def _new(self, labels: NDArray[np.int64]) -> Bits:
        """(2, records) answers on new data: the champion's, or the majority class's, and the challenger's."""
        lifetime, records = self.lifetime, len(labels)
        if not self.version:
            return np.stack([labels == 1, self.random.random(records) < lifetime.accuracy])
        before = lifetime.accuracy - lifetime.better
        churn = max(lifetime.churn, lifetime.better)
        lost, gained = (churn - lifetime.better) / 2 / before, (churn + lifetime.better) / 2 / (1 - before)
        right = self.random.random(records) < before
        return np.stack([right, right ^ (self.random.random(records) < np.where(right, lost, gained))])

    def _evidence(
        self, new: list[int], gate: Bits, sealed: Bits, new_gate: Bits, labels: NDArray[np.int64]
    ) -> Evidence:
        judged = records_judged(self.learnt, (), self.config)
        rows = [(row, each, judged[each]) for row, each in enumerate(self.learnt) if each in judged]
        archived = archive(self.learnt, (), self.config)
        return Evidence(
            DataEvidence(self.lifetime.records * len(new), 0),
            past=tuple(
                PairedAnswers(
                    each,
                    self.gate[row, :most],
                    gate[row, :most],
                    looks=self.looks[each],
                    labels=self.labels[row, :most],
                )
                for row, each, most in rows
            ),
            new=tuple(
                PairedAnswers(each, before, after, looks=self.looks[each], labels=its)
                for each, before, after, its in zip(new, *new_gate, labels, strict=True)
            ),
            first=not self.version,
            attempt=1 + self.tries,
            champion=self.version or None,
            disputed=self.disputed,
            history=self._history(archived, self.lifetime.gate_records),
            audit=self._audit(rows, gate, sealed, archived) if self.version else None,
        )

    def _audit(
        self, rows: Sequence[tuple[int, int, int]], gate: Bits, sealed: Bits, archived: set[int]
    ) -> Audit:
        return Audit(
            tuple(
                PairedAnswers(
                    each,
                    self.anchors[row, :most],
                    sealed[row, :most],
                    looks=self.audits[each],
                    failures=self.failures[each],
                    failure_runs=self.failure_runs[each],
                )
                for row, each, most in rows
            ),
            self.last_audited,
            gate=tuple(
                PairedAnswers(each, self.gate_anchors[row, :most], gate[row, :most])
                for row, each, most in rows
            ),
            history=self._history(archived, self.lifetime.sealed_records),
        )

    def _history(self, archived: set[int], records: int) -> tuple[PastExperience, ...]:
        most = min(records, self.config.holdout_records)
        return tuple(PastExperience(each, most, archived=each in archived) for each in self.learnt)

    def _count(self, new: list[int], evidence: Evidence, verdict: Verdict) -> None:
        seen = self.seen
        seen.updates += 1
        seen.promoted += verdict.outcome == "promote"
        seen.asked += verdict.outcome == "review"
        seen.rejected += verdict.outcome == "reject"
        seen.freezes += verdict.freezes
        if verdict.outcome == "review":
            seen.causes[str(verdict.cause)] += 1
        self.looks.update([each.experience for each in evidence.past] + new)
        if verdict.audit and evidence.audit is not None:
            looked = [each.experience for each in evidence.audit.answers]
            self.audits.update(looked)
            if verdict.freezes:
                self.failures.update(looked)
                self.failure_runs.update(set(looked) - self.last_failed)
            self.last_failed = set(looked) if verdict.freezes else set()

    def _reject(self, new: list[int]) -> None:
        self.tries += 1
        carried = {each: self.waiting.get(each, -1) + 1 for each in new}
        self.waiting = {
            each: carries for each, carries in carried.items() if carries < self.lifetime.max_carries
        }
