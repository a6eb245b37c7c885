"""Plans sample sizes: the holdout records that a margin needs, and the margin that given records settle."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

from service.gate import stats
from service.gate.guards.budget import LASTING_POWER, records_alone
from service.gate.simulation.rates import Holdout, promote_rate

_MARGIN_STEP = 0.001


@dataclass(frozen=True)
class Wish:
    """What a pipeline is to promise, and how often a harmless update is to pass without a person."""

    margin: float
    churn: float
    holdouts: int
    alpha: float
    attempt: int
    spending: float
    """What this attempt may spend of alpha (`stats.spent`)."""
    power: float
    """Chance that an update which lost nothing passes on all holdouts, the audit of all among it."""
    gate: float
    """Share of an experience that every update is judged on."""
    audit: float
    """Share that is sealed."""
    budget: float
    updates: int
    """Looks at the budget that are planned."""
    accuracy: float


@dataclass(frozen=True)
class Plan:
    """Records that fulfil a wish."""

    holdout_records: int
    experience_records: int
    audit_records: int
    audit_share: float
    """Share of such experiences that holds so many sealed records."""
    experience_records_for_audit: int
    n: int | None
    settled_margin: float | None
    """What `n` records settle; None: nothing, or nobody asked."""


def plan(wish: Wish, *, n: int | None, progress: Callable[[], None] = lambda: None) -> Plan:
    """What a wish takes, and what margin `n` records would settle; `progress` is called three times.

    Step and audit must both pass. Audits are made with so many sealed records that a harmless champion hardly
    ever fails one; the step is planned for what that leaves of what is wanted.
    """
    audited = max(LASTING_POWER**wish.holdouts, wish.power**0.5)
    each = power_each(wish.power / audited, wish.holdouts)
    records = needed_records(margin=wish.margin, alpha=wish.spending, churn=wish.churn, power=each)
    progress()
    sealed = audit_records(
        budget=wish.budget,
        alpha=wish.alpha,
        churn=wish.churn,
        accuracy=wish.accuracy,
        updates=wish.updates,
        power=power_each(audited, wish.holdouts),
    )
    progress()
    settled = None if n is None else settled_margin(n, alpha=wish.spending, churn=wish.churn, power=each)
    progress()
    experience = experience_records(records, wish.gate)
    return Plan(
        records,
        experience,
        sealed,
        ceil(100 * sealed / experience) / 100,
        experience_records(sealed, wish.audit),
        n,
        settled,
    )


def power_each(wanted: float, holdouts: int) -> float:
    """What each of so many independent holdouts must pass with, so that all do with probability `wanted`."""
    return float(wanted ** (1 / holdouts))


def needed_records(*, margin: float, alpha: float, churn: float, power: float) -> int:
    """Records of one holdout with which, and with any more, an update that lost nothing passes so often.

    By exact rates, which saw up and down a little as records are added; `stats.needed_n` plans the same by an
    approximation that asks for 5 to 15 % more.
    """

    def enough(n: int) -> bool:
        return promote_rate(Holdout(n, churn, margin, alpha), 0.0) >= power

    low = int(stats.floor_n(margin, alpha)) - 1
    high = max(int(stats.needed_n(margin, alpha, churn=churn, power=power)), low + 1)
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    # The rate saws with a period of about one more loss that passes.
    failing = [n for n in range(high, high + ceil(1 / margin) + 1) if not enough(n)]
    return failing[-1] + 1 if failing else high


def settled_margin(n: int, *, alpha: float, churn: float, power: float) -> float | None:
    """The smallest margin, in tenths of a point, that so many records settle; None: they settle none."""
    steps = np.arange(1, round(1 / _MARGIN_STEP))
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        holdout = Holdout(n, churn, float(steps[middle]) * _MARGIN_STEP, alpha)
        low, high = (low, middle) if promote_rate(holdout, 0.0) >= power else (middle + 1, high)
    return round(float(steps[low]) * _MARGIN_STEP, 3) if low < len(steps) else None


def lasting_churn(churn: float, *, accuracy: float, updates: int) -> float:
    """Share of the records that anchor and champion answer differently after so many harmless updates.

    Each record is a Markov chain of right and wrong with the accuracy as its stationary share.
    """
    stays = 1 - churn / 2 / accuracy - churn / 2 / (1 - accuracy)
    return float(2 * accuracy * (1 - accuracy) * (1 - stays**updates))


def audit_records(
    *, budget: float, alpha: float, churn: float, accuracy: float, updates: int, power: float
) -> int:
    """Records of one audit part with which the last of so many looks passes so often after harmless updates.

    Each look may spend alpha / updates. The last look is the hardest, since answers have flipped the longest.
    With fewer than the gate judges alone, it would not be.
    """
    between = lasting_churn(churn, accuracy=accuracy, updates=updates)
    planned = needed_records(margin=budget, alpha=alpha / updates, churn=between, power=power)
    return max(planned, records_alone(budget, alpha / updates))


def experience_records(holdout_records: int, share: float) -> int:
    """Records that an experience must hold, so that its part of this share has so many on average."""
    return ceil(holdout_records / share * (1 - 1e-12))
