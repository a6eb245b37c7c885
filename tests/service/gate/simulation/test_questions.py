"""Whole lifetimes of a harmless pipeline: counted once each, and the same by seed."""

import json
from dataclasses import replace

import pytest

from service.gate.base import GateConfig
from service.gate.simulation.questions import (
    HarmlessLifetime,
    causes_per_100,
    lifetime_of,
    lifetimes,
    per_100,
)
from tests.service.test_cli import refused
from tests.support.commands import holdfast

FEW = HarmlessLifetime(records=300, churn=0.06, updates=12)
WIDE = GateConfig(margin=0.3, learning_margin=0.3, budget=0.4, rare_classes=False)
"""Margins that so few records settle; of the rarest class there are five."""


def test_every_update_has_one_outcome_and_every_question_a_cause() -> None:
    seen = lifetime_of(FEW, GateConfig(), seed=1)
    assert seen.promoted + seen.asked + seen.rejected == seen.updates == FEW.updates
    assert sum(seen.causes.values()) == seen.asked > 0


def test_the_same_seed_gives_the_same_lifetime_and_another_one_another() -> None:
    first, again, other = (lifetime_of(FEW, GateConfig(), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_margins_that_the_records_settle_ask_nobody() -> None:
    seen = lifetime_of(replace(FEW, records=2000), WIDE, seed=1)
    assert (seen.promoted, seen.asked, seen.rejected, seen.freezes) == (FEW.updates, 0, 0, 0)


def test_a_gate_that_never_settles_promotes_nothing_by_itself() -> None:
    seen = lifetime_of(replace(FEW, records=40), GateConfig(first_update="review"), seed=1)
    assert seen.promoted == 0
    assert seen.asked + seen.rejected == FEW.updates


def test_an_update_that_reaches_no_gain_is_rejected_and_counted_once() -> None:
    # A learning gain that nothing reaches: the new experience is not learnt, whatever it goes with.
    config = GateConfig(margin=0.3, learning_margin=0.3, learning_gain=0.2, budget=0.4)
    seen = lifetime_of(HarmlessLifetime(records=4000, churn=0.06, better=0.0, updates=8), config, seed=1)
    assert seen.rejected > 0
    assert seen.promoted + seen.asked + seen.rejected == 8


def test_rates_are_means_over_lifetimes_with_an_interval_around_them() -> None:
    found = lifetimes(FEW, GateConfig(), many=4, seed=7)
    rate = per_100(found, lambda each: each.asked)
    assert rate.low <= rate.mean <= rate.high
    assert rate.mean == pytest.approx(100 * sum(each.asked for each in found) / (4 * FEW.updates))
    assert sum(causes_per_100(found).values()) == pytest.approx(rate.mean)


@pytest.mark.parametrize(
    ("lifetime", "why"),
    [
        (replace(FEW, churn=0.5), "flip back and forth"),
        (replace(FEW, better=0.95), "less than nothing"),
        (replace(FEW, records=1), "no record in its gate part"),
    ],
)
def test_an_impossible_lifetime_is_refused(lifetime: HarmlessLifetime, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        lifetime_of(lifetime, GateConfig(), seed=1)


def test_the_command_says_how_often_and_which_guard_asks() -> None:
    arguments = ("gate", "questions", "--records", "300", "--updates", "12", "--lifetimes", "2")
    done = holdfast(*arguments)
    assert done.returncode == 0, done.stderr
    assert "2 lifetimes of 12 updates that lose nothing: 300 records an experience" in done.stdout
    assert "asked by learning" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("harmless updates would wait for a person.")
    document = json.loads(holdfast(*arguments, "--json").stdout)
    assert set(document["per_100_updates"]) == {"promoted", "asked", "rejected", "freezes"}
    refused(holdfast("gate", "questions", "--churn", "0.5"), 1, "impossible", "--churn")
    refused(holdfast("gate", "questions", "--lifetimes", "0"), 1, "--lifetimes")
