"""Paired comparison of two models on the same holdout records: flips, limits, p-values, sample sizes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.gate import stats
from service.gate.base import PairedAnswers
from service.gate.pairs import Counts, counts

Floats = NDArray[np.float64]

POWER = 0.8
"""Chance that the number of records asked for settles the question."""


class Comparison(NamedTuple):
    """The flips on one holdout, and the statistics derived from them."""

    experience: int
    n: int
    lost: int
    gained: int
    margin: float
    alpha: float
    loss: float
    lower: float
    upper: float
    p_noninferior: float
    p_drop: float
    """Exact McNemar, Holm-adjusted over all holdouts of the guard."""
    baseline_accuracy: float
    challenger_accuracy: float
    p_gain: float
    baseline_right: int
    challenger_right: int
    needed: int
    """Records of this holdout that would settle non-inferiority or a drop with power 0.8."""
    needed_for_difference: int
    """Records with which McNemar's test would see a difference like this one with power 0.8."""

    def numbers(self, more: Mapping[str, float] = {}) -> dict[str, float]:
        """The numbers of a finding, with `more` of the same holdout."""
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
            "baseline_accuracy": self.baseline_accuracy,
            "challenger_accuracy": self.challenger_accuracy,
            **more,
        }


def problem(answers: PairedAnswers, margin: float) -> str | None:
    """Why a holdout cannot be compared, and what to do; None: it can."""
    if answers.problem is not None:
        return answers.problem
    if not 0 < margin < 1:
        return f"a margin of {margin} means nothing; set one between 0 and 1"
    if not answers.n:
        return "its holdout is empty; retire it (holdfast holdout retire), or let a person decide"
    return None


ComparisonTable = Mapping[str, NDArray[Any]]
"""Many comparisons by column: (holdouts,) each, by the fields of `Comparison` and in their order."""


def compare(sound: Sequence[tuple[PairedAnswers, float]], *, alpha: float, holdouts: int) -> list[Comparison]:
    """Compare holdouts whose answers can be paired, each with its margin.

    `holdouts`: their number in all, for Holm's adjustment.
    """
    if not sound:
        return []
    columns = compare_counts(
        counts([each for each, _ in sound]),
        experiences=[each.experience for each, _ in sound],
        margins=np.array([margin for _, margin in sound]),
        alpha=alpha,
        holdouts=holdouts,
    )
    return rows(columns)


def rows(table: ComparisonTable) -> list[Comparison]:
    """The comparisons of a table, one by one."""
    # As plain numbers, a column at a time: to take them out one by one would outlast the statistics.
    return list(map(Comparison._make, zip(*(column.tolist() for column in table.values()), strict=True)))


def compare_counts(
    counted: Counts, *, experiences: Sequence[int], margins: Floats, alpha: float, holdouts: int
) -> ComparisonTable:
    """Compare (4, holdouts) `counts`, none of them empty.

    Of all `holdouts`, those that could not be compared enter Holm's adjustment with p = 1.
    """
    n, before, after, both = counted
    lost, gained = before - both, after - both
    p_drop = stats.holm(np.append(stats.mcnemar_drop_p(lost, gained), np.ones(holdouts - len(n))))
    lower, upper = stats.loss_limits(lost, gained, n=n, alpha=alpha)
    needed, needed_for_difference = _needed(lost, gained, n=n, margins=margins, alpha=alpha)
    return {
        "experience": np.asarray(experiences),
        "n": n,
        "lost": lost,
        "gained": gained,
        "margin": margins,
        "alpha": np.full(len(n), alpha),
        "loss": (lost - gained) / n,
        "lower": lower,
        "upper": upper,
        "p_noninferior": stats.noninferiority_p(lost, gained, n=n, margin=margins),
        "p_drop": p_drop[: len(n)],
        "baseline_accuracy": before / n,
        "challenger_accuracy": after / n,
        "p_gain": stats.mcnemar_gain_p(lost, gained),
        "baseline_right": before,
        "challenger_right": after,
        "needed": needed,
        "needed_for_difference": needed_for_difference,
    }


def pooled_counts(counted: Counts, pools: Sequence[Sequence[int]]) -> Counts:
    """(4, pools) the counts of pools, from (4, holdouts) and the holdouts' places; none is empty."""
    sizes = np.array([len(pool) for pool in pools])
    # Lists are turned into one array at once: one array a pool would outlast the sums.
    places = np.array([place for pool in pools for place in pool])
    return np.add.reduceat(counted[:, places], np.cumsum(sizes) - sizes, axis=1)


def _needed(
    lost: Counts, gained: Counts, *, n: Counts, margins: Floats, alpha: float
) -> tuple[Counts, Counts]:
    """(holdouts,) each: records that would settle the question, and that would show this difference.

    The first is planned for a true loss of 0. Where that many were already compared, for the loss that was
    seen; and where even that is not above `n`, it is twice as many.
    """
    # Pulled a little towards 1/2, so that no flips do not read as never.
    churn = (lost + gained + 1) / (n + 2)
    loss = (lost - gained) / n
    # A difference of 0 is never seen; it stands for itself until it is doubled below.
    apart = np.where(lost == gained, 1.0, loss)
    difference = stats.needed_n_difference(apart, alpha, churn=churn, power=POWER)
    difference = np.where((lost == gained) | (difference <= n), 2 * n, difference)
    harmless = stats.needed_n(margins, alpha, churn=churn, power=POWER)
    # Half the margin stands for losses beyond it, which the next line leaves out.
    within = np.where(loss < margins, np.maximum(loss, 0.0), margins / 2)
    seen = stats.needed_n(margins, alpha, churn=churn, power=POWER, true_loss=within)
    seen = np.where(loss < margins, seen, difference)
    settling = np.where(harmless > n, harmless, np.where(seen > n, seen, 2 * n))
    return settling, difference
