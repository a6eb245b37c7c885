"""The guards, one finding at a time: answers, numbers and the sentences a person reads."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import DataEvidence, Evidence, Finding, GateConfig, PairedAnswers
from service.gate.guards import batch as batch_guards
from service.gate.guards import forgetting

CONFIG = GateConfig(margin=0.05, learning_margin=0.05)
CLEAN = DataEvidence(
    records=600,
    nonfinite_records=0,
    sample=512,
    label_error_rate=0.03,
    reference_label_error_rate=0.03,
    anomaly_rate=0.01,
    reference_anomaly_rate=0.01,
    has_reference=True,
)


def paired(
    n: int, *, lost: int = 0, gained: int = 0, experience: int = 0, margin: float | None = None
) -> PairedAnswers:
    """Answers of two models on n records, of which `lost` got worse and `gained` got better."""
    baseline: NDArray[np.bool_] = np.ones(n, dtype=np.bool_)
    baseline[lost : lost + gained] = False
    challenger = np.ones(n, dtype=np.bool_)
    challenger[:lost] = False
    return PairedAnswers(experience, baseline, challenger, margin)


def retained(*answers: PairedAnswers, config: GateConfig = CONFIG, first: bool = False) -> list[Finding]:
    return list(forgetting.retention(Evidence(CLEAN, past=answers, first=first), config))


def learnt(*answers: PairedAnswers, first: bool = False, config: GateConfig = CONFIG) -> list[Finding]:
    return list(forgetting.learning(Evidence(CLEAN, new=answers, first=first), config))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (say.points(0.05), "5"),
        (say.points(0.0078), "0.8"),
        (say.points(-0.0001), "0"),
        (say.points(0.1), "10"),
        (say.with_unit(0.01), "1 point"),
        (say.percent(0.62), "62 %"),
        (say.percent(0.004), "0.4 %"),
        (say.percent(0.0), "0 %"),
        (say.percent(0.1), "10 %"),
        (say.records(1), "1 record"),
        (say.about(227), "about 230"),
        (say.about(7), "about 7"),
        (say.about(4114), "about 4100"),
        (say.listed([4]), "4"),
        (say.listed([1, 3, 8]), "1, 3 and 8"),
        (say.listed([4, 5, 6]), "4 to 6"),
        (say.experiences([4, 5]), "experiences 4 and 5"),
        (say.at_worst(0.0497, 0.05), "at worst 4.97 points lost"),
        (say.at_worst(0.01, 0.05), "at worst 1 point lost"),
        (say.at_worst(0.0001, 0.05), "at worst nothing lost"),
        (say.between(0.031, 0.078, 0.02), "between 3.1 and 7.8 points"),
        (say.between(0.0777, 0.0781, 0.02), "about 7.8 points"),
        (say.between(0.019, 0.020013, 0.02), "between 1.9 and 2.001 points"),
        (say.share(0.009967, 0.01), "0.00997"),
        (say.between(-0.001, 0.078, 0.02), "up to 7.8 points"),
        (say.were_allowed(0.01), "1 was allowed"),
        (say.were_allowed(0.02), "2 were allowed"),
    ],
)
def test_numbers_read_naturally(said: str, expected: str) -> None:
    assert said == expected


def test_kept_accuracy_passes() -> None:
    [found] = retained(paired(600, lost=12, gained=15))
    assert found.answer == "pass"
    assert found.sentence == (
        "experience 0 kept its accuracy: at worst 1.1 points lost, 5 allowed "
        "(600 records, 12 got worse, 15 got better)"
    )
    assert found.numbers["n"] == 600
    assert found.numbers["loss"] == pytest.approx(-0.005)
    assert found.numbers["p_noninferior"] <= 0.05


def test_gain_is_called_a_gain() -> None:
    [found] = retained(paired(600, gained=60, experience=1))
    assert found.answer == "pass"
    assert found.sentence.startswith("experience 1 gained: at least 8")


def test_drop_fails() -> None:
    config = GateConfig(margin=0.02)
    [found] = retained(paired(600, lost=40, gained=8, experience=2), config=config)
    assert found.answer == "fail"
    assert found.sentence == (
        "experience 2 lost between 3.5 and 7.4 points; 2 were allowed: "
        "keep the champion, and replay more of experience 2"
    )


def test_everything_lost_fails_with_one_number() -> None:
    [found] = retained(paired(20_000, lost=20_000))
    assert found.answer == "fail"
    assert "lost about 100 points; 5 were allowed" in found.sentence


def test_too_few_records_are_undecided_and_told_how_many_would_do() -> None:
    [found] = learnt(paired(43, lost=1, experience=3))
    assert found.answer == "undecided"
    assert found.sentence == (
        "experience 3: 43 holdout records cannot settle a margin of 5 points; about 190 would, "
        "until then a person decides"
    )
    assert found.numbers["n_needed"] == 187
    [single] = learnt(paired(1, experience=3, margin=0.01))
    assert "1 holdout record cannot settle a margin of 1 point; about" in single.sentence


def test_small_past_holdouts_are_judged_together() -> None:
    full, pool = retained(
        paired(600, lost=12, gained=15), paired(65, lost=2, experience=7), paired(65, gained=2, experience=5)
    )
    assert (full.experience, full.answer) == (0, "pass")
    assert (pool.experience, pool.answer) == (None, "pass")
    assert pool.sentence == (
        "experiences 5 and 7, too small to be judged alone, kept their accuracy together: "
        "at worst 3.8 points lost, 5 allowed (130 records, 2 got worse, 2 got better)"
    )
    assert pool.numbers["pooled"] == 2
    assert pool.numbers["n"] == 130


@pytest.mark.parametrize(
    ("lost", "gained", "answer", "says"),
    [
        (5, 65, "pass", "experience 0 learnt: at least 7.83 points better than the champion, 5 asked (600 "),
        (
            20,
            30,
            "fail",
            "experience 0 learnt too little: at most 3.77 points better",
        ),
        (30, 5, "fail", "experience 0 learnt too little: at most 0 points better"),
        (
            5,
            38,
            "undecided",
            "experience 0 may be between 3.75 points better and 7.52 points better",
        ),
        (90, 5, "fail", "experience 0 lost between "),
    ],
)
def test_a_new_experience_must_gain_what_is_asked(lost: int, gained: int, answer: str, says: str) -> None:
    asked = CONFIG.model_copy(update={"learning_gain": 0.05, "learning_margin": 0.1})
    [found] = learnt(paired(600, lost=lost, gained=gained), config=asked)
    assert (found.answer, found.sentence[: len(says)]) == (answer, says)
    if answer != "fail":
        assert found.numbers["gain_asked"] == 0.05


def test_small_past_holdouts_can_have_a_larger_margin_together() -> None:
    small = (paired(30, experience=5), paired(20, experience=7))
    asked = CONFIG.model_copy(update={"small_margin": 0.1})
    *_, pool = retained(paired(600), *small)
    assert "together with experience 0" in pool.sentence
    *_, pool = retained(paired(600), *small, config=asked)
    assert pool.answer == "pass"
    assert pool.sentence.startswith("experiences 5 and 7, too small to be judged alone, kept their accuracy ")
    assert pool.sentence.endswith("10 allowed (50 records, 0 got worse, 0 got better)")
    assert pool.numbers["margin"] == 0.1


def test_an_empty_past_holdout_is_never_a_pass() -> None:
    full, empty = retained(paired(600), paired(0, experience=5))
    assert (full.answer, empty.answer, empty.experience) == ("pass", "undecided", 5)
    assert "its holdout is empty; retire it" in empty.sentence


@pytest.mark.parametrize("n", [1, 50, 69])
def test_a_small_past_holdout_borrows_the_smallest_full_one(n: int) -> None:
    found = retained(paired(600), paired(300, experience=1), paired(n, experience=5))
    assert [each.answer for each in found] == ["pass"] * 3
    assert [each.experience for each in found] == [0, 1, None]
    assert found[2].sentence.startswith(
        "experience 5, too small to be judged alone, kept its accuracy together with experience 1: at worst "
    )
    assert found[2].sentence.endswith(f"5 allowed ({300 + n} records, 0 got worse, 0 got better)")


def test_as_many_full_holdouts_join_as_the_floor_asks() -> None:
    """A holdout that is full at the pipeline's margin can still be too few for the pool's."""
    config = GateConfig(margin=0.1, small_margin=0.05)
    full = [paired(60, experience=each) for each in (1, 2)]
    pool = retained(*full, paired(5, experience=3), config=config)[2]
    assert pool.answer == "pass"
    assert "together with experiences 1 and 2" in pool.sentence
    *_, pool = retained(full[0], paired(5, experience=3), config=config)
    assert pool.answer == "undecided"
    assert pool.sentence == (
        "experience 3: all past holdouts that can be compared hold 65 records together, which cannot settle "
        "a margin of 5 points; it takes at least 70, until then a person decides"
    )


def test_a_margin_of_its_own_is_never_asked_of_another_holdout() -> None:
    lax = paired(600, lost=60, experience=1, margin=0.2)
    found = retained(paired(40, experience=0), lax, paired(4000, experience=2))
    assert {each.experience: each.answer for each in found} == {1: "pass", 2: "pass", None: "pass"}
    assert "together with experience 2" in found[-1].sentence


@pytest.mark.parametrize(("sizes", "together"), [((43,), 43), ((30, 39), 69)])
def test_small_holdouts_that_are_too_few_together_are_undecided(
    sizes: tuple[int, ...], together: int
) -> None:
    [found] = retained(*(paired(n, experience=each) for each, n in enumerate(sizes)))
    assert found.answer == "undecided"
    assert f" hold {together} records together, which cannot settle a margin of 5 points" in found.sentence
    assert found.numbers["n_needed"] == 70
    assert found.numbers["pooled"] == len(sizes)
    assert all(math.isfinite(value) for value in found.numbers.values())


def test_what_small_holdouts_lost_together_fails() -> None:
    found, *alarms = retained(*(paired(60, lost=12, experience=each) for each in (5, 7)))
    assert found.answer == "fail"
    assert [(each.experience, each.answer) for each in alarms] == [(5, "fail"), (7, "fail")]
    assert found.sentence.startswith("experiences 5 and 7, too small to be judged alone, lost between 14")
    assert found.sentence.endswith(
        " points together; 5 were allowed: keep the champion, and replay more of experiences 5 and 7"
    )
    [alone] = retained(paired(60, lost=60, experience=5))
    assert alone.answer == "fail", "a proven loss needs no margin, so it fails below the floor as well"


def test_what_one_small_holdout_lost_is_not_hidden_by_the_others() -> None:
    others = [paired(170, experience=each) for each in range(1, 20)]
    pool, lost = retained(paired(170, lost=40), *others, config=GateConfig())
    assert (pool.answer, pool.numbers["pooled"]) == ("pass", 20)
    assert (lost.answer, lost.experience) == ("fail", 0)
    assert lost.sentence.startswith("experience 0 lost between")
    few = retained(paired(170, lost=5), *others, config=GateConfig())
    assert [each.answer for each in few] == ["pass"]


def test_the_pool_takes_part_in_holm() -> None:
    small = [paired(60, lost=5, experience=1), paired(60, lost=5, gained=1, experience=2)]
    config = GateConfig(margin=0.03)
    others = [paired(200, lost=1, gained=1, experience=each) for each in range(3, 20)]
    for past, answer in ((small, "fail"), ([*small, *others], "undecided")):
        (pool,) = (each for each in retained(*past, config=config) if "pooled" in each.numbers)
        assert pool.answer == answer


def test_a_pool_leaves_broken_holdouts_and_margins_of_their_own_out() -> None:
    broken = PairedAnswers(9, None, np.ones(20, dtype=np.bool_))
    found = retained(
        paired(50, experience=1),
        broken,
        paired(50, experience=2),
        paired(50, lost=20, experience=3, margin=0.01),
    )
    assert [(each.experience, each.answer) for each in found] == [
        (9, "undecided"),
        (3, "fail"),
        (None, "pass"),
    ]
    assert found[2].numbers["margin"] == 0.05
    assert found[2].numbers["n"] == 100
    [tight] = retained(
        paired(50, experience=3, margin=0.01), config=CONFIG.model_copy(update={"small_margin": 0.2})
    )
    assert (tight.answer, tight.experience) == ("undecided", 3)


@pytest.mark.parametrize("attempt", range(1, 6))
def test_a_later_try_is_judged_no_more_leniently(attempt: int) -> None:
    """What is large enough to be judged alone at the first try stays so, however little of alpha is left."""
    holdouts = (paired(300, lost=12), *(paired(300, experience=each) for each in range(1, 5)))
    config = GateConfig(margin=0.02, small_margin=0.1, alpha=stats.spent(0.05, attempt))
    found = forgetting.retention(Evidence(CLEAN, past=holdouts, attempt=attempt), config)
    assert [each.experience for each in found] == [0, 1, 2, 3, 4]
    assert found[0].answer != "pass"


def test_looks_that_are_no_number_wear_a_holdout_out() -> None:
    [found] = retained(replace(paired(600), looks=cast("Any", math.nan)))
    assert found.answer == "undecided"


def test_noisy_comparison_is_undecided_and_asks_for_more_than_it_had() -> None:
    for lost, gained in ((30, 25), (35, 25), (40, 25), (5, 0)):
        config = GateConfig(margin=0.02)
        [found] = retained(paired(300, lost=lost, gained=gained), paired(300), paired(300), config=config)[:1]
        assert found.answer == "undecided"
        assert found.numbers["n_needed"] > 300
        assert found.sentence.startswith("experience 0 may have lost up to ")
        assert ", 2 allowed; 300 holdout records cannot settle it, about" in found.sentence
        assert found.sentence.endswith(
            " would have; a person decides, or learn with less churn (more replay, smaller steps)"
        )


def test_holm_spares_a_chance_drop_among_many_holdouts() -> None:
    drop = paired(200, lost=8, gained=1)
    config = GateConfig(margin=0.02)
    assert retained(drop, config=config)[0].answer == "fail"
    others = [paired(200, lost=1, gained=1, experience=each) for each in range(1, 20)]
    assert retained(drop, *others, config=config)[0].answer == "undecided"


def test_own_margin_overrules_the_pipeline() -> None:
    tight, loose = retained(paired(400, lost=8, gained=6), paired(400, lost=8, gained=6, margin=0.02))
    assert (tight.answer, loose.answer) == ("pass", "undecided")
    assert loose.numbers["margin"] == 0.02


def test_a_thousand_holdouts_are_compared_at_once() -> None:
    found = retained(*(paired(300, lost=1, gained=2, experience=each) for each in range(1000)))
    assert {each.answer for each in found} == {"pass"}
    assert [each.experience for each in found] == list(range(1000))


NOT_BITS = cast("NDArray[np.bool_]", np.full(200, math.nan))


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (PairedAnswers(7, None, np.ones(200, dtype=np.bool_)), "the baseline's answers are missing"),
        (PairedAnswers(7, np.ones(200, dtype=np.bool_), None), "the challenger's answers are missing"),
        (replace(paired(200, experience=7), challenger=np.ones(199, dtype=np.bool_)), "cannot be paired"),
        (replace(paired(200, experience=7), challenger=NOT_BITS), "are not right/wrong bits"),
        (paired(200, experience=7, margin=math.nan), "a margin of nan means nothing"),
        (paired(200, experience=7, margin=0.0), "a margin of 0.0 means nothing"),
    ],
)
@pytest.mark.parametrize("guard", [retained, learnt])
def test_broken_answers_are_undecided_with_the_reason(
    broken: PairedAnswers, says: str, guard: Callable[..., list[Finding]]
) -> None:
    found = guard(paired(600), broken)
    assert [each.answer for each in found] == ["pass", "undecided"]
    assert found[1].experience == 7
    assert found[1].sentence.startswith("experience 7: ")
    assert says in found[1].sentence


def test_an_empty_new_holdout_is_undecided() -> None:
    [found] = learnt(paired(0, experience=7))
    assert found.answer == "undecided"
    assert found.sentence.startswith("experience 7: its holdout is empty")


def test_only_a_first_version_has_nothing_to_forget() -> None:
    assert retained(first=True) == []
    [found] = retained()
    assert found.answer == "undecided"
    assert found.sentence == (
        "nothing that the champion learnt was compared: without its past holdouts nobody can say what was "
        "forgotten; run the update again"
    )


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


def test_nothing_new_is_undecided() -> None:
    [found] = learnt()
    assert found.answer == "undecided"
    assert "nothing to promote" in found.sentence


def first(n: int, *, majority: int, right: int) -> PairedAnswers:
    """The first version's answers, none of them where the majority class is right too unless it must."""
    baseline = np.arange(n) < majority
    challenger = np.arange(n) >= n - right
    return PairedAnswers(0, baseline, challenger)


def test_first_version_must_beat_the_majority_class() -> None:
    [found] = learnt(first(600, majority=60, right=540), first=True)
    assert found.answer == "pass"
    assert found.sentence == (
        "experience 0 learnt: 90 % answered right, 10 % by always saying the commonest class (600 records)"
    )
    [found] = learnt(first(600, majority=400, right=300), first=True)
    assert found.answer == "fail"
    assert (
        "50 % answered right, 67 % by always saying the commonest class; check the labels" in found.sentence
    )
    [found] = learnt(first(40, majority=20, right=22), first=True)
    assert found.answer == "undecided"
    assert found.numbers["n_needed"] > 40
    assert "40 holdout records cannot tell these apart" in found.sentence


def test_first_version_equal_to_the_majority_class_never_passes() -> None:
    same = np.arange(600) < 300
    [found] = learnt(PairedAnswers(0, same, same.copy()), first=True)
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


def test_clean_batch_passes() -> None:
    found = batch_guards.data(CLEAN, CONFIG)
    assert [(each.guard, each.answer) for each in found] == [
        ("values", "pass"),
        ("anomalies", "pass"),
        ("labels", "pass"),
    ]
    assert found[0].sentence == "values: all 600 records are whole"
    assert found[2].sentence == (
        "labels: 3 % of the batch disagree with their neighbours, 3 % did before, 10 points more allowed "
        "(512 records compared)"
    )


def test_shuffled_labels_and_broken_pixels_fail() -> None:
    found = batch_guards.data(replace(CLEAN, label_error_rate=0.62, anomaly_rate=0.4), CONFIG)
    assert [each.answer for each in found] == ["pass", "fail", "fail"]
    assert found[2].sentence == (
        "labels: 62 % of the batch disagree with their neighbours, 3 % did before, 10 points more allowed "
        "(512 records compared); "
        "the batch was not learnt: check how they were labelled"
    )
    assert found[1].sentence == (
        "anomalies: 40 % of the batch look like no other record, 1 % did before, 20 points more allowed "
        "(512 records compared); "
        "the batch was not learnt: check the features"
    )


def test_an_excess_that_chance_explains_passes() -> None:
    few = replace(CLEAN, sample=5, label_error_rate=0.4, reference_label_error_rate=0.25)
    assert batch_guards.data(few, CONFIG)[2].answer == "pass"


@pytest.mark.parametrize(
    ("changed", "answer", "sentence"),
    [
        (
            {"misshapen": "records have the shape (8,), (9,) was declared"},
            "fail",
            "values: records have the shape (8,), (9,) was declared; the batch was not learnt: "
            "correct the source or the pipeline",
        ),
        (
            {"nonfinite_records": 3},
            "fail",
            "values: 3 of 600 records hold a NaN or an infinite number; the batch was not learnt: "
            "correct the source",
        ),
        ({"records": 0}, "undecided", "values: the batch is empty; wait for records"),
        (
            {"nonfinite_records": 601},
            "undecided",
            "values: 601 broken records of 600 cannot be; count the batch again",
        ),
    ],
)
def test_broken_values(changed: dict[str, Any], answer: str, sentence: str) -> None:
    [found] = batch_guards.data(replace(CLEAN, **changed), CONFIG)
    assert (found.answer, found.sentence) == (answer, sentence)


@pytest.mark.parametrize("field", ["records", "nonfinite_records"])
@pytest.mark.parametrize("count", [math.nan, None, -1, math.inf, 2.5, "600"])
def test_counts_that_are_none_are_undecided(field: str, count: Any) -> None:
    changed: dict[str, Any] = {field: count}
    [found] = batch_guards.data(replace(CLEAN, **changed), CONFIG)
    assert found.answer == "undecided"
    assert found.sentence.endswith(" cannot be; count the batch again")
    assert all(math.isfinite(value) for value in found.numbers.values())


def test_first_batch_says_that_there_is_nothing_to_compare_with() -> None:
    [found] = batch_guards.data(DataEvidence(records=600, nonfinite_records=0), CONFIG)
    assert found.answer == "pass"
    assert found.sentence == (
        "values: all 600 records are whole; labels and anomalies have nothing to be compared with yet"
    )


def test_too_small_a_batch_is_undecided() -> None:
    found = batch_guards.data(DataEvidence(records=20, nonfinite_records=0, has_reference=True), CONFIG)
    assert [each.answer for each in found] == ["pass", "undecided", "undecided"]
    assert found[2].sentence == (
        "labels: 20 records are too few to compare with earlier batches; "
        "merge the batch with the next, or let a person look at it"
    )


@pytest.mark.parametrize(
    "field", ["label_error_rate", "reference_label_error_rate", "anomaly_rate", "sample"]
)
def test_rates_that_are_no_numbers_are_undecided(field: str) -> None:
    changed: dict[str, Any] = {field: math.nan}
    found = batch_guards.data(replace(CLEAN, **changed), CONFIG)
    assert "undecided" in {each.answer for each in found}
