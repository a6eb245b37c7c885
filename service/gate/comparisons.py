"""Two models on the same holdouts, record by record: what flipped, and what the statistics say of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from service.gate import stats
from service.gate.base import PairedAnswers, Twins

POWER = 0.8
"""Chance that the number of records asked for settles the question."""


@dataclass(frozen=True)
class Comparison:
    """The flips of one holdout, and everything the statistics say of them."""

    experience: int
    n: int
    lost: int
    gained: int
    margin: float
    alpha: float
    p_noninferior: float
    p_drop: float
    """Exact McNemar, Holm-adjusted over all holdouts of the guard."""
    p_gain: float
    lower: float
    upper: float
    baseline_right: int
    challenger_right: int

    @property
    def loss(self) -> float:
        return (self.lost - self.gained) / self.n

    @property
    def churn(self) -> float:
        """P(a record flips), pulled a little towards 1/2, so that no flips do not read as never."""
        return (self.lost + self.gained + 1) / (self.n + 2)

    def numbers(self) -> dict[str, float]:
        return {
            "n": self.n,
            "lost": self.lost,
            "gained": self.gained,
            "margin": self.margin,
            "alpha": self.alpha,
            "loss": self.loss,
            "loss_lower": self.lower,
            "loss_upper": self.upper,
            "p_noninferior": self.p_noninferior,
            "p_drop_holm": self.p_drop,
            "baseline_accuracy": self.baseline_right / self.n,
            "challenger_accuracy": self.challenger_right / self.n,
        }

    def needed(self) -> int:
        """Records of this holdout that would settle non-inferiority or a drop with power 0.8.

        Planned for a true loss of 0. Where that many were already compared, for the loss that was seen; and
        where even that is not above `n`, twice as many.
        """
        planned = int(stats.needed_n(self.margin, self.alpha, churn=self.churn, power=POWER))
        if planned > self.n:
            return planned
        if self.loss < self.margin:
            planned = int(
                stats.needed_n(
                    self.margin, self.alpha, churn=self.churn, power=POWER, true_loss=max(self.loss, 0.0)
                )
            )
        else:
            planned = self.needed_for_difference()
        return planned if planned > self.n else 2 * self.n

    def needed_for_difference(self) -> int:
        """Records with which McNemar's test would see a difference like this one with power 0.8."""
        if self.lost == self.gained:
            return 2 * self.n
        planned = int(stats.needed_n_difference(self.loss, self.alpha, churn=self.churn, power=POWER))
        return planned if planned > self.n else 2 * self.n


def problem(answers: PairedAnswers, margin: float) -> str | None:
    """Why a holdout cannot be compared, and what to do; None: it can."""
    wrong = _unpaired(answers, margin)
    if wrong is None and not _size(answers):
        return "its holdout is empty; put records aside, or let a person decide"
    return wrong


def _unpaired(answers: PairedAnswers, margin: float) -> str | None:
    """Why a holdout's answers cannot be paired; None: they can, be they none at all."""
    if answers.baseline is None:
        return "the baseline's answers are missing; predict its holdout again"
    if answers.challenger is None:
        return "the challenger's answers are missing; predict its holdout again"
    for name, bits in (("baseline's", answers.baseline), ("challenger's", answers.challenger)):
        if bits.dtype != np.bool_ or bits.ndim != 1:
            return f"the {name} answers are not right/wrong bits; predict its holdout again"
    if len(answers.baseline) != len(answers.challenger):
        return (
            f"{len(answers.baseline)} answers of the baseline against {len(answers.challenger)} of the "
            "challenger cannot be paired; predict its holdout again with both"
        )
    if not (isfinite(margin) and 0 < margin < 1):
        return f"a margin of {margin} means nothing; set one between 0 and 1"
    return None


def _size(answers: PairedAnswers) -> int:
    return 0 if answers.baseline is None else len(answers.baseline)


@dataclass(frozen=True)
class Pool:
    """Past holdouts that are too small to be judged alone, as one: a past holdout never grows."""

    small: tuple[int, ...]
    """Their experiences, rising."""
    added: tuple[int, ...]
    """Experiences of the full holdouts that fill the pool up to its floor; each is judged alone as well."""
    answers: PairedAnswers
    """All their records, one after the other, under the first small experience."""
    margin: float
    """The largest margin of the small ones."""
    floor: int
    """Records that they need to be judged as one."""

    @property
    def n(self) -> int:
        return _size(self.answers)


Enough = Callable[[float], int]
"""Records that a holdout needs to be judged alone at a margin."""


def floor(alpha: float) -> Enough:
    """Records below which no challenger can pass."""
    return lambda margin: int(stats.floor_n(margin, alpha))


def is_small(answers: PairedAnswers, margin: float, *, enough: Enough) -> bool:
    """Whether a holdout's answers can be paired, but are too few to be judged alone."""
    return _unpaired(answers, margin) is None and _size(answers) < enough(margin)


def pooled(past: Sequence[tuple[PairedAnswers, float]], *, enough: Enough) -> Pool | None:
    """The small ones of the past holdouts and, while they are too few together, the smallest full ones.

    None where no holdout is small.
    """
    small = [(each, margin) for each, margin in past if is_small(each, margin, enough=enough)]
    if not small:
        return None
    margin = max(margin for _, margin in small)
    floor = enough(margin)
    members = [each for each, _ in small]
    full = [
        each for each, its in past if problem(each, its) is None and not is_small(each, its, enough=enough)
    ]
    added: list[PairedAnswers] = []
    for each in sorted(full, key=_size):
        if sum(map(_size, members + added)) >= floor:
            break
        added.append(each)
    every = members + added
    baseline = np.concatenate([each.baseline for each in every if each.baseline is not None])
    challenger = np.concatenate([each.challenger for each in every if each.challenger is not None])
    names = tuple(sorted(each.experience for each in members))
    return Pool(
        small=names,
        added=tuple(sorted(each.experience for each in added)),
        answers=PairedAnswers(
            names[0],
            baseline,
            challenger,
            margin,
            looks=max(each.looks for each in every),
            twins=_together([each.twins for each in every if each.twins is not None]),
        ),
        margin=margin,
        floor=floor,
    )


def _together(twins: Sequence[Twins]) -> Twins | None:
    records = sum(each.records for each in twins)
    if not records:
        return None
    usual = sum(each.usual * each.records for each in twins) / records
    return Twins(records, sum(each.relabelled for each in twins), usual)


def compare(sound: Sequence[tuple[PairedAnswers, float]], *, alpha: float, holdouts: int) -> list[Comparison]:
    """Each sound holdout with its margin, all at once; of `holdouts` in all, for Holm's adjustment.

    Those that could not be compared count in the adjustment with p = 1.
    """
    if not sound:
        return []
    before: list[NDArray[np.bool_]] = [np.asarray(each.baseline, dtype=np.bool_) for each, _ in sound]
    after: list[NDArray[np.bool_]] = [np.asarray(each.challenger, dtype=np.bool_) for each, _ in sound]
    n = np.array([len(bits) for bits in before])
    lost = np.array([int((old & ~new).sum()) for old, new in zip(before, after, strict=True)])
    gained = np.array([int((new & ~old).sum()) for old, new in zip(before, after, strict=True)])
    margins = np.array([margin for _, margin in sound])
    p_noninferior = stats.noninferiority_p(lost, gained, n=n, margin=margins)
    p_drop = stats.holm(np.append(stats.mcnemar_drop_p(lost, gained), np.ones(holdouts - len(sound))))
    p_gain = stats.mcnemar_gain_p(lost, gained)
    lower = stats.loss_lower(lost, gained, n=n, alpha=alpha)
    upper = stats.loss_upper(lost, gained, n=n, alpha=alpha)
    return [
        Comparison(
            experience=each.experience,
            n=int(n[i]),
            lost=int(lost[i]),
            gained=int(gained[i]),
            margin=margin,
            alpha=alpha,
            p_noninferior=float(p_noninferior[i]),
            p_drop=float(p_drop[i]),
            p_gain=float(p_gain[i]),
            lower=float(lower[i]),
            upper=float(upper[i]),
            baseline_right=int(before[i].sum()),
            challenger_right=int(after[i].sum()),
        )
        for i, (each, margin) in enumerate(sound)
    ]
