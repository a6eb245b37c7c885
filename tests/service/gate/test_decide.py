"""The verdict: how findings fold, how it is summed up, and what waits for a person."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.gate.base import (
    Column,
    DataEvidence,
    Evidence,
    Finding,
    Freeze,
    GateConfig,
    NearDuplicates,
    PairedAnswers,
    ShiftEvidence,
)
from service.gate.decide import AFTER_LEARNING, decide
from tests.support.gate_parts import CLEAN, CONFIG, first, of_guard, paired

PAST = tuple(paired(600, lost=6, gained=6, experience=each) for each in range(4))
NEW = (paired(600, gained=400, experience=4),)
GOOD = Evidence(CLEAN, past=PAST, new=NEW)
DROP = paired(600, lost=100, experience=2)


SHIFTED = ShiftEvidence(
    verdict="shifted",
    alpha=0.001,
    p_values={"features": 1e-9},
    distance=0.4,
    feature=3,
    reference_records=500,
    window_records=600,
    label_shift=0.02,
)
RATHER_WRONG = replace(CLEAN, label_error_rate=0.1)
"""Seven points more labels than before disagree with their neighbours; ten are allowed."""


@pytest.mark.parametrize(
    ("shift", "on_shift", "data", "outcome"),
    [
        (SHIFTED, "note", CLEAN, "promote"),
        (SHIFTED, "note", RATHER_WRONG, "promote"),
        (SHIFTED, "strict", CLEAN, "promote"),
        (SHIFTED, "strict", RATHER_WRONG, "reject"),
        (replace(SHIFTED, verdict="same"), "strict", RATHER_WRONG, "promote"),
        (None, "strict", RATHER_WRONG, "promote"),
        (SHIFTED, "review", CLEAN, "review"),
        (replace(SHIFTED, verdict="undecided"), "review", CLEAN, "review"),
        (replace(SHIFTED, verdict="same"), "review", CLEAN, "promote"),
    ],
)
def test_a_shift_never_fails_a_model_and_is_routed(
    shift: ShiftEvidence | None, on_shift: Any, data: DataEvidence, outcome: str
) -> None:
    config = CONFIG.model_copy(update={"on_shift": on_shift})
    verdict = decide(replace(GOOD, data=data, shift=shift), config)
    assert verdict.outcome == outcome, verdict
    assert [note.about for note in verdict.notes if note.about != "promise"] == (["shift"] if shift else [])


@pytest.mark.parametrize("more", [{"negative_flips": 0.05}, {"groups": 0.05}])
def test_a_holdout_that_looks_obsolete_waits_for_a_person_whatever_guards_are_on(more: Any) -> None:
    sites = {"site": Column.of(np.repeat(["north", "south"], 300))}
    kept, new = replace(paired(600, experience=1), groups=sites), replace(NEW[0], groups=sites)
    lost = replace(paired(600, lost=200), near_duplicates=NearDuplicates(300, 250, 0.02), groups=sites)
    verdict = decide(replace(GOOD, past=(lost, kept), new=(new,)), CONFIG.model_copy(update=more))
    assert verdict.outcome == "review"
    assert "its holdout looks obsolete" in verdict.reason


def test_the_reason_tells_the_margin_that_was_asked() -> None:
    lax = CONFIG.model_copy(update={"small_margin": 0.2})
    verdict = decide(replace(GOOD, past=tuple(paired(30, experience=each) for each in (1, 2))), lax)
    assert verdict.reason == "both past holdouts kept within 20 points; experience 4 learnt"
    fine = decide(GOOD, CONFIG.model_copy(update={"margin": 0.0425})).reason
    assert fine == "all 4 past holdouts kept within their margins, 4.25 to 7.8 points; experience 4 learnt"


def test_all_pass_promotes() -> None:
    verdict = decide(GOOD, CONFIG)
    assert verdict.outcome == "promote"
    assert verdict.reason == (
        "all 4 past holdouts kept within their margins, 5 to 7.8 points; experience 4 learnt"
    )
    guards = [finding.guard for finding in verdict.findings]
    # Two blocks of two, and each by itself.
    assert guards == ["values", "anomalies", "labels", *["retention"] * 6, "learning"]
    assert [note.about for note in verdict.notes] == ["promise", "promise"]


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (
            replace(GOOD, past=(*PAST, paired(50, experience=5))),
            "all 5 past holdouts kept within their margins, 5 to 7.8 points; experience 4 learnt",
        ),
        (
            replace(GOOD, past=tuple(paired(50, experience=each) for each in (1, 2))),
            "both past holdouts kept within 5 points; experience 4 learnt",
        ),
        (replace(GOOD, past=PAST[:1]), "the past holdout kept within 5 points; experience 4 learnt"),
        (
            replace(GOOD, past=tuple(paired(1500, experience=each) for each in (0, 1))),
            "both past holdouts kept within 5 points; experience 4 learnt",
        ),
        (
            replace(GOOD, new=tuple(replace(NEW[0], experience=each) for each in (4, 5, 6, 7))),
            "all 4 past holdouts kept within their margins, 5 to 7.8 points; experiences 4 to 7 learnt",
        ),
        (
            Evidence(DataEvidence(600, 0), new=(first(600, majority=60, right=540),), first=True),
            "experience 0 learnt; no past holdouts yet",
        ),
    ],
)
def test_promotion_is_summed_up(evidence: Evidence, reason: str) -> None:
    verdict = decide(evidence, CONFIG)
    assert (verdict.outcome, verdict.reason) == ("promote", reason)


def test_a_drop_rejects_and_the_worst_is_the_reason() -> None:
    worse = replace(paired(600, lost=200), experience=3)
    verdict = decide(replace(GOOD, past=(PAST[0], PAST[1], DROP, worse)), CONFIG)
    assert verdict.outcome == "reject"
    assert verdict.reason.startswith("experience 3 lost between 30")
    small = decide(replace(GOOD, past=(paired(20, experience=1), DROP)), CONFIG)
    assert small.outcome == "reject"
    failed = {each.experience: each.sentence for each in small.findings if each.answer == "fail"}
    assert set(failed) == {2, None}
    assert failed[2].startswith("experience 2 lost between ")
    assert small.reason == failed[2], "an experience that is shown to have lost says more than its block"


def test_too_little_evidence_goes_to_review() -> None:
    verdict = decide(replace(GOOD, past=(paired(43, experience=9),)), CONFIG)
    assert verdict.outcome == "review"
    assert verdict.reason.startswith("experience 9: all past holdouts that can be compared hold 43 records")


def test_missing_retention_is_never_promoted() -> None:
    verdict = decide(replace(GOOD, past=()), CONFIG)
    assert verdict.outcome == "review"
    assert verdict.reason.startswith("nothing that the champion learnt was compared")


def test_what_small_holdouts_lost_together_is_not_promoted() -> None:
    past = tuple(paired(1500, experience=each) for each in (0, 1))
    small = tuple(paired(60, lost=12, experience=each) for each in (5, 7))
    verdict = decide(replace(GOOD, past=(*past, *small)), CONFIG)
    assert verdict.outcome == "reject"
    failed = [each.sentence.split(" lost ")[0] for each in verdict.findings if each.answer == "fail"]
    assert failed[-2:] == ["experience 5", "experience 7"]
    noisy = tuple(paired(60, lost=6, gained=4, experience=each) for each in (5, 7))
    assert decide(replace(GOOD, past=noisy), CONFIG).outcome == "review"


def test_what_a_whole_block_lost_is_not_hidden_by_other_blocks() -> None:
    lost = tuple(paired(700, lost=53, gained=23, experience=each) for each in (0, 1))
    gained = tuple(paired(700, gained=70, experience=each) for each in (2, 3, 5, 6))
    verdict = decide(replace(GOOD, past=(*lost, *gained)), CONFIG)
    assert verdict.outcome != "promote"
    (block,) = (each for each in of_guard(verdict, "retention") if each.numbers.get("lost") == 106)
    assert block.answer != "pass"
    assert block.sentence.startswith("experiences 0 and 1 ")


def test_a_gain_on_new_data_never_pays_for_a_loss_on_old() -> None:
    for n in (30, 600, 5000):
        new = (paired(n, gained=n, experience=4),)
        verdict = decide(replace(GOOD, past=(PAST[0], DROP), new=new), CONFIG)
        assert verdict.outcome == "reject"
        assert verdict.reason.startswith(("experience 2 lost", "experiences 0 and 2 lost"))


def test_a_margin_of_its_own_is_told_with_the_others() -> None:
    own = replace(PAST[0], margin=0.1)
    verdict = decide(replace(GOOD, past=(own, PAST[1])), CONFIG)
    assert verdict.outcome == "promote"
    assert {each.experience: each.numbers["margin"] for each in of_guard(verdict, "retention")} == {
        0: 0.1,
        1: 0.05,
    }
    assert "kept within their margins, 5 to 10 points;" in verdict.reason


def test_a_margin_that_is_tighter_than_the_pipelines_is_not_told_of_the_blocks() -> None:
    past = (replace(paired(2000), margin=0.01), paired(2000, experience=1))
    verdict = decide(replace(GOOD, past=past), CONFIG)
    assert verdict.outcome == "promote"
    assert (
        verdict.reason == "both past holdouts kept within their margins, 1 to 5 points; experience 4 learnt"
    )


def test_broken_data_rejects_before_anything_is_learnt() -> None:
    broken = Evidence(replace(CLEAN, label_error_rate=0.9), learnt=False)
    verdict = decide(broken, CONFIG)
    assert verdict.outcome == "reject"
    assert verdict.reason.startswith("labels: 90 % of the batch disagree")
    assert [finding.guard for finding in verdict.findings] == ["values", "anomalies", "labels"]
    learnt_anyway = decide(replace(GOOD, data=broken.data, past=(DROP,)), CONFIG)
    assert learnt_anyway.outcome == "reject"
    assert learnt_anyway.reason == verdict.reason


def test_nothing_learnt_is_never_promoted() -> None:
    assert decide(replace(GOOD, learnt=False), CONFIG).outcome == "review"
    assert decide(replace(GOOD, new=()), CONFIG).outcome == "review"
    assert decide(GOOD, CONFIG, after=()).outcome == "review"


def test_first_version_for_a_person() -> None:
    evidence = Evidence(DataEvidence(600, 0), new=(first(600, majority=60, right=540),), first=True)
    verdict = decide(evidence, GateConfig(first_update="review"))
    assert verdict.outcome == "review"
    assert "asks that a person approves it" in verdict.reason


def test_the_cause_is_the_guard_of_the_finding_that_decided() -> None:
    assert decide(GOOD, CONFIG).cause is None
    assert decide(replace(GOOD, past=(PAST[0], DROP)), CONFIG).cause == "retention"
    assert decide(replace(GOOD, past=()), CONFIG).cause == "retention"
    learnt = Evidence(DataEvidence(600, 0), new=(first(600, majority=60, right=540),), first=True)
    assert decide(learnt, GateConfig(first_update="review")).cause == "first_update"
    shifted = CONFIG.model_copy(update={"on_shift": "review"})
    assert decide(replace(GOOD, shift=SHIFTED), shifted).cause == "shift"
    assert decide(replace(GOOD, freeze=Freeze("u-1", None)), CONFIG).cause == "freeze"


def test_a_guard_that_raises_goes_to_review_and_is_named() -> None:
    def broken(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
        raise ZeroDivisionError("no groups")

    verdict = decide(GOOD, CONFIG, after=(*AFTER_LEARNING, ("group", broken)))
    assert verdict.outcome == "review"
    assert verdict.reason == (
        "the group guard broke (ZeroDivisionError: no groups), so its question is open; "
        "repair it and decide again"
    )
    dropped = decide(replace(GOOD, past=(DROP,)), CONFIG, after=(("group", broken), *AFTER_LEARNING))
    assert dropped.outcome == "reject"


def test_the_verdict_is_json() -> None:
    for evidence in (GOOD, replace(GOOD, past=(DROP, paired(0))), Evidence(CLEAN)):
        verdict = decide(evidence, CONFIG)
        restored = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
        assert restored["outcome"] == verdict.outcome
        assert len(restored["findings"]) == len(verdict.findings)


def test_deciding_twice_gives_the_same_verdict() -> None:
    evidence = replace(GOOD, past=(*PAST, DROP, paired(10, experience=8)))
    assert decide(evidence, CONFIG) == decide(evidence, CONFIG)


def test_findings_carry_plain_numbers() -> None:
    def plain(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, np.generic)

    every = decide(replace(GOOD, past=(DROP, *PAST, paired(9))), CONFIG).findings
    assert all(plain(value) for finding in every for value in finding.numbers.values())


@pytest.mark.parametrize("more", [{}, {"negative_flips": 0.05}, {"groups": 0.05}])
def test_small_holdouts_that_look_obsolete_wait_for_a_person_whatever_guards_are_on(more: Any) -> None:
    sites = {"site": Column.of(np.repeat(["north", "south"], 30))}
    small = tuple(
        replace(
            paired(60, lost=30, experience=each), near_duplicates=NearDuplicates(50, 45, 0.02), groups=sites
        )
        for each in (1, 2)
    )
    large = {"site": Column.of(np.repeat(["north", "south"], 300))}
    kept, new = replace(paired(600, experience=3), groups=large), replace(NEW[0], groups=large)
    evidence = replace(GOOD, past=(kept, *small), new=(new,))
    verdict = decide(evidence, CONFIG.model_copy(update=more))
    assert verdict.outcome == "review", verdict.reason
    assert "looks obsolete" in verdict.reason


@pytest.mark.parametrize(
    "past",
    [
        # One of many small ones, and a full one that would fill the pool.
        (
            replace(paired(60, lost=50, experience=1), near_duplicates=NearDuplicates(50, 45, 0.02)),
            *(
                replace(paired(60, experience=each), near_duplicates=NearDuplicates(50, 1, 0.02))
                for each in range(5, 15)
            ),
        ),
        (
            replace(paired(40, experience=1), near_duplicates=NearDuplicates(40, 1, 0.02)),
            replace(paired(600, lost=120, experience=2), near_duplicates=NearDuplicates(30, 25, 0.02)),
        ),
    ],
    ids=["a small one", "a full one"],
)
def test_a_holdout_that_looks_obsolete_fails_no_pool(past: tuple[PairedAnswers, ...]) -> None:
    verdict = decide(replace(GOOD, past=(*past, paired(4000, experience=20))), CONFIG)
    assert verdict.outcome == "review", verdict.reason
    assert "looks obsolete" in verdict.reason
    assert not [each for each in verdict.findings if each.answer == "fail"]
