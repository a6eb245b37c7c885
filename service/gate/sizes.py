"""How many records a margin takes: a few of `service.gate.stats`' formulas, without scipy.

The API answers with these numbers, and loads scipy only when a plan is asked for: that takes a second.
"""

from math import ceil, inf, pi, sqrt
from statistics import NormalDist

_NORMAL = NormalDist()


def spent_at_first_try(alpha: float) -> float:
    """What the first try of an update may spend of `alpha`: `stats.spent(alpha, 1)`."""
    return 6 * alpha / pi**2


def floor_records(margin: float, alpha: float) -> int:
    """The fewest records with which anything can pass: `stats.floor_n`."""
    slope = -_NORMAL.inv_cdf(alpha) * sqrt(margin * (1 - margin))
    root = (slope + sqrt(slope**2 + 2 * margin)) / (2 * margin)
    return ceil(root**2 * (1 - 1e-12))


def needed_records(margin: float, alpha: float, *, churn: float, power: float) -> int:
    """Records with which an update that lost nothing passes with chance `power`: `stats.needed_n`."""
    spread = -_NORMAL.inv_cdf(alpha) * sqrt(churn + margin) + _NORMAL.inv_cdf(power) * sqrt(churn)
    return max(ceil((spread / margin) ** 2), floor_records(margin, alpha))


def settled_margin(records: int, alpha: float, *, churn: float, power: float) -> float:
    """The margin that so many records settle: `stats.settled_margin`; infinite where there are none."""
    if records <= 0:
        return inf
    risk, reach = -_NORMAL.inv_cdf(alpha), _NORMAL.inv_cdf(power) * sqrt(churn)
    linear = 2 * sqrt(records) * reach + risk**2
    constant = reach**2 - risk**2 * churn
    return (linear + sqrt(max(linear**2 - 4 * records * constant, 0.0))) / (2 * records)
