"""Rare classes: one that the accuracy margin cannot see is never lost whole and promoted."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from service.gate import stats
from service.gate.base import Evidence, Finding, GateConfig, Note, PairedAnswers, Verdict
from service.gate.decide import decide
from service.gate.guards.classes import GUARD, rare_classes, rare_margin, records_of_rare
from service.gate.guards.retention import SINGLE_POWER, records_of_single, single_margins
from tests.support.gate_parts import CLEAN, CONFIG, of_guard, paired

NAMES = ("cat", "lynx", "puma")
PLANNED = CONFIG.planned_churn / 2
"""Share of a class that a harmless update is planned to turn wrong."""
GUARDED = records_of_rare(CONFIG.alpha, PLANNED, CONFIG.rare_margin)
SINGLE = records_of_single(CONFIG, alpha=CONFIG.alpha)
MOST = 203
COMMON = 6000
"""Records of the common class: the rare one is lost whole within the margin."""


def holdout(*rare: tuple[int, int, int], lost: int = 0, experience: int = 0) -> PairedAnswers:
    """One common class, which lost so many, and after it classes of (records, lost, gained)."""
    answers = [paired(n, lost=fell, gained=rose) for n, fell, rose in ((COMMON, lost, 0), *rare)]
    labels = np.repeat(np.arange(len(answers)), [each.n for each in answers])
    baseline = np.concatenate([each.baseline for each in answers if each.baseline is not None])
    challenger = np.concatenate([each.challenger for each in answers if each.challenger is not None])
    return PairedAnswers(experience, baseline, challenger, labels=labels)


def evidence(*past: PairedAnswers, classes: tuple[str, ...] = NAMES, attempt: int | None = None) -> Evidence:
    new = (paired(2000, gained=50, experience=9),)
    return Evidence(CLEAN, past=past, new=new, classes=classes, attempt=attempt)


def verdict_on(*rare: tuple[int, int, int], lost: int = 0, config: GateConfig = CONFIG) -> Verdict:
    return decide(evidence(holdout(*rare, lost=lost)), config)


def found_on(n: int, lost: int, gained: int = 0) -> Finding:
    (found,) = rare_classes(evidence(holdout((n, lost, gained))), CONFIG)
    assert isinstance(found, Finding)
    return found


def notes_of(verdict: Verdict, about: str) -> list[Note]:
    return [each for each in verdict.notes if each.about == about]


def test_records_that_the_tests_below_assume() -> None:
    assert 6 < GUARDED < 100 < SINGLE < MOST < CONFIG.margin * COMMON
    assert rare_margin(GUARDED - 1, alpha=CONFIG.alpha, lost=PLANNED, widest=CONFIG.rare_margin) is None


@pytest.mark.parametrize("n", [3, 5, 6, GUARDED - 1, GUARDED, 60, 180, 181, MOST])
def test_a_rare_class_that_is_lost_whole_is_never_promoted(n: int) -> None:
    verdict = verdict_on((n, n, 0))
    assert {each.answer for each in of_guard(verdict, "retention")} == {"pass"}, "the margin does not see it"
    (found,) = of_guard(verdict, GUARD)
    if n < GUARDED:
        assert verdict.outcome == "review"
        assert found.sentence == (
            f"class lynx: {n} of the {n} records that the champion answers right are lost "
            f"({n} records, {n} got worse, 0 got better); a person decides"
        )
    else:
        assert verdict.outcome == "reject"
        allowed = f"{100 * found.numbers['margin']:.1f}".removesuffix(".0")
        assert found.sentence == (
            f"class lynx lost recall: {n} of the {n} that the champion answers right "
            f"({n} records, {n} got worse, 0 got better), {allowed} points are allowed: "
            "keep the champion, and replay more records of class lynx"
        )
    assert verdict.reason == found.sentence
    assert (found.numbers["class"], found.numbers["n"], found.numbers["lost"]) == (1, n, n)


@pytest.mark.parametrize("attempt", [1, 2, 5])
@pytest.mark.parametrize("n", [10, 40, 100, MOST])
def test_nor_is_it_in_a_later_try(n: int, attempt: int) -> None:
    assert decide(evidence(holdout((n, n, 0)), attempt=attempt), CONFIG).outcome != "promote"


def test_what_the_others_gained_hides_nothing_of_a_rare_class() -> None:
    lost = holdout((60, 60, 0))
    gained = [
        replace(paired(COMMON, gained=600, experience=each), labels=np.zeros(COMMON, dtype=np.int64))
        for each in (1, 2)
    ]
    assert decide(evidence(lost, *gained), CONFIG).outcome == "reject"


def test_a_class_is_counted_over_all_holdouts() -> None:
    """Four holdouts with ten records each: on none of them could as much be said."""
    part = [holdout((10, 10, 0), experience=each) for each in range(4)]
    (found,) = of_guard(decide(evidence(*part), CONFIG), GUARD)
    assert (found.answer, found.numbers["n"], found.numbers["lost"]) == ("fail", 40, 40)


@pytest.mark.parametrize("n", [1, 5, 6, 20, GUARDED, 60, 120, 180, 181, MOST])
def test_a_harmless_challenger_is_promoted(n: int) -> None:
    planned = int(binom.ppf(SINGLE_POWER, n, PLANNED))
    for lost, gained in ((0, 0), (n // 16, n // 16), (planned if GUARDED <= n < SINGLE else 0, 0)):
        verdict = verdict_on((n, lost, gained))
        assert verdict.outcome == "promote", verdict.reason
        assert len(of_guard(verdict, GUARD)) == (n >= GUARDED)


def test_a_pass_tells_the_margin_that_its_records_settle() -> None:
    found = found_on(60, 3, 1)
    margin = rare_margin(60, alpha=CONFIG.alpha, lost=PLANNED, widest=CONFIG.rare_margin)
    assert margin is not None
    assert found.sentence == (
        f"class lynx kept its recall: less than {100 * margin:.0f} points lost "
        "(60 records, 3 got worse, 1 got better)"
    )
    assert found.numbers["margin"] == margin
    assert found.numbers["p_noninferior"] == pytest.approx(binom.cdf(3, 60, margin))
    assert found.numbers["p_drop_holm"] == pytest.approx(2 * stats.mcnemar_drop_p(3, 1)), "of two classes"
    assert found_on(SINGLE, 0).numbers["margin"] == single_margins(
        np.array([SINGLE]), CONFIG, alpha=CONFIG.alpha
    )


def test_between_kept_and_lost_a_person_decides() -> None:
    for n in (GUARDED, 60, 120, 180):
        margin = found_on(n, 0).numbers["margin"]
        most = max(lost for lost in range(n) if binom.cdf(lost, n, margin) <= CONFIG.alpha)
        assert found_on(n, most).answer == "pass"
        found = found_on(n, most + 1, most)
        assert found.answer == "undecided"
        assert found.sentence == (
            f"class lynx may have lost {100 * margin:.0f} points of its recall or more "
            f"({n} records, {most + 1} got worse, {most} got better); a person decides, or learn with more "
            "records of class lynx"
        )


def test_the_exact_size_is_at_most_alpha_for_every_number_of_records() -> None:
    """A class that truly lost the margin, and gained nothing, passes so often: by enumeration."""
    for n in range(GUARDED, MOST + 1):
        margin = found_on(n, 0).numbers["margin"]
        assert CONFIG.margin <= margin <= CONFIG.rare_margin
        # Fewer lost pass where more do.
        most = 0
        while found_on(n, most + 1).answer == "pass":
            most += 1
        assert binom.cdf(most, n, margin) <= CONFIG.alpha, n


@pytest.mark.parametrize("alpha", [0.05, 0.0304, 0.0012])
def test_no_margin_is_wider_than_it_must_be(alpha: float) -> None:
    guarded = records_of_rare(alpha, PLANNED, CONFIG.rare_margin)
    for n in range(1, MOST + 1):
        margin = rare_margin(n, alpha=alpha, lost=PLANNED, widest=CONFIG.rare_margin)
        planned = binom.ppf(SINGLE_POWER, n, PLANNED)
        if margin is None:
            assert n < guarded
            assert binom.cdf(planned, n, CONFIG.rare_margin) > alpha
        else:
            assert binom.cdf(planned, n, margin) <= alpha < binom.cdf(planned, n, margin - 0.01)


def test_few_records_are_told_how_many_it_takes() -> None:
    verdict = verdict_on((5, 1, 0))
    (note,) = notes_of(verdict, GUARD)
    assert (verdict.outcome, of_guard(verdict, GUARD)) == ("promote", [])
    assert note.sentence == (
        "class lynx has 5 records in all past holdouts, and could be lost within the margin unseen: recall "
        f"is guarded from {GUARDED} records of a class on"
    )
    assert note.numbers == {"n": 5, "n_needed": GUARDED}
    (both,) = notes_of(verdict_on((5, 0, 0), (3, 0, 0)), GUARD)
    assert both.sentence.startswith("class lynx, class puma have 3 to 5 records each in all past holdouts, ")
    (many,) = notes_of(verdict_on(*[(4, 0, 0)] * 8), GUARD)
    assert many.sentence.startswith("class lynx, class puma, class 3, class 4, class 5, ... have 4 ")


def test_most_of_a_few_lost_is_a_question_where_chance_is_none() -> None:
    """Of six, the planned share .12 turns four wrong with a chance of .0025; three are half, and no more."""
    asked = {lost: verdict_on((6, lost, 0)).outcome for lost in range(7)}
    assert asked == {
        0: "promote",
        1: "promote",
        2: "promote",
        3: "promote",
        **dict.fromkeys((4, 5, 6), "review"),
    }
    assert binom.sf(3, 6, CONFIG.planned_churn) <= CONFIG.alarm_alpha
    assert verdict_on((6, 4, 2)).outcome == "promote", "what was gained counts against it"
    # Two of two come with .0144, and three of three with .0017: among six such classes that is too often.
    assert verdict_on((2, 2, 0)).outcome == "promote"
    assert verdict_on((3, 3, 0)).outcome == "review"
    assert verdict_on((3, 3, 0), *[(3, 0, 0)] * 5).outcome == "promote"


def test_what_a_common_class_lost_is_a_note() -> None:
    verdict = verdict_on((100, 0, 0), lost=100)
    assert verdict.outcome == "promote", verdict.reason
    (note,) = notes_of(verdict, "class")
    lower, upper = (float(each) for each in stats.loss_limits(100, 0, n=COMMON, alpha=CONFIG.alpha))
    assert note.sentence == (
        f"class cat lost between {100 * lower:.1f} and {100 * upper:.1f} points".replace(
            ".0 points", " points"
        )
        + " of its recall (6000 records, 100 got worse, 0 got better)"
    )
    assert note.numbers == {
        "class": 0,
        "loss_lower": pytest.approx(lower),
        "loss_upper": pytest.approx(upper),
    }
    assert notes_of(verdict_on((100, 0, 0), lost=5), "class") == [], "five of 6000 show nothing at 1 %"


def test_a_class_is_rare_up_to_the_margin() -> None:
    rare = int(COMMON * CONFIG.margin / (1 - CONFIG.margin))
    assert rare <= CONFIG.margin * (COMMON + rare) < rare + 1
    assert len(of_guard(verdict_on((rare, 0, 0)), GUARD)) == 1
    assert of_guard(verdict_on((rare + 1, 0, 0)), GUARD) == []


@pytest.mark.parametrize("wrong", [0, 59, 6061])
def test_labels_that_do_not_match_are_undecided(wrong: int) -> None:
    broken = replace(holdout((60, 0, 0), experience=3), labels=np.zeros(wrong, dtype=np.int64))
    verdict = decide(evidence(holdout((60, 0, 0)), broken), CONFIG)
    assert verdict.outcome == "review"
    assert verdict.reason == (
        f"experience 3: {wrong} labels cannot be matched with 6060 records; predict its holdout again"
    )


def test_labels_that_are_no_classes_never_promote() -> None:
    for labels in (np.full(6060, -1), np.full(6060, math.nan)):
        broken = replace(holdout((60, 0, 0)), labels=labels)
        verdict = decide(evidence(broken), CONFIG)
        assert verdict.outcome == "review"
        assert verdict.reason.startswith("the rare classes guard broke (")


def test_without_names_the_numbers_of_classes_are_told() -> None:
    lost = holdout((60, 60, 0))
    for classes, name in (((), "1"), (("cat",), "1"), (NAMES, "lynx")):
        verdict = decide(evidence(lost, classes=classes), CONFIG)
        assert verdict.reason.startswith(f"class {name} lost recall: ")


def test_it_can_be_turned_off_and_asks_nothing_without_labels_or_a_champion() -> None:
    off = CONFIG.model_copy(update={"rare_classes": False})
    verdict = verdict_on((60, 60, 0), config=off)
    assert (verdict.outcome, of_guard(verdict, GUARD)) == ("promote", [])
    lost = holdout((60, 60, 0))
    assert decide(evidence(replace(lost, labels=None)), CONFIG).outcome == "promote"
    assert rare_classes(replace(evidence(lost), first=True), CONFIG) == ()
    assert rare_classes(replace(evidence(), past=()), CONFIG) == ()


def test_a_broken_holdout_is_left_to_retention() -> None:
    broken = replace(holdout((60, 0, 0), experience=3), challenger=None)
    verdict = decide(evidence(holdout((60, 0, 0)), broken), CONFIG)
    assert verdict.outcome == "review"
    assert [each.numbers["n"] for each in of_guard(verdict, GUARD)] == [60]


@pytest.mark.parametrize("n", [0, 1, 2, 6, GUARDED, 60, SINGLE, MOST])
def test_numbers_are_finite(n: int) -> None:
    for lost in {0, n // 2, n}:
        for each in rare_classes(evidence(holdout((n, lost, 0))), CONFIG):
            assert each.numbers
            assert all(isinstance(value, int | float) for value in each.numbers.values())
            assert all(math.isfinite(value) for value in each.numbers.values())


@pytest.mark.parametrize(("n", "right"), [(100, 10), (180, 14), (60, 9)])
def test_a_class_that_was_hardly_known_is_not_lost_within_its_margin(n: int, right: int) -> None:
    whole = holdout((n, 0, 0))
    assert whole.baseline is not None
    assert whole.challenger is not None
    baseline, challenger = whole.baseline.copy(), whole.challenger.copy()
    baseline[COMMON:], challenger[COMMON:] = False, False
    baseline[COMMON : COMMON + right] = True
    verdict = decide(evidence(replace(whole, baseline=baseline, challenger=challenger)), CONFIG)
    assert verdict.outcome != "promote"
    assert "lynx" in verdict.reason
    kept = decide(evidence(replace(whole, baseline=baseline, challenger=baseline)), CONFIG)
    assert kept.outcome == "promote", kept.reason
