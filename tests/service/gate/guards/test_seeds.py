"""The guard of luck: what other seeds would have made of an update."""

from dataclasses import replace

import numpy as np
import pytest

from service.gate.base import Bits, Evidence, Finding, GateConfig, PairedAnswers, Repeat
from service.gate.decide import decide
from service.gate.guards.seeds import seeds
from tests.support.gate_parts import CLEAN, paired

ASKED = GateConfig(seeds=3)


def bits(n: int, *, wrong: int, after: int = 0) -> Bits:
    """All True but `wrong` of them, from place `after` on."""
    found = np.ones(n, dtype=np.bool_)
    found[after : after + wrong] = False
    return found


def repeat(seed: int, *, wrong: int = 60, others: int = 40, n: int = 600) -> Repeat:
    """Of two holdouts; the challenger is wrong on the first 60 records of each."""
    right, same = bits(n, wrong=wrong), bits(n, wrong=others, after=n // 6)
    return Repeat(seed, {0: right, 1: right.copy()}, {0: same, 1: same.copy()})


HOLDOUTS = tuple(
    replace(each, baseline=each.challenger)
    for each in (paired(600, lost=60, experience=0), paired(600, lost=60, experience=1))
)
GOOD = Evidence(CLEAN, past=HOLDOUTS[:1], new=HOLDOUTS[1:], repeats=(repeat(1), repeat(2)))


def found(evidence: Evidence, config: GateConfig = ASKED) -> dict[str, Finding]:
    return {each.guard: each for each in seeds(evidence, config)}


def test_seeds_that_agree_pass_and_say_so() -> None:
    evidence = replace(GOOD, repeats=(repeat(1, wrong=66), repeat(2, wrong=48)))
    spread, disagreement = found(evidence).values()
    assert (spread.answer, disagreement.answer) == ("pass", "pass")
    assert spread.sentence == (
        "seeds: 3 seeds answer 89 % to 92 % of 1200 holdout records right, furthest apart on experience 0 "
        "(3 points); another is at most 1.6 points below this one, 3 allowed"
    )
    assert spread.numbers["worst_seed"] == 1
    assert spread.numbers["accuracy_deviation"] == pytest.approx(np.std([0.9, 0.89, 0.92], ddof=1))
    assert disagreement.sentence == (
        "disagreement: seed 1 answers 80 of 1200 holdout records otherwise, at worst 7.97 % of all, "
        "15 % allowed"
    )


def test_nothing_is_asked_unless_seeds_are_declared() -> None:
    assert seeds(GOOD, GateConfig()) == ()


def test_an_unlucky_seed_asks_for_a_person_and_never_rejects() -> None:
    spread = found(replace(GOOD, repeats=(repeat(1), repeat(2, wrong=150))))["seeds"]
    assert spread.answer == "undecided"
    assert "seed 2 loses between" in spread.sentence
    assert "a person decides, or learn with less left to chance" in spread.sentence


def test_too_few_records_to_tell_the_seeds_apart_ask_for_a_person() -> None:
    small = tuple(paired(30, lost=3, experience=index) for index in (0, 1))
    evidence = replace(GOOD, past=small[:1], new=small[1:], repeats=(repeat(1, wrong=3, others=9, n=30),) * 2)
    assert {each.answer for each in seeds(evidence, ASKED)} == {"undecided"}


def test_seeds_that_answer_otherwise_ask_for_a_person() -> None:
    disagreement = found(replace(GOOD, repeats=(repeat(1), repeat(2, others=85))))["disagreement"]
    assert disagreement.answer == "undecided"
    assert disagreement.sentence.startswith("disagreement: seed 2 answers 170 of 1200")


def test_a_seed_that_diverges_is_told() -> None:
    diverged = Repeat(2, failure="the loss became NaN or infinite")
    (finding,) = seeds(replace(GOOD, repeats=(repeat(1), diverged)), ASKED)
    assert finding.answer == "undecided"
    assert "with seed 2 the same update fails: the loss became NaN" in finding.sentence


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        (replace(GOOD, repeats=()), "0 of 2 repeats are there"),
        (replace(GOOD, repeats=(repeat(1),)), "1 of 2 repeats are there"),
        (replace(GOOD, repeats=(repeat(1), Repeat(2))), "not of the same records"),
        (replace(GOOD, repeats=(repeat(1), repeat(2, n=599))), "not of the same records"),
        (replace(GOOD, repeats=(repeat(1), replace(repeat(2), same={}))), "not of the same records"),
        (replace(GOOD, past=(PairedAnswers(0, None, None),)), "not of the same records"),
        (replace(GOOD, past=(), new=()), "no holdout record was answered"),
    ],
)
def test_what_is_missing_is_undecided(evidence: Evidence, says: str) -> None:
    (finding,) = seeds(evidence, ASKED)
    assert finding.answer == "undecided"
    assert says in finding.sentence


def test_an_empty_holdout_is_left_out() -> None:
    nothing = np.zeros(0, dtype=np.bool_)
    evidence = replace(GOOD, past=(*GOOD.past, PairedAnswers(7, nothing, nothing)))
    assert {each.answer for each in seeds(evidence, ASKED)} == {"pass"}


def test_one_seed_is_no_two_seeds() -> None:
    verdict = decide(replace(GOOD, repeats=(repeat(1),) * 2), GateConfig(margin=0.05, seeds=3))
    assert verdict.outcome == "review"
    assert "two repeats have the same seed" in verdict.reason


def test_a_lucky_challenger_goes_to_review() -> None:
    verdict = decide(
        replace(GOOD, repeats=(repeat(1, wrong=150), repeat(2, wrong=150))), GateConfig(margin=0.05, seeds=3)
    )
    assert verdict.outcome == "review"
    assert verdict.reason.startswith("seeds: 3 seeds answer")
