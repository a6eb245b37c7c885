"""Simulated lives of a pipeline: many updates in a row, each made from the champion, and what is lost in all.

A step alone cannot see slow erosion; the budget can, on sealed records. Here both are run on records that
stay the same for a whole life, so that a champion may have been lucky on those that judged it.
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
class Life:
    """What every update of a life does, and how it is judged. Shares are between 0 and 1."""

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
    """Most that may be lost against the anchor; None: nobody looks."""
    alpha: float
    """Of all looks at the budget together, which are planned to be as many as updates; and of a step."""
    step_alpha: float | None = None
    """What a step may spend; None: all of alpha."""
    holdouts: int = 1
    accuracy: float = 0.9
    """Of the anchor, on the past."""
    rule: Literal["gate", "threshold"] = "gate"
    """threshold: a step passes when the estimated loss is at most the margin."""

    def problem(self) -> str | None:
        """Why no life can be like this; None: it can."""
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
class Lives:
    """What became of many lives; each array is (lives,)."""

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


def simulate(life: Life, *, lives: int, seed: int, progress: Callable[[], None] = lambda: None) -> Lives:
    """Run so many lives side by side; `progress` is called after each update.

    Of the records only counts are kept, by what anchor and champion answer. Records of one kind are
    exchangeable, so that this is exactly the Markov chain of every single record's right and wrong.

    Raises:
        ValueError: no life can be like this (`Life.problem`).
    """
    if wrong := life.problem():
        raise ValueError(wrong)
    random = np.random.default_rng(seed)
    shape = (lives, life.holdouts)
    right = random.binomial(life.gate, life.accuracy, shape)
    sealed = _Sealed.new(life, random, shape)
    together = audited_together(life)
    promotions, frozen = np.zeros(lives, dtype=np.int64), np.zeros(lives, dtype=np.bool_)
    for _ in range(life.updates):
        accuracy: Floats = np.asarray(life.accuracy - life.loss * promotions, dtype=np.float64)[:, None]
        p_lost = (life.churn + life.loss) / 2 / accuracy
        p_gained = (life.churn - life.loss) / 2 / (1 - accuracy)
        lost, gained = random.binomial(right, p_lost), random.binomial(life.gate - right, p_gained)
        challenger = sealed.flipped(random, p_lost, p_gained)
        goes_on = _steps(life, lost, gained) & ~frozen
        if life.budget is not None:
            kept = challenger.keeps(life.budget, life.alpha / life.updates, together)
            frozen |= goes_on & ~kept
            goes_on &= kept
        promotions += goes_on
        right = np.where(goes_on[:, None], right - lost + gained, right)
        sealed = challenger.where(goes_on, sealed)
        progress()
    return Lives(promotions, np.asarray(promotions * life.loss, dtype=np.float64), frozen)


def audited_together(life: Life) -> int:
    """Neighbours that are audited as one (`budget.budget`): 1 is each alone, 0 that none need pass."""
    if life.budget is None:
        return 0
    alpha, sealed = life.alpha / life.updates, life.audit * life.holdouts
    if sealed < records_needed(life.budget, alpha):
        return 0
    return min(ceil(records_alone(life.budget, alpha) / life.audit), life.holdouts)


def _steps(life: Life, lost: Counts, gained: Counts) -> NDArray[np.bool_]:
    """(lives,) whether all holdouts of the challenger pass against the champion."""
    if life.rule == "threshold":
        passes = lost - gained <= life.margin * life.gate * (1 + 1e-12)
    else:
        alpha = life.alpha if life.step_alpha is None else life.step_alpha
        passes = stats.noninferiority_p(lost, gained, n=life.gate, margin=life.margin) <= alpha
    return np.asarray(passes.all(axis=1), dtype=np.bool_)


@dataclass(frozen=True)
class _Sealed:
    """Records of the audit parts, each count (lives, holdouts): what the anchor and a model answer."""

    n: int
    both_right: Counts
    lost: Counts
    """Right by the anchor, wrong by the model."""
    gained: Counts
    both_wrong: Counts

    @classmethod
    def new(cls, life: Life, random: np.random.Generator, shape: tuple[int, int]) -> "_Sealed":
        right = random.binomial(life.audit, life.accuracy, shape)
        none = np.zeros(shape, dtype=np.int64)
        return cls(life.audit, right, none, none, life.audit - right)

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
        """(lives,) whether one look at every holdout passes, so many of them `together`."""
        lives, holdouts = self.lost.shape
        kept = np.ones(lives, dtype=np.bool_)
        if together:
            # What is left over at the end goes with those before it.
            firsts = np.arange(holdouts // together) * together
            lost, gained = (np.add.reduceat(each, firsts, axis=1) for each in (self.lost, self.gained))
            n = self.n * np.diff(np.append(firsts, holdouts))
            kept &= (stats.noninferiority_p(lost, gained, n=n, margin=budget) <= alpha).all(axis=1)
        if together != 1:
            lower, _ = stats.loss_limits(self.lost, self.gained, n=self.n, alpha=alpha / holdouts)
            kept &= (lower <= budget).all(axis=1)
        return kept

    def where(self, chosen: NDArray[np.bool_], other: "_Sealed") -> "_Sealed":
        """These answers in the chosen lives, the other ones elsewhere."""
        rows = chosen[:, None]
        return _Sealed(
            self.n,
            np.where(rows, self.both_right, other.both_right),
            np.where(rows, self.lost, other.lost),
            np.where(rows, self.gained, other.gained),
            np.where(rows, self.both_wrong, other.both_wrong),
        )
