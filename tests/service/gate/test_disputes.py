"""Disputes: the second rejection in a row by the same holdouts is a question, and never a promotion."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.gate.base import (
    DISPUTE,
    TRAFFIC,
    DataEvidence,
    Evidence,
    GateConfig,
    NearDuplicates,
    PairedAnswers,
    ShiftEvidence,
    Verdict,
    failed_on,
)
from service.gate.decide import decide
from tests.support.gate_parts import CLEAN, CONFIG, of_guard, paired
from tests.support.random_evidence import random_case

LOST = paired(600, lost=100, experience=2)
PAST = (*(paired(600, lost=6, gained=6, experience=each) for each in (0, 1, 3)), LOST)
REJECTED = Evidence(CLEAN, past=PAST, new=(paired(600, gained=400, experience=4),), champion=1, attempt=2)
ASKS = (
    "experience 2 stopped this update and the one before: are the labels of its holdout still true? If not, "
    "retire it (holdfast holdout retire), or correct them (holdfast holdout relabel); if they are, keep it "
    "(holdfast holdout keep), and reject the update"
)
SMALL = tuple(paired(60, lost=4, experience=each) for each in range(12))
"""Each too small to be shown to have lost by itself."""


def shift(verdict: Any) -> ShiftEvidence:
    return ShiftEvidence(verdict, 0.001, {"features": 1e-9}, 0.4, 1, 500, 500, 0.0)


def with_traffic(evidence: Evidence, shares: Mapping[int, float | None]) -> Evidence:
    """The evidence where these past holdouts stand for so much of the traffic."""
    past = tuple(replace(each, traffic=shares.get(each.experience)) for each in evidence.past)
    return replace(evidence, past=past)


def asked(evidence: Evidence, config: GateConfig = CONFIG) -> tuple[int, ...]:
    """The experiences that a person is asked about; none: the update is rejected as before."""
    verdict = decide(evidence, config)
    found = of_guard(verdict, DISPUTE) or of_guard(verdict, TRAFFIC)
    if not found:
        assert verdict.outcome == "reject"
        return ()
    assert (verdict.outcome, verdict.reason) == ("review", found[0].sentence)
    assert found == [verdict.findings[-1]]
    return found[0].experiences


def test_the_first_rejection_stands_and_the_second_by_the_same_holdout_is_a_question() -> None:
    first = decide(REJECTED, CONFIG)
    assert first.outcome == "reject"
    assert failed_on(first.findings) == (0, 1, 2, 3), "of the block that it makes fail as well"
    second = decide(replace(REJECTED, disputed=failed_on(first.findings)), CONFIG)
    assert (second.outcome, second.reason) == ("review", ASKS)
    (question,) = of_guard(second, DISPUTE)
    assert (question.answer, question.experience, question.experiences) == ("undecided", 2, (2,))
    assert failed_on(second.findings) == failed_on(first.findings), "asked until it is answered"
    assert second.findings[:-1] == first.findings, "what was found stays as it is"


def test_another_holdout_than_before_rejects_again() -> None:
    wide = tuple(replace(each, margin=0.05) for each in PAST)
    assert failed_on(decide(replace(REJECTED, past=wide), CONFIG).findings) == (2,)
    assert asked(replace(REJECTED, past=wide, disputed=(0, 1, 3, 7))) == ()
    assert asked(replace(REJECTED, past=wide, disputed=(7, 2))) == (2,)


def test_a_block_that_fails_names_its_members() -> None:
    evidence = replace(REJECTED, past=SMALL)
    verdict = decide(evidence, CONFIG)
    assert verdict.outcome == "reject"
    failed = [each for each in verdict.findings if each.answer == "fail"]
    assert {(each.guard, each.experience) for each in failed} == {("retention", None)}
    members = failed_on(verdict.findings)
    assert members == tuple(range(12)), "fewer than these do not fill a block"
    assert asked(replace(evidence, disputed=(3, 40))) == (), "the others fail without it"
    assert asked(replace(evidence, disputed=(40,))) == ()
    question = decide(replace(evidence, disputed=members), CONFIG).reason
    assert question.startswith("experiences 0 to 11 stopped this update and the one before: ")
    assert "their holdouts" in question


def test_a_loss_that_the_question_does_not_name_stays_a_rejection() -> None:
    worse = (*REJECTED.past, paired(600, lost=200, experience=5))
    assert asked(replace(REJECTED, past=worse, disputed=(2,))) == ()
    assert set(asked(replace(REJECTED, past=worse, disputed=(2, 5)))) == {2, 5}


@pytest.mark.parametrize(
    "worse",
    [
        {"data": replace(CLEAN, label_error_rate=0.9)},
        {"new": (paired(600, lost=300, experience=4),)},
        {"learnt": False, "data": replace(CLEAN, nonfinite_records=3)},
    ],
    ids=["data", "learning", "stopped"],
)
def test_an_update_that_fails_otherwise_too_stays_rejected(worse: dict[str, Any]) -> None:
    assert asked(replace(REJECTED, disputed=(2,), **worse)) == ()


def rare(*, gone_on: tuple[int, ...], lost: tuple[int, ...]) -> Evidence:
    """Holdouts of 1,000 records, 20 of them of a rare class, which is lost on some of them."""
    labels = np.repeat(np.array([0, 1], dtype=np.int64), [980, 20])
    past = tuple(
        PairedAnswers(
            each,
            np.ones(1000, dtype=np.bool_),
            ((labels == 0) | (each not in gone_on)) & ((np.arange(1000) >= 200) | (each not in lost)),
            labels=labels,
        )
        for each in range(4)
    )
    return replace(REJECTED, past=past, disputed=(2,))


def test_a_rare_class_counts_as_another_failure_where_other_holdouts_lost_it_too() -> None:
    assert of_guard(decide(rare(gone_on=(2,), lost=(2,)), CONFIG), "rare_class")
    everywhere = decide(rare(gone_on=(0, 1, 2, 3), lost=(2,)), CONFIG)
    assert {each.answer for each in of_guard(everywhere, "rare_class")} == {"fail"}
    only_class = rare(gone_on=(0, 1, 2, 3), lost=())
    assert asked(only_class) == ()


def test_a_rare_class_that_the_same_holdouts_lost_is_part_of_the_question() -> None:
    own = rare(gone_on=(2,), lost=(2,))
    own = replace(own, past=tuple(replace(each, margin=0.05) for each in own.past))
    for_class = of_guard(decide(own, CONFIG), "rare_class")
    assert [each.answer for each in for_class] == ["fail"]
    assert asked(own) == (2,)
    elsewhere = rare(gone_on=(0, 1, 3), lost=(2,))
    elsewhere = replace(elsewhere, past=tuple(replace(each, margin=0.05) for each in elsewhere.past))
    assert asked(elsewhere) == ()


def test_what_is_kept_stays_rejected_until_it_moves() -> None:
    disputed = replace(REJECTED, disputed=(2,))
    kept = replace(disputed, kept=(2,))
    assert asked(disputed) == (2,)
    assert asked(kept) == ()
    for still in ("same", "undecided"):
        assert asked(replace(kept, shift=shift(still))) == ()
    assert asked(replace(kept, shift=shift("shifted"))) == (2,)
    through = replace(kept, kept_shifted=(2,), shift=shift("shifted"))
    assert asked(through) == (), "it was kept when batches were shifted already"
    assert asked(replace(through, kept_shifted=(3,))) == (2,)
    assert asked(replace(kept, kept=(1, 3))) == (2,), "others are kept"
    assert asked(replace(kept, kept_shifted=(2,), kept=(1,), shift=shift("shifted"))) == (2,)


def test_relabelled_near_duplicates_ask_whatever_is_kept() -> None:
    moved = replace(LOST, near_duplicates=NearDuplicates(100, 80, 0.02))
    verdict = decide(replace(REJECTED, past=(*PAST[:3], moved), disputed=(2,), kept=(2,)), CONFIG)
    assert verdict.outcome == "review"
    assert "looks obsolete" in verdict.reason


def test_a_block_is_asked_about_by_its_members_that_are_not_kept() -> None:
    evidence = replace(REJECTED, past=SMALL, disputed=tuple(range(12)))
    members = asked(evidence)
    assert asked(replace(evidence, kept=(0, 1))) == members[2:]
    assert asked(replace(evidence, kept=members)) == ()


def test_a_kept_holdout_that_fails_by_itself_rejects_what_another_would_ask_about() -> None:
    past = (*PAST[:2], replace(PAST[2], margin=0.05), replace(LOST, margin=0.05))
    both = replace(REJECTED, past=(*past, paired(600, lost=90, experience=5, margin=0.05)), disputed=(2, 5))
    assert asked(both) == (2, 5)
    assert asked(replace(both, kept=(2,))) == ()


def test_a_loss_that_little_of_the_traffic_would_see_is_a_question() -> None:
    verdict = decide(with_traffic(REJECTED, {2: 0.01}), CONFIG)
    assert verdict.outcome == "review"
    (found,) = (each for each in of_guard(verdict, "retention") if each.experience == 2)
    assert found.numbers["traffic"] == 0.01
    (question,) = of_guard(verdict, TRAFFIC)
    assert (question.experience, question.experiences) == (2, (2,))
    assert question.numbers["traffic"] * question.numbers["loss_upper"] < CONFIG.margin
    assert question.sentence == verdict.reason
    assert verdict.reason == (
        f"experience 2 lost {found.sentence.split('lost ')[1].split(';')[0]}, but stands for 1 % of the "
        "traffic: approve the update if that may be lost there, else reject it"
    )
    plain = decide(REJECTED, CONFIG)
    assert [each.sentence for each in verdict.findings[:-1]] == [each.sentence for each in plain.findings]


@pytest.mark.parametrize("share", [0.3, 1.0, None, float("nan"), -0.01, 1.5, float("inf")])
def test_a_loss_that_enough_of_the_traffic_sees_or_that_nobody_weighed_is_rejected(share: Any) -> None:
    assert asked(with_traffic(REJECTED, {2: share})) == ()


def test_a_dispute_that_explains_nothing_leaves_the_question_of_little_traffic() -> None:
    both = replace(REJECTED, past=(*PAST[:3], LOST, paired(600, lost=100, experience=5)))
    rare = with_traffic(both, dict.fromkeys(range(6), 0.001))
    assert asked(replace(both, disputed=(2,))) == ()
    assert asked(rare) == asked(replace(rare, disputed=(2,))) != ()


def test_every_experience_that_fails_must_stand_for_little_traffic() -> None:
    both = replace(REJECTED, past=(*PAST, paired(600, lost=90, experience=5)))
    assert asked(with_traffic(both, {2: 0.01})) == ()
    assert asked(with_traffic(both, {5: 0.01, 0: 0.0})) == ()
    assert asked(with_traffic(both, {2: 0.01, 5: 0.02})) == (2, 5)


def test_a_block_stands_for_the_traffic_of_its_members_together() -> None:
    evidence = replace(REJECTED, past=SMALL)
    assert asked(with_traffic(evidence, dict.fromkeys(range(12), 0.01))) == tuple(range(12))
    assert asked(with_traffic(evidence, dict.fromkeys(range(12), 1 / 12))) == ()
    assert asked(with_traffic(evidence, dict.fromkeys(range(11), 0.01))) == ()


def test_little_traffic_excuses_no_other_failure_and_nothing_that_is_kept() -> None:
    little = with_traffic(REJECTED, {2: 0.01})
    assert asked(replace(little, data=replace(CLEAN, label_error_rate=0.9))) == ()
    assert asked(replace(little, new=(paired(600, lost=300, experience=4),))) == ()
    assert asked(replace(little, kept=(2,))) == ()
    assert of_guard(decide(replace(little, disputed=(2,)), CONFIG), DISPUTE), "the dispute is asked first"


NONSENSE: tuple[Any, ...] = (None, 2, "2", ("2",), (None,), (float("nan"),), ((),), ([],))


@pytest.mark.parametrize("nonsense", NONSENSE, ids=repr)
@pytest.mark.parametrize("field", ["disputed", "kept", "kept_shifted"])
def test_evidence_that_makes_no_sense_promotes_nothing(field: str, nonsense: Any) -> None:
    evidence = replace(REJECTED, disputed=(2,), shift=shift("shifted"), kept=(3,))
    verdict = decide(replace(evidence, **{field: nonsense}), CONFIG)
    assert verdict.outcome in ("review", "reject")
    strange = replace(evidence, shift=cast("Any", "shifted"))
    assert decide(strange, CONFIG).outcome != "promote"


INDICES = st.lists(st.integers(-1, 20), max_size=20).map(tuple)


@settings(deadline=None, max_examples=60)
@given(
    index=st.integers(0, 10_000),
    disputed=INDICES | st.just(tuple(range(20))),
    kept=INDICES,
    kept_shifted=INDICES,
    moved=st.sampled_from(["shifted", "same", "undecided", None]),
    shares=st.dictionaries(st.integers(0, 16), st.floats(0, 1) | st.just(0.001) | st.just(float("nan"))),
)
def test_a_dispute_turns_rejections_into_questions_and_nothing_else(
    index: int,
    disputed: tuple[int, ...],
    kept: tuple[int, ...],
    kept_shifted: tuple[int, ...],
    moved: Any,
    shares: dict[int, float],
) -> None:
    evidence, config = random_case(11, index, questions=False)
    evidence = replace(evidence, shift=shift(moved) if moved else None)
    without = decide(evidence, config)
    evidence = with_traffic(evidence, shares)
    marked = replace(evidence, disputed=disputed, kept=kept, kept_shifted=kept_shifted)
    verdict = decide(marked, config)
    if verdict.outcome == without.outcome:
        assert verdict.reason == without.reason
        assert [each.sentence for each in verdict.findings] == [each.sentence for each in without.findings]
        return
    assert (without.outcome, verdict.outcome) == ("reject", "review")
    (question,) = [*of_guard(verdict, DISPUTE), *of_guard(verdict, TRAFFIC)]
    within = set(disputed) if question.guard == DISPUTE else set(shares)
    assert set(question.experiences) <= set(failed_on(without.findings)) & within
    assert {each.guard for each in failures(verdict)} <= {"retention", "rare_class"}


def failures(verdict: Verdict) -> list[Any]:
    return [each for each in verdict.findings if each.answer == "fail"]


def test_batches_that_were_stopped_are_not_disputed() -> None:
    stopped = Evidence(DataEvidence(600, 3), learnt=False, disputed=(0, 1, 2))
    assert asked(stopped) == ()
