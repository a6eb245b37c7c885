"""Retention: blocks, experiences by themselves, small ones with their neighbours; what each finding says."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from service.gate import stats
from service.gate.base import Evidence, Finding, GateConfig, Note, PairedAnswers, PastExperience
from service.gate.guards.retention import records_of_block, records_of_single, retention, single_margins
from tests.support.gate_parts import CLEAN, CONFIG, NOT_BITS, paired

CLOSED = records_of_block(CONFIG, CONFIG.margin, alpha=CONFIG.alpha)
"""Records from which on a block is closed."""
ALONE = records_of_single(CONFIG, alpha=CONFIG.alpha)
"""Records from which on an experience is judged by itself."""


def answered(
    *past: PairedAnswers,
    config: GateConfig = CONFIG,
    first: bool = False,
    attempt: int | None = None,
    history: Sequence[PastExperience] = (),
) -> tuple[list[Finding], list[Note]]:
    evidence = Evidence(CLEAN, past=past, first=first, attempt=attempt, history=tuple(history))
    found = retention(evidence, config)
    return (
        [each for each in found if isinstance(each, Finding)],
        [each for each in found if isinstance(each, Note)],
    )


def retained(*past: PairedAnswers, config: GateConfig = CONFIG) -> list[Finding]:
    return answered(*past, config=config)[0]


def settled(n: int) -> float:
    """The margin that so many records settle."""
    return float(single_margins(np.array([n]), CONFIG, alpha=CONFIG.alpha)[0])


def several(n: int, experiences: range, *, lost: int = 0, gained: int = 0) -> list[PairedAnswers]:
    return [paired(n, lost=lost, gained=gained, experience=each) for each in experiences]


def test_records_that_the_tests_below_assume() -> None:
    assert (CLOSED, ALONE) == (1323, 181)


def test_kept_accuracy_passes() -> None:
    [found] = retained(paired(600, lost=12, gained=15))
    assert (found.answer, found.experience) == ("pass", 0)
    assert found.sentence == (
        "experience 0 kept its accuracy: at worst 1.1 points lost, 5 allowed "
        "(600 records, 12 got worse, 15 got better)"
    )
    assert found.numbers["n"] == 600
    assert found.numbers["margin"] == 0.05
    assert found.numbers["loss"] == pytest.approx(-0.005)
    assert found.numbers["p_noninferior"] <= 0.05


def test_gain_is_called_a_gain() -> None:
    [found] = retained(paired(600, gained=60, experience=1))
    assert found.answer == "pass"
    assert found.sentence.startswith("experience 1 gained: at least 8")


def test_drop_fails() -> None:
    [found] = retained(paired(600, lost=40, gained=8, experience=2), config=GateConfig())
    assert found.answer == "fail"
    assert found.sentence == (
        "experience 2 lost between 3.5 and 7.4 points; 2 were allowed: "
        "keep the champion, and replay more of experience 2"
    )


def test_everything_lost_fails_with_one_number() -> None:
    [found] = retained(paired(20_000, lost=20_000))
    assert found.answer == "fail"
    assert "lost about 100 points; 5 were allowed" in found.sentence


def test_neighbours_are_judged_in_a_block_and_each_by_itself_at_what_its_records_settle() -> None:
    block, older, newer = retained(paired(600, lost=12, gained=15), paired(500, gained=2, experience=1))
    assert (block.experience, block.answer) == (None, "pass")
    assert block.sentence == (
        "experiences 0 and 1 kept their accuracy together: at worst 0.4 points lost, 5 allowed "
        "(1100 records, 12 got worse, 17 got better)"
    )
    assert (block.numbers["pooled"], block.numbers["joined"], block.numbers["margin"]) == (2, 0, 0.05)
    assert older.sentence.startswith(
        "experience 0 by itself kept its accuracy: at worst 1.1 points lost, 7.8"
    )
    assert [(each.experience, each.numbers["margin"]) for each in (older, newer)] == [(0, 0.078), (1, 0.086)]
    for each, n in ((older, 600), (newer, 500)):
        least = stats.settled_margin(n, CONFIG.alpha, churn=CONFIG.planned_churn, power=0.9996)
        assert 0 <= each.numbers["margin"] - least <= 0.001
        assert "pooled" not in each.numbers


@pytest.mark.parametrize("n", [CLOSED, 4 * CLOSED])
def test_a_block_of_one_has_one_finding_at_its_margin(n: int) -> None:
    found = retained(paired(n), paired(n, experience=1))
    assert [(each.experience, each.numbers["margin"]) for each in found] == [(0, 0.05), (1, 0.05)]
    assert all("pooled" not in each.numbers for each in found)


def test_those_too_small_for_a_margin_alone_are_judged_with_neighbours() -> None:
    small = (paired(65, lost=2, experience=2), paired(65, gained=2, experience=3))
    full, block, unit, *alone = retained(*several(700, range(2), lost=6, gained=6), *small)
    assert (full.numbers["pooled"], full.numbers["n"]) == (2, 1400)
    assert (block.numbers["pooled"], block.numbers["joined"], block.numbers["n"]) == (2, 2, 1530)
    assert (unit.numbers["pooled"], unit.numbers["joined"], unit.numbers["n"]) == (2, 1, 830)
    assert (block.numbers["margin"], unit.numbers["margin"]) == (0.05, settled(830))
    assert [(each.experience, each.answer) for each in (block, unit)] == [(None, "pass")] * 2
    assert [each.experience for each in alone] == [0, 1]


def test_a_unit_says_that_its_members_are_too_small_by_themselves() -> None:
    found = retained(*several(100, range(12)))
    units = [each for each in found if "too small" in each.sentence]
    assert len(units) == 6
    assert units[0].sentence == (
        "experiences 0 and 1, each too small by itself, kept their accuracy together: at worst 1.8 points "
        "lost, 14.2 allowed (200 records, 0 got worse, 0 got better)"
    )
    assert {each.numbers["margin"] for each in units} == {0.142}
    assert {(each.numbers["pooled"], each.numbers["joined"]) for each in units} == {(2, 0)}
    assert all(each.numbers["margin"] <= CONFIG.single_margin for each in units)


def test_one_small_one_borrows_neighbours_and_its_findings_name_it() -> None:
    found = retained(*several(700, range(2)), paired(50, experience=5))
    of_it = [each for each in found if each.experience == 5]
    assert [each.sentence.split(": at worst")[0] for each in of_it] == [
        "experience 5 kept its accuracy together with experiences 0 and 1",
        "experience 5, too small to be judged by itself, kept its accuracy together with experience 1",
    ]
    assert [(each.numbers["pooled"], each.numbers["joined"]) for each in of_it] == [(1, 2), (1, 1)]
    assert [each.numbers["margin"] for each in of_it] == [0.05, settled(750)]


def test_blocks_of_several_can_have_a_larger_margin() -> None:
    asked = CONFIG.model_copy(update={"small_margin": 0.1})
    block, *others = retained(*several(150, range(3)), config=asked)
    assert (block.answer, block.numbers["margin"], block.numbers["pooled"]) == ("pass", 0.1, 3)
    assert others
    [whole] = retained(paired(CLOSED), config=asked)
    assert whole.numbers["margin"] == 0.05


def test_an_empty_past_holdout_is_never_a_pass() -> None:
    full, empty = retained(paired(600), paired(0, experience=5))
    assert (full.answer, empty.answer, empty.experience) == ("pass", "undecided", 5)
    assert "its holdout is empty; retire it" in empty.sentence


@pytest.mark.parametrize("sizes", [(43,), (30, 39)])
def test_too_few_records_of_all_together_are_undecided(sizes: tuple[int, ...]) -> None:
    [found] = retained(*(paired(n, experience=each) for each, n in enumerate(sizes)))
    assert found.answer == "undecided"
    together = f" hold {sum(sizes)} records together, which cannot settle a margin of 5 points"
    assert together in found.sentence
    assert found.sentence.endswith("; it takes at least 70, until then a person decides")
    assert found.numbers["n_needed"] == 70
    assert all(math.isfinite(value) for value in found.numbers.values())


def test_what_a_block_lost_together_fails() -> None:
    block, *alarms = retained(*(paired(60, lost=12, experience=each) for each in (5, 7)))
    assert block.answer == "fail"
    assert block.sentence.startswith("experiences 5 and 7 lost between 14")
    assert block.sentence.endswith(
        " points together; 5 were allowed: keep the champion, and replay more of experiences 5 and 7"
    )
    assert [(each.experience, each.answer) for each in alarms] == [(5, "fail"), (7, "fail")]
    [alone] = retained(paired(60, lost=60, experience=5))
    assert alone.answer == "fail", "a proven loss needs no margin, so it fails below the floor as well"


@pytest.mark.parametrize("gained", [0, 20])
def test_one_small_one_that_was_lost_fails_whatever_the_others_gained(gained: int) -> None:
    others = several(170, range(1, 20), gained=gained)
    found = retained(paired(170, lost=170), *others)
    assert [each.experience for each in found if each.answer == "fail" and each.experience == 0] == [0]
    (lost,) = (each for each in found if each.experience == 0)
    assert lost.sentence.startswith("experience 0 lost ")
    few = retained(paired(170, lost=3), *others)
    assert {each.answer for each in few} == {"pass"}


def test_a_block_does_not_hide_what_one_member_lost_beyond_its_own_margin() -> None:
    lost = paired(1000, lost=95, gained=40)
    found = retained(lost, *several(4000, range(1, 3)), config=GateConfig())
    assert [(each.experience, each.answer) for each in found if each.answer != "pass"] == [(0, "fail")]
    noisy = retained(paired(1000, lost=60, gained=40), *several(6000, range(1, 3)), config=GateConfig())
    assert {each.answer for each in noisy} == {"pass"}


def test_what_is_shown_to_be_lost_fails_within_the_settled_margin_too() -> None:
    """Its own margin is 7.8 points; 5 are allowed in blocks, and more are shown to be lost."""
    lost = paired(600, lost=34)
    found = retained(lost, *several(6000, range(1, 2)))
    (its,) = (each for each in found if each.experience == 0 and "pooled" not in each.numbers)
    assert its.numbers["loss_upper"] <= its.numbers["margin"] == 0.078
    assert its.answer == "fail"
    assert "5 were allowed" in its.sentence


def test_blocks_and_members_share_one_adjustment() -> None:
    """The alarm of one member counts all holdouts, blocks and units."""
    found = retained(paired(60, lost=9, experience=0), *several(600, range(1, 2)))
    fails = [each for each in found if each.answer == "fail"]
    assert [each.experience for each in fails] == [0]
    # Two holdouts and the block of both; the unit of the large one is its own finding.
    assert fails[0].numbers["p_drop_holm"] == pytest.approx(3 * 0.5**9)
    more = retained(paired(60, lost=8, experience=0), *several(600, range(1, 2)))
    assert not [each for each in more if each.answer == "fail"], "3 / 256 is above the alarm's alpha"


def test_blocks_leave_broken_holdouts_and_margins_of_their_own_out() -> None:
    broken = PairedAnswers(9, None, np.ones(20, dtype=np.bool_))
    found = retained(
        paired(50, experience=1),
        broken,
        paired(50, experience=2),
        paired(50, lost=20, experience=3, margin=0.01),
    )
    assert {each.experience: each.answer for each in found} == {None: "pass", 3: "fail", 9: "undecided"}
    (block,) = (each for each in found if each.experience is None)
    assert (block.numbers["margin"], block.numbers["n"]) == (0.05, 100)


def test_own_margin_overrules_the_pipeline_and_is_asked_of_no_other() -> None:
    tight = retained(paired(400, lost=8, gained=6, margin=0.02), paired(600, experience=1))
    assert {each.experience: each.answer for each in tight} == {0: "undecided", 1: "pass"}
    assert {each.experience: each.numbers["margin"] for each in tight} == {0: 0.02, 1: 0.05}
    lax = paired(600, lost=60, experience=1, margin=0.2)
    found = retained(paired(40, experience=0), lax, paired(4000, experience=2))
    assert {each.answer for each in found} == {"pass"}
    (small,) = {
        each.sentence.split(" together with ")[1].split(":")[0] for each in found if each.experience == 0
    }
    assert small == "experience 2"
    [few] = retained(
        paired(50, experience=3, margin=0.01), config=CONFIG.model_copy(update={"small_margin": 0.2})
    )
    assert (few.answer, few.experience, few.numbers["margin"]) == ("undecided", 3, 0.01)


@pytest.mark.parametrize("attempt", range(1, 6))
def test_a_later_try_has_the_same_blocks_and_margins_and_less_alpha(attempt: int) -> None:
    past = [*several(300, range(5)), *several(90, range(5, 8)), *several(2000, range(8, 10))]
    its = GateConfig(alpha=stats.spent(0.05, attempt))
    tried, notes = answered(*past, config=its, attempt=attempt)
    first, _ = answered(*past, config=GateConfig(alpha=stats.spent(0.05, 1)), attempt=1)
    assert [(each.experience, each.numbers["margin"], each.numbers["n"]) for each in tried] == [
        (each.experience, each.numbers["margin"], each.numbers["n"]) for each in first
    ]
    assert {each.numbers["alpha"] for each in tried} == {its.alpha}
    promised = [each.numbers["alpha"] for each in notes if each.about == "promise"]
    assert promised == pytest.approx([0.05, 0.05])
    losing, _ = answered(paired(300, lost=12), *past[1:], config=its, attempt=attempt)
    assert {each.answer for each in losing} != {"pass"}


@pytest.mark.parametrize("looks", [math.nan, -1, -math.inf])
def test_looks_that_are_no_number_wear_a_holdout_out(looks: Any) -> None:
    [found] = retained(replace(paired(600), looks=cast("int", looks)))
    assert found.answer == "undecided"


def test_noisy_comparison_is_undecided_and_asks_for_more_than_it_had() -> None:
    for lost, gained in ((30, 25), (35, 25), (5, 0)):
        [found] = retained(paired(300, lost=lost, gained=gained), config=GateConfig())
        assert found.answer == "undecided"
        assert found.numbers["n_needed"] > 300
        assert found.sentence.startswith("experience 0 may have lost up to ")
        assert ", 2 allowed; 300 holdout records cannot settle it, about" in found.sentence
        assert found.sentence.endswith(
            " would have; a person decides, or learn with less churn (more replay, smaller steps)"
        )


def test_holm_spares_a_chance_drop_among_many_holdouts() -> None:
    drop = paired(200, lost=8)
    (alone,) = retained(drop, config=GateConfig())
    assert alone.answer == "fail"
    others = several(200, range(1, 20), lost=1, gained=1)
    assert "fail" not in {each.answer for each in retained(drop, *others, config=GateConfig())}


def test_a_thousand_holdouts_are_compared_at_once() -> None:
    found = retained(*several(300, range(1000), lost=1, gained=2))
    assert {each.answer for each in found} == {"pass"}
    alone = [each.experience for each in found if "pooled" not in each.numbers]
    assert alone == list(range(1000))
    assert sum(each.numbers.get("pooled", 0) for each in found) == 1000


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (PairedAnswers(7, None, np.ones(200, dtype=np.bool_)), "the baseline's answers are missing"),
        (PairedAnswers(7, np.ones(200, dtype=np.bool_), None), "the challenger's answers are missing"),
        (replace(paired(200, experience=7), challenger=np.ones(199, dtype=np.bool_)), "cannot be paired"),
        (replace(paired(200, experience=7), challenger=NOT_BITS), "are not right/wrong bits"),
        (replace(paired(1, experience=7), challenger=np.ones((1, 1), dtype=np.bool_)), "are not right/wrong"),
        (paired(200, experience=7, margin=math.nan), "a margin of nan means nothing"),
        (paired(200, experience=7, margin=math.inf), "a margin of inf means nothing"),
        (paired(200, experience=7, margin=0.0), "a margin of 0.0 means nothing"),
    ],
)
@pytest.mark.parametrize("others", [1, 12])
def test_broken_answers_are_undecided_with_the_reason(broken: PairedAnswers, says: str, others: int) -> None:
    found = retained(*(paired(600, experience=each + 10) for each in range(others)), broken)
    (its,) = (each for each in found if each.experience == 7)
    assert its.answer == "undecided"
    assert its.sentence.startswith("experience 7: ")
    assert says in its.sentence
    assert {each.answer for each in found if each is not its} == {"pass"}


def test_only_a_first_version_has_nothing_to_forget() -> None:
    assert answered(first=True) == ([], [])
    [found] = retained()
    assert found.answer == "undecided"
    assert found.sentence == (
        "nothing that the champion learnt was compared: without its past holdouts nobody can say what was "
        "forgotten; run the update again"
    )


@pytest.mark.parametrize(
    ("retired", "says"), [(1, "the only past holdout is retired"), (3, "all 3 past holdouts are retired")]
)
def test_where_people_retired_all_past_holdouts_running_again_is_no_remedy(retired: int, says: str) -> None:
    [found], _ = answered(history=[PastExperience(each, 600) for each in range(retired)])
    assert found.answer == "undecided"
    assert found.sentence == (
        f"{says}, so nobody can say what was forgotten; restore one (holdfast holdout restore), or a person "
        "decides"
    )


def test_an_exhausted_holdout_is_refused_and_a_nearly_exhausted_one_says_so() -> None:
    config = CONFIG.model_copy(update={"holdout_looks": 100})
    late = replace(paired(600), looks=89)
    [found] = retained(late, config=config)
    assert found.sentence.endswith("; 10 of 100 looks at it are left")
    assert (found.numbers["looks"], found.numbers["looks_left"]) == (90, 10)
    block = retained(late, paired(600, experience=1), config=config)[0]
    assert (block.numbers["looks"], block.numbers["looks_left"]) == (90, 10)
    whole, gone = retained(paired(600, experience=1), replace(late, looks=100), config=config)
    assert (whole.answer, gone.answer, gone.experience) == ("pass", "undecided", 0)
    assert "compared 100 times, and is exhausted" in gone.sentence
