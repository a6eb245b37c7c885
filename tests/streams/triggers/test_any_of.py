"""Any of several triggers cuts, but not before the minima are over and not after the longest wait."""

import math
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from streams.triggers.catalog import AnyOfTrigger, Cut, TriggerChoice, TriggerConfig, TriggerContext
from tests.support.trigger_parts import ALONE, Parrot, answered, cuts_of, fed, made, saved, sizes_of, timed

ADAPTER: TypeAdapter[TriggerConfig] = TypeAdapter(TriggerChoice)
TEN_SECONDS = {"kind": "seconds", "seconds": 10}


def any_of(*children: dict[str, Any], **bounds: Any) -> AnyOfTrigger:
    config = ADAPTER.validate_python({"kind": "any-of", "any": list(children), **bounds})
    assert isinstance(config, AnyOfTrigger)
    return config


def summary(cut: Cut | None) -> tuple[int, str, list[str]]:
    """Records, the child that made the cut, and what held it."""
    assert cut is not None
    return cut.records, cut.decision["child"], cut.decision["held_by"]


def test_the_first_to_fire_cuts_with_its_own_reason() -> None:
    config = any_of({"records": 8}, TEN_SECONDS)
    cut = fed(config.watch({}, ALONE), timed(*range(100, 120)))
    assert summary(cut) == (8, "records", [])
    assert cut is not None
    assert cut.reason == "8 records have arrived."
    assert cut.decision["decision"] == {"trigger": "records", "records": 8}
    assert summary(fed(config.watch({}, ALONE), timed(100, 105, 111, 112))) == (2, "seconds", [])


@pytest.mark.parametrize("sizes", [[], [1] * 20, [10, 1], [11]])
def test_of_two_that_are_due_at_once_the_same_one_cuts_in_every_chunking(sizes: list[int]) -> None:
    # The count is due with the tenth record, the window with the eleventh; both would cut ten.
    config = any_of(TEN_SECONDS, {"records": 10})
    assert summary(fed(config.watch({}, ALONE), timed(*range(100, 120)), sizes)) == (10, "records", [])
    # Both are due with the eleventh: the one that stands first cuts.
    config = any_of(TEN_SECONDS, {"records": 11})
    assert summary(fed(config.watch({}, ALONE), timed(*range(100, 120)), sizes)) == (10, "seconds", [])


@pytest.mark.parametrize("sizes", [[], [1] * 30, [4, 4]])
def test_a_child_that_fired_too_soon_is_remembered(sizes: list[int]) -> None:
    config = any_of({"records": 3}, min_records=12)
    cut = fed(config.watch({}, ALONE), made(30), sizes)
    assert summary(cut) == (12, "records", ["min_records"])
    assert cut is not None
    assert cut.reason == "3 records have arrived. Held by min_records until 12 records."


def test_the_seconds_between_cuts_are_counted_by_event_time() -> None:
    cuts = cuts_of(any_of({"records": 3}, min_seconds=10), timed(*range(100, 140)), chunk=7)
    assert sizes_of(cuts) == [3, 10, 10, 10]
    assert [cut.decision["held_by"] for cut in cuts] == [[], *[["min_seconds"]] * 3]


def test_the_seconds_between_cuts_are_counted_by_arrival_without_event_times() -> None:
    config = any_of({"records": 3}, min_seconds=10)
    state = saved(config.watch({}, ALONE).forced("Asked for.", 1000.0).state)
    watch = config.watch(state, ALONE)
    assert watch.see(made(5), 1005.0, 1005.0) is None
    assert watch.due(1009.0) is None
    assert summary(watch.due(1010.0)) == (5, "records", ["min_seconds"])
    watch = config.watch(state, ALONE)
    assert watch.see(made(5), 1005.0, 1005.0) is None
    assert summary(watch.see(made(5), 1010.0, 1010.0)) == (5, "records", ["min_seconds"])


def test_idle_time_ends_the_minimum_of_event_time_too() -> None:
    config = any_of({"records": 3}, min_seconds=10)
    first = fed(config.watch({}, ALONE), timed(100, 101, 102), at=5000.0)
    assert first is not None
    watch = config.watch(saved(first.state), ALONE)
    assert watch.see(timed(103, 104, 105), 5001.0, 5001.0) is None
    assert watch.due(5007.0) is None
    assert summary(watch.due(5008.0)) == (3, "records", ["min_seconds"])


def test_a_pending_record_waits_no_longer_than_it_may() -> None:
    config = any_of({"records": 1000}, max_seconds=60, min_records=500)
    watch = config.watch({}, ALONE)
    assert watch.due(1e9) is None
    assert watch.see(made(5), 1000.0, 1000.0) is None
    assert watch.due(1059.0) is None
    cut = watch.due(1060.0)
    assert cut is not None
    assert cut.records == 5
    assert cut.reason == "The oldest of 5 records has waited for 60 seconds, of which 60 are allowed."
    assert (cut.decision["waited_seconds"], cut.decision["held"]) == (60, None)
    later = watch.see(made(5), 1070.0, 1070.0)
    assert later is not None
    assert later.records == 5


def test_a_record_that_arrived_long_ago_is_cut_at_once() -> None:
    watch = any_of({"records": 1000}, max_seconds=60).watch({}, ALONE)
    assert watch.see(made(5), 1000.0, 9000.0) is None
    assert watch.due(9000.0) is not None


def test_a_record_whose_arrival_is_unknown_waits_from_now_on() -> None:
    watch = any_of({"records": 1000}, max_seconds=60).watch({}, ALONE)
    assert watch.see(made(5), math.nan, 1000.0) is None
    assert watch.due(1059.0) is None
    assert watch.due(1060.0) is not None


def test_the_longest_wait_tells_what_the_minima_held() -> None:
    watch = any_of({"records": 3}, max_seconds=60, min_records=500).watch({}, ALONE)
    watch.see(made(5), 1000.0, 1000.0)
    cut = watch.due(1060.0)
    assert cut is not None
    assert cut.decision["held"]["held_by"] == ["min_records"]


def test_the_child_that_cut_goes_on_from_its_state_and_the_others_start_anew() -> None:
    config = any_of(TEN_SECONDS, {"records": 6})
    times = [100, 108, 117, 119, *range(121, 127), 140]
    cuts = cuts_of(config, timed(*times))
    # The window goes on at 110, so that 121 ends it. After six by count a window begins with the next record.
    assert [summary(cut)[:2] for cut in cuts] == [(2, "seconds"), (2, "seconds"), (6, "records")]
    assert cuts[0].state["triggers"] == {
        "0": {"start": 110, "clock": {"recent": [100] * 4 + [108], "reading": 108}}
    }
    assert cuts[2].state["triggers"] == {}


def test_time_makes_a_child_due() -> None:
    around = TriggerContext(costs=lambda: [(100, 1.0)])
    cost = {"kind": "cost", "record_seconds_per_training_second": 10, "at_least": 1}
    watch = any_of(cost, {"records": 1000}).watch({}, around)
    assert watch.see(made(10), 1000.0, 1000.0) is None
    assert summary(watch.due(1001.0)) == (10, "cost", [])


def test_features_without_labels_reach_the_children() -> None:
    random = np.random.default_rng(0)
    around = TriggerContext(reference=lambda: random.normal(size=(500, 2)).astype(np.float32))
    watch = any_of({"kind": "shift", "window": 100, "every": 100}, {"records": 1000}).watch({}, around)
    assert watch.see(made(10, features=random.normal(size=(10, 2)).astype(np.float32)), 0.0, 0.0) is None
    watch.see_features(random.normal(3.0, size=(200, 2)).astype(np.float32))
    assert summary(watch.due(0.0)) == (10, "shift", [])


def test_a_performance_alarm_is_held_until_there_is_enough_to_learn_from() -> None:
    around = TriggerContext(judge=lambda: Parrot(0.1))
    config = any_of({"kind": "performance", "at_least": 1}, min_records=400)
    assert summary(fed(config.watch({}, around), answered(np.ones(900, dtype=np.bool_)), [50] * 18)) == (
        400,
        "performance",
        ["min_records"],
    )


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"any": []}, "at least 1 item"),
        ({"any": [{"kind": "any-of", "any": [{"records": 5}]}]}, "'any-of' found using 'kind'"),
        ({"any": [{"records": 5}], "min_seconds": 10, "max_seconds": 5}, "must not be below min_seconds"),
        ({"any": [{"records": 0}]}, "greater than or equal to 1"),
    ],
)
def test_wrong_configs_are_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        AnyOfTrigger.model_validate(wrong)
