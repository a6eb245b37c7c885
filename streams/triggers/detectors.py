"""Sequential detectors of a rise in a known error rate, on a stream of right (0) and wrong (1) answers.

Both are given the rate that is still acceptable, and so need fewer records than detectors that estimate it.
Both are set up by the average run length: the average number of records to a false alarm at that rate.
Their arithmetic is the same however the answers are chunked, to the last bit, and their state is JSON-able.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_banded

LOWEST_RATE, HIGHEST_RATE = 0.005, 0.95
"""An acceptable error rate outside of these is moved to the nearest of them."""
ALTERNATIVES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Increases that the e-detector bets on, as shares of what remains up to an error rate of 1."""
FINEST_STEP = 60
"""The CUSUM's smaller step is at most this many of its units."""


class Detector(Protocol):
    """Follows the answers from a start to the alarm."""

    @property
    def statistic(self) -> float:
        """The evidence so far."""
        ...

    @property
    def threshold(self) -> float:
        """The evidence that makes an alarm."""
        ...

    def see(self, wrong: NDArray[np.bool_]) -> int | None:
        """The index in `wrong` (n,) of the answer that makes the alarm; None when there is none.

        Answers after that index are not taken in.
        """
        ...

    def state(self) -> Mapping[str, Any]:
        """JSON-able; `from_state` goes on from it."""
        ...


@dataclass(frozen=True)
class CusumPlan:
    """A Bernoulli CUSUM on whole numbers (after Reynolds and Stoumbos 1999)."""

    acceptable: float
    """Error rate at which an alarm is false."""
    up: int
    """Added for a wrong answer."""
    down: int
    """Taken off for a right one; the sum never falls below 0."""
    threshold: int
    run_length: float
    """Exact average number of records to an alarm at the acceptable rate."""


class Cusum:
    """One-sided CUSUM: the likelihood ratio of a risen error rate, since the best moment to count from."""

    def __init__(self, plan: CusumPlan, value: int = 0) -> None:
        self.plan = plan
        self._value = value

    @classmethod
    def designed(cls, acceptable: float, *, increase: float, run_length: float) -> Self:
        """One that finds a rise by `increase` soonest, and has this average run length at `acceptable`."""
        return cls(cusum_plan(acceptable, increase, run_length))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The detector as it was."""
        return cls(CusumPlan(**state["plan"]), state["value"])

    @property
    def statistic(self) -> float:
        """See `Detector`."""
        return float(self._value)

    @property
    def threshold(self) -> float:
        """See `Detector`."""
        return float(self.plan.threshold)

    def see(self, wrong: NDArray[np.bool_]) -> int | None:
        """See `Detector`."""
        if not len(wrong):
            return None
        sums = self._value + np.cumsum(np.where(wrong, self.plan.up, -self.plan.down))
        values = sums - np.minimum(np.minimum.accumulate(sums), 0)
        over = values >= self.plan.threshold
        index = int(over.argmax())
        if over[index]:
            self._value = int(values[index])
            return index
        self._value = int(values[-1])
        return None

    def state(self) -> Mapping[str, Any]:
        """See `Detector`."""
        return {"plan": dict(vars(self.plan)), "value": self._value}


class EDetector:
    """Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo 2022), a mixture over several sizes of rise.

    Its average run length is guaranteed without a model, as long as no answer is wrong with more than the
    acceptable rate, given those before it. Errors that come in bursts break that, and alarm more often.
    """

    def __init__(
        self, acceptable: float, *, run_length: float, values: Sequence[float] | None = None
    ) -> None:
        self._acceptable = bounded_rate(acceptable)
        self._run_length = float(run_length)
        rates = [self._acceptable + share * (1.0 - self._acceptable) for share in ALTERNATIVES]
        self._for_wrong = [rate / self._acceptable for rate in rates]
        self._for_right = [(1.0 - rate) / (1.0 - self._acceptable) for rate in rates]
        self._values = [0.0] * len(rates) if values is None else list(values)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The detector as it was."""
        return cls(state["acceptable"], run_length=state["run_length"], values=state["values"])

    @property
    def statistic(self) -> float:
        """See `Detector`."""
        return sum(self._values) / len(self._values)

    @property
    def threshold(self) -> float:
        """See `Detector`."""
        return self._run_length

    def see(self, wrong: NDArray[np.bool_]) -> int | None:
        """See `Detector`."""
        values, for_wrong, for_right = self._values, self._for_wrong, self._for_right
        limit = self._run_length * len(values)
        # A plain loop: five products a record are too few for numpy, and blocks would change the rounding.
        for index, is_wrong in enumerate(wrong.tolist()):
            factors = for_wrong if is_wrong else for_right
            values = [(value + 1.0) * factor for value, factor in zip(values, factors, strict=True)]
            if is_wrong and sum(values) >= limit:
                self._values = values
                return index
        self._values = values
        return None

    def state(self) -> Mapping[str, Any]:
        """See `Detector`."""
        return {
            "acceptable": self._acceptable,
            "run_length": self._run_length,
            "values": list(self._values),
        }


def bounded_rate(rate: float) -> float:
    """An acceptable error rate that the detectors can work with."""
    return min(max(rate, LOWEST_RATE), HIGHEST_RATE)


@lru_cache(maxsize=64)
def cusum_plan(acceptable: float, increase: float, run_length: float) -> CusumPlan:
    """The one with the smallest threshold whose exact average run length is at least `run_length`."""
    rate = bounded_rate(acceptable)
    up, down = _steps(rate, min(rate + increase, (1.0 + rate) / 2))
    low, high = 0, up
    while average_run_length(rate, up=up, down=down, threshold=high) < run_length:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if average_run_length(rate, up=up, down=down, threshold=middle) < run_length:
            low = middle
        else:
            high = middle
    return CusumPlan(rate, up, down, high, average_run_length(rate, up=up, down=down, threshold=high))


def average_run_length(rate: float, *, up: int, down: int, threshold: int) -> float:
    """Exact average number of answers from 0 to the threshold, when each is wrong with this rate.

    The sum is a Markov chain on 0 .. threshold - 1. With E its expected times to the alarm,
    E[i] = 1 + rate E[i + up] + (1 - rate) E[max(i - down, 0)]: a banded system of equations.
    """
    above = min(up, threshold - 1)
    below = min(down, threshold - 1)
    bands = np.zeros((above + below + 1, threshold))
    bands[above] = 1.0
    states = np.arange(threshold)
    for targets, chance in ((states + up, rate), (np.maximum(states - down, 0), 1.0 - rate)):
        inside = targets < threshold
        np.subtract.at(bands, (above + states[inside] - targets[inside], targets[inside]), chance)
    return float(solve_banded((below, above), bands, np.ones(threshold))[0])


def _steps(acceptable: float, risen: float) -> tuple[int, int]:
    """The log likelihood ratios of a wrong and of a right answer, as whole numbers in nearly that ratio."""
    for_wrong = np.log(risen / acceptable)
    for_right = np.log((1.0 - acceptable) / (1.0 - risen))
    smaller = min(for_wrong, for_right)
    # Take the first unit that meets the ratio well, not the finest: it keeps the chain short.
    for step in range(1, FINEST_STEP + 1):
        up, down = (round(part / smaller * step) for part in (for_wrong, for_right))
        if abs(down / (up + down) - for_right / (for_wrong + for_right)) < 0.05 * (risen - acceptable):
            break
    return up, down
