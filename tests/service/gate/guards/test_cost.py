"""Guards of overfitting and cost."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats as distributions

from service.gate import measures
from service.gate.base import Evidence, Finding, GateConfig, PairedAnswers, Running
from service.gate.guards.cost import running
from service.gate.stats import spent
from tests.support.gate_parts import CLEAN, paired

TIMES = tuple(0.001 + 0.00001 * each for each in range(31))
WHOLE = Running(
    train_right=595,
    train_records=600,
    seconds=12.0,
    champion_bytes=1000,
    challenger_bytes=1100,
    champion_rounds=TIMES,
    challenger_rounds=TIMES,
)
LIMITED = GateConfig(train_gap=0.1, latency_ratio=1.2, size_ratio=1.5, update_seconds=60)


def asked(config: GateConfig = LIMITED, *, right: int = 580, **changes: Any) -> dict[str, Finding]:
    new = (paired(600, lost=600 - right),)
    evidence = Evidence(CLEAN, new=new, running=replace(WHOLE, **changes))
    return {each.guard: each for each in running(evidence, config)}


def test_all_within_their_limits() -> None:
    found = asked()
    assert {name: each.answer for name, each in found.items()} == dict.fromkeys(
        ("train_gap", "latency", "size", "update_cost"), "pass"
    )
    assert found["train_gap"].sentence == (
        "train gap: 99 % of the training records answered right, 97 % of the new holdouts; a gap above 10 "
        "points is not shown (600 holdout records)"
    )
    assert found["size"].sentence == (
        "size: the served network has 1.10 times the champion's bytes, 1.5 allowed"
    )


def test_the_gap_is_told_even_without_a_limit_and_then_nothing_else() -> None:
    found = asked(GateConfig(), right=60)
    assert list(found) == ["train_gap"]
    assert found["train_gap"].answer == "pass"
    assert found["train_gap"].sentence.endswith("; no limit is set")
    assert running(Evidence(CLEAN), GateConfig()) == ()


@pytest.mark.parametrize(
    ("guard", "changes", "says"),
    [
        ("train_gap", {"right": 420}, "a gap of at least 2"),
        ("latency", {"challenger_rounds": tuple(2 * each for each in TIMES)}, "2.00 times"),
        ("size", {"challenger_bytes": 1501}, "1.5010 times"),
        ("update_cost", {"seconds": 61.0}, "61.00 seconds, 60 allowed"),
    ],
)
def test_what_exceeds_its_limit_fails(guard: str, changes: dict[str, Any], says: str) -> None:
    found = asked(**changes)[guard]
    assert found.answer == "fail"
    assert says in found.sentence
    assert "keep the champion" in found.sentence


@pytest.mark.parametrize(
    ("guard", "changes"),
    [
        ("train_gap", {"train_right": None}),
        ("train_gap", {"train_right": 601}),
        ("train_gap", {"train_records": 0, "train_right": 0}),
        ("latency", {"challenger_rounds": TIMES[:4], "champion_rounds": TIMES[:4]}),
        ("latency", {"challenger_rounds": TIMES[:30]}),
        ("latency", {"challenger_rounds": (math.nan,) * 31}),
        ("latency", {"challenger_rounds": (0.0,) * 31}),
        ("latency", {"challenger_rounds": ()}),
        ("size", {"challenger_bytes": None}),
        ("size", {"champion_bytes": 0}),
        ("update_cost", {"seconds": None}),
        ("update_cost", {"seconds": math.nan}),
        ("update_cost", {"seconds": math.inf}),
    ],
)
def test_what_was_not_measured_is_undecided(guard: str, changes: dict[str, Any]) -> None:
    found = asked(**changes)[guard]
    assert found.answer == "undecided"
    assert "run the update again" in found.sentence


def test_noise_around_the_limit_is_undecided() -> None:
    random = np.random.default_rng(0)
    times = tuple(1.2 * each * factor for each, factor in zip(TIMES, random.normal(1, 0.2, 31), strict=True))
    assert asked(challenger_rounds=times)["latency"].answer == "undecided"


def test_a_first_version_is_compared_with_nothing() -> None:
    evidence = Evidence(CLEAN, new=(paired(600),), running=WHOLE, first=True)
    assert {each.guard for each in running(evidence, LIMITED)} == {"train_gap", "update_cost"}


def test_limits_of_the_median_hold_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    outside = 0
    for _ in range(2000):
        limits = measures.median_limits(random.lognormal(0, 0.5, 31), alpha=0.05)
        assert limits is not None
        outside += limits[1] < 1.0
    exact = max(p for k in range(31) if (p := float(distributions.binom.cdf(k, 31, 0.5))) <= 0.05)
    assert outside / 2000 == pytest.approx(exact, abs=3 * (exact * (1 - exact) / 2000) ** 0.5)
    assert measures.median_limits(np.ones(4), alpha=0.05) is None


def test_the_gap_at_its_limit_is_rarely_called_larger() -> None:
    random = np.random.default_rng(2)
    train, held = random.binomial(1000, 0.95, 2000), random.binomial(300, 0.85, 2000)
    above = [
        measures.gap_lower((int(a), int(b)), (1000, 300), alpha=0.05) > 0.1
        for a, b in zip(train, held, strict=True)
    ]
    assert np.mean(above) <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_the_train_gap_is_asked_of_later_tries_as_of_the_first() -> None:
    """It passes what it cannot show, so that less alpha would make it laxer."""
    bits = np.arange(400) < 240
    new = PairedAnswers(1, bits, bits)
    overfitted = Evidence(CLEAN, new=(new,), running=Running(train_right=705, train_records=1000))
    for attempt in (None, 1, 2, 5, 10):
        config = GateConfig(train_gap=0.05, alpha=0.05 if attempt is None else spent(0.05, attempt))
        (found,) = running(replace(overfitted, attempt=attempt), config)
        assert found.answer == "fail", attempt


@pytest.mark.parametrize(
    "broken",
    [
        Running(champion_bytes=math.inf, challenger_bytes=1e9),  # type: ignore[arg-type]
        Running(champion_bytes=1000, challenger_bytes=math.nan),  # type: ignore[arg-type]
    ],
)
def test_sizes_that_are_no_numbers_are_undecided(broken: Running) -> None:
    found = running(Evidence(CLEAN, running=broken), GateConfig(size_ratio=1.1))
    assert [each.answer for each in found if each.guard == "size"] == ["undecided"]


def test_training_records_without_end_are_undecided() -> None:
    bits = np.ones(400, dtype=np.bool_)
    endless = Running(train_right=10, train_records=math.inf)  # type: ignore[arg-type]
    evidence = Evidence(CLEAN, new=(PairedAnswers(1, bits, bits),), running=endless)
    (found,) = running(evidence, GateConfig(train_gap=0.05))
    assert found.answer == "undecided"


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(5430.2, "took 5430.20 seconds"), (100.001, "took 100.0010 seconds"), (99.999, "took 99.9990 seconds")],
)
def test_seconds_are_never_rounded_to_their_limit(seconds: float, says: str) -> None:
    (found,) = (
        each
        for each in running(Evidence(CLEAN, running=Running(seconds=seconds)), GateConfig(update_seconds=100))
        if each.guard == "update_cost"
    )
    assert says in found.sentence
