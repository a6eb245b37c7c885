"""Exact rates against an independent oracle and against draws; planned sizes; the commands."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from service.errors import HoldfastError
from service.gate import stats
from service.gate.base import (
    Audit,
    DataEvidence,
    Evidence,
    GateConfig,
    PairedAnswers,
    PastExperience,
    Verdict,
)
from service.gate.decide import decide
from service.gate.guards.budget import budget
from service.gate.guards.retention import BLOCK_POWER, SINGLE_POWER, single_margins
from service.gate.simulation import planning
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


def test_many_holdouts_pass_together_where_one_alone_would_not() -> None:
    """Twenty holdouts of 1,000 records at 3 % churn are three blocks, and each by itself has its margin."""
    holdout = Holdout(1000, 0.03, 0.02, 0.05)
    harmless = rates_of_many(holdout, [0.0] * 20, draws=DRAWS, seed=0)
    assert promote_rate(holdout, 0.0) ** 20 < 0.45
    assert harmless.promote >= 0.99
    assert harmless.reject <= 0.01
    drawn = drawn_rates(holdout, [0.0] * 20, draws=DRAWS, seed=1)
    assert abs(drawn.promote - harmless.promote) <= noise(harmless.promote, DRAWS)
    assert abs(drawn.threshold - harmless.threshold) <= noise(harmless.threshold, DRAWS)


def test_a_block_or_a_holdout_that_lost_its_margin_is_promoted_at_most_at_alpha() -> None:
    holdout = Holdout(1000, 0.03, 0.02, 0.05)
    whole = rates_of_many(holdout, [*[0.02] * 7, *[0.0] * 13], draws=DRAWS, seed=0)
    assert whole.promote <= 0.05 + noise(0.05, DRAWS)
    settled = float(single_margins(np.array([1000]), GateConfig(), alpha=0.05)[0])
    single = rates_of_many(holdout, [settled, *[-0.01] * 19], draws=DRAWS, seed=0)
    assert single.promote <= 0.05 + noise(0.05, DRAWS)
    assert single.reject >= 0.95
    lost_little = rates_of_many(holdout, [0.02, *[0.0] * 19], draws=DRAWS, seed=0)
    assert lost_little.promote < harmless_rate(holdout)


def harmless_rate(holdout: Holdout) -> float:
    return rates_of_many(holdout, [0.0] * 20, draws=DRAWS, seed=0).promote


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


def plan(*, records: int | None, **knobs: Any) -> planning.Plan:
    return planning.plan(GateConfig(**knobs), gate=0.25, audit=0.2, records=records)


@pytest.mark.parametrize(
    ("margin", "churn", "alpha"), [(0.02, 0.12, 0.05), (0.05, 0.06, 0.01), (0.01, 0.3, 0.1)]
)
def test_a_planned_block_passes_as_often_as_it_is_closed_for(
    margin: float, churn: float, alpha: float
) -> None:
    found = plan(records=None, margin=margin, planned_churn=churn, alpha=alpha)
    assert BLOCK_POWER <= found.block_passes < 1
    assert found.sized is None
    first = stats.spent(alpha, 1)
    assert promote_rate(Holdout(found.least_records, 0.0, margin, first), 0.0) == pytest.approx(1)
    assert promote_rate(Holdout(found.least_records - 1, 0.0, margin, first), 0.0) == 0
    by_itself = Holdout(found.single_records, churn, found.single_margin, first)
    assert promote_rate(by_itself, 0.0) >= SINGLE_POWER - 1e-3


def planned_update(many: int, records: int) -> Verdict:
    """The verdict on an update that changes no answer, after so many experiences of so many records."""
    gate, sealed = (np.ones(round(records * share), dtype=np.bool_) for share in (0.25, 0.2))
    history = tuple(PastExperience(each, len(gate)) for each in range(many))
    of_sealed = tuple(PastExperience(each, len(sealed)) for each in range(many))
    # Each was looked at once for every experience that was learnt after it.
    looked = tuple(PairedAnswers(each, sealed, sealed, looks=many - 1 - each) for each in range(many))
    return decide(
        Evidence(
            DataEvidence(records, 0),
            past=tuple(PairedAnswers(each, gate, gate) for each in range(many)),
            new=(PairedAnswers(many, gate, gate),),
            attempt=1,
            champion=1,
            history=history,
            audit=Audit(looked, 1, history=of_sealed),
        ),
        GateConfig(),
    )


@pytest.mark.parametrize("records", [200, 500, 1000, 5000])
def test_experiences_of_a_size_get_what_the_gate_then_does(records: int) -> None:
    found = plan(records=records)
    sized = found.sized
    assert sized is not None
    assert sized.gate_records * sized.block_experiences >= found.block_records
    assert sized.gate_records * (sized.block_experiences - 1) < found.block_records
    for many in {sized.least_experiences, max(sized.least_experiences - 1, 1)}:
        expected = "promote" if many >= sized.least_experiences else "review"
        assert planned_update(many, records).outcome == expected
    many = sized.least_experiences + 5
    retained = [each for each in planned_update(many, records).findings if each.guard == "retention"]
    widest = max(each.numbers["margin"] for each in retained)
    if sized.unseen is None:
        assert widest == sized.single_margin
        assert sized.single_experiences == 1
    else:
        assert f"{sized.single_margin:.3f}" in {f"{each.numbers['margin']:.3f}" for each in retained}
        assert sized.single_experiences == math.ceil(found.single_records / sized.gate_records)
        assert 0.05 < sized.unseen < 1


def test_the_budget_is_held_from_the_planned_experience_on() -> None:
    for records in (500, 2000, 12_500):
        sized = plan(records=records).sized
        assert sized is not None
        assert sized.budget_from is not None
        assert sized.audited_from is not None
        for many, name in ((sized.budget_from, "budget"), (sized.audited_from, "any")):
            for experiences, is_held in ((many, True), (many - 1, False)):
                passed = planned_budget(experiences, sized.sealed_records)
                within = passed is not None and (
                    name != "budget" or bool(re.search(r"\b5 (points|to)", passed))
                )
                assert within == is_held, (records, many, passed)
    alone = plan(records=20_000).sized
    assert alone is not None
    assert (alone.budget_from, alone.audited_from, alone.audited_margin) == (1, 1, None)


def planned_budget(many: int, sealed: int) -> str | None:
    """What the audit says that these records settle; None: nothing."""
    if not many:
        return None
    bits = np.ones(sealed, dtype=np.bool_)
    answers = tuple(PairedAnswers(each, bits, bits, looks=many - 1 - each) for each in range(many))
    history = tuple(PastExperience(each, sealed) for each in range(many))
    evidence = Evidence(DataEvidence(1, 0), past=(), new=(), audit=Audit(answers, 1, history=history))
    (found, *_) = budget(evidence, GateConfig())
    return found.sentence if " within " in found.sentence else None


def test_more_than_is_ever_judged_fills_no_block() -> None:
    short = plan(records=1000, margin=0.01)
    assert short.sized is not None
    assert short.sized.judged_records < short.block_records
    enough = plan(records=1000)
    assert enough.sized is not None
    assert enough.sized.judged_records >= enough.block_records
    large = plan(records=100_000).sized
    assert large is not None
    assert large.gate_records == large.sealed_records == GateConfig().holdout_records


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
    assert all_good["promote"] > 0.99 > one["promote"] ** 20, "in blocks, not each at the margin"
    first = answer("simulate", "--attempt", "1", "--holdouts", "1")
    assert first["holdout"]["alpha"] == pytest.approx(stats.spent(0.05, 1))
    assert first["rates"][0]["promote"] < one["promote"]


def test_simulate_reports_lifetimes() -> None:
    of_one = ("--churn", "0.03", "--holdouts", "1", "--audit", "3500")
    found = answer("simulate", *of_one, "--updates", "50", "--lifetimes", "100")
    lifetimes = {each["rule"]: each for each in found["lifetimes"]}
    assert list(lifetimes) == ["threshold", "step", "budget", "harmless"]
    assert lifetimes["threshold"]["lost_the_budget"] == 1
    assert lifetimes["budget"]["lost_the_budget"] == 0
    assert 0 < lifetimes["budget"]["lost_the_budget_upper_95"] < 0.05
    assert lifetimes["budget"]["frozen"] >= lifetimes["harmless"]["frozen"] >= 0


def test_plan_assumes_what_a_pipeline_has_that_says_nothing() -> None:
    found = planned()
    assert found["gate"] == GateConfig().model_dump(mode="json")
    assert found["split"] == Split().model_dump()
    assert found["records"] is None


def test_plan_says_what_a_size_gets() -> None:
    found = planned("--records", "500", "--churn", "0.06")
    assert found["gate"]["planned_churn"] == 0.06
    assert found["split"] == {"gate": 0.25, "audit": 0.2}
    assert (found["sized"]["gate_records"], found["sized"]["sealed_records"]) == (125, 100)
    assert planned()["sized"] is None
    assert planned()["block_records"] > found["block_records"]


def planned(*words: str) -> Any:
    return json.loads(said("plan", *words, "--json"))


def said(*words: str) -> str:
    from service.cli import app

    done = CliRunner().invoke(app, ["gate", *words])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_plan_names_what_a_size_lacks() -> None:
    small = said("plan", "--records", "8")
    assert "so no block is ever full: raise gate.max_holdouts" in small
    assert "Until the first block is full, a person decides the more often" in small
    assert "settle 15 points): 50 neighbours are judged as one" in small
    assert "is never held: too few records are sealed" in small
    whole = said("plan", "--records", "8000", "--margin", "0.05", "--budget", "0.1")
    assert "Each is a block by itself, and may lose less than 5 points" in whole
    assert "held from the first experience on" in whole
    wide = said("plan", "--records", "500", "--budget", "0.2")
    assert "Until then, only what is shown to be lost stops promotion" in wide


def test_lifetimes_with_lifted_freezes_say_so() -> None:
    words = ("simulate", "--n", "300", "--holdouts", "2", "--updates", "3", "--lifetimes", "20")
    few = said(*words, "--audit", "100", "--lifted")
    assert "a person lifts every freeze at once" in few
    assert "too few for the budget" in few
    assert "nothing promised with so few sealed records" in few
    assert "times each on average" in few
    enough = said(*words, "--audit", "3000")
    assert "held against the budget 2 experiences at a time" in enough
    assert "before their end" in enough


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
        (("plan", "--gate", "0"), "--gate"),
        (("plan", "--gate", "0.7", "--audit", "0.35"), "--audit"),
        (("plan", "--churn", "0"), "--churn"),
        (("plan", "--churn", "0.6"), "--churn"),
        (("plan", "--margin", "0.0001"), "--margin"),
        (("plan", "--records", "0"), "--records"),
        (("plan", "--records", "2"), "--records"),
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
