"""How often the retention rule promotes, asks and rejects, before a pipeline goes live.

A holdout of `n` records shows two counts, `lost` and `gained`, which are multinomial: each record turns wrong
with probability (churn + loss) / 2 and right with (churn - loss) / 2. More losses never help, so that for
every count of gains there is a largest count of losses that passes; rates are exact sums over the gains.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions

from service.gate import stats
from service.gate.base import GateConfig
from service.gate.simulation.rule import retained

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

_NEGLIGIBLE = 1e-13
"""Gains beyond these two tails are left out of the sums."""
_CHURNS = (0.04, 0.06, 0.1, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class Holdout:
    """One past holdout, and what the gate asks of it."""

    n: int
    """Records."""
    churn: float
    """Share of the records whose answer flips; a loss beyond it raises it to that loss."""
    margin: float
    alpha: float

    def flips(self, loss: float) -> tuple[float, float]:
        """P(a record turns wrong) and P(it turns right) when `loss` is truly lost."""
        churn = max(self.churn, abs(loss))
        return (churn + loss) / 2, (churn - loss) / 2


@dataclass(frozen=True)
class Rates:
    """Share of each outcome among many updates that truly lost the same; they sum to 1."""

    promote: float
    review: float
    reject: float
    threshold: float
    """The share that "the estimated loss is at most the margin" would have promoted."""


def most_losses(gained: ArrayLike, *, n: int, margin: float, alpha: float) -> Counts:
    """The largest count of losses that passes with so many gains; -1 where not even none does."""
    gains = np.asarray(gained, dtype=np.int64)
    low, high = np.full(gains.shape, -1, dtype=np.int64), n - gains
    while (low < high).any():
        middle = (low + high + 1) // 2
        passes = stats.noninferiority_p(middle, gains, n=n, margin=margin) <= alpha
        low, high = np.where(passes, middle, low), np.where(passes, high, middle - 1)
    return low


def promote_rates(n: int, *, margin: float, alpha: float, loss: float, churns: Sequence[float]) -> Floats:
    """(churns,) the exact probability that a holdout passes when `loss` is truly lost, at each churn."""
    shares = [Holdout(n, churn, margin, alpha).flips(loss) for churn in churns]
    spans = [_gains(n, p_gained) for _, p_gained in shares]
    gains = np.unique(np.concatenate(spans))
    limits = most_losses(gains, n=n, margin=margin, alpha=alpha)
    return np.array(
        [
            _at_most(limits[np.searchsorted(gains, span)], span, n=n, shares=each)
            for each, span in zip(shares, spans, strict=True)
        ]
    )


def worst_false_promotion(
    n: int, *, margin: float, alpha: float, most_churn: float = 1.0
) -> tuple[float, float]:
    """The largest rate at which exactly the margin is lost and passes, and the churn where it is met.

    On a grid of churns from the margin, below which none can be, to `most_churn`; finer where few flip.
    """
    grid = (*(margin * times for times in (1, 1.02, 1.1, 1.25, 1.5, 2, 3)), *_CHURNS)
    churns = sorted({max(min(churn, most_churn), margin) for churn in grid})
    rates = promote_rates(n, margin=margin, alpha=alpha, loss=margin, churns=churns)
    return float(rates.max()), churns[int(rates.argmax())]


def promote_rate(holdout: Holdout, loss: float) -> float:
    """The exact probability that one holdout passes when `loss` is truly lost on it."""
    rates = promote_rates(
        holdout.n, margin=holdout.margin, alpha=holdout.alpha, loss=loss, churns=[holdout.churn]
    )
    return float(rates[0])


def threshold_rate(holdout: Holdout, loss: float) -> float:
    """The exact probability of "the estimated loss is at most the margin" when `loss` is truly lost."""
    shares = holdout.flips(loss)
    gains = _gains(holdout.n, shares[1])
    # A hair above the margin, so that a product that is whole but for rounding is not cut by one.
    limits = np.floor(holdout.margin * holdout.n * (1 + 1e-12) + gains).astype(np.int64)
    return _at_most(limits, gains, n=holdout.n, shares=shares)


def rates_of_one(holdout: Holdout, loss: float) -> Rates:
    """Exact rates of an update with one past holdout."""
    shares = holdout.flips(loss)
    gains = _gains(holdout.n, shares[1])
    passing = most_losses(gains, n=holdout.n, margin=holdout.margin, alpha=holdout.alpha)
    promote = _at_most(passing, gains, n=holdout.n, shares=shares)
    alarming = _fewest_alarming(gains, n=holdout.n, alpha=GateConfig().alarm_alpha)
    settled = np.maximum(passing, alarming - 1)
    review = max(_at_most(settled, gains, n=holdout.n, shares=shares) - promote, 0.0)
    reject = max(1.0 - promote - review, 0.0)
    return Rates(promote, review, reject, threshold_rate(holdout, loss))


def rates_of_many(holdout: Holdout, losses: Sequence[float], *, draws: int, seed: int) -> Rates:
    """Rates of an update with one such holdout for each of `losses`, in blocks and each by itself.

    For one holdout exact sums; for several, from `draws` updates. The threshold is an exact product.
    """
    if len(losses) == 1:
        return rates_of_one(holdout, losses[0])
    kinds = {loss: losses.count(loss) for loss in losses}
    threshold = float(np.prod([threshold_rate(holdout, loss) ** many for loss, many in kinds.items()]))
    return replace(drawn_rates(holdout, losses, draws=draws, seed=seed), threshold=threshold)


def drawn_rates(holdout: Holdout, losses: Sequence[float], *, draws: int, seed: int) -> Rates:
    """As `rates_of_many`, by Monte Carlo alone."""
    random = np.random.default_rng(seed)
    flips = [
        random.multinomial(holdout.n, [p_lost, p_gained, 1 - p_lost - p_gained], draws)
        for p_lost, p_gained in map(holdout.flips, losses)
    ]
    lost, gained = (np.stack([each[:, kind] for each in flips], axis=1) for kind in (0, 1))
    config = GateConfig(margin=holdout.margin, alpha=holdout.alpha)
    promoted, rejected = retained(lost, gained, n=holdout.n, config=config, alpha=holdout.alpha)
    within = (lost - gained <= holdout.margin * holdout.n * (1 + 1e-12)).all(axis=1)
    promote, reject = float(promoted.mean()), float(rejected.mean())
    return Rates(promote, max(1 - promote - reject, 0.0), reject, float(within.mean()))


def _gains(n: int, p_gained: float) -> Counts:
    """The counts of gains that have a probability worth summing, rising."""
    first, last = (
        float(distributions.binom.ppf(tail, n, p_gained)) for tail in (_NEGLIGIBLE, 1 - _NEGLIGIBLE)
    )
    return np.arange(int(max(first, 0)), int(last) + 1)


def _at_most(limits: Counts, gains: Counts, *, n: int, shares: tuple[float, float]) -> float:
    """P(lost <= its limit), summed over the gains."""
    p_lost, p_gained = shares
    left = min(p_lost / (1 - p_gained), 1.0)
    weights = distributions.binom.pmf(gains, n, p_gained)
    return float((weights * distributions.binom.cdf(limits, n - gains, left)).sum())


def _fewest_alarming(gains: Counts, *, n: int, alpha: float) -> Counts:
    """The smallest count of losses that McNemar's test calls a drop; n + 1 where none is."""
    low, high = np.zeros_like(gains), np.full_like(gains, n + 1)
    while (low < high).any():
        middle = (low + high) // 2
        alarms = stats.mcnemar_drop_p(middle, gains) <= alpha
        low, high = np.where(alarms, low, middle + 1), np.where(alarms, middle, high)
    return low
