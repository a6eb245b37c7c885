"""Detectors keep their average run length, find a rise soon, and do not care about chunks."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from streams.triggers.detectors import (
    HIGHEST_RATE,
    LOWEST_RATE,
    Cusum,
    Detector,
    EDetector,
    average_run_length,
    bounded_rate,
    cusum_plan,
)

ACCEPTABLE = 0.11


def cusum(run_length: float = 10_000) -> Cusum:
    return Cusum.designed(ACCEPTABLE, increase=0.05, run_length=run_length)


def e_detector(run_length: float = 10_000) -> EDetector:
    return EDetector(ACCEPTABLE, run_length=run_length)


BOTH = pytest.mark.parametrize("make", [cusum, e_detector])
Make = Callable[..., Detector]


def alarm_after(detector: Detector, rate: float, random: np.random.Generator) -> int:
    """Records up to the alarm."""
    records = 0
    while (index := detector.see(random.random(500) < rate)) is None:
        records += 500
    return records + index + 1


def answers(seed: int, *, before: int = 700, after: int = 400) -> NDArray[np.bool_]:
    """Wrong with the rate 0.1, then 0.3."""
    random = np.random.default_rng(seed)
    return random.random(before + after) < np.repeat([0.1, 0.3], [before, after])


@BOTH
def test_the_average_run_length_is_at_least_what_is_stated(make: Make) -> None:
    random = np.random.default_rng(1)
    lengths = [alarm_after(make(500), ACCEPTABLE, random) for _ in range(400)]
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert np.mean(lengths) > 500 - 2 * error


def test_the_run_length_of_the_cusum_is_exact() -> None:
    plan = cusum_plan(ACCEPTABLE, 0.05, 500)
    random = np.random.default_rng(2)
    lengths = [alarm_after(Cusum(plan), ACCEPTABLE, random) for _ in range(1000)]
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert abs(np.mean(lengths) - plan.run_length) < 3 * error
    assert 500 <= plan.run_length < 600


def test_the_run_length_of_a_short_chain_is_what_paper_and_pencil_give() -> None:
    # Two wrong answers in a row, with the rate p: (1 + p) / p^2.
    assert average_run_length(0.2, up=1, down=1, threshold=2) == pytest.approx(
        1 / 0.2 + (1 / 0.2) * (1 / 0.2)
    )
    assert average_run_length(0.2, up=1, down=1, threshold=1) == pytest.approx(5.0)
    assert average_run_length(0.2, up=1, down=5, threshold=2) == pytest.approx((1 + 0.2) / 0.2**2)


@BOTH
def test_a_rise_from_10_to_20_per_cent_is_found_within_165_records_or_so(make: Make) -> None:
    random = np.random.default_rng(3)
    delays = []
    for _ in range(200):
        detector = make()
        while detector.see(random.random(1000) < 0.1) is not None:
            detector = make()
        delays.append(alarm_after(detector, 0.2, random))
    assert 90 < np.median(delays) < 170


@BOTH
def test_a_small_rise_is_found_too(make: Make) -> None:
    random = np.random.default_rng(4)
    assert np.median([alarm_after(make(), 0.14, random) for _ in range(60)]) < 1200


@BOTH
def test_a_rate_below_the_acceptable_one_hardly_ever_alarms(make: Make) -> None:
    random = np.random.default_rng(15)
    assert sum(make().see(random.random(10_000) < 0.08) is not None for _ in range(25)) <= 1


def test_the_e_detector_keeps_its_run_length_on_answers_that_cling_together() -> None:
    # Bursts: the rate changes every 20 records, and is never above the acceptable one.
    random = np.random.default_rng(6)
    lengths = []
    for _ in range(60):
        rates = np.repeat(random.choice([0.0, ACCEPTABLE], 1_000), 20)
        index = e_detector(500).see(random.random(len(rates)) < rates)
        lengths.append(len(rates) if index is None else index)
    assert np.mean(lengths) > 500


@BOTH
@pytest.mark.parametrize("seed", range(5))
def test_chunks_and_saved_states_change_nothing(make: Make, seed: int) -> None:
    wrong = answers(seed)
    whole = make()
    expected = whole.see(wrong)
    assert expected is not None
    detector, start = make(), 0
    for piece in np.split(wrong, np.sort(np.random.default_rng(seed).integers(0, len(wrong), 30))):
        detector = type(detector).from_state(json.loads(json.dumps(detector.state())))  # type: ignore[attr-defined]
        index = detector.see(piece)
        if index is not None:
            assert start + index == expected
            break
        start += len(piece)
    assert detector.statistic == whole.statistic >= whole.threshold
    assert detector.state() == whole.state()


def test_the_cusum_is_the_recursion_of_the_textbook() -> None:
    wrong = answers(9, after=50)
    detector = cusum(1e8)
    value, plan = 0, detector.plan
    for index, is_wrong in enumerate(wrong):
        value = max(0, value + (plan.up if is_wrong else -plan.down))
        assert detector.see(wrong[index : index + 1]) is None
        assert detector.statistic == value


@pytest.mark.parametrize("acceptable", [0.0, 0.005, 0.02, 0.3, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("increase", [0.01, 0.05, 0.5])
def test_every_acceptable_rate_has_a_plan(acceptable: float, increase: float) -> None:
    plan = cusum_plan(acceptable, increase, 10_000)
    assert plan.acceptable == bounded_rate(acceptable)
    assert LOWEST_RATE <= plan.acceptable <= HIGHEST_RATE
    assert plan.acceptable * plan.up < (1 - plan.acceptable) * plan.down, "the sum falls while all is well"
    assert 10_000 <= plan.run_length < (13_000 if increase > 0.05 else 10_600)


@BOTH
def test_no_answers_change_nothing(make: Make) -> None:
    detector = make()
    detector.see(np.array([True, True, False]))
    before = detector.state()
    assert detector.see(np.empty(0, dtype=np.bool_)) is None
    assert detector.state() == before
