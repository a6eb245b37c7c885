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
from service.gate.guards.budget import records_alone, records_needed

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
    """Error rate of all looks at the budget together, one planned per update; and of a step."""
    step_alpha: float | None = None
    """Share of alpha that a step may spend; None: all of it."""
    holdouts: int = 1
    accuracy: float = 0.9
    """Accuracy of the anchor on past experiences."""
    rule: Literal["gate", "threshold"] = "gate"
    """threshold: a step passes when the estimated loss is at most the margin."""

    def problem(self) -> str | None:
        """Why a lifetime with these numbers is impossible; None: it is possible."""
        least, most = self.accuracy - self.updates * self.loss, self.accuracy
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
    """An audit did not pass before the last update; nothing was promoted any more."""

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
    random = np.random.default_rng(seed)
    shape = (lifetimes, lifetime.holdouts)
    right = random.binomial(lifetime.gate, lifetime.accuracy, shape)
    sealed = _Sealed.new(lifetime, random, shape)
    together = audited_together(lifetime)
    promotions, frozen = np.zeros(lifetimes, dtype=np.int64), np.zeros(lifetimes, dtype=np.bool_)
    for _ in range(lifetime.updates):
        accuracy: Floats = np.asarray(lifetime.accuracy - lifetime.loss * promotions, dtype=np.float64)[
            :, None
        ]
        p_lost = (lifetime.churn + lifetime.loss) / 2 / accuracy
        p_gained = (lifetime.churn - lifetime.loss) / 2 / (1 - accuracy)
        lost, gained = random.binomial(right, p_lost), random.binomial(lifetime.gate - right, p_gained)
        challenger = sealed.flipped(random, p_lost, p_gained)
        goes_on = _steps(lifetime, lost, gained) & ~frozen
        if lifetime.budget is not None:
            kept = challenger.keeps(lifetime.budget, lifetime.alpha / lifetime.updates, together)
            frozen |= goes_on & ~kept
            goes_on &= kept
        promotions += goes_on
        right = np.where(goes_on[:, None], right - lost + gained, right)
        sealed = challenger.where(goes_on, sealed)
        progress()
    return LifetimeOutcomes(promotions, np.asarray(promotions * lifetime.loss, dtype=np.float64), frozen)


def audited_together(lifetime: Lifetime) -> int:
    """Neighbouring experiences audited as one (`budget.budget`): 1: each alone; 0: no audit needs to pass."""
    if lifetime.budget is None:
        return 0
    alpha, sealed = lifetime.alpha / lifetime.updates, lifetime.audit * lifetime.holdouts
    if sealed < records_needed(lifetime.budget, alpha):
        return 0
    return min(ceil(records_alone(lifetime.budget, alpha) / lifetime.audit), lifetime.holdouts)


def _steps(lifetime: Lifetime, lost: Counts, gained: Counts) -> NDArray[np.bool_]:
    """(lifetimes,) whether all holdouts of the challenger pass against the champion."""
    if lifetime.rule == "threshold":
        passes = lost - gained <= lifetime.margin * lifetime.gate * (1 + 1e-12)
    else:
        alpha = lifetime.alpha if lifetime.step_alpha is None else lifetime.step_alpha
        passes = stats.noninferiority_p(lost, gained, n=lifetime.gate, margin=lifetime.margin) <= alpha
    return np.asarray(passes.all(axis=1), dtype=np.bool_)


@dataclass(frozen=True)
class _Sealed:
    """Counts (lifetimes, holdouts) of sealed records, by whether the anchor and a model answer them right."""

    n: int
    both_right: Counts
    lost: Counts
    """Right by the anchor, wrong by the model."""
    gained: Counts
    both_wrong: Counts

    @classmethod
    def new(cls, lifetime: Lifetime, random: np.random.Generator, shape: tuple[int, int]) -> "_Sealed":
        right = random.binomial(lifetime.audit, lifetime.accuracy, shape)
        none = np.zeros(shape, dtype=np.int64)
        return cls(lifetime.audit, right, none, none, lifetime.audit - right)

    def flipped(self, random: np.random.Generator, p_lost: Floats, p_gained: Floats) -> "_Sealed":
        """The same records with a challenger's answers."""
        falls, slips = random.binomial(self.both_right, p_lost), random.binomial(self.gained, p_lost)
        heals, rises = random.binomial(self.lost, p_gained), random.binomial(self.both_wrong, p_gained)
        return _Sealed(
            self.n,
            self.both_right - falls + heals,
            self.lost + falls - heals,
            self.gained - slips + rises,
            self.both_wrong + slips - rises,
        )

    def keeps(self, budget: float, alpha: float, together: int) -> NDArray[np.bool_]:
        """(lifetimes,) whether one look at every holdout passes, so many of them `together`."""
        lifetimes, holdouts = self.lost.shape
        kept = np.ones(lifetimes, dtype=np.bool_)
        if together:
            # A last group that would be incomplete joins the one before it.
            firsts = np.arange(holdouts // together) * together
            lost, gained = (np.add.reduceat(each, firsts, axis=1) for each in (self.lost, self.gained))
            n = self.n * np.diff(np.append(firsts, holdouts))
            kept &= (stats.noninferiority_p(lost, gained, n=n, margin=budget) <= alpha).all(axis=1)
        if together != 1:
            lower, _ = stats.loss_limits(self.lost, self.gained, n=self.n, alpha=alpha / holdouts)
            kept &= (lower <= budget).all(axis=1)
        return kept

    def where(self, chosen: NDArray[np.bool_], other: "_Sealed") -> "_Sealed":
        """These counts in the chosen lifetimes, those of `other` in the rest."""
        rows = chosen[:, None]
        return _Sealed(
            self.n,
            np.where(rows, self.both_right, other.both_right),
            np.where(rows, self.lost, other.lost),
            np.where(rows, self.gained, other.gained),
            np.where(rows, self.both_wrong, other.both_wrong),
        )
