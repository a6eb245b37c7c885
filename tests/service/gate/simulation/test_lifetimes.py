"""Whole lifetimes: what updates lose in all, with the budget and without; a learner that follows audits."""

from dataclasses import replace

import numpy as np
import pytest

from service.gate import stats
from service.gate.base import GateConfig
from service.gate.guards.budget import records_alone, records_together
from service.gate.simulation.lifetimes import Lifetime, audited_together, simulate
from service.gate.simulation.rule import Looks, audited, retained

LIFETIME = Lifetime(
    updates=50, loss=0.004, churn=0.03, gate=1500, audit=3500, margin=0.02, budget=0.05, alpha=0.05
)
SEVERAL = replace(LIFETIME, holdouts=5, audit=1300)
"""Five parts that are large enough together only."""


@pytest.mark.parametrize("lifetime", [LIFETIME, SEVERAL])
def test_the_budget_holds_over_whole_lifetimes_and_nothing_else_does(lifetime: Lifetime) -> None:
    kept = simulate(lifetime, lifetimes=300, seed=0)
    beyond, limit = kept.beyond(0.05)
    assert beyond <= limit <= 0.05
    unwatched = simulate(replace(lifetime, budget=None), lifetimes=300, seed=0)
    assert unwatched.beyond(0.05)[0] > 0.95
    assert not unwatched.frozen.any()
    threshold = simulate(replace(lifetime, budget=None, rule="threshold"), lifetimes=300, seed=0)
    assert threshold.beyond(0.05)[0] > 0.95
    np.testing.assert_allclose(kept.lost, 0.004 * kept.promotions)


def test_harmless_lifetimes_are_hardly_ever_frozen() -> None:
    for lifetime in (LIFETIME, SEVERAL, replace(LIFETIME, audit=300), replace(LIFETIME, audit=1500)):
        harmless = simulate(replace(lifetime, loss=0.0), lifetimes=300, seed=0)
        assert harmless.frozen.mean() <= 0.03
        assert harmless.promotions.mean() >= 49


@pytest.mark.parametrize("lifetime", [replace(LIFETIME, gate=7100), replace(SEVERAL, gate=1500)])
@pytest.mark.parametrize(
    ("loss", "climbing"), [(0.001, False), (0.002, False), (0.004, False), (0.001, True), (0.01, True)]
)
def test_the_budget_holds_over_500_updates_whose_freezes_are_all_lifted(
    lifetime: Lifetime, loss: float, climbing: bool
) -> None:
    """Also with a learner that loses more after each promotion, and less after each stop."""
    endless = replace(
        lifetime,
        updates=500,
        loss=loss,
        climbing=climbing,
        lifted=True,
        step_alpha=stats.spent(lifetime.alpha, 1),
    )
    seen = simulate(endless, lifetimes=20, seed=0)
    # At most one of twenty is 5 %.
    assert int((seen.lost >= 0.05 - 1e-12).sum()) <= 1
    assert seen.failures.mean() > 100
    assert (seen.promotions >= 1).all()


def test_lifted_freezes_count_as_failures_and_the_lifetime_goes_on() -> None:
    stopped = simulate(LIFETIME, lifetimes=100, seed=1)
    lifted = simulate(replace(LIFETIME, lifted=True), lifetimes=100, seed=1)
    assert stopped.failures.max() == 1
    assert stopped.frozen.tolist() == (stopped.failures > 0).tolist()
    assert lifted.failures.mean() > 10
    assert lifted.promotions.mean() >= stopped.promotions.mean()


def test_more_loss_freezes_more_lifetimes() -> None:
    frozen = [
        simulate(replace(LIFETIME, loss=loss, updates=12), lifetimes=400, seed=3).frozen.mean()
        for loss in (-0.002, 0.0, 0.002, 0.004, 0.006)
    ]
    assert frozen == sorted(frozen)
    assert frozen[0] < 0.02 < 0.9 < frozen[-1]


def test_more_sealed_records_let_a_harmless_lifetime_pass_no_less() -> None:
    promoted = [
        simulate(replace(LIFETIME, loss=0.0, audit=audit), lifetimes=400, seed=3).promotions.mean()
        for audit in (300, 1000, 2000, 3200, 3201, 4000, 8000)
    ]
    # Of 50 updates, by what the first looks at the budget itself may cost.
    assert min(promoted) >= 49


def test_sealed_records_that_are_too_few_stop_only_what_they_prove() -> None:
    few = replace(LIFETIME, audit=300, updates=50)
    assert simulate(replace(few, loss=0.0), lifetimes=300, seed=3).frozen.mean() <= 0.05
    lossy = simulate(replace(few, margin=0.2, loss=0.01), lifetimes=300, seed=3)
    assert lossy.frozen.mean() == 1.0
    assert lossy.lost.max() <= 0.15, "the widest margin of one by itself"


def test_how_many_are_audited_together() -> None:
    alone, together = records_alone(0.05, 0.05), records_together(0.05, 0.05, 50)
    assert audited_together(replace(LIFETIME, budget=None)) == 0
    assert audited_together(replace(LIFETIME, audit=alone)) == 1
    assert audited_together(replace(LIFETIME, audit=alone - 1)) == 0
    assert audited_together(replace(LIFETIME, audit=together // 4 + 1, holdouts=4)) == 4
    assert audited_together(replace(LIFETIME, audit=together // 4 + 1, holdouts=3)) == 0


def test_a_lifetime_is_the_markov_chain_of_its_single_records() -> None:
    """Counts against bits: the same promotions and answers, when every record is flipped by itself."""
    lifetime = replace(
        LIFETIME, gate=300, audit=1200, updates=4, margin=0.05, budget=0.1, loss=0.02, churn=0.06
    )
    config = GateConfig(margin=0.05, budget=0.1)
    many = 2000
    counted = simulate(lifetime, lifetimes=many, seed=5)
    random = np.random.default_rng(6)
    promotions = np.zeros(many, dtype=np.int64)
    bits, sealed = random.random((many, 300)) < 0.9, random.random((many, 1200)) < 0.9
    gate_anchor, anchor, frozen = bits.copy(), sealed.copy(), np.zeros(many, dtype=np.bool_)
    for _ in range(lifetime.updates):
        right = (lifetime.accuracy - lifetime.loss * promotions)[:, None]
        p_lost, p_gained = 0.04 / right, 0.02 / (1 - right)
        turned = [
            side ^ (random.random(side.shape) < np.where(side, p_lost, p_gained)) for side in (bits, sealed)
        ]
        lost, gained = ((bits & ~turned[0]).sum(axis=1), (~bits & turned[0]).sum(axis=1))
        steps = retained(lost[:, None], gained[:, None], n=300, config=config, alpha=0.05)[0] & ~frozen
        within = np.zeros(many, dtype=np.bool_)
        for looks in range(lifetime.updates):
            these = promotions == looks
            sides = ((anchor, turned[1]), (gate_anchor, turned[0]))
            (b, c), (gate_b, gate_c) = (
                ((old & ~new)[these].sum(axis=1)[:, None], (~old & new)[these].sum(axis=1)[:, None])
                for old, new in sides
            )
            within[these] = audited(
                b, c, n=1200, config=config, before=Looks(looks), gate=(gate_b, gate_c, 300)
            )
        frozen |= steps & ~within
        steps &= within
        promotions += steps
        bits, sealed = (
            np.where(steps[:, None], new, old) for new, old in zip(turned, (bits, sealed), strict=True)
        )
    noise = 4 * (0.25 / many) ** 0.5
    assert counted.promotions.mean() == pytest.approx(promotions.mean(), abs=4 * noise)
    assert counted.frozen.mean() == pytest.approx(frozen.mean(), abs=2 * noise)
    assert 0.05 < frozen.mean() < 0.95


def test_an_impossible_lifetime_is_refused() -> None:
    impossible = (
        replace(LIFETIME, churn=0.001),
        replace(LIFETIME, accuracy=0.1),
        replace(LIFETIME, accuracy=0.999),
        replace(LIFETIME, loss=0.02, churn=0.05),
    )
    for lifetime in impossible:
        with pytest.raises(ValueError, match=r"flip|accuracy"):
            simulate(lifetime, lifetimes=1, seed=0)
