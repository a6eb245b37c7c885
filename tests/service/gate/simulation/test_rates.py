"""Exact rates against an independent oracle and against draws; eroding lifetimes; the commands."""

import json
import math
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from service.commands.gate import gate_plan
from service.errors import HoldfastError
from service.gate import stats
from service.gate.base import GateConfig
from service.gate.simulation import planning
from service.gate.simulation.lifetimes import Lifetime, simulate
from service.gate.simulation.rates import (
    Holdout,
    drawn_rates,
    most_losses,
    promote_rate,
    promote_rates,
    rates_of_many,
    rates_of_one,
    threshold_rate,
    worst_false_promotion,
)
from streams.split import Split
from tests.service.test_cli import refused
from tests.support.commands import holdfast
from tests.support.real_data import DATA

ORACLE: list[dict[str, float]] = json.loads((DATA / "gate_values.json").read_text())[
    "exact_promote_probability"
]
DRAWS = 20_000

LIFETIME = Lifetime(
    updates=50, loss=0.004, churn=0.03, gate=1500, audit=1500, margin=0.02, budget=0.05, alpha=0.05
)


def noise(share: float, draws: int) -> float:
    """Four standard errors of a drawn share."""
    return 4 * math.sqrt(max(share * (1 - share), 1 / draws) / draws)


def test_exact_rates_match_the_oracle() -> None:
    for case in ORACLE:
        holdout = Holdout(int(case["n"]), case["churn"], case["margin"], case["alpha"])
        found = promote_rate(holdout, case["true_drop"])
        assert found == pytest.approx(case["promote_probability"], abs=1e-5), case


@pytest.mark.parametrize(("n", "margin", "alpha"), [(60, 0.05, 0.1), (300, 0.01, 0.05), (1000, 0.02, 0.001)])
def test_the_largest_count_that_passes_is_where_the_test_turns(n: int, margin: float, alpha: float) -> None:
    gained = np.arange(0, n // 2)
    most = most_losses(gained, n=n, margin=margin, alpha=alpha)
    assert (most >= -1).all()
    some = most >= 0
    passing = stats.noninferiority_p(most[some], gained[some], n=n, margin=margin)
    assert (passing <= alpha).all()
    assert (stats.noninferiority_p(most + 1, gained, n=n, margin=margin) > alpha).all()


@pytest.mark.parametrize("loss", [0.0, 0.02, 0.03])
@pytest.mark.parametrize("n", [150, 600])
def test_draws_agree_with_exact_rates_of_one_holdout(n: int, loss: float) -> None:
    holdout = Holdout(n, 0.06, 0.02, 0.05)
    exact, drawn = rates_of_one(holdout, loss), drawn_rates(holdout, [loss], draws=DRAWS, seed=1)
    for name in ("promote", "review", "reject", "threshold"):
        one, other = getattr(exact, name), getattr(drawn, name)
        assert abs(one - other) <= noise(one, DRAWS), name
    assert exact.promote + exact.review + exact.reject == pytest.approx(1)


def test_many_holdouts_are_as_published() -> None:
    """Twenty holdouts of 1,000 records at 3 % churn: .43 promoted, .03 rejected, and .016 with one loss."""
    holdout = Holdout(1000, 0.03, 0.02, 0.05)
    harmless = rates_of_many(holdout, [0.0] * 20, draws=DRAWS, seed=0)
    assert harmless.promote == pytest.approx(0.43, abs=0.01)
    assert harmless.reject == pytest.approx(0.03, abs=0.01)
    assert harmless.review == pytest.approx(0.55, abs=0.02)
    assert rates_of_many(holdout, [0.02, *[0.0] * 19], draws=DRAWS, seed=0).promote < 0.05
    drawn = drawn_rates(holdout, [0.0] * 20, draws=DRAWS, seed=1)
    assert abs(drawn.promote - harmless.promote) <= noise(harmless.promote, DRAWS)
    assert abs(drawn.threshold - harmless.threshold) <= noise(harmless.threshold, DRAWS)


@pytest.mark.parametrize("alpha", [0.1, 0.01, 0.0005])
def test_a_lost_margin_passes_at_most_at_alpha_whatever_the_churn(alpha: float) -> None:
    for n in (20, 133, 361, 1200, 4000):
        for margin in (0.005, 0.02, 0.1):
            churns = [churn for churn in (margin, 1.1 * margin, 2 * margin, 0.1, 0.3, 0.5) if churn >= margin]
            rates = promote_rates(n, margin=margin, alpha=alpha, loss=margin, churns=churns)
            assert rates.shape == (len(churns),)
            assert (rates <= alpha).all(), (n, margin)
            worst, churn = worst_false_promotion(n, margin=margin, alpha=alpha, most_churn=0.5)
            assert rates.max() - 1e-9 <= worst <= alpha
            assert margin <= churn <= 0.5
            # Where nearly all answers flip the continuity correction falls a little short.
            assert worst_false_promotion(n, margin=margin, alpha=alpha)[0] <= 1.15 * alpha


def test_a_threshold_lets_half_of_the_lost_margins_out_whatever_the_size() -> None:
    for n in (300, 1000, 10_000):
        assert 0.5 < threshold_rate(Holdout(n, 0.06, 0.02, 0.05), 0.02) < 0.6


def test_no_churn_at_all_is_a_certain_pass_or_none() -> None:
    floor = int(stats.floor_n(0.02, 0.05))
    assert promote_rate(Holdout(floor, 0.0, 0.02, 0.05), 0.0) == pytest.approx(1)
    assert promote_rate(Holdout(floor - 1, 0.0, 0.02, 0.05), 0.0) == 0
    # A loss beyond the churn raises it: all flips are losses then.
    assert Holdout(100, 0.01, 0.02, 0.05).flips(0.04) == (0.04, 0.0)


def test_the_budget_holds_over_whole_lifetimes_and_nothing_else_does() -> None:
    kept = simulate(LIFETIME, lifetimes=300, seed=0)
    beyond, limit = kept.beyond(0.05)
    assert beyond <= limit <= 0.05
    unwatched = simulate(replace(LIFETIME, budget=None), lifetimes=300, seed=0)
    assert unwatched.beyond(0.05)[0] > 0.99
    assert not unwatched.frozen.any()
    threshold = simulate(replace(LIFETIME, budget=None, rule="threshold"), lifetimes=300, seed=0)
    assert threshold.promotions.mean() >= unwatched.promotions.mean()
    np.testing.assert_allclose(kept.lost, 0.004 * kept.promotions)


def test_lifetimes_are_as_published() -> None:
    """Published: 4.1 promotions and at most 4.4 points with 2,000 and 1,000 records, 5.1 with 1,500 each."""
    few = simulate(replace(LIFETIME, gate=2000, audit=1000), lifetimes=300, seed=0)
    assert few.promotions.mean() == pytest.approx(4.1, abs=0.4)
    assert simulate(LIFETIME, lifetimes=300, seed=0).promotions.mean() == pytest.approx(5.1, abs=0.4)
    harmless = simulate(replace(LIFETIME, loss=0.0), lifetimes=300, seed=0)
    assert harmless.frozen.mean() == pytest.approx(0.5, abs=0.12)


def test_more_loss_freezes_more_lifetimes_and_more_sealed_records_fewer() -> None:
    frozen = [
        simulate(replace(LIFETIME, loss=loss, updates=12), lifetimes=400, seed=3).frozen.mean()
        for loss in (-0.002, 0.0, 0.002, 0.004, 0.006)
    ]
    assert frozen == sorted(frozen)
    assert frozen[0] < frozen[-1] - 0.2
    stopped = [
        simulate(replace(LIFETIME, loss=0.0, audit=audit), lifetimes=400, seed=3).frozen.mean()
        for audit in (1000, 2000, 4000)
    ]
    assert stopped == sorted(stopped, reverse=True)
    alone = replace(LIFETIME, loss=0.001, audit=3500, updates=30)
    two = simulate(replace(alone, holdouts=2), lifetimes=400, seed=3).frozen.mean()
    assert two > simulate(alone, lifetimes=400, seed=3).frozen.mean()
    few = simulate(replace(LIFETIME, loss=0.0, holdouts=3), lifetimes=400, seed=3).frozen.mean()
    assert few < 0.1, "three parts of 1,500 sealed records are audited together"


def test_sealed_records_that_are_too_few_stop_only_what_they_prove() -> None:
    few = replace(LIFETIME, audit=300, updates=50)
    assert simulate(replace(few, loss=0.0), lifetimes=300, seed=3).frozen.mean() <= 0.05
    assert simulate(replace(few, margin=0.2, loss=0.01), lifetimes=300, seed=3).frozen.mean() == 1.0


def test_a_lifetime_is_the_markov_chain_of_its_single_records() -> None:
    """Counts against bits: the same promotions and answers, when every record is flipped by itself."""
    lifetime = replace(
        LIFETIME, gate=300, audit=300, updates=4, margin=0.05, budget=0.2, loss=0.01, churn=0.06
    )
    counted = simulate(lifetime, lifetimes=4000, seed=5)
    random = np.random.default_rng(6)
    promotions = np.zeros(4000, dtype=np.int64)
    bits, sealed = random.random((4000, 300)) < 0.9, random.random((4000, 300)) < 0.9
    anchor, frozen = sealed.copy(), np.zeros(4000, dtype=np.bool_)
    for _ in range(lifetime.updates):
        right = (lifetime.accuracy - lifetime.loss * promotions)[:, None]
        p_lost, p_gained = 0.035 / right, 0.025 / (1 - right)
        turned = [
            side ^ (random.random(side.shape) < np.where(side, p_lost, p_gained)) for side in (bits, sealed)
        ]
        lost, gained = (bits & ~turned[0]).sum(axis=1), (~bits & turned[0]).sum(axis=1)
        steps = (stats.noninferiority_p(lost, gained, n=300, margin=0.05) <= 0.05) & ~frozen
        lost, gained = (anchor & ~turned[1]).sum(axis=1), (~anchor & turned[1]).sum(axis=1)
        within = stats.noninferiority_p(lost, gained, n=300, margin=0.2) <= 0.05 / 4
        frozen |= steps & ~within
        steps &= within
        promotions += steps
        bits, sealed = (
            np.where(steps[:, None], new, old) for new, old in zip(turned, (bits, sealed), strict=True)
        )
    assert counted.promotions.mean() == pytest.approx(promotions.mean(), abs=0.1)
    assert counted.frozen.mean() == pytest.approx(frozen.mean(), abs=noise(0.1, 2000))


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


def test_planned_records_let_a_harmless_update_pass_nine_times_in_ten() -> None:
    each = planning.power_each(0.9, 20)
    n = planning.needed_records(margin=0.02, alpha=0.05, churn=0.06, power=each)
    assert rates_of_many(Holdout(n, 0.06, 0.02, 0.05), [0.0] * 20, draws=100, seed=0).promote >= 0.9
    assert rates_of_many(Holdout(n - 60, 0.06, 0.02, 0.05), [0.0] * 20, draws=100, seed=0).promote < 0.9
    assert n <= int(stats.needed_n(0.02, 0.05, churn=0.06, power=each))
    assert planning.needed_records(margin=0.02, alpha=0.05, churn=0.06, power=0.8) == pytest.approx(
        1025, rel=0.02
    )


def test_a_settled_margin_is_the_smallest_that_the_records_are_enough_for() -> None:
    margin = planning.settled_margin(1000, alpha=0.05, churn=0.06, power=0.8)
    assert margin is not None
    assert 0.018 <= margin <= 0.021
    assert promote_rate(Holdout(1000, 0.06, margin, 0.05), 0.0) >= 0.8
    assert promote_rate(Holdout(1000, 0.06, margin - 0.001, 0.05), 0.0) < 0.8
    assert planning.settled_margin(1, alpha=0.05, churn=0.06, power=0.99) is None


def test_answers_that_flip_for_long_are_those_of_the_markov_chain() -> None:
    assert planning.lasting_churn(0.03, accuracy=0.9, updates=1) == pytest.approx(0.03)
    assert planning.lasting_churn(0.03, accuracy=0.9, updates=1000) == pytest.approx(0.18)
    audit = planning.audit_records(budget=0.05, alpha=0.05, churn=0.03, accuracy=0.9, updates=50, power=0.9)
    harmless = simulate(replace(LIFETIME, loss=0.0, audit=2 * audit), lifetimes=300, seed=0)
    assert harmless.frozen.mean() < 0.1


def answer(*words: str) -> Any:
    done = holdfast("gate", *words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_simulate_tells_false_promotions_and_power_without_a_service() -> None:
    found = answer("simulate", "--margin", "0.02", "--churn", "0.06", "--n", "1000", "--holdouts", "20")
    one, harmful, twice, all_good, *_ = found["rates"]
    assert (one["holdouts"], one["lost_on_one"], all_good["holdouts"]) == (1, 0.0, 20)
    assert one["promote"] == pytest.approx(0.794, abs=0.001)
    assert harmful["promote"] == pytest.approx(0.042, abs=0.001)
    assert harmful["promote"] <= found["worst_false_promotion"] <= 0.05
    assert harmful["threshold"] > 0.5
    assert twice["promote"] < 0.001
    assert all_good["promote"] == pytest.approx(one["promote"] ** 20)
    first = answer("simulate", "--attempt", "1", "--holdouts", "1")
    assert first["holdout"]["alpha"] == pytest.approx(stats.spent(0.05, 1))
    assert first["rates"][0]["promote"] < one["promote"]


def test_simulate_reports_lifetimes() -> None:
    found = answer("simulate", "--churn", "0.03", "--holdouts", "1", "--updates", "50", "--lifetimes", "100")
    lifetimes = {each["rule"]: each for each in found["lifetimes"]}
    assert list(lifetimes) == ["threshold", "step", "budget", "harmless"]
    assert lifetimes["threshold"]["lost_the_budget"] == 1
    assert lifetimes["budget"]["lost_the_budget"] == 0
    assert 0 < lifetimes["budget"]["lost_the_budget_upper_95"] < 0.05
    assert lifetimes["budget"]["frozen"] >= lifetimes["harmless"]["frozen"] > 0


def test_plan_assumes_what_a_pipeline_has_that_says_nothing() -> None:
    """The command has the numbers itself: reading them from the config would load it at every start."""
    assumed = {name: each.default for name, each in signature(gate_plan).parameters.items()}
    gate, split = GateConfig(), Split()
    assert (assumed["gate"], assumed["audit"]) == (split.gate, split.audit)
    assert (assumed["margin"], assumed["alpha"], assumed["budget"], assumed["updates"]) == (
        gate.margin,
        gate.alpha,
        gate.budget,
        gate.audits,
    )


def test_plan_tells_records_for_a_margin_and_a_margin_for_records() -> None:
    found = answer("plan", "--n", "1000")
    assert found["experience_records"] == math.ceil(found["holdout_records"] / 0.25)
    assert 0.02 < found["settled_margin"] < 0.05
    passing = answer("simulate", "--attempt", "1", "--n", str(found["holdout_records"]))["rates"][3]
    assert (passing["holdouts"], passing["lost_on_one"]) == (20, 0.0)
    assert passing["promote"] >= 0.9


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("simulate", "--margin", "nan"), "--margin"),
        (("simulate", "--margin", "0"), "--margin"),
        (("simulate", "--margin", "inf"), "--margin"),
        (("simulate", "--churn", "-0.1"), "--churn"),
        (("simulate", "--churn", "1"), "--churn"),
        (("simulate", "--alpha", "0.2"), "--alpha"),
        (("simulate", "--n", "0"), "--n "),
        (("simulate", "--holdouts", "0"), "--holdouts"),
        (("simulate", "--attempt", "0"), "--attempt"),
        (("simulate", "--updates", "-1"), "--updates"),
        (("simulate", "--updates", "5", "--lifetimes", "0"), "--lifetimes"),
        (("simulate", "--updates", "5", "--budget", "nan"), "--budget"),
        (("simulate", "--updates", "5", "--loss", "nan"), "--loss"),
        (("simulate", "--updates", "5", "--loss", "0.3"), "--loss"),
        (("plan", "--power", "1"), "--power"),
        (("plan", "--gate", "0"), "--gate"),
        (("plan", "--accuracy", "0.99"), "--accuracy"),
        (("plan", "--updates", "0"), "--updates"),
    ],
)
def test_bad_input_gets_one_line(words: tuple[str, ...], named: str) -> None:
    """In one process, since nothing but the command is looked at; one of them through the program below."""
    from service.cli import app

    done = CliRunner().invoke(app, ["gate", *words])
    assert isinstance(done.exception, HoldfastError), done.output
    assert named in f"{done.exception} "
    assert done.output == ""


def test_bad_input_is_exit_status_1() -> None:
    refused(holdfast("gate", "simulate", "--margin", "nan"), 1, "--margin is nan", "above 0")
