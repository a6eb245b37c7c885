"""The statistics of the guards: paired tests, limits, sample sizes. Every function takes arrays.

Notation: of `n` holdout records, `lost` turned from right to wrong and `gained` from wrong to right when the
baseline was replaced by the challenger. The loss is `(lost - gained) / n`, a share: 0.02 is two points.
"""

from functools import lru_cache
from math import exp, lgamma, log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import bdtrc, ndtr, ndtri

Floats = NDArray[np.float64]

_HALF_FLIP = 0.5
_NO_VARIANCE = 1e-300
_NEWTON_STEPS = 8
_BISECTIONS = 50
"""Halvings of the interval (-1, 1): the limits are exact to 2e-15."""
_SETTLED = 2e-15
"""A last step of Newton's no longer than this found the limit as exactly."""


def noninferiority_z(lost: ArrayLike, gained: ArrayLike, *, n: ArrayLike, margin: ArrayLike) -> Floats:
    """Score statistic of H0 "the true loss is `margin` or more"; small means non-inferior. NaN where n is 0.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17:891 (1998), with the constrained estimate of Nam,
    Biometrics 53:1422 (1997). The half flip added to `lost` is a continuity correction: without it the exact
    error rate reaches 1.24 alpha where few records flip, with it no case checked
    exceeds alpha, for alpha up to 0.1. Above that a few do: at 0.2, zero flips can pass in fewer records than
    `exact_floor_n`.
    """
    b, c, size, m = (np.asarray(value, dtype=np.float64) for value in (lost, gained, n, margin))
    b = b + _HALF_FLIP
    with np.errstate(divide="ignore", invalid="ignore"):
        q, _, _ = _gains_under_h0(b, c, size, m)
        z = ((b - c) / size - m) / np.sqrt((2 * q + m - m**2) / size)
    return np.where(size > 0, z, np.nan)


def _gains_under_h0(b: Floats, c: Floats, n: Floats, m: Floats) -> tuple[Floats, Floats, Floats]:
    """Nam's constrained share of gains q, the larger root of 2n q^2 + linear q + constant = 0.

    With it the linear coefficient and the root of the discriminant. `b` holds its half flip already.
    """
    linear = -(b + c) + m * (2 * n - b + c)
    root = np.sqrt(linear**2 + 8 * n * c * m * (1 - m))
    return (root - linear) / (4 * n), linear, root


def noninferiority_p(lost: ArrayLike, gained: ArrayLike, *, n: ArrayLike, margin: ArrayLike) -> Floats:
    """One-sided p-value of `noninferiority_z`: at most alpha lets the challenger pass. NaN where n is 0."""
    return np.asarray(ndtr(noninferiority_z(lost, gained, n=n, margin=margin)), dtype=np.float64)


def loss_limits(lost: ArrayLike, gained: ArrayLike, *, n: ArrayLike, alpha: float) -> tuple[Floats, Floats]:
    """One-sided limits of the true loss, lower and upper, each at alpha; NaN where n is 0.

    The upper one is the smallest margin at which the challenger would pass: it inverts `noninferiority_z`, as
    Tango (1998) does. The lower one is the upper limit of the gain, with its sign turned. Newton's method
    settles nearly all at once, and bisection what it does not.
    """
    flips = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (lost, gained, n)))
    b, c, size = (np.atleast_1d(each) for each in flips)
    # The loss and the gain at once: for few holdouts the calls take longer than the numbers.
    worse, better, size = np.stack((b, c)), np.stack((c, b)), np.stack((size, size))
    critical = float(ndtri(alpha))
    limit, settled = _limit_by_newton(worse + _HALF_FLIP, better, size, critical)
    if not settled.all():
        open_ = ~settled
        limit[open_] = _limit_by_bisection(worse[open_], better[open_], size[open_], critical)
    upper, gain_upper = np.where(size > 0, limit, np.nan)
    return -gain_upper.reshape(flips[0].shape), upper.reshape(flips[0].shape)


def _limit_by_newton(b: Floats, c: Floats, n: Floats, critical: float) -> tuple[Floats, NDArray[np.bool_]]:
    """The margin m at which (b - c)/n - m = critical * sd(m), and where it was found."""
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = (b - c) / n
        m = loss - critical * np.sqrt(b + c + critical**2) / n
        settled = np.zeros(m.shape, dtype=np.bool_)
        slope_linear = 2 * n - b + c
        for _ in range(_NEWTON_STEPS):
            q, linear, root = _gains_under_h0(b, c, n, m)
            slope_q = ((linear * slope_linear + 4 * n * c * (1 - 2 * m)) / root - slope_linear) / (4 * n)
            sd = np.sqrt((2 * q + m - m**2) / n)
            slope = 1 + critical * (2 * slope_q + 1 - 2 * m) / (2 * n * sd)
            step = (loss - m - critical * sd) / slope
            m = m + step
            settled = np.abs(step) <= _SETTLED
            if settled.all():
                break
        return m, settled & (np.abs(m) < 1)


def _limit_by_bisection(b: Floats, c: Floats, n: Floats, critical: float) -> Floats:
    low, high = np.full(b.shape, -1.0), np.ones(b.shape)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        passes = noninferiority_z(b, c, n=n, margin=middle) <= critical
        low, high = np.where(passes, low, middle), np.where(passes, middle, high)
    return high


def mcnemar_drop_p(lost: ArrayLike, gained: ArrayLike) -> Floats:
    """Exact one-sided p-value of H0 "nothing was lost": P(at least `lost` of the flips were losses).

    McNemar, Psychometrika 12:153 (1947), in its exact binomial form. 1 where nothing flipped.
    """
    b, c = np.asarray(lost, dtype=np.int64), np.asarray(gained, dtype=np.int64)
    return np.asarray(bdtrc(b - 1, b + c, 0.5), dtype=np.float64)


def mcnemar_gain_p(lost: ArrayLike, gained: ArrayLike) -> Floats:
    """Exact one-sided p-value of H0 "nothing was gained" (McNemar 1947, binomial form)."""
    return mcnemar_drop_p(gained, lost)


def holm(p_values: ArrayLike) -> Floats:
    """Adjusted p-values: at alpha, P(any false alarm among them) <= alpha, however they depend on each other.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics
    6:65 (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def needed_n(
    margin: ArrayLike,
    alpha: float,
    *,
    churn: ArrayLike,
    power: float = 0.8,
    true_loss: ArrayLike = 0.0,
) -> NDArray[np.int64]:
    """Records that let a challenger which truly lost `true_loss` pass with probability `power`.

    The normal approximation of Nam (1997), with `churn` = P(a record flips) under the alternative and
    churn + margin bounding it under H0. Against exact power it asks for 5 to 15 % too many, the safe side.
    """
    m, psi = np.asarray(margin, dtype=np.float64), np.asarray(churn, dtype=np.float64)
    spread = -ndtri(alpha) * np.sqrt(psi + m) + ndtri(power) * np.sqrt(psi)
    records = np.ceil((spread / (m - np.asarray(true_loss))) ** 2).astype(np.int64)
    return np.asarray(np.maximum(records, floor_n(m, alpha)), dtype=np.int64)


def settled_margin(n: ArrayLike, alpha: ArrayLike, *, churn: ArrayLike, power: float) -> Floats:
    """The margin at which `n` records let a challenger that lost nothing pass with probability `power`.

    The inverse of `needed_n`: sqrt(n) m = z(alpha) sqrt(churn + m) + z(power) sqrt(churn), solved for m.
    Infinite where n is 0.
    """
    size, psi = np.asarray(n, dtype=np.float64), np.asarray(churn, dtype=np.float64)
    risk, reach = -ndtri(np.asarray(alpha, dtype=np.float64)), ndtri(power) * np.sqrt(psi)
    linear = 2 * np.sqrt(size) * reach + risk**2
    constant = reach**2 - risk**2 * psi
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = (linear + np.sqrt(np.maximum(linear**2 - 4 * size * constant, 0.0))) / (2 * size)
    return np.asarray(np.where(size > 0, margin, np.inf), dtype=np.float64)


def needed_n_difference(
    difference: ArrayLike, alpha: float, *, churn: ArrayLike, power: float = 0.8
) -> NDArray[np.int64]:
    """Records that let McNemar's test see a true loss (or gain) of `difference` with probability `power`.

    Connett, Smith and McHugh, "Sample size and power for pair-matched case-control studies", Statistics in
    Medicine 6:53 (1987).
    """
    d, psi = np.abs(np.asarray(difference, dtype=np.float64)), np.asarray(churn, dtype=np.float64)
    left_over = np.sqrt(np.maximum(psi - d**2, 0.0))
    spread = -ndtri(alpha) * np.sqrt(psi) + ndtri(power) * left_over
    return np.asarray(np.ceil((spread / d) ** 2), dtype=np.int64)


_MOST_TRIES = 10**6


def spent(alpha: float, attempt: int) -> float:
    """What the attempt-th try (1, 2, ...) may spend of `alpha`, so that all tries together spend no more.

    The series 6 / (pi^2 t^2) sums to 1 over all t: however often one is tried again, the chance that any try
    passes wrongly is at most alpha (the union bound). Tries after the millionth spend as little as that one.
    """
    return 6 * alpha / (np.pi * min(attempt, _MOST_TRIES)) ** 2


_FIRST_LOOKS = 20
"""The first so many looks spend about alike; later ones ever less."""


@lru_cache(maxsize=4096)
def look_share(look: int, failures: int = 0, runs: int = 0) -> float:
    """Share of alpha that the look-th audit may spend, when so many before it did not pass, in so many runs.

    What an audit reveals is one bit, and a challenger may follow from all bits before it. Each of these
    transcripts, with f failures in r runs, spends
    w(look) 2^-(r + 1) u(f - r) / C(look - 1, r) / C(f - 1, r - 1):
    C(look - 1, r) is the number of ways in which the runs can begin, C(f - 1, r - 1) that in which their
    lengths add up to f, and u(e) = 1 / ((e + 1) (e + 2)) sums to 1 over e = 0, 1 ... So over all transcripts
    and all looks, without end, no more than all of alpha is spent (the union bound). A long run of failures
    costs little more than a short one: a champion near the limit fails several looks in a row, and must be
    able to pass again. The weights w(k) = ln c (1 / ln(c + k - 1) - 1 / ln(c + k)) sum to 1 over all k.
    """
    runs = min(runs, look - 1)
    begun = _FIRST_LOOKS + look
    weight = log(_FIRST_LOOKS) * (1 / log(begun - 1) - 1 / log(begun))
    share = weight * exp(-_log_ways(look - 1, runs) - (runs + 1) * log(2))
    if not runs:
        return share
    more = max(failures - runs, 0)
    return share / ((more + 1) * (more + 2)) * exp(-_log_ways(more + runs - 1, runs - 1))


def _log_ways(many: int, chosen: int) -> float:
    """ln C(many, chosen)."""
    return lgamma(many + 1) - lgamma(chosen + 1) - lgamma(many - chosen + 1)


def spent_at_first(alpha: float, attempt: int | None) -> float:
    """What the first try could spend, of which this one may spend `alpha`; None: there is one try only."""
    return alpha * min(max(attempt or 1, 1), _MOST_TRIES) ** 2


def shared_out(alpha: float, attempt: int | None) -> float:
    """What all tries may spend together, where this one may spend `alpha`; None: there is one try only."""
    return alpha if attempt is None else alpha / spent(1.0, max(attempt, 1))


def floor_n(margin: ArrayLike, alpha: float) -> NDArray[np.int64]:
    """The smallest n at which zero flips pass `noninferiority_z`; with fewer records nothing can.

    With zero flips the statistic is (1/2n - m) / sqrt(m (1 - m) / n), a quadratic in sqrt(n).
    """
    m = np.asarray(margin, dtype=np.float64)
    slope = -ndtri(alpha) * np.sqrt(m * (1 - m))
    root = (slope + np.sqrt(slope**2 + 2 * m)) / (2 * m)
    # A hair below the root, so that a product that is whole but for rounding does not ask for one more.
    return np.asarray(np.ceil(root**2 * (1 - 1e-12)), dtype=np.int64)


def exact_floor_n(margin: ArrayLike, alpha: float) -> NDArray[np.int64]:
    """The n below which no exact procedure can pass: zero losses in n have probability (1 - m)^n > alpha."""
    return np.asarray(
        np.ceil(np.log(alpha) / np.log1p(-np.asarray(margin, dtype=np.float64))), dtype=np.int64
    )


def clopper_pearson(right: ArrayLike, n: ArrayLike, *, alpha: float) -> tuple[Floats, Floats]:
    """Lower and upper limit of an accuracy, each one-sided at `alpha`; 0 and 1 where n is 0.

    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26:404 (1934), by beta quantiles.
    """
    k, size = np.asarray(right, dtype=np.float64), np.asarray(n, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        lower = np.where(k > 0, stats.beta.ppf(alpha, k, size - k + 1), 0.0)
        upper = np.where(k < size, stats.beta.isf(alpha, k + 1, size - k), 1.0)
    return np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)


def excess_p(share: ArrayLike, reference: ArrayLike, *, sample: ArrayLike) -> Floats:
    """Exact one-sided binomial p-value of H0 "the true share is at most `reference`"."""
    size, expected = np.asarray(sample), np.asarray(reference, dtype=np.float64)
    seen = np.rint(np.asarray(share, dtype=np.float64) * size)
    return np.asarray(stats.binom.sf(seen - 1, size, expected), dtype=np.float64)


def higher_p(
    share: ArrayLike, reference: ArrayLike, *, sample: ArrayLike, reference_sample: ArrayLike
) -> Floats:
    """One-sided p-value of H0 "the true share is at most that of the reference", both of them estimated.

    The score test of two independent shares, with one pooled share under H0.
    """
    here, there = np.asarray(sample, dtype=np.float64), np.asarray(reference_sample, dtype=np.float64)
    seen, usual = np.asarray(share, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    pooled = (seen * here + usual * there) / (here + there)
    variance = pooled * (1 - pooled) * (1 / here + 1 / there)
    return np.asarray(ndtr((usual - seen) / np.sqrt(np.maximum(variance, _NO_VARIANCE))), dtype=np.float64)
