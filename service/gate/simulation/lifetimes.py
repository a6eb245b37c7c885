"""Monte Carlo simulation of a pipeline's lifetime: many updates in a row, and the accuracy they lose in all.

The step margin alone does not detect slow erosion; the budget does, on sealed records. Both are simulated on
records that stay the same for a whole lifetime: a champion was selected on the records that judge it again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.gate import stats
from service.gate.base import GateConfig
from service.gate.guards.budget import records_alone, records_together
from service.gate.simulation.rule import Looks, audited, retained

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lifetime:
    """What each update of a lifetime changes, and how it is judged. Shares are between 0 and 1."""

    updates: int
    loss: float
    """Each update truly loses this much of the past, against the champion it is made from."""
    churn: float
    """Share of the past records whose answer flips from one champion to its challenger."""
    gate: int
    """Records of each past holdout's gate part."""
    audit: int
    """Records of its sealed audit part."""
    margin: float
    budget: float | None
    """The largest loss allowed against the anchor; None: no audit is made."""
    alpha: float
    """Error rate of all looks at the budget together; and of a step."""
    step_alpha: float | None = None
    """Share of alpha that a step may spend; None: all of it."""
    holdouts: int = 1
    accuracy: float = 0.9
    """Accuracy of the anchor on past experiences."""
    rule: Literal["gate", "threshold"] = "gate"
    """threshold: a step passes when the estimated loss is at most the margin."""
    lifted: bool = False
    """A person lifts every freeze at once, and the next update starts from the same champion again; else the
    first audit that does not pass ends the lifetime."""
    climbing: bool = False
    """The learner follows all that it is told: it loses half as much again after each promotion, and half of
    that after each update that was stopped. `loss` is where it starts."""
    most_promotions: int | None = None
    """The lifetime ends after so many; None: with the last update."""
    audits: int = 50
    """Looks that sealed blocks are sized for (`gate.audits`)."""

    def problem(self) -> str | None:
        """Why a lifetime with these numbers is impossible; None: it is possible."""
        least, most = self.accuracy - self.updates * self.loss, self.accuracy
        if self.climbing or self.lifted:
            # Losses are cut where little is left to lose, so that only the first must be possible.
            least = most - self.loss
        if self.churn < abs(self.loss):
            return "an update cannot lose more than the share of answers that flip"
        if not 0 < min(least, most) <= max(least, most) < 1:
            return "so many such losses would leave the accuracy at none or at all"
        if (self.churn + self.loss) / 2 > min(least, most) or (self.churn - self.loss) / 2 > 1 - max(
            least, most
        ):
            return "more answers would flip than are right, or wrong, to begin with"
        return None


@dataclass(frozen=True)
class LifetimeOutcomes:
    """Outcomes of many simulated lifetimes; each array is (lifetimes,)."""

    promotions: Counts
    lost: Floats
    """True loss of the last champion against the anchor."""
    frozen: NDArray[np.bool_]
    """An audit did not pass; unless freezes are lifted, nothing was promoted any more."""
    failures: Counts
    """Audits that did not pass."""

    def beyond(self, budget: float) -> tuple[float, float]:
        """P(the champion truly lost the budget or more), and its upper limit at 95 % (Clopper-Pearson)."""
        over = self.lost >= budget - 1e-12
        _, upper = stats.clopper_pearson(int(over.sum()), len(over), alpha=0.05)
        return float(over.mean()), float(upper)


def simulate(
    lifetime: Lifetime, *, lifetimes: int, seed: int, progress: Callable[[], None] = lambda: None
) -> LifetimeOutcomes:
    """Simulate so many lifetimes in parallel; `progress` is called after each update.

    Only counts of records are kept, by the answers of anchor and champion. Records with the same answers are
    exchangeable, so the counts follow exactly the Markov chain of the single records.

    Raises:
        ValueError: a lifetime with these numbers is impossible (`Lifetime.problem`).
    """
    if wrong := lifetime.problem():
        raise ValueError(wrong)
    random, shape = np.random.default_rng(seed), (lifetimes, lifetime.holdouts)
    gate, sealed = (
        _Answers.new(n, lifetime.accuracy, random, shape) for n in (lifetime.gate, lifetime.audit)
    )
    zero = np.zeros(lifetimes, dtype=np.int64)
    promotions, looks = zero.copy(), _Looks(zero.copy(), zero.copy(), zero.copy(), zero.astype(np.bool_))
    lost, step = np.zeros(lifetimes), np.full(lifetimes, lifetime.loss)
    for _ in range(lifetime.updates):
        accuracy = (lifetime.accuracy - lost)[:, None]
        loses = np.minimum(step, accuracy[:, 0] / 2)[:, None]
        churn = np.maximum(lifetime.churn, np.abs(loses))
        p_lost = np.minimum((churn + loses) / 2 / accuracy, 1.0)
        p_gained = (churn - loses) / 2 / (1 - accuracy)
        challenger, turned = gate.flipped(random, p_lost, p_gained)
        challenger_sealed, _ = sealed.flipped(random, p_lost, p_gained)
        goes_on = _steps(lifetime, *turned)
        if lifetime.most_promotions is not None:
            goes_on &= promotions < lifetime.most_promotions
        if not lifetime.lifted:
            goes_on &= ~looks.failed
        if lifetime.budget is not None:
            goes_on &= looks.pass_(goes_on, challenger, challenger_sealed, lifetime)
        promotions += goes_on
        lost = np.where(goes_on, lost + loses[:, 0], lost)
        if lifetime.climbing:
            step = np.where(goes_on, 1.5 * step, step / 2)
        gate, sealed = challenger.where(goes_on, gate), challenger_sealed.where(goes_on, sealed)
        progress()
    return LifetimeOutcomes(promotions, lost, looks.failed, looks.failures)


def audited_together(lifetime: Lifetime) -> int:
    """Neighbouring experiences held against the budget as one; 1: each alone; 0: too few records for it."""
    if lifetime.budget is None:
        return 0
    if lifetime.audit >= records_alone(lifetime.budget, lifetime.alpha):
        return 1
    together = ceil(records_together(lifetime.budget, lifetime.alpha, lifetime.audits) / lifetime.audit)
    return together if together <= lifetime.holdouts else 0


def _config(lifetime: Lifetime, alpha: float) -> GateConfig:
    return GateConfig(
        margin=lifetime.margin,
        alpha=alpha,
        budget=lifetime.budget or GateConfig().budget,
        audits=lifetime.audits,
    )


def _steps(lifetime: Lifetime, lost: Counts, gained: Counts) -> NDArray[np.bool_]:
    """(lifetimes,) whether retention passes against the champion."""
    if lifetime.rule == "threshold":
        within = lost - gained <= lifetime.margin * lifetime.gate * (1 + 1e-12)
        return np.asarray(within.all(axis=1), dtype=np.bool_)
    alpha = lifetime.alpha if lifetime.step_alpha is None else lifetime.step_alpha
    passes, _ = retained(lost, gained, n=lifetime.gate, config=_config(lifetime, alpha), alpha=alpha)
    return passes


@dataclass
class _Looks:
    """Looks at the sealed records so far; each array is (lifetimes,)."""

    looks: Counts
    failures: Counts
    runs: Counts
    failed_last: NDArray[np.bool_]

    @property
    def failed(self) -> NDArray[np.bool_]:
        return np.asarray(self.failures > 0, dtype=np.bool_)

    def pass_(
        self, asked: NDArray[np.bool_], gate: "_Answers", sealed: "_Answers", lifetime: Lifetime
    ) -> NDArray[np.bool_]:
        """(lifetimes,) whether one more look passes, in those that are `asked`; all are counted."""
        config = _config(lifetime, lifetime.alpha)
        passed = np.zeros(len(asked), dtype=np.bool_)
        before = np.stack([self.looks, self.failures, self.runs], axis=1)
        for known in np.unique(before[asked], axis=0):
            these = asked & (before == known).all(axis=1)
            passed[these] = audited(
                sealed.lost[these],
                sealed.gained[these],
                n=sealed.n,
                config=config,
                before=Looks(*known.tolist()),
                gate=(gate.lost[these], gate.gained[these], gate.n),
            )
        fails = asked & ~passed
        self.looks += asked
        self.failures += fails
        self.runs += fails & ~self.failed_last
        self.failed_last = np.where(asked, fails, self.failed_last)
        return passed


@dataclass(frozen=True)
class _Answers:
    """Counts (lifetimes, holdouts) of records, by whether the anchor and a model answer them right."""

    n: int
    both_right: Counts
    lost: Counts
    """Right by the anchor, wrong by the model."""
    gained: Counts
    both_wrong: Counts

    @classmethod
    def new(cls, n: int, accuracy: float, random: np.random.Generator, shape: tuple[int, int]) -> "_Answers":
        right = random.binomial(n, accuracy, shape)
        none = np.zeros(shape, dtype=np.int64)
        return cls(n, right, none, none, n - right)

    def flipped(
        self, random: np.random.Generator, p_lost: Floats, p_gained: Floats
    ) -> tuple["_Answers", tuple[Counts, Counts]]:
        """The same records with a challenger's answers; and what it lost and gained against the model."""
        falls, slips = random.binomial(self.both_right, p_lost), random.binomial(self.gained, p_lost)
        heals, rises = random.binomial(self.lost, p_gained), random.binomial(self.both_wrong, p_gained)
        challenger = _Answers(
            self.n,
            self.both_right - falls + heals,
            self.lost + falls - heals,
            self.gained - slips + rises,
            self.both_wrong + slips - rises,
        )
        return challenger, (falls + slips, heals + rises)

    def where(self, chosen: NDArray[np.bool_], other: "_Answers") -> "_Answers":
        """These counts in the chosen lifetimes, those of `other` in the rest."""
        rows = chosen[:, None]
        return _Answers(
            self.n,
            np.where(rows, self.both_right, other.both_right),
            np.where(rows, self.lost, other.lost),
            np.where(rows, self.gained, other.gained),
            np.where(rows, self.both_wrong, other.both_wrong),
        )
