"""How often the gate asks a person, or rejects, where nothing was lost.

`python -m tests.bench.gate_questions` runs this alone. Sizes, churns, seeds and goals were fixed before the
first measurement; all cells hold together, at the shipped defaults.
"""

from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from os import cpu_count

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


def run() -> list[Measured]:
    """Two numbers a cell: updates that were asked about, and rejected, of 100."""
    cells = [
        HarmlessLifetime(records, churn, better, UPDATES)
        for better, churn, records in product(KINDS.values(), CHURNS, ASKED)
    ]
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        return [each for found in pool.map(_cell, cells) for each in found]


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
