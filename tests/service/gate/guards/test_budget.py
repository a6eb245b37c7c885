"""The budget: what may be lost in all, judged on sealed records once a promotion, never again after a no."""

import math
from dataclasses import replace

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
    Verdict,
)
from service.gate.decide import decide
from service.gate.guards.budget import budget, records_alone, records_needed
from service.gate.guards.forgetting import retention

CONFIG = GateConfig(margin=0.05, learning_margin=0.05, budget=0.05, audits=10)
ENOUGH = records_needed(CONFIG.budget, CONFIG.alpha / CONFIG.audits)
ALONE = records_alone(CONFIG.budget, CONFIG.alpha / CONFIG.audits)
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


def budget_of(verdict: Verdict) -> list[str]:
    return [each.sentence for each in verdict.findings if each.guard == "budget"]


def test_a_challenger_within_the_budget_is_promoted_and_the_look_is_told() -> None:
    verdict = decide(evidence(answers(0, 2000, lost=10, gained=10, looks=2)), CONFIG)
    assert verdict.outcome == "promote"
    (finding,) = verdict.audit
    assert not verdict.freezes
    assert finding.numbers["alpha"] == pytest.approx(CONFIG.alpha / 10)
    assert (finding.numbers["look"], finding.numbers["looks_planned"]) == (3, 10)
    assert finding.sentence == (
        "experience 0 within the budget since learnt: at worst 0.7 points lost, 5 allowed "
        "(2000 sealed records, 10 got worse, 10 got better; look 3 of 10)"
    )


@pytest.mark.parametrize(("lost", "gained", "outcome"), [(400, 0, "reject"), (250, 200, "review")])
def test_the_first_audit_that_does_not_pass_freezes_promotion(lost: int, gained: int, outcome: str) -> None:
    verdict = decide(evidence(answers(0, 2000, lost=lost, gained=gained)), CONFIG)
    assert verdict.outcome == outcome
    assert verdict.freezes
    assert "promotion is frozen" in verdict.reason
    assert "version 3, the last whose audit passed, stays" in verdict.reason


def test_sealed_records_are_looked_at_only_where_all_else_passes() -> None:
    lost = answers(0, 1500, lost=200)
    for changes in (
        {"past": (answers(0, 2000, lost=400),)},
        {"new": (answers(9, 30),)},
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


def test_too_few_sealed_records_are_no_look_and_are_said() -> None:
    few = ENOUGH // 3
    verdict = decide(evidence(answers(0, few), answers(1, few)), CONFIG)
    assert verdict.outcome == "promote"
    assert verdict.audit == ()
    (note,) = verdict.notes
    assert note.numbers == {"n": 2 * few, "n_needed": ENOUGH}
    assert "sealed records so far" in note.sentence
    third = decide(evidence(answers(0, few), answers(1, few), answers(2, few + 3)), CONFIG)
    assert third.outcome == "promote"
    (finding,) = third.audit
    assert finding.numbers["pooled"] == 3
    assert finding.sentence.startswith("experiences 0 to 2 within the budget since learnt")


def test_what_one_of_many_lost_is_not_hidden_by_the_others() -> None:
    others = [answers(index, 3000) for index in range(1, 20)]
    verdict = decide(evidence(answers(0, 3000, lost=300), *others), CONFIG)
    assert verdict.outcome == "reject"
    assert verdict.reason.startswith("experience 0 lost between")
    small = [answers(index, 440) for index in range(1, 20)]
    verdict = decide(evidence(answers(0, 440, lost=60), *small), CONFIG)
    assert verdict.outcome == "reject"
    assert verdict.freezes
    (lost,) = (each for each in verdict.audit if each.experience == 0)
    assert lost.answer == "fail"
    assert lost.sentence.startswith("experience 0 lost between")


def test_experiences_with_few_sealed_records_are_audited_with_as_many_neighbours_as_make_enough() -> None:
    verdict = decide(evidence(*(answers(index, 900, lost=9, gained=9) for index in range(9))), CONFIG)
    assert verdict.outcome == "promote"
    names = [each.sentence.split(" within")[0] for each in verdict.audit]
    assert names == ["experiences 0 to 3", "experiences 4 to 8"]
    assert [each.numbers["pooled"] for each in verdict.audit] == [4, 5]
    three = [answers(index, 900, lost=90) for index in range(3)]
    lost = decide(evidence(*three, *(answers(index, 900) for index in range(3, 9))), CONFIG)
    assert lost.outcome == "reject", "ten points of three in nine are three of all, and no other hides them"
    failed = [each.sentence.split(" lost")[0] for each in lost.findings if each.answer == "fail"]
    assert failed == ["experiences 0 to 3", "experience 0", "experience 1", "experience 2"]


def test_a_loss_that_few_sealed_records_prove_freezes_too() -> None:
    verdict = decide(evidence(answers(0, 300, lost=90)), CONFIG)
    assert verdict.outcome == "reject"
    assert verdict.freezes
    assert decide(evidence(answers(0, 300, lost=15)), CONFIG).outcome == "promote"


def test_harmless_champions_of_any_age_pass_their_audits() -> None:
    """Twenty experiences, whose anchors are 1 to 20 updates old, of which each flips 6 % of the answers."""
    random = np.random.default_rng(5)
    for sealed, least in ((3400, 0.95), (2720, 0.95), (1140, 0.95), (440, 0.95)):
        passed = 0
        for _ in range(60):
            audited = [aged(random, index, sealed, updates=20 - index) for index in range(20)]
            found = budget(evidence(*audited), GateConfig(budget=0.05, audits=50))
            assert all(isinstance(each, Finding) for each in found)
            passed += all(each.answer == "pass" for each in found if isinstance(each, Finding))
        # Two standard errors of sixty.
        assert passed / 60 >= least - 2 * (least * (1 - least) / 60) ** 0.5, sealed


def aged(random: np.random.Generator, experience: int, n: int, *, updates: int) -> PairedAnswers:
    """An anchor that is right nine times in ten, and a champion so many harmless updates later."""
    anchor = random.random(n) < 0.9
    champion = anchor.copy()
    for _ in range(updates):
        champion ^= random.random(n) < np.where(champion, 0.03 / 0.9, 0.03 / 0.1)
    return PairedAnswers(experience, anchor, champion)


def test_an_anchor_that_answers_nothing_right_is_for_a_person() -> None:
    verdict = decide(evidence(answers(0, 2000, right=0.0)), CONFIG)
    assert verdict.outcome == "review"
    assert verdict.freezes
    assert "the anchor answers none of 2000 sealed records right" in verdict.reason


@pytest.mark.parametrize("looks", [math.nan, -1, -math.inf])
def test_looks_that_cannot_be_are_never_a_pass(looks: int) -> None:
    verdict = decide(evidence(replace(answers(0, 3000, lost=1000), looks=looks)), CONFIG)
    assert verdict.outcome == "review"
    assert "looks at its sealed records cannot be" in verdict.reason
    [found] = retention(Evidence(WHOLE, past=(replace(answers(0, 3000), looks=looks),)), CONFIG)
    assert found.answer == "undecided"


def test_an_experience_of_which_nothing_is_sealed_is_named() -> None:
    verdict = decide(evidence(answers(0, 2000), answers(3, 0)), CONFIG)
    assert verdict.outcome == "promote"
    assert "nothing is sealed of experience 3" in verdict.notes[0].sentence


@pytest.mark.parametrize("missing", ["baseline", "challenger", "length", "dtype"])
def test_a_missing_anchor_is_never_a_pass_and_no_audit(missing: str) -> None:
    whole = answers(0, 2000)
    assert whole.baseline is not None
    broken = {
        "baseline": PairedAnswers(0, None, whole.challenger),
        "challenger": PairedAnswers(0, whole.baseline, None),
        "length": PairedAnswers(0, whole.baseline, whole.baseline[:-1]),
        "dtype": PairedAnswers(0, whole.baseline, whole.baseline.astype(np.float64)),
    }[missing]
    verdict = decide(evidence(answers(1, 1500), broken), CONFIG)
    assert verdict.outcome == "review"
    assert not verdict.freezes
    assert "predict its holdout again" in verdict.reason


def test_sealed_records_without_a_look_left_are_no_evidence() -> None:
    exhausted = answers(0, 2000, lost=300, looks=10)
    verdict = decide(evidence(exhausted, answers(1, 2000)), CONFIG)
    assert verdict.outcome == "promote"
    assert [each.experience for each in verdict.audit] == [1]
    (note,) = verdict.notes
    assert "experience 0" in note.sentence
    assert "no evidence any more" in note.sentence


def test_nothing_sealed_is_said() -> None:
    verdict = decide(evidence(answers(0, 0)), CONFIG)
    assert verdict.outcome == "promote"
    assert "nothing is sealed" in verdict.notes[0].sentence


def test_a_holdout_that_may_lose_more_at_once_is_audited_at_that_margin() -> None:
    lax = replace(answers(0, 2000, lost=160), margin=0.2)
    verdict = decide(evidence(lax, past=(lax,)), CONFIG)
    assert verdict.outcome == "promote", verdict.reason
    (finding,) = verdict.audit
    assert finding.numbers["margin"] == 0.2
    few = replace(answers(1, 100), margin=0.2)
    found = decide(evidence(answers(0, 3000), few), CONFIG).audit
    assert {each.experience: each.numbers["margin"] for each in found} == {0: 0.05, 1: 0.2}
    fewer = decide(evidence(answers(0, 3000), replace(answers(1, 20), margin=0.2)), CONFIG)
    assert [each.experience for each in fewer.audit] == [0]
    assert "experience 1 are too few for a margin of its own" in fewer.notes[0].sentence


@pytest.mark.parametrize("small", [1, 500])
def test_a_wider_margin_is_never_asked_of_others_nor_another_of_it(small: int) -> None:
    lax = replace(answers(1, 1000, lost=150), margin=0.2)
    verdict = decide(evidence(answers(0, small), lax), CONFIG)
    assert verdict.outcome == "promote", verdict.reason
    assert {each.experience: each.answer for each in verdict.audit if each.experience == 1} == {1: "pass"}


def test_the_looks_share_alpha_out() -> None:
    """What passes a single look at alpha does not pass one of ten where it is that close."""
    close = answers(0, 2000, lost=250, gained=200)
    assert decide(evidence(close), CONFIG.model_copy(update={"audits": 1})).outcome == "promote"
    assert decide(evidence(close), CONFIG).freezes


def test_a_model_that_lost_the_budget_passes_no_more_often_than_its_share_of_alpha() -> None:
    config = GateConfig(margin=0.5, learning_margin=0.5, budget=0.05, audits=1, alpha=0.05)
    rng = np.random.default_rng(3)
    n, churn, lives = 1300, 0.10, 600
    flips = rng.multinomial(n, [(churn + 0.05) / 2, (churn - 0.05) / 2, 1 - churn], size=lives)
    passed = 0
    for lost, gained, _ in flips:
        (finding,) = budget(evidence(answers(0, n, lost=int(lost), gained=int(gained), right=0.8)), config)
        assert isinstance(finding, Finding)
        passed += finding.answer == "pass"
    assert passed / lives <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / lives)


def test_tries_of_one_update_share_alpha() -> None:
    """However often the same experiences are tried again, all tries together spend no more than alpha."""
    close = (answers(0, 1000, lost=70, gained=50),)
    found = [
        retention(Evidence(data=WHOLE, past=close), CONFIG.model_copy(update={"alpha": alpha}))[0].answer
        for alpha in (0.05, stats.spent(0.05, 1), stats.spent(0.05, 5))
    ]
    assert found == ["pass", "pass", "undecided"]
    alphas = []
    for attempt in (None, 1, 2, 5):
        verdict = decide(evidence(answers(0, 1500), past=close, attempt=attempt), CONFIG)
        alphas.append(next(each.numbers["alpha"] for each in verdict.findings if each.guard == "retention"))
    assert alphas == pytest.approx([0.05, 0.0304, 0.0076, 0.001216], rel=1e-2)
    assert sum(stats.spent(0.05, attempt) for attempt in range(1, 10_000)) <= 0.05


def test_an_exhausted_holdout_is_refused_and_a_nearly_exhausted_one_says_so() -> None:
    config = CONFIG.model_copy(update={"holdout_looks": 100})
    late = decide(evidence(answers(0, 1500), past=(answers(0, 2000, looks=89),)), config)
    (finding,) = [each for each in late.findings if each.guard == "retention"]
    assert finding.sentence.endswith("; 10 of 100 looks at it are left")
    assert (finding.numbers["looks"], finding.numbers["looks_left"]) == (90, 10)
    exhausted = decide(evidence(answers(0, 1500), past=(answers(0, 2000, looks=100),)), config)
    assert exhausted.outcome == "review"
    assert "compared 100 times, and is exhausted" in exhausted.reason
