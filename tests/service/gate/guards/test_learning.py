"""Learning: each new experience against the champion, alone and with the newest block, or as the first."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from service.gate import stats
from service.gate.base import Evidence, Finding, GateConfig, PairedAnswers, PastExperience
from service.gate.decide import decide
from service.gate.guards.learning import learning
from service.gate.guards.retention import records_of_block
from service.gate.simulation.rates import promote_rates
from tests.support.gate_parts import CLEAN, CONFIG, NOT_BITS, first, paired

PAST = tuple(paired(700, lost=6, gained=6, experience=each) for each in range(4))

CLOSED = records_of_block(CONFIG, CONFIG.learning_margin, alpha=CONFIG.alpha)
"""Records from which on a new experience is judged alone, and a block is closed: two of `PAST` close one."""


def learnt(
    *new: PairedAnswers,
    first: bool = False,
    past: Sequence[PairedAnswers] = (),
    history: Sequence[PastExperience] = (),
    config: GateConfig = CONFIG,
) -> list[Finding]:
    evidence = Evidence(CLEAN, past=tuple(past), new=new, first=first, history=tuple(history))
    return list(learning(evidence, config))


def test_too_few_records_are_undecided_and_told_how_many_would_do() -> None:
    [found] = learnt(paired(43, lost=1, experience=3))
    assert found.answer == "undecided"
    assert found.sentence == (
        "experience 3: 43 holdout records cannot settle a margin of 5 points; about 190 would, "
        "until then a person decides"
    )
    assert found.numbers["n_needed"] == 187
    [single] = learnt(paired(1, experience=3), config=CONFIG.model_copy(update={"learning_margin": 0.01}))
    assert "1 holdout record cannot settle a margin of 1 point; about" in single.sentence


def test_learning_with_a_champion() -> None:
    better, worse, unclear = learnt(
        paired(600, gained=300, experience=4), paired(600, lost=100, experience=5), paired(30, experience=6)
    )
    assert better.answer == "pass"
    assert better.sentence.startswith("experience 4 learnt: at least 46")
    assert "points better than the champion (600 records, 0 got worse, 300 got better)" in better.sentence
    assert worse.answer == "fail"
    assert worse.sentence.startswith("experience 5 lost between 14")
    assert worse.sentence.endswith(
        " points against the champion; 5 were allowed: "
        "keep the champion, and train longer or with another strategy"
    )
    assert unclear.answer == "undecided"


def test_a_small_new_experience_is_judged_together_with_the_newest_block() -> None:
    [found] = learnt(paired(50, lost=1, experience=4), past=PAST)
    assert (found.answer, found.experience) == ("pass", 4)
    assert found.sentence == (
        "experience 4 learnt: at worst 0.7 points lost against the champion together with experiences 2 and "
        "3, 5 allowed (50 records, 1 got worse, 0 got better; "
        "together 1450 records, 13 got worse, 12 got better)"
    )
    assert (found.numbers["n"], found.numbers["joined"], found.numbers["n_alone"]) == (1450, 2, 50)
    assert found.numbers["loss_alone"] == pytest.approx(0.02)
    assert found.numbers["loss_lower_alone"] < 0.02 < found.numbers["loss_upper_alone"]
    [large] = learnt(paired(CLOSED, experience=4), past=PAST)
    assert (large.numbers["n"], "joined" in large.numbers) == (CLOSED, False)


def test_the_newest_is_told_by_the_order_in_which_it_was_learnt() -> None:
    """Not by number, and a short newest block brings the one before it along."""
    order = tuple(PastExperience(each, 700) for each in (2, 3, 1, 0))
    [found] = learnt(paired(50, experience=4), past=PAST, history=order)
    assert "together with experiences 0 and 1" in found.sentence
    [found] = learnt(paired(50, experience=5), past=(*PAST, paired(60, experience=4)))
    assert "together with experiences 2 to 4" in found.sentence


@pytest.mark.parametrize("gained", [0, 60, 300])
def test_what_the_new_experience_lost_by_itself_fails_whatever_the_block_gained(gained: int) -> None:
    past = [paired(600, gained=gained, experience=each) for each in range(4)]
    [found] = learnt(paired(60, lost=12, experience=4), past=past)
    assert found.answer == "fail"
    assert found.sentence.startswith("experience 4 lost between ")
    assert found.numbers["p_drop_holm"] == pytest.approx(0.5**12)


def test_a_gain_on_new_data_never_pays_for_a_loss_on_old() -> None:
    past = [paired(1200, experience=0), paired(1200, lost=90, gained=40, experience=1)]
    for n in (20, 600, 5000):
        verdict = decide(Evidence(CLEAN, past=tuple(past), new=(paired(n, gained=n, experience=2),)), CONFIG)
        assert verdict.outcome == "reject", n
        assert verdict.reason.startswith("experience 1 lost between ")


def test_the_margin_holds_with_the_block_whatever_the_churn() -> None:
    """P(pass | new and block together truly lost the margin) <= alpha."""
    for n in (50, 600, CLOSED - 1):
        [found] = learnt(paired(n, experience=4), past=PAST)
        together, alpha = int(found.numbers["n"]), found.numbers["alpha"]
        rates = promote_rates(together, margin=0.05, alpha=alpha, loss=0.05, churns=[0.05, 0.06, 0.12, 0.3])
        assert together > n
        assert (rates <= alpha).all()


@pytest.mark.parametrize(
    ("lost", "gained", "answer", "says"),
    [
        (5, 65, "pass", "experience 0 learnt: at least 7.83 points better than the champion, 5 asked (600 "),
        (20, 30, "fail", "experience 0 learnt too little: at most 3.77 points better"),
        (30, 5, "fail", "experience 0 learnt too little: at most 0 points better"),
        (5, 38, "undecided", "experience 0 may be between 3.75 points better and 7.52 points better"),
        (90, 5, "fail", "experience 0 lost between "),
    ],
)
@pytest.mark.parametrize("past", [(), PAST])
def test_a_new_experience_must_gain_what_is_asked_by_itself(
    lost: int, gained: int, answer: str, says: str, past: tuple[PairedAnswers, ...]
) -> None:
    asked = CONFIG.model_copy(update={"learning_gain": 0.05, "learning_margin": 0.1})
    others = [replace(each, experience=each.experience + 1) for each in past]
    [found] = learnt(paired(600, lost=lost, gained=gained), config=asked, past=others)
    assert (found.answer, found.sentence[: len(says)]) == (answer, says)
    assert found.numbers["n"] == 600
    if answer != "fail":
        assert found.numbers["gain_asked"] == 0.05


def test_a_new_experience_of_which_nothing_is_right_fails_by_itself() -> None:
    wrong = np.zeros(100, dtype=np.bool_)
    [found] = learnt(PairedAnswers(4, wrong, wrong.copy()), past=PAST)
    assert found.answer == "fail"
    assert found.sentence.startswith("experience 4 not learnt: none of 100 holdout records answered right")
    [found] = learnt(PairedAnswers(4, wrong[:1], wrong[:1].copy()))
    assert found.answer == "undecided"


def test_few_records_of_which_nothing_is_right_fail_only_where_that_is_no_chance() -> None:
    """With six records in ten right, five wrong ones in a row come with .4^5 > .01, six with less."""
    bits = np.arange(CLOSED) < 0.6 * CLOSED
    past = [PairedAnswers(0, bits, bits.copy())]
    for n, answer in ((1, "pass"), (5, "pass"), (6, "fail"), (30, "fail")):
        wrong = np.zeros(n, dtype=np.bool_)
        [found] = learnt(PairedAnswers(4, wrong, wrong.copy()), past=past)
        assert (found.answer, 0.4**n <= CONFIG.alarm_alpha) == (answer, answer == "fail")


def test_p_values_of_new_experiences_are_adjusted_over_all_of_them() -> None:
    alone, *_ = learnt(paired(60, lost=7, experience=4), past=PAST)
    assert alone.answer == "fail"
    both = learnt(paired(60, lost=7, experience=4), paired(60, experience=5), past=PAST)
    assert both[0].numbers["p_drop_holm"] == pytest.approx(2 * 0.5**7)
    assert [each.answer for each in both] == ["pass", "pass"], "2 / 128 is above the alarm's alpha"


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (PairedAnswers(7, None, np.ones(200, dtype=np.bool_)), "the baseline's answers are missing"),
        (PairedAnswers(7, np.ones(200, dtype=np.bool_), None), "the challenger's answers are missing"),
        (replace(paired(200, experience=7), challenger=np.ones(199, dtype=np.bool_)), "cannot be paired"),
        (replace(paired(200, experience=7), challenger=NOT_BITS), "are not right/wrong bits"),
        (paired(0, experience=7), "its holdout is empty"),
    ],
)
@pytest.mark.parametrize("past", [(), PAST])
def test_broken_answers_are_undecided_with_the_reason(
    broken: PairedAnswers, says: str, past: tuple[PairedAnswers, ...]
) -> None:
    found = learnt(paired(600, experience=8), broken, past=past)
    assert {each.experience: each.answer for each in found} == {8: "pass", 7: "undecided"}
    assert found[1].sentence.startswith("experience 7: ")
    assert says in found[1].sentence
    [alone] = learnt(broken, past=past)
    assert alone.answer == "undecided"


def test_broken_past_holdouts_join_nothing() -> None:
    broken = PairedAnswers(9, None, np.ones(2000, dtype=np.bool_))
    [found] = learnt(paired(50, experience=10), past=(*PAST, broken))
    assert "together with experiences 2 and 3" in found.sentence


def test_nothing_new_is_undecided() -> None:
    [found] = learnt()
    assert found.answer == "undecided"
    assert "nothing to promote" in found.sentence


@pytest.mark.parametrize("attempt", [1, 2, 5])
def test_a_later_try_joins_the_same_block_with_less_alpha(attempt: int) -> None:
    evidence = Evidence(CLEAN, past=PAST, new=(paired(300, experience=4),), attempt=attempt)
    alpha = stats.spent(0.05, attempt)
    [found] = learning(evidence, CONFIG.model_copy(update={"alpha": alpha}))
    assert "together with experiences 1 to 3" in found.sentence or "experiences 0 to 3" in found.sentence
    assert found.numbers["alpha"] == alpha
    first_try = learning(
        replace(evidence, attempt=1), CONFIG.model_copy(update={"alpha": stats.spent(0.05, 1)})
    )
    assert first_try[0].numbers["joined"] == found.numbers["joined"]


def test_first_version_must_beat_the_majority_class() -> None:
    [found] = learnt(first(600, majority=60, right=540), first=True)
    assert found.answer == "pass"
    assert found.sentence == (
        "experience 0 learnt: 90 % answered right, 10 % by always saying the commonest class (600 records)"
    )
    [found] = learnt(first(600, majority=400, right=300), first=True)
    assert found.answer == "fail"
    assert "50 % answered right, 67 % by always saying the commonest class, 5 points more" in found.sentence
    [found] = learnt(first(40, majority=20, right=22), first=True)
    assert found.answer == "undecided"
    assert found.numbers["n_needed"] > 40
    assert "40 holdout records cannot tell these apart" in found.sentence
    assert all(math.isfinite(value) for value in found.numbers.values())


def test_first_version_equal_to_the_majority_class_never_passes() -> None:
    same = np.arange(600) < 300
    [found] = learnt(PairedAnswers(0, same, same.copy()), first=True)
    assert found.answer == "fail"
    [found] = learnt(PairedAnswers(0, same[:30], ~same[:30] | same[:30]), first=True)
    assert found.answer == "undecided"
    [found] = learnt(paired(600), first=True)
    assert found.answer == "undecided"
    assert "one class only" in found.sentence


def test_first_version_can_be_sent_to_a_person() -> None:
    config = GateConfig(first_update="review")
    found = learnt(first(600, majority=60, right=540), first=True, config=config)
    assert [(each.guard, each.answer) for each in found] == [
        ("learning", "pass"),
        ("first_update", "undecided"),
    ]
    assert found[1].sentence == "this is the first version, and the pipeline asks that a person approves it"
    later = learnt(paired(600, gained=300), config=config)
    assert [each.guard for each in later] == ["learning"]


def test_a_first_version_that_says_one_class_only_is_not_learnt_however_common_it_is() -> None:
    labels = (np.arange(20_000) % 20 == 0).astype(np.int64)
    commonest = labels == 0
    answers = PairedAnswers(0, commonest, commonest.copy(), labels=labels)
    [found] = learnt(answers, first=True)
    assert found.answer == "fail"
    assert found.numbers["score"] == found.numbers["score_majority"] == 0.5
    [found] = learnt(replace(answers, challenger=np.arange(20_000) % 9 != 0), first=True)
    assert found.answer == "pass", (
        "fewer right in all than by the commonest class, and far more of the rare one"
    )


@pytest.mark.parametrize(
    ("recall", "gain", "answer"),
    [
        (0.6, 0.05, "pass"),
        (0.6, 0.0, "pass"),
        (0.6, 0.1, "undecided"),
        (0.52, 0.05, "fail"),
        (0.5, 0.0, "undecided"),
    ],
)
def test_the_first_version_must_exceed_the_majority_by_what_is_asked(
    recall: float, gain: float, answer: str
) -> None:
    """Of two classes with 1000 records each, Hoeffding's bound lies sqrt(ln 20 / 2 * 2 / 1000) / 2 apart."""
    labels = np.repeat([0, 1], 1000)
    challenger = np.tile(np.arange(1000) < 1000 * recall, 2)
    answers = PairedAnswers(0, labels == 0, challenger, labels=labels)
    [found] = learnt(answers, first=True, config=CONFIG.model_copy(update={"first_gain": gain}))
    assert found.answer == answer
    reach = math.sqrt(math.log(20) / 2 * 2 / 1000) / 2
    assert found.numbers["score_lower"] == pytest.approx(recall - reach)
    assert found.numbers["score_upper"] == pytest.approx(recall + reach)
    assert found.numbers["score_majority"] == 0.5


def test_a_first_version_of_very_many_classes_that_hardly_beats_the_majority_is_not_promoted() -> None:
    """560 classes, as a price makes, and 4.5 % right: three times the majority, and worth nothing."""
    labels = np.arange(1120) % 560
    right = np.zeros(1120, dtype=bool)
    right[:50] = True
    majority = labels == 0
    answers = PairedAnswers(0, majority, right, labels=labels)
    [found] = learnt(answers, first=True)
    assert found.answer != "pass"
