"""Tests and limits for means of paired losses, and metrics rewritten as such means.

Every metric here is turned into one value a record, whose mean over the holdout is 1 - metric (or the Brier
score itself). Two models on the same records then differ by the mean of paired differences, whatever the
metric: for F1, balanced accuracy and AUC by the influence function, which is exact to first order.
"""

from dataclasses import dataclass
from math import ceil, comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from service.gate.base import Details, Metric

Floats = NDArray[np.float64]

ENOUGH_RECORDS = 300
"""Fewest records for these tests, which are asymptotic."""
ENOUGH_OF_A_CLASS = 30
"""Fewest records of each class for a metric that averages over classes."""
LARGEST_BRIER = 2.0
BINS = 15
"""Bins of the expected calibration error."""


def unseen_n(share: float, alpha: float) -> int:
    """Fewest records that show at least one of the losing ones with probability 1 - alpha.

    A mean can grow by a margin because few records lose as much as one can, and n records show none of these
    with probability (1 - share)^n. No test of the records that are there can know of them.
    """
    return int(np.ceil(np.log(alpha) / np.log1p(-share))) if share < 1 else 1


def least_records(metric: Metric, margin: float, alpha: float, *, classes: int) -> tuple[int, int]:
    """Records that a holdout needs for a metric at a margin, and records of each class (0: not needed).

    By the fewest records whose loss makes the margin: of all records for the Brier score (each at most 2); of
    a class of its own for balanced accuracy (a class is 1 / classes of it), the area under the curve (a class
    is all of it) and macro-F1, where recall counts up to twice in a class's F1.
    """
    if metric == "brier":
        return max(ENOUGH_RECORDS, unseen_n(margin / LARGEST_BRIER, alpha)), 0
    share = {"auc": margin, "balanced_accuracy": margin * classes, "macro_f1": margin * classes / 2}[metric]
    return ENOUGH_RECORDS, max(ENOUGH_OF_A_CLASS, unseen_n(share, alpha))


@dataclass(frozen=True)
class Increase:
    """Test and limits of the true mean of paired differences: challenger minus baseline, larger is worse."""

    n: int
    mean: float
    spread: float
    """Standard deviation of the differences."""
    lower: float
    """One-sided limits of the true mean, each at alpha."""
    upper: float
    p_within: float
    """p-value of H0 "the true increase is the margin or more"; at most alpha lets the challenger pass."""
    p_worse: float
    """p-value of H0 "nothing got worse"."""

    def needed(self, margin: float, alpha: float, *, power: float = 0.8) -> int:
        """Records that would let a challenger that is truly no worse pass with that probability."""
        quantiles = float(stats.norm.isf(alpha) + stats.norm.ppf(power))
        planned = max(int(np.ceil((quantiles * self.spread / margin) ** 2)), ENOUGH_RECORDS)
        return planned if planned > self.n else 2 * self.n


def increase(differences: Floats, *, margin: float, alpha: float, bound: float) -> Increase:
    """Test and limits of a mean; `differences` (n,), n >= 2, finite, none beyond `bound` either way.

    The larger p-value, and the wider limit, of two: Student's t, and t corrected for skewness, which alone
    or together err less where few records hold most of the loss (Johnson, "Modified t tests and confidence
    intervals for asymmetrical populations", JASA 73:536, 1978).
    """
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    third = float(((differences - mean) ** 3).mean())
    upper = _upper(mean, spread, third, n=len(differences), alpha=alpha)
    lower = -_upper(-mean, spread, -third, n=len(differences), alpha=alpha)
    return Increase(
        n=len(differences),
        mean=mean,
        spread=spread,
        lower=max(lower, -bound),
        upper=min(upper, bound),
        p_within=_p(mean - margin, spread, third, n=len(differences)),
        p_worse=_p(-mean, spread, -third, n=len(differences)),
    )


def _p(above: float, spread: float, third: float, *, n: int) -> float:
    """One-sided p-value of a mean that lies `above` the hypothesis; the alternative lies below it."""
    if spread == 0:
        return 0.0 if above < 0 else 1.0
    error = spread / n**0.5
    corrected = above + third / (6 * spread**2 * n) + third * above**2 / (3 * spread**4)
    return float(special.stdtr(n - 1, max(above, corrected) / error))


def _upper(mean: float, spread: float, third: float, *, n: int, alpha: float) -> float:
    """The largest hypothesis that `_p` does not refute, near the mean."""
    if spread == 0:
        return mean
    reach = float(special.stdtrit(n - 1, 1 - alpha)) * spread / n**0.5
    bend = third / (3 * spread**4)
    shift = third / (6 * spread**2 * n) + reach
    # above + bend above^2 + shift = 0, for the root that becomes -shift where there is no skewness.
    inside = 1 - 4 * bend * shift
    if inside < 0:
        return np.inf
    return float(mean + max(reach, 2 * shift / (1 + inside**0.5)))


def needed_for_share(seen: int, n: int, *, limit: float, alpha: float, floor: int) -> int:
    """Records at which the same share, were it the true one, would pass; at least the floor, or 2n."""
    rate = seen / n
    if rate >= limit:
        return 2 * n
    z = float(stats.norm.isf(alpha))
    planned = int(np.ceil(z**2 * max(rate, 1 / n) * (1 - rate) / (limit - rate) ** 2))
    return max(planned, floor) if max(planned, floor) > n else 2 * n


def losses(metric: Metric, labels: NDArray[np.int64], details: Details) -> Floats:
    """One value a record whose mean is the loss: 1 - metric, or the Brier score. See `problem` for when."""
    if metric == "brier":
        return np.asarray(details.brier, dtype=np.float64)
    if metric == "auc":
        if details.score is None:
            raise ValueError("auc wants the probability of class 1")
        return _auc_losses(labels == 1, np.asarray(details.score, dtype=np.float64))
    per_class = _f1_losses if metric == "macro_f1" else _recall_losses
    return np.asarray(
        np.mean([per_class(labels == each, details.predicted == each) for each in np.unique(labels)], axis=0),
        dtype=np.float64,
    )


def _f1_losses(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Floats:
    """Losses of one class. F1 = 2 tp / (predicted + true), a ratio of means; influence by delta method."""
    scale = predicted.mean() + truth.mean()
    score = 2 * (predicted & truth).mean() / scale
    influence = (2.0 * (predicted & truth) - score * (predicted.astype(np.float64) + truth)) / scale
    return np.asarray(1 - score - influence, dtype=np.float64)


def _recall_losses(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Floats:
    """Losses of one class; the mean of recalls is the balanced accuracy."""
    recall = (predicted & truth).sum() / truth.sum()
    return np.asarray(1 - recall - truth * (predicted - recall) / truth.mean(), dtype=np.float64)


def _auc_losses(positive: NDArray[np.bool_], score: Floats) -> Floats:
    """By the placements of DeLong, DeLong and Clarke-Pearson, Biometrics 44:837 (1988)."""
    n, n_positive = len(score), int(positive.sum())
    n_negative = n - n_positive
    ranks = stats.rankdata(score)
    above = (ranks[positive] - stats.rankdata(score[positive])) / n_negative
    below = 1 - (ranks[~positive] - stats.rankdata(score[~positive])) / n_positive
    area = above.mean()
    influence = np.empty(n)
    influence[positive] = (above - area) * n / n_positive
    influence[~positive] = (below - area) * n / n_negative
    return np.asarray(1 - area - influence, dtype=np.float64)


def problem(metric: Metric, labels: NDArray[np.int64], details: Details) -> str | None:
    """Why a metric's test cannot be relied on with these records; None: it can."""
    if len(labels) < ENOUGH_RECORDS:
        return f"its test needs {ENOUGH_RECORDS} records, these are {len(labels)}"
    if metric == "brier":
        return None
    if metric == "auc":
        if details.score is None or ((labels != 0) & (labels != 1)).any():
            return "it is made for two classes, and the stream has not two"
        rarest = int(min((labels == 0).sum(), (labels == 1).sum()))
    else:
        rarest = int(np.unique(labels, return_counts=True)[1].min())
    if rarest < ENOUGH_OF_A_CLASS:
        return f"its test needs {ENOUGH_OF_A_CLASS} records of each class, one has {rarest}"
    return None


class TooFew(NamedTuple):
    """Why no challenger can pass with so few records: rare losses would go unseen."""

    why: str
    needed: int
    """Records, with the classes as they are, that would be enough."""


def too_few(metric: Metric, labels: NDArray[np.int64], *, margin: float, alpha: float) -> TooFew | None:
    """Why no challenger can pass with these records; None: one can."""
    classes, counts = np.unique(labels, return_counts=True)
    least, least_of_class = least_records(metric, margin, alpha, classes=len(classes))
    rarest = int(counts.min())
    needed = max(least, ceil(len(labels) * least_of_class / rarest))
    if len(labels) < least:
        return TooFew(f"{least} records would show rare losses, these are {len(labels)}", needed)
    if rarest < least_of_class:
        why = f"{least_of_class} records of each class would show rare losses, one has {rarest}"
        return TooFew(why, needed)
    return None


def calibration_error(right: NDArray[np.bool_], details: Details) -> float:
    """Expected calibration error over equal bins of confidence: a share, biased upwards, to report only.

    Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI
    2015.
    """
    confidence = np.asarray(details.confidence, dtype=np.float64)
    bins = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


def gap_lower(right: tuple[int, int], n: tuple[int, int], *, alpha: float) -> float:
    """One-sided lower limit of the difference of two accuracies on different records.

    Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17:873 (1998), method 10: by Wilson's limits.
    """
    first, second = right[0] / n[0], right[1] / n[1]
    low, high = _wilson(right[0], n[0], alpha=alpha)[0], _wilson(right[1], n[1], alpha=alpha)[1]
    return float(first - second - np.hypot(first - low, high - second))


def _wilson(right: int, n: int, *, alpha: float) -> tuple[float, float]:
    z = float(stats.norm.isf(alpha))
    middle = (right + z**2 / 2) / (n + z**2)
    reach = z / (n + z**2) * (right * (n - right) / n + z**2 / 4) ** 0.5
    return middle - reach, middle + reach


def median_limits(values: Floats, *, alpha: float) -> tuple[float, float] | None:
    """One-sided lower and upper limit of the true median, each exact at alpha; None: too few values.

    By order statistics, as in the sign test: whatever the distribution, the j-th of n values lies below the
    median with a binomial probability.
    """
    rising, n = np.sort(values), len(values)
    below, cut = 0.0, -1
    for j in range(n):
        below += comb(n, j) / 2**n
        if below > alpha:
            break
        cut = j
    if cut < 0:
        return None
    return float(rising[cut]), float(rising[n - 1 - cut])
