"""The budget: what may be lost in all, judged on sealed records once a promotion; only a pass is told."""

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from service.gate import stats
from service.gate.base import (
    Audit,
    DataEvidence,
    Evidence,
    Finding,
    Freeze,
    GateConfig,
    PairedAnswers,
    PastExperience,
    Verdict,
)
from service.gate.decide import decide
from service.gate.guards.budget import (
    LASTING_CHURN,
    LASTING_POWER,
    budget,
    questions,
    records_alone,
    records_together,
)
from service.gate.guards.retention import retention
from service.gate.simulation.rates import promote_rates
from tests.support.gate_parts import of_guard

CONFIG = GateConfig(margin=0.05, learning_margin=0.05, budget=0.05, audits=10)
TOGETHER = records_together(CONFIG.budget, CONFIG.alpha, CONFIG.audits)
ALONE = records_alone(CONFIG.budget, CONFIG.alpha)
WHOLE = DataEvidence(records=2000, nonfinite_records=0)


def answers(
    experience: int, n: int, *, lost: int = 0, gained: int = 0, right: float = 0.9, looks: int = 0
) -> PairedAnswers:
    """Bits of two models of which so many flipped."""
    baseline = np.arange(n) < round(right * n)
    challenger = baseline.copy()
    challenger[:lost] = False
    challenger[n - gained :] = True
    return PairedAnswers(experience, baseline, challenger, looks=looks)


def evidence(*sealed: PairedAnswers, **changes: object) -> Evidence:
    """An update that passes everything else."""
    values: dict[str, object] = {
        "data": WHOLE,
        "past": (answers(0, 2000),),
        "new": (answers(9, 2000),),
        "audit": Audit(sealed, last_audited=3),
        "champion": 3,
    }
    return Evidence(**{**values, **changes})  # type: ignore[arg-type]


def audited(*sealed: PairedAnswers, config: GateConfig = CONFIG, **of_audit: Any) -> Finding:
    """The one finding of an audit, which decides whether the update is promoted."""
    verdict = decide(evidence(audit=Audit(sealed, last_audited=3, **of_audit)), config)
    (found,) = verdict.audit
    assert (verdict.outcome, verdict.freezes) == (
        ("promote", False) if found.answer == "pass" else ("review", True)
    )
    return found


def budget_of(verdict: Verdict) -> list[str]:
    return [each.sentence for each in of_guard(verdict, "budget")]


def noted(verdict: Verdict) -> str:
    (note,) = (each for each in verdict.notes if each.about == "budget")
    return note.sentence


def aged(random: np.random.Generator, experience: int, n: int, *, updates: int) -> PairedAnswers:
    """An anchor that is right nine times in ten, and a champion so many harmless updates later."""
    anchor = random.random(n) < 0.9
    champion = anchor.copy()
    for _ in range(updates):
        champion ^= random.random(n) < np.where(champion, 0.03 / 0.9, 0.03 / 0.1)
    return PairedAnswers(experience, anchor, champion)


def test_a_challenger_within_the_budget_is_promoted_and_the_look_is_told() -> None:
    found = audited(answers(0, 5000, lost=10, gained=10, looks=2))
    assert (found.answer, found.experience) == ("pass", None)
    assert found.sentence == (
        "budget: experience 0 within 5 points since learnt (5000 sealed records; look 3)"
    )
    assert found.numbers == {"n": 5000, "look": 3, "budget": 0.05}


@pytest.mark.parametrize(("lost", "gained"), [(400, 0), (1300, 1000), (4500, 0)])
def test_the_first_audit_that_does_not_pass_freezes_promotion(lost: int, gained: int) -> None:
    n = 5000
    verdict = decide(evidence(answers(0, n, lost=lost, gained=gained)), CONFIG)
    assert verdict.outcome == "review"
    assert verdict.freezes
    assert verdict.reason == (
        "the audit on the sealed records did not pass (look 1), and what was lost on them stays sealed; "
        "promotion is frozen: version 3, the last whose audit passed, stays; look at the accuracy since each "
        "was learnt, then lift the freeze with a reason (holdfast unfreeze)"
    )


FAILING = {
    "a block": [answers(0, 4000, lost=300), answers(1, 2000)],
    "one by itself": [answers(0, 1000, lost=180, gained=90), answers(1, 5000, gained=150)],
    "an alarm": [answers(0, 400, lost=40), answers(1, 5600)],
    "everything": [answers(0, 3000, lost=2700), answers(1, 3000, lost=2700)],
    "too much churn": [answers(0, 3000, lost=900, gained=870, right=0.7), answers(1, 3000)],
}


@pytest.mark.parametrize("why", FAILING)
def test_why_an_audit_did_not_pass_is_not_told(why: str) -> None:
    """Different reasons, sizes of loss and experiences: the same finding, word for word."""
    found = audited(*FAILING[why])
    assert found == audited(answers(0, 3000, lost=600), answers(1, 3000))
    assert found.experience is None
    assert found.numbers == {"n": 6000, "look": 1, "budget": 0.05}


@pytest.mark.parametrize("sealed", [[6000], [3000, 3000], [400, 5600], [50] * 120])
def test_a_passing_audit_tells_the_same_whatever_flipped(sealed: list[int]) -> None:
    still = audited(*(answers(each, n) for each, n in enumerate(sealed)))
    for lost, gained in ((0.01, 0.01), (0.02, 0.0), (0.0, 0.08)):
        flipped = [(n, int(lost * n), int(gained * n)) for n in sealed]
        found = audited(*(answers(each, n, lost=b, gained=c) for each, (n, b, c) in enumerate(flipped)))
        assert found == still
    assert still.answer == "pass"
    assert set(still.numbers) == {"n", "look", "budget"}


def test_one_planned_audit_is_a_plan_too() -> None:
    once = CONFIG.model_copy(update={"audits": 1})
    verdict = decide(evidence(answers(0, 12_000)), once)
    assert verdict.outcome == "promote", verdict.reason


def test_sealed_records_are_looked_at_only_where_all_else_passes() -> None:
    lost = answers(0, 5000, lost=600)
    for changes in (
        {"past": (answers(0, 2000, lost=400),)},
        {"new": (answers(9, 30),), "past": (answers(0, 60),)},
        {"freeze": Freeze("u1", 3)},
    ):
        verdict = decide(evidence(lost, **changes), CONFIG)
        assert verdict.outcome != "promote"
        assert budget_of(verdict) == []
        assert not verdict.freezes


def test_a_freeze_is_a_persons_to_lift_and_names_where_to_go_back() -> None:
    verdict = decide(evidence(answers(0, 1500), freeze=Freeze("u7", 2)), CONFIG)
    assert verdict.outcome == "review"
    assert verdict.reason == (
        "promotion is frozen: the audit of update u7 did not pass; roll back to version 2, the last whose "
        "audit passed (holdfast rollback), or lift the freeze with a reason (holdfast unfreeze)"
    )


@pytest.mark.parametrize("several", [1, 2, 7])
def test_the_budget_is_held_from_so_many_sealed_records_on(several: int) -> None:
    enough = ALONE if several == 1 else TOGETHER
    for n in (enough - 1, enough):
        sealed = [answers(each, (n + each) // several) for each in range(several)]
        assert sum(each.n for each in sealed) == n
        verdict = decide(evidence(*sealed), CONFIG)
        assert verdict.audit[0].answer == "pass"
        said = verdict.audit[0].sentence
        held = " within 5 points since learnt" in said or " within their margins, 5 to " in said
        assert held is (n == enough)
        if n == enough and several == 7:
            assert said == (
                "budget: experiences 0 to 6 within their margins, 5 to 12.27 points, since learnt "
                f"({enough} sealed records; look 1)"
            )
        notes = [each for each in verdict.notes if each.about == "budget"]
        assert [each.numbers["n"] for each in notes] == ([] if n == enough else [n])


def test_before_that_each_is_held_within_what_its_records_settle() -> None:
    found = audited(answers(0, 2000, lost=10, gained=10))
    settled = stats.settled_margin(
        2000, CONFIG.alpha * stats.look_share(1), churn=LASTING_CHURN, power=LASTING_POWER
    )
    assert f"experience 0 within {100 * settled:.2f} points since learnt" in found.sentence
    assert audited(answers(0, 2000, lost=100, gained=100)).answer == "pass"
    # Six points in all, from many flips: no alarm, yet more than the records leave room for.
    assert audited(answers(0, 2000, lost=200, gained=100)).answer == "undecided"


def test_with_few_sealed_records_only_what_they_prove_stops() -> None:
    found = audited(answers(0, 300, lost=2))
    assert found.sentence == (
        "budget: experience 0 not shown to have lost 5 points since learnt (300 sealed records; look 1)"
    )
    assert audited(answers(0, 300, lost=90)).answer == "undecided"
    assert audited(answers(0, 300, lost=25, gained=24)).answer == "pass"


def test_the_gate_part_helps_the_alarm_on_one_experience() -> None:
    sealed = (answers(0, 60, lost=5), answers(1, 6000))
    assert audited(*sealed).answer == "pass", "5 of 60 show nothing with two experiences at 5 %"
    shown = audited(*sealed, gate=(answers(0, 75, lost=7), answers(1, 7500)))
    assert shown.answer == "undecided"
    assert audited(*sealed, gate=(answers(0, 75, gained=7), answers(1, 7500))).answer == "pass"
    broken = (PairedAnswers(0, None, np.ones(75, dtype=np.bool_)), answers(5, 700, lost=700))
    assert audited(*sealed, gate=broken).answer == "pass", "what is not sealed is none of the audit"


def test_an_alarm_takes_more_after_every_audit_that_did_not_pass() -> None:
    """A loss by chance is shown again and again; a true one grows."""
    for failures, runs, lost in ((0, 0, 6), (1, 1, 7), (2, 1, 8), (3, 1, 9), (3, 3, 9), (30, 1, 36)):
        kept = replace(answers(1, 6000), looks=60)
        # One in two to the power of `lost` is the chance of so many losses and no gain.
        assert 2 * 0.5**lost <= 0.05 / 2**failures < 2 * 0.5 ** (lost - 1)
        for one, answer in ((lost, "undecided"), (lost - 1, "pass")):
            old = replace(answers(0, 60, lost=one), looks=60, failures=failures, failure_runs=runs)
            assert audited(old, kept).answer == answer


def test_what_one_of_many_lost_is_not_hidden_by_the_others() -> None:
    for n, lost in ((3000, 300), (440, 60), (60, 30)):
        others = [answers(index, n, gained=n // 20) for index in range(1, 20)]
        assert audited(answers(0, n, lost=lost), *others).answer == "undecided", n
        assert audited(answers(0, n), *others).answer == "pass"


def test_blocks_of_sealed_records_follow_from_the_history() -> None:
    """Six that each lost a little less than the budget keep it only where others in their block gained."""
    history = tuple(PastExperience(each, 900) for each in range(12))
    sealed = [
        answers(each, 900, lost=70, gained=30) if each < 6 else answers(each, 900, lost=30, gained=60)
        for each in range(12)
    ]
    assert audited(*sealed, history=history).answer == "undecided"
    mixed = tuple(history[each] for each in (0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11))
    assert audited(*sealed, history=mixed).answer == "pass"
    gone = sealed[:6] + sealed[7:]
    assert audited(*gone, history=history).answer == "undecided", "what is retired moves no other"


def test_questions_are_blocks_at_the_budget_and_singles_and_units_at_settled_margins() -> None:
    sizes = {0: 5000, 1: 2500, 2: 2500, 3: 100, 4: 500}
    history = tuple(PastExperience(each, n) for each, n in sizes.items())
    found = questions(history, sizes, CONFIG, dict.fromkeys(sizes, CONFIG.alpha * stats.look_share(1)))
    asked = {(each.pool.own, each.pool.joined): each.margin for each in found}
    assert asked[(0,), ()] == 0.05
    assert asked[(1, 2), ()] == 0.05
    assert asked[(3, 4), (1, 2)] == 0.05
    assert 0.05 < asked[(1,), ()] == asked[(2,), ()] < 0.07
    assert 0.1 < asked[(3, 4), ()] < CONFIG.single_margin
    assert len(asked) == len(found) == 6


@pytest.mark.parametrize("sealed", [(5000,), (1600, 1700), (2000,), (600, 900, 4000, 100)])
@pytest.mark.parametrize("look", [1, 10])
def test_a_lost_margin_passes_at_most_at_its_share_of_alpha(sealed: tuple[int, ...], look: int) -> None:
    sizes = dict(enumerate(sealed))
    history = tuple(PastExperience(each, n) for each, n in sizes.items())
    share = CONFIG.alpha * stats.look_share(look)
    found = questions(history, sizes, CONFIG, dict.fromkeys(sizes, share))
    assert found
    for each in found:
        n = sum(sizes[member] for member in each.pool.members)
        churns = [max(churn, each.margin) for churn in (0.05, 0.1, 0.18, 0.3)]
        rates = promote_rates(n, margin=each.margin, alpha=share, loss=each.margin, churns=churns)
        assert (rates <= share).all(), each


def test_harmless_champions_of_any_age_pass_their_audits() -> None:
    """Twenty experiences, whose anchors are 1 to 20 updates old, of which each flips 6 % of the answers."""
    random = np.random.default_rng(5)
    for sealed, least in ((3400, 0.95), (1140, 0.95), (440, 0.95), (50, 0.95)):
        passed = 0
        for _ in range(40):
            champions = [aged(random, index, sealed, updates=20 - index) for index in range(20)]
            answered = budget(evidence(*champions), GateConfig(budget=0.05, audits=50))
            (found,) = (each for each in answered if isinstance(each, Finding))
            passed += found.answer == "pass"
        # Two standard errors of forty.
        assert passed / 40 >= least - 2 * (least * (1 - least) / 40) ** 0.5, sealed


def test_later_looks_and_looks_after_failures_spend_less() -> None:
    """So much was lost and gained that only a look with much of alpha lets it pass."""

    def answer(**counted: int) -> str:
        close = replace(answers(0, 6000, lost=366, gained=150), **cast("dict[str, Any]", counted))
        return audited(close).answer

    assert answer() == "pass"
    assert answer(looks=1) == "pass"
    assert answer(looks=1, failures=1, failure_runs=1) == "undecided"
    assert answer(looks=400) == "undecided"
    looked = ((1,), (2,), (2, 1, 1), (3, 2, 1), (4, 3, 1), (5, 3, 2), (100,), (10**6,))
    spent = [stats.look_share(*counted) for counted in looked]
    assert spent[:2] == sorted(spent[:2], reverse=True)
    assert spent[1:6] == sorted(spent[1:6], reverse=True)
    assert all(share > 0 for share in spent)


def test_looks_go_on_beyond_the_planned_ones() -> None:
    found = audited(answers(0, 6000, lost=10, gained=10, looks=500))
    assert (found.answer, found.numbers["look"]) == ("pass", 501)


def test_an_anchor_that_answers_nothing_right_is_for_a_person_and_no_look() -> None:
    verdict = decide(evidence(answers(0, 5000, right=0.0)), CONFIG)
    assert verdict.outcome == "review"
    assert not verdict.freezes
    assert verdict.reason == (
        "experience 0: the anchor answers none of 5000 sealed records right, so what was lost is unknown; "
        "retire it (holdfast holdout retire), or a person decides"
    )


@pytest.mark.parametrize(
    ("looks", "failures", "runs"),
    [
        (math.nan, 0, 0),
        (-1, 0, 0),
        (-math.inf, 0, 0),
        (math.inf, 0, 0),
        (1, 2, 1),
        (1, 1, 2),
        (2, 1, 0),
        (2, 0, 1),
        (2, math.nan, 1),
        (2, 1, math.nan),
        (2, -1, -1),
    ],
)
def test_looks_that_cannot_be_are_never_a_pass(looks: Any, failures: Any, runs: Any) -> None:
    sealed = replace(answers(0, 5000), looks=looks, failures=failures, failure_runs=runs)
    verdict = decide(evidence(sealed, answers(1, 5000)), CONFIG)
    assert verdict.outcome == "review"
    assert not verdict.freezes
    assert "looks at its sealed records, of which" in verdict.reason
    assert verdict.reason.endswith("cannot be; count them again")


@pytest.mark.parametrize("missing", ["baseline", "challenger", "length", "dtype", "2-D"])
def test_a_missing_anchor_is_never_a_pass_and_no_audit(missing: str) -> None:
    whole = answers(0, 2000)
    assert whole.baseline is not None
    broken = {
        "baseline": PairedAnswers(0, None, whole.challenger),
        "challenger": PairedAnswers(0, whole.baseline, None),
        "length": PairedAnswers(0, whole.baseline, whole.baseline[:-1]),
        "dtype": PairedAnswers(0, whole.baseline, whole.baseline.astype(np.float64)),
        "2-D": PairedAnswers(0, whole.baseline[None], whole.baseline[None]),
    }[missing]
    verdict = decide(evidence(answers(1, 5000), broken), CONFIG)
    assert verdict.outcome == "review"
    assert not verdict.freezes
    assert "predict its holdout again" in verdict.reason
    assert "experience 0, since it was learnt: " in verdict.reason


def test_the_same_experience_sealed_twice_is_never_a_pass() -> None:
    twice = (answers(0, 5000), answers(0, 5000))
    for audit in (Audit(twice), Audit(twice[:1], gate=twice)):
        verdict = decide(evidence(audit=audit), CONFIG)
        assert verdict.outcome == "review"
        where = "anchors' holdouts" if audit.gate else "sealed parts"
        assert verdict.reason == f"experience 0 is more than once among the {where}; run the update again"


def test_nothing_sealed_is_said() -> None:
    verdict = decide(evidence(answers(0, 0)), CONFIG)
    assert verdict.outcome == "promote"
    assert noted(verdict) == "budget: nothing is sealed (split.audit), so nobody sees small losses add up"


def test_a_holdout_that_may_lose_more_at_once_is_audited_at_that_margin() -> None:
    lax = replace(answers(0, 2000, lost=160), margin=0.2)
    verdict = decide(evidence(lax, past=(lax,)), CONFIG)
    assert verdict.outcome == "promote", verdict.reason
    assert "experience 0 within 20 points since learnt" in verdict.audit[0].sentence
    assert audited(replace(answers(0, 2000, lost=360), margin=0.2)).answer == "undecided"
    tight = replace(answers(0, 5000), margin=0.01)
    assert "within 5 points" in audited(tight).sentence


@pytest.mark.parametrize("small", [1, 500])
def test_a_wider_margin_is_never_asked_of_others_nor_another_of_it(small: int) -> None:
    lax = replace(answers(1, 1000, lost=150), margin=0.2)
    assert audited(answers(0, small), lax).answer == "pass"
    assert audited(answers(0, 5000, lost=400), replace(answers(1, 5000), margin=0.2)).answer == "undecided"


def test_tries_of_one_update_share_alpha_and_looks_do_not_depend_on_the_try() -> None:
    close = (answers(0, 2000, lost=150, gained=130),)
    found = [
        retention(Evidence(WHOLE, past=close), CONFIG.model_copy(update={"alpha": alpha}))[0]
        for alpha in (0.05, stats.spent(0.05, 5))
    ]
    assert [each.answer for each in found if isinstance(each, Finding)] == ["pass", "pass"]
    alphas = []
    for attempt in (None, 1, 2, 5):
        verdict = decide(evidence(answers(0, 5000), attempt=attempt), CONFIG)
        alphas.append(next(each.numbers["alpha"] for each in of_guard(verdict, "retention")))
        assert verdict.audit[0].answer == "pass"
    assert alphas == pytest.approx([0.05, 0.0304, 0.0076, 0.001216], rel=1e-2)
    assert sum(stats.spent(0.05, attempt) for attempt in range(1, 10_000)) <= 0.05
