"""Golden guard: what it passes, fails and asks, and how often a loss of the margin is promoted."""

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.gate import stats
from service.gate.base import Evidence, GoldenAnswers, Verdict
from service.gate.decide import decide
from service.gate.guards.golden import golden
from service.gate.schema import NUMBERS
from tests.support.gate_parts import CLEAN, CONFIG, NOT_BITS, of_guard, paired

PAST = tuple(paired(600, lost=6, gained=6, experience=each) for each in range(4))
GOOD = Evidence(CLEAN, past=PAST, new=(paired(600, gained=400, experience=4),), champion=3)
Bits = NDArray[np.bool_]


def answers(
    records: int,
    *,
    lost: int = 0,
    gained: int = 0,
    lost_since: int = 0,
    margin: float | None = 0.05,
    number: int = 0,
    **changes: Any,
) -> GoldenAnswers:
    """Answers that lost and gained against the champion, and lost against the anchor."""
    pair = paired(records, lost=lost, gained=gained)
    assert pair.challenger is not None
    anchor = pair.challenger.copy()
    anchor[np.flatnonzero(~anchor)[:lost_since]] = True
    made = GoldenAnswers(
        number=number,
        name=f"set-{number}",
        records=records,
        baseline=pair.baseline,
        challenger=pair.challenger,
        anchor=anchor,
        anchor_version=1,
        margin=margin,
    )
    return replace(made, **changes)


def judged(*sets: GoldenAnswers, **changes: Any) -> Verdict:
    return decide(replace(GOOD, golden=sets, **changes), CONFIG)


def test_a_set_that_keeps_its_margin_is_promoted_and_the_promise_is_stated() -> None:
    verdict = judged(answers(600, lost=6, gained=6))
    assert verdict.outcome == "promote", verdict
    (found,) = of_guard(verdict, "golden")
    assert found.sentence.startswith("golden set set-0 kept its accuracy: at worst ")
    assert found.sentence.endswith("5 allowed (600 records, 6 got worse, 6 got better)")
    assert found.numbers["looks"] == 1
    (since,) = of_guard(verdict, "golden_anchor")
    assert since.sentence.startswith("golden set set-0 kept its accuracy since v1, its anchor: at worst ")
    assert verdict.reason.endswith("; golden set set-0 kept")
    (promise,) = [each for each in verdict.notes if "golden set" in each.sentence]
    assert promise.sentence == (
        "golden set set-0: a challenger that truly lost 5 points or more on it is promoted at most 5 % of "
        "the time"
    )
    assert {*found.numbers, *since.numbers} <= set(NUMBERS)


def test_several_sets_are_summed_up_in_the_reason() -> None:
    verdict = judged(answers(600), answers(400, number=1))
    assert verdict.reason.endswith("; 2 golden sets kept")


def test_a_shown_loss_rejects_and_too_few_records_ask_a_person() -> None:
    verdict = judged(answers(600, lost=80))
    (found,) = of_guard(verdict, "golden")
    assert (verdict.outcome, found.answer, verdict.reason) == ("reject", "fail", found.sentence)
    assert "golden set set-0 lost between" in found.sentence
    assert "5 were allowed: keep the champion" in found.sentence
    verdict = judged(answers(30))
    (found,) = of_guard(verdict, "golden")
    assert (verdict.outcome, found.answer) == ("review", "undecided")
    floor = int(stats.floor_n(0.05, CONFIG.alpha))
    assert found.numbers["n_needed"] >= floor
    assert "30 records cannot settle it" in found.sentence


def test_none_lost_counts_and_promises_nothing() -> None:
    verdict = judged(answers(40, gained=3, margin=None))
    assert verdict.outcome == "promote", verdict
    (found,) = of_guard(verdict, "golden")
    assert found.sentence == (
        "golden set set-0 lost none of 37 records that the champion answers right (a count of these records, "
        "which promises nothing of others)"
    )
    assert not [each for each in verdict.notes if "golden set" in each.sentence]
    verdict = judged(answers(40, lost=1, gained=30, margin=None))
    (found,) = of_guard(verdict, "golden")
    assert (verdict.outcome, verdict.reason) == ("reject", found.sentence)
    assert found.sentence == (
        "golden set set-0 lost 1 of 10 records that the champion answers right; none may be lost: keep the "
        "champion"
    )
    assert set(found.numbers) <= set(NUMBERS)


def test_a_set_that_is_there_twice_hides_no_other() -> None:
    lost = replace(answers(600, lost=200), number=1, name="set-1")
    verdict = decide(replace(GOOD, golden=(answers(600), answers(600), lost)), CONFIG)
    twice, other = of_guard(verdict, "golden")
    assert (twice.answer, twice.numbers) == ("undecided", {"golden": 0})
    assert "set-0 is more than once" in twice.sentence
    assert (other.answer, verdict.outcome) == ("fail", "reject")


def test_what_was_lost_since_the_anchor_asks_a_person_and_never_rejects() -> None:
    for margin, lost in ((None, 1), (0.05, 100)):
        kept = answers(600, lost=100, margin=margin)
        kept = replace(kept, baseline=kept.challenger)
        anchor = kept.challenger.copy()  # type: ignore[union-attr]
        anchor[:lost] = True
        verdict = judged(replace(kept, anchor=anchor))
        (found,) = of_guard(verdict, "golden")
        (since,) = of_guard(verdict, "golden_anchor")
        assert (found.answer, since.answer, verdict.outcome) == ("pass", "undecided", "review"), verdict
        assert "since v1, its anchor" in since.sentence
        assert since.numbers["golden"] == 0


def test_the_anchor_is_held_to_the_budget_where_that_is_wider() -> None:
    config = CONFIG.model_copy(update={"budget": 0.2})
    verdict = decide(replace(GOOD, golden=(answers(600),)), config)
    assert [each.numbers["margin"] for each in of_guard(verdict, "golden_anchor")] == [0.2]
    assert [each.numbers["margin"] for each in of_guard(verdict, "golden")] == [0.05]
    config = CONFIG.model_copy(update={"budget": 0.01})
    verdict = decide(replace(GOOD, golden=(answers(600),)), config)
    assert [each.numbers["margin"] for each in of_guard(verdict, "golden_anchor")] == [0.05]


def test_an_anchor_that_is_the_champion_is_not_asked_twice() -> None:
    verdict = judged(answers(600, anchor=None, anchor_version=3))
    assert verdict.outcome == "promote"
    assert of_guard(verdict, "golden_anchor") == []
    verdict = judged(answers(600, anchor=None, anchor_version=None))
    assert verdict.outcome == "review"
    assert "the answers of the anchor are missing" in verdict.reason


def test_an_exhausted_set_is_no_evidence() -> None:
    verdict = judged(answers(600, looks=CONFIG.holdout_looks))
    assert verdict.outcome == "review"
    assert "exhausted" in of_guard(verdict, "golden")[0].sentence
    # A count of the same records promises nothing that looks could use up.
    assert judged(answers(600, looks=CONFIG.holdout_looks, margin=None)).outcome == "promote"


def test_a_first_version_is_noted_and_asked_about_where_its_answers_are_missing() -> None:
    new = (paired(600, gained=400, experience=0),)
    first = replace(GOOD, past=(), new=new, first=True, champion=None)
    verdict = decide(replace(first, golden=(answers(600, lost=100, baseline=None, anchor=None),)), CONFIG)
    assert verdict.outcome == "promote", verdict
    (note,) = [each for each in verdict.notes if each.about == "golden"]
    assert "the first version answers 500 of 600 records right" in note.sentence
    verdict = decide(replace(first, golden=(answers(600, challenger=None),)), CONFIG)
    assert verdict.outcome == "review"


def test_the_sets_share_the_alarm_and_each_is_held_to_all_of_alpha() -> None:
    sets = [answers(600, lost=10, number=number) for number in range(20)]
    config = CONFIG
    found = of_guard(decide(replace(GOOD, golden=tuple(sets)), config), "golden")
    assert {each.numbers["alpha"] for each in found} == {config.alpha}
    alone = of_guard(decide(replace(GOOD, golden=(sets[0],)), config), "golden")[0]
    assert found[0].numbers["p_drop_holm"] > alone.numbers["p_drop_holm"]
    late = of_guard(decide(replace(GOOD, golden=(sets[0],), attempt=3), config), "golden")[0]
    assert late.numbers["alpha"] == stats.spent(config.alpha, 3)


def _broken(kind: str, good: GoldenAnswers, side: str) -> Any:
    bits = getattr(good, side)
    return {
        "missing": None,
        "short": bits[:-1],
        "long": np.append(bits, True),
        "numbers": bits.astype(np.float64),
        "square": bits.reshape(1, -1),
        "nan": NOT_BITS,
        "empty": bits[:0],
        "text": "all right",
    }[kind]


@pytest.mark.parametrize("side", ["baseline", "challenger", "anchor"])
@pytest.mark.parametrize("kind", ["missing", "short", "long", "numbers", "square", "nan", "empty", "text"])
@pytest.mark.parametrize("margin", [0.05, None])
def test_broken_answers_never_promote(side: str, kind: str, margin: float | None) -> None:
    good = answers(200, margin=margin)
    broken = replace(good, **{side: _broken(kind, good, side)})
    for sets in ((broken,), (good, replace(broken, number=1))):
        verdict = judged(*sets)
        assert verdict.outcome == "review", verdict
        assert "golden set" in verdict.reason


@pytest.mark.parametrize(
    "sets",
    [
        None,
        "golden",
        (None,),
        (answers(200), answers(200)),
        (answers(0),),
        (answers(200, margin=math.nan),),
        (answers(200, margin=-0.1),),
        (answers(200, margin=1.0),),
        (answers(200, margin=cast("Any", "5 %")),),
        (answers(200, looks=-1),),
        (answers(200, looks=cast("Any", math.nan)),),
        (replace(answers(200), records=199),),
        (replace(answers(200), records=cast("Any", None)),),
    ],
)
def test_hostile_sets_never_promote(sets: Any) -> None:
    verdict = decide(replace(GOOD, golden=sets), CONFIG)
    assert verdict.outcome == "review", verdict
    assert verdict.as_dict()


@settings(max_examples=60, deadline=None)
@given(
    records=st.integers(1, 400),
    lost=st.floats(0, 1),
    gained=st.floats(0, 1),
    margin=st.none() | st.floats(0.001, 0.9),
)
def test_only_what_passes_both_questions_is_promoted(
    records: int, lost: float, gained: float, margin: float | None
) -> None:
    worse = int(lost * records)
    made = answers(records, lost=worse, gained=int(gained * (records - worse)), margin=margin)
    found = golden(replace(GOOD, golden=(made,)), CONFIG)
    verdict = judged(made)
    passes = all(each.answer == "pass" for each in (*of_guard(verdict, "golden"),))
    assert len(of_guard(verdict, "golden")) == 1
    assert found[0] == of_guard(verdict, "golden")[0]
    if margin is None and worse:
        assert verdict.outcome == "reject" or made.baseline is None or not made.baseline.any()
    if not passes:
        assert verdict.outcome != "promote"


def test_a_loss_of_the_margin_is_promoted_at_most_alpha_of_the_time() -> None:
    random, wrong, tries, n = np.random.default_rng(5), 0, 400, 400
    for _ in range(tries):
        lost, gained, _ = random.multinomial(n, [0.085, 0.035, 0.88])
        found = of_guard(judged(answers(n, lost=int(lost), gained=int(gained))), "golden")
        wrong += found[0].answer == "pass"
    # Exactly: P(at least 33 of 400 | 0.05) is below 0.4 %.
    assert wrong <= 32
