"""The clock follows the records' times, and is not led astray by one of them."""

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from streams.triggers.event_time import EventClock

DAY = 86_400.0


def read(*times: float, jump: float = DAY) -> list[float]:
    return [float(shown) for shown in EventClock(jump).read(np.array(times))]


def test_shows_the_latest_time_so_far() -> None:
    assert read(5, 3, 9, 8, 12) == [5, 5, 9, 9, 12]


def test_shows_nothing_before_the_first_time_and_stands_while_there_is_none() -> None:
    shown = read(math.nan, 4, math.nan, 6, math.nan)
    assert math.isnan(shown[0])
    assert shown[1:] == [4, 4, 6, 6]
    assert math.isnan(EventClock(DAY).reading)
    assert EventClock(DAY).read(np.empty(0)).tolist() == []


def test_one_record_from_the_far_future_does_not_move_it() -> None:
    assert read(1, 2, 3, 4, 5, 1e9, 6, 7) == [1, 2, 3, 4, 5, 5, 6, 7]


def test_a_true_gap_is_believed_from_the_fourth_record_on() -> None:
    week = 7 * DAY
    assert read(1, 2, 3, 4, 5, week, week + 1, week + 2, week + 3) == [1, 2, 3, 4, 5, 5, 5, 5, week + 3]


def test_a_first_record_from_the_future_is_corrected() -> None:
    assert read(1e9, 1, 2, 3, 4, 5) == [1e9, 1e9, 1e9, 1e9, 4, 5]


def test_a_clock_led_astray_by_many_is_set_back_by_many() -> None:
    future = [1e9 + second for second in range(10)]
    shown = read(1, 2, 3, 4, 5, *future, 6, 7, 8, 9, 10, 11)
    assert shown[14] == 1e9 + 9
    assert shown[-3:] == [9, 10, 11]


@pytest.mark.parametrize("absurd", [1e300, -1e300, math.nan])
def test_absurd_times_are_no_times(absurd: float) -> None:
    assert read(1, absurd, 2) == [1, 1, 2]


def hostile(seed: int) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(10.0, 400)) + random.normal(0, 30, 400)
    for value in (math.nan, 1e9, -1e9, 5 * DAY, 1e300):
        times[random.random(400) < 0.1] = value
    return times


@pytest.mark.parametrize("seed", range(20))
def test_chunks_and_saved_states_change_nothing(seed: int) -> None:
    times = hostile(seed)
    whole = EventClock(DAY).read(times)
    random = np.random.default_rng(seed)
    clock, parts = EventClock(DAY), []
    for piece in np.split(times, np.sort(random.integers(0, 401, 15))):
        clock = EventClock(DAY, json.loads(json.dumps(clock.state(), allow_nan=False)))
        parts.append(clock.read(piece))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
