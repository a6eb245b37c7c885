"""How often the gate asks a person about updates that lose nothing, without simulating: from a kept table.

The table (`asked_table`) holds whole lifetimes of `questions`, by preset, churn and records of an experience.
Its own module is data alone, written by `holdfast gate presets --simulate`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from service.gate.base import BUDGET, GateConfig
from service.gate.presets import PRESETS, Preset
from service.gate.simulation import asked_table
from service.gate.simulation.questions import HarmlessLifetime, lifetimes

Floats = NDArray[np.float64]
Bound = Literal["about", "at least", "at most"]

SIZES = (10, 20, 50, 100, 200, 350, 500, 1000, 2000, 5000)
"""Records of an experience that are simulated; between them, rates are interpolated."""
MORE = {500: 2}
"""Size -> times as many lifetimes, where these differ most: audits of a few ask again and again."""
CHURNS = (0.06, 0.12)
GATE, AUDIT = 0.25, 0.2
"""The split that is simulated; for another one, rates follow its gate and its sealed records."""
LEAST_RATIO, MOST_RATIO = 0.5, 2.0
"""Margins up to so many times those of a preset are scaled to it."""


@dataclass(frozen=True)
class Asked:
    """Updates of 100 that lose nothing and are asked about, on average over the first 100 of a pipeline."""

    mean: float
    low: float
    high: float
    """With `low` the 95 % interval of the simulated mean."""
    bound: Bound
    """Whether these settings ask as often, at least as often, or at most as often."""


@dataclass(frozen=True)
class Cell:
    """Simulated lifetimes of one preset, churn and size."""

    asked: tuple[int, ...]
    """Updates that a person was asked about, in each lifetime."""
    budget: tuple[int, ...]
    """Those of them that the budget guard asked about."""


def simulated(preset: Preset, churn: float, records: int, *, many: int, updates: int, seed: int) -> Cell:
    """A cell of the table; lifetime k has the seed `seed` + k."""
    lifetime = HarmlessLifetime(records, churn, updates=updates, gate=GATE, audit=AUDIT)
    found = lifetimes(lifetime, GateConfig(preset=preset), many=many, seed=seed)
    return Cell(tuple(each.asked for each in found), tuple(each.causes[BUDGET] for each in found))


def simulated_table(
    *, many: int, updates: int, seed: int, progress: Callable[[], None] = lambda: None
) -> dict[tuple[Preset, float], dict[int, Cell]]:
    """Every cell: (preset, churn) -> records of an experience -> its lifetimes. Takes minutes."""
    table: dict[tuple[Preset, float], dict[int, Cell]] = {}
    for churn in CHURNS:
        for preset in PRESETS:
            table[preset, churn] = {}
            for size in SIZES:
                lifetimes_of_size = many * MORE.get(size, 1)
                table[preset, churn][size] = simulated(
                    preset, churn, size, many=lifetimes_of_size, updates=updates, seed=seed
                )
                progress()
    return table


SCALED = ("margin", "learning_margin")
"""Half the margin asks as often as a quarter of the records would: records count times its square."""
ADD = (
    "first_update",
    "on_shift",
    "groups",
    "negative_flips",
    "calibration",
    "metrics",
    "robustness",
    "train_gap",
    "latency_ratio",
    "size_ratio",
    "update_seconds",
    "seeds",
)
"""Where these are set, more is asked about than the table says."""
NOT_ASKED = (
    "preset",
    "accept",
    "label_error_excess",
    "anomaly_excess",
    "suspect_excess",
    "planted_excess",
    "shift_alpha",
    "robustness_against",
    "robustness_epsilon",
    "robustness_records",
    "seeds_margin",
    "seeds_disagreement",
)
"""These move no rate of the table: no harmless update is asked about because of them alone."""
KEPT = (
    "small_margin",
    "single_margin",
    "rare_margin",
    "alpha",
    "alarm_alpha",
    "planned_churn",
    "learning_gain",
    "budget",
    "audits",
    "max_holdouts",
    "archive_records",
    "first_gain",
)
"""Where these differ from every preset, the table has no rate."""
LIMITS = ("rare_classes", "holdout_looks", "holdout_records")
"""Each by a rule of its own: `_bound_of_limits`."""


def asked(config: GateConfig, *, gate: int, sealed: int, churn: float) -> Asked | None:
    """How often a person is asked, of a pipeline whose experiences all have so many records; None: not known.

    Between the sizes of the table, rates are interpolated on the logarithm of the records. What retention,
    learning and rare classes ask about follows the gate records, times the square of the margin over that of
    the preset; what the budget asks about follows the sealed records.

    Args:
        config: the gate as declared.
        gate: gate records of an experience; where it has none, that of one is a lower bound.
        sealed: its sealed records; 0: it is never audited.
        churn: share of the answers that each update flips; one of `CHURNS`.
    """
    preset = next((name for name in PRESETS if _alike(config, GateConfig(preset=name))), None)
    limits = _bound_of_limits(config, max(gate, sealed))
    if preset is None or limits is None:
        return None
    base = GateConfig(preset=preset)
    ratios = [getattr(config, name) / getattr(base, name) for name in SCALED]
    if not LEAST_RATIO - 1e-9 <= min(ratios) <= MOST_RATIO + 1e-9:
        return None
    curve = _curve(preset, churn)
    records = max(gate, 1) / GATE * min(ratios) ** 2
    bounds: set[Bound] = {limits, curve.bound(records)}
    if max(ratios) > min(ratios) * (1 + 1e-9):
        bounds.add("at most")
    if any(getattr(config, name) != getattr(base, name) for name in ADD):
        bounds.add("at least")
    bounds.discard("about")
    if len(bounds) > 1:
        return None
    mean, spread = curve.at(records, sealed / AUDIT)
    bound: Bound = bounds.pop() if bounds else "about"
    return Asked(mean, max(mean - spread, 0.0), min(mean + spread, 100.0), bound)


def _alike(config: GateConfig, base: GateConfig) -> bool:
    return all(getattr(config, name) == getattr(base, name) for name in KEPT)


def _bound_of_limits(config: GateConfig, records: int) -> Bound | None:
    """What follows from `LIMITS`, where an experience has at most so many records in one part."""
    usual = GateConfig().holdout_records
    if config.holdout_looks < asked_table.UPDATES or min(records, config.holdout_records) < min(
        records, usual
    ):
        return None
    return "about" if config.rare_classes else "at most"


@dataclass(frozen=True)
class _Curve:
    """The rates of one preset and churn, by the logarithm of an experience's records."""

    sizes: Floats
    others: Floats
    """Updates of 100 that any guard but the budget asks about; never rising."""
    budget: Floats
    spread: Floats
    """Half of the 95 % interval of the mean of both."""

    def bound(self, records: float) -> Bound:
        first, last = self.sizes[0], self.sizes[-1]
        place = log(records)
        return "at least" if place < first - 1e-9 else "at most" if place > last + 1e-9 else "about"

    def at(self, records: float, audited: float) -> tuple[float, float]:
        """The rate and its spread, with so many records to judge by and so many to audit by."""
        place = log(records)
        mean = np.interp(place, self.sizes, self.others)
        if audited > 0:
            mean += np.interp(log(audited), self.sizes, self.budget)
        return min(float(mean), 100.0), float(np.interp(place, self.sizes, self.spread))


@lru_cache(maxsize=16)
def _curve(preset: Preset, churn: float) -> _Curve:
    counted = sorted(asked_table.ASKED[preset, churn].items())
    shares = 100 / asked_table.UPDATES
    total, budget = ([np.array(cell[kind]) * shares for _, cell in counted] for kind in (0, 1))
    others = np.array([(of - part).mean() for of, part in zip(total, budget, strict=True)])
    return _Curve(
        np.log([records for records, _ in counted]),
        _falling(others),
        np.array([part.mean() for part in budget]),
        np.array([_spread(of) for of in total]),
    )


def _spread(shares: Floats) -> float:
    """Half of the 95 % interval of their mean, by Student's t."""
    many = len(shares)
    return float(stdtrit(many - 1, 0.975) * shares.std(ddof=1) / np.sqrt(many))


def _falling(rates: Floats) -> Floats:
    """The nearest rates that never rise (pool adjacent violators): more records never ask more often."""
    pools: list[list[float]] = []
    for rate in rates.tolist():
        pools.append([rate])
        while len(pools) > 1 and np.mean(pools[-2]) < np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return np.array([float(np.mean(pool)) for pool in pools for _ in pool])
