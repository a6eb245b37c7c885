"""How often the gate asks a person, or rejects, where nothing was lost.

`python -m tests.bench.gate_questions` runs this alone. Sizes, churns, seeds and goals were fixed before the
first measurement; all cells hold together, at the shipped defaults.
"""

from concurrent.futures import Executor, ProcessPoolExecutor
from itertools import combinations, product
from multiprocessing import get_context
from os import cpu_count
from statistics import mean

import numpy as np
from scipy.stats import ttest_ind

from service.gate import stats
from service.gate.base import GateConfig
from service.gate.simulation.questions import HarmlessLifetime, causes_per_100, lifetimes, per_100
from tests.bench.measure import Measured, report

ASKED = {200: 20.0, 500: 10.0, 1_000: 5.0, 2_000: 5.0, 5_000: 5.0, 12_500: 5.0}
"""Records of an experience -> most of 100 harmless updates that a person may be asked about, at 6 % churn."""
CHURNS = {0.06: 1.0, 0.12: 2.0}
"""Churn -> how many times that; updates that are wrongly rejected are allowed the same at each."""
KINDS = {"stationary": 0.0, "new data 5 points better": 0.05}
REJECTED = 2.0
LIFETIMES, UPDATES, SEED = 20, 100, 1509
NO_CLIFF = (200, 350, 500, 700, 876, 884, 1_000, 1_500, 2_000, 3_580, 3_590, 5_000, 12_500)
"""More records must never be asked about more. Among them are 219 and 221 gate records, and 716 and 718
sealed ones: an earlier gate judged experiences by themselves from 220 and 717 on."""
CHANCE = 0.05


def run() -> list[Measured]:
    """Two numbers a cell, updates asked about and rejected of 100; then whether more records ask more."""
    cells = [
        HarmlessLifetime(records, churn, better, UPDATES)
        for better, churn, records in product(KINDS.values(), CHURNS, ASKED)
    ]
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        return [*(each for found in pool.map(_cell, cells) for each in found), _no_cliff(pool)]


def _no_cliff(pool: Executor) -> Measured:
    """Least p-value, Holm-adjusted over all pairs of sizes, of "the larger is not asked about more"."""
    asked = list(pool.map(_asked, NO_CLIFF))
    pairs = list(combinations(range(len(NO_CLIFF)), 2))
    p = [
        ttest_ind(asked[large], asked[small], alternative="greater", equal_var=False).pvalue
        for small, large in pairs
    ]
    adjusted = stats.holm(np.nan_to_num(np.array(p), nan=1.0))
    small, large = pairs[int(adjusted.argmin())]
    name = f"{NO_CLIFF[large]:,} records asked about no more than {NO_CLIFF[small]:,}, the worst of all pairs"
    averages = ", ".join(f"{each:,}: {mean(its):.1f}" for each, its in zip(NO_CLIFF, asked, strict=True))
    return Measured(f"{name} [asked of 100: {averages}]", float(adjusted.min()), "p", CHANCE, ">=")


def _asked(records: int) -> list[int]:
    lifetime = HarmlessLifetime(records, 0.06, 0.0, UPDATES)
    return [each.asked for each in lifetimes(lifetime, GateConfig(), many=LIFETIMES, seed=SEED)]


def _cell(lifetime: HarmlessLifetime) -> list[Measured]:
    found = lifetimes(lifetime, GateConfig(), many=LIFETIMES, seed=SEED)
    kind = next(name for name, better in KINDS.items() if better == lifetime.better)
    name = f"{lifetime.records:,} records, churn {100 * lifetime.churn:.0f} %, {kind}"
    asked, rejected = per_100(found, lambda each: each.asked), per_100(found, lambda each: each.rejected)
    why = ", ".join(f"{cause} {share:.0f}" for cause, share in list(causes_per_100(found).items())[:3])
    return [
        Measured(
            f"asked: {name} [{why}]",
            asked.mean,
            "of 100",
            ASKED[lifetime.records] * CHURNS[lifetime.churn],
            "<=",
            (asked.low, asked.high),
        ),
        Measured(f"rejected: {name}", rejected.mean, "of 100", REJECTED, "<=", (rejected.low, rejected.high)),
    ]


if __name__ == "__main__":
    report("gate questions", run())
