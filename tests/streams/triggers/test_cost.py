"""Records are cut when their waiting outweighs the training that they would cost."""

import math

import numpy as np
import pytest

from streams.triggers.catalog import CostTrigger, TriggerContext
from streams.triggers.cost import forecast_seconds
from tests.support.trigger_parts import ALONE, cuts_of, fed, made, saved, sizes_of

EAGER = CostTrigger(record_seconds_per_training_second=10, at_least=1)


def costing(*costs: tuple[int, float]) -> TriggerContext:
    return TriggerContext(costs=lambda: costs)


FIXED = costing((100, 50.0), (200, 50.0), (300, 50.0))
"""Every update takes 50 seconds: 500 record-seconds of waiting are worth it."""


def forecast(*costs: tuple[int, float], records: int = 100) -> float | None:
    found = forecast_seconds(costs, np.array([records]))
    return None if found is None else float(found[0])


def test_waiting_is_the_area_under_the_number_of_pending_records() -> None:
    # A record a second: when the n-th arrives, those before it have waited 1 + 2 + ... + (n - 1) seconds.
    cut = fed(EAGER.watch({}, FIXED), made(100, times=np.arange(100.0)))
    assert cut is not None
    assert cut.records == 33
    assert cut.decision["waited_record_seconds"] == 32 * 33 / 2
    assert cut.decision["forecast_training_seconds"] == 50
    assert cut.reason == (
        "33 records have waited for 528 record-seconds, as much as 50.0 seconds of training are worth at 10 "
        "record-seconds each."
    )


def test_waiting_starts_at_zero_after_every_cut() -> None:
    # The time between a cut and the next record is nobody's waiting: so each cut is like the first.
    cuts = cuts_of(EAGER, made(100, times=np.arange(100.0)), around=FIXED)
    assert sizes_of(cuts) == [33, 33, 33]
    assert {cut.decision["waited_record_seconds"] for cut in cuts} == {528}


def test_a_dearer_second_of_training_cuts_later_and_a_faster_stream_sooner() -> None:
    dear = CostTrigger(record_seconds_per_training_second=100, at_least=1)
    slow = made(2000, times=np.arange(2000.0))
    fast = made(2000, times=np.arange(2000.0) / 10)
    first = [cuts_of(config, stream, around=FIXED)[0] for config in (EAGER, dear) for stream in (slow, fast)]
    # As the square root of both, which is the economic order quantity.
    assert sizes_of(first) == pytest.approx([33, 101, 101, 317], abs=1)


def test_time_goes_on_when_no_record_arrives() -> None:
    watch = EAGER.watch({}, FIXED)
    assert watch.see(made(10), 1000.0, 1000.0) is None
    assert watch.due(1049.9) is None
    cut = watch.due(1050.0)
    assert cut is not None
    assert (cut.records, cut.decision["waited_record_seconds"]) == (10, 500)
    assert watch.due(1000.0) is None, "a clock that was set back takes nothing off"


def test_records_without_time_wait_by_their_arrival() -> None:
    watch = EAGER.watch({}, FIXED)
    assert watch.see(made(10), 1000.0, 5000.0) is None
    assert watch.see(made(10), 1049.0, 5000.0) is None
    cut = watch.see(made(10), 1050.0, 5000.0)
    assert cut is not None
    assert cut.records == 21
    assert cut.decision["waited_record_seconds"] == 10 * 49 + 20


def test_records_whose_arrival_is_unknown_wait_from_now_on() -> None:
    watch = EAGER.watch({}, FIXED)
    assert watch.see(made(10), math.nan, 1000.0) is None
    assert watch.due(1010.0) is None
    assert watch.due(1050.0) is not None


def test_old_event_times_are_replayed_by_their_own_clock() -> None:
    watch = EAGER.watch({}, FIXED)
    assert watch.see(made(10, times=np.arange(10.0)), 1.7e9, 1.7e9) is None
    assert watch.due(1.7e9 + 1) is None


def test_a_straggler_and_a_wrong_clock_do_not_count_as_waiting() -> None:
    times = np.full(30, 1000.0)
    times[10], times[20] = 0.0, 4e9
    assert fed(EAGER.watch({}, FIXED), made(30, times=times)) is None


def test_before_any_update_records_are_counted() -> None:
    cut = fed(CostTrigger(first=40).watch({}, ALONE), made(100))
    assert cut is not None
    assert cut.records == 40
    assert cut.decision["forecast_training_seconds"] is None


def test_fewer_records_than_asked_for_are_not_cut() -> None:
    lazy = CostTrigger(record_seconds_per_training_second=10, at_least=60)
    watch = lazy.watch({}, FIXED)
    assert watch.see(made(59), 0.0, 0.0) is None
    assert watch.due(1e6) is None
    cut = watch.see(made(5), 1e6, 1e6)
    assert cut is not None
    assert cut.records == 60


def test_the_clock_goes_on_after_a_forced_cut() -> None:
    watch = EAGER.watch({}, FIXED)
    watch.see(made(3, times=[10.0, 11.0, 12.0]), 0.0, 0.0)
    forced = watch.forced("Asked for.", 0.0)
    assert saved(forced.state)["clock"]["reading"] == 12
    assert forced.records == 3


def test_no_update_gives_no_forecast_and_few_give_the_last_ones_pace() -> None:
    assert forecast() is None
    assert forecast((0, 5.0), (10, math.nan), (10, -1.0)) is None
    assert forecast((50, 10.0)) == 20
    assert forecast((50, 99.0), (50, 10.0)) == 20
    assert forecast((50, 99.0), (50, 99.0), (50, 99.0), (50, 10.0)) == 20


def test_a_line_is_fitted_and_stands_up_to_outliers() -> None:
    line = [(records, 5.0 + 0.1 * records) for records in range(100, 1100, 100)]
    assert forecast(*line) == pytest.approx(15)
    assert forecast(*line, (400, 9000.0), (300, 0.0), (700, 5000.0)) == pytest.approx(15, abs=2)


def test_a_forecast_is_never_negative() -> None:
    falling = [(100, 50.0), (200, 40.0), (300, 30.0)]
    assert forecast(*falling, records=10_000) == 40
    steep = [(100, 0.0), (200, 50.0), (300, 100.0)]
    assert forecast(*steep, records=1) == pytest.approx(0.5)
