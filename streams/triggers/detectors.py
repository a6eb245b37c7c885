"""Sequential detectors of a rise in a known error rate, on a stream of right (0) and wrong (1) answers.

Both are given the rate that is still acceptable, and so need fewer records than detectors that estimate it.
Both are set up by the average run length: the average number of records to a false alarm at that rate. Where
errors come in bursts, both need the block length of the answers (`bursts`) to keep it; 1 is no bursts.
Their arithmetic is the same however the answers are chunked, to the last bit, and their state is JSON-able.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from math import exp, expm1, sqrt
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

LOWEST_RATE, HIGHEST_RATE = 0.005, 0.95
"""An acceptable error rate outside of these is moved to the nearest of them."""
ALTERNATIVES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Increases that the e-detector bets on, as shares of what remains up to an error rate of 1."""
LARGEST = 8192
"""Largest threshold of a CUSUM for bursts whose run length is computed exactly."""
COST = 100_000_000
"""Largest threshold * (up + down) ** 2 of it: the time that the equations take grows so with large steps."""
SOLVED_AT_ONCE = 256
"""Sums whose equations are in memory at once, with those that they change."""
MARGIN = 1.05
"""An extrapolated run length may be too long by this factor."""
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

    def correct(self, block_length: float) -> None:
        """From the next answer on, expect answers of this block length; the evidence so far stays.

        Where less evidence makes an alarm then, it stays in proportion: a correction makes no alarm.
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
    increase: float = 0.0
    declared: float = 0.0
    """With `increase`, what it is designed for; 0 in states of earlier releases, which stay as they are."""
    block_length: float = 1.0
    """Of the answers that the run length holds for."""


class Cusum:
    """One-sided CUSUM: the likelihood ratio of a risen error rate, since the best moment to count from."""

    def __init__(self, plan: CusumPlan, value: int = 0) -> None:
        self.plan = plan
        self._value = value

    @classmethod
    def designed(
        cls, acceptable: float, *, increase: float, run_length: float, block_length: float = 1.0
    ) -> Self:
        """One that finds a rise by `increase` soonest, and has this average run length at `acceptable`."""
        return cls(cusum_plan(acceptable, increase, run_length, block_length))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The detector as it was."""
        return cls(CusumPlan(**state["plan"]), state["value"])

    def correct(self, block_length: float) -> None:
        """See `Detector`: the threshold changes, and where it falls, the sum is scaled down with it.

        Otherwise a sum that was reached under the higher threshold is an alarm at the next answer, a right
        one too. Below the threshold it stays below it: value * new // old, at most new - 1.
        """
        plan = self.plan
        if not plan.declared:
            return
        self.plan = cusum_plan(plan.acceptable, plan.increase, plan.declared, block_length)
        new, old = self.plan.threshold, plan.threshold
        if new < old:
            self._value = min(self._value * new // old, new - 1)

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
    acceptable rate, given those before it. Errors that come in bursts break that. With a block length b, each
    answer bets the b-th root: where answers that are b apart are independent, the product over all of them is
    the geometric mean of b products of independent bets, whose mean is at most 1 (Hoelder's inequality).
    """

    def __init__(
        self,
        acceptable: float,
        *,
        run_length: float,
        block_length: float = 1.0,
        values: Sequence[float] | None = None,
    ) -> None:
        self._acceptable = bounded_rate(acceptable)
        self._run_length = float(run_length)
        self._values = [0.0] * len(ALTERNATIVES) if values is None else list(values)
        self.correct(block_length)

    def correct(self, block_length: float) -> None:
        """From the next answer on, bet as answers of this block length allow."""
        self._block_length = block_length
        rates = [self._acceptable + share * (1.0 - self._acceptable) for share in ALTERNATIVES]
        root = 1.0 / block_length
        self._for_wrong = [(rate / self._acceptable) ** root for rate in rates]
        self._for_right = [((1.0 - rate) / (1.0 - self._acceptable)) ** root for rate in rates]

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The detector as it was."""
        return cls(
            state["acceptable"],
            run_length=state["run_length"],
            # States of earlier releases have none.
            block_length=state.get("block_length", 1.0),
            values=state["values"],
        )

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
            "block_length": self._block_length,
            "values": list(self._values),
        }


def bounded_rate(rate: float) -> float:
    """An acceptable error rate that the detectors can work with."""
    return min(max(rate, LOWEST_RATE), HIGHEST_RATE)


@lru_cache(maxsize=64)
def cusum_plan(acceptable: float, increase: float, run_length: float, block_length: float = 1.0) -> CusumPlan:
    """The one with the smallest threshold whose exact average run length is at least `run_length`.

    The equations are solved for thresholds as large as `COST` allows, and with a block length above 1 up to
    `LARGEST`; above that, the run length is extrapolated.
    """
    rate = bounded_rate(acceptable)
    up, down = _steps(rate, min(rate + increase, (1.0 + rate) / 2))
    affordable = COST // (up + down) ** 2
    # Independent answers have half as many states, of half as many numbers each.
    largest = min(LARGEST, affordable) if block_length > 1.0 else 4 * affordable
    lengths: list[float] = []
    for length in islice(run_lengths(rate, up=up, down=down, block_length=block_length), largest):
        lengths.append(length)
        if length >= run_length:
            return CusumPlan(rate, up, down, len(lengths), length, increase, run_length, block_length)
    growth = _growth(rate, up, down, block_length)
    threshold, estimate = _extrapolated(run_length, growth, lengths)
    return CusumPlan(rate, up, down, threshold, estimate, increase, run_length, block_length)


def average_run_length(
    rate: float, *, up: int, down: int, threshold: int, block_length: float = 1.0
) -> float:
    """Exact average number of answers from 0 to the threshold, when each is wrong with this rate."""
    lengths = run_lengths(rate, up=up, down=down, block_length=block_length)
    return next(islice(lengths, threshold - 1, None))


def run_lengths(rate: float, *, up: int, down: int, block_length: float = 1.0) -> Iterator[float]:
    """The exact average run lengths at the thresholds 1, 2, 3 and so on, without end.

    The sum is a Markov chain on 0 .. threshold - 1. With E its expected times to the alarm,
    E[i] = 1 + rate E[i + up] + (1 - rate) E[max(i - down, 0)]: a banded system of equations.
    With a block length b above 1, the answers are a Markov chain themselves, the one of two states with that
    rate and the autocorrelations ((b - 1) / (b + 1)) ** lag, whose sum gives b, and the states are pairs: the
    sum, and whether the answer before was wrong. E is counted from just after a wrong answer, which is the
    shortest: so a detector starts after its own alarm.

    The equations of a threshold are the first ones of those of every larger one, and so are their factors L
    and U: no rows are exchanged, since the diagonal outweighs the rest of each. So one elimination gives
    E = (the start's row of the inverse of U) * (inverse of L) * ones for one threshold after the other.
    Rounding costs a length of 10^k answers k of the 16 digits.
    """
    pairs = 2 if block_length > 1.0 else 1
    below, above = pairs * (down + 1) - 1, pairs * (up + 1) - 1
    rows = np.zeros((0, below + above + 1))
    left, ones, total, solved = np.zeros(above), np.zeros(0), 0.0, 0
    left[pairs - 1] = 1.0
    change = np.empty((below, above))
    for first in count(0, SOLVED_AT_ONCE):
        fresh = _equations(rate, up, down, block_length, first)
        rows, ones = np.concatenate([rows, fresh]), np.append(ones, np.ones(len(fresh)))
        left = np.append(left, np.zeros(len(fresh)))
        flat, stride, done = rows.reshape(-1), below + above, max(0, len(rows) - below)
        for state in range(done):
            pivot, right = rows[state, below], rows[state, below + 1 :]
            # Row i begins at the column i - below: shifted by one a row, the columns stand below each other.
            start = (state + 1) * (stride + 1) + below - 1
            square = flat[start : start + below * stride].reshape(below, stride)
            factors = square[:, 0] / pivot
            square[:, 1 : above + 1] -= np.multiply.outer(factors, right, out=change)
            ones[state + 1 : state + 1 + below] -= factors * ones[state]
            weight = left[state] / pivot
            left[state + 1 : state + 1 + above] -= weight * right
            total += weight * ones[state]
            solved += 1
            if solved % pairs == 0:
                yield float(total)
        rows, left, ones = rows[done:], left[done:], ones[done:]


def _equations(rate: float, up: int, down: int, block_length: float, first: int) -> NDArray[np.float64]:
    """(pairs * `SOLVED_AT_ONCE`, below + 1 + above) the equations of the sums from `first` on.

    A row has the columns from `below` before the diagonal to `above` after it.
    """
    correlation = (block_length - 1.0) / (block_length + 1.0)
    wrong_after_right = (1.0 - correlation) * rate
    after = (wrong_after_right, correlation + wrong_after_right) if block_length > 1.0 else (rate,)
    pairs = len(after)
    below, above = pairs * (down + 1) - 1, pairs * (up + 1) - 1
    sums = np.arange(first, first + SOLVED_AT_ONCE)
    rows = np.zeros((pairs * len(sums), below + 1 + above))
    rows[:, below] = 1.0
    for before, wrong in enumerate(after):
        states = pairs * sums + before
        for answer, targets, chance in (
            (pairs - 1, sums + up, wrong),
            (0, np.maximum(sums - down, 0), 1.0 - wrong),
        ):
            np.subtract.at(rows, (states - pairs * first, below + pairs * targets + answer - states), chance)
    return rows


def _extrapolated(run_length: float, growth: float, lengths: Sequence[float]) -> tuple[int, float]:
    """The threshold, and its run length, by the last one of those at 1, 2, 3 .. and the one at half of that.

    For a sum in small steps the run length is k (exp(g h) - 1 - g h) at the threshold h. The overshoot of a
    walk with large steps moves h by a constant (Siegmund, "Sequential Analysis" (1985), chapter 10).
    """

    def shape(threshold: float) -> float:
        return expm1(growth * threshold) - growth * threshold

    largest = len(lengths)
    half = largest // 2
    low, high = 0.0, float(largest)
    for _ in range(60):
        shift = (low + high) / 2.0
        if shape(largest + shift) / shape(half + shift) > lengths[-1] / lengths[half - 1]:
            low = shift
        else:
            high = shift
    scale = lengths[-1] / shape(largest + high)
    below, above = largest, 2 * largest
    while scale * shape(above + high) < MARGIN * run_length:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        if scale * shape(middle + high) < MARGIN * run_length:
            below = middle
        else:
            above = middle
    return above, scale * shape(above + high) / MARGIN


def _growth(rate: float, up: int, down: int, block_length: float) -> float:
    """The g at which exp(g * threshold) is how the run length grows.

    It makes 1 the largest eigenvalue of the chain's transitions, each times exp(g * step): below it that
    eigenvalue is less than 1, since the sum falls on average.
    """
    correlation = (block_length - 1.0) / (block_length + 1.0)
    wrong_after_right = (1.0 - correlation) * rate
    wrong_after_wrong = correlation + wrong_after_right

    def largest(growth: float) -> float:
        wrong, right = exp(growth * up), exp(-growth * down)
        trace = wrong_after_wrong * wrong + (1.0 - wrong_after_right) * right
        determinant = correlation * wrong * right
        return (trace + sqrt(max(0.0, trace**2 - 4.0 * determinant))) / 2.0

    low, high = 0.0, 1.0 / up
    while largest(high) < 1.0:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = (low + high) / 2.0
        if largest(middle) < 1.0:
            low = middle
        else:
            high = middle
    return low


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
