"""Features that moved make a cut; features that did not make none."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streams.records import Records
from streams.triggers.catalog import ShiftTrigger, TriggerContext
from tests.support.trigger_parts import ALONE, fed, made, sizes_of

QUICK = ShiftTrigger(window=200, every=100, first=300, alpha=0.001)


def normal(seed: int, count: int, *, moved: float = 0.0, place: int = 3) -> NDArray[np.float32]:
    """(count, 4, 2) noise, of which one value moved."""
    values = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    values[:, place] += moved
    return values.reshape(count, 4, 2)


def after(reference: NDArray[Any] | None) -> TriggerContext:
    return TriggerContext(reference=lambda: reference)


def of(features: NDArray[Any]) -> Records:
    return made(len(features), features=features)


KNOWN = after(normal(0, 1000))


def test_the_first_experience_is_cut_by_count() -> None:
    cut = fed(QUICK.watch({}, ALONE), of(normal(1, 500)))
    assert cut is not None
    assert (cut.records, cut.decision["first"]) == (300, True)
    assert cut.reason == "300 records have arrived; there is nothing to compare them with."


@pytest.mark.parametrize("small", [0, 3, 49])
def test_a_reference_too_small_to_decide_by_counts_as_none(small: int) -> None:
    assert fed(QUICK.watch({}, after(normal(0, small))), of(normal(1, 300))) is not None


def test_records_like_the_reference_wait() -> None:
    assert fed(QUICK.watch({}, KNOWN), of(normal(2, 20_000))) is None


def test_a_shift_is_cut_at_the_next_look_with_its_numbers() -> None:
    stream = np.concatenate([normal(3, 1030), normal(4, 400, moved=1.5)])
    cut = fed(QUICK.watch({}, KNOWN), of(stream))
    assert cut is not None
    assert cut.records == 1100, "70 of the 200 records that are looked at have moved"
    assert cut.decision["feature"] == 3
    assert cut.decision["p_value"] < 0.001
    assert cut.decision["looked_at"] == 1100
    assert (cut.decision["reference_records"], cut.decision["window_records"]) == (1000, 200)
    assert "feature 3 by 0." in cut.reason


def test_looks_begin_once_the_window_is_full() -> None:
    cut = fed(QUICK.watch({}, KNOWN), of(normal(4, 400, moved=3.0)))
    assert cut is not None
    assert cut.records == 200


def test_two_looks_in_a_row_can_be_asked_for() -> None:
    confirmed = QUICK.model_copy(update={"confirm": True})
    cut = fed(confirmed.watch({}, KNOWN), of(normal(4, 400, moved=3.0)))
    assert cut is not None
    assert cut.records == 300
    assert "in two looks in a row" in cut.reason
    # One odd window between good ones is not two in a row.
    odd = np.concatenate([normal(5, 200), normal(6, 200, moved=3.0), normal(7, 400)])
    spaced = confirmed.model_copy(update={"every": 200})
    assert fed(spaced.watch({}, KNOWN), of(odd)) is None


def test_only_so_many_values_of_large_records_are_compared() -> None:
    few = QUICK.model_copy(update={"features": 4})
    moved = normal(4, 400, moved=3.0, place=6)
    cut = fed(few.watch({}, KNOWN), of(moved))
    assert cut is not None
    assert (cut.decision["feature"], cut.decision["compared_features"]) == (6, 4)
    unseen = normal(4, 400, moved=3.0, place=7)
    assert fed(few.watch({}, KNOWN), of(unseen)) is None


def test_false_alarms_are_as_rare_as_stated() -> None:
    # 250 looks without overlap, ten at each reference; two standard errors above the stated 12.5.
    often = ShiftTrigger(window=200, every=200, alpha=0.05)
    alarms = 0
    for seed in range(25):
        around = after(normal(1000 + seed, 1000))
        for look in range(10):
            stream = of(normal(100 * seed + look, 200))
            alarms += fed(often.watch({}, around), stream) is not None
    assert alarms <= 12.5 + 7


def test_features_without_labels_raise_the_alarm() -> None:
    watch = QUICK.watch({}, KNOWN)
    assert fed(watch, of(normal(1, 50))) is None
    watch.see_features(normal(4, 300, moved=3.0))
    cut = watch.due(0.0)
    assert cut is not None
    assert cut.records == 50
    assert cut.decision["looked_at"] == 200
    again = watch.see(of(normal(5, 10)), 0.0, 0.0)
    assert again == cut


def test_an_alarm_waits_until_there_is_a_complete_record_to_cut() -> None:
    watch = QUICK.watch({}, KNOWN)
    watch.see_features(normal(4, 300, moved=3.0))
    watch.see_features(normal(5, 300, moved=3.0))
    assert watch.due(0.0) is None
    assert watch.see(made(0), 0.0, 0.0) is None
    cut = watch.see(of(normal(6, 5)), 0.0, 0.0)
    assert cut is not None
    assert cut.records == 1


def test_a_record_whose_features_came_before_its_label_is_counted_once() -> None:
    watch = QUICK.watch({}, KNOWN)
    rows = normal(4, 150, moved=3.0)
    watch.see_features(rows)
    assert watch.see(of(rows), 0.0, 0.0) is None
    twice = np.concatenate([rows[:1], rows[:1]])
    watch.see_features(twice)
    assert watch.see(of(twice), 0.0, 0.0) is None
    cut = watch.see(of(normal(5, 100, moved=3.0)), 0.0, 0.0)
    assert cut is not None
    assert (cut.records, cut.decision["looked_at"]) == (150 + 2 + 48, 200)


def test_features_without_labels_are_nothing_to_compare_before_there_is_a_reference() -> None:
    watch = QUICK.watch({}, ALONE)
    watch.see_features(normal(4, 1000, moved=3.0))
    assert watch.due(0.0) is None


def test_bytes_are_compared_as_they_are() -> None:
    random = np.random.default_rng(0)
    reference, same = random.integers(0, 200, (2, 1000, 8, 8)).astype(np.uint8)
    around = after(reference)
    assert fed(QUICK.watch({}, around), of(same)) is None
    cut = fed(QUICK.watch({}, around), of(same + np.uint8(50)))
    assert cut is not None
    assert sizes_of([cut]) == [200]


def test_the_reference_is_asked_for_once_and_not_before_the_first_record() -> None:
    asked = []

    def reference() -> NDArray[np.float32]:
        asked.append(1)
        return normal(0, 1000)

    watch = QUICK.watch({}, TriggerContext(reference=reference))
    assert not asked
    fed(watch, of(normal(1, 500)), [100] * 5)
    assert asked == [1]
