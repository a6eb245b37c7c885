"""How often detectors alarm by chance where errors come in bursts, and how late they find a rise.

`python -m tests.bench.trigger_bursts` prints the table of docs/reference/triggers.md, in a minute or two.
Rates, lengths, seeds and numbers of records were fixed before the first measurement.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from streams.triggers.bursts import Bursts
from streams.triggers.detectors import Cusum, Detector, EDetector
from tests.support.trigger_parts import in_bursts

RATES, LENGTHS = (0.05, 0.2), (1, 3, 10, 30)
DECLARED, INCREASE, RISE = 10_000, 0.05, 0.10
MEASURED = 30_000
"""Answers from which the block length is measured before."""
RECORDS = {"cusum": 300_000, "e-detector": 100_000}
"""Answers that a detector follows at the accepted rate; a quarter of them without the correction."""
RISES = {"cusum": 40, "e-detector": 16}
CALM, MOST = 2_000, 50_000
"""Answers at the accepted rate before a rise, and the most after it."""
SEED = 2026


@dataclass
class Follower:
    """A detector that goes on after every alarm, corrected by what is measured of bursts, or not at all."""

    kind: str
    rate: float
    bursts: Bursts | None

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        length = (self.bursts.length if self.bursts else None) or 1.0
        self.detector: Detector
        if self.kind == "cusum":
            self.detector = Cusum.designed(
                self.rate, increase=INCREASE, run_length=DECLARED, block_length=length
            )
        else:
            self.detector = EDetector(self.rate, run_length=DECLARED, block_length=length)

    def alarms(self, wrong: NDArray[np.bool_]) -> Iterator[int]:
        """The index of each alarm."""
        start = 0
        while start < len(wrong):
            piece = wrong[start : start + (self.bursts.until_measured if self.bursts else 500)]
            index = self.detector.see(piece)
            seen = piece if index is None else piece[: index + 1]
            if self.bursts and self.bursts.see(seen):
                self.detector.correct(self.bursts.length or 1.0)
            if index is not None:
                yield start + index
                self.restart()
            start += len(seen)


def measured(rate: float, length: float, random: np.random.Generator) -> Bursts:
    bursts = Bursts()
    bursts.follow(1)
    wrong = in_bursts(MEASURED, rate, length, random)
    while len(wrong):
        piece, wrong = np.split(wrong, [bursts.until_measured])
        bursts.see(piece)
    return bursts


def run_length(kind: str, rate: float, length: int, *, corrected: bool) -> float:
    """Answers to a false alarm, on average; infinite where there was none."""
    random = np.random.default_rng([SEED, round(100 * rate), length])
    follower = Follower(kind, rate, measured(rate, length, random) if corrected else None)
    records = RECORDS[kind] if corrected else RECORDS[kind] // 4
    alarms = sum(1 for _ in follower.alarms(in_bursts(records, rate, length, random)))
    return records / alarms if alarms else np.inf


def delay(kind: str, rate: float, length: int, *, corrected: bool) -> float:
    """Median of the answers from a rise to the alarm."""
    random = np.random.default_rng([SEED, 1, round(100 * rate), length])
    found = []
    for _ in range(RISES[kind]):
        follower = Follower(kind, rate, measured(rate, length, random) if corrected else None)
        before = in_bursts(CALM, rate, length, random)
        after = in_bursts(MOST, rate + RISE, length, random)
        late = (index - CALM for index in follower.alarms(np.concatenate([before, after])) if index >= CALM)
        found.append(next(late, MOST) + 1)
    return float(median(found))


def row(rate: float, length: int) -> str:
    bursts = measured(rate, length, np.random.default_rng([SEED, round(100 * rate), length]))
    cells = [f"{100 * rate:.0f} %", str(length), f"{bursts.length or 1.0:.2g}"]
    for kind in RECORDS:
        for corrected in (False, True):
            found = run_length(kind, rate, length, corrected=corrected)
            most = RECORDS[kind] if corrected else RECORDS[kind] // 4
            cells.append(rounded(found) if np.isfinite(found) else f"> {most:,}")
        cells += [f"{delay(kind, rate, length, corrected=each):,.0f}" for each in (False, True)]
    return f"| {' | '.join(cells)} |"


def rounded(number: float) -> str:
    """To two digits."""
    return f"{int(float(f'{number:.1e}')):,}"


if __name__ == "__main__":
    for rate in RATES:
        for length in LENGTHS:
            sys.stdout.write(row(rate, length) + "\n")
            sys.stdout.flush()
