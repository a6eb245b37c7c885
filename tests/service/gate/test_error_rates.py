"""How often a bad challenger is promoted and a good one is not: exact sums, and draws through `decide`."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from service.gate import stats
from service.gate.base import Evidence, GateConfig
from service.gate.decide import decide
from service.gate.simulation.rates import Holdout, promote_rates, rates_of_many
from tests.support.gate_parts import CLEAN, CONFIG, drawn, of_guard, paired

NEW = (paired(600, gained=400, experience=90),)
MIXED = {
    "one": [300],
    "few, all small": [40, 90, 60, 100],
    "many, all small": [90] * 15,
    "mixed": [5000, 30, 700, 181, 180, 1200, 50, 400],
    "blocks of one": [1300, 9000],
}


@pytest.mark.parametrize("records", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("config", [CONFIG, GateConfig()], ids=["5 points", "2 points"])
@pytest.mark.parametrize("attempt", [None, 1, 3])
def test_a_loss_of_exactly_its_margin_passes_no_finding_more_often_than_alpha(
    records: Sequence[int], config: GateConfig, attempt: int | None
) -> None:
    """Blocks, units and experiences by themselves: one finding that must pass bounds P(promote)."""
    past = tuple(paired(n, experience=each) for each, n in enumerate(records))
    found = of_guard(decide(Evidence(CLEAN, past=past, new=NEW, attempt=attempt), config), "retention")
    allowed = config.alpha if attempt is None else stats.spent(config.alpha, attempt)
    assert {each.numbers["alpha"] for each in found} == {allowed}
    asked = {(int(each.numbers["n"]), float(each.numbers["margin"])) for each in found}
    for n, margin in asked:
        churns = [margin * times for times in (1, 1.02, 1.1, 1.5, 2)]
        churns += [churn for churn in (0.06, 0.12, 0.3, 0.5) if churn > margin]
        rates = promote_rates(n, margin=margin, alpha=allowed, loss=margin, churns=churns)
        assert (rates <= allowed).all(), (n, margin)


def test_every_record_is_held_at_the_margin_and_every_large_experience_by_itself() -> None:
    """No finding at all would bound nothing."""
    for records in MIXED.values():
        past = tuple(paired(n, experience=each) for each, n in enumerate(records))
        found = of_guard(decide(Evidence(CLEAN, past=past, new=NEW), CONFIG), "retention")
        blocks = [each for each in found if each.numbers["margin"] == CONFIG.margin]
        held = sum(int(each.numbers.get("pooled", 1)) for each in blocks)
        assert held == len(records)
        alone = {each.experience for each in found if "pooled" not in each.numbers}
        assert alone >= {each for each, n in enumerate(records) if n >= 181}


SIZES = (50, 100, 150, 180, 202, 203, 219, 220, 221, 300, 450, 800, 1401, 1402, 2500, 3503, 7005, 7006, 9000)
"""Gate records, with both sides of where an experience is first judged by itself, and where blocks close."""


@pytest.mark.parametrize("holdouts", [1, 5, 20])
def test_a_harmless_pipeline_with_more_records_passes_no_less(holdouts: int) -> None:
    """No cliff; rates only saw by what the alarm may cost, and draws by their noise."""
    gate, draws = GateConfig(), 4000
    rates = [
        rates_of_many(
            Holdout(n, 0.06, gate.margin, stats.spent(gate.alpha, 1)), [0.0] * holdouts, draws=draws, seed=1
        )
        for n in SIZES
    ]
    promoted = np.array([each.promote for each in rates])
    falls = np.maximum.accumulate(promoted) - promoted
    assert falls.max() <= gate.alarm_alpha, dict(zip(SIZES, promoted.tolist(), strict=True))
    assert promoted[-1] >= 0.999
    assert max(each.reject for each in rates) <= gate.alarm_alpha + 3 * math.sqrt(0.01 / draws)
    if holdouts == 20:
        assert promoted[SIZES.index(220)] >= 0.99, "where records alone once stopped it"


def test_at_the_planned_churn_a_closing_block_costs_no_more_than_is_planned() -> None:
    gate, draws, holdouts = GateConfig(), 4000, 20
    for n in (1401, 1402, 3503, 7005, 7006):
        holdout = Holdout(n, gate.planned_churn, gate.margin, stats.spent(gate.alpha, 1))
        promoted = rates_of_many(holdout, [0.0] * holdouts, draws=draws, seed=1).promote
        assert promoted >= 0.9975**holdouts - gate.alarm_alpha - 3 * math.sqrt(0.05 / draws), n


def outcomes(losses: Sequence[float], *, repetitions: int, n: int = 600) -> Counter[str]:
    """How often each outcome, where past holdouts truly lost so much each."""
    random = np.random.default_rng(7)
    counts: Counter[str] = Counter()
    for _ in range(repetitions):
        past = tuple(
            drawn(random, n, loss=loss, churn=max(0.06, 1.2 * loss), experience=each)
            for each, loss in enumerate(losses)
        )
        counts[decide(Evidence(CLEAN, past=past, new=NEW), CONFIG).outcome] += 1
    return counts


def at_most(share: float, repetitions: int) -> float:
    """Three standard errors above a share, in counts."""
    return repetitions * (share + 3 * math.sqrt(share * (1 - share) / repetitions))


def test_a_block_that_lost_its_margin_is_promoted_at_most_at_alpha() -> None:
    # Two of 600 records are a block.
    assert outcomes([0, 0, 0.05, 0.05, 0], repetitions=400)["promote"] <= at_most(0.05, 400)
    assert outcomes([0.02, 0.08], repetitions=400)["promote"] <= at_most(0.05, 400)


def test_an_experience_that_lost_its_own_margin_is_promoted_at_most_at_alpha() -> None:
    assert outcomes([0, 0, 0.078, -0.02, 0], repetitions=400)["promote"] <= at_most(0.05, 400)


def test_a_unit_that_lost_its_margin_is_promoted_at_most_at_alpha() -> None:
    # Two of 100 records are a unit at 14.2 points.
    losses = [0.142, 0.142, *[0.0] * 10]
    assert outcomes(losses, repetitions=400, n=100)["promote"] <= at_most(0.05, 400)


def test_small_holdouts_that_lost_the_margin_together_are_promoted_at_most_at_alpha() -> None:
    assert outcomes([0.05] * 4, repetitions=400, n=65)["promote"] <= at_most(0.05, 400)
    assert outcomes([0.0] * 4, repetitions=100, n=65)["promote"] >= 70


def test_a_good_challenger_is_promoted_and_a_large_loss_is_rejected() -> None:
    good = outcomes([0.0] * 5, repetitions=150)
    assert good["promote"] >= 0.9 * 150
    assert good["reject"] <= at_most(0.01, 150)
    assert outcomes([0, 0, 0, 0, 0.15], repetitions=100)["reject"] >= 99


def test_the_alarm_rejects_what_lost_nothing_at_most_at_its_alpha() -> None:
    for n, holdouts in ((100, 12), (600, 5)):
        assert outcomes([0.0] * holdouts, repetitions=400, n=n)["reject"] <= at_most(0.01, 400)


def test_small_new_experiences_that_lost_nothing_are_learnt() -> None:
    random = np.random.default_rng(3)
    past = tuple(paired(600, lost=6, gained=6, experience=each) for each in range(4))
    answers = [
        decide(
            replace(
                Evidence(CLEAN, past=past),
                new=(drawn(random, n, loss=0.0, churn=0.06, experience=9),),
            ),
            CONFIG,
        ).outcome
        for n in (30, 60, 150, 400)
        for _ in range(25)
    ]
    assert answers.count("promote") >= 95
