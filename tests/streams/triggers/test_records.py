"""Cuts by count, and by event time in windows that do not drift."""

import math

import numpy as np
import pytest

from streams.triggers.catalog import RecordsTrigger, SecondsTrigger
from tests.support.trigger_parts import ALONE, cuts_of, fed, made, saved, sizes_of, timed

TEN = SecondsTrigger(seconds=10)


def test_cuts_at_the_count_and_not_before() -> None:
    watch = RecordsTrigger(records=4).watch({}, ALONE)
    assert watch.see(made(3), 0.0, 0.0) is None
    cut = watch.see(made(3), 0.0, 0.0)
    assert cut is not None
    assert (cut.records, cut.reason) == (4, "4 records have arrived.")
    assert cut.decision == {"trigger": "records", "records": 4}


def test_what_is_left_over_counts_for_the_next_cut() -> None:
    assert sizes_of(cuts_of(RecordsTrigger(records=3), made(10), chunk=4)) == [3, 3, 3]


def test_time_alone_makes_no_cut_by_count() -> None:
    watch = RecordsTrigger(records=4).watch({}, ALONE)
    watch.see(made(3), 0.0, 0.0)
    assert watch.due(1e9) is None


def test_a_window_is_cut_by_the_first_record_after_it() -> None:
    cut = fed(TEN.watch({}, ALONE), timed(100, 105, 109.9, 110, 111))
    assert cut is not None
    assert cut.records == 3
    assert cut.reason == "3 records came in a window of 10 seconds of event time."
    assert cut.decision == {"trigger": "seconds", "records": 3, "ended": 110, "reading": 110}


def test_windows_follow_the_first_records_time_and_do_not_drift() -> None:
    cuts = cuts_of(TEN, timed(100, 108, 117, 119, 121, 131))
    assert sizes_of(cuts) == [2, 2, 1]
    assert [cut.state["start"] for cut in cuts] == [110, 120, 130]


def test_a_gap_of_many_windows_gives_one_cut() -> None:
    cuts = cuts_of(TEN, timed(100, 101, 555, 556, 561))
    assert sizes_of(cuts) == [2, 2]
    assert [cut.state["start"] for cut in cuts] == [550, 560]


def test_windows_without_a_record_are_passed_over_after_a_cut_too() -> None:
    watch = TEN.watch({"start": 100.0}, ALONE)
    cut = fed(watch, timed(555, 556, 561))
    assert cut is not None
    assert (cut.records, cut.state["start"]) == (2, 560)


def test_stragglers_are_waited_for() -> None:
    late = SecondsTrigger(seconds=10, lateness_seconds=5)
    cuts = cuts_of(late, timed(100, 109, 112, 108, 114.9, 115, 109, 121, 126))
    assert sizes_of(cuts) == [5, 3]
    assert [cut.state["start"] for cut in cuts] == [110, 120]
    assert cuts[0].reason.endswith("10 seconds of event time, and 5 for stragglers.")


def test_records_without_time_go_along_and_move_nothing() -> None:
    assert cuts_of(TEN, made(1000)) == []
    assert sizes_of(cuts_of(TEN, timed(math.nan, 100, math.nan, math.nan, 110, math.nan))) == [4]


def test_one_record_from_the_far_future_cuts_nothing() -> None:
    times = np.arange(100.0, 108.0)
    times[5] = 4e9
    assert cuts_of(TEN, made(8, times=times)) == []


def test_a_first_record_from_the_far_future_does_not_stop_the_stream() -> None:
    times = np.concatenate([[4e9], np.arange(100.0, 140.0)])
    assert sizes_of(cuts_of(TEN, made(41, times=times))) == [14, 10, 10]


@pytest.mark.parametrize("scale", [1e14, 1e300])
def test_times_too_large_for_seconds_end_no_loop(scale: float) -> None:
    cuts_of(SecondsTrigger(seconds=0.001), made(50, times=scale + np.arange(50) * scale))


def test_time_alone_makes_no_cut_by_event_time() -> None:
    watch = TEN.watch({}, ALONE)
    watch.see(timed(100, 101), 0.0, 0.0)
    assert watch.due(1e9) is None


def test_a_forced_cut_leaves_the_windows_where_they_are() -> None:
    watch = TEN.watch({}, ALONE)
    watch.see(timed(100, 101), 0.0, 0.0)
    forced = watch.forced("Asked for.", 0.0)
    assert (forced.reason, forced.records) == ("Asked for.", 2)
    assert forced.decision == {"trigger": "seconds", "forced": True, "records": 2}
    cut = fed(TEN.watch(saved(forced.state), ALONE), timed(105, 109, 110))
    assert cut is not None
    assert (cut.records, cut.state["start"]) == (2, 110)
